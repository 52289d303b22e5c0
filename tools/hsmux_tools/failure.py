"""What ends a verb: one line for the person at the terminal, and an exit code.

`EXIT_CODES` is the one table of them; the help shows it and `docs/exit-codes.md` is made from it.
The gateway's own errors (`hsmux_gateway.errors`) and those of the protocol (`HsmuxError.exit_code`)
use the same numbers with the same meaning.
"""

from typing import Final, NamedTuple

__all__ = [
    "EXIT_CODES",
    "EXIT_CONFLICT",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_OPERATOR",
    "EXIT_USAGE",
    "Exit",
    "Failure",
    "visible",
]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
"""The same as an argument that the gateway refuses: the caller must change what was asked."""

EXIT_CONFLICT: Final = 6
"""The same as a name that is taken in the gateway."""

EXIT_OPERATOR: Final = 8
"""An operator must act, and starting again changes nothing."""

EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as a shell reports a program that Ctrl-C ended."""


class Exit(NamedTuple):
    """What one exit code means.

    Attributes:
        short: A few words for the help.
        meaning: When it is used.
        examples: States that end with it; a test brings each of them about.
    """

    short: str
    meaning: str
    examples: tuple[str, ...]


EXIT_CODES: Final[dict[int, Exit]] = {
    0: Exit("done", "What was asked is done.", ("a signature is valid", "`serve` ended in order")),
    1: Exit(
        "failed",
        "A fault of the gateway or of this machine, or a change whose outcome is unknown.",
        ("the disk is full",),
    ),
    2: Exit(
        "wrong argument",
        "The command line, a file or profile that it names, or the configuration is wrong.",
        (
            "an unknown option or verb",
            "a file that is not there",
            "`decrypt` of what is no envelope",
            "a profile's private key that others can use",
            "a fault in the configuration",
            "the configuration names a PIN file, a module or a SoftHSM configuration that is not "
            "there",
        ),
    ),
    3: Exit("not found", "Nothing has that name.", ("no such key", "no such profile")),
    4: Exit(
        "denied",
        "One side does not accept the other, or the client key may not do this, or not alone.",
        (
            "a revoked client key",
            "no policy allows it",
            "`policy test` of what would be denied",
            "the gateway's certificate is not of the profile's CA",
        ),
    ),
    5: Exit(
        "try later",
        "Something is away or busy, or the time ran out; the same may work later.",
        ("the gateway does not run", "the HSM does not answer when the gateway starts"),
    ),
    6: Exit(
        "conflict or state",
        "What is there does not allow it.",
        (
            "an alias or the name of an access point is taken",
            "a profile is there already",
            "a file to write is there already",
            "the token to make is there already",
        ),
    ),
    7: Exit(
        "invalid ciphertext or signature",
        "Data is not what its owner made.",
        ("`decrypt` with another context", "`verify` of a changed file", "a changed audit log"),
    ),
    8: Exit(
        "an operator must act",
        "The gateway's machine must be changed first; asking or starting again changes nothing.",
        (
            "no token has the label",
            "a refused PIN",
            "a PIN or a root key that others read",
            "an `instance_dir` or address in use",
            "a store that was never made",
            "the gateway is not installed",
        ),
    ),
    130: Exit("interrupted", "Ctrl-C, as shells report it (128 + SIGINT).", ("Ctrl-C",)),
}
"""One meaning each, in every verb."""


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
