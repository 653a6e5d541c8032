"""The log of a run in its folder: how each job was started, and what it said."""

import os
import shlex
import socket
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

LOG = "log.txt"


class RunLog:
    """Appends lines to ``log.txt``; a run goes on without a log that cannot be written."""

    def __init__(self, path: Path) -> None:
        """Keep the file; nothing is written yet."""
        self.path = path
        self.lost = False

    def begin(self, versions: Mapping[str, str]) -> None:
        """Say which job writes from here on: command, place, versions."""
        self.write(f"{stamp()}  started: {shlex.join(sys.orig_argv)}")
        self.write(f"  on {socket.gethostname()}, process {os.getpid()}, in {Path.cwd()}")
        known = ", ".join(f"{name} {value}" for name, value in versions.items() if value)
        self.write(f"  {known}")

    def write(self, text: str) -> None:
        """Append a line, which other processes see at once."""
        if self.lost:
            return
        try:
            # no link is followed, as a run writes in its own folder; a pipe is not waited for
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            flags |= os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o666)
            with os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{text}\n")
        except OSError as error:
            self.lost = True
            said = f"hpc_maml: {self.path} cannot be written ({error.strerror})"
            print(f"{said}; the run goes on without it.", file=sys.stderr)


def stamp() -> str:
    """Return the time, as lines begin with it."""
    return f"{datetime.now():%Y-%m-%d %H:%M:%S}"
