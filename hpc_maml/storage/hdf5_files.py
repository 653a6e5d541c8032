"""HDF5 files of a run: written whole, with a checksum of all of their content.

The checksum stands in front of the content, in the 512 bytes that HDF5 leaves to the user and that
every tool skips. A file cannot lose it. Whether it has one is seen in its first bytes, which are
either these words or the signature of HDF5. Files of older programs have none, and are read too.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import h5py

from hpc_maml.errors import LONGEST_SENTENCE, InputError, printable, reason_of, shortened
from hpc_maml.storage.atomic_files import write_whole

WORDS = "hpc_maml: SHA-256 of all that follows these 512 bytes: "
USER_BLOCK = 512  # bytes
SIGNATURE = b"\x89HDF\r\n\x1a\n"  # of a file without a user block
# What h5py raises where no checksum was compared before depends on the damaged byte.
FAILURES = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError)
WRONG = "its content has not the checksum that stands in it"


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

    def write(temporary: BinaryIO) -> None:
        # Made in memory: the HDF5 library does not get over a disk that is full.
        # The format of HDF5 1.10 (2016), which virtual datasets need: small files are a third.
        settings = {"driver": "core", "backing_store": False, "block_size": 2**20}
        settings |= {"libver": ("v110", "v110"), "userblock_size": USER_BLOCK}
        # under a name that no file has, as HDF5 would read that first
        with h5py.File(secrets.token_hex(16), "w", **settings) as file:
            fill(file)
            file.flush()
            image = file.id.get_file_image()  # all but the user block
        temporary.write(user_block(hashlib.sha256(image)))
        temporary.write(image)

    write_whole(path, write, durable=durable)


@contextmanager
def opened(path: Path, newest: int) -> Iterator[h5py.File]:
    """Open a file in memory after its checksum has been compared.

    Raises InputError if it is missing, damaged or of a format version above ``newest``. What goes
    wrong while it is open is damage, too.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is not there: the run has not got that far.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}.") from None
    if content[: len(SIGNATURE)] != SIGNATURE:
        image = memoryview(content)[USER_BLOCK:]
        if content[:USER_BLOCK] != user_block(hashlib.sha256(image)):
            raise DamagedError(path, WRONG)
        content = image.tobytes()
    with damage_of(path), h5py.File(h5py.h5f.open_file_image(content)) as file:
        version = int(file.attrs["format_version"])
        if version > newest:
            raise InputError(
                f"{path} has format version {version}; this program reads up to {newest}."
            )
        yield file


def verify(path: Path) -> bool:
    """Compare the checksum of a file of any size; return False if it has none.

    Raises DamagedError.
    """
    with damage_of(path), path.open("rb") as file:
        block = file.read(USER_BLOCK)
        if block[: len(SIGNATURE)] == SIGNATURE:
            return False
        if block != user_block(hashlib.file_digest(file, "sha256")):
            raise DamagedError(path, WRONG)
    return True


def has_checksum(path: Path) -> bool:
    """Tell whether a file has a checksum, right or wrong; raises OSError."""
    with path.open("rb") as file:
        return file.read(len(SIGNATURE)) != SIGNATURE


@contextmanager
def damage_of(path: Path) -> Iterator[None]:
    """Turn whatever h5py raises on a damaged file into DamagedError."""
    try:
        yield
    except InputError:
        raise
    except FAILURES as error:
        raise DamagedError(path, error) from None


def user_block(checksum: "hashlib._Hash") -> bytes:
    """Return what stands before content with this checksum."""
    return (WORDS + checksum.hexdigest()).encode().ljust(USER_BLOCK - 1) + b"\n"
