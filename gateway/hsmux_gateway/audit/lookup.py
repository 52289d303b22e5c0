"""Finding the record of a reference in a log, the newest first and only so far.

A reference has no time in it, so segments are looked at from the newest back. The part of it that
names a process is looked for in the whole segment at once, which costs what reading memory costs;
only segments of that process are taken to pieces. Nothing is verified here.
"""

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ..access.decision import DEFAULT_DENIAL
from .chain import BadFrame, parse_header, skim
from .layout import chain_directories, segment_paths
from .reading import covers
from .records import MalformedRecord, Request, Run, read_record, write_record
from .segments import mapped

__all__ = [
    "LOOKUP_BYTES_MAX",
    "QUORUM",
    "Decided",
    "Found",
    "decided_by",
    "find_in_segment",
    "is_reference",
    "newest_segments",
]

LOOKUP_BYTES_MAX: Final = 1 << 30
"""Bytes of segments that a gateway looks through for one reference."""

_REFERENCE: Final = re.compile(r"(r[0-9a-f]{12}-)[0-9a-f]{1,16}", re.ASCII)
_DECIDED: Final = re.compile(r"(allowed|denied) by (\S+) (statement .+?)(?=; [a-z_]+: |$)")
QUORUM: Final = "; quorum: "
"""What stands in a statement between that of a policy and what approvals decided."""

_NOBODY: Final = ("", bytes(16), bytes(16), "")
_RUN: Final = write_record(Run(0, "", "", 0, *_NOBODY, 0, "", "", b"", 0, b"", 0, 0, 0))[:4]
"""What the body of a run begins with: the size of its array and its kind."""


class Found(NamedTuple):
    """A record, and its place.

    Attributes:
        chain: In hexadecimal.
        sequence: Its number there.
        record: Of one request, or of several that came together.
    """

    chain: str
    sequence: int
    record: Request | Run


class Decided(NamedTuple):
    """A statement as a record names it.

    Attributes:
        policy: The policy's name.
        label: The policy and the statement, as explanations name it.
    """

    policy: str
    label: str


def is_reference(text: str) -> bool:
    """Whether a text has the form of a reference."""
    return _REFERENCE.fullmatch(text) is not None


def newest_segments(root: Path, bytes_max: int | None = None) -> Iterator[Path]:
    """The segments of a log, the newest first.

    Args:
        root: The directory of the log.
        bytes_max: Those that fit into so many bytes, and one at least; None: all.
    """
    found = []
    for directory in chain_directories(root):
        for number, path in segment_paths(directory).items():
            try:
                state = path.stat()
            except OSError:
                # It was removed meanwhile.
                continue
            if not stat.S_ISREG(state.st_mode):
                continue
            found.append((state.st_mtime_ns, number, state.st_size, path))
    size = 0
    for *_, bytes_of_it, path in sorted(found, reverse=True):
        size += bytes_of_it
        yield path
        if bytes_max is not None and size >= bytes_max:
            return


def find_in_segment(path: Path, reference: str) -> Found | None:
    """The newest record of a reference in a segment; None if it has none, or is gone.

    A change may have two: what its caller was told, and that it was made. The second decides.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        return None
    process, wanted = match[1].encode(), reference.encode()
    found: Found | None = None
    try:
        with mapped(path) as data:
            if data.find(process) < 0:
                return None
            for sequence, body in skim(data, parse_header(data).sequence):
                if wanted in body or (body.startswith(_RUN) and process in body):
                    record = read_record(body)
                    if isinstance(record, Request | Run) and covers(record, reference):
                        found = Found(path.parent.name, sequence, record)
    except (OSError, BadFrame, MalformedRecord):
        # It was removed meanwhile, or is no segment: `verify` tells.
        return found
    return found


def decided_by(record: Request | Run) -> Decided | None:
    """The statement that decided on a request; None if none did."""
    # Behind it are names that people gave, which could look like anything.
    by_policies = record.statement.partition(QUORUM)[0]
    match = list(_DECIDED.finditer(by_policies))
    if not match or by_policies.endswith(DEFAULT_DENIAL):
        return None
    _, policy, statement = match[-1].groups()
    return Decided(policy, f"{policy} {statement}")
