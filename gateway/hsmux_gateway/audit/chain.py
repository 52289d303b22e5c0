"""The hash chain of records and how it lies in a segment: bytes in, bytes out.

Theory of operation
-------------------
A chain is a sequence of record bodies, numbered from 1. After each there is a head:

    head 0 = SHA-256("hsmux audit chain 1" || 0x00 || deployment 16 || chain 16)
    head n = SHA-256(head n-1 || n as u64 || body n)

so a head says what every record before it was, in which order, of which chain and deployment.
The input of head 0 is of a fixed length and begins with a text; that of the others begins with
the output of SHA-256, so neither can be taken for the other.

A chain is cut into segments, files of a size fixed when they are made. A segment is

    header   "hsmuxlog" | format u32 = 1 | deployment 16 | chain 16 | segment u32 |
             first sequence u64 | size of the file u64 | head before the first record 32
    frames   length of the body u32 | body | head 32
    zeroes   up to the size

All numbers are big-endian. A length of zero, or no room for another length, is the end of what is
written; behind it there is nothing but zeroes. The heads in the frames could be computed; they are
there so that the first bad record is named by itself and not by everything behind it, and so that
a file whose end was torn is told from one that was changed.

Each byte of a header is held by something else: magic and format by this module, deployment, chain
and number by the place of the file, first sequence and head by the segment before, the size by the
file system. None is believed because it stands there.
"""

import struct
from collections.abc import Iterable, Iterator
from hashlib import sha256
from mmap import mmap
from typing import Final, NamedTuple

from .records import RECORD_SIZE_MAX

__all__ = [
    "FRAME_OVERHEAD",
    "HEADER_SIZE",
    "HEAD_SIZE",
    "BadFrame",
    "Frame",
    "Header",
    "Place",
    "end_of_chain",
    "extend",
    "first_head",
    "parse_header",
    "skim",
    "walk",
    "write_header",
    "zeroes_from",
]

HEAD_SIZE: Final = 32
_DOMAIN: Final = b"hsmux audit chain 1\0"
_MAGIC: Final = b"hsmuxlog"
_FORMAT: Final = 1
_HEADER: Final = struct.Struct(">8sI16s16sIQQ32s")
HEADER_SIZE: Final = _HEADER.size
_LENGTH: Final = struct.Struct(">I")
_LENGTH_SIZE: Final = _LENGTH.size
_SEQUENCE: Final = struct.Struct(">Q")
FRAME_OVERHEAD: Final = _LENGTH_SIZE + HEAD_SIZE
"""Bytes a record takes in a segment beside its body."""

_PIECE: Final = 1 << 20
"""Bytes that are looked at once where a whole file may be all zeroes."""

# A copy of a fresh hash costs less than a new one, which has to be looked up by OpenSSL.
_FRESH: Final = sha256()


class BadFrame(Exception):
    """What is wrong with a frame or header; the text is for people.

    Attributes:
        sequence: The record that should be there.
        offset: Where its frame begins.
    """

    def __init__(self, text: str, sequence: int, offset: int) -> None:
        super().__init__(text)
        self.sequence = sequence
        self.offset = offset


class Header(NamedTuple):
    """The beginning of a segment.

    Attributes:
        deployment: 16 bytes.
        chain: 16 bytes.
        segment: From 1.
        sequence: Of its first record.
        size: Bytes of the file.
        head: Before its first record.
    """

    deployment: bytes
    chain: bytes
    segment: int
    sequence: int
    size: int
    head: bytes


class Place(NamedTuple):
    """Between two records of a segment.

    Attributes:
        sequence: Of the next record.
        head: Before it.
        offset: Where it begins or would begin.
    """

    sequence: int
    head: bytes
    offset: int


Frame = tuple[int, int, bytes, bytes]
"""A record that follows from those before it: its number in the chain, where its frame ends in the
segment, its body, and the head after it. A plain tuple, since millions of them are made.
"""


