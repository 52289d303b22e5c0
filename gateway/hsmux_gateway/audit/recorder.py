"""The recorder: one line a request, written to the operating system before the answer leaves.

Theory of operation
-------------------
`append` only formats and keeps a record; `flush` writes everything kept with one `write` system
call. A connection flushes before it hands answers to TLS, so a record survives `kill -9` of the
gateway if its answer was seen, and a burst of answers costs one system call. The file is opened
for append and every write is whole lines, so two processes would not tear each other's lines.

If a write fails, no answer leaves: `flush` raises RecordError, the connection ends, and the gateway
answers Unavailable until a write succeeds again. A record that was not written is kept and
written first. What was changed is then on record late, never unrecorded.

A record holds no secret: no plaintext, ciphertext, message, signature or context value. Its names
are those of the operation table.
"""

import os
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["Record", "RecordError", "Recorder"]

PENDING_BYTES_MAX: Final = 1 << 20
"""Bytes kept while writing fails; beyond that calls are refused before they are done."""


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


_encode: Final = msgspec.json.Encoder().encode


def _write_log(log: int, lines: bytes) -> None:
    try:
        os.write(log, lines)
    except OSError:
        # A reader of the log that went away must not stop the gateway.
        return


class Recorder:
    """Appends records to one file.

    Args:
        path: The file; made with mode 0600 if it is not there.
        log: A descriptor that gets the same lines as the gateway's request log, or None. What
            cannot be written there is lost: it is a convenience, the file is the record.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, *, log: int | None = None) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._log = log
        self._pending = bytearray()
        self.records = 0
        self.failing = False

    def __repr__(self) -> str:
        return f"Recorder({self.records} records, {len(self._pending)} bytes pending)"

    @property
    def overfull(self) -> bool:
        """Whether so much is unwritten that nothing more may be done."""
        return len(self._pending) > PENDING_BYTES_MAX

    def append(self, record: Record) -> None:
        """Keep a record for the next flush."""
        self._pending += _encode(record) + b"\n"
        self.records += 1

    def flush(self) -> None:
        """Write every kept record.

        Raises:
            RecordError: Not everything could be written; what was not is kept.
        """
        if not self._pending:
            return
        if self._log is not None:
            _write_log(self._log, bytes(self._pending))
        try:
            while self._pending:
                written = os.write(self._file, self._pending)
                del self._pending[:written]
        except OSError as error:
            self.failing = True
            raise RecordError(f"the audit file cannot be written: {error.strerror}") from None
        self.failing = False

    def close(self) -> None:
        """Write what is kept, make it durable and close the file."""
        try:
            self.flush()
            os.fdatasync(self._file)
        finally:
            os.close(self._file)
