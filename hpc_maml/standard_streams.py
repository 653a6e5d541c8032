"""Standard output and standard error that may be lost: a full disk or a closed pipe ends no run."""

import io
import os
import select
import sys
from collections.abc import Callable
from typing import Any


class LastingFile(io.FileIO):
    """A descriptor that is written to as long as it can be; what cannot be written is dropped."""

    def __init__(self, descriptor: int, report: Callable[[str], None]) -> None:
        """Keep the descriptor open; ``report`` is told once why something was dropped."""
        super().__init__(descriptor, "w", closefd=False)
        self.report = report
        self.lost = False  # in part, at least: a disk that was full may take the next line

    def write(self, data: Any) -> int:
        """Write bytes, or drop them; return their number."""
        try:
            while (written := super().write(data)) is None:  # a pipe that does not block, and full
                select.select([], [self], [])
            return written
        except OSError as error:
            self.lose(error.strerror or str(error))
            return memoryview(data).nbytes

    def lose(self, reason: str) -> None:
        """Note and report that something is lost."""
        if not self.lost:
            self.lost = True
            self.report(reason)


def keep_standard_streams(*, speaks: bool) -> LastingFile:
    """Replace ``sys.stdout`` and ``sys.stderr``; return the file behind the first.

    The loss of standard output is said on standard error, on a process that ``speaks``; the loss
    of standard error can be said nowhere. Descriptors that are closed are opened on the null
    device, or the next file of the program would get what libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the lowest that is free
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)

    def say(reason: str) -> None:
        if speaks:
            text = f"hpc_maml: standard output is lost ({reason}); the work goes on without it."
            print(text, file=sys.stderr, flush=True)

    sys.stderr, _ = _lasting(sys.stderr, 2, lambda reason: None)
    sys.stdout, output = _lasting(sys.stdout, 1, say)
    return output


def _lasting(
    stream: Any, descriptor: int, report: Callable[[str], None]
) -> tuple[io.TextIOWrapper, LastingFile]:
    """Return a stream that takes the place of another, and its file; None: it was closed."""
    if stream is None:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    else:
        stream.flush()
    file = LastingFile(descriptor, report)
    if stream is None:
        file.lose("it is closed")
    # The buffer asks its file for a write of all it holds, so a line is never written in halves.
    text = io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=descriptor == 2 or file.isatty() or getattr(stream, "write_through", False),
    )
    return text, file
