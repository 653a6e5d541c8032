"""Train for hours on four ranks, and see if memory, open files or the time of an iteration grow.

    python tests/soak.py FOLDER --minutes 120   # trains, and looks at every rank once a minute
    python tests/soak.py FOLDER                 # prints what was found so far

Iterations are short, so that the writers have much to do: each is archived and thinned, has a row
of metrics, also in TensorBoard, every fifth a checkpoint, every 25th a meta-test. Memory is that of
the rank alone (USS) and with its share of what ranks have in common (PSS). Other jobs of the
machine change the time that an iteration takes, so its CPU seconds are judged.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from conftest import command, environment, ranks_of

from hpc_maml import open_run

RANKS = 4
WORDS = (
    *("env.name=navigation", "meta_batch_size=8", "fast_batch_size=4", "horizon=10"),
    *("policy.hidden_sizes=[16, 16]", "num_iterations=100000000", "device=cpu", "seed=1"),
    *("topology.layout=team", "archive.rollouts=every", "archive.when_full=thin"),
    *("archive.max_bytes=2000000", "checkpoint.every=5", "checkpoint.keep_best=true"),
    *("evaluation.every=25", "evaluation.tasks=4", "evaluation.updates=1"),
)
EVERY = 60.0  # seconds
SAMPLES = "samples.csv"
COLUMNS = ("minute", "iteration", "rank", "uss_kb", "pss_kb", "files", "cpu_seconds")
WARM_UP = 20  # minutes, at most a fifth of all
FLAT_MEMORY, FLAT_TIME = 0.01, 0.05
STOPPED_EARLY = 75


def look(process: int) -> tuple[int, int, int, float]:
    """Return USS and PSS of a process in kB, its open files and its CPU seconds so far."""
    folder = Path("/proc") / str(process)
    lines = (folder / "smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    files = len(list((folder / "fd").iterdir()))
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])  # utime, stime: proc(5)
    return own, kilobytes["Pss"], files, ticks / os.sysconf("SC_CLK_TCK")


def soak(folder: Path, minutes: float) -> None:
    """Train for some minutes; write a line of samples for each rank and minute."""
    folder.mkdir(parents=True)
    run_folder = folder.absolute() / "run"
    with (folder / "log").open("w") as log:
        job = subprocess.Popen(
            command(RANKS, [*WORDS, "--run-dir", run_folder]),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    while not (run_folder / "metrics.h5").exists():
        assert job.poll() is None, (folder / "log").read_text()
        time.sleep(1)
    began = time.monotonic()
    with (folder / SAMPLES).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for number in range(1, int(60 * minutes / EVERY) + 1):
            time.sleep(max(0.0, began + EVERY * number - time.monotonic()))
            assert job.poll() is None, (folder / "log").read_text()
            ranks = ranks_of(run_folder)
            assert sorted(ranks) == list(range(RANKS)), ranks
            done = open_run(run_folder).committed_iterations
            minute = round((time.monotonic() - began) / 60, 2)
            for rank, process in sorted(ranks.items()):
                table.writerow((minute, done, rank, *look(process)))
            file.flush()
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=600) == STOPPED_EARLY, (folder / "log").read_text()
    verify = command(None, ["inspect", run_folder, "--verify"])
    subprocess.run(verify, env=environment(), check=True, stdout=subprocess.DEVNULL)
    (folder / "whole").write_text("stopped by SIGTERM with a checkpoint; inspect --verify: clean\n")


def ends(rows: Sequence[Mapping[str, float]], column: str) -> tuple[float, float]:
    """Return the medians of a column in the first and in the last quarter of the rows."""
    quarter = max(1, len(rows) // 4)
    values = [row[column] for row in rows]
    return median(values[:quarter]), median(values[-quarter:])


def costs(looks: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """Return the seconds of CPU and of time that an iteration took between some looks."""
    first, last = looks[0], looks[-1]
    iterations = last["iteration"] - first["iteration"]
    cpu = last["cpu_seconds"] - first["cpu_seconds"]
    return cpu / iterations, 60 * (last["minute"] - first["minute"]) / iterations


def verdict(folder: Path) -> list[str]:
    """Return what was found so far, a line for each rank and one for the iterations.

    Memory by medians of the first and the last quarter, files by the most, the time by what they
    took.
    """
    with (folder / SAMPLES).open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    last = rows[-1]["minute"]
    warm = [row for row in rows if row["minute"] > min(WARM_UP, last / 5)]
    of_rank = [[row for row in warm if row["rank"] == rank] for rank in range(RANKS)]
    end = folder / "whole"
    said = [
        f"{last:.0f} minutes, {rows[-1]['iteration']:.0f} iterations on {RANKS} ranks; medians of "
        f"the first and the last quarter after minute {min(WARM_UP, last / 5):.0f}",
        *([end.read_text().strip()] if end.exists() else ["going on, or ended too soon"]),
    ]
    for rank, mine in enumerate(of_rank):
        words, flat = [], True
        for column, name in (("uss_kb", "USS"), ("pss_kb", "PSS")):
            first, later = ends(mine, column)
            # what is shared is shared with other programs, too, which come and go
            flat &= column != "uss_kb" or later / first - 1 <= FLAT_MEMORY
            words.append(f"{name} {first / 1e3:.1f} -> {later / 1e3:.1f} MB")
            words[-1] += f" ({100 * (later / first - 1):+.2f} %)"
        quarter = max(1, len(mine) // 4)  # some files are open for a moment only: the most of each
        first, later = (
            max(row["files"] for row in part) for part in (mine[:quarter], mine[-quarter:])
        )
        flat &= later <= first
        words.append(f"open files {first:.0f} -> {later:.0f}")
        said.append(f"rank {rank}: {', '.join(words)}: {'flat' if flat else 'NOT FLAT'}")
    # all ranks together
    looks = [
        rows[0] | {"cpu_seconds": sum(row["cpu_seconds"] for row in rows)}
        for rows in zip(*of_rank, strict=True)
    ]
    quarter = max(2, len(looks) // 4)
    (cpu, wall), (cpu_later, wall_later) = costs(looks[:quarter]), costs(looks[-quarter:])
    change = cpu_later / cpu - 1
    said.append(
        f"an iteration: {1e3 * cpu:.1f} -> {1e3 * cpu_later:.1f} ms of CPU ({100 * change:+.1f} %),"
        f" {1e3 * wall:.0f} -> {1e3 * wall_later:.0f} ms of time: "
        f"{'flat' if change <= FLAT_TIME else 'NOT FLAT'}"
    )
    return said


def main() -> None:
    """Train, if a time is given, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, help="train for so long, in a new folder")
    options = parser.parse_args()
    if options.minutes:
        soak(options.folder, options.minutes)
    print(*verdict(options.folder), sep="\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
