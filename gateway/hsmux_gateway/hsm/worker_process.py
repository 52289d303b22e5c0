"""A worker as the daemon sees it: a process, a socket to it, and memory shared with it.

Nothing is decided here. The process is started by the event loop's own thread, because a worker
asks the kernel to be killed when the thread that started it ends, and a thread of a pool ends
whenever it is idle. Its end is waited for through a pidfd, so a dead worker is never a zombie and
its process id never another process's.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any, Final

import trio

from hsmux_native import adapter_path
from hsmux_native.pkcs11 import SecretPage

from .messages import MessageReader, encode_message
from .progress import Progress
from .settings import TokenSettings

__all__ = ["WorkerProcess", "end_in_words"]

RECEIVE_SIZE: Final = 1 << 18
"""Bytes asked of the socket at a time."""


class WorkerProcess:
    """A worker process; made by `start`.

    Attributes:
        pid: Its process id.
        page: Secret memory shared with it.
        progress: What it publishes of its work.
        last_progress: What that was when it ended.
        login_began: It was told to log in.
        login_ended: It has said what came of that.
    """

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        pidfd: int,
        ours: socket.socket,
        page: SecretPage,
        progress: Progress,
    ) -> None:
        self.pid = process.pid
        self.page = page
        self.progress = progress
        self.last_progress = (0, 0)
        self.login_began = False
        self.login_ended = False
        self._process = process
        self._pidfd = pidfd
        self._connection = trio.socket.from_stdlib_socket(ours)
        self._stream = trio.SocketStream(self._connection)
        self._reader = MessageReader()
        self._outgoing: deque[bytes] = deque()
        self._wake = trio.Event()

    @classmethod
    def start(cls, settings: TokenSettings, directory: Path) -> "WorkerProcess":
        """Start a process; blocks for some milliseconds.

        Raises:
            OSError: There is no room for another process or descriptor.
            NativeError: There is no memory for secrets.
        """
        with contextlib.ExitStack() as stack:
            ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
            page = stack.enter_context(contextlib.closing(SecretPage()))
            progress = stack.enter_context(contextlib.closing(Progress()))
            inherited = (theirs.fileno(), page.fd, progress.fd)
            process = _spawn(settings, directory, inherited)
            theirs.close()
            try:
                pidfd = os.pidfd_open(process.pid)
            except OSError:
                process.kill()
                process.wait()
                raise
            stack.pop_all()
        return cls(process, pidfd, ours, page, progress)

    def post(self, message: list[Any]) -> None:
        """Have a message sent; does not wait."""
        self._outgoing.append(encode_message(message))
        self._wake.set()

    async def send_posted(self) -> None:
        """Send what is posted, for ever or until the connection breaks."""
        while True:
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            if data:
                try:
                    await self._stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
            else:
                self._wake = trio.Event()
                await self._wake.wait()

    async def receive(self) -> list[list[Any]]:
        """What the worker says next, one or several messages; nothing: it ended.

        Raises:
            MessageError: It said something that is no message.
        """
        messages: list[list[Any]] = []
        while not messages:
            try:
                data = await self._connection.recv(RECEIVE_SIZE)
            except (OSError, trio.ClosedResourceError):
                return []
            if not data:
                return []
            messages = self._reader.feed(data)
        return messages

    def kill(self) -> None:
        """End it at once."""
        self._process.send_signal(signal.SIGKILL)

    def hang_up(self) -> None:
        """Close the connection: the worker ends when it has done what it is doing."""
        self._connection.close()

    async def reap(self, patience_s: float) -> int:
        """Wait for its end, kill it when that takes too long, and free what was shared.

        Returns:
            The exit code; -n for signal n.
        """
        with trio.move_on_after(patience_s) as scope:
            await trio.lowlevel.wait_readable(self._pidfd)
        if scope.cancelled_caught:
            self.kill()
            await trio.lowlevel.wait_readable(self._pidfd)
        trio.lowlevel.notify_closing(self._pidfd)
        os.close(self._pidfd)
        self.last_progress = self.progress.read()
        self.progress.close()
        self.page.close()
        return self._process.wait()


def end_in_words(code: int) -> str:
    """How a process ended, from what `reap` returned."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _spawn(
    settings: TokenSettings, directory: Path, inherited: tuple[int, int, int]
) -> "subprocess.Popen[bytes]":
    command = [
        sys.executable,
        "-m",
        "hsmux_gateway.hsm.worker",
        *map(str, inherited),
        adapter_path(faults="HSMUX_ADAPTER_RULES" in settings.environment),
        settings.token_label,
        str(settings.pin_path()),
        str(directory),
    ]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        # What a module prints must not mix with what a command prints.
        stdout=2,
        pass_fds=inherited,
        env=_environment(settings),
    )


def _environment(settings: TokenSettings) -> dict[str, str]:
    environment = {
        **os.environ,
        **settings.environment,
        "HSMUX_ADAPTER_MODULE": settings.module,
    }
    if settings.parameters:
        environment["HSMUX_ADAPTER_PARAMETERS"] = settings.parameters
    return environment
