"""The verifier: whether an audit log is what was written, from a copy and the public key alone.

Theory of operation
-------------------
Three things hold a log together, and each is checked on its own:

* in a chain every record holds what came before it: a record that was changed, dropped, doubled
  or exchanged, and a byte that was changed anywhere, is the first that does not follow;
* each segment follows from the one before it, has its full size, and is empty behind its end;
  the first one begins the chain, or a `retired` record under a checkpoint names what is gone;
* signed checkpoints follow each other, and say how far each chain went and with which head; the
  first one has number 1, or a `checkpoints_retired` record under a checkpoint names what is gone.

What a chain alone cannot tell is that its end is missing, or that all of it was written anew by
somebody who can write the files. Up to the last checkpoint the checkpoints tell; behind it, and if
the newest checkpoints were removed together with the records, only a checkpoint from outside does.
So the report says of every chain how many records are behind the last checkpoint, and takes an
older checkpoint to compare: the log must contain it or, if the checkpoint is newer, is found to be
shorter. One that is older than all that are there is held against the chains themselves.

Everything is read as a stream: segments are mapped, checkpoints are read once to be verified and
once for each chain, so memory does not grow with the log. Nothing is written and no network, store,
HSM or gateway is needed. A log that is being written can be verified as well: what comes behind the
moment of looking is behind the last checkpoint that was read.

After the first thing that is wrong with a chain, nothing behind it in that chain is believed or
looked at; other chains are.
"""

import base64
import itertools
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from mmap import mmap
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from .chain import (
    HEADER_SIZE,
    BadFrame,
    Header,
    Place,
    first_head,
    parse_header,
    walk,
    zeroes_from,
)
from .checkpoints import BEFORE_FIRST, BadCheckpoint, Checkpoint, read_note, split_notes
from .layout import (
    CHECKPOINTS,
    CHECKPOINTS_NEW,
    PUBLIC_KEY,
    chain_directories,
    chain_of,
    is_known,
    segment_paths,
)
from .records import CheckpointsRetired, MalformedRecord, Retired, read_record
from .segments import ChainEnd, mapped

__all__ = ["PROBLEMS_MAX", "ChainReport", "Problem", "Report", "verify"]

PROBLEMS_MAX: Final = 100
"""Problems that are told; one is enough to distrust a log."""

_OUTSIDE: Final = "the checkpoint to compare"

Progress = Callable[[int], None]
"""Is told the number of records so far, after each segment."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong.

    Attributes:
        what: For people.
        chain: In hexadecimal, or empty if it is about the checkpoints.
        sequence: The record, or the number of the checkpoint; None if it is about no single one.
        file: Below the directory of the log.
        offset: Where in that file, in bytes; None if it is about no place.
    """

    what: str
    chain: str = ""
    sequence: int | None = None
    file: str = ""
    offset: int | None = None

    def __str__(self) -> str:
        place = [self.file] if self.file else [f"chain {self.chain}"] if self.chain else []
        if self.sequence is not None:
            place.append(f"{'record' if self.chain else 'checkpoint'} {self.sequence}")
        if self.offset is not None:
            place.append(f"byte {self.offset}")
        return f"{', '.join(place)}: {self.what}" if place else self.what


@dataclass(slots=True)
class ChainReport:
    """What was found of one chain.

    Attributes:
        chain: In hexadecimal.
        first: The first record that is there.
        last: The last record that was verified.
        checkpointed: The last record that a checkpoint holds.
    """

    chain: str
    first: int = 0
    last: int = 0
    checkpointed: int = 0

    @property
    def behind(self) -> int:
        """Records behind the last checkpoint: they follow from each other, and that is all."""
        return max(0, self.last - self.checkpointed)


@dataclass(slots=True)
class Report:
    """What became of a verification.

    Attributes:
        problems: In the order in which they were found; empty if all is well.
        chains: Every chain that is there.
        checkpoints: How many were verified.
        checkpoint_at_ms: When the last of them was made.
        deployment: In hexadecimal, as the checkpoints or the first segment say.
        records: How many were verified.
        elapsed_s: For all.
    """

    problems: list[Problem] = field(default_factory=list)
    chains: list[ChainReport] = field(default_factory=list)
    checkpoints: int = 0
    checkpoint_at_ms: int = 0
    deployment: str = ""
    records: int = 0
    elapsed_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def first_bad(self) -> Problem | None:
        """The first thing that is wrong."""
        return self.problems[0] if self.problems else None

    @property
    def behind(self) -> int:
        """Records behind the last checkpoint, in all chains."""
        return sum(chain.behind for chain in self.chains)

    def to_json(self) -> dict[str, Any]:
        """The report as values of JSON, with stable names."""
        rate = round(self.records / self.elapsed_s) if self.elapsed_s else None
        chains = [asdict(chain) | {"behind": chain.behind} for chain in self.chains]
        return (
            {"ok": self.ok}
            | asdict(self)
            | {
                "chains": chains,
                "behind": self.behind,
                "records_per_s": rate,
            }
        )


