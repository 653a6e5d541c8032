"""Damage copies of a run folder by chance, and see what those say who read it.

    python tests/fuzz_run_folders.py RUN FIRST LAST

Folder number n, from FIRST up to LAST, follows from n alone, so that a finding can be made again.
Every command must end with 0 and work, or with 1 or 2 and one sentence for each damage, within a
few seconds. Findings are printed as JSON, one a line; the line before a crash names its folder.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
from conftest import HERE, ROOT, SMALL, TESTS, _run_here, environment, run

from hpc_maml import open_run
from hpc_maml.errors import InputError
from hpc_maml.report.experiments import by_environment, read_runs
from hpc_maml.report.page import page
from hpc_maml.report.tables import to_csv
from hpc_maml.report.writing import TABLES
from hpc_maml.storage import metrics
from hpc_maml.storage.hdf5_files import USER_BLOCK, user_block

SECONDS = 30  # of CPU, of a command at most; most take a tenth of one
PATIENCE = 10 * SECONDS  # for one that sleeps, or on a busy machine
MEMORY = 2**30  # bytes more than at the start
CONFIGS = [
    "",
    "null",
    "[]",
    "3",
    "text",
    "a: b: c",
    "\t",
    "{" * 5000,
    "- " * 3000,
    "&a [*a]",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
    "\x00\x01",
    "env: null",
    "env: {name: 3, kwargs: {}}",
    "seed: !!python/object/apply:os.system ['touch PLANTED']",
    "seed: 1\nseed: 2",
    f"seed: {10**400}",
    "? [a]\n: b",
]
VALUES = ["null", "-1", "0", "text", "[]", "{}", "[1, 2]", "{a: 1}", "1.5", ".nan", "10e99", "true"]
VALUES += [str(10**12), "'$x$ \\e[2J'", "nowhere:Class", "2020-01-01", "!!binary AAAA"]


def make_run(folder: Path) -> None:
    """Make a run folder with a file of every kind, parts of metrics among them."""
    with mock.patch.object(metrics, "PART_ROWS", 1):
        run(HERE, *SMALL, "num_iterations=3", "archive.rollouts=every", "--run-dir", folder)
    run(HERE, "evaluate", folder, "--tasks", "2", "--updates", "1")
    assert list(folder.glob("metrics/*.h5"))


def reseal(path: Path) -> None:
    """Give a file the checksum of what it holds."""
    content = path.read_bytes()[USER_BLOCK:]
    path.write_bytes(user_block(hashlib.sha256(content)) + content)


# Damages of any file


def truncate(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content) + 1)])


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 5, 50])):
        if content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    if path.suffix == ".h5" and chance.random() < 0.8:
        reseal(path)


def overwrite(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.choice([b"", b"mine", chance.randbytes(3000), b"\x89HDF\r\n\x1a\n"]))


def replace(path: Path, chance: random.Random) -> None:
    """Put something else than a file into its place."""
    path.unlink()
    kind = chance.choice(["nothing", "folder", "pipe", "itself", "zeros", "sparse", "elsewhere"])
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(2**33)
    elif kind != "nothing":
        path.symlink_to({"itself": path.name, "zeros": "/dev/zero"}.get(kind, "/etc/passwd"))


# Damages of the content of an HDF5 file


def remove(file: h5py.File, name: str, chance: random.Random) -> None:
    del file[name]


def retype(file: h5py.File, name: str, chance: random.Random) -> None:
    shape = getattr(file[name], "shape", (2,))
    kind = chance.choice(["S3", "c8", "f2", ">f4", "u1", "V4", [("a", "i4")], h5py.string_dtype()])
    del file[name]
    file.create_dataset(name, shape, kind)


def reshape(file: h5py.File, name: str, chance: random.Random) -> None:
    shape = getattr(file[name], "shape", (2,))
    shape = chance.choice([(), (0,), (1, *shape), shape[1:], (*shape[:-1], 3), (1000,)])
    del file[name]
    file[name] = np.full(shape, chance.choice([0, -1, np.nan, 1e300, 3]))


def declare(file: h5py.File, name: str, chance: random.Random) -> None:
    """Declare far more than is stored."""
    ndim = max(1, len(getattr(file[name], "shape", (2,))))
    del file[name]
    size = chance.choice([10**6, 10**9, 10**12])
    file.create_dataset(name, (size, *(ndim - 1) * (2,)), "f8", chunks=(1000, *(ndim - 1) * (2,)))


def refer(file: h5py.File, name: str, chance: random.Random) -> None:
    """Refer to itself, or to what is elsewhere."""
    kind = chance.choice(["virtual", "external", "soft", "link", "pipe", "hard", "type"])
    shape = getattr(file[name], "shape", ()) or (2,)
    del file[name]
    if kind == "virtual":
        layout = h5py.VirtualLayout(shape, "f8")
        layout[...] = h5py.VirtualSource(".", name, shape, "f8")
        file.create_virtual_dataset(name, layout)
    elif kind == "external":
        file.create_dataset(name, shape, "f8", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
    elif kind == "soft":
        file[name] = h5py.SoftLink(f"/{name}")
    elif kind == "link":
        file[name] = h5py.ExternalLink("/etc/passwd", "/")
    elif kind == "pipe":
        file[name] = h5py.ExternalLink(str(Path("pipe").absolute()), "/")
    elif kind == "hard":
        file[name] = file["/"]
    else:
        file[name] = np.dtype("f8")


def swap(file: h5py.File, name: str, chance: random.Random) -> None:
    """Make a group of an array, and an array of a group."""
    is_group = isinstance(file[name], h5py.Group)
    del file[name]
    if is_group:
        file[name] = np.zeros(3)
    else:
        file.create_group(name)["inner"] = np.zeros(2)


def change_attribute(file: h5py.File, name: str, chance: random.Random) -> None:
    item = chance.choice([file, file, file[name]])
    if not item.attrs:
        return
    attribute = chance.choice(sorted(item.attrs))
    if chance.random() < 0.3:
        del item.attrs[attribute]
        return
    values: list[Any] = [-1, 0, 1, 10**9, 2**63 - 1, 1.5, np.nan, "", "text", "\x1b[2J $", b"\xff"]
    values += [np.arange(5), np.zeros(0), h5py.Empty("f8"), np.bool_(True)]
    item.attrs[attribute] = chance.choice(values)


CONTENT = [remove, retype, reshape, declare, refer, swap, change_attribute, change_attribute]
ANY_FILE = [truncate, flip, flip, overwrite, replace]


def damage_content(path: Path, chance: random.Random) -> str:
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = chance.choice(sorted(names) or ["/"])
        change = chance.choice(CONTENT) if names else change_attribute
        with suppress(OSError, ValueError, TypeError, RuntimeError, KeyError):
            change(file, name, chance)
    reseal(path)
    return f"{change.__name__} {name}"


def damage_config(path: Path, chance: random.Random) -> str:
    text = chance.choice(CONFIGS)
    if chance.random() < 0.6:
        lines = path.read_text().splitlines()
        number = chance.randrange(len(lines))
        key = lines[number].partition(":")[0]
        lines[number] = f"{key}: {chance.choice(VALUES)}" if chance.random() < 0.8 else ""
        text = "\n".join(lines)
    path.write_text(text)
    return f"config {text[:60]!r}"


def damage(folder: Path, chance: random.Random) -> str:
    """Damage one or two files of a run folder; return what was done."""
    done = []
    for _ in range(chance.choice([1, 1, 1, 2])):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        files = [path for path in files if "tensorboard" not in path.parts]
        # by kind, as most of the files are segments
        kinds = {path.parent.name.partition("_")[0]: [] for path in files}  # type: ignore[var-annotated]
        for path in files:
            kinds[path.parent.name.partition("_")[0]].append(path)
        path = chance.choice(kinds[chance.choice(sorted(kinds))])
        if path.name == "config.yaml" and chance.random() < 0.7:
            done.append(damage_config(path, chance))
        elif path.suffix == ".h5" and chance.random() < 0.6:
            with suppress(OSError, RuntimeError):  # damaged before
                done.append(f"{path}: {damage_content(path, chance)}")
        else:
            change = chance.choice(ANY_FILE)
            change(path, chance)
            done.append(f"{path}: {change.__name__}")
    return "; ".join(done)


# What is done with a folder


def read(folder: Path) -> None:
    """Read all that there is; each answer is a value or InputError."""
    looks: list[Callable[[Any], object]] = [
        lambda run: run.config,
        lambda run: run.columns,
        lambda run: run.metrics,
        lambda run: run.per_task,
        lambda run: (run.units, run.versions, run.declared, run.phase, run.committed_iterations),
        lambda run: run.evaluations,
        lambda run: [run.checkpoint(iteration) for iteration in run.checkpoints],
        lambda run: [each.rewards.sum() for each in list(run.rollouts.values())[:4]],
        lambda run: run.rollouts.damages(verify=True),
    ]
    with suppress(InputError):
        run = open_run(folder)
        for look in looks:
            with suppress(InputError):
                look(run)


def report(folder: Path) -> None:
    """Make the page and the tables of a report, without the pictures, which take seconds."""
    with suppress(InputError):
        environments = by_environment(read_runs([folder]))
        page(environments, {each.name: [] for each in environments}, [])
        for rows in TABLES.values():
            to_csv(rows(environments))


def commands(folder: Path, number: int) -> dict[str, tuple[str, ...]]:
    """Return what is called: the more time it takes, the fewer folders."""
    name = str(folder)
    found = {"inspect": ("inspect", name, "--tree", "--verify")}
    if number % 100 == 50:
        found["report"] = ("report", name, "-o", "out")
    if number % 8 == 0:
        found["evaluate"] = ("evaluate", name, "--tasks", "2", "--updates", "1")
        found["resume"] = ("--run-dir", name, "num_iterations=4", "metrics.tensorboard=off")
        found["resume again"] = (*found["resume"], "num_iterations=5")
    return found


def complaint(what: str, words: tuple[str, ...]) -> str:
    """Run a command in this process; return what is wrong with how it ended."""
    done = _run_here(*words)
    lines = done.stderr.splitlines()
    if "Traceback" in done.stderr or "\x1b" in done.stdout + done.stderr:
        return f"it printed {done.stderr!r}"
    if done.returncode not in ((0, 1, 2) if what == "inspect" else (0, 2)):
        return f"exit code {done.returncode}"
    if done.returncode == 2 and len(lines) != 1:
        return f"{len(lines)} lines: {done.stderr!r}"
    if done.returncode and not any(words[-1] in line or "run" in line for line in lines):
        return f"no file is named: {done.stderr!r}"
    if any("None" in line.split() or len(line) > 1300 for line in lines):
        return f"no sentence: {done.stderr!r}"
    return ""


class Endless(BaseException):
    """No command may take it for damage of a file."""


def alarm(*_: object) -> None:
    raise Endless(f"no end after {SECONDS} s of CPU or {PATIENCE} s")


def findings(source: Path, first: int, last: int) -> list[dict[str, Any]]:
    """Return what is found in folders FIRST up to LAST, in processes of their own.

    A crash of one is a finding, and the next process goes on behind it.
    """
    found: list[dict[str, Any]] = []
    path = {"PYTHONPATH": f"{ROOT}:{TESTS}"}
    while first < last:
        words = [sys.executable, __file__, str(source.absolute()), str(first), str(last)]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                words,
                cwd=folder,
                env=environment(**path),
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE * (last - first),
            )
        lines = done.stdout.splitlines()
        found += [json.loads(line) for line in lines if line.startswith("{")]
        said = [line for line in lines if line.startswith("folder ")]
        first += len(said)
        if done.returncode or not said:
            wrong = f"exit code {done.returncode}: {done.stderr[-2000:]}"
            what = said[-1] if said else "no folder"
            found.append({"folder": first - 1, "what": what, "do": "crash", "wrong": wrong})
            if not said:
                break
    return found


def main() -> None:
    source, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    os.mkfifo("pipe")
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, alarm)
    folder, began = Path("run"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(first, last):
        if folder.is_dir():
            shutil.rmtree(folder)
        shutil.copytree(source, folder)
        what = damage(folder, random.Random(number))
        print(f"folder {number}: {what}", flush=True)
        each: dict[str, Callable[[], str | None]] = {
            "read": lambda: read(folder),
            "page": lambda: report(folder),
        }
        for name, words in commands(folder, number).items():
            each[name] = lambda name=name, words=words: complaint(name, words)  # type: ignore[misc]
        for name, act in each.items():
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.alarm(PATIENCE)
            try:
                wrong = act()
            except BaseException:
                wrong = traceback.format_exc()
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if 1024 * (peak - began) > MEMORY:
                wrong, began = f"it took {(peak - began) // 1024} MB; {wrong}", peak
            if Path("PLANTED").exists():
                wrong = "code ran"
            if wrong:
                print(json.dumps({"folder": number, "what": what, "do": name, "wrong": wrong}))
                sys.stdout.flush()


if __name__ == "__main__":
    main()
