"""The files of one chain: appended to, made durable, continued after a crash, removed when old.

Theory of operation
-------------------
One process writes one chain. `append` writes records with one system call, so they survive the
death of the process; `sync` makes everything appended so far durable. A segment has its full size
from the beginning, all zeroes, so that an append needs no room from the file system and a sync
writes no sizes. The next segment is made ahead, as `next`: while it is there, a full disk costs
nothing but the warning.

Room. The last `LAST_ROOM` bytes of a segment are for the records that must not fail (`Room.LAST`):
the stop of the process, what is cut or removed. What nobody has to be known for (`Room.FLOOD`) is
refused once there is no next segment and the present one is half full, so that whoever is not
authenticated cannot take the room of those who are.

When something goes wrong:

* no room, or a write that fails or is short: `NoRoom`; of these records nothing counts. Bytes of
  a short write are overwritten with zeroes together with the next write, since the end of what is
  written is where zeroes begin. Appending works again as soon as a write does.
* `fdatasync` fails: `SyncFailed`, now and for ever. The system may have dropped what it could not
  write, and a second call would report success. Only a new start, which reads what is really
  there, can go on.
* the process died in mid-write: at the next start whatever does not follow from the record before
  it is saved beside the segment, cut off, and told as `torn`; the recorder writes it down.
* what is missing was there when a checkpoint was signed: `ChainDamaged`; nothing is changed and a
  person must look.

A segment gets its header before it gets its name, so a file with a segment's name has a header.

Threads: `append` belongs to one thread, `sync` and `prepare` to one other, `past` and `remove` to a
third. The lock is held while files change hands, never during a write or a sync.
"""

import contextlib
import enum
import fcntl
import hashlib
import mmap
import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ..private_files import open_regular
from .chain import (
    HEADER_SIZE,
    BadFrame,
    Header,
    Place,
    end_of_chain,
    extend,
    first_head,
    parse_header,
    walk,
    write_header,
)
from .layout import (
    SPARE,
    chain_directories,
    chain_of,
    segment_name,
    segment_paths,
    torn_name,
    torn_paths,
)
from .records import MalformedRecord, read_record

__all__ = [
    "LAST_ROOM",
    "SEGMENT_SIZE",
    "SEGMENT_SIZE_MAX",
    "SEGMENT_SIZE_MIN",
    "ChainDamaged",
    "ChainEnd",
    "ChainWriter",
    "Cut",
    "NoRoom",
    "Past",
    "RecordError",
    "Room",
    "SyncFailed",
    "lock_log",
    "mapped",
    "open_chain",
    "sync_directory",
]

SEGMENT_SIZE: Final = 16 * 1024 * 1024
"""Bytes of a segment: some 80,000 requests, which a start reads in a tenth of a second."""

SEGMENT_SIZE_MIN: Final = 64 * 1024
"""Bytes: room for a header, the last records, and something between them."""

LAST_ROOM: Final = 16 * 1024
"""Bytes of each segment that are kept for the records which must not fail."""

SEGMENT_SIZE_MAX: Final = 1 << 30
"""Bytes: what can be mapped anywhere."""

_PIECE: Final = 1 << 20


class RecordError(Exception):
    """Records could not be written; no answer that waits for them may leave."""


class NoRoom(RecordError):
    """The file system refused; it may be possible again later."""


class SyncFailed(RecordError):
    """Records may be lost that were written: this process must end."""


class ChainDamaged(Exception):
    """The chain on the disk cannot be continued; the text says why and where."""


class Room(enum.Enum):
    """Which room records may take."""

    ORDINARY = enum.auto()
    LAST = enum.auto()
    FLOOD = enum.auto()


class ChainEnd(NamedTuple):
    """A chain up to a record.

    Attributes:
        sequence: The last record; 0 if there is none.
        head: After it.
    """

    sequence: int
    head: bytes


class Cut(NamedTuple):
    """What was cut off the end of a chain when it was opened.

    Attributes:
        segment: Number of the segment.
        offset: Where, in bytes.
        size: Bytes up to the last that was not zero.
        digest: SHA-256 of them.
    """

    segment: int
    offset: int
    size: int
    digest: bytes


