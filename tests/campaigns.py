"""Campaigns by chance against the promises; docs/results/trust.md has what they found.

    python tests/campaigns.py NAME [COUNT] [--seed SEED]

Each prints what it finds, a line of figures in the end, and ends with exit code 1 if a promise was
broken. The same number and seed do the same again, but for the moment of a kill. Small versions are
among the tests. tests/soak.py trains for hours.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import hypothesis
from conftest import BAD_INPUT, SMALL, ranks_of, run, start
from fuzz_run_folders import findings, make_run
from hypothesis import HealthCheck, Phase, given
from test_any_configuration import hostile_configurations, load, runs_or_is_refused
from test_restart import SETTINGS, processes_of, state
from test_storage import FILES, flip_bits, store

from hpc_maml import open_run
from hpc_maml.config import load_config
from hpc_maml.errors import InputError
from hpc_maml.mpi.topology import Seat, plan_roles
from hpc_maml.run import memory
from hpc_maml.run.job import make_env, prepare
from hpc_maml.storage.inspection import damages

RANKS = (1, 2, 3, 5)
LAYOUTS = ("topology.layout=team", "topology.layout=split")
PATIENCE = 900  # seconds, as the machine may be busy
Found = list[str]  # a line for each broken promise


def say(line: str) -> None:
    print(line, flush=True)


def undisturbed() -> dict[str, bytes]:
    """Return all that must not depend on what happens to a run (test_restart.state)."""
    run(3, *SETTINGS, "--run-dir", "undisturbed", timeout=PATIENCE)
    return state(Path("undisturbed"))


def end_of(job: subprocess.Popen, folder: Path) -> str:
    """Wait for the end of a job and of all its ranks; return its standard error."""
    _, err = job.communicate(timeout=PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while left := ranks_of(folder):
        assert time.monotonic() < deadline, f"ranks go on: {left}"
        time.sleep(0.02)
    return err


def differing(expected: dict[str, bytes], folder: Path) -> Found:
    """Return what is not as in the undisturbed run.

    It has a checkpoint of each iteration; one that wrote fewer lacks some, but not the last.
    """
    found = state(folder)
    last = max(name for name in expected if name.startswith("iteration_"))
    fewer = {name for name in expected if name.startswith("iteration_") and name != last}
    names = (expected.keys() | found.keys()) - (fewer - found.keys())
    wrong = sorted(name for name in names if expected.get(name) != found.get(name))
    return [f"{name} differs" for name in wrong[:5]]


def kept(folder: Path) -> dict[str, bytes]:
    """Return the checkpoints that must survive what is to come."""
    paths = sorted(folder.glob("checkpoints/iteration_??????.h5"))
    return {path.name: path.read_bytes() for path in paths}


def lost(before: dict[str, bytes], folder: Path) -> Found:
    """Return what of the checkpoints is gone or changed, and what is damaged."""
    after = kept(folder)
    found = [f"{name} is lost" for name, content in before.items() if after.get(name) != content]
    if before:
        found += [str(error) for error in damages(open_run(folder), verify=True)]
    return found


# Kills


def kills(count: int, seed: int) -> tuple[Found, str]:
    """Kill all of a job, a rank or the launcher, one to three times; then let the run end."""
    expected, found, done = undisturbed(), [], Counter()
    for number in range(count):
        chance = random.Random(f"{seed}:{number}")
        folder = Path(f"run{number}").absolute()
        broken: Found = []
        for _ in range(chance.choice([1, 1, 2, 3])):
            what = kill_once(folder, chance, broken)
            done[what] += 1
        ranks = chance.choice(RANKS)
        run(ranks, *SETTINGS, chance.choice(LAYOUTS), "--run-dir", folder, timeout=PATIENCE)
        broken += differing(expected, folder)
        found += [f"run {number}: {each}" for each in broken]
        say(f"run {number}: {sum(done.values())} kills so far, {len(found)} findings")
        shutil.rmtree(folder)
    words = ", ".join(f"{number} {what}" for what, number in sorted(done.items()))
    return found, f"{count} runs; {words}; all end bitwise as the undisturbed run but {len(found)}"


def kill_once(folder: Path, chance: random.Random, broken: Found) -> str:
    """Start the job, and kill at a moment by chance; return what was killed."""
    what = chance.choice(["all", "rank", "launcher"])
    ranks, layout = chance.choice(RANKS), chance.choice(LAYOUTS)
    there = len(kept(folder))
    job = start(ranks, *SETTINGS, layout, "--run-dir", str(folder))
    goal = there + chance.choice([0, 0, 1, 1, 2, 4, 8])
    if goal == there:  # during the start, or soon after it
        time.sleep(chance.uniform(0.1, 3))
    while len(kept(folder)) < goal and job.poll() is None:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.2))
    before = kept(folder)
    if what == "launcher":
        job.kill()
    elif what == "all":
        victims = processes_of(folder)
        for victim in chance.sample(victims, len(victims)):
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
    elif alive := sorted(ranks_of(folder).values()):
        with suppress(ProcessLookupError):
            os.kill(chance.choice(alive), signal.SIGKILL)
    else:  # none has started yet, or all have ended
        job.kill()
        what = "launcher"
    err = end_of(job, folder)
    broken += lost(before, folder)
    if "Traceback" in err:
        broken.append(err)
    return f"{what} killed" if job.returncode else "ended before"


# Bits


def bits(count: int, seed: int) -> tuple[Found, str]:
    """Flip bits in a file of each kind."""
    store(Path("run"))
    found: Found = []
    for kind in FILES:
        found += flip_bits(Path("run"), kind, count, random.Random(f"{seed}:{kind}"))
        say(f"{kind}: {count} bits, {len(found)} unnoticed so far")
    kinds = ", ".join(FILES)
    return (
        found,
        f"{count} bits in each of {len(FILES)} kinds of files ({kinds}): {len(found)} unnoticed",
    )


# Folders


def folders(count: int, seed: int) -> tuple[Found, str]:
    """Damage run folders (fuzz_run_folders.py), numbers from 100,000 times the seed on."""
    make_run(Path("whole"))
    found: Found = []
    first = 100_000 * seed
    for begin in range(first, first + count, 100):
        end = min(begin + 100, first + count)
        for each in findings(Path("whole"), begin, end):
            found.append(f"{each['folder']}, {each['what']}, {each['do']}: {each['wrong']}")
            say(found[-1])
        say(f"{end - first} folders, {len(found)} findings")
    eighth, hundredth = (len(range(first + start, first + count, step)) for start, step in EVERY)
    return found, (
        f"{count} folders read, inspected and paged, {eighth} of them tested and continued, "
        f"{hundredth} drawn: {len(found)} tracebacks, hangs, crashes or memory explosions"
    )


EVERY = ((0, 8), (50, 100))  # first and step of the folders of ``fuzz_run_folders.commands``


# Configurations


def configurations(count: int, seed: int) -> tuple[Found, str]:
    """Load configurations; of those that are accepted and small, run every tenth."""
    done, found, slowest = Counter(), [], 0.0
    load(["env.name=ant_vel"])  # imports

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(hostile_configurations())
    def attempt(case: tuple[list[str], bool]) -> None:
        nonlocal slowest
        words, small = case
        shown = " ".join(repr(word)[:80] for word in words)
        done["loaded"] += 1
        try:
            refusal, seconds = load(words)
        except BaseException as error:
            found.append(f"{shown}: {type(error).__name__}: {str(error)[:500]}")
            say(found[-1])
            return
        slowest = max(slowest, seconds)
        if seconds > 1:
            found.append(f"{shown}: {seconds:.1f} s")
            say(found[-1])
        done["refused" if refusal else "accepted"] += 1
        if refusal or not small:
            return
        done["small"] += 1
        if done["small"] % 10:
            return
        done["run"] += 1
        try:
            runs_or_is_refused(words)
        except BaseException as error:
            found.append(f"{shown}: it ran to {type(error).__name__}: {str(error)[:500]}")
            say(found[-1])

    attempt()
    return found, (
        f"{done['loaded']} configurations, {done['accepted']} accepted, {done['refused']} refused "
        f"in one sentence, slowest {slowest:.2f} s of CPU; {done['run']} of the accepted run or "
        f"refused in one sentence: {len(found)} findings"
    )


# A full disk


@contextmanager
def disk(size: str) -> Iterator[Path]:
    """Mount a disk in memory; needs root."""
    folder = Path("disk").absolute()
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def full_disks(count: int, seed: int) -> tuple[Found, str]:
    """Fill the disk of a run but for some bytes at some moment; make room, and let the run end."""
    expected, found, ends = undisturbed(), [], Counter()
    for number in range(count):
        chance = random.Random(f"{seed}:{number}")
        with disk("64M") as top:
            broken, end = fill_once(top, number, chance)
            ends[end] += 1
            words = (*SETTINGS, chance.choice(LAYOUTS), "--run-dir", top / "run")
            run(chance.choice(RANKS), *words, timeout=PATIENCE)
            broken += differing(expected, top / "run")
        found += [f"disk {number}: {each}" for each in broken]
        say(f"disk {number}: {end}, {len(found)} findings so far")
    words = ", ".join(f"{number} {end}" for end, number in sorted(ends.items()))
    return found, f"{count} full disks; {words}; nothing lost and bitwise equal but {len(found)}"


def fill_once(top: Path, number: int, chance: random.Random) -> tuple[Found, str]:
    """Run until the disk is full; return what is broken, and how the run ended."""
    folder = top / "run"
    ranks, layout = chance.choice(RANKS), chance.choice(LAYOUTS)
    words = (*SETTINGS, layout, f"checkpoint.every={chance.choice([1, 3, 16])}")
    goal = number % 16  # iterations with rows before the disk is full; 0: before the start
    room = chance.choice([0, 0, 4096, 20_000, 100_000])
    if goal == 0:
        fill(top, room)
    job = start(ranks, *words, "--run-dir", str(folder))
    while goal and job.poll() is None:
        with suppress(InputError):
            if open_run(folder).committed_iterations >= goal:
                break
        time.sleep(0.002)
    before = kept(folder)
    if goal:
        fill(top, room)
    err = end_of(job, folder)
    (top / "filler").unlink()
    broken = lost(before, folder)
    if job.returncode not in (0, BAD_INPUT):
        broken.append(f"exit code {job.returncode}: {err}")
    sentences = [line for line in err.splitlines() if line.startswith("hpc_maml: ")]
    if job.returncode and (len(sentences) != 1 or "Traceback" in err):
        broken.append(f"no sentence: {err}")
    if job.returncode and not re.search("cannot be (written|made|used|opened)", err):
        broken.append(f"another sentence: {err}")
    if folder.exists() and list(folder.rglob("*.partial")):
        broken.append(f"left behind: {list(folder.rglob('*.partial'))}")
    return broken, "said in one sentence" if job.returncode else "had room enough"


def fill(top: Path, room: int) -> None:
    """Fill a disk but for ``room`` bytes."""
    left = os.statvfs(top)
    with (top / "filler").open("wb") as file, suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(1, left.f_bavail * left.f_bsize - room))


# Memory

TEAM, SPLIT = LAYOUTS
ONE = ("num_iterations=2", "archive.rollouts=none", "metrics.tensorboard=off", "device=cpu")
SIZES = {
    "small": (3, (*SMALL, TEAM)),
    "navigation": (2, (*ONE, TEAM, "fast_batch_size=50")),
    "navigation, split": (3, (*ONE, SPLIT, "fast_batch_size=50")),
    "rl2": (2, (*ONE, TEAM, "fast_batch_size=50", "algorithm.name=rl2", "algorithm.epochs=1")),
    "as large as ML10": (
        2,
        (
            *(*ONE, TEAM, "env.name=half_cheetah_vel", "meta_batch_size=40", "horizon=200"),
            *("algorithm.cg_iters=1", "num_iterations=1"),
        ),
    ),
    "many episodes": (2, (*ONE, TEAM, "fast_batch_size=500", "algorithm.first_order=true")),
}


def sizes(count: int, seed: int) -> tuple[Found, str]:
    """Compare what a job surely and probably needs with what its ranks took, of ``count`` sizes.

    Of the ranks together, at most: resident, and their own (USS), looked at four times a second.
    """
    found: Found = []
    for name, (ranks, words) in list(SIZES.items())[:count]:
        words = (*words, f"seed={seed}")
        config = load_config(None, words)
        asked = config.topology
        plan = plan_roles([Seat(0)] * ranks, asked.agents, asked.layout, config.device)
        needs = memory.needs(prepare(config, make_env(config, 1)))
        least, probable = memory.of_node(needs, plan, range(ranks))
        resident, own = peaks(ranks, words)
        batches = needs.tasks * needs.task
        mb = [round(size / 1e6) for size in (batches, least, probable, resident, own)]
        say(
            f"{name}: {ranks} ranks, batches {mb[0]} MB: at least {mb[1]}, probably {mb[2]}; "
            f"resident {mb[3]}, own {mb[4]} MB; at least / own {least / own:.2f}, "
            f"probably / resident {probable / resident:.2f}"
        )
        if least > own:
            found.append(f"{name}: refused where there are {own / 1e6:.0f} MB")
    return found, f"{min(count, len(SIZES))} sizes: {len(found)} refused that fit"


def peaks(ranks: int, words: tuple[str, ...]) -> tuple[float, float]:
    """Return the most bytes that the ranks of a job had, resident and of their own."""
    folder = Path("sized").absolute()
    job = start(ranks, *words, "--run-dir", str(folder))
    resident, own = Counter(), Counter()
    while job.poll() is None:
        for rank, process in ranks_of(folder).items():
            with suppress(OSError, TypeError):  # it has ended
                status = Path(f"/proc/{process}/status").read_text()
                resident[rank] = 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])
                parts = Path(f"/proc/{process}/smaps_rollup").read_text()
                private = re.findall(r"Private_(?:Clean|Dirty):\s+(\d+)", parts)
                own[rank] = max(own[rank], 1024 * sum(map(int, private)))
        time.sleep(0.25)
    assert job.returncode == 0, job.communicate()
    shutil.rmtree(folder)
    return resident.total(), own.total()


CAMPAIGNS: dict[str, tuple[Callable[[int, int], tuple[Found, str]], int]] = {
    "kills": (kills, 100),
    "bits": (bits, 300),
    "folders": (folders, 2000),
    "configurations": (configurations, 5000),
    "full_disks": (full_disks, 30),
    "sizes": (sizes, len(SIZES)),
}


def main() -> int:
    """Run a campaign in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CAMPAIGNS)
    parser.add_argument("count", type=int, nargs="?", help="of runs, bits a file, folders, ...")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    campaign, usual = CAMPAIGNS[options.name]
    warnings.simplefilter("ignore")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found, figures = campaign(options.count or usual, options.seed)
        os.chdir("/")
    for line in found:
        say(f"FOUND {line}")
    minutes = (time.monotonic() - began) / 60
    say(f"{options.name}: {figures}; seed {options.seed}, {minutes:.0f} min")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
