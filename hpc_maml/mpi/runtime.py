"""Start and end of the MPI program: is this the world the launcher meant, and who ends the job."""

import contextlib
import ctypes
import mmap
import os
import pickle
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import numpy as np
from mpi4py import MPI

from hpc_maml.errors import InputError
from hpc_maml.mpi import launcher
from hpc_maml.mpi.waiting import wait

T = TypeVar("T")

_end_process = os._exit

LONGEST_TURN = 10  # seconds a rank that failed leaves to others that did
START_LIMIT = 600.0  # seconds rank 0 may take to prepare the job

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of mallopt, in glibc's malloc.h
NEVER = -1  # of the heap's end to be returned
LARGEST_HEAP_BLOCK = 32 * 2**20  # bytes; glibc maps larger ones by themselves, and returns them
MAPPED_BLOCKS = 65536  # at most, glibc's default


def check_world(size: int, environment: Mapping[str, str] = os.environ) -> None:
    """Raise InputError if the launcher started more processes than the MPI world holds.

    That is what happens when ``mpirun`` or ``srun --mpi`` belongs to another MPI than the library
    that mpi4py loads: N worlds of size 1, each doing all of the work.
    """
    for variable, _ in launcher.VARIABLES:
        if variable not in environment:
            continue
        if (started := int(environment[variable])) > size:
            library = " ".join(MPI.Get_library_version().split("\n")[0].strip("\0").split())
            raise InputError(
                f"The launcher started {started} processes ({variable}) but the MPI world has "
                f"{size}: the launcher does not belong to the MPI library in use ({library}); "
                "start with the mpirun of that library, or with the srun --mpi=... type it "
                "supports (srun --mpi=list)."
            )
        return  # a launcher inside another one's job: only the inner one counts


def from_rank_0(world: MPI.Comm, prepare: Callable[[], T]) -> T:
    """Return on every rank what ``prepare`` returns on rank 0, or raise its InputError on all."""
    outcome: T | InputError | None = None
    if world.rank == 0:
        try:
            outcome = prepare()
        except InputError as error:
            outcome = error
    outcome = _broadcast(world, outcome)
    if isinstance(outcome, InputError):
        outcome.on_every_rank = True
        raise outcome
    return outcome


def to_rank_0(world: MPI.Comm, value: T) -> list[T]:
    """Return what every rank passes, by rank, on rank 0, and nothing elsewhere; waits passively."""
    mine = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = np.zeros(world.size, np.int64)
    wait(world.Iallgather(np.array([mine.size]), sizes), "all ranks to start", START_LIMIT)
    payload = np.empty(sizes.sum() if world.rank == 0 else 0, np.uint8)
    everyone = [payload, sizes] if world.rank == 0 else None
    wait(world.Igatherv(mine, everyone), "all ranks to say what they found", START_LIMIT)
    ends = np.cumsum(sizes)[:-1]
    parts = np.split(payload, ends) if world.rank == 0 else []
    return [pickle.loads(part.data) for part in parts]


def _broadcast(world: MPI.Comm, value: Any) -> Any:
    """Return the object that rank 0 passes, on every rank; waits passively."""
    payload = np.frombuffer(pickle.dumps(value), np.uint8)
    size = np.array([payload.size])
    wait(world.Ibcast(size), "rank 0 to prepare the job", START_LIMIT)
    if world.rank:
        payload = np.empty(size[0], np.uint8)
    wait(world.Ibcast(payload), "rank 0 to prepare the job", START_LIMIT)
    return pickle.loads(payload.data)


def abort(error: BaseException) -> NoReturn:
    """End the job on every rank, with one traceback that names this rank and its role.

    An InputError that only this rank met is one sentence and exit code 2.
    """
    rank = MPI.COMM_WORLD.rank
    where = f"rank {rank} ({getattr(error, 'role', 'start-up')}) on {socket.gethostname()}"
    if isinstance(error, KeyboardInterrupt):
        text, code = f"hpc_maml: {where}: interrupted.\n", 1
    elif isinstance(error, InputError):
        text, code = f"hpc_maml: {where}: {error}\n", 2
    else:
        body = "".join(traceback.format_exception(error))
        text, code = f"hpc_maml: {where} failed and ends the job.\n{body}", 1
    # Several ranks may meet the same: who would speak later is ended before.
    time.sleep(min(rank, LONGEST_TURN))
    with contextlib.suppress(Exception):  # whatever a user's code made of the streams
        sys.stdout.flush()
        sys.stderr.write(text)  # in one piece: lines of several ranks must not mix
        sys.stderr.flush()
    time.sleep(0.5)  # mpirun may drop what a rank wrote just before it aborts
    MPI.COMM_WORLD.Abort(code)
    _end_process(code)  # an MPI whose Abort returns


def guard_exit() -> None:
    """Make ``os._exit`` in this process a failure, as every other end before the work is done.

    Its exit code would be the program's, and without a launcher nobody else would notice.
    """
    process = os.getpid()

    def fail(status: int) -> NoReturn:
        if os.getpid() != process:  # a child, which may end as it likes
            _end_process(status)
        error = SystemExit(f"os._exit({status}) was called")
        thread = threading.current_thread()
        if thread is threading.main_thread():
            raise error
        error.role = f"thread {thread.name}"  # type: ignore[attr-defined]
        abort(error)

    os._exit = fail


def keep_freed_memory(expected: int = 2**30) -> None:
    """Have glibc keep freed arrays for the next ones, on huge pages where the system has them.

    Fetching memory again, page by page, took as long as the arithmetic of the outer step, and a
    fifth of the time of RL^2, whose arrays together exceed what glibc keeps by itself. On small
    pages the outer step took 1.05 to 1.8 times as long, by what else the machine did, as it reads
    more pages than a core remembers the addresses of. ``expected`` is how many bytes of the heap to
    come shall be on huge ones; none of them is taken before it is used.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)
        libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        libc.free.argtypes = [ctypes.c_void_p]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.mallopt(M_MMAP_MAX, 0)  # even as one block, of the heap
        block = libc.malloc(expected)
        libc.mallopt(M_MMAP_MAX, MAPPED_BLOCKS)
        if block:
            first = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
            libc.madvise(first, block + expected - first, mmap.MADV_HUGEPAGE)
            libc.free(block)
