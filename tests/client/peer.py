"""A gateway of a few lines that does what a test tells it: without a socket, or on loopback.

It speaks real TLS and the real state machine of the gateway's end, so that it can break the rules
only where a test wants it to.
"""

import datetime
import random
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trustme

from hsmux.profiles import Profile
from hsmux_protocol.columns import column_count, pack_u16_column
from hsmux_protocol.connection import ALPN, ANNOUNCED_LIMITS, VERSION, ServerConnection
from hsmux_protocol.errors import Cancelled, HsmuxError
from hsmux_protocol.frames import Cancel, Error, Frame, Goaway, Hello, Request, Result, Welcome
from hsmux_protocol.operations import OPERATION_BY_NUMBER

PIECE = 65536
TIMEOUT_S = 60.0


class Certificates:
    """A CA, a gateway's certificate and client keys, in files.

    Args:
        directory: Where the client's files are written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ca = trustme.CA()
        self._server = self._ca.issue_cert("localhost", "127.0.0.1")
        self.ca_path = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca_path))

    def profile(self, *addresses: str, server_name: str | None = "localhost") -> Profile:
        """How a client reaches addresses with a good client key."""
        return Profile(addresses, *self.client_files(), str(self.ca_path), server_name)

    def arguments(self, *addresses: str, **others: Any) -> dict[str, Any]:
        """What `connect` needs to reach addresses with a good client key."""
        certificate, private_key = self.client_files()
        return {
            "addresses": addresses,
            "certificate": certificate,
            "private_key": private_key,
            "ca": self.ca_path,
            "server_name": "localhost",
            **others,
        }

    def client_files(
        self, name: str = "client", ca: trustme.CA | None = None, **options: Any
    ) -> tuple[str, str]:
        """Paths of a client certificate and its private key."""
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        made = (ca or self._ca).issue_cert(f"{name}@example.org", **options)
        made.cert_chain_pems[0].write_to_path(str(certificate))
        key.touch(mode=0o600)
        made.private_key_pem.write_to_path(str(key))
        return str(certificate), str(key)

    def expired_files(self) -> tuple[str, str]:
        """As `client_files`, but its time is over."""
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        return self.client_files("expired", not_before=now - 2 * day, not_after=now - day)

    def server_context(self) -> ssl.SSLContext:
        """As the gateway's: TLS 1.3, client certificates required."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.num_tickets = 0
        context.set_alpn_protocols([ALPN])
        context.load_verify_locations(cadata=self._ca.cert_pem.bytes().decode())
        self._server.configure_cert(context)
        return context


def welcome(**limits: int) -> Welcome:
    """A WELCOME, with other limits where a test wants them."""
    return Welcome(VERSION, [], {**ANNOUNCED_LIMITS, **limits}, bytes(16), "test")


def error_frame(request_id: int, error: HsmuxError) -> Error:
    """What the gateway answers for an error."""
    return Error(
        request_id,
        error.number,
        error.family,
        error.retryable,
        error.retry_after_ms,
        error.text,
        error.reference,
    )


