"""The verifier finds everything that is done to a log of 1,000 records, and names where.

Two kinds of attacker: one who changes files, and one who also computes the chain anew behind the
change, which only checkpoints can tell.
"""

import contextlib
import copy
import mmap
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from hsmux_gateway.audit.chain import (
    FRAME_OVERHEAD,
    HEADER_SIZE,
    BadFrame,
    Place,
    extend,
    parse_header,
    walk,
    write_header,
    zeroes_from,
)
from hsmux_gateway.audit.checkpoints import CheckpointFile, split_notes
from hsmux_gateway.audit.layout import CHECKPOINTS, chain_directories, chain_of, segment_paths
from hsmux_gateway.audit.records import write_record
from hsmux_gateway.audit.segments import SEGMENT_SIZE_MIN, ChainEnd, open_chain
from hsmux_gateway.audit.verify import Report, _Bad, _Chain, _Verification, verify

from .logs import DEPLOYMENT, KEY, PUBLIC_KEY, add_checkpoint, appended, make_log, request, signed

RECORDS = 1000


class Segment(NamedTuple):
    """A segment taken to pieces: whole frames as they lie there."""

    path: Path
    data: bytes
    first: int
    places: list[int]

    @property
    def used(self) -> int:
        """Where what is written ends."""
        return self.places[-1]

    def frames(self) -> list[bytes]:
        """The frames, one by one."""
        pairs = zip(self.places, self.places[1:], strict=False)
        return [self.data[start:end] for start, end in pairs]

    def write(self, frames: list[bytes]) -> None:
        """Write other frames, in a file of the same size."""
        whole = self.data[:HEADER_SIZE] + b"".join(frames)
        self.path.write_bytes(whole[: len(self.data)].ljust(len(self.data), b"\0"))

    def restore(self) -> None:
        """Undo whatever was done."""
        self.path.write_bytes(self.data)


def _take_apart(path: Path) -> Segment:
    data = path.read_bytes()
    header = parse_header(data)
    places = [HEADER_SIZE]
    for _, end, _, _ in walk(data, Place(header.sequence, header.head, HEADER_SIZE)):
        places.append(end)
    return Segment(path, data, header.sequence, places)


def _segments(root: Path) -> list[Segment]:
    return [
        _take_apart(path)
        for directory in chain_directories(root)
        for path in segment_paths(directory).values()
    ]


def _verified(root: Path) -> Report:
    return verify(root, PUBLIC_KEY)


def _named(root: Path) -> tuple[int | None, str]:
    """The first bad record and its file; fails if nothing was found."""
    bad = _verified(root).first_bad
    assert bad is not None, "not found"
    return bad.sequence, bad.file


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 1,000 records in one chain, all of them held by the last checkpoint."""
    root = tmp_path_factory.mktemp("original")
    make_log(root, RECORDS)
    report = _verified(root)
    assert report.ok and report.records == RECORDS and report.behind == 0
    assert report.checkpoints == 4
    return root


@pytest.fixture
def log(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "log"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A log of two short chains."""
    make_log(tmp_path / "small", 8, chains=2, checkpoints=2)
    return tmp_path / "small"


# One byte


def _holds(data: mmap.mmap, place: Place, end: int) -> bool:
    """Whether one frame still stands there, as the verifier sees it."""
    try:
        for _, stop, _, _ in walk(data, place):
            return stop == end
    except BadFrame:
        return False
    return zeroes_from(data, place.offset) is None


def test_every_byte_of_every_record(original: Path) -> None:
    """Each of the 1,000 frames, each byte, each bit that could turn: its own record is named."""
    chosen = random.Random(1)
    count = 0
    for segment in _segments(original):
        header = parse_header(segment.data)
        head, sequence = header.head, header.sequence
        with mmap.mmap(-1, len(segment.data)) as data:
            data[:] = segment.data
            for offset, frame in zip(segment.places, segment.frames(), strict=False):
                place = Place(sequence, head, offset)
                assert _holds(data, place, offset + len(frame))
                for at in range(offset, offset + len(frame)):
                    data[at] ^= chosen.randint(1, 255)
                    assert not _holds(data, place, offset + len(frame)), at
                    data[at] = segment.data[at]
                    count += 1
                head, sequence = frame[-32:], sequence + 1
    assert count > RECORDS * (FRAME_OVERHEAD + 100)


