"""Classes by name: one of a table, or ``module:Class`` for one's own."""

import importlib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import TypeVar

from hpc_maml.errors import InputError, nearest, origin_of

T = TypeVar("T")


class UntrustedError(InputError):
    """A run folder asks for code that the user has not asked for."""

    def __init__(self, where: object, names: Mapping[str, str]) -> None:
        """``names`` are the names ``module:Class`` by configuration key."""
        named = ", ".join(f"{key} {name}" for key, name in names.items())
        sentence = (
            f"{where} names {named}: to import that runs code. Give --trust, "
            "or trust=True in Python, if you know who wrote the run folder; to go on with a run, "
            "you may also give these names yourself."
        )
        super().__init__(sentence)
        self.keys = list(names)

    def __reduce__(self) -> tuple[type[InputError], tuple[str]]:
        """Travel between ranks as the sentence."""
        return InputError, self.args


def is_ones_own(name: object) -> bool:
    """Tell whether a name stands for a module to be imported, not for a class of a table."""
    return isinstance(name, str) and ":" in name


def find_class(kind: str, name: str, table: Mapping[str, str], base: type[T]) -> type[T]:
    """Return the class that ``name`` stands for, a concrete subclass of ``base``.

    ``table`` maps names to import paths ``module:Class``, so that only the class that is asked for
    is imported. Raises InputError, in which ``kind`` is what the user calls such a class.
    """
    module, colon, attribute = table.get(name, name).partition(":")
    if not colon:
        raise InputError(
            f"There is no {kind} {name!r}{nearest(name, table)}; there are {', '.join(table)}, "
            "and module:Class for one of your own."
        )
    try:
        imported = import_module(module)
    except ImportError as error:
        raise InputError(
            f"The module of the {kind} {name!r} cannot be imported: {error}."
        ) from None
    found = getattr(imported, attribute, None)
    if found is None:
        raise InputError(
            f"The module {module} has no {attribute!r}{nearest(attribute, vars(imported))}."
        )
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise InputError(
            f"{name} cannot be used as {kind}: it is not a subclass of {base.__name__}."
        )
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise InputError(f"{name} cannot be used as {kind}: it has no {' and no '.join(missing)}.")
    return found


def import_module(name: str) -> ModuleType:
    """Import a module, a user's perhaps; ImportError tells what it raised, whatever that was."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise
    except (Exception, SystemExit) as error:
        raise ImportError(origin_of(error)) from None
