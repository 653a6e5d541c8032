"""Will a job run well here? What each rank finds on its host, and what follows from all of it."""

import fcntl
import importlib
import os
import platform
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from mpi4py import MPI

from hpc_maml import __version__
from hpc_maml.config import Config
from hpc_maml.errors import InputError, reason_of
from hpc_maml.mpi.gpu_sums import ask_library
from hpc_maml.mpi.launcher import has_launcher, launcher_rank
from hpc_maml.mpi.runtime import check_world, from_rank_0, to_rank_0
from hpc_maml.mpi.topology import (
    Place,
    Plan,
    Seat,
    gpu_devices,
    plan_roles,
    rank_ranges,
    visible_gpus,
)
from hpc_maml.report.advice import uneven
from hpc_maml.run import memory
from hpc_maml.run.job import make_env, prepare
from hpc_maml.storage.atomic_files import size_text

GIGABYTE = 1e9
LEAST_SPACE, SLOW_SYNC = 1.0, 0.5  # GB, s
ERRORS_FOUND = 1  # exit code


@dataclass(frozen=True)
class Facts:
    """What a rank finds; in ``gpus`` the names of those it may use."""

    host: str
    cores: frozenset[int]  # it may run on
    host_cores: int
    library: str  # of MPI
    library_file: str
    cuda_aware: bool | None  # None: the library does not say
    gpus: tuple[str, ...]
    versions: tuple[str, ...]
    slurm_tasks: int | None  # of the job around it
    memory: int = 0  # bytes that the job may use on this host, 0 if that is not known
    memory_limit: str = ""  # who sets it
    huge_pages: str = ""  # always, madvise or never; empty if that is not known


@dataclass(frozen=True)
class Check:
    """The outcome of one check: what was found, and if it is not ok, what to do."""

    level: Literal["ok", "warning", "error"]
    subject: str
    finding: str


def look(environment: Mapping[str, str] = os.environ) -> Facts:
    """Return what this rank finds; quick, and touches no GPU."""
    file = _mpi_library_file()
    tasks = environment.get("SLURM_NTASKS")
    bytes_available, limit = memory.available(environment)
    return Facts(
        host=socket.gethostname(),
        cores=frozenset(os.sched_getaffinity(0)),
        host_cores=os.cpu_count() or 1,
        library=" ".join(MPI.Get_library_version().strip(" \0").split("\n")[0].split()),
        library_file=file,
        cuda_aware=ask_library(),
        gpus=visible_gpus(environment),
        versions=(
            f"hpc_maml {__version__}",
            f"Python {platform.python_version()}",
            f"NumPy {np.__version__}",
        ),
        # In a heterogeneous job this is the size of one of its parts.
        slurm_tasks=int(tasks) if tasks and "SLURM_HET_SIZE" not in environment else None,
        memory=bytes_available,
        memory_limit=limit,
        huge_pages=_huge_pages(),
    )


def _huge_pages() -> str:
    try:
        choices = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return ""
    return choices.partition("[")[2].partition("]")[0]


def _mpi_library_file() -> str:
    try:
        mapped = Path("/proc/self/maps").read_text().split()
    except OSError:
        return ""
    return next((word for word in mapped if "/libmpi" in word and ".so" in word), "")


def examine(
    ranks: Sequence[Facts], config: Config, needs: memory.Needs | None = None
) -> list[Check]:
    """Return what follows from the facts of all ranks, in the order of the ranks.

    ``needs`` is the memory of the job, if it is known.
    """
    hosts: dict[str, list[int]] = {}
    for rank, facts in enumerate(ranks):
        hosts.setdefault(facts.host, []).append(rank)
    checks = [_library(ranks), _launcher(ranks), _versions(ranks)]
    where = [f"{host}: {rank_ranges(numbers)}" for host, numbers in hosts.items()]
    checks.append(Check("ok", "ranks", "; ".join(where)))
    try:
        plan = _plan(ranks, config)
    except InputError as error:
        return [*checks, Check("error", "roles", str(error))]
    return [
        *checks,
        *(_cores(host, here, ranks, plan.places) for host, here in hosts.items()),
        *_tasks(plan, config.meta_batch_size),
        *_gpus(hosts, ranks, plan.places, config.device),
        *(_memory(host, here, ranks, plan, needs) for host, here in hosts.items() if needs),
        _pages(hosts, ranks),
    ]


