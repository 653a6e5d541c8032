"""What is reported in one sentence, instead of with a traceback."""

import difflib
from collections.abc import Iterable
from typing import Any

LONGEST_SENTENCE, LONGEST_VALUE = 1000, 200  # characters; a user's text may be much longer


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one sentence that says what to do."""

    on_every_rank = False  # raised by all ranks alike, so that rank 0 speaks for them

    def __str__(self) -> str:
        """Return the message, on one line of bounded length, whatever text it quotes."""
        return shortened(printable(super().__str__()), LONGEST_SENTENCE)


def shortened(text: str, longest: int) -> str:
    """Return a text without its middle, if it is longer than ``longest`` characters."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"


def printable(text: str) -> str:
    """Return a text on one line, with what a terminal or a reader would not show written out.

    Names of folders and texts in files may hold newlines, commands to the terminal, marks that
    change the direction of writing, and bytes that are no text.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def shown(value: Any) -> str:
    """Return a value as a message quotes it."""
    return shortened(repr(value), LONGEST_VALUE)


def reason_of(error: OSError) -> str:
    """Return why the system refused something; what libraries raise may have only a text."""
    return error.strerror or str(error) or type(error).__name__


def origin_of(error: BaseException) -> str:
    """Return what was raised, and in which line of which file: of code of a user's own."""
    place, trace = "", error.__traceback__
    while trace and not isinstance(error, SyntaxError):  # which says itself where it is
        place = f", raised in {trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}".rstrip(": ") + place


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known name nearest to ``name``, or ``""``."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
