"""Names of folders and texts in files that mean something to a shell, a terminal, HTML or TeX."""

import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import BAD_INPUT, HERE, SMALL, changed_hdf5, run

from hpc_maml.errors import printable

NAMES = [
    "two words",
    "it's",
    'a "quote"',
    "new\nline",
    "ünï 日本",
    "$x$ costs $",
    "$\\frac$",
    "100 %s %d {0}",
    "<script>alert(1)</script>".replace("/", "|"),
    "<b>&amp;",
    "\x1b[31mred\x07",
    "\u202etfel",
    "[bold]no[red]",
    "_hidden",
    "no\udcfftext",
]
UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\udcff]")


class Reader(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", NAMES)
def test_inspect_says_the_name_in_one_line(name, copied):
    folder = copied.rename(name)
    text = name.replace("\udcff", "")  # which h5py does not write
    with changed_hdf5(folder / "metrics.h5") as file:
        file.attrs["mpi"] = f"hostile {text}"
        file["iterations/kl_after"].attrs["description"] = f"hostile {text}"
        file["iterations/kl_after"].attrs["unit"] = text
    shown = run(HERE, "inspect", folder, "--tree", "--verify").stdout
    assert f"run         {printable(name)}\n" in shown
    assert not UNSAFE.search(shown)
    (folder / "metrics.h5").write_bytes(b"torn")
    error = run(HERE, "inspect", folder, code=1).stderr
    assert not UNSAFE.search(error)
    assert error == f"{printable(name)}/metrics.h5 is damaged: {error.partition(': ')[2]}"


@pytest.mark.slow
def test_a_report_shows_every_name(trained):
    names = [name for name in NAMES if re.search(r"[^\w\s'\"%]|\n", name)]
    for name in names:
        shutil.copytree(trained, name)
    with changed_hdf5(Path(names[0], "metrics.h5")) as file:
        file.attrs["mpi"] = "a\x1b[2J<b>"
        file["iterations/kl_after"].attrs["description"] = "$\\kl \x1b <i>"
        file["iterations/kl_after"].attrs["unit"] = "$</b>"
    said = run(HERE, "report", *names, "-o", "<out> $")
    assert said.stdout == "<out> $/report.html\n"
    assert said.stderr == ""
    text = Path("<out> $/report.html").read_text()
    page = Reader(text)
    assert not UNSAFE.search(text)
    assert not page.tags & {"script", "b", "i"}
    for name in names:
        assert printable(name) in page.text
    for path in Path("<out> $").glob("*.svg"):
        ET.parse(path)


def test_a_run_and_a_baseline_of_any_name(copied):
    for name in NAMES:
        copied = copied.rename(name)
        words = ("evaluate", name, "--baseline", name, "--tasks", "2", "--updates", "1")
        shown = run(HERE, *words).stdout
        assert f"baseline {printable(name)}"[:18] in " ".join(shown.split())
        assert not UNSAFE.search(shown)
    done = run(HERE, *SMALL, "archive.rollouts=every", "--run-dir", copied).stdout
    assert "done: 5 iterations in no\\udcfftext" in done
    for words in (["--run-dir", "a\x1b[2Jb/\x9b"], ["a\x1b[2J=1"], ["env.name=\x1b[2J"]):
        Path("a\x1b[2Jb").write_text("")
        error = run(HERE, *words, code=BAD_INPUT).stderr
        assert not UNSAFE.search(error)
        assert error.count("\n") == 1
