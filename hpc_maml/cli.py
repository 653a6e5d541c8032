"""The command line."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpi4py import MPI

from hpc_maml import __version__
from hpc_maml.errors import InputError
from hpc_maml.mpi.runtime import check_world, from_rank_0, launcher_rank
from hpc_maml.stopping import StopSignal

if TYPE_CHECKING:
    from hpc_maml.config import Config

DAMAGED, FAILED, BAD_INPUT = 1, 1, 2

SUMMARY = """\
usage: python -m hpc_maml [train] [--config FILE] [--run-dir DIR] [key=value ...]
       python -m hpc_maml evaluate RUN [--tasks N] [--updates K] [--episodes N]
                          [--step-sizes HOW] [--last-actions HOW] [--baseline RUN2 ...]
                          [--json FILE]
       python -m hpc_maml report RUN [RUN ...] -o DIR
       python -m hpc_maml demo RUN [-o FILE]
       python -m hpc_maml inspect RUN [--tree] [--verify]
       python -m hpc_maml config [--config FILE] [key=value ...]
       python -m hpc_maml doctor [--config FILE] [--run-dir DIR] [key=value ...]
       python -m hpc_maml bench [NAME ...] [--rounds N] [--json FILE]
       python -m hpc_maml COMMAND --help

Meta-trains a policy on all ranks of an MPI job: mpirun -np N python -m hpc_maml ...

exit codes: 0 done; 2 bad input; 75 stopped early by a signal, with a checkpoint: give the same
--run-dir again to go on; anything else: failed."""


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
    return _train(arguments)


def only_prints(arguments: Sequence[str]) -> bool:
    """Tell whether the work of a command is what it prints: the others keep theirs in files."""
    with_files = ("train", "evaluate", "report", "demo")
    first = arguments[0] if arguments else "train"
    return first.startswith("-") or (first in COMMANDS and first not in with_files)


def _train(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    options = _parse_job("train", "Meta-train a policy, or go on with a run.", arguments)

    def run(comm: MPI.Intracomm) -> int:
        stop = StopSignal()
        stop.listen()
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
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="for example algorithm.max_kl=0.02"
    )
    return parser.parse_intermixed_args(arguments)


def _load(options: argparse.Namespace) -> "Config":
    from hpc_maml.config import load_config

    return load_config(_files(options), options.settings)


def _files(options: argparse.Namespace) -> Sequence[str | Path]:
    """Return the files of a configuration: those that are given, or that of the run folder."""
    from hpc_maml.storage.run_folder import CONFIG, has_config

    if not options.config and options.run_dir and has_config(options.run_dir):
        return [options.run_dir / CONFIG]
    return options.config or []


def _config(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    description = "Print the configuration that the same words would train with, as YAML."
    options = _parse_job("config", description, arguments)

    def show() -> int:
        from hpc_maml.config_page import config_text

        print(config_text(_files(options), options.settings), end="")
        return 0

    return lambda comm: from_rank_0(comm, show)


def _evaluate(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    parser = argparse.ArgumentParser(
        "hpc_maml evaluate", description="Meta-test the last checkpoint of a run on unseen tasks."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--tasks", type=_at_least(2), metavar="N", help="unseen tasks (evaluation.tasks)"
    )
    parser.add_argument(
        "--updates", type=_at_least(1), metavar="K", help="inner steps (evaluation.updates)"
    )
    parser.add_argument(
        "--episodes", type=_at_least(2), metavar="N", help="per task and phase (fast_batch_size)"
    )
    parser.add_argument(
        "--step-sizes",
        choices=("halved", "constant"),
        help="after the first inner step (evaluation.step_sizes)",
    )
    parser.add_argument(
        "--last-actions",
        choices=("sampled", "mean"),
        help="in the last phase (evaluation.last_actions)",
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        action="append",
        default=[],
        metavar="RUN2",
        help="another run to test on the same tasks; may be given again",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table to FILE")
    options = parser.parse_args(arguments)
    keys = ("tasks", "updates", "step_sizes", "last_actions")
    settings = {key: value for key in keys if (value := getattr(options, key)) is not None}

    def run(comm: MPI.Intracomm) -> int:
        from hpc_maml.run.meta_testing import MetaTesting

        testing = MetaTesting(options.run, settings, options.episodes, options.baseline)
        return testing.evaluate(comm, options.json)

    return run


def _report(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    parser = argparse.ArgumentParser(
        "hpc_maml report",
        description="Draw runs, side by side, seeds of one configuration as one: a page, PNG, SVG "
        "and CSV files.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    parser.add_argument(
        "-o", dest="folder", type=Path, required=True, metavar="DIR", help="folder to write to"
    )
    options = parser.parse_args(arguments)

    def report() -> int:
        from hpc_maml.report.writing import PAGE, write_report

        print(*write_report(options.runs, options.folder), options.folder / PAGE, sep="\n")
        return 0

    return lambda comm: from_rank_0(comm, report)


def _demo(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    parser = argparse.ArgumentParser(
        "hpc_maml demo",
        description="Show the last policy of a run on unseen tasks, before and after adaptation: "
        "navigation as a picture, robots as an animated GIF.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "-o", dest="file", type=Path, metavar="FILE", help="(RUN/demo.png or RUN/demo.gif)"
    )
    options = parser.parse_args(arguments)

    def show() -> int:
        from hpc_maml.run.demo import demo

        print(demo(options.run, options.file))
        return 0

    return lambda comm: from_rank_0(comm, show)


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
        print(*said, *(tree(run) if options.tree else ()), sep="\n")
        damaged = damages(run, verify=options.verify)
        print(*damaged, sep="\n", end="\n" if damaged else "", file=sys.stderr)
        return DAMAGED if damaged else 0

    return lambda comm: from_rank_0(comm, inspect)


def _bench(arguments: Sequence[str]) -> Callable[[MPI.Intracomm], int]:
    parser = argparse.ArgumentParser(
        "hpc_maml bench", description="Measure this machine, each figure beside a yardstick."
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
        "--rounds", type=_at_least(1), default=5, metavar="N", help="rounds, for medians (5)"
    )
    parser.add_argument(
        "--build",
        type=Path,
        default=Path("build"),
        metavar="DIR",
        help="where CMake built the yardsticks (build)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    parser.add_argument(
        "--algorithm",
        default="maml_trpo",
        metavar="NAME",
        help="whose outer step update measures, as algorithm.name (maml_trpo)",
    )
    options = parser.parse_args(arguments)

    def run(comm: MPI.Intracomm) -> int:
        if comm.size > 1:
            error = InputError("bench starts its jobs itself: call it without mpirun.")
            error.on_every_rank = True
            raise error
        for checkout in (Path(__file__).parent.parent, Path.cwd()):
            if (checkout / "benchmarks" / "command.py").exists():
                sys.path.insert(0, str(checkout))
                break
        else:
            raise InputError("The benchmarks come with the checkout: call bench in its folder.")
        from benchmarks.command import bench

        chosen = options.names or names
        bench(chosen, options.rounds, options.build, options.json, options.algorithm)
        return 0

    return run


def _at_least(smallest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < smallest:
            raise argparse.ArgumentTypeError(f"must be at least {smallest}")
        return int(text)

    return number


COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
    "demo": _demo,
    "inspect": _inspect,
    "config": _config,
    "doctor": _doctor,
    "bench": _bench,
}