def _plan(ranks: Sequence[Facts], config: Config) -> Plan:
    """Return which ranks will hold which roles; raises InputError if they cannot."""
    hosts = list(dict.fromkeys(facts.host for facts in ranks))
    seats = [
        Seat(hosts.index(facts.host), facts.cores, len(facts.cores), len(facts.gpus))
        for facts in ranks
    ]
    asked = config.topology
    return plan_roles(seats, asked.agents, asked.layout, config.device)


def _memory(
    host: str,
    here: Sequence[int],
    ranks: Sequence[Facts],
    plan: Plan,
    needs: memory.Needs,
) -> Check:
    least, probable = memory.of_node(needs, plan, here)
    limit, by = min((ranks[rank].memory, ranks[rank].memory_limit) for rank in here)
    of = f"{size_text(limit)} ({by})" if limit else "an unknown amount"
    text = f"{host}: about {size_text(probable)} of {of}"
    if not limit or probable <= limit:
        return Check("ok", "memory", text)
    level: Literal["warning", "error"] = "warning"
    if least > limit:
        level, text = "error", f"{host}: at least {size_text(least)} of {of}"
    cure = "use more nodes or more memory, or smaller horizon, fast_batch_size, meta_batch_size"
    return Check(level, "memory", f"{text}: {cure}")


def _pages(hosts: Mapping[str, list[int]], ranks: Sequence[Facts]) -> Check:
    """Say when the kernels give huge pages; only an administrator can change it."""
    when = {host: ranks[here[0]].huge_pages for host, here in hosts.items()}
    without = [host for host, found in when.items() if found == "never"]
    if without:
        cost = "roll-outs and outer steps may take half as long again"
        return Check("ok", "huge pages", f"never on {', '.join(without)}: {cost}")
    return Check(
        "ok", "huge pages", ", ".join(sorted({each or "unknown" for each in when.values()}))
    )


def _library(ranks: Sequence[Facts]) -> Check:
    kinds = Counter((facts.library, facts.library_file) for facts in ranks)
    text = "; ".join(f"{library} ({file})" for library, file in kinds)
    if len({library for library, _ in kinds}) > 1:
        odd = [facts.host for facts in ranks if facts.library != ranks[0].library]
        text += f"; not the same on {', '.join(sorted(set(odd)))}: load one MPI module everywhere"
        return Check("error", "MPI", text)
    return Check("ok", "MPI", text)


def _launcher(ranks: Sequence[Facts]) -> Check:
    try:
        check_world(MPI.COMM_WORLD.size)  # the job may run on a part of it
    except InputError as error:
        return Check("error", "launcher", str(error))
    tasks = ranks[0].slurm_tasks
    if tasks and tasks > len(ranks):
        text = f"{len(ranks)} of the {tasks} tasks of the Slurm job run: start with srun or mpirun"
        return Check("warning", "launcher", text)
    world = f"{len(ranks)} rank{'s' * (len(ranks) > 1)} in one world"
    return Check("ok", "launcher", world if has_launcher() else f"none, {world}")


def _versions(ranks: Sequence[Facts]) -> Check:
    odd = sorted({facts.host for facts in ranks if facts.versions != ranks[0].versions})
    if odd:
        text = f"not the same on {', '.join(odd)}: start every rank in one Python environment"
        return Check("error", "versions", text)
    return Check("ok", "versions", ", ".join(ranks[0].versions))


def _cores(host: str, here: list[int], ranks: Sequence[Facts], places: Sequence[Place]) -> Check:
    """Compare the cores that the ranks of a host are bound to with those they can keep busy."""
    cores = len(frozenset().union(*(ranks[rank].cores for rank in here)))
    there = ranks[here[0]].host_cores
    # In the split layout agents and observers mostly take turns.
    busy = max(
        sum(places[rank].agent for rank in here), sum(places[rank].observer for rank in here)
    )
    resting = sum(not places[rank].roles for rank in here)
    text = f"{host}: {len(here)} ranks on {cores} of {there} cores"
    if cores < there and (resting or busy > cores):
        text += f", {resting} of them rest" if resting else ""
        text += ": unbind them (mpirun --bind-to none, srun --cpu-bind=none) or ask for more cores"
        return Check("warning", "cores", text)
    if busy > cores:
        text += f", {busy} of them busy at once: more ranks than cores are not faster"
        return Check("warning", "cores", text)
    return Check("ok", "cores", text + (f": {resting} of them rest" if resting else ""))


