"""How data comes into the command: a file or standard input, never more than a limit."""

import base64
import binascii
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from hsmux_protocol.envelope import FORMAT, MAGIC, parse_header
from hsmux_protocol.errors import InvalidCiphertext, InvalidSignature

from .failure import EXIT_USAGE, Failure
from .output import talk

__all__ = [
    "about",
    "pairs_of",
    "read_envelope",
    "read_input",
    "read_limited",
    "shown_name",
    "unpack_base64",
]

BASE64_MAGIC: Final = base64.b64encode(MAGIC + bytes([FORMAT]))
"""How an envelope in base64 begins; an envelope itself never begins so."""


def shown_name(name: str) -> str:
    """How an error calls an input."""
    return "standard input" if name == "-" else name


@contextmanager
def about(name: str) -> Iterator[None]:
    """Inside, an error about what an input holds names that input.

    Args:
        name: The input, as `read_input` takes it.
    """
    try:
        yield
    except (InvalidCiphertext, InvalidSignature) as error:
        text = f"{shown_name(name)}: {error.text}"
        raise type(error)(text, reference=error.reference) from None


def read_limited(stream: IO[bytes], size_max: int) -> bytes:
    """At most one byte more than a limit, so that the caller sees that it was passed."""
    pieces, left = [], size_max + 1
    while left > 0 and (piece := stream.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def read_input(name: str, size_max: int, remedy: str) -> bytes:
    """What a file or standard input (`-`) holds.

    Args:
        name: The file.
        size_max: Bytes it may have.
        remedy: What to do when it has more.

    Raises:
        Failure: It has more.
    """
    if name == "-":
        if sys.stdin.isatty():
            talk("reading from the terminal; Ctrl-D ends it")
        data = read_limited(sys.stdin.buffer, size_max)
    else:
        with Path(name).open("rb") as file:
            data = read_limited(file, size_max)
    if len(data) > size_max:
        raise Failure(f"{shown_name(name)}: more than {size_max} bytes; {remedy}", EXIT_USAGE)
    return data


def read_envelope(name: str, size_max: int) -> bytes:
    """An envelope from a file or standard input, as bytes or as base64.

    Raises:
        Failure: It is none; whether it opens only the gateway knows.
    """
    remedy = "this is not one envelope"
    data = read_input(name, (size_max + 2) // 3 * 4 + size_max // 32, remedy)
    if data.startswith(BASE64_MAGIC):
        data = unpack_base64(name, data)
    if len(data) > size_max:
        raise Failure(f"{shown_name(name)}: more than {size_max} bytes; {remedy}", EXIT_USAGE)
    try:
        parse_header(data)
    except ValueError as error:
        raise Failure(f"{shown_name(name)}: {error}", EXIT_USAGE) from None
    return data


def unpack_base64(name: str, data: bytes) -> bytes:
    """Bytes from their base64, lines and spaces allowed.

    Raises:
        Failure: It is not base64.
    """
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error:
        raise Failure(f"{shown_name(name)}: damaged base64", EXIT_USAGE) from None


def pairs_of(option: str, texts: Iterable[str]) -> dict[str, str]:
    """A map from `NAME=VALUE` words.

    Raises:
        Failure: A word has no `=`, or a name comes twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise Failure(f"{option} {text}: expected NAME=VALUE", EXIT_USAGE)
        if name in pairs:
            raise Failure(f"{option} {name}: given twice", EXIT_USAGE)
        pairs[name] = value
    return pairs
