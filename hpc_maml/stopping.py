"""Stopping early: a signal on any rank becomes a decision at the next iteration boundary."""

import contextlib
import os
import signal

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STDERR = 2


class StopSignal:
    """Remembers that this process was asked to stop; a second SIGINT ends it at once."""

    def __init__(self) -> None:
        self.requested = False
        self.speaks = False

    def listen(self, *, speaks: bool) -> None:
        """Take over the signals of this process, and the warnings __main__ held back.

        A process that ``speaks`` answers the first one.
        """
        self.speaks = speaks
        for number in SIGNALS:
            signal.signal(number, self._receive)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])

    def _receive(self, number: int, frame: object) -> None:
        if self.speaks and not self.requested:
            self._answer("; again to stop now" if number == signal.SIGINT else "")
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _answer(self, more: str) -> None:
        # Not through sys.stderr, in whose middle the signal may have come.
        start = "\n" if os.isatty(STDERR) else ""  # below the ^C and a progress bar
        with contextlib.suppress(OSError):  # a terminal that is gone
            os.write(STDERR, f"{start}stopping after this iteration{more}\n".encode())
