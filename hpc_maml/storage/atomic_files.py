"""Files that appear whole or not at all, whenever the process is killed."""

import contextlib
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from hpc_maml.errors import InputError

TEMPORARY = ".partial"
DAMAGED = ".damaged"  # ends the name of what is set aside


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Have ``write`` fill a file under a temporary name, then rename it to ``path``.

    A reader sees the old file or the new one. ``durable`` also waits for the disk, so that the file
    survives the loss of power; without it, it survives the death of the process. Nobody can put a
    link to a file of ours under the temporary name, as it is new and by chance. Raises InputError.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            write(file)
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()  # on a full disk it takes the room that a checkpoint needs
        if not isinstance(error, OSError):
            raise
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise InputError(f"{path} cannot be written: {reason}.") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    write_whole(path, lambda file: file.write(text.encode()))


def is_leftover(name: str, of: str | re.Pattern[str]) -> bool:
    """Tell whether a name is a temporary one of a file whose name matches ``of`` in full."""
    match = re.fullmatch(rf"(.+?)(\.[0-9a-f]{{16}})?{re.escape(TEMPORARY)}", name)
    return match is not None and re.fullmatch(of, match[1]) is not None


def remove_leftovers(folder: Path, of: str | re.Pattern[str]) -> None:
    """Remove what a killed process left of files whose names match ``of``; raises OSError."""
    for path in folder.glob(f"*{TEMPORARY}"):
        if is_leftover(path.name, of) and is_plain(path):
            path.unlink()


def is_plain(path: Path) -> bool:
    """Tell whether a path is a file itself, not a link to one."""
    return path.is_file() and not path.is_symlink()


def set_aside(path: Path) -> Path:
    """Give a file that is not as this program wrote it a name that says so; return the new path.

    Raises OSError.
    """
    aside, number = path.with_name(path.name + DAMAGED), 1
    while aside.exists() or aside.is_symlink():
        number += 1
        aside = path.with_name(f"{path.name}{DAMAGED}-{number}")
    return path.rename(aside)


def size_text(size: float) -> str:
    """Return a number of bytes as text, like 17.0 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
