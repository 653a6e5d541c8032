"""The whole configuration as a page of YAML: every key, its meaning, and who set its value."""

import json
import math
import textwrap
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import yaml

from hpc_maml.config import Files, Resolved, resolve
from hpc_maml.settings import Section
from hpc_maml.yaml_text import Dumper

WIDTH = 100  # columns of the page
WIDEST_KEY = 36  # columns before a comment; what is longer has its comment behind it
HEADER = "# Every key. In [brackets]: where its value comes from, if it is not the key's default."
NO_BREAK = "\N{NO-BREAK SPACE}"
FIRST_NEUTRAL_KEY = "topology"
NEUTRAL = "# The keys below do not change the result; they may differ when a run is continued."


class Line(NamedTuple):
    """A key with its value, and what is said of it."""

    text: str
    comment: str = ""


def config_text(
    files: Files, words: Sequence[str] = (), trusted: Collection[str] | None = None
) -> str:
    """Return the configuration of files and words as YAML that ``load_config`` reads.

    Takes the same arguments, and raises the same.
    """
    lines = list(_lines(resolve(files, words, trusted)))
    column = 2 + max(len(text) for text, comment in lines if comment and len(text) <= WIDEST_KEY)
    return "\n".join([HEADER, *(row for line in lines for row in _rows(line, column)), ""])


def _lines(resolved: Resolved) -> Iterator[Line]:
    after_section = True
    for key, field in type(resolved.config).model_fields.items():
        value = getattr(resolved.config, key)
        is_section = isinstance(value, Section)
        if is_section or after_section:
            yield Line("")
        if key == FIRST_NEUTRAL_KEY:
            yield Line(NEUTRAL)
        if is_section:
            yield Line(f"{key}:")
            for inner, its_field in type(value).model_fields.items():
                text = f"  {inner}: {_flow(getattr(value, inner))}"
                yield Line(text, _comment(its_field.description, f"{key}.{inner}", resolved))
        else:
            yield Line(f"{key}: {_flow(value)}", _comment(field.description, key, resolved))
        after_section = is_section


def _comment(description: str | None, key: str, resolved: Resolved) -> str:
    source = resolved.sources.get(key, "")
    bracket = f"[{source}]".replace(" ", NO_BREAK) if source else ""
    return f"{description or ''} {bracket}".strip(" ")


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    value = value.model_dump() if isinstance(value, Section) else value
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, sort_keys=False, width=math.inf)
    text = text.removesuffix("\n").removesuffix("\n...")
    return json.dumps(value) if "\n" in text else text


def _rows(line: Line, column: int) -> Iterator[str]:
    """Yield the rows of a line: a long comment goes on below, in the same column."""
    if not line.comment:
        yield line.text
        return
    start = max(column, len(line.text) + 2)
    room = max(WIDTH - start - 2, WIDTH // 3)
    wrapped = textwrap.wrap(line.comment, room, break_long_words=False, break_on_hyphens=False)
    first, *more = (each.replace(NO_BREAK, " ") for each in wrapped)
    yield f"{line.text.ljust(start)}# {first}"
    yield from (f"{' ' * start}# {each}" for each in more)