def first_head(deployment: bytes, chain: bytes) -> bytes:
    """Head 0 of a chain."""
    return sha256(_DOMAIN + deployment + chain).digest()


def extend(head: bytes, sequence: int, bodies: Iterable[bytes]) -> tuple[bytes, bytes]:
    """The frames of records that come next.

    Args:
        head: Before the first of them.
        sequence: Of the first of them.
        bodies: The records.

    Returns:
        All frames together, and the head after the last.

    Raises:
        ValueError: A body is empty or too large.
    """
    parts: list[bytes] = []
    for body in bodies:
        if not 0 < len(body) <= RECORD_SIZE_MAX:
            raise ValueError(f"a record of {len(body)} bytes")
        state = _FRESH.copy()
        state.update(head + _SEQUENCE.pack(sequence) + body)
        head = state.digest()
        sequence += 1
        parts += (_LENGTH.pack(len(body)), body, head)
    return b"".join(parts), head


def write_header(header: Header) -> bytes:
    """The bytes of a header."""
    return _HEADER.pack(_MAGIC, _FORMAT, *header)


def parse_header(data: bytes | mmap) -> Header:
    """The header a segment begins with.

    Raises:
        BadFrame: It is cut short, or of no format that is known.
    """
    if len(data) < HEADER_SIZE:
        raise BadFrame("the header is cut short", 0, 0)
    magic, version, *rest = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _FORMAT:
        raise BadFrame("not a segment of a known format", 0, 0)
    return Header(*rest)


def walk(data: bytes | mmap, place: Place) -> Iterator[Frame]:
    """The frames of a segment from a place on, each checked against the one before it.

    Stops at the end of what is written. What lies behind that is looked at by `zeroes_from`.

    Raises:
        BadFrame: A frame does not follow.
    """
    sequence, head, offset = place
    length_of, number, fresh = _LENGTH.unpack_from, _SEQUENCE.pack, _FRESH.copy
    size = len(data)
    while offset <= size - _LENGTH_SIZE:
        (length,) = length_of(data, offset)
        if length == 0:
            return
        start = offset + _LENGTH_SIZE
        stop = start + length
        end = stop + HEAD_SIZE
        if length > RECORD_SIZE_MAX or end > size:
            raise BadFrame("a length that no record has here", sequence, offset)
        body = data[start:stop]
        state = fresh()
        state.update(head + number(sequence) + body)
        head = state.digest()
        if head != data[stop:end]:
            raise BadFrame("it does not follow from the record before it", sequence, offset)
        yield sequence, end, body, head
        sequence += 1
        offset = end


def skim(data: bytes | mmap, sequence: int) -> Iterator[tuple[int, bytes]]:
    """The records of a segment, not checked in any way: their numbers and bodies.

    Args:
        data: The segment.
        sequence: Of its first record.
    """
    offset, size, length_of = HEADER_SIZE, len(data), _LENGTH.unpack_from
    while offset <= size - _LENGTH_SIZE:
        (length,) = length_of(data, offset)
        start = offset + _LENGTH_SIZE
        offset = start + length + HEAD_SIZE
        if not 0 < length <= RECORD_SIZE_MAX or offset > size:
            return
        yield sequence, data[start : start + length]
        sequence += 1


def end_of_chain(data: bytes | mmap, place: Place) -> tuple[Place, bool]:
    """Where the records that follow from each other end, and whether what comes then is zeroes."""
    try:
        for sequence, end, _, head in walk(data, place):
            place = Place(sequence + 1, head, end)
    except BadFrame:
        return place, False
    return place, zeroes_from(data, place.offset) is None


def zeroes_from(data: bytes | mmap, offset: int) -> int | None:
    """The first byte from a place on that is not zero, or None."""
    for start in range(offset, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        if piece.count(0) != len(piece):
            return start + len(piece) - len(piece.lstrip(b"\0"))
    return None
