"""YAML as a configuration needs it: without what stands for something else, and of bounded size."""

import re
from pathlib import Path
from typing import Any

import yaml

from hpc_maml.errors import InputError

NULL, BOOLEAN, INTEGER, FLOAT, TEXT, LIST, MAPPING, MERGE, DATE = (
    f"tag:yaml.org,2002:{name}"
    for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge", "timestamp")
)
# YAML 1.2.2, section 10.3.2; the first letters of each
INTEGERS = (re.compile(r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789"))
FLOATS = (
    re.compile(
        r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
LARGEST_FILE = 2**18  # characters of a configuration file
MOST_NODES = 5000  # keys, values and lists; PyYAML reads some 10,000 a second
DEEPEST = 50  # levels of lists and dictionaries in each other


class Loader(yaml.SafeLoader):
    """YAML 1.2: ``1e-2`` and ``010`` are numbers, ``on`` and ``1:30`` words; and no key twice.

    Dates are words, and tags of other things than texts, numbers, lists and keys are not known.
    Nothing stands for something else, as aliases and merge keys do: a few lines of aliases can
    stand for more than fits into memory.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (where PyYAML looks for them)
        first: [
            each
            for each in resolvers
            if each[0] not in (INTEGER, FLOAT, DATE) and (each[0] != BOOLEAN or first in "tTfF")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012 (likewise)
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag in (None, NULL, BOOLEAN, INTEGER, FLOAT, TEXT, LIST, MAPPING)
    }
    depth = 0  # of the node that is being composed
    number = 0  # of the nodes so far

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the node; raises ComposerError for an alias, and for too many or too deep ones."""
        mistake = ""
        if self.check_event(yaml.AliasEvent):
            mistake = f"aliases (*{self.peek_event().anchor}) are not read: write the value again"
        elif self.depth > DEEPEST:
            mistake = f"lists and keys go {DEEPEST} levels deep at most"
        elif self.number > MOST_NODES:
            mistake = f"there are more than {MOST_NODES} keys and values"
        if mistake:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, mistake, mark)
        self.depth += 1
        self.number += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Return the mapping; raises ConstructorError for a key twice, and for a merge key."""
        seen = set()
        for each, _ in node.value:
            mistake = ""
            if each.tag == MERGE:
                mistake = "merge keys (<<) are not read: write the keys that they stand for"
            elif isinstance(each, yaml.ScalarNode):  # others are no keys, see below
                key = self.construct_object(each, deep=True)
                mistake = f"the key '{key}' occurs twice" if key in seen else ""
                seen.add(key)
            if mistake:
                raise yaml.constructor.ConstructorError(None, None, mistake, each.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return the number; raises ValueError for one that Python would not write again."""
        text = self.construct_scalar(node)
        value = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        str(value)
        return value


Loader.add_constructor(INTEGER, Loader.construct_yaml_int)
Loader.add_implicit_resolver(INTEGER, *INTEGERS)
Loader.add_implicit_resolver(FLOAT, *FLOATS)


class Dumper(yaml.SafeDumper):
    """YAML that readers of 1.1 and of 1.2 take for the same values, without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Tell that a value which stands in two places is written twice."""
        return True


Dumper.add_implicit_resolver(INTEGER, *INTEGERS)  # beside those of YAML 1.1
Dumper.add_implicit_resolver(FLOAT, *FLOATS)


def parse_yaml(text: str, where: str) -> Any:
    """Return what a text means; raises InputError, which begins with ``where``."""
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error)
    except Exception as error:  # of PyYAML, which does not check what stands behind a tag
        reason = f"a tag does not fit its value ({type(error).__name__}: {error})"
    raise InputError(f"{where} is not valid YAML: {' '.join(reason.split())}.")


def read_yaml(file: Path) -> Any:
    """Return what a configuration file means; raises InputError."""
    return parse_yaml(_read_text(file), f"The config file {file}")


def _read_text(file: Path) -> str:
    """Return the text of a file; a pipe or a device, which may have no end, is refused."""
    try:
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise InputError(f"The config file {file} is not a regular file.")
        with file.open(encoding="utf-8") as opened:
            text = opened.read(LARGEST_FILE + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise InputError(f"The config file {file} cannot be read: {reason}.") from None
    if len(text) > LARGEST_FILE:
        raise InputError(f"The config file {file} is too long: {LARGEST_FILE} characters at most.")
    return text
