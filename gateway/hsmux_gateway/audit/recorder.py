"""The recorder: one line a request, written to the operating system before the answer leaves.

Theory of operation
-------------------
`append` only keeps a record and tells its number; `flush` formats everything kept, which costs less
together than one by one, and writes it with one `write` system call. A connection remembers the
number of its last record and sees that it is written before it hands the answers to TLS, so a
record survives `kill -9` of the gateway if its answer was seen, and a burst of answers costs one
system call. The file is opened for append and every write is whole lines, so two processes would
not tear each other's lines.

If a write fails, no answer to a recorded request leaves: `flush` raises RecordError and the
connection ends. What was not written is kept and written first, so what was changed is then on
record late, never unrecorded. While writing fails, `ready` is false: the engine refuses requests
before anything is done, without a record, and such refusals and new connections need no write. Each
look at `ready` tries again, at most every `RETRY_S`.

A line that a crash or a full disk cut short is closed at the next start, so that it spoils no
other.

The file grows until somebody moves it away and has `reopen` called: records are never deleted here.
What is kept goes into the old file first, so no line is torn between two; while writing fails, the
old file stays.

A record holds no secret: no plaintext, ciphertext, message, signature or context value. Its names
are those of the operation table.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from ..instance import sync_directory
from ..log_sink import LogSink
from ..private_files import open_log

__all__ = ["Record", "RecordError", "Recorder"]

RETRY_S: Final = 0.1
"""Seconds between tries to write while writing fails."""


class Record(msgspec.Struct, frozen=True):
    """What is kept of one request.

    Attributes:
        at_ms: When it was done, milliseconds since 1970 UTC.
        reference: Joins answer, record and log.
        access_point: The caller's access point, by name.
        client_key: The caller's client key, in hexadecimal.
        peer: The caller's address.
        operation: A name of the operation table.
        outcome: "done", or the name of the error the caller got.
        elapsed_us: From decode to record, in microseconds.
    """

    at_ms: int
    reference: str
    access_point: str
    client_key: str
    peer: str
    operation: str
    outcome: str
    elapsed_us: int


class RecordError(Exception):
    """A record could not be written; no answer may leave."""


_encode_lines: Final = msgspec.json.Encoder().encode_lines


def _close_line(file: int) -> None:
    """End a last line that was cut short."""
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        os.write(file, b"\n")


class Recorder:
    """Appends records to one file.

    Args:
        path: The file; made with mode 0600 if it is not there.
        log: Gets the same lines as the gateway's request log, or None. What cannot be written
            there is lost: it is a convenience, the file is the record.

    Attributes:
        records: Records appended so far.
        written: Of these, how many are with the operating system.
        failing: Whether the last write failed.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, *, log: LogSink | None = None) -> None:
        self._path = path
        self._file = open_log(path)
        _close_line(self._file)
        self._log = log
        self._kept: list[Record] = []
        self._pending = bytearray()
        self._unlogged = bytearray()
        self._retry_at = 0.0
        self.records = 0
        self.written = 0
        self.failing = False

    def __repr__(self) -> str:
        return f"Recorder({self.records} records, {self.records - self.written} pending)"

    def ready(self) -> bool:
        """Whether requests can be recorded; tries to write again where that failed."""
        if self.failing and time.monotonic() >= self._retry_at:
            try:
                self.flush()
            except RecordError:
                return False
        return not self.failing

    def append(self, record: Record) -> int:
        """Keep a record for the next flush; its number, from 1."""
        self._kept.append(record)
        self.records += 1
        return self.records

    def flush(self) -> None:
        """Write every kept record.

        Raises:
            RecordError: Not everything could be written; what was not is kept.
        """
        self._format()
        if not self._pending:
            return
        try:
            while self._pending:
                written = os.write(self._file, self._pending)
                del self._pending[:written]
        except OSError as error:
            self.failing = True
            self._retry_at = time.monotonic() + RETRY_S
            raise RecordError(f"the audit file cannot be written: {error.strerror}") from None
        self.failing = False
        self.written = self.records
        if self._log is not None:
            self._log.write(bytes(self._unlogged))
            self._unlogged.clear()

    def _format(self) -> None:
        if not self._kept:
            return
        lines = _encode_lines(self._kept)
        self._kept.clear()
        self._pending += lines
        if self._log is not None:
            self._unlogged += lines

    def reopen(self) -> Callable[[], None]:
        """Go on in the file that has the path now; the old one was moved away.

        Returns:
            What makes the old file and the new name durable; it blocks, so call it in a thread.

        Raises:
            RecordError: Nothing can be written just now; the old file stays.
            OSError: The new file cannot be opened; the old one stays.
        """
        self.flush()
        new = open_log(self._path)
        _close_line(new)
        old, self._file = self._file, new

        def finish() -> None:
            try:
                os.fdatasync(old)
                sync_directory(self._path.parent)
            finally:
                os.close(old)

        return finish

    def close(self) -> None:
        """Write what is kept, make it durable and close the file."""
        try:
            self.flush()
            os.fdatasync(self._file)
        finally:
            os.close(self._file)
