"""The commands that the documentation shows are such that the program understands."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from hpc_maml.cli import COMMANDS, parse
from hpc_maml.config import load_config

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("docs/results/*.md")])
COMMAND = re.compile(r"(?:python -m hpc_maml|^hpc_maml)((?: [^|&;)`\n]+)?)", re.MULTILINE)
# What a page lets stand for something: a choice, a loop's variable, words that are left out.
OPEN = re.compile(r"\[|\.\.\.|\bRUN|\bDIR\b|\bFILE\b|\bWHICH\b|\bCOMMAND\b")


def commands(page: Path) -> list[list[str]]:
    """Return the words of every command in the blocks of shell of a page."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        text = re.sub(r"\\\n", " ", re.sub(r"(?m)\s+#.*$", "", block))
        for match in COMMAND.finditer(re.sub(r"\$\{?\w+\}?", "1", text)):
            line = match[1].partition(" > ")[0]
            if not OPEN.search(line):
                found.append(shlex.split(line))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands(page, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    for words in commands(page):
        parse(words)  # ends the program for words that it does not know
        if words[:1] in (["train"], ["config"]) or not words or words[0] not in COMMANDS:
            settings = [word for word in words if "=" in word and not word.startswith("-")]
            files = [ROOT / word for word in words if word.startswith("configs/")]
            assert all(file.exists() for file in files)
            load_config(files, settings)


def test_there_are_commands():
    assert sum(len(commands(page)) for page in PAGES) > 30
