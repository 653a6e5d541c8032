"""What the site's pages of reference say, made from the program itself.

    python docs/reference_pages.py configuration    # or metrics, or commands: printed as Markdown

Pages in docs/ have a line ``<!-- generated: NAME -->``, in whose place docs/site_hooks.py puts the
text of that name when the site is built.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from hpc_maml import cli
from hpc_maml.algorithms import ALGORITHMS, Metric, algorithm_class
from hpc_maml.algorithms.algorithm import AlgorithmSettings
from hpc_maml.config import NEUTRAL_KEYS, Config, leaves
from hpc_maml.envs import ENVIRONMENTS, find
from hpc_maml.policies import NETWORKS, TORCH_MODULE, network_class
from hpc_maml.policies.network import NetworkSettings
from hpc_maml.settings import Section
from hpc_maml.storage.metrics import (
    METRICS,
    PER_TASK,
    SUCCESS_PER_TASK,
    success_metrics,
)

NEUTRAL = "↻"  # marks keys that may change when a run is continued
OF_JOB = "†"  # marks metrics that depend on the job, not on configuration and seed
NETWORK_OF_ONES_OWN = "module:Class"
CLASS = "CLASS"
LINKS = {
    "docs/environments.md": "[environments](environments.md)",
    "docs/results": "[results](results/README.md)",
}  # in the texts of the program
PLAIN_TYPES = {
    "boolean": "`true` or `false`",
    "null": "`null`",
    "string": "text",
    "object": "mapping",
}
COMMAND_WIDTH = "90"  # columns of a help text


# Every key


def configuration() -> str:
    """Return every key of a configuration with its default, values and meaning."""
    fields = Config.model_fields
    plain = [key for key in fields if not _is_section(key)]
    blocks = ["### Keys without a section", _keys(Config, "", only=plain)]
    for key in fields:
        if key == "algorithm":
            blocks += list(_of_classes(key, AlgorithmSettings, _algorithms()))
        elif key == "policy":
            blocks += list(_of_classes(key, NetworkSettings, _networks()))
        elif _is_section(key):
            section: Any = fields[key].annotation
            blocks += [f"### `{key}`", _keys(section, f"{key}.")]
    blocks += ["## Defaults of environments and algorithms", _implied()]
    return _joined(blocks)


def _algorithms() -> dict[str, type[Section]]:
    return {name: algorithm_class(name).Settings for name in ALGORITHMS}


def _networks() -> dict[str, type[Section]]:
    names = {name: network_class(name).Settings for name in NETWORKS}
    return names | {NETWORK_OF_ONES_OWN: network_class(TORCH_MODULE).Settings}


def _of_classes(
    section: str, shared: type[Section], classes: Mapping[str, type[Section]]
) -> Iterator[str]:
    """Yield the keys of a section whose keys depend on its ``name``."""
    yield f"### `{section}`"
    yield _keys(shared, f"{section}.")
    for name, settings in classes.items():
        own = [key for key in settings.model_fields if key not in shared.model_fields]
        yield f"#### `{section}.name={name}`"
        yield _keys(settings, f"{section}.", only=own, anchor=f"{name}.")


def _is_section(key: str) -> bool:
    annotation = Config.model_fields[key].annotation
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _keys(
    settings: type[Section],
    prefix: str,
    only: Iterable[str] | None = None,
    anchor: str | None = None,
) -> str:
    """Return a table of the keys of a section; ``anchor`` begins the names to link to."""
    anchor = prefix if anchor is None else anchor
    schema = settings.model_json_schema()
    definitions = schema.get("$defs", {})
    rows = []
    for key in settings.model_fields if only is None else only:
        entry = schema["properties"][key]
        name = f"{prefix}{key}"
        neutral = name.partition(".")[0] in NEUTRAL_KEYS
        rows.append(
            (
                f"`{name}`{{ #{anchor}{key} }}" + (f" {NEUTRAL}" if neutral else ""),
                f"`{_yaml(entry['default'])}`",
                values_in_words(entry, definitions),
                entry.get("description", ""),
            )
        )
    return _table(("key", "default", "values", "meaning"), rows)


def values_in_words(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return which values a JSON schema allows."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return " or ".join(values_in_words(each, definitions) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        words = [f"`{_yaml(each)}`" for each in schema.get("enum", [schema.get("const")])]
        return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    kind = schema["type"]
    if kind in ("integer", "number"):
        return f"{kind}{_bounds(schema)}"
    if kind == "array":
        return f"list of: {values_in_words(schema['items'], definitions)}"
    return PLAIN_TYPES[kind]


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {_number(schema[key])}" for key, sign in signs.items() if key in schema]
    return f" {', '.join(bounds)}" if bounds else ""


def _number(value: float) -> str:
    """Return a bound as text; 2¹³ and the like are known by that name."""
    exponent = int(value).bit_length() - 1
    if exponent > 9 and value == 2**exponent:
        return f"2{str(exponent).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _implied() -> str:
    """Return the defaults that environments, lineages and algorithms declare."""
    rows = []
    for name in ENVIRONMENTS:
        environment: Any = find(name)
        rows.append((f"`env.name={name}`", _settings(environment.defaults)))
        for lineage, declared in environment.lineage_defaults.items():
            where = f"`env.name={name}` `env.kwargs.lineage={lineage}`"
            rows.append((where, _settings(declared)))
    rows += [
        (f"`algorithm.name={name}`", _settings(algorithm_class(name).defaults))
        for name in ALGORITHMS
    ]
    return _table(("with", "defaults"), [row for row in rows if row[1]])


def _settings(declared: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={_yaml(value)}`" for key, value in leaves(dict(declared)))


def _yaml(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


# Every metric


def metrics() -> str:
    """Return every metric with its unit, shape and meaning, by who declares it."""
    blocks = [
        "### Of every run",
        "In `metrics.h5` under `iterations/`.",
        _metrics(METRICS),
        "### Of environments that report success",
        f"Under `iterations/`; {CLASS} stands for each class of training tasks, where there are "
        "several.",
        _metrics(success_metrics([CLASS])),
        "### Of every task",
        "In `metrics.h5` under `tasks/`; those with `success` in their name in environments that "
        "report it.",
        _metrics(PER_TASK | SUCCESS_PER_TASK),
    ]
    for name in ALGORITHMS:
        blocks += [f"### `algorithm.name={name}`", _metrics(algorithm_class(name).metrics)]
    return _joined(blocks)


def _metrics(declared: Mapping[str, Metric]) -> str:
    rows = [
        (
            f"`{name}`" + (f" {OF_JOB}" if metric.wall_clock else ""),
            metric.unit,
            f"`{metric.shape}`",
            metric.description,
        )
        for name, metric in declared.items()
    ]
    return _table(("metric", "unit", "shape", "meaning"), rows)


# The command line


def commands() -> str:
    """Return what ``--help`` says of every command."""
    blocks = []
    for name in cli.COMMANDS:
        blocks += [f"### {name}", f"```text\n{_help(name)}\n```"]
    return _joined(blocks)


def _help(command: str) -> str:
    said = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COMMAND_WIDTH
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            cli.parse([command, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return said.getvalue().strip()


# Markdown


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    table = "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)
    return f'<div class="reference" markdown>\n\n{table}\n\n</div>'


def _cell(text: str) -> str:
    for path, link in LINKS.items():
        text = text.replace(path, link)
    if "`" not in text:  # braces would be read as attributes
        text = re.sub(r"(\{.*?\})", r"`\1`", text)
    return text.replace("|", r"\|")


def _joined(blocks: Iterable[str]) -> str:
    return "\n\n".join(blocks) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "configuration": configuration,
    "metrics": metrics,
    "commands": commands,
}

if __name__ == "__main__":
    print(PAGES[sys.argv[1]](), end="")
