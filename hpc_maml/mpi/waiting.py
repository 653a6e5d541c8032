"""Waiting at little cost, for one request or for all roles of a rank.

MPI libraries spin while they wait. Many ranks on few cores then take the cores from the ranks that
have work, so every wait here polls, and sleeps between polls for a fraction of the time it has
waited so far: short waits stay short, long ones cost nothing. On a busy machine a poll costs its
neighbours a tenth to half a millisecond, and a sleep lasts for that long at least. So a rank with a
core of its own, which takes it from nobody, polls for a moment before it sleeps, and sleeps
shorter: what it waits for often has to go through it to others, which wait too.
"""

import time
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import TypeVar

from mpi4py import MPI

T = TypeVar("T")

SPIN = 2e-3  # seconds that a rank with a core of its own polls before it sleeps
SHORTEST_SLEEP, LONGEST_SLEEP = 1e-4, 0.5  # seconds
LONGEST_LOOK = 1.0  # seconds between two looks; a process that was suspended looked for less
# Fractions of the time waited so far: of an outer step's reductions, of which there are many in a
# row; of the roles of a rank; and of either beyond 20 ms.
OF_A_REQUEST, OF_ROLES, OF_LONG_WAITS = 1 / 20, 1 / 8, 1 / 50
ON_OWN_CORE = 1 / 10  # of these, on a rank with a core of its own
GIVE_WAY = 2e-3  # seconds that a role works before others of its rank get a turn


@dataclass(frozen=True)
class Until:
    """Suspend the role that awaits this until ``ready()``; ``what`` names what it waits for."""

    ready: Callable[[], bool]
    what: str

    def __await__(self) -> Generator["Until", None, None]:
        if not self.ready():
            yield self


async def in_thread(work: Callable[[], T], what: str) -> T:
    """Return what ``work`` returns, in a thread; other roles of the rank go on meanwhile.

    For work that mostly waits for something else than MPI, as for a disk.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()
    await Until(outcome.done, what)
    return outcome.result()


class Idle:
    """The time since something last happened: sleeps a fraction of it, and has a limit.

    Time in which the process did not run, as while its job is suspended, hardly counts.
    """

    def __init__(self, limit: float, fraction: float, spin: float = 0.0) -> None:
        """Begin to wait; in the first ``spin`` seconds ``sleep`` returns at once.

        A rank that shares its core does not spin.
        """
        self.limit = limit
        self.fraction = fraction
        self.spin = spin
        self.waited = 0.0  # seconds
        self.looked = time.monotonic()

    def sleep(self, what: str) -> None:
        """Sleep once; raise TimeoutError that names ``what`` if the limit (seconds) has passed."""
        now = time.monotonic()
        self.waited += min(now - self.looked, LONGEST_LOOK)
        self.looked = now
        if self.waited < self.spin:
            return
        if self.waited > self.limit:
            raise TimeoutError(f"waited {self.waited:.0f} s for {what}")
        time.sleep(self.pause(self.waited))

    def pause(self, waited: float) -> float:
        """Return how long it sleeps after it has waited for so long (seconds)."""
        fraction = self.fraction * (ON_OWN_CORE if self.spin else 1)
        seconds = min(waited * fraction, max(waited * OF_LONG_WAITS, 0.02))
        return min(max(seconds, SHORTEST_SLEEP), LONGEST_SLEEP)


def wait(request: MPI.Request, what: str, limit: float, spin: float = 0.0) -> None:
    """Return when an MPI request is complete; raise TimeoutError after ``limit`` seconds."""
    idle = Idle(limit, OF_A_REQUEST, spin)
    while not request.Test():
        idle.sleep(what)


class Roles:
    """The roles of this rank, each of which runs until it awaits something."""

    def __init__(self, limit: float, spin: float = 0.0) -> None:
        """Begin without any; a wait polls for ``spin`` seconds, and ends after ``limit``."""
        self.limit = limit
        self.spin = spin
        self.coroutines: dict[str, Coroutine[Until, None, None]] = {}
        self.awaited: dict[str, Until | None] = {}  # by those that have not returned
        self.running: set[str] = set()
        self.looked = time.monotonic()

    def run(self, roles: dict[str, Coroutine[Until, None, None]]) -> None:
        """Run these roles until all have returned.

        An exception is given the attribute ``role``, the name of the role that raised it. Raises
        TimeoutError when no role could go on for ``limit`` seconds.
        """
        self.coroutines = roles
        self.awaited = dict.fromkeys(roles)
        idle = Idle(self.limit, OF_ROLES, self.spin)
        try:
            while self.awaited:
                if self._go_on():
                    idle = Idle(self.limit, OF_ROLES, self.spin)
                else:
                    idle.sleep(" and ".join(each.what for each in self.awaited.values() if each))
        except BaseException as error:
            if not hasattr(error, "role"):
                error.role = " and ".join(self.awaited)  # type: ignore[attr-defined]
            raise
        finally:
            for coroutine in roles.values():
                coroutine.close()

    def give_way(self) -> None:
        """Let the other roles of this rank go on; a role that works for long calls it often."""
        now = time.monotonic()
        if now - self.looked > GIVE_WAY:
            self._go_on()
            self.looked = time.monotonic()

    def _go_on(self) -> bool:
        """Run each role that can go on until it awaits something; tell whether there was one."""
        found = False
        for role in list(self.awaited):
            # What is awaited is asked right before the role runs: an answer may take a message.
            if role in self.running or role not in self.awaited:
                continue
            awaited = self.awaited[role]
            if awaited and not awaited.ready():
                continue
            found = True
            self.running.add(role)
            try:
                self.awaited[role] = self.coroutines[role].send(None)
            except StopIteration:
                del self.awaited[role]
            except BaseException as error:
                if not hasattr(error, "role"):  # of a role that this one gave way to
                    error.role = role  # type: ignore[attr-defined]
                raise
            finally:
                self.running.discard(role)
        return found
