"""Waiting without using a core, for one request or for all roles of a rank.

MPI libraries spin while they wait. Many ranks on few cores then take the cores from the ranks that
have work, so every wait here polls, and sleeps between polls for a fraction of the time it has
waited so far: short waits stay short, long ones cost nothing. On a busy machine a poll costs its
neighbours a tenth to half a millisecond.
"""

import time
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass

from mpi4py import MPI

SHORTEST_SLEEP, LONGEST_SLEEP = 1e-4, 0.5  # seconds
LONGEST_LOOK = 1.0  # seconds between two looks; a process that was suspended looked for less
# Fractions of the time waited so far: of an outer step's reductions, of which there are many in a
# row; of the roles of a rank; and of either beyond 20 ms.
OF_A_REQUEST, OF_ROLES, OF_LONG_WAITS = 1 / 20, 1 / 8, 1 / 50


@dataclass(frozen=True)
class Until:
    """Suspend the role that awaits this until ``ready()``; ``what`` names what it waits for."""

    ready: Callable[[], bool]
    what: str

    def __await__(self) -> Generator["Until", None, None]:
        if not self.ready():
            yield self


class Idle:
    """The time since something last happened: sleeps a fraction of it, and has a limit.

    Time in which the process did not run, as while its job is suspended, hardly counts.
    """

    def __init__(self, limit: float, fraction: float) -> None:
        self.limit = limit
        self.fraction = fraction
        self.waited = 0.0  # seconds
        self.looked = time.monotonic()

    def sleep(self, what: str) -> None:
        """Sleep once; raise TimeoutError that names ``what`` if the limit (seconds) has passed."""
        now = time.monotonic()
        self.waited += min(now - self.looked, LONGEST_LOOK)
        self.looked = now
        if self.waited > self.limit:
            raise TimeoutError(f"waited {self.waited:.0f} s for {what}")
        seconds = min(self.waited * self.fraction, max(self.waited * OF_LONG_WAITS, 0.02))
        time.sleep(min(max(seconds, SHORTEST_SLEEP), LONGEST_SLEEP))


def wait(request: MPI.Request, what: str, limit: float) -> None:
    """Return when an MPI request is complete; raise TimeoutError after ``limit`` seconds."""
    idle = Idle(limit, OF_A_REQUEST)
    while not request.Test():
        idle.sleep(what)


def run_roles(roles: dict[str, Coroutine[Until, None, None]], limit: float) -> None:
    """Run the roles of this rank, each until it awaits something, until all have returned.

    An exception is given the attribute ``role``, the name of the role that raised it. Raises
    TimeoutError when no role could go on for ``limit`` seconds.
    """
    waiting: dict[str, Until | None] = dict.fromkeys(roles)
    idle = Idle(limit, OF_ROLES)
    try:
        while waiting:
            role = " and ".join(waiting)
            ready = [name for name, awaited in waiting.items() if not awaited or awaited.ready()]
            for role in ready:
                try:
                    waiting[role] = roles[role].send(None)
                except StopIteration:
                    del waiting[role]
            if ready:
                idle = Idle(limit, OF_ROLES)
            else:
                idle.sleep(" and ".join(awaited.what for awaited in waiting.values() if awaited))
    except BaseException as error:
        error.role = role  # type: ignore[attr-defined]
        raise
    finally:
        for coroutine in roles.values():
            coroutine.close()