def _tasks(plan: Plan, num_tasks: int) -> list[Check]:
    """Tell whether the tasks of an iteration are even for the ranks of teams."""
    if plan.layout != "team":
        return []
    ranks = sum(place.observer for place in plan.places)
    if text := uneven(num_tasks, ranks):
        return [Check("warning", "tasks", text)]
    return [Check("ok", "tasks", f"{num_tasks} on {ranks} rank{'s' * (ranks > 1)}")]


def _gpus(
    hosts: Mapping[str, list[int]], ranks: Sequence[Facts], places: Sequence[Place], device: str
) -> list[Check]:
    found = {host: set().union(*(ranks[r].gpus for r in here)) for host, here in hosts.items()}
    agents = {host: sum(places[rank].agent for rank in here) for host, here in hosts.items()}
    if device == "cpu":
        return [Check("ok", "GPUs", "not used: device is cpu")]
    without = [host for host in hosts if agents[host] and not found[host]]
    if device == "cuda" and without:
        text = f"device is cuda, but there is no GPU for the agents on {', '.join(without)}"
        return [Check("error", "GPUs", text + ": ask for GPUs (--gres=gpu:1), or set device=cpu")]
    if not any(found.values()):
        return [Check("ok", "GPUs", "none: agents compute on the CPU")]
    checks = []
    if without:
        text = f"none for the agents on {', '.join(without)}, which compute on the CPU"
        checks.append(
            Check("warning", "GPUs", text + ": set topology.agents to the number of GPUs")
        )
    for host in hosts:
        text = f"{host}: {agents[host]} agents, {len(found[host])} GPUs"
        if not found[host]:
            continue
        if agents[host] > len(found[host]):
            checks.append(Check("warning", "GPUs", f"{text}: agents share, set topology.agents"))
        elif agents[host] < len(found[host]):
            checks.append(Check("warning", "GPUs", f"{text}: some are idle, set topology.agents"))
        else:
            checks.append(Check("ok", "GPUs", text))
    answer = {True: "yes", False: "no: sums go through the host", None: "the library does not say"}
    checks.append(Check("ok", "CUDA-aware MPI", answer[ranks[0].cuda_aware]))
    return checks


def check_run_folder(path: Path) -> list[Check]:
    """Try what a run does with its folder, in the nearest folder that exists."""
    subject = "run folder"
    try:
        while not path.exists() and path != path.parent:
            path = path.parent
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=path) as name:
            locks = _can_lock(Path(name))
            seconds = _time_of(lambda: _write_durably(Path(name)))
            hdf5 = _try_hdf5(Path(name) / "doctor.h5")
    except OSError as error:
        text = f"{path} cannot be written ({reason_of(error)}): give another --run-dir"
        return [Check("error", subject, text)]
    space = shutil.disk_usage(path).free / GIGABYTE
    text = (
        f"{path.resolve()} ({_file_system(path)}): {space:.0f} GB free, synced in {seconds:.3f} s"
    )
    checks = []
    if space < LEAST_SPACE:
        checks.append(Check("warning", subject, f"{text}: nearly full"))
    if seconds > SLOW_SYNC:
        checks.append(Check("warning", subject, f"{text}: slow, raise checkpoint.every"))
    if not locks:
        text += "; no file locks: nothing keeps two jobs out of the same run folder"
        checks.append(Check("warning", subject, text))
    return [*(checks or [Check("ok", subject, text)]), hdf5]


def _can_lock(folder: Path) -> bool:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _write_durably(folder: Path) -> None:
    from hpc_maml.storage.atomic_files import write_text  # with HDF5, which only rank 0 needs

    try:
        write_text(folder / "text", "doctor")
    except InputError as error:
        raise OSError(0, str(error)) from None


