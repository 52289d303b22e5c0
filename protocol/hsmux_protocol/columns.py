"""Columns: many values of one kind as one binary value.

A batch of 10,000 records as 10,000 msgpack values would be 10,000 objects to decode, check and
free. A column is one `bin`, so a batch costs the decoder two values and the C module can walk it
without Python.

A column of byte strings: `u32 n ‖ (n + 1) × u32 offsets ‖ bytes`; the first offset is 0, offsets
never go down, the last one is the number of bytes behind them. Item i is
`bytes[offset[i]:offset[i + 1]]`. A column of numbers: `u32 n ‖ n × number`. All numbers are
big-endian. Nothing else may stand in the value: no gap, no trailing byte.
"""

import struct
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Final

from .errors import RemoteProtocolError
from .limits import BATCH_ITEMS_MAX

__all__ = [
    "column_count",
    "column_size",
    "pack_column",
    "pack_u16_column",
    "pack_u32_column",
    "unpack_column",
    "unpack_u16_column",
    "unpack_u32_column",
]

_COUNT_SIZE: Final = 4


def column_size(item_sizes: Iterable[int]) -> int:
    """Bytes of a column of items of these sizes in bytes."""
    sizes = list(item_sizes)
    return _COUNT_SIZE * (len(sizes) + 2) + sum(sizes)


def column_count(column: bytes) -> int:
    """Number of items a column says it has; 0 for a value too short to say.

    The count is not checked against the rest of the value: `unpack_column` does that.
    """
    return int.from_bytes(column[:_COUNT_SIZE], "big") if len(column) >= _COUNT_SIZE else 0


def _packed_count(items: Sequence[object]) -> int:
    count = len(items)
    if count > BATCH_ITEMS_MAX:
        raise ValueError(f"{count} items; a column holds at most {BATCH_ITEMS_MAX}")
    return count


def pack_column(items: Sequence[bytes | bytearray | memoryview]) -> bytes:
    """Encode byte strings as one column.

    Args:
        items: At most `BATCH_ITEMS_MAX` byte strings of together less than 4 GiB.

    Raises:
        ValueError: There are more items than `BATCH_ITEMS_MAX`.
    """
    count = _packed_count(items)
    offsets = accumulate(map(len, items), initial=0)
    return struct.pack(f">I{count + 1}I", count, *offsets) + b"".join(items)


def _count(column: bytes, name: str) -> int:
    if len(column) < _COUNT_SIZE:
        raise RemoteProtocolError(f"{name}: a column has at least {_COUNT_SIZE} bytes")
    count = column_count(column)
    if count > BATCH_ITEMS_MAX:
        raise RemoteProtocolError(
            f"{name}: {count} items; a column holds at most {BATCH_ITEMS_MAX}"
        )
    return count


def unpack_column(column: bytes, *, name: str = "column") -> list[bytes]:
    """Decode a column of byte strings.

    Raises:
        RemoteProtocolError: The offsets do not describe exactly the bytes that follow them.
    """
    count = _count(column, name)
    start = _COUNT_SIZE * (count + 2)
    if len(column) < start:
        raise RemoteProtocolError(f"{name}: {count} items need {start} bytes of offsets")
    offsets = struct.unpack_from(f">{count + 1}I", column, _COUNT_SIZE)
    if offsets[0] != 0 or offsets[-1] != len(column) - start:
        raise RemoteProtocolError(f"{name}: the offsets do not cover the bytes exactly")
    # Before any item is cut out: offsets that jump would make each item the whole value.
    if sorted(offsets) != list(offsets):
        raise RemoteProtocolError(f"{name}: the offsets go down")
    return [column[start + a : start + b] for a, b in pairwise(offsets)]


def _pack_numbers(values: Sequence[int], code: str) -> bytes:
    count = _packed_count(values)
    try:
        return struct.pack(f">I{count}{code}", count, *values)
    except struct.error:
        raise ValueError("a number does not fit its column") from None


def _unpack_numbers(column: bytes, code: str, width: int, name: str) -> list[int]:
    count = _count(column, name)
    if len(column) != _COUNT_SIZE + width * count:
        raise RemoteProtocolError(
            f"{name}: {count} numbers need {_COUNT_SIZE + width * count} bytes"
        )
    return list(struct.unpack_from(f">{count}{code}", column, _COUNT_SIZE))


def pack_u16_column(values: Sequence[int]) -> bytes:
    """Encode numbers below 2^16, such as item statuses, as one column.

    Raises:
        ValueError: There are more numbers than `BATCH_ITEMS_MAX`, or one is out of range.
    """
    return _pack_numbers(values, "H")


def unpack_u16_column(column: bytes, *, name: str = "column") -> list[int]:
    """Decode a column of numbers below 2^16.

    Raises:
        RemoteProtocolError: The value's size is not what its count says.
    """
    return _unpack_numbers(column, "H", 2, name)


def pack_u32_column(values: Sequence[int]) -> bytes:
    """Encode numbers below 2^32, such as key versions, as one column.

    Raises:
        ValueError: There are more numbers than `BATCH_ITEMS_MAX`, or one is out of range.
    """
    return _pack_numbers(values, "I")


def unpack_u32_column(column: bytes, *, name: str = "column") -> list[int]:
    """Decode a column of numbers below 2^32.

    Raises:
        RemoteProtocolError: The value's size is not what its count says.
    """
    return _unpack_numbers(column, "I", 4, name)