class _Bit(random.Random):
    """Chooses one bit always."""

    def __init__(self, bit: int) -> None:
        super().__init__()
        self._mask = 1 << bit

    def randint(self, a: int, b: int) -> int:
        """The mask of the bit."""
        return self._mask


def _spoil(path: Path, at: int, chosen: random.Random) -> Iterator[None]:
    """Change one byte of a file for a moment."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ chosen.randint(1, 255)]))
        file.flush()
        yield
        file.seek(at)
        file.write(byte)


def _is_found(root: Path, path: Path, at: int, chosen: random.Random) -> bool:
    found = False
    for _ in _spoil(path, at, chosen):
        found = not _verified(root).ok
    return found


def test_every_byte_of_a_small_log(small: Path) -> None:
    """Headers, records, checkpoints, and some of the empty room; by the whole verifier."""
    chosen = random.Random(2)
    for segment in _segments(small):
        empty = chosen.sample(range(segment.used, len(segment.data)), 50)
        for at in (*range(segment.used), segment.used, len(segment.data) - 1, *empty):
            assert _is_found(small, segment.path, at, chosen), (segment.path, at)
    notes = small / CHECKPOINTS
    for at in range(notes.stat().st_size):
        assert _is_found(small, notes, at, chosen), at
    assert _verified(small).ok


@pytest.mark.long
@pytest.mark.parametrize("bit", range(8))
def test_every_bit_of_a_small_log(small: Path, bit: int) -> None:
    """The same, one bit at a time: what a disk does."""
    places = [(segment.path, segment.used) for segment in _segments(small)]
    places.append((small / CHECKPOINTS, (small / CHECKPOINTS).stat().st_size))
    for path, used in places:
        for at in range(used):
            for _ in _spoil(path, at, _Bit(bit)):
                assert not _verified(small).ok, (path, at)
    assert _verified(small).ok


class Resumed:
    """The verifier at the beginning of a segment, to be asked again and again what it finds there.

    Segments before it are as they were, and the verifier has read them by its own code; it believes
    nothing behind the first thing that is wrong. So what it finds here is what a whole verification
    finds, and where it finds nothing here, a whole verification is asked.
    """

    def __init__(self, log: Path, number: int) -> None:
        self.log = log
        (directory,) = chain_directories(log)
        self.paths = segment_paths(directory)
        self.number = number
        verification = _Verification(log, PUBLIC_KEY)
        verification.read_checkpoints(None)
        anchors = iter(list(verification._anchors(chain_of(directory))))
        self._chain = _Chain(directory, verification.report, anchors, lambda records: None)
        self._end: ChainEnd | None = None
        for before in range(1, number):
            data = self.paths[before].read_bytes()
            self._end = self._chain._read_segment(before, data, self._end)

    def finds(self, data: bytes | mmap.mmap) -> bool:
        """Whether something is found in other bytes of the segment, or else in the whole log."""
        chain = copy.copy(self._chain)
        chain._anchors = copy.copy(self._chain._anchors)
        chain.report = replace(self._chain.report)
        chain._all = replace(self._chain._all, chains=[])
        try:
            chain._read_segment(self.number, data, self._end)
        except _Bad:
            return True
        path = self.paths[self.number]
        kept = path.read_bytes()
        path.write_bytes(bytes(data))
        try:
            return not _verified(self.log).ok
        finally:
            path.write_bytes(kept)


PARTS: Final = 8
each_part = pytest.mark.parametrize("part", range(PARTS))


@pytest.mark.long
@each_part
def test_every_byte_of_a_log(log: Path, part: int) -> None:
    chosen = random.Random(part)
    for number, segment in enumerate(_segments(log), 1):
        resumed = Resumed(log, number)
        with mmap.mmap(-1, len(segment.data)) as data:
            data[:] = segment.data
            assert not resumed.finds(data)
            for at in range(part, len(data), PARTS):
                data[at] ^= chosen.randint(1, 255)
                assert resumed.finds(data), (segment.path, at)
                data[at] = segment.data[at]


def test_a_changed_byte_names_its_record(log: Path) -> None:
    chosen = random.Random(3)
    for segment in _segments(log):
        for index in chosen.sample(range(len(segment.places) - 1), 20):
            at = chosen.randrange(segment.places[index], segment.places[index + 1])
            for _ in _spoil(segment.path, at, chosen):
                sequence, file = _named(log)
                assert sequence == segment.first + index
                assert file == str(segment.path.relative_to(log))
    assert _verified(log).ok


# One record


class Attack(NamedTuple):
    """What is done to a record, and by how much later than itself it is noticed."""

    act: Callable[[list[bytes]], list[bytes]]
    later: int


ATTACKS: Final = {
    "dropped": Attack(lambda frames: frames[1:], 0),
    "doubled": Attack(lambda frames: [frames[0], *frames], 1),
    "swapped": Attack(lambda frames: [frames[1], frames[0], *frames[2:]], 0),
}
each_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


@each_attack
def test_every_record(original: Path, attack: Attack) -> None:
    """Each of the 1,000 records, with the two behind it; the next segment holds the last ones."""
    bodies = [frame for segment in _segments(original) for frame in segment.frames()]
    head = parse_header(_segments(original)[0].data).head
    for index in range(RECORDS - 2):
        spoilt = b"".join(attack.act(bodies[index : index + 3]))
        with pytest.raises(BadFrame) as caught:
            list(walk(spoilt, Place(index + 1, head, 0)))
        assert caught.value.sequence == index + 1 + attack.later
        head = bodies[index][-32:]


def _attacked(log: Path, attack: Attack, step: int) -> None:
    for segment in _segments(log):
        frames = segment.frames()
        last = len(frames) - 1
        for index in [*range(0, last, step), last - 1]:
            segment.write([*frames[:index], *attack.act(frames[index:])])
            assert _named(log)[0] == segment.first + index + attack.later
        segment.restore()
    assert _verified(log).ok


@each_attack
def test_records_in_a_whole_log(log: Path, attack: Attack) -> None:
    _attacked(log, attack, 19)


@pytest.mark.long
@each_attack
def test_every_record_in_a_whole_log(log: Path, attack: Attack) -> None:
    _attacked(log, attack, 1)


def test_records_of_another_chain(small: Path) -> None:
    one, other = _segments(small)
    frames = one.frames()
    frames[4] = other.frames()[4]
    one.write(frames)
    assert _named(small) == (5, str(one.path.relative_to(small)))
    one.restore()
    one.path.write_bytes(other.data)
    assert _named(small) == (1, str(one.path.relative_to(small)))


def _written_anew(segments: list[Segment], bodies: list[bytes]) -> None:
    """Write a whole chain anew, every head and header right, as somebody with the files can."""
    header = parse_header(segments[0].data)
    head, sequence = header.head, 1
    for segment in segments:
        header = parse_header(segment.data)._replace(sequence=sequence, head=head)
        count = min(len(segment.frames()), len(bodies))
        if segment is segments[-1]:
            count = len(bodies)
        mine, bodies = bodies[:count], bodies[count:]
        frames, head = extend(head, sequence, mine)
        sequence += count
        segment.path.write_bytes((write_header(header) + frames).ljust(header.size, b"\0"))


def _rewritten(log: Path, count: int) -> None:
    segments = _segments(log)
    bodies = [frame[4:-32] for segment in segments for frame in segment.frames()]
    chosen = random.Random(4)
    for index in chosen.sample(range(RECORDS), count):
        forged = [*bodies[:index], write_record(request(77_777)), *bodies[index + 1 :]]
        _written_anew(segments, forged)
        # Named by the first checkpoint that holds the forged record.
        assert _named(log)[0] == (index // 250 + 1) * 250
        _written_anew(segments, [*bodies[:index], *bodies[index + 1 :]])
        assert _named(log)[0] == min((index // 250 + 1) * 250, RECORDS)
    _written_anew(segments, bodies)
    assert _verified(log).ok


def test_a_chain_written_anew(log: Path) -> None:
    _rewritten(log, 15)


@pytest.mark.long
def test_a_chain_written_anew_everywhere(log: Path) -> None:
    _rewritten(log, RECORDS)


# Truncation


def test_truncations(log: Path) -> None:
    step = 1009
    for segment in _segments(log):
        size = len(segment.data)
        cuts = {*range(0, segment.used, step), *segment.places[:: 1 + step // 10], size - 1}
        for at in sorted(cuts, reverse=True):
            segment.path.write_bytes(segment.data[:at])
            assert not _verified(log).ok, at
            if at < segment.used:
                # Cut and made as long as before: what an attacker does who knows the format.
                segment.path.write_bytes(segment.data[:at].ljust(size, b"\0"))
                assert not _verified(log).ok, at
        segment.restore()
    assert _verified(log).ok


@pytest.mark.long
@each_part
def test_every_truncation(log: Path, part: int) -> None:
    """Each length, and each length made as long as before by zeroes."""
    for number, segment in enumerate(_segments(log), 1):
        resumed = Resumed(log, number)
        for at in range(part, len(segment.data), PARTS):
            cut = segment.data[:at]
            assert resumed.finds(cut), (segment.path, at)
            if at < segment.used:
                assert resumed.finds(cut.ljust(len(segment.data), b"\0")), (segment.path, at)


def test_a_shortened_chain_is_called_so(log: Path) -> None:
    last = _segments(log)[-1]
    last.write(last.frames()[:-1])
    bad = _verified(log).first_bad
    assert bad is not None and bad.sequence == RECORDS
    assert "shortened" in bad.what and "999" in bad.what and "1000" in bad.what


def test_segments_removed(log: Path) -> None:
    segments = _segments(log)
    assert len(segments) > 3
    for number, segment in enumerate(segments):
        segment.path.unlink()
        bad = _verified(log).first_bad
        assert bad is not None
        assert ("missing" in bad.what) == (number < len(segments) - 1), bad
        segment.restore()


def test_behind_the_last_checkpoint_only_an_outside_one_tells(log: Path) -> None:
    writer = open_chain(log, DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN)
    appended(writer, RECORDS, 10)
    outside = add_checkpoint(log, {writer.chain: writer.end})
    appended(writer, RECORDS + 10, 5)
    writer.close()
    report = verify(log, PUBLIC_KEY, older_checkpoint=outside)
    assert report.ok and report.behind == 5
    # The end behind the checkpoint goes: the log cannot know, and says what it does not know.
    last = _segments(log)[-1]
    last.write(last.frames()[:-5])
    assert _verified(log).ok and _verified(log).behind == 0
    # The checkpoint goes too: now only the copy that was put aside knows.
    last.write(last.frames()[:-15])
    notes = [note for _, note in split_notes(log / CHECKPOINTS)]
    (log / CHECKPOINTS).write_bytes(b"".join(notes[:-1]))
    assert _verified(log).ok
    report = verify(log, PUBLIC_KEY, older_checkpoint=outside)
    assert not report.ok
    assert "shortened" in report.problems[0].what and report.problems[0].sequence == 5
    assert "shortened" in report.problems[1].what and report.problems[1].sequence == RECORDS + 1


# Whole chains, checkpoints, other files


def test_a_missing_chain_is_named(small: Path) -> None:
    one, other = chain_directories(small)
    shutil.rmtree(one)
    problem = _verified(small).first_bad
    assert problem is not None and problem.chain == one.name and "missing" in problem.what
    expected = [bytes.fromhex(one.name), b"\xee" * 16]
    report = verify(small, PUBLIC_KEY, expected_chains=expected)
    assert [p.chain for p in report.problems] == [one.name, "ee" * 16]
    assert report.chains[0].chain == other.name and report.chains[0].last == 8


def test_a_chain_without_its_segments(small: Path) -> None:
    directory = chain_directories(small)[0]
    for path in segment_paths(directory).values():
        path.unlink()
    bad = _verified(small).first_bad
    assert bad is not None and bad.chain == directory.name and "shortened" in bad.what


def test_checkpoints_removed_changed_reordered(log: Path) -> None:
    path = log / CHECKPOINTS
    notes = [note for _, note in split_notes(path)]
    for index in range(len(notes) - 1):
        path.write_bytes(b"".join(notes[:index] + notes[index + 1 :]))
        assert _named(log) == (index + 1, CHECKPOINTS)
        path.write_bytes(b"".join([*notes[:index], notes[index + 1], notes[index], *notes[2:]]))
        # A file may begin later on purpose, so there what comes next does not follow.
        assert _named(log) == (index + 1 if index else 3, CHECKPOINTS)
        path.write_bytes(b"".join([*notes[: index + 1], *notes[index:]]))
        assert _named(log) == (index + 2, CHECKPOINTS)
    path.write_bytes(b"")
    assert "no checkpoints" in str(_verified(log).first_bad)
    path.unlink()
    assert "no checkpoints" in str(_verified(log).first_bad)


def test_checkpoints_of_another_key_count_for_nothing(log: Path) -> None:
    forger = ec.generate_private_key(ec.SECP256R1())
    writer = open_chain(log, DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN)
    appended(writer, RECORDS, 1)
    file = CheckpointFile(log / CHECKPOINTS, PUBLIC_KEY)
    text = file.text(DEPLOYMENT, 1, {writer.chain: writer.end})
    writer.close()
    file.close()
    whole = (log / CHECKPOINTS).read_bytes()
    # With the right key's name and ID, and with its own.
    own = signed(text, forger)
    wrong_key = signed(text, KEY).rpartition(b" ")[0] + own[own.rindex(b" ") :]
    for note in (own, wrong_key):
        (log / CHECKPOINTS).write_bytes(whole + note)
        assert _named(log) == (5, CHECKPOINTS)
    (log / CHECKPOINTS).write_bytes(whole + signed(text))
    assert _verified(log).ok
    assert not verify(log, forger.public_key()).ok


def test_a_signer_that_contradicts_itself_is_found(log: Path) -> None:
    """Even with the right key: a checkpoint in which a chain is shorter, or gone."""
    writer = open_chain(log, DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN)
    writer.close()
    whole = (log / CHECKPOINTS).read_bytes()
    file = CheckpointFile(log / CHECKPOINTS, PUBLIC_KEY)
    shorter = file.text(DEPLOYMENT, 1, {writer.chain: writer.end._replace(sequence=999)})
    gone = b"\n".join(shorter.split(b"\n")[:4]) + b"\n"
    other = shorter.replace(DEPLOYMENT.hex().encode(), b"0" * 32)
    file.close()
    for text in (shorter, gone, other):
        (log / CHECKPOINTS).write_bytes(whole + signed(text))
        assert _named(log)[1] == CHECKPOINTS


def test_a_checkpoint_to_compare_must_be_the_log_s(log: Path, small: Path) -> None:
    notes = [note for _, note in split_notes(log / CHECKPOINTS)]
    for note in notes:
        assert verify(log, PUBLIC_KEY, older_checkpoint=note).ok
        witnessed = note + "— witness.example/w AAAAAAAA\n".encode()
        assert verify(log, PUBLIC_KEY, older_checkpoint=witnessed).ok
    for foreign in [note for _, note in split_notes(small / CHECKPOINTS)]:
        report = verify(log, PUBLIC_KEY, older_checkpoint=foreign)
        assert report.first_bad is not None and "another" in report.first_bad.what
    for spoilt in (b"", b"\xff", notes[0][:-9], notes[0].replace(b"time 1", b"time 2")):
        assert not verify(log, PUBLIC_KEY, older_checkpoint=spoilt).ok


@pytest.mark.parametrize("name", ["segment", CHECKPOINTS])
def test_a_pipe_in_a_log_keeps_nobody_waiting(small: Path, name: str) -> None:
    path = small / CHECKPOINTS
    if name == "segment":
        path = segment_paths(chain_directories(small)[0])[1]
    path.unlink()
    os.mkfifo(path)
    is_over = threading.Event()

    def end_it() -> None:
        # Whoever takes it for a file gets its end, and is found out.
        while not is_over.wait(0.001):
            with contextlib.suppress(OSError):
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))

    other_end = threading.Thread(target=end_it)
    other_end.start()
    try:
        with pytest.raises(OSError, match="not a file"):
            verify(small, PUBLIC_KEY)
    finally:
        is_over.set()
        other_end.join()


def test_what_is_no_part_of_a_log_is_told(small: Path) -> None:
    (small / "notes.txt").touch()
    (chain_directories(small)[0] / "0000001.log").touch()
    report = _verified(small)
    assert [p.file for p in report.problems] == [
        "notes.txt",
        f"{chain_directories(small)[0].name}/0000001.log",
    ]


def test_a_record_of_a_later_format_is_bad(tmp_path: Path) -> None:
    """A chain that holds, of something that is no record."""
    writer = open_chain(tmp_path, DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN)
    appended(writer, 1, 3)
    writer.append([b"\x91\x63"])
    writer.sync()
    add_checkpoint(tmp_path, {writer.chain: writer.end})
    writer.close()
    report = _verified(tmp_path)
    assert report.first_bad is not None and report.first_bad.sequence == 4
    assert report.records == 3


def test_the_report_is_json_and_progress_is_told(log: Path) -> None:
    told: list[int] = []
    report = verify(log, PUBLIC_KEY, progress=told.append)
    assert told == sorted(told) and told[-1] == RECORDS and len(told) > 3
    as_json = report.to_json()
    assert as_json["ok"] is True and as_json["records"] == RECORDS
    assert as_json["chains"][0]["last"] == RECORDS
    assert as_json["records_per_s"] > 0
