"""Answers of one connection on their way out: recorded first, then sent, in the order they came.

Whoever has an answer puts it here and flushes; the first to come flushes for all that come
meanwhile, so answers of a burst share one audit write, one TLS write and one system call.

The order that must hold: an answer's record is with the operating system before TLS sees a byte of
the answer; the record of a change of what is managed, and of a refusal, is durable by then. If the
record cannot be written, nothing that is queued leaves.

A peer has `send_timeout_s` to take each `PIECE_SIZE` bytes; one that reads slowly is served, one
that does not read is dropped.
"""

from typing import Final

import trio

from .audit.journal import Journal
from .tls import TlsClosed, TlsStream

__all__ = ["Answers"]

PIECE_SIZE: Final = 64 * 1024
"""Bytes for which the peer has the whole time-out."""


class Answers:
    """A connection's answers that its peer has not taken yet.

    Args:
        tls: Where they go.
        journal: Writes their records first.
        send_timeout_s: Seconds the peer has for one piece.

    Attributes:
        size: Bytes queued or being sent.
    """

    def __init__(self, tls: TlsStream, journal: Journal, send_timeout_s: float) -> None:
        self._tls = tls
        self._journal = journal
        self._send_timeout_s = send_timeout_s
        self._queue: list[bytes] = []
        self._record = 0
        self._durable = 0
        self._flushing = False
        self._is_torn = False
        self._moved = trio.Event()
        self.size = 0

    def __repr__(self) -> str:
        return f"Answers({self.size} bytes)"

    def put(self, data: bytes) -> None:
        """Queue the bytes of a frame that answers no recorded call."""
        self._queue.append(data)
        self.size += len(data)

    def put_recorded(self, data: bytes, *, durable: bool = False) -> None:
        """Queue an answer whose record was appended.

        Args:
            data: The bytes of its frame.
            durable: Whether the record must be durable before it leaves.
        """
        self._record = self._journal.records
        if durable:
            self._durable = self._record
        self._queue.append(data)
        self.size += len(data)

    async def flush(self) -> None:
        """Record, then send everything queued; does nothing while another task is at it.

        Raises:
            RecordError: A record could not be written; nothing was sent.
            TlsClosed: The connection broke, or broke at an earlier flush.
            trio.TooSlowError: The peer does not read.
        """
        if self._flushing:
            return
        if self._is_torn:
            raise TlsClosed("an earlier answer was cut off")
        self._flushing = self._is_torn = True
        try:
            while self._queue:
                data = b"".join(self._queue)
                self._queue.clear()
                if self._journal.written < self._record:
                    self._journal.flush()
                if self._journal.synced < self._durable:
                    await self._journal.durable(self._durable)
                await self._send(memoryview(data))
            self._is_torn = False
        finally:
            self._flushing = False

    async def _send(self, data: memoryview) -> None:
        while data:
            piece, data = data[:PIECE_SIZE], data[PIECE_SIZE:]
            if not self._tls.try_send(piece):
                with trio.fail_after(self._send_timeout_s):
                    await self._tls.flush()
            self.size -= len(piece)
            self._moved.set()

    async def drain(self, size: int = 0) -> None:
        """Flush, or wait for whoever flushes, until at most `size` bytes are left."""
        while self.size > size:
            if self._flushing:
                self._moved = trio.Event()
                await self._moved.wait()
            else:
                await self.flush()
