"""The command line."""

import argparse
import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpi4py import MPI

from hpc_maml import __version__
from hpc_maml.errors import InputError, nearest, printable
from hpc_maml.mpi.launcher import launcher_rank
from hpc_maml.mpi.runtime import check_world, from_rank_0, to_rank_0
from hpc_maml.stopping import StopSignal

if TYPE_CHECKING:
    from hpc_maml.config import Config
    from hpc_maml.reproduce.command import Reproduction
    from hpc_maml.storage.meta_tests import MetaTest

DAMAGED, FAILED, BAD_INPUT = 1, 1, 2

SUMMARY = """\
usage: python -m hpc_maml [train] [--config FILE] [--run-dir DIR] [--time-limit TIME]
                          [key=value ...]
       python -m hpc_maml evaluate RUN [--tasks N] [--updates K] [--episodes N]
                          [--step-sizes SIZE ...] [--last-actions HOW]
                          [--checkpoint WHICH] [--baseline RUN2 ...] [--json FILE]
                          [--trust]
       python -m hpc_maml report RUN [RUN ...] [-o DIR]
       python -m hpc_maml demo RUN [-o FILE]
       python -m hpc_maml inspect RUN [--tree] [--verify]
       python -m hpc_maml config [--config FILE] [key=value ...]
       python -m hpc_maml doctor [--config FILE] [--run-dir DIR] [key=value ...]
       python -m hpc_maml jobs DIR
       python -m hpc_maml reproduce [NAME] [--seeds N] [--budget TIME] [-o DIR]
                          [--pages DIR] [--side-by-side N] [--slurm [OPTION ...]]
       python -m hpc_maml bench [NAME ...] [--rounds N] [--json FILE] [--picture FILE]
       python -m hpc_maml COMMAND --help

Meta-trains a policy on all ranks of an MPI job: mpirun -np N python -m hpc_maml ...

exit codes: 0 done; 1 failed, or of inspect and doctor: something is damaged or wrong; 2 bad
input; 75 stopped early by a signal, with a checkpoint: give the same --run-dir again to go on."""


def main(arguments: Sequence[str]) -> int:
    """Run the command line on this rank and return the exit code."""
    world = MPI.COMM_WORLD
    for output in (sys.stdout, sys.stderr):  # a path may hold what the terminal cannot show
        output.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    speaks = world.rank == 0 and launcher_rank() == 0
    try:
        with contextlib.ExitStack() as stack:
            if not speaks:  # argparse prints help and complaints: once is enough
                silence = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(silence))
                stack.enter_context(contextlib.redirect_stderr(silence))
            try:
                command = parse(arguments)
            except SystemExit as ended:  # of argparse; anywhere else it is a failure
                return BAD_INPUT if ended.code else 0
        if arguments[:1] != ["doctor"]:  # which says so among the rest
            check_world(world.size)
        comm = world.Dup()
        code = command(comm)
        comm.Free()
        return code
    except InputError as error:
        if world.size > 1 and not error.on_every_rank:
            raise
        if speaks:
            print(f"hpc_maml: {error}", file=sys.stderr)
        return BAD_INPUT


