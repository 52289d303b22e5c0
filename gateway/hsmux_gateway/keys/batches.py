"""Batches of encrypt and decrypt: what fits, which context goes with which item, what each became.

A batch has one key, one answer and a status for each item. Its columns come from outside, so they
are checked here once and then handed to the C module or a token as they are.
"""

import struct
from collections.abc import Sequence
from typing import Final

from hsmux_protocol.columns import (
    column_count,
    pack_column,
    pack_u16_column,
    unpack_column,
)
from hsmux_protocol.context import EMPTY_CONTEXT, RESERVED_PREFIX, parse_context
from hsmux_protocol.errors import (
    DeadlineExceeded,
    InvalidArgument,
    InvalidCiphertext,
    RemoteProtocolError,
    TooLarge,
    Unavailable,
)
from hsmux_protocol.limits import FRAME_SIZE_MAX, SECTION_OVERHEAD_SIZE

__all__ = [
    "DECRYPT_ITEM_SIZE",
    "DECRYPT_STATUS",
    "ENCRYPT_ITEM_SIZE",
    "ENCRYPT_STATUS",
    "check_context",
    "check_fits",
    "context_column",
    "read_column",
    "read_contexts",
    "repeat_u32",
    "status_column",
]

ANSWER_SIZE_MAX: Final = FRAME_SIZE_MAX - SECTION_OVERHEAD_SIZE
"""Bytes of an answer that items can take."""

ENCRYPT_ITEM_SIZE: Final = 4 + 2
"""Bytes an item adds to an answer beside its own: an offset and a status."""

DECRYPT_ITEM_SIZE: Final = 4 + 2 + 4
"""The same: an offset, a status and a version."""

# Item statuses of the C module and of tokens, as error numbers: done, invalid, too large, late,
# unavailable.
ENCRYPT_STATUS: Final = (
    0,
    InvalidArgument.number,
    TooLarge.number,
    DeadlineExceeded.number,
    Unavailable.number,
)
DECRYPT_STATUS: Final = (
    0,
    InvalidCiphertext.number,
    InvalidCiphertext.number,
    DeadlineExceeded.number,
    Unavailable.number,
)


def read_column(column: bytes, name: str) -> list[bytes]:
    """The items of a column that came as an argument.

    Raises:
        InvalidArgument: It is malformed.
    """
    try:
        return unpack_column(column, name=name)
    except RemoteProtocolError as error:
        raise InvalidArgument(str(error)) from None


def read_contexts(context: bytes, contexts: bytes | None, count: int) -> list[bytes]:
    """The contexts of a batch: one for all, or one for each item, not yet checked.

    Args:
        context: The canonical context for all items; empty when `contexts` is given.
        contexts: A column of contexts, or None.
        count: Items in the batch.

    Raises:
        InvalidArgument: Both are given, or the numbers differ.
    """
    if contexts is None:
        return [context]
    if context != EMPTY_CONTEXT:
        raise InvalidArgument("give either context or contexts, not both")
    items = read_column(contexts, "contexts")
    if len(items) != count:
        raise InvalidArgument(f"contexts: {len(items)} for {count} items")
    return items


def check_context(encoded: bytes) -> None:
    """Check a context that came in a column.

    Raises:
        InvalidArgument: It is not canonical, or uses a reserved name.
    """
    try:
        context = parse_context(encoded)
    except RemoteProtocolError as error:
        raise InvalidArgument(f"contexts: {error}") from None
    if any(key.startswith(RESERVED_PREFIX) for key in context):
        raise InvalidArgument(f"contexts: names beginning with {RESERVED_PREFIX!r} are reserved")


def context_column(prefix: bytes, contexts: Sequence[bytes]) -> bytes:
    """A column of `prefix ‖ context`: the associated data of a batch."""
    return pack_column([prefix + context for context in contexts])


def check_fits(column: bytes, growth_size: int, item_size: int) -> None:
    """Refuse a batch whose answer would be too large, before anything is done.

    Args:
        column: The items as they came.
        growth_size: Bytes an item grows by; negative when it shrinks.
        item_size: Bytes an item adds to the answer beside its own.

    Raises:
        TooLarge: The answer would pass the frame cap; the text names how many items fit.
        InvalidArgument: The column is malformed.
    """
    count = column_count(column)
    if len(column) + count * (max(growth_size, 0) + item_size) <= ANSWER_SIZE_MAX:
        return
    used = fitting = 0
    for item in read_column(column, "items"):
        used += max(len(item) + growth_size, 0) + item_size
        fitting += used <= ANSWER_SIZE_MAX
    if fitting < count:
        raise TooLarge(f"the answer to {count} items is too large; the first {fitting} fit")


def status_column(statuses: Sequence[int], table: Sequence[int]) -> bytes:
    """Item statuses as a column of error numbers.

    Args:
        statuses: Numbers of the C module or a token, one an item.
        table: What each number is as an error.
    """
    if bytes(statuses).count(0) == len(statuses):
        return len(statuses).to_bytes(4, "big") + bytes(2 * len(statuses))
    return pack_u16_column([table[status] for status in statuses])


def repeat_u32(value: int, count: int) -> bytes:
    """A column of the same number."""
    return struct.pack(">I", count) + struct.pack(">I", value) * count
