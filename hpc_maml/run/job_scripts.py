"""The job scripts and configuration files that come with the package."""

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from hpc_maml.errors import InputError

FOLDERS = ("jobs", "configs")  # links to those of the checkout


def copy_scripts(to: Path) -> list[Path]:
    """Copy the folders into another one, and return what they are called there.

    Raises InputError if one of them is there already, or cannot be written.
    """
    made = [to / name for name in FOLDERS]
    for folder in made:
        if folder.exists():
            raise InputError(f"{folder} is there already: give another folder, or remove it.")
    try:
        for folder in made:
            with as_file(files("hpc_maml") / folder.name) as source:
                shutil.copytree(source, folder)
    except OSError as error:
        raise InputError(f"{to} cannot be written: {error.strerror}.") from None
    return made