def parse(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    """Return what the command line asks for, as a function of the communicator.

    Prints and raises SystemExit for ``--help`` and for a wrong command line.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print(SUMMARY)
        raise SystemExit(0)
    if arguments and arguments[0] == "--version":
        print(__version__)
        raise SystemExit(0)
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    first, second = (*arguments, "", "")[:2]
    if first and not first.startswith("-") and "=" not in first and not second.startswith("="):
        error = InputError(
            f"{arguments[0]!r} is not a command{nearest(arguments[0], COMMANDS)}: there are "
            f"{', '.join(COMMANDS)}; settings are written key=value."
        )
        error.on_every_rank = True
        raise error
    return _train(arguments)


def only_prints(arguments: Sequence[str]) -> bool:
    """Tell whether the work of a command is what it prints: the others keep theirs in files."""
    with_files = ("train", "evaluate", "report", "demo", "jobs", "reproduce")
    first = arguments[0] if arguments else "train"  # which an option or a setting begins, too
    return first in ("-h", "--help", "--version", *COMMANDS) and first not in with_files


def _train(
    arguments: Sequence[str], of_all: StopSignal | None = None
) -> Callable[[MPI.Intracomm], int]:
    """Return the command; it is one of several that a signal stops together if there is one."""
    options = _parse_job("train", "Meta-train a policy, or go on with a run.", arguments)

    def run(comm: MPI.Intracomm) -> int:
        stop = of_all or StopSignal()
        if options.time_limit:
            stop.limit_time(options.time_limit)
        stop.listen(speaks=comm.rank == 0)
        from hpc_maml.run.training import Training

        return Training(comm, lambda: _load(options), options.run_dir, stop).train()

    return run


def _doctor(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    description = "Check whether the job that train would be with the same words will run well."
    options = _parse_job("doctor", description, arguments)

    def run(comm: MPI.Intracomm) -> int:
        from hpc_maml.run.doctor import doctor

        return doctor(comm, lambda: _load(options), options.run_dir)

    return run


def _parse_job(name: str, description: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(f"hpc_maml {name}", description=description)
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help="YAML file, see configs/; given again, later files override earlier ones",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="run folder; if it exists, the run goes on, by default with its own configuration",
    )
    time_limit = "stop with a checkpoint before so much time has passed, such as 7.5h, 30m, 90s"
    if name != "train":
        time_limit = "as train has it; nothing here depends on it"
    parser.add_argument("--time-limit", type=_seconds, metavar="TIME", help=time_limit)
    _add_trust(parser)
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="for example algorithm.max_kl=0.02"
    )
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        parser.error(_hint(unknown[0]))
    return options


def _hint(option: str) -> str:
    """Return what is meant by an option that there is not."""
    name = option.partition("=")[0].lstrip("-").replace("-", "_")
    if name in ("resume", "restart", "restore"):
        return f"there is no {option}: give the same --run-dir again, and the run goes on"
    from hpc_maml.config import keys_named

    if keys := keys_named(name):
        return f"there is no {option}: settings are written {' or '.join(keys)}=value"
    return f"unrecognized arguments: {option}"


def _load(options: argparse.Namespace) -> "Config":
    from hpc_maml.config import load_config
    from hpc_maml.storage.run_folder import load_run_config

    files, words, trusted = _sources(options)
    if files and not options.config:
        return load_run_config(options.run_dir, words, trusted)
    return load_config(files, words, trusted)


def _sources(
    options: argparse.Namespace,
) -> tuple[Sequence[str | Path], Sequence[str], Collection[str] | None]:
    """Return the files, the words and the trusted names of a configuration.

    The files are those that are given, or that of the run folder, which may be somebody else's.
    """
    from hpc_maml.storage.run_folder import CONFIG, has_config

    if not options.config and options.run_dir and has_config(options.run_dir):
        return [options.run_dir / CONFIG], options.settings, None if options.trust else ()
    return options.config or [], options.settings, None


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        action="store_true",
        help="import what the run folder names as module:Class, which runs its code",
    )


def _config(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    description = "Print the configuration that the same words would train with, as YAML."
    options = _parse_job("config", description, arguments)

    def show() -> int:
        from hpc_maml.config_page import config_text

        print(config_text(*_sources(options)), end="")
        return 0

    return lambda comm: from_rank_0(comm, show)


def _evaluate(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    parser = argparse.ArgumentParser(
        "hpc_maml evaluate", description="Meta-test a checkpoint of a run on unseen tasks."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--tasks", type=_number(2, 2**20), metavar="N", help="unseen tasks (evaluation.tasks)"
    )
    parser.add_argument(
        "--updates", type=_number(1, 1000), metavar="K", help="inner steps (evaluation.updates)"
    )
    parser.add_argument(
        "--episodes",
        type=_number(2, 2**31),
        metavar="N",
        help="per task and phase (fast_batch_size)",
    )
    parser.add_argument(
        "--step-sizes",
        nargs="+",
        type=_step_size,
        metavar="SIZE",
        help="halved or constant after the first inner step, or one for each "
        "(evaluation.step_sizes)",
    )
    parser.add_argument(
        "--checkpoint",
        type=_checkpoint,
        default="last",
        metavar="WHICH",
        help="last, best (of the meta-tests), or after so many iterations (last)",
    )
    parser.add_argument(
        "--last-actions",
        choices=("sampled", "mean"),
        help="in the last phase (evaluation.last_actions)",
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="RUN2",
        help="other runs to test on the same tasks",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table to FILE")
    _add_trust(parser)
    options = parser.parse_args(arguments)

    def show(found: "MetaTest") -> int:
        from hpc_maml.run.console import print_meta_test

        print_meta_test(found, options.json)
        return 0

    def run(comm: MPI.Intracomm) -> int:
        from hpc_maml.run.meta_testing import MetaTesting, test_settings

        settings = test_settings(
            options.tasks, options.updates, options.step_sizes, options.last_actions
        )
        testing = MetaTesting(
            options.run,
            settings,
            options.episodes,
            options.baseline,
            options.checkpoint,
            trust=options.trust,
        )
        testing.evaluate(comm)
        return from_rank_0(comm, lambda: show(testing.found))

    return run


def _report(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    parser = argparse.ArgumentParser(
        "hpc_maml report",
        description="Draw runs, side by side, seeds of one configuration as one: a page, PNG, SVG "
        "and CSV files.",
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folder, or folder of runs"
    )
    parser.add_argument(
        "-o",
        dest="folder",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="folder to write to (report)",
    )
    _add_trust(parser)
    options = parser.parse_args(arguments)

    def report() -> int:
        from hpc_maml.report.writing import PAGE, write_report

        notes = write_report(options.runs, options.folder, trust=options.trust)
        print(*map(printable, (*notes, str(options.folder / PAGE))), sep="\n")
        return 0

    return lambda comm: from_rank_0(comm, report)


def _demo(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    parser = argparse.ArgumentParser(
        "hpc_maml demo",
        description="Show the last policy of a run on unseen tasks, before and after adaptation: "
        "navigation as a picture, others as an animated GIF, or as an MP4 film (-o FILE.mp4).",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "-o", dest="file", type=Path, metavar="FILE", help="(RUN/demo.png or RUN/demo.gif)"
    )
    _add_trust(parser)
    options = parser.parse_args(arguments)

    def show() -> int:
        from hpc_maml.run.demo import demo

        print(printable(str(demo(options.run, options.file, trust=options.trust))))
        return 0

    return lambda comm: from_rank_0(comm, show)


def _jobs(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    parser = argparse.ArgumentParser(
        "hpc_maml jobs",
        description="Copy the job scripts of Slurm, PBS and LSF, and the configuration files, to "
        "DIR/jobs and DIR/configs; submit them from DIR.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)

    def copy() -> int:
        from hpc_maml.run.job_scripts import copy_scripts

        print(*copy_scripts(options.folder), sep="\n")
        return 0

    return lambda comm: from_rank_0(comm, copy)


def _inspect(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    parser = argparse.ArgumentParser(
        "hpc_maml inspect",
        description="Say what is in a run folder. Exit code 1 if something is damaged.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--tree", action="store_true", help="also print the HDF5 layout")
    parser.add_argument(
        "--verify", action="store_true", help="read everything and compare the checksums"
    )
    options = parser.parse_args(arguments)

    def inspect() -> int:
        from hpc_maml import open_run
        from hpc_maml.storage.inspection import damages, describe, tree, without_checksum

        run = open_run(options.run)
        said = [*describe(run), *(without_checksum(run) if options.verify else ())]
        print(*map(printable, (*said, *(tree(run) if options.tree else ()))), sep="\n")
        damaged = damages(run, verify=options.verify)
        print(*damaged, sep="\n", end="\n" if damaged else "", file=sys.stderr)
        return DAMAGED if damaged else 0

    return lambda comm: from_rank_0(comm, inspect)


def _bench(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    parser = argparse.ArgumentParser(
        "hpc_maml bench", description="Measure this machine, each number beside a reference."
    )
    names = ("rollout", "update", "reduce", "iteration", "scale")

    def benchmark(name: str) -> str:
        if name not in names:
            raise argparse.ArgumentTypeError(f"choose from {', '.join(names)}")
        return name

    parser.add_argument(
        "names", nargs="*", type=benchmark, metavar="NAME", help=f"{', '.join(names)} (all)"
    )
    parser.add_argument(
        "--rounds", type=_number(1, 10**6), default=5, metavar="N", help="rounds, for medians (5)"
    )
    parser.add_argument(
        "--build",
        type=Path,
        default=Path("build"),
        metavar="DIR",
        help="where CMake built the reference programs (build)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    parser.add_argument(
        "--algorithm",
        default="maml_trpo",
        metavar="NAME",
        help="whose outer step update measures, as algorithm.name (maml_trpo)",
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw the efficiencies of scale, as SVG"
    )
    options = parser.parse_args(arguments)

    def run(comm: MPI.Intracomm) -> int:
        _check_alone(comm, "bench")
        from hpc_maml.reproduce.benchmark import checkout

        sys.path.insert(0, str(checkout()))
        from benchmarks.command import bench

        chosen = options.names or names
        others = (options.algorithm, options.picture)
        bench(chosen, options.rounds, options.build, options.json, *others)
        return 0

    return run


def _reproduce(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    parser = argparse.ArgumentParser(
        "hpc_maml reproduce",
        description="Make a published table again: train what is missing, test it, and write a "
        "page. Started again, it goes on. Without a name: list the experiments.",
    )
    parser.add_argument(
        "experiment", nargs="?", metavar="NAME", help="of the list, or a file NAME.yaml"
    )
    parser.add_argument("--seeds", type=_number(1, 1000), metavar="N", help="1 to N (its own)")
    parser.add_argument(
        "--budget",
        type=_seconds,
        default=math.inf,
        metavar="TIME",
        help="end training after so long, such as 2h, and test what there is",
    )
    parser.add_argument(
        "-o",
        dest="folder",
        type=Path,
        default=Path("reproduced"),
        metavar="DIR",
        help="folder of the runs, DIR/NAME, and of the page, DIR/NAME.md (reproduced)",
    )
    parser.add_argument("--pages", type=Path, metavar="DIR", help="another folder for the page")
    parser.add_argument(
        "--side-by-side",
        type=_number(1, 10**4),
        metavar="N",
        help="runs at a time, which share the cores (one for each core)",
    )
    parser.add_argument(
        "--slurm",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="submit the runs as a job array instead; what follows are options of sbatch",
    )
    parser.add_argument(
        "--run",
        type=_number(0, 10**6),
        metavar="I",
        help="only train and test run number I, from 0, on all ranks of this job",
    )
    options = parser.parse_args(arguments)

    if options.experiment is None and options != parser.parse_args([]):
        parser.error("name the experiment, before --slurm and its options")

    def run(comm: MPI.Intracomm) -> int:
        if options.run is not None:
            return _to_its_end(comm, lambda: reproduction().next_words(options.run))
        _check_alone(comm, "reproduce")
        if options.experiment is None:
            from hpc_maml.reproduce.command import list_experiments

            list_experiments()
            return 0
        if options.slurm is not None:
            return reproduction().submit(options.slurm)
        stop = StopSignal()
        stop.listen(speaks=True)
        return reproduction().make(options.side_by_side, options.budget, stop)

    def reproduction() -> "Reproduction":
        from hpc_maml.reproduce.command import Reproduction

        return Reproduction(options.experiment, options.folder, options.pages, options.seeds)

    return run


def _check_alone(comm: MPI.Intracomm, name: str) -> None:
    """Raise InputError on every rank if there are several."""
    if comm.size > 1:
        error = InputError(f"{name} starts its jobs itself: call it without mpirun.")
        error.on_every_rank = True
        raise error


def _to_its_end(comm: MPI.Intracomm, next_words: Callable[[], list[str]]) -> int:
    """Carry out one command after the other, as rank 0 says, and return the last exit code.

    A signal on any rank stops them all, also one that came too late for the command it met.
    """
    from hpc_maml.run.job import STOPPED_EARLY

    stop = StopSignal()
    stop.listen(speaks=comm.rank == 0)
    while words := from_rank_0(comm, next_words):
        asked = to_rank_0(comm, stop.requested)
        if from_rank_0(comm, lambda: any(asked)):  # noqa: B023 - called at once
            return STOPPED_EARLY
        command = _train(words[1:], stop) if words[0] == "train" else parse(words)
        if code := command(comm):
            return code
    return 0


def _seconds(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = text[:-1], text[-1:]
    if not re.fullmatch(r"\d+(\.\d+)?", number) or unit not in units or float(number) == 0:
        raise argparse.ArgumentTypeError("must be a time such as 7.5h, 30m or 90s")
    return float(number) * units[unit]


def _step_size(text: str) -> str | float:
    try:
        return text if text in ("halved", "constant") else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be halved, constant, or numbers") from None


def _checkpoint(text: str) -> str | int:
    if text in ("last", "best"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("must be last, best, or a number of iterations")
    return int(text)


def _number(smallest: int, largest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < smallest:
            raise argparse.ArgumentTypeError(f"must be at least {smallest}")
        if int(text) > largest:
            raise argparse.ArgumentTypeError(f"must be at most {largest}")
        return int(text)

    return number


COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
    "demo": _demo,
    "inspect": _inspect,
    "config": _config,
    "jobs": _jobs,
    "doctor": _doctor,
    "reproduce": _reproduce,
    "bench": _bench,
}
