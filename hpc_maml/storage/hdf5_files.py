"""HDF5 files of a run: written whole, with a checksum of all of their content.

The checksum stands in front of the content, in the 512 bytes that HDF5 leaves to the user and that
every tool skips. A file cannot lose it. Whether it has one is seen in its first bytes, which are
either these words or the signature of HDF5. Files of older programs have none, and are read too.
"""

import hashlib
import math
import os
import resource
import secrets
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from hpc_maml.errors import LONGEST_SENTENCE, InputError, printable, reason_of, shortened
from hpc_maml.storage.atomic_files import write_whole

WORDS = "hpc_maml: SHA-256 of all that follows these 512 bytes: "
USER_BLOCK = 512  # bytes
SIGNATURE = b"\x89HDF\r\n\x1a\n"  # of a file without a user block
# What h5py raises where no checksum was compared before depends on the damaged byte.
FAILURES = (
    *(OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError),
    *(SystemError, ArithmeticError),
)

# of attributes
TEXT = h5py.h5t.py_create(h5py.string_dtype(), logical=True)
BOOL = h5py.h5t.py_create(np.dtype(bool), logical=True)
SCALAR = h5py.h5s.create(h5py.h5s.SCALAR)

MOST_MEMORY = 2**29  # bytes that opening joined arrays may take
_limiting = threading.Lock()

DEEPEST = 2  # groups in each other
LISTED = "iteration_"  # begins the names of links to the files of iterations
TEXTS = "segments"  # the only array that holds no numbers: names of files
WRONG = "its content does not match its checksum"


class DamagedError(InputError):
    """A file of the run cannot be read."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(path, " ".join(str(reason).split()))  # in full: it travels between ranks

    def __str__(self) -> str:
        return shortened(printable(f"{self.args[0]} is damaged: {self.args[1]}."), LONGEST_SENTENCE)

    @property
    def path(self) -> Path:
        """The damaged file."""
        return self.args[0]


def write_hdf5(path: Path, fill: Callable[[h5py.File], None], *, durable: bool = True) -> None:
    """Write an HDF5 file whole; ``fill`` puts the content into the open file.

    The same content gives the same bytes. Raises InputError.
    """
    with in_memory() as file:
        fill(file)
        write_image(path, file, durable=durable)


def in_memory() -> h5py.File:
    """Return a new file in memory: the HDF5 library does not get over a disk that is full."""
    # The format of HDF5 1.10 (2016), which virtual datasets need: small files are a third.
    settings = {"driver": "core", "backing_store": False, "block_size": 2**20}
    settings |= {"libver": ("v110", "v110"), "userblock_size": USER_BLOCK}
    # under a name that no file has, as HDF5 would read that first
    return h5py.File(secrets.token_hex(16), "w", **settings)


def write_image(path: Path, file: h5py.File, *, durable: bool) -> None:
    """Write what an open file in memory holds; raises InputError."""
    file.flush()
    image = file.id.get_file_image()  # all but the user block

    def write(temporary: BinaryIO) -> None:
        temporary.write(user_block(hashlib.sha256(image)))
        temporary.write(image)

    write_whole(path, write, durable=durable)


def append(dataset: h5py.Dataset, rows: np.ndarray) -> None:
    """Add rows to a dataset that has room for them, without what h5py does for slices."""
    before = dataset.id.shape[0]
    dataset.id.set_extent((before + len(rows), *rows.shape[1:]))
    place = dataset.id.get_space()
    place.select_hyperslab((before,) + (0,) * (rows.ndim - 1), rows.shape)
    dataset.id.write(h5py.h5s.create_simple(rows.shape), place, np.ascontiguousarray(rows))


def describe(dataset: h5py.Dataset, about: Mapping[str, str | bool]) -> None:
    """Give a new dataset attributes, in half the time that h5py takes for values of any kind."""
    for name, value in about.items():
        kind = BOOL if isinstance(value, bool) else TEXT
        attribute = h5py.h5a.create(dataset.id, name.encode(), kind, SCALAR)
        attribute.write(np.array(value, object if kind is TEXT else bool))


@contextmanager
def opened(path: Path, newest: int, *, joins: Collection[str] = ()) -> Iterator[h5py.File]:
    """Open a file in memory after its checksum has been compared, and its content looked over.

    ``joins`` are names of datasets that may be virtual, and links to the files of iterations may
    stand beside them. Raises InputError if it is missing, damaged or of a format version above
    ``newest``. What goes wrong while it is open is damage, too.
    """
    with damage_of(path):
        try:
            file = open_regular(path)
        except FileNotFoundError:
            raise InputError(f"{path} does not exist: the run has not come so far.") from None
        with file:
            block = file.read(USER_BLOCK)
            source: Any = path
            if block[: len(SIGNATURE)] != SIGNATURE:
                _compare(path, block, file)  # before it is in memory
                file.seek(USER_BLOCK)
                source = h5py.h5f.open_file_image(file.read())
    with damage_of(path), h5py.File(source, "r") as hdf5:
        version = int(hdf5.attrs["format_version"])
        if version > newest:
            raise InputError(
                f"{path} has format version {version}; this program reads up to {newest}."
            )
        look_over(hdf5, joins)
        yield hdf5


def open_regular(path: Path) -> BufferedReader:
    """Open a file to be read; raises OSError, also for a pipe or device, which may have no end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError("it is not a regular file")
    return file


