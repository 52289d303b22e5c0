"""Columns built by hand, well-formed and not: u32 n | (n + 1) x u32 offsets | bytes, big-endian."""

import itertools
import struct
from collections.abc import Sequence


def column(items: Sequence[bytes]) -> bytes:
    """A well-formed column."""
    ends = [0]
    for item in items:
        ends.append(ends[-1] + len(item))
    return struct.pack(f">I{len(ends)}I", len(items), *ends) + b"".join(items)


def items_of(data: bytes) -> list[bytes]:
    """The items of a column that is well-formed."""
    (count,) = struct.unpack_from(">I", data)
    ends = struct.unpack_from(f">{count + 1}I", data, 4)
    start = 4 * (count + 2)
    assert ends[0] == 0 and len(data) == start + ends[-1]
    return [data[start + a : start + b] for a, b in itertools.pairwise(ends)]


def _raw(count: int, ends: Sequence[int], rest: bytes = b"") -> bytes:
    return struct.pack(f">I{len(ends)}I", count, *ends) + rest


MALFORMED = {
    "nothing": b"",
    "a count cut short": b"\0\0\0",
    "no offset": _raw(0, []),
    "bytes behind no items": _raw(0, [0], b"x"),
    "an offset too few": _raw(2, [0, 0]),
    "an offset too many": _raw(1, [0, 0, 0]),
    "the first offset is not 0": _raw(1, [1, 1], b"x"),
    "offsets that go back": _raw(2, [0, 2, 1], b"x"),
    "one byte too few": _raw(1, [0, 2], b"x"),
    "one byte too many": _raw(1, [0, 1], b"xy"),
    "the largest offset": _raw(1, [0, 2**32 - 1], b"x"),
    "the largest count": _raw(2**32 - 1, [0, 0]),
    "a count whose table would wrap": _raw(2**30 - 1, [0, 0]),
    "one item over the limit": _raw(16385, [0] * 16386),
}
"""What no function takes, by what is wrong with it."""
