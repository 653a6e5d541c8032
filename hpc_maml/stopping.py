"""Stopping early: a signal on any rank becomes a decision at the next iteration boundary."""

import contextlib
import math
import os
import signal
import time

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STDERR = 2


class StopSignal:
    """Remembers that this process was asked to stop; a second SIGINT ends it at once."""

    def __init__(self) -> None:
        self.speaks = False
        self._signalled = False
        self._deadline = math.inf  # on the monotonic clock
        self._needed: dict[str, float] = {}  # seconds, by what they are needed for

    @property
    def requested(self) -> bool:
        """Tell whether the run was asked to stop: by a signal, or as its time is over."""
        return self._signalled or time.monotonic() > self._deadline

    def before(self, what: str) -> bool:
        """Tell whether the run is to stop before ``what``, also as its time would not last."""
        needed = self._needed.get(what, 0.0)
        return self.requested or time.monotonic() + needed > self._deadline

    def request(self) -> None:
        """Ask for a stop."""
        self._signalled = True

    def limit_time(self, seconds: float) -> None:
        """Ask for a stop after so many seconds, and before what would take longer."""
        self._deadline = time.monotonic() + seconds

    def expect(self, what: str, seconds: float) -> None:
        """Note how long ``what`` took: the next may take as long, and half of that again."""
        self._needed[what] = max(self._needed.get(what, 0.0), 1.5 * seconds)

    def listen(self, *, speaks: bool) -> None:
        """Take over the signals of this process, and the warnings __main__ held back.

        A process that ``speaks`` answers the first one.
        """
        self.speaks = speaks
        for number in SIGNALS:
            signal.signal(number, self._receive)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])

    def _receive(self, number: int, frame: object) -> None:
        first, self._signalled = not self._signalled, True
        if number == signal.SIGINT:  # before the answer, after which a second one may come
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.speaks and first:
            self._answer("; again to stop now" if number == signal.SIGINT else "")

    def _answer(self, more: str) -> None:
        # Not through sys.stderr, in whose middle the signal may have come.
        start = "\n" if os.isatty(STDERR) else ""  # below the ^C and a progress bar
        with contextlib.suppress(OSError):  # a terminal that is gone
            os.write(STDERR, f"{start}stopping after this iteration{more}\n".encode())