def look_over(
    file: h5py.File, joins: Collection[str] = (), *, may_be_compressed: bool = False
) -> None:
    """Raise ValueError for content that this program does not write and that is not safe to read.

    That is links to other places, arrays that are elsewhere or larger than what is stored of them,
    as they also are if they are compressed, and arrays of other things than numbers; see ``opened``
    for ``joins``. Of segments, which may be compressed, nothing is read whole. Raises
    KeyError where joined arrays, of which HDF5 takes the number of sources from the file, would
    take more than ``MOST_MEMORY``.
    """

    def look(group: h5py.Group, depth: int) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink) and joins and name.startswith(LISTED):
                continue  # an entry of the index, which is not followed here
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{name} is a link to elsewhere")
            item = group[name]
            if isinstance(item, h5py.Group):
                if depth == DEEPEST:  # also where a group is in itself
                    raise ValueError(f"{name} is a group too deep")
                look(item, depth + 1)
            else:
                _look_over_array(name, item, joins)
                # all filters but the checksum of chunks
                filters = item.id.get_create_plist().get_nfilters() - bool(item.fletcher32)
                if filters > 0 and not may_be_compressed:
                    raise ValueError(f"{name} is compressed")

    with _bounded_memory() if joins else nullcontext():
        look(file, 1)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Refuse memory beyond ``MOST_MEMORY`` more, where the system keeps such limits (Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        yield
        return
    with _limiting:
        soft, hard = limits = resource.getrlimit(resource.RLIMIT_AS)
        wanted = pages * resource.getpagesize() + MOST_MEMORY
        if soft == resource.RLIM_INFINITY or wanted < soft:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)


def _look_over_array(name: str, item: Any, joins: Collection[str]) -> None:
    if not isinstance(item, h5py.Dataset):
        raise ValueError(f"{name} is not an array")
    if item.is_virtual and name in joins:
        return
    if item.is_virtual or item.external:
        raise ValueError(f"{name} is stored in another file")
    stored = item.id.get_storage_size()
    if item.chunks:
        stored = item.id.get_num_chunks() * math.prod(item.chunks) * item.dtype.itemsize
    if stored < item.nbytes:
        raise ValueError(f"{name} is not complete")
    if item.dtype.kind not in "biuf" and name != TEXTS:
        raise ValueError(f"{name} holds no numbers")


def verify(path: Path) -> bool:
    """Compare the checksum of a file of any size; return False if it has none.

    Raises DamagedError.
    """
    with damage_of(path), open_regular(path) as file:
        block = file.read(USER_BLOCK)
        if block[: len(SIGNATURE)] == SIGNATURE:
            return False
        _compare(path, block, file)
    return True


def _compare(path: Path, block: bytes, rest: BufferedReader) -> None:
    """Raise DamagedError if a block of 512 bytes has not the checksum of the rest of its file."""
    begins = block.startswith(WORDS.encode())  # if not, the rest may be of any size
    if not begins or block != user_block(hashlib.file_digest(rest, "sha256")):
        raise DamagedError(path, WRONG)


def has_checksum(path: Path) -> bool:
    """Tell whether a file has a checksum, right or wrong; raises OSError."""
    with open_regular(path) as file:
        return file.read(len(SIGNATURE)) != SIGNATURE


@contextmanager
def damage_of(path: Path) -> Iterator[None]:
    """Turn whatever h5py raises on a damaged file into DamagedError."""
    try:
        yield
    except InputError:
        raise
    except FAILURES as error:
        reason = reason_of(error) if isinstance(error, OSError) else error
        raise DamagedError(path, reason) from None


def user_block(checksum: "hashlib._Hash") -> bytes:
    """Return what stands before content with this checksum."""
    return (WORDS + checksum.hexdigest()).encode().ljust(USER_BLOCK - 1) + b"\n"
