"""Reading an audit log as JSON lines: all of it, its end, or what belongs to a reference.

Whoever reads does not verify: each record is known to follow from the one before it in its file,
and that is all. Whether the log is whole and whose it is, says `verify`.

A record comes with its chain and its number in it, which name it for ever. Chains come one behind
the other, each in its own order; where records of several processes are to be in the order of time,
`at` is there to sort by.
"""

import re
from collections import deque
from collections.abc import Iterator
from itertools import chain as joined
from mmap import mmap
from pathlib import Path
from typing import Any

import msgspec

from .chain import HEADER_SIZE, BadFrame, Header, Place, parse_header, walk
from .layout import chain_directories, segment_paths
from .records import DONE, AnyRecord, MalformedRecord, Request, Run, export_record, read_record
from .segments import mapped

__all__ = [
    "Numbered",
    "UnreadableLog",
    "covers",
    "done_after",
    "export",
    "json_line",
    "last_records",
    "matching",
]

Numbered = tuple[str, int, AnyRecord]
"""A chain in hexadecimal, a record's number in it, and the record."""

_REFERENCE = re.compile(r"(r[0-9a-f]{12}-)([0-9a-f]{1,16})", re.ASCII)


class UnreadableLog(Exception):
    """A record does not follow from the one before it; the text names the file and the record."""


def _header(path: Path, data: bytes | mmap) -> Header:
    try:
        return parse_header(data)
    except BadFrame as error:
        raise UnreadableLog(f"{path}: {error}") from None


def _read_segment(path: Path) -> Iterator[Numbered]:
    chain = path.parent.name
    with mapped(path) as data:
        header = _header(path, data)
        try:
            place = Place(header.sequence, header.head, HEADER_SIZE)
            for sequence, _, body, _ in walk(data, place):
                yield chain, sequence, read_record(body)
        except BadFrame as error:
            raise UnreadableLog(f"{path}: record {error.sequence}: {error}") from None
        except MalformedRecord as error:
            raise UnreadableLog(f"{path}: not a record of a known kind: {error}") from None


def export(directory: Path) -> Iterator[Numbered]:
    """Every record of a log.

    Raises:
        UnreadableLog: From here on the chain cannot be read.
        OSError: The log cannot be read.
    """
    for chain in chain_directories(directory):
        for path in segment_paths(chain).values():
            yield from _read_segment(path)


def last_records(directory: Path, count: int) -> list[Numbered]:
    """The newest records of all chains, in the order of time; only the ends are read.

    Raises:
        UnreadableLog, OSError: As for `export`.
    """
    found: list[Numbered] = []
    for chain in chain_directories(directory):
        newest: deque[Numbered] = deque()
        for path in reversed(segment_paths(chain).values()):
            # The end of a segment, before what is already there.
            part = deque(_read_segment(path), maxlen=count)
            newest = deque(joined(part, newest), maxlen=count)
            if len(newest) == count:
                break
        found += newest
    found.sort(key=lambda numbered: numbered[2].at_ms)
    return found[-count:] if count else []


def done_after(directory: Path, sequence: int) -> set[str]:
    """The references of requests that were done, in a chain behind a record.

    Args:
        directory: The chain's own.
        sequence: Segments that end with this record or before are not read.

    Raises:
        UnreadableLog, OSError: As for `export`.
    """
    wanted: list[Path] = []
    for path in reversed(segment_paths(directory).values()):
        wanted.append(path)
        with mapped(path) as data:
            if _header(path, data).sequence <= sequence:
                break
    return {
        record.reference
        for path in reversed(wanted)
        for _, number, record in _read_segment(path)
        if number > sequence and isinstance(record, Request) and record.outcome == DONE
    }


def covers(record: AnyRecord, reference: str) -> bool:
    """Whether a record is about the request of a reference, alone or in a run."""
    if isinstance(record, Request):
        return record.reference == reference
    if not isinstance(record, Run):
        return False
    first, last, asked = (
        _REFERENCE.fullmatch(text) for text in (record.first, record.last, reference)
    )
    if first is None or last is None or asked is None or first[1] != asked[1]:
        return reference in (record.first, record.last)
    return int(first[2], 16) <= int(asked[2], 16) <= int(last[2], 16)


def matching(directory: Path, reference: str) -> Iterator[Numbered]:
    """The records of a reference, which an answer, an error or a log line names.

    Raises:
        UnreadableLog, OSError: As for `export`.
    """
    return (numbered for numbered in export(directory) if covers(numbered[2], reference))


def json_line(numbered: Numbered) -> bytes:
    """A record as one line of JSON."""
    chain, sequence, record = numbered
    line: dict[str, Any] = {"chain": chain, "sequence": sequence} | export_record(record)
    return msgspec.json.encode(line) + b"\n"
