"""The generator: one connection that keeps a number of requests open and does little else.

Theory of operation
-------------------
What is measured is on the other side, so everything here is made ready before: requests are
encoded once and sent again and again, answers are only cut into frames by their lengths and kept.
They are decoded and checked when the clock has stopped, every one of them.

Requests come in groups; a group goes out when the answers to the one `window` groups before it are
all there, so its ids are free again. Answers may come in any order within the window. The socket
does not block: while requests wait for room, answers are read, so neither side can stop the other.
"""

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from hsmux.profiles import Profile, split_address
from hsmux_protocol.connection import ALPN, VERSION, ClientConnection
from hsmux_protocol.fields import read_fields, write_fields
from hsmux_protocol.frames import (
    LENGTH_SIZE,
    Error,
    Hello,
    Request,
    Result,
    Welcome,
    decode_frame,
    encode_frame,
)
from hsmux_protocol.limits import FRAME_SIZE_MAX
from hsmux_protocol.operations import OPERATIONS

from ..failure import Failure
from .rows import WrongAnswer

__all__ = ["Flow", "Generator", "Group", "connect", "group_of"]

TIMEOUT_S: Final = 30.0
"""Seconds without any answer after which a gateway is taken for dead."""

RECEIVE_SIZE: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Group:
    """Requests that go out together, encoded.

    Attributes:
        operation: Their name in the operation table; empty for a peer without protocol.
        ids: Of the requests, in order.
        data: Their frames.
    """

    operation: str
    ids: tuple[int, ...]
    data: bytes = field(repr=False)


def group_of(operation: str, first_id: int, requests: Sequence[tuple[Any, ...]]) -> Group:
    """Encode requests of one operation.

    Args:
        operation: Its name.
        first_id: The first request's id; the others follow.
        requests: The arguments of each.
    """
    record = OPERATIONS[operation]
    ids = tuple(range(first_id, first_id + len(requests)))
    frames = [
        encode_frame(
            Request(number, record.number, 0, write_fields(record.arguments, arguments), {}),
            size_max=FRAME_SIZE_MAX,
        )
        for number, arguments in zip(ids, requests, strict=True)
    ]
    return Group(operation, ids, b"".join(frames))


@dataclass(frozen=True, slots=True)
class Flow:
    """What went through a connection in one go.

    Attributes:
        groups: What was sent, in order.
        frames: The bodies of the answers as they came.
        wall_ns: From the first byte to the last answer.
        cpu_ns: Processor time of the generator in that time.
    """

    groups: list[Group]
    frames: list[bytes]
    wall_ns: int
    cpu_ns: int

    def results(self) -> Iterator[list[list[Any]]]:
        """For each group that was sent, the results of its requests in their order.

        Raises:
            WrongAnswer: A request was refused, or answers are missing, doubled or nobody's.
        """
        answers: dict[int, deque[list[Any]]] = {}
        for body in self.frames:
            frame = decode_frame(body)
            if isinstance(frame, Error):
                raise WrongAnswer(f"a request was refused: {frame.text}")
            if not isinstance(frame, Result):
                raise WrongAnswer(f"{type(frame).__name__} is no answer to a request")
            answers.setdefault(frame.id, deque()).append(frame.values)
        for group in self.groups:
            if not all(answers.get(number) for number in group.ids):
                raise WrongAnswer("a request has no answer")
            fields = OPERATIONS[group.operation].results
            yield [read_fields(fields, answers[number].popleft()) for number in group.ids]
        if any(answers.values()):
            raise WrongAnswer("there are more answers than requests")


class Generator:
    """A connection. Use `connect`."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls
        self._buffer = bytearray()
        self._chunk = memoryview(bytearray(RECEIVE_SIZE))

    def greet(self) -> None:
        """HELLO and WELCOME, which a peer without protocol does not need."""
        protocol = ClientConnection()
        self._tls.setblocking(True)
        self._tls.sendall(protocol.send(Hello([VERSION], [], "hsmux bench")))
        while (frame := protocol.next_frame()) is None:
            protocol.receive_data(self._tls.recv(RECEIVE_SIZE))
        if not isinstance(frame, Welcome):
            raise WrongAnswer(f"{type(frame).__name__} instead of WELCOME")
        self._tls.setblocking(False)

    def run(self, groups: Sequence[Group], *, window: int, seconds: float | None = None) -> Flow:
        """Send groups and keep what is answered.

        Args:
            groups: At least `window`, all of the same number of requests, with different ids.
            window: Groups open at a time.
            seconds: Send them in turn for so long; None: send each once.
        """
        size, frames = len(groups[0].ids), list[bytes]()
        sent, unsent = 0, memoryview(b"")
        cpu, began = time.thread_time_ns(), time.perf_counter_ns()
        end = None if seconds is None else began + int(seconds * 1e9)
        while True:
            is_over = sent == len(groups) if end is None else time.perf_counter_ns() >= end
            if not is_over and not unsent and sent - len(frames) // size < window:
                unsent = memoryview(groups[sent % len(groups)].data)
                sent += 1
            elif is_over and len(frames) >= sent * size:
                break
            unsent = self._send(unsent)
            if unsent or sent - len(frames) // size >= window or is_over:
                self._receive(frames, is_writing=bool(unsent))
        wall_ns, cpu_ns = time.perf_counter_ns() - began, time.thread_time_ns() - cpu
        return Flow([groups[n % len(groups)] for n in range(sent)], frames, wall_ns, cpu_ns)

    def _send(self, unsent: memoryview) -> memoryview:
        """Send what the socket takes; what is left."""
        while unsent:
            try:
                unsent = unsent[self._tls.send(unsent) :]
            except ssl.SSLWantWriteError:
                break
        return unsent

    def _receive(self, frames: list[bytes], *, is_writing: bool) -> None:
        """Take what has come, or wait until something does or the socket has room again."""
        try:
            size = self._tls.recv_into(self._chunk)
        except ssl.SSLWantReadError:
            writers = [self._tls] if is_writing else []
            if not any(select.select([self._tls], writers, [], TIMEOUT_S)):
                raise Failure(f"no answer came for {TIMEOUT_S:.0f} s") from None
            return
        if not size:
            raise WrongAnswer("the connection was closed before all answers had come")
        self._buffer += self._chunk[:size]
        start = 0
        with memoryview(self._buffer) as view:
            while len(view) >= (body := start + LENGTH_SIZE):
                end = body + int.from_bytes(view[start:body], "big")
                if end > len(view):
                    break
                frames.append(bytes(view[body:end]))
                start = end
        del self._buffer[:start]


@contextmanager
def connect(
    profile: Profile, port: int | None = None, *, greet: bool = True
) -> Iterator[Generator]:
    """A generator's connection with the certificate of a profile.

    Args:
        profile: Names the certificate and the CA.
        port: Of a yardstick that serves; None: the gateway.
        greet: Whether the peer speaks the protocol.

    Raises:
        Failure: The connection cannot be made.
    """
    host, gateway_port = split_address(profile.addresses[0])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(profile.ca)
    context.load_cert_chain(profile.certificate, profile.private_key)
    context.set_alpn_protocols([ALPN])
    with (
        socket.create_connection((host, port or gateway_port), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=profile.server_name) as tls,
    ):
        tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls.setblocking(False)
        generator = Generator(tls)
        if greet:
            generator.greet()
        yield generator
