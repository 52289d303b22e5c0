"""A client of a few lines over the state machine: for tests that look at frames and bytes."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hsmux_protocol.connection import ALPN, VERSION, ClientConnection
from hsmux_protocol.errors import error_from_wire
from hsmux_protocol.fields import read_fields, write_fields
from hsmux_protocol.frames import Error, Frame, Hello, Request, Result
from hsmux_protocol.operations import OPERATIONS

TIMEOUT_S = 20.0


def client_context(directory: Path) -> ssl.SSLContext:
    """A TLS context with a client key made by init."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(directory / "ca.pem")
    context.load_cert_chain(directory / "administrator.pem", directory / "administrator.key")
    context.set_alpn_protocols([ALPN])
    return context


class RawClient:
    """Blocking, one request at a time unless a test says otherwise."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self.tls = tls
        self.protocol = ClientConnection()
        self._next_id = 0

    def hello(self) -> Frame:
        """Say HELLO and return what comes."""
        self.tls.sendall(self.protocol.send(Hello([VERSION], [], "raw")))
        return self.receive()

    def receive(self) -> Frame:
        """The next frame."""
        while True:
            frame = self.protocol.next_frame()
            if frame is not None:
                return frame
            data = self.tls.recv(65536)
            if not data:
                raise EOFError
            self.protocol.receive_data(data)

    def request(self, name: str, *arguments: Any, **options: Any) -> int:
        """Send a request; its id."""
        self._next_id += 1
        operation = OPERATIONS[name]
        budget_ms = options.pop("budget_ms", 0)
        values = write_fields(operation.arguments, arguments)
        request = Request(self._next_id, operation.number, budget_ms, values, options)
        self.tls.sendall(self.protocol.send(request))
        return self._next_id

    def call(self, name: str, *arguments: Any, **options: Any) -> list[Any]:
        """Do one request and read its results; a refusal is raised."""
        self.request(name, *arguments, **options)
        frame = self.receive()
        if isinstance(frame, Error):
            raise error_from_wire(
                frame.number,
                frame.text,
                reference=frame.reference,
                retry_after_ms=frame.retry_after_ms,
            )
        assert isinstance(frame, Result)
        return read_fields(OPERATIONS[name].results, frame.values)


@contextmanager
def connect(address: str, context: ssl.SSLContext) -> Iterator[RawClient]:
    """A connection after HELLO and WELCOME."""
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = RawClient(tls)
        client.hello()
        yield client
