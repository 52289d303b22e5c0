"""Errors an operator sees: one line that names the place and the remedy, and an exit code.

The codes are those of the `hsmux` command; `docs/exit-codes.md` lists them all.
"""

from typing import Final, TypeVar

__all__ = [
    "EXIT_AGAIN",
    "EXIT_CONFIGURATION",
    "EXIT_CONFLICT",
    "EXIT_OPERATOR",
    "OperatorError",
    "first_of",
    "in_words",
]

E = TypeVar("E", bound=BaseException)

EXIT_CONFIGURATION: Final = 2
"""Exit code: the configuration is wrong, or names what is not there or cannot be read."""

EXIT_AGAIN: Final = 5
"""Exit code: something is away or broke; starting again may help."""

EXIT_CONFLICT: Final = 6
"""Exit code: what should be made is there already."""

EXIT_OPERATOR: Final = 8
"""Exit code: an operator must act, and starting again changes nothing."""


class OperatorError(Exception):
    """The gateway cannot start or go on until somebody acts.

    Attributes:
        text: What is wrong, where, and what to do.
        exit_code: The exit code of the command.
    """

    def __init__(self, text: str, *, exit_code: int = EXIT_OPERATOR) -> None:
        super().__init__(text)
        self.text = text
        self.exit_code = exit_code


def first_of(group: BaseExceptionGroup[E]) -> E:
    """The first exception in the depths of a group; nurseries wrap what they raise."""
    error = group.exceptions[0]
    return first_of(error) if isinstance(error, BaseExceptionGroup) else error


def in_words(error: Exception) -> str:
    """An error for people: a system's one without its number, with the file it is about."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
