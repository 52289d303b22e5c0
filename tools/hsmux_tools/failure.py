"""What ends a verb: one line for the person at the terminal, and an exit code."""

from typing import Final

__all__ = [
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_OPERATOR",
    "EXIT_USAGE",
    "Failure",
    "visible",
]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
"""The same as an argument that the gateway refuses: the caller must change what was asked."""

EXIT_OPERATOR: Final = 8
"""An operator must act, and starting again changes nothing."""

EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as a shell reports a program that Ctrl-C ended."""


class Failure(Exception):
    """A verb cannot do what was asked.

    Attributes:
        text: What is wrong and what to do.
        exit_code: The exit code of the command.
    """

    def __init__(self, text: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(text)
        self.text = text
        self.exit_code = exit_code


def visible(text: str) -> str:
    """A text on one line and without control characters: what others wrote, a description or a
    file name, must not steer a terminal or break a table.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
