"""Files that appear whole or not at all, whenever the process is killed."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import h5py

from hpc_maml.errors import InputError

TEMPORARY = ".partial"


def write_whole(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Have ``write`` make a file under a temporary name, then rename it to ``path``.

    A reader sees the old file or the new one. ``durable`` also waits for the disk, so that the file
    survives the loss of power; without it, it survives the death of the process. Raises InputError.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        write(temporary)
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()  # on a full disk it takes the room that a checkpoint needs
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise InputError(f"{path} cannot be written: {reason}.") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_hdf5(path: Path, fill: Callable[[h5py.File], None], *, durable: bool = True) -> None:
    """Write an HDF5 file whole; ``fill`` puts the content into the open file."""

    def write(temporary: Path) -> None:
        # Made in memory: the HDF5 library does not get over a disk that is full.
        # The format of HDF5 1.10 (2016), which virtual datasets need: small files are a third.
        settings = {"driver": "core", "backing_store": False, "block_size": 2**20}
        with h5py.File(temporary, "w", libver=("v110", "v110"), **settings) as file:
            fill(file)
            file.flush()
            image = file.id.get_file_image()
        temporary.write_bytes(image)

    write_whole(path, write, durable=durable)


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