class Peer:
    """The gateway's end of one connection, without a socket.

    Attributes:
        protocol: The state machine.
        ended: Whether the client said close_notify or was refused.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._is_handshaken = False
        self.protocol = ServerConnection()
        self.ended = False

    def receive(self, data: bytes) -> list[Frame]:
        """Take received bytes; the frames that they complete."""
        self._incoming.write(data)
        try:
            if not self._is_handshaken:
                self._tls.do_handshake()
                self._is_handshaken = True
            while piece := self._tls.read(PIECE):
                self.protocol.receive_data(piece)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.ended = True
        frames = []
        while (frame := self.protocol.next_frame()) is not None:
            frames.append(frame)
        return frames

    def send(self, *frames: Frame) -> None:
        """Encrypt frames that the protocol allows."""
        for frame in frames:
            self.write(self.protocol.send(frame))

    def write(self, plaintext: bytes) -> None:
        """Encrypt any bytes, the format's or not."""
        if plaintext:
            self._tls.write(plaintext)

    def close_notify(self) -> None:
        """Say that nothing more will come."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            # The client's own close_notify has not come yet.
            return

    def take_outgoing(self) -> bytes:
        """The bytes to send."""
        return self._outgoing.read()


class Conversation:
    """A peer on a socket, for a script that runs in a thread of its own.

    Attributes:
        number: Counts the connections from 0.
    """

    def __init__(self, context: ssl.SSLContext, accepted: socket.socket, number: int) -> None:
        self.peer = Peer(context)
        self.number = number
        self.socket = accepted
        self._frames: list[Frame] = []

    def receive(self) -> Frame:
        """The next frame.

        Raises:
            EOFError: The client has gone.
        """
        while not self._frames:
            data = self.socket.recv(PIECE)
            if not data or self.peer.ended:
                raise EOFError
            self._frames = self.peer.receive(data)
            self.flush()
            if self.peer.ended and not self._frames:
                raise EOFError
        return self._frames.pop(0)

    def has_more(self) -> bool:
        """Whether the client has sent more than was received."""
        return bool(self._frames or select.select([self.socket], [], [], 0)[0])

    def request(self) -> Request:
        """The next request; other frames are passed over."""
        while True:
            frame = self.receive()
            if isinstance(frame, Request):
                return frame

    def send(self, *frames: Frame) -> None:
        """Send frames."""
        self.peer.send(*frames)
        self.flush()

    def flush(self) -> None:
        """Send what was encrypted."""
        self.socket.sendall(self.peer.take_outgoing())

    def greet(self, **limits: int) -> None:
        """Take HELLO and say WELCOME."""
        assert isinstance(self.receive(), Hello)
        self.send(welcome(**limits))

    def answer(self, request: Request) -> None:
        """A well-formed answer."""
        self.send(Result(request.id, result_of(request)))

    def serve(self) -> None:
        """Answer every request until the client goes."""
        while True:
            self.answer(self.request())

    def wait_for_end(self) -> None:
        """Read until the client goes."""
        while True:
            self.receive()


def result_of(request: Request) -> list[Any]:
    """Result values of a request that needs no key, or for which a plaintext will do."""
    name = OPERATION_BY_NUMBER[request.operation].name
    if name == "generate_random":
        return [request.arguments[0] * b"r"]
    if name == "encrypt":
        return [request.arguments[2], bytes(16), 1]
    if name == "encrypt_batch":
        column = request.arguments[3]
        return [pack_u16_column([0] * column_count(column)), column, bytes(16), 1]
    assert name == "create_access_point"
    name, description, policies, mtls, _ = request.arguments
    return [[bytes(16), name, description, "Enabled", policies, [], 0, mtls, [0, 0, 0]]]


Script = Callable[[Conversation], None]


def greet_and_serve(conversation: Conversation) -> None:
    """The script of a gateway that works."""
    conversation.greet()
    conversation.serve()


def serve_one(conversation: Conversation) -> None:
    """The script of a gateway whose connections are good for one request."""
    conversation.greet()
    conversation.answer(conversation.request())


def serve_few(conversation: Conversation) -> None:
    """The script of a gateway whose connections are good for a few requests."""
    conversation.greet()
    for _ in range(1 + conversation.number % 7):
        conversation.answer(conversation.request())


def chaos(pipeline_max: int) -> Script:
    """A script that answers in random order and bursts, leaves, and ends connections."""

    def script(conversation: Conversation) -> None:
        chance = random.Random(conversation.number)
        conversation.greet(pipeline_max=pipeline_max)
        held: list[Request] = []
        is_leaving = False
        while True:
            frame = conversation.receive()
            if isinstance(frame, Request):
                held.append(frame)
            elif isinstance(frame, Cancel) and frame.id in {request.id for request in held}:
                held = [request for request in held if request.id != frame.id]
                conversation.send(error_frame(frame.id, Cancelled("cancelled")))
            if not is_leaving and chance.random() < 0.005:
                is_leaving = True
                conversation.send(Goaway(0, "going"))
            if chance.random() < 0.005:
                return
            if not conversation.has_more() or chance.random() < 0.2:
                chance.shuffle(held)
                while held:
                    conversation.answer(held.pop())

    return script


@contextmanager
def scripted_gateway(
    certificates: Certificates, script: Script, *, buffer_size: int | None = None
) -> Iterator[str]:
    """A listening gateway whose every connection follows a script; yields its address.

    Args:
        certificates: Of the gateway and its clients.
        script: What to do with each connection.
        buffer_size: Bytes of its sockets' buffers; None: what the kernel likes.

    A script ends by returning or when the client has gone, and its connection with it; what else
    goes wrong in one is raised at the end.
    """
    context = certificates.server_context()
    failures: list[BaseException] = []
    threads: list[threading.Thread] = []
    accepted: list[socket.socket] = []

    def talk(connected: socket.socket, number: int) -> None:
        with connected:
            try:
                script(Conversation(context, connected, number))
            except (EOFError, ConnectionError, TimeoutError, ssl.SSLEOFError):
                # The client has gone.
                return
            except BaseException as error:
                failures.append(error)

    def accept(listening: socket.socket) -> None:
        while True:
            try:
                connected, _ = listening.accept()
            except OSError:
                return
            connected.settimeout(TIMEOUT_S)
            accepted.append(connected)
            threads.append(threading.Thread(target=talk, args=(connected, len(threads) - 1)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        if buffer_size is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_size)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_size)
        threads.append(threading.Thread(target=accept, args=(listening,)))
        threads[0].start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            threads[0].join()
            for connected in accepted:
                try:
                    connected.shutdown(socket.SHUT_RDWR)
                except OSError:
                    # Its script has ended.
                    continue
            for thread in threads:
                thread.join()
    if failures:
        raise failures[0]