class Past(NamedTuple):
    """The oldest segments, which may be removed.

    Attributes:
        segment: The last of them.
        sequence: The last record in it.
        head: After that record.
    """

    segment: int
    sequence: int
    head: bytes


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    """The bytes of a file, read as they are looked at; they must not be kept."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            yield data


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _write_all(file: int, data: bytes, offset: int) -> None:
    """Write at a place, as a whole or not at all as far as the caller is concerned."""
    written = os.pwrite(file, data, offset)
    if written != len(data):
        # A short write says nothing about why; the rest tells, or succeeds.
        written += os.pwrite(file, data[written:], offset + written)
    if written != len(data):
        raise OSError(0, "a short write")


def _lock(directory: Path) -> int | None:
    """A descriptor that holds a directory's lock, or None if another process has it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def lock_log(root: Path) -> int | None:
    """A descriptor that holds a log for one gateway, or None if another one has it.

    Args:
        root: The directory of the audit log; made if it is not there.

    Raises:
        OSError: The directory cannot be used.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _lock(root)


def _beginning(path: Path) -> tuple[Header, int | None]:
    """The header of a segment, and when its first record was made."""
    with mapped(path) as data:
        header = parse_header(data)
        start = Place(header.sequence, header.head, HEADER_SIZE)
        for _, _, body, _ in walk(data, start):
            return header, read_record(body).at_ms
        return header, None


def open_chain(
    root: Path,
    deployment: bytes,
    *,
    segment_size: int = SEGMENT_SIZE,
    checkpointed: Mapping[bytes, ChainEnd] | None = None,
) -> "ChainWriter":
    """Continue a chain that no process has open, or begin a new one.

    Args:
        root: The directory of the audit log; made if it is not there.
        deployment: 16 bytes.
        segment_size: Bytes of new segments.
        checkpointed: How far the last checkpoint says that each chain goes.

    Raises:
        ChainDamaged: The chain is not this deployment's, or ends before the last checkpoint.
        OSError: The directory cannot be used.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for directory in chain_directories(root):
        lock = _lock(directory)
        if lock is not None:
            break
    else:
        directory = root / secrets.token_hex(16)
        directory.mkdir(mode=0o700)
        sync_directory(root)
        lock = _lock(directory)
        if lock is None:
            raise ChainDamaged(f"{directory} was taken by another process")
    try:
        signed = (checkpointed or {}).get(chain_of(directory))
        return ChainWriter(directory, deployment, lock, segment_size, signed)
    except BaseException:
        os.close(lock)
        raise


