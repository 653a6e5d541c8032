"""Stopping early: a signal on any rank becomes a decision at the next iteration boundary."""

import signal

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignal:
    """Remembers that this process was asked to stop; a second SIGINT ends it at once."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        """Take over the signals of this process, and the warnings __main__ held back."""
        for number in SIGNALS:
            signal.signal(number, self._receive)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])

    def _receive(self, number: int, frame: object) -> None:
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
