"""Errors an operator sees: one line that names the place and the remedy, and an exit code."""

from typing import Final

__all__ = ["EXIT_OPERATOR", "OperatorError"]

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
