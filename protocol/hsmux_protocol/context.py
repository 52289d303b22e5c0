"""The encryption context in its one canonical form.

A context is authenticated with a ciphertext and never secret. Its canonical form is a msgpack map
from text to text in shortest form, keys strictly ascending by their UTF-8 bytes, no Unicode
normalisation, at most `CONTEXT_ENTRIES_MAX` entries and `CONTEXT_SIZE_MAX` bytes. The bytes on
the wire are the bytes that are authenticated; no context is the empty map, 0x80. Keys that begin
with `hsmux:` belong to the gateway and are refused from callers.
"""

import itertools
from collections.abc import Mapping
from typing import Final

import msgpack

from .errors import RemoteProtocolError
from .limits import CONTEXT_ENTRIES_MAX, CONTEXT_SIZE_MAX, QUOTED_MAX
from .scan import scan

__all__ = [
    "EMPTY_CONTEXT",
    "RESERVED_PREFIX",
    "check_decoded_context",
    "encode_context",
    "parse_context",
]

EMPTY_CONTEXT: Final = b"\x80"
RESERVED_PREFIX: Final = "hsmux:"


def encode_context(context: Mapping[str, str] | None, *, reserved: bool = False) -> bytes:
    """The canonical bytes of a context; None is the empty context.

    Args:
        context: Text keys and text values in any order.
        reserved: Allow keys that begin with `hsmux:`; only the gateway does.

    Raises:
        ValueError: A key or value is not text, a key is reserved, or a limit is passed; the text
            names it.
    """
    if context is None:
        return EMPTY_CONTEXT
    if not isinstance(context, Mapping):
        raise ValueError("context: a map from text to text")
    if not context:
        return EMPTY_CONTEXT
    if len(context) > CONTEXT_ENTRIES_MAX:
        raise ValueError(f"context: {len(context)} entries; at most {CONTEXT_ENTRIES_MAX}")
    for key, value in context.items():
        _check_entry(key, value, reserved)
    try:
        ordered = sorted(context.items(), key=lambda entry: entry[0].encode())
        encoded: bytes = msgpack.packb(dict(ordered))
    except UnicodeEncodeError:
        raise ValueError("context: a text that is not valid Unicode") from None
    if len(encoded) > CONTEXT_SIZE_MAX:
        raise ValueError(f"context: {len(encoded)} bytes; at most {CONTEXT_SIZE_MAX}")
    return encoded


def _check_entry(key: object, value: object, reserved: bool) -> None:
    if not isinstance(key, str) or not isinstance(value, str):
        raise ValueError("context: keys and values are text")
    if key.startswith(RESERVED_PREFIX) and not reserved:
        raise ValueError(
            f"context: key {key[:QUOTED_MAX]!r}: "
            f"names beginning with {RESERVED_PREFIX!r} are reserved"
        )


def check_decoded_context(value: object) -> bytes:
    """The canonical bytes of a context that was decoded from a scanned frame.

    Raises:
        ValueError: It is not a canonical context.
    """
    if not isinstance(value, dict):
        raise ValueError("context: a map from text to text")
    if not value:
        return EMPTY_CONTEXT
    encoded = encode_context(value)
    keys = [key.encode() for key in value]
    if any(a >= b for a, b in itertools.pairwise(keys)):
        raise ValueError("context: keys must ascend by their UTF-8 bytes")
    return encoded


def parse_context(encoded: bytes) -> dict[str, str]:
    """Decode canonical context bytes.

    Raises:
        RemoteProtocolError: The bytes are not the canonical form of a context.
    """
    if encoded == EMPTY_CONTEXT:
        return {}
    if len(encoded) > CONTEXT_SIZE_MAX:
        raise RemoteProtocolError(f"context: more than {CONTEXT_SIZE_MAX} bytes")
    scan(encoded)
    try:
        value = msgpack.unpackb(encoded)
        check_decoded_context(value)
    except ValueError as error:
        raise RemoteProtocolError(str(error)) from None
    context: dict[str, str] = value
    return context