def verify(
    directory: Path,
    public_key: ec.EllipticCurvePublicKey,
    *,
    older_checkpoint: bytes | None = None,
    expected_chains: Collection[bytes] = (),
    progress: Progress | None = None,
) -> Report:
    """Verify an audit log.

    Args:
        directory: The log, or a copy of it.
        public_key: Of the checkpoints, from `load_public_key`, kept apart from the log.
        older_checkpoint: A note that was put aside earlier.
        expected_chains: Chains, 16 bytes each, that must be there.
        progress: Called with the number of records so far, after each segment.

    Raises:
        OSError: The log cannot be read.
    """
    started = time.perf_counter()
    verification = _Verification(directory, public_key)
    verification.read_checkpoints(older_checkpoint)
    verification.read_chains(expected_chains, progress or (lambda records: None))
    report = verification.report
    report.elapsed_s = time.perf_counter() - started
    return report


class _Bad(Exception):
    """Something is wrong that ends what is being read."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _Verification:
    """One run: what is known so far."""

    def __init__(self, directory: Path, key: ec.EllipticCurvePublicKey) -> None:
        self.report = Report()
        self._directory = directory
        self._key = key
        self._first: Checkpoint | None = None
        self._last: Checkpoint | None = None
        self._count = 0
        self._before: Checkpoint | None = None
        self._older: Checkpoint | None = None

    def _wrong(self, what: str, **place: Any) -> None:
        if len(self.report.problems) < PROBLEMS_MAX:
            self.report.problems.append(Problem(what, **place))

    # Checkpoints

    def read_checkpoints(self, older: bytes | None) -> None:
        """Verify the file of checkpoints up to the first that is wrong, and hold it against one."""
        compared = self._read_older(older) if older is not None else None
        path = self._directory / CHECKPOINTS
        notes = split_notes(path) if path.exists() else iter(())
        for offset, note in notes:
            try:
                checkpoint = read_note(note, self._key, signatures_max=1)
                _check_follows(checkpoint, self._last)
            except BadCheckpoint as error:
                number = self._last.number + 1 if self._last else 1
                self._wrong(str(error), sequence=number, file=CHECKPOINTS, offset=offset)
                break
            if compared is not None and checkpoint.number == compared.number:
                self._compare(compared, checkpoint)
            self._first = self._first or checkpoint
            self._last = checkpoint
            self._count += 1
        last = self._last
        if last is None:
            self._wrong("there are no checkpoints: nothing says that the records are all")
        if compared is not None and (last is None or last.number < compared.number):
            self._older = compared
            self._wrong(
                "the log ends before it: it was shortened, or this is an older copy",
                sequence=compared.number,
                file=_OUTSIDE,
            )
        if compared is not None and self._first and compared.number < self._first.number:
            self._before = compared
            if compared.deployment != self._first.deployment:
                self._wrong("it is of another deployment", file=_OUTSIDE)
        self._note(last or compared)

    def _note(self, last: Checkpoint | None) -> None:
        if last is not None:
            self.report.deployment = last.deployment.hex()
        if self._last is not None:
            self.report.checkpoints = self._count
            self.report.checkpoint_at_ms = self._last.at_ms

    def _read_older(self, note: bytes) -> Checkpoint | None:
        try:
            return read_note(note, self._key)
        except BadCheckpoint as error:
            self._wrong(str(error), file=_OUTSIDE)
            return None

    def _compare(self, older: Checkpoint, stored: Checkpoint) -> None:
        # Not their digests: one from outside may carry more signatures.
        if replace(older, digest=stored.digest) != stored:
            self._wrong("the log has another one", sequence=older.number, file=_OUTSIDE)

    def _anchors(self, chain: bytes) -> Iterator[ChainEnd]:
        """How far checkpoints say that a chain goes, in order; those that were verified alone."""
        if self._before is not None and chain in self._before.chains:
            yield self._before.chains[chain]
        if self._last is not None:
            pattern = re.compile(rb"^chain %s ([0-9]+) (\S+)$" % chain.hex().encode(), re.MULTILINE)
            notes = split_notes(self._directory / CHECKPOINTS)
            for _, note in itertools.islice(notes, self._count):
                found = pattern.search(note)
                if found:
                    yield ChainEnd(int(found[1]), base64.b64decode(found[2]))
        if self._older is not None and chain in self._older.chains:
            yield self._older.chains[chain]

    # Chains

    def read_chains(self, expected: Collection[bytes], progress: Progress) -> None:
        """Verify every chain, that none is missing and that there is nothing else."""
        directories = chain_directories(self._directory)
        there = {chain_of(directory) for directory in directories}
        signed = set[bytes]().union(
            *(one.chains for one in (self._before, self._last, self._older) if one)
        )
        for chain in sorted((signed | set(expected)) - there):
            self._wrong("the whole chain is missing", chain=chain.hex())
        known = {
            CHECKPOINTS,
            CHECKPOINTS_NEW,
            PUBLIC_KEY,
            *(directory.name for directory in directories),
        }
        for name in sorted(path.name for path in self._directory.iterdir()):
            if name not in known:
                self._wrong("this is no part of the log", file=name)
        told: CheckpointsRetired | None = None
        for directory in directories:
            anchors = self._anchors(chain_of(directory))
            reading = _Chain(directory, self.report, anchors, progress)
            try:
                reading.read()
            except _Bad as bad:
                place = asdict(bad.problem)
                self._wrong(place.pop("what"), **place)
            gone = reading.checkpoints_gone
            if gone is not None and (told is None or told.number < gone.number):
                told = gone
        self._check_first(told)

    def _check_first(self, told: CheckpointsRetired | None) -> None:
        """Whether checkpoints that are not there were removed on purpose."""
        first = self._first
        if first is None or first.number == 1:
            return
        gone = first.number - 1
        is_told = told is not None and told.number >= gone
        if told is not None and told.number == gone:
            is_told = told.digest == first.previous
        if not is_told:
            self._wrong(
                f"checkpoints up to {gone} are missing and no record says that they were retired",
                sequence=1,
                file=CHECKPOINTS,
                offset=0,
            )


def _check_follows(checkpoint: Checkpoint, last: Checkpoint | None) -> None:
    if last is None:
        if checkpoint.number == 1 and checkpoint.previous != BEFORE_FIRST:
            raise BadCheckpoint("it does not begin a log")
        return
    if checkpoint.number != last.number + 1:
        raise BadCheckpoint(f"its number is {checkpoint.number}: others are missing")
    if checkpoint.previous != last.digest:
        raise BadCheckpoint("it does not follow from the checkpoint before it")
    if checkpoint.deployment != last.deployment:
        raise BadCheckpoint("it is of another deployment")
    for chain, end in last.chains.items():
        now = checkpoint.chains.get(chain)
        if now is None or now.sequence < end.sequence:
            raise BadCheckpoint(f"chain {chain.hex()} was longer at the checkpoint before it")


_RETIRING: Final = (Retired, CheckpointsRetired)
"""Records that say what was removed on purpose."""

_NEVER: Final = ChainEnd(2**64, b"")
"""Stands for the next checkpoint where there is none."""


class _Chain:
    """One chain that is being read."""

    def __init__(
        self, directory: Path, report: Report, anchors: Iterator[ChainEnd], progress: Progress
    ) -> None:
        self._directory = directory
        self._anchors = anchors
        self._due = next(anchors, _NEVER)
        self._all = report
        self._progress = progress
        self._gone: ChainEnd | None = None
        self._told_at: int | None = None
        self._retired: list[tuple[int, CheckpointsRetired]] = []
        self._name = ""
        self.report = ChainReport(directory.name)
        report.chains.append(self.report)

    def _bad(self, what: str, sequence: int | None = None, offset: int | None = None) -> _Bad:
        file = f"{self._directory.name}/{self._name}" if self._name else ""
        return _Bad(Problem(what, self._directory.name, sequence, file, offset))

    def read(self) -> None:
        """Read all segments; raises _Bad at the first thing that is wrong."""
        for name in sorted(path.name for path in self._directory.iterdir()):
            if not is_known(name):
                self._name = name
                raise self._bad("this is no part of the log")
        end: ChainEnd | None = None
        before = None
        for number, path in segment_paths(self._directory).items():
            self._name = path.name
            if before is not None and number != before + 1:
                raise self._bad(f"segment {before + 1} is missing", self.report.last + 1)
            with mapped(path) as data:
                end = self._read_segment(number, data, end)
            before = number
            self._progress(self._all.records)
        self._name = ""
        if self.report.last < self._due.sequence < _NEVER.sequence:
            raise self._bad(
                f"it was shortened: it ends with record {self.report.last}, a checkpoint has"
                f" record {self._due.sequence}",
                self.report.last + 1,
            )
        if self._gone is not None and not self._is_covered(self._told_at):
            raise self._bad(
                f"the records up to {self._gone.sequence} are missing and no record under a"
                " checkpoint says that they were retired"
            )

    def _is_covered(self, sequence: int | None) -> bool:
        """Whether a record is held by a checkpoint: behind it anybody can write anything."""
        return sequence is not None and sequence <= self.report.checkpointed

    @property
    def checkpoints_gone(self) -> CheckpointsRetired | None:
        """The newest record that says which checkpoints were removed."""
        held = [record for sequence, record in self._retired if self._is_covered(sequence)]
        return held[-1] if held else None

    def _read_segment(self, number: int, data: bytes | mmap, end: ChainEnd | None) -> ChainEnd:
        header = self._header(number, data, end)
        if end is None:
            end = self._start(header)
        sequence, head, offset = end.sequence, end.head, HEADER_SIZE
        due = self._due.sequence
        try:
            for frame in walk(data, Place(header.sequence, header.head, offset)):
                sequence, stop, body, head = frame
                record = read_record(body)
                if record.__class__ in _RETIRING:
                    self._note_retired(sequence, record)
                if sequence == due:
                    due = self._meet(ChainEnd(sequence, head))
                offset = stop
        except BadFrame as error:
            raise self._bad(str(error), error.sequence, error.offset) from None
        except MalformedRecord as error:
            sequence -= 1
            raise self._bad(f"no record: {error}", sequence + 1, offset) from None
        finally:
            self._all.records += sequence - self.report.last
            self.report.last = sequence
        end = ChainEnd(sequence, head)
        behind = zeroes_from(data, offset)
        if behind is not None:
            raise self._bad("bytes behind the end of what is written", end.sequence + 1, behind)
        if len(data) != header.size:
            raise self._bad(
                f"the file has {len(data)} bytes of {header.size}", end.sequence + 1, len(data)
            )
        return end

    def _header(self, number: int, data: bytes | mmap, end: ChainEnd | None) -> Header:
        """The header of a segment, checked against everything that is known."""
        try:
            header = parse_header(data)
        except BadFrame as error:
            raise self._bad(str(error), self.report.last + 1, 0) from None
        deployment = self._all.deployment = self._all.deployment or header.deployment.hex()
        if header.deployment.hex() != deployment:
            raise self._bad("its header names another deployment", self.report.last + 1, 0)
        if (header.chain.hex(), header.segment) != (self._directory.name, number):
            raise self._bad("its header belongs to another segment", self.report.last + 1, 0)
        if end is None and number == 1:
            end = ChainEnd(0, first_head(header.deployment, header.chain))
        if end is not None and (header.sequence, header.head) != (end.sequence + 1, end.head):
            raise self._bad("it does not follow from what is before it", end.sequence + 1, 0)
        return header

    def _start(self, header: Header) -> ChainEnd:
        """Begin with the first segment that is there."""
        end = ChainEnd(header.sequence - 1, header.head)
        self.report.first, self.report.last = header.sequence, end.sequence
        if header.segment != 1:
            self._gone = end
        self._meet(end)
        return end

    def _note_retired(self, sequence: int, record: Any) -> None:
        if isinstance(record, CheckpointsRetired):
            self._retired.append((sequence, record))
        elif self._gone is not None:
            # What a crash left of the removal is less than the record names.
            is_told = record.last_sequence > self._gone.sequence
            if is_told or (record.last_sequence, record.head) == self._gone:
                self._told_at = self._told_at or sequence

    def _meet(self, end: ChainEnd) -> int:
        """Hold the chain against the checkpoints that go to this record, or before what is there.

        Returns:
            The record of the next checkpoint.
        """
        while self._due.sequence <= end.sequence:
            if self._due.sequence == end.sequence and self._due.head != end.head:
                raise self._bad("a checkpoint has another record here", end.sequence)
            self.report.checkpointed = self._due.sequence
            self._due = next(self._anchors, _NEVER)
        return self._due.sequence
