"""The job scripts and configuration files that come with the package."""

import shutil
import stat
from importlib.resources import as_file, files
from pathlib import Path

from hpc_maml.errors import InputError, reason_of

FOLDERS = ("jobs", "configs")  # links to those of the checkout


def copy_scripts(to: Path) -> list[Path]:
    """Copy the folders into another one, and return what they are called there.

    Raises InputError if one of them is there already, or cannot be written.
    """
    made = [to / name for name in FOLDERS]
    try:
        for folder in made:
            if folder.exists():
                raise InputError(f"{folder} is there already: give another folder, or remove it.")
        for folder in made:
            with as_file(files("hpc_maml") / folder.name) as source:
                _copy(source, folder)
    except OSError as error:
        raise InputError(f"{to} cannot be written: {reason_of(error)}.") from None
    return made


def _copy(source: Path, to: Path) -> None:
    """Copy files and folders, which the user may change: those of an installation may be closed."""
    to.mkdir(parents=True)
    for each in source.iterdir():
        if each.is_dir():
            _copy(each, to / each.name)
        else:
            shutil.copyfile(each, to / each.name)
            (to / each.name).chmod(each.stat().st_mode | stat.S_IWUSR)