class ChainWriter:
    """Appends to one chain; made by `open_chain`.

    Args:
        directory: The chain's own, locked.
        deployment: 16 bytes.
        lock: The descriptor that holds the lock; closed with the writer.
        segment_size: Bytes of new segments.
        signed: How far the last checkpoint says that the chain goes.

    Attributes:
        chain: 16 bytes.
        cut: What was cut off when it was opened, or None.
        end: The last record appended.
        synced: The last record known to be durable.
    """

    def __init__(
        self,
        directory: Path,
        deployment: bytes,
        lock: int,
        segment_size: int,
        signed: ChainEnd | None,
    ) -> None:
        if not SEGMENT_SIZE_MIN <= segment_size <= SEGMENT_SIZE_MAX:
            raise ValueError(f"a segment of {segment_size} bytes")
        self.chain = chain_of(directory)
        self.cut: Cut | None = None
        self._directory = directory
        self._deployment = deployment
        self._lock = lock
        self._new_size = segment_size
        self._files = threading.Lock()
        self._spare: int | None = None
        self._left: list[int] = []
        self._renamed = False
        self._failed = False
        self._unclean_to = 0
        self._file = -1
        with contextlib.suppress(FileNotFoundError):
            (directory / SPARE).unlink()
        segments = segment_paths(directory)
        if segments:
            self._continue(*segments.popitem(), signed)
        else:
            self._begin(signed)

    def __repr__(self) -> str:
        return f"ChainWriter({self.chain.hex()[:8]}, segment {self._segment}, {self.end.sequence})"

    # Opening

    def _begin(self, signed: ChainEnd | None) -> None:
        if signed is not None and signed.sequence:
            raise ChainDamaged(f"{self._directory}: all records are gone")
        self._segment, self._size, self._offset = 0, 0, 0
        self.end = self.synced = ChainEnd(0, first_head(self._deployment, self.chain))
        self._roll()

    def _continue(self, number: int, path: Path, signed: ChainEnd | None) -> None:
        with mapped(path) as data:
            try:
                header = parse_header(data)
            except BadFrame as error:
                raise ChainDamaged(f"{path}: {error}") from None
            if header[:3] != (self._deployment, self.chain, number) or (
                not HEADER_SIZE < header.size <= SEGMENT_SIZE_MAX
            ):
                raise ChainDamaged(f"{path}: the segment belongs somewhere else")
            start = Place(header.sequence, header.head, HEADER_SIZE)
            place, is_clean = end_of_chain(data, start)
            if signed is not None and place.sequence <= signed.sequence:
                raise ChainDamaged(
                    f"{path}: ends at record {place.sequence - 1}; record {signed.sequence} was"
                    " there when the last checkpoint was signed"
                )
            torn = b"" if is_clean else bytes(data[place.offset :]).rstrip(b"\0")
            is_short = len(data) < header.size
        self._segment, self._size, self._offset = number, header.size, place.offset
        self.end = ChainEnd(place.sequence - 1, place.head)
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if torn or is_short:
                self._cut_off(torn)
            os.fdatasync(self._file)
            sync_directory(self._directory)
        except BaseException:
            os.close(self._file)
            raise
        self.synced = self.end

    def _cut_off(self, torn: bytes) -> None:
        digest = hashlib.sha256(torn).digest()
        self.cut = Cut(self._segment, self._offset, len(torn), digest)
        with contextlib.suppress(OSError):
            # Kept for whoever wants to know; where there is no room, its hash must do.
            saved = self._directory / torn_name(self._segment, self._offset)
            if torn:
                saved.write_bytes(torn)
                saved.chmod(0o600)
        for start in range(0, len(torn), _PIECE):
            size = min(_PIECE, len(torn) - start)
            _write_all(self._file, bytes(size), self._offset + start)
        os.posix_fallocate(self._file, 0, self._size)

    # Appending

    @property
    def room(self) -> int:
        """Bytes that are left in the present segment."""
        return self._size - self._offset

    @property
    def has_spare(self) -> bool:
        """Whether the room for the next segment is taken."""
        return self._spare is not None

    @property
    def append_size_max(self) -> int:
        """Bytes of frames that fit into any segment."""
        return self._new_size - HEADER_SIZE - LAST_ROOM

    def append(self, bodies: Sequence[bytes], room: Room = Room.ORDINARY) -> int:
        """Write records with one system call.

        Args:
            bodies: What `write_record` made; together at most `append_size_max` bytes with
                `FRAME_OVERHEAD` for each.
            room: Which room they may take.

        Returns:
            The number of the last of them in the chain.

        Raises:
            NoRoom: None of them was written.
            SyncFailed: An earlier sync failed; nothing is written any more.
        """
        if self._failed:
            raise SyncFailed("the audit log could not be made durable: restart the gateway")
        data, head = extend(self.end.head, self.end.sequence + 1, bodies)
        if len(data) > self.append_size_max:
            raise ValueError(f"{len(data)} bytes do not fit into a segment")
        try:
            if not self._fits(len(data), room):
                self._roll()
            self._write(data)
        except OSError as error:
            raise NoRoom(f"the audit log cannot be written: {error.strerror}") from None
        self.end = ChainEnd(self.end.sequence + len(bodies), head)
        return self.end.sequence

    def _fits(self, size: int, room: Room) -> bool:
        if room is Room.FLOOD and self._spare is None and self.room < self._size // 2:
            raise NoRoom("what is left of the audit log is kept for requests")
        kept = 0 if room is Room.LAST else LAST_ROOM
        return size <= self.room - kept

    def _write(self, data: bytes) -> None:
        unclean = self._unclean_to - self._offset - len(data)
        self._unclean_to = max(self._unclean_to, self._offset + len(data))
        _write_all(self._file, data + bytes(max(0, unclean)), self._offset)
        self._offset += len(data)
        self._unclean_to = 0

    def _roll(self) -> None:
        """Go on in the next segment."""
        with self._files:
            file = self._take_spare()
            number = self._segment + 1
            header = Header(
                self._deployment,
                self.chain,
                number,
                self.end.sequence + 1,
                self._new_size,
                self.end.head,
            )
            try:
                _write_all(file, write_header(header), 0)
                os.fdatasync(file)
                os.rename(self._directory / SPARE, self._directory / segment_name(number))
            except BaseException:
                self._spare = file
                raise
            if self._file >= 0:
                self._left.append(self._file)
            self._file, self._segment = file, number
            self._size, self._offset, self._unclean_to = self._new_size, HEADER_SIZE, 0
            self._renamed = True

    def _take_spare(self) -> int:
        """The next segment's file, made now if it is not there; the lock is held."""
        if self._spare is None:
            self._make_spare()
        spare, self._spare = self._spare, None
        assert spare is not None
        return spare

    def _make_spare(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(self._directory / SPARE, flags, 0o600)
        try:
            os.posix_fallocate(file, 0, self._new_size)
            os.fsync(file)
        except BaseException:
            os.close(file)
            # What there is of it would fill the disk that has no room.
            (self._directory / SPARE).unlink()
            raise
        self._spare = file

    # In the thread that syncs

    def prepare(self) -> bool:
        """Make the next segment ahead; whether it is there now."""
        with self._files:
            if self._spare is None:
                with contextlib.suppress(OSError):
                    self._make_spare()
            return self._spare is not None

    def sync(self) -> ChainEnd:
        """Make durable what was appended before; how far that is.

        Raises:
            SyncFailed: It cannot be told what is durable, from now on.
        """
        with self._files:
            left, self._left = self._left, []
            renamed, self._renamed = self._renamed, False
            end, file = self.end, self._file
        if self._failed:
            raise SyncFailed("the audit log could not be made durable: restart the gateway")
        try:
            for old in left:
                os.fdatasync(old)
                os.close(old)
            os.fdatasync(file)
            if renamed:
                sync_directory(self._directory)
        except OSError as error:
            self._failed = True
            raise SyncFailed(f"the audit log is not durable: {error.strerror}") from None
        self.synced = end
        return end

    # Retention

    def past(self, before_ms: int, checkpointed: int, size_max: int = 0) -> Past | None:
        """The oldest segments that nobody needs any more; never the present one.

        Args:
            before_ms: All their records were made before that moment.
            checkpointed: All their records are covered by a checkpoint that goes to this record.
            size_max: Bytes that all segments may take: beyond that they may be younger; 0: any.
        """
        segments = segment_paths(self._directory)
        sizes = {number: path.stat().st_size for number, path in segments.items()}
        size, found = sum(sizes.values()), None
        for number, path in segments.items():
            try:
                header, first_ms = _beginning(path)
            except (BadFrame, MalformedRecord):
                break
            if header.sequence - 1 > checkpointed:
                break
            if number - 1 not in segments:
                continue
            is_old = first_ms is not None and first_ms < before_ms
            if not (is_old or 0 < size_max < size):
                break
            found = Past(number - 1, header.sequence - 1, header.head)
            size -= sizes[number - 1]
        return found

    def remove(self, past: Past) -> None:
        """Remove segments, after a `retired` record that names them is under a checkpoint.

        In order, so that what a crash leaves is a part that the record names too.

        Raises:
            OSError: They cannot be removed.
        """
        for number, path in segment_paths(self._directory).items():
            if number <= past.segment < self._segment:
                path.unlink()
        for path in torn_paths(self._directory, past.segment):
            path.unlink()
        sync_directory(self._directory)

    def close(self) -> None:
        """Make everything durable and let the chain go.

        Raises:
            SyncFailed: Not everything is durable.
        """
        try:
            self.sync()
        finally:
            with contextlib.suppress(FileNotFoundError):
                (self._directory / SPARE).unlink()
            for file in (self._file, self._spare, self._lock, *self._left):
                if file is not None:
                    os.close(file)
