"""A TCP proxy on loopback that a test can tell to cut, stall or forget."""

import select
import socket
import threading
from types import TracebackType
from typing import Self

PIECE = 65536


class Proxy:
    """Forwards connections to an address.

    Attributes:
        address: Where it listens, `host:port`.
        accepted: How many connections it took.
        swallow_answers: Bytes from the gateway are read and thrown away.
        stalled: Nothing is forwarded in either direction.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.accepted = 0
        self.swallow_answers = False
        self.stalled = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._is_closing = False

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_closing = True
        self._listening.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def cut(self) -> None:
        """End all connections now, in both directions."""
        for pair in self._pairs:
            for side in pair:
                try:
                    side.shutdown(socket.SHUT_RDWR)
                except OSError:
                    # It has ended by itself.
                    continue

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._is_closing:
            try:
                ours, _ = self._listening.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                theirs = socket.create_connection(self._target)
            except OSError:
                ours.close()
                continue
            self._pairs.append((ours, theirs))
            self._start(self._forward, ours, theirs)

    def _forward(self, ours: socket.socket, theirs: socket.socket) -> None:
        other = {ours: theirs, theirs: ours}
        with ours, theirs:
            while not self._is_closing:
                if self.stalled.is_set():
                    select.select([], [], [], 0.01)
                    continue
                for side in select.select([ours, theirs], [], [], 0.05)[0]:
                    try:
                        data = side.recv(PIECE)
                        if side is ours or not self.swallow_answers:
                            other[side].sendall(data)
                    except OSError:
                        data = b""
                    if not data:
                        return