def _time_of(do: Callable[[], None]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def _try_hdf5(file: Path) -> Check:
    try:
        import h5py

        with h5py.File(file, "w") as writing:
            writing["values"] = np.arange(3)
        with h5py.File(file, "r") as reading:
            right = reading["values"][...].tolist() == [0, 1, 2]
    except (ImportError, OSError) as error:
        text = " ".join(str(error).split())
        cure = ": export HDF5_USE_FILE_LOCKING=FALSE" if "lock" in text else ""
        return Check("error", "HDF5", text + cure)
    versions = f"{h5py.version.hdf5_version}, h5py {h5py.__version__}"
    return Check("ok" if right else "error", "HDF5", versions + ("" if right else ": reads wrong"))


def _file_system(path: Path) -> str:
    """Return the type of the file system that a folder is on, such as nfs4."""
    best = ("", "unknown")
    try:
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, point, kind, *_ = line.split()
            if path.resolve().is_relative_to(point) and len(point) >= len(best[0]):
                best = (point, kind)
    except OSError:
        pass
    return best[1]


def check_libraries(gpus: bool) -> list[Check]:
    """Import what a run needs besides; torch only where there are GPUs, as a run does."""
    checks = []
    try:
        mujoco = importlib.import_module("mujoco")
        model = mujoco.MjModel.from_xml_string("<mujoco/>")
        mujoco.mj_step(model, mujoco.MjData(model))
        checks.append(Check("ok", "MuJoCo", mujoco.__version__))
    except Exception as error:  # whatever a broken installation raises
        checks.append(Check("error", "MuJoCo", f"{error}: install hpc_maml's dependencies again"))
    try:
        from importlib.metadata import version as version_of

        version = version_of("torch")
        gpus = gpus or bool(gpu_devices())  # those that are there, whatever torch is for
        seen = importlib.import_module("torch").cuda.device_count() if gpus else None
    except Exception as error:
        return [*checks, Check("error" if gpus else "warning", "torch", f"{error}")]
    if seen == 0:
        text = f"{version} finds no GPU, though there is one: install a torch built for its driver"
        return [*checks, Check("warning", "torch", text)]
    return [*checks, Check("ok", "torch", version + (f", {seen} GPUs" if seen else ""))]


def check_slurm(environment: Mapping[str, str] = os.environ) -> Check:
    """Show the job that this is part of."""
    if "SLURM_JOB_ID" not in environment:
        return Check("ok", "Slurm", "not in a job")
    names = ("JOB_ID", "JOB_PARTITION", "JOB_NODELIST", "NTASKS", "CPUS_PER_TASK", "RESTART_COUNT")
    known = [(name, environment.get(f"SLURM_{name}")) for name in names]
    return Check(
        "ok", "Slurm", ", ".join(f"{name.lower()} {value}" for name, value in known if value)
    )


def doctor(world: MPI.Intracomm, load_settings: Callable[[], Config], run_dir: Path | None) -> int:
    """Check everything and print a line for each; return the exit code.

    ``load_settings`` is called on rank 0 only. Raises InputError on every rank.
    """
    ranks = to_rank_0(world, look())

    def diagnose() -> int:
        config = load_settings()
        checks = examine(ranks, config, memory.needs(prepare(config, make_env(config, 1))))
        checks += check_run_folder(run_dir or Path("runs"))
        checks += check_libraries(any(facts.gpus for facts in ranks))
        checks.append(check_slurm())
        if launcher_rank() == 0:  # where the launcher made many worlds of one rank, one speaks
            for check in checks:
                print(f"{check.level:9}{check.subject:16}{check.finding}", flush=True)
        return ERRORS_FOUND * any(check.level == "error" for check in checks)

    return from_rank_0(world, diagnose)


def warnings_of(world: MPI.Intracomm, config: Config, needs: memory.Needs) -> list[str]:
    """Return on every rank what may go wrong with the job that begins: ``doctor`` in short.

    Raises InputError on every rank for what will go wrong.
    """
    ranks = to_rank_0(world, look())

    def found() -> list[str]:
        checks = examine(ranks, config, needs)
        for check in checks:
            if check.level == "error":
                raise InputError(f"{check.subject}: {check.finding}.")
        return [f"{each.subject}: {each.finding}" for each in checks if each.level == "warning"]

    said = from_rank_0(world, found)
    if config.device == "cuda":
        _need_gpus(world, ranks, config)
    return said


def _need_gpus(world: MPI.Intracomm, ranks: Sequence[Facts], config: Config) -> None:
    """Have every agent ask torch for a GPU; raises InputError on every rank if one has none.

    Before the run folder is opened, so that no folder is left behind.
    """
    places = from_rank_0(world, lambda: _plan(ranks, config).places)
    answers = to_rank_0(world, places[world.rank].agent and not _usable_gpus())

    def judge() -> None:
        pairs = zip(ranks, answers, strict=True)
        if hosts := dict.fromkeys(facts.host for facts, lacks in pairs if lacks):
            raise InputError(
                f"device is cuda, but torch finds no GPU on {', '.join(hosts)}: install a torch "
                "built for its driver, or set device=cpu."
            )

    from_rank_0(world, judge)


def _usable_gpus() -> int:
    """Return the number of GPUs that torch can use here."""
    from hpc_maml.mpi.gpu import count_gpus  # which imports torch

    return count_gpus()
