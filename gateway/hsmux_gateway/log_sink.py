"""Where log lines go, without ever waiting for whoever reads them.

A log is a convenience: a pipe that nobody empties must not stop the event loop that writes into it.
So lines are written only as far as the descriptor takes them now; the rest is kept, `KEPT_SIZE_MAX`
bytes at most, and a thread writes it once there is room again. The thread exists only then: a line
that finds room has left when `write` returns. Lines that find no room at all are dropped and
counted, and a line in their place says how many.

Not waiting must not be a property of a descriptor that others share, such as the stderr of a
shell: pipes and terminals are opened once more for it, sockets have a flag for each call, and files
never wait for a reader. What belongs to another user may not be opened again; then every line is
the thread's, which may wait.
"""

import atexit
import json
import os
import select
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Final

__all__ = ["KEPT_SIZE_MAX", "LogSink"]

KEPT_SIZE_MAX: Final = 1 << 20
"""Bytes of lines kept for a reader that is slow."""

CLOSE_TIMEOUT_S: Final = 1.0
"""Seconds the last lines may take to leave before the process ends."""

PIECE_SIZE: Final = 64 * 1024
"""Bytes the thread writes at once."""

_Writer = Callable[[bytes | bytearray], int]


class LogSink:
    """Writes lines to a descriptor; from any thread.

    What cannot be written at all, because the disk is full or the reader went away, is lost.

    Args:
        descriptor: Stays the caller's, and open.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._resources = ExitStack()
        self._write = _open_writer(descriptor, self._resources)
        is_own = self._write is not _write_nothing
        self._write_kept = self._write if is_own else partial(os.write, descriptor)
        self._lock = threading.Lock()
        self._kept = bytearray()
        self._dropped = 0
        self._thread: threading.Thread | None = None
        atexit.register(self.close)

    def __repr__(self) -> str:
        return f"LogSink({len(self._kept)} bytes kept, {self._dropped} lines dropped)"

    def write(self, lines: bytes) -> None:
        """Write whole lines, or keep or drop them; comes back at once."""
        with self._lock:
            written = 0 if self._kept else _try(self._write, lines)
            if written < len(lines):
                self._keep(lines, written)

    def close(self) -> None:
        """Wait a moment for what is kept to be read; what comes later is lost."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(CLOSE_TIMEOUT_S)
        with self._lock:
            self._write = self._write_kept = _write_nowhere
            self._resources.close()
        atexit.unregister(self.close)

    def _keep(self, lines: bytes, written: int) -> None:
        if written == 0 and (self._dropped or len(self._kept) + len(lines) > KEPT_SIZE_MAX):
            self._dropped += lines.count(b"\n")
            return
        self._kept += memoryview(lines)[written:]
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
            self._thread.start()

    def _write_all(self) -> None:
        """Write what is kept until nothing is; the thread."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        is_more = True
        while is_more:
            poll.poll()
            # Only this thread takes from what is kept, and others only add.
            written = _try(self._write_kept, self._kept[:PIECE_SIZE])
            with self._lock:
                del self._kept[:written]
                if not self._kept and self._dropped:
                    self._kept += _dropped_line(self._dropped)
                    self._dropped = 0
                is_more = bool(self._kept)
                if not is_more:
                    self._thread = None


def _try(write: _Writer, data: bytes | bytearray) -> int:
    """How many bytes need no more care."""
    try:
        return write(data)
    except BlockingIOError:
        return 0
    except OSError:
        return len(data)


def _dropped_line(number: int) -> bytes:
    line = {"number": number, "event": "log lines were dropped: nobody read", "level": "warning"}
    return json.dumps(line).encode() + b"\n"


def _open_writer(descriptor: int, resources: ExitStack) -> _Writer:
    """What writes as much as a descriptor takes now, or raises BlockingIOError."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return partial(os.write, descriptor)
    if stat.S_ISSOCK(mode):
        own = resources.enter_context(socket.socket(fileno=os.dup(descriptor)))
        return lambda data: own.send(data, socket.MSG_DONTWAIT)
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        again = os.open(f"/proc/self/fd/{descriptor}", flags)
    except OSError:
        return _write_nothing
    resources.callback(os.close, again)
    return partial(os.write, again)


def _write_nothing(data: bytes | bytearray) -> int:
    return 0


def _write_nowhere(data: bytes | bytearray) -> int:
    return len(data)
