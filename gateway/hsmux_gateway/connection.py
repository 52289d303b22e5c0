"""One client's connection: frames in, calls to the engine, answers out.

Theory of operation
-------------------
One task reads. It decrypts, decodes one frame at a time, and either does the call itself (software
keys: nothing to wait for) or starts a task for it. Any task that has finished a call puts the
answer into `_answers` and flushes; the first to come flushes for all that come meanwhile, so
answers of a burst share one audit write, one TLS write and one system call. Answers leave in the
order they are done.

The order that must hold: an answer is encoded, its record is flushed to the operating system, and
only then does TLS see it. If the flush fails, none of these answers leaves.

Back pressure is not reading. The reader stops decoding while `REQUESTS_IN_FLIGHT_MAX` calls have
tasks, or while more than `ANSWERS_SIZE_MAX` bytes of answers wait for a peer that does not read
them; unread requests stay in the kernel and then with the peer. A frame larger than 64 KiB needs a
unit of the gateway's large-buffer budget before more of it is read.

Time: handshake and HELLO together have `handshake_timeout_s`; a frame that has begun must come at
1 KiB a second after `frame_timeout_s`; a connection with nothing open is closed after
`idle_timeout_s`; a peer that does not read its answers for `send_timeout_s` is dropped.

Authority is checked per call by the engine, so a revoked client key is refused on an open
connection too; the connection then closes.

Cancellation: CANCEL cancels the call's scope. A change that has reached its effect is shielded and
finishes (see `changes`); the caller gets the one answer that is true.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
import trio

from hsmux_protocol.connection import ANNOUNCED_LIMITS, VERSION, ServerConnection, State
from hsmux_protocol.errors import (
    Cancelled,
    DeadlineExceeded,
    HsmuxError,
    InvalidArgument,
    ProtocolError,
    RemoteProtocolError,
    Unauthenticated,
)
from hsmux_protocol.fields import read_fields
from hsmux_protocol.frames import (
    Cancel,
    Error,
    Frame,
    Goaway,
    Hello,
    Ping,
    Pong,
    Request,
    Result,
    Welcome,
)
from hsmux_protocol.limits import REQUESTS_IN_FLIGHT_MAX
from hsmux_protocol.operations import OPERATION_BY_NUMBER, OPTIONS, Operation

from .audit.recorder import RecordError
from .call import Call, Principal
from .config import Limits
from .engine import Engine
from .tls import TlsClosed, TlsStream

__all__ = ["Connection", "ConnectionFacts", "read_call"]

log = structlog.get_logger("hsmux.connection")

ANSWERS_SIZE_MAX: Final = 256 * 1024
"""Bytes of answers waiting for the peer; more stop the reader."""

LARGE_BUFFER_SIZE: Final = 64 * 1024
"""Bytes a connection may hold of its own; beyond, it takes a unit of the shared budget."""

FRAME_RATE_MIN: Final = 1024
"""Bytes a second a frame must make once `frame_timeout_s` is over."""

ERROR_TEXT_MAX: Final = 500
"""Characters of an error's text: what a caller sent may be quoted in it, and that has no bound."""

INLINE_FRAMES_MAX: Final = 64
"""Inline calls done before other tasks get their turn."""


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """What every connection of a gateway shares.

    Attributes:
        engine: Does the calls.
        authenticate: The principal of a certificate (DER), or Unauthenticated.
        runs_inline: Whether a call waits for nothing.
        new_reference: Makes references.
        deployment: 16 bytes, announced in WELCOME.
        limits: From the configuration.
        large_buffers: The budget for frames beyond `LARGE_BUFFER_SIZE`.
    """

    engine: Engine
    authenticate: Callable[[bytes], Principal]
    runs_inline: Callable[[Call], bool]
    new_reference: Callable[[], str]
    deployment: bytes
    limits: Limits
    large_buffers: trio.Semaphore


def read_call(request: Request) -> tuple[Operation, list[Any]]:
    """The operation and the read arguments of a request.

    Raises:
        ProtocolError: The operation is unknown.
        InvalidArgument: An argument or option does not fit; the text names it.
    """
    operation = OPERATION_BY_NUMBER.get(request.operation)
    if operation is None:
        raise ProtocolError(f"operation {request.operation} is unknown to this gateway")
    try:
        arguments = read_fields(operation.arguments, request.arguments)
        for name, value in request.options.items():
            if name not in OPTIONS or not operation.changes:
                raise ValueError(f"option {name!r} is not known for {operation.name}")
            OPTIONS[name].read(value)
    except ValueError as error:
        raise InvalidArgument(f"{operation.name}: {error}") from None
    return operation, arguments


class Connection:
    """One connection from handshake to close.

    Args:
        tls: The accepted stream, not yet shaken hands.
        peer_address: For records and logs.
        facts: What all connections share.
    """

    def __init__(self, tls: TlsStream, peer_address: str, facts: ConnectionFacts) -> None:
        self._tls = tls
        self._peer_address = peer_address
        self._facts = facts
        self._protocol = ServerConnection()
        self._principal: Principal | None = None
        self._answers: list[bytes] = []
        self._answers_size = 0
        self._flushing = False
        self._drained = trio.Event()
        self._frame_began: float | None = None
        self._scopes: dict[int, trio.CancelScope] = {}
        self._cancelled: set[int] = set()
        self._changed = trio.Event()
        self._reader_scope = trio.CancelScope()
        self._unauthenticated = False
        self._has_large_buffer = False
        self.draining = False

    def __repr__(self) -> str:
        name = self._principal.access_point if self._principal else "nobody yet"
        return f"Connection({name}, {self._protocol.state.value}, {len(self._scopes)} in work)"

    @property
    def is_idle(self) -> bool:
        """Whether nothing is open and nothing waits to be sent."""
        return not self._protocol.open_ids and not self._answers

    async def run(self) -> None:
        """Serve the connection to its end; every reason to end is logged, none is raised."""
        reason = "closed"
        try:
            await self._open()
            async with trio.open_nursery() as nursery:
                with self._reader_scope:
                    await self._read(nursery)
                await self._finish()
                nursery.cancel_scope.cancel()
        except* TlsClosed as group:
            reason = str(group.exceptions[0])
        except* RecordError as group:
            reason = str(group.exceptions[0])
        except* trio.TooSlowError:
            reason = "too slow"
        finally:
            self._release_large_buffer()
            with trio.CancelScope(shield=True):
                await self._tls.close()
            log.info("connection closed", peer=self._peer_address, reason=reason)

    async def drain(self) -> None:
        """Say GOAWAY; the connection ends when its open requests are answered."""
        self.draining = True
        if self._protocol.state is State.OPEN:
            with suppress(TlsClosed, RecordError, trio.TooSlowError):
                await self._send(Goaway(0, "the gateway is stopping; connect again"))
        if self.is_idle:
            self._reader_scope.cancel()

    async def _open(self) -> None:
        """TLS handshake, HELLO, who it is, WELCOME."""
        try:
            with trio.fail_after(self._facts.limits.handshake_timeout_s):
                await self._tls.handshake()
                hello = await self._next_hello()
        except RemoteProtocolError as error:
            await self._refuse(ProtocolError(str(error)))
            raise TlsClosed(f"protocol: {error}") from None
        try:
            if VERSION not in hello.versions:
                raise ProtocolError(f"this gateway speaks version {VERSION} only")
            self._principal = self._facts.authenticate(self._tls.peer_certificate)
        except HsmuxError as error:
            await self._refuse(error)
            raise TlsClosed(f"refused: {error.text}") from None
        name = self._principal.access_point
        welcome = Welcome(VERSION, [], ANNOUNCED_LIMITS, self._facts.deployment, name)
        await self._send(welcome)

    async def _next_hello(self) -> Hello:
        while True:
            frame = self._protocol.next_frame()
            if isinstance(frame, Hello):
                return frame
            data = await self._tls.receive()
            self._protocol.receive_data(data)
            if not data:
                raise TlsClosed("closed before HELLO")

    async def _read(self, nursery: trio.Nursery) -> None:
        """Take frames until the peer ends, breaks the protocol or may no longer speak.

        A peer that ends is not waiting any more: its open calls are cancelled.
        """
        try:
            while not self._unauthenticated:
                await self._take_frames(nursery)
                await self._flush()
                if self.draining and self.is_idle:
                    return
                data = await self._receive()
                self._protocol.receive_data(data)
                if not data:
                    self._cancel_all()
                    return
        except RemoteProtocolError as error:
            log.info("protocol error", peer=self._peer_address, error=str(error))
            await self._flush()
            await self._refuse(ProtocolError(str(error)))
            raise TlsClosed(f"protocol: {error}") from None

    async def _receive(self) -> bytes:
        while True:
            held = self._protocol.buffered_size
            await self._lease_large_buffer(held)
            with trio.move_on_at(self._receive_deadline(held)) as scope:
                return await self._tls.receive()
            if scope.cancelled_caught and (held or not self._protocol.open_ids):
                raise trio.TooSlowError

    def _receive_deadline(self, held: int) -> float:
        now, limits = trio.current_time(), self._facts.limits
        if not held:
            return now + limits.idle_timeout_s
        if self._frame_began is None:
            self._frame_began = now
        return self._frame_began + limits.frame_timeout_s + held / FRAME_RATE_MIN

    async def _lease_large_buffer(self, held: int) -> None:
        if held > LARGE_BUFFER_SIZE and not self._has_large_buffer:
            await self._facts.large_buffers.acquire()
            self._has_large_buffer = True
        elif held <= LARGE_BUFFER_SIZE:
            self._release_large_buffer()

    async def _take_frames(self, nursery: trio.Nursery) -> None:
        """Decode and dispatch every whole frame that was received, as far as there is room."""
        inline = 0
        while not self._unauthenticated:
            await self._wait_for_room()
            frame = self._protocol.next_frame()
            if frame is None:
                return
            self._frame_began = None
            if isinstance(frame, Request):
                if not await self._take_request(nursery, frame):
                    continue
                inline += 1
                if inline % INLINE_FRAMES_MAX == 0:
                    await self._flush()
                    await trio.lowlevel.checkpoint()
            else:
                self._take_other(frame)

    async def _wait_for_room(self) -> None:
        """Wait while too many calls are in work or too many answers are unread."""
        while len(self._scopes) >= REQUESTS_IN_FLIGHT_MAX:
            await self._flush()
            if len(self._scopes) >= REQUESTS_IN_FLIGHT_MAX:
                self._changed = trio.Event()
                await self._changed.wait()
        while self._answers_size > ANSWERS_SIZE_MAX:
            await self._flush()
            if self._flushing:
                self._drained = trio.Event()
                await self._drained.wait()

    def _take_other(self, frame: Frame) -> None:
        if isinstance(frame, Cancel):
            scope = self._scopes.get(frame.id)
            if scope is not None:
                self._cancelled.add(frame.id)
                scope.cancel()
        elif isinstance(frame, Ping):
            self._answer(Pong(frame.number))

    async def _take_request(self, nursery: trio.Nursery, request: Request) -> bool:
        """Do a request inline (True) or start its task (False)."""
        assert self._principal is not None
        reference = self._facts.new_reference()
        try:
            operation, arguments = read_call(request)
        except HsmuxError as error:
            error.reference = reference
            self._answer(_error_frame(request.id, error))
            return True
        budget_ms = min(
            request.budget_ms or operation.deadline_default_ms, operation.deadline_max_ms
        )
        call = Call(
            self._principal,
            self._peer_address,
            operation,
            arguments,
            request.options,
            time.monotonic() + budget_ms / 1000,
            reference,
        )
        if self._facts.runs_inline(call):
            self._answer(await self._do(request.id, call))
            return True
        self._scopes[request.id] = trio.CancelScope()
        nursery.start_soon(self._serve, request.id, call)
        return False

    async def _serve(self, request_id: int, call: Call) -> None:
        """A task for one call that waits for something."""
        scope = self._scopes[request_id]
        scope.deadline = trio.current_time() + call.deadline - time.monotonic()
        answer: Frame | None = None
        with scope:
            answer = await self._do(request_id, call)
        if answer is None:
            error = self._cancellation(request_id)
            error.reference = call.reference
            answer = _error_frame(request_id, error)
        del self._scopes[request_id]
        self._cancelled.discard(request_id)
        self._changed.set()
        self._answer(answer)
        await self._flush()
        if self._unauthenticated or (self.draining and self.is_idle):
            self._reader_scope.cancel()

    def _cancellation(self, request_id: int) -> HsmuxError:
        if request_id in self._cancelled:
            return Cancelled("cancelled by the caller")
        return DeadlineExceeded("the time for this request ran out")

    async def _do(self, request_id: int, call: Call) -> Frame:
        try:
            return Result(request_id, await self._facts.engine.call(call))
        except Unauthenticated as error:
            self._unauthenticated = True
            return _error_frame(request_id, error)
        except HsmuxError as error:
            return _error_frame(request_id, error)

    def _answer(self, frame: Frame) -> None:
        """Put an answer into the queue; it leaves at the next flush."""
        data = self._protocol.send(frame)
        self._answers.append(data)
        self._answers_size += len(data)

    async def _flush(self) -> None:
        """Record, then send everything queued; does nothing while another task is at it."""
        if self._flushing:
            return
        self._flushing = True
        try:
            while self._answers:
                data = b"".join(self._answers)
                self._answers.clear()
                self._facts.engine.recorder.flush()
                with trio.fail_after(self._facts.limits.send_timeout_s):
                    await self._tls.send_all(data)
                self._answers_size -= len(data)
                self._drained.set()
        finally:
            self._flushing = False

    async def _send(self, frame: Frame) -> None:
        self._answer(frame)
        await self._flush()

    async def _refuse(self, error: HsmuxError) -> None:
        """Say why the whole connection ends, if it can still be said."""
        error.reference = error.reference or self._facts.new_reference()
        frame = _error_frame(0, error)
        with suppress(TlsClosed, RecordError, trio.TooSlowError):
            await self._tls.send_all(self._protocol.farewell(frame))

    async def _finish(self) -> None:
        """Let calls in work end and their answers leave, then say why if the key is refused."""
        while self._scopes:
            self._changed = trio.Event()
            await self._changed.wait()
        await self._flush()
        if self._unauthenticated:
            await self._refuse(Unauthenticated("this client key is not accepted any more"))

    def _cancel_all(self) -> None:
        for scope in self._scopes.values():
            scope.cancel()

    def _release_large_buffer(self) -> None:
        if self._has_large_buffer:
            self._has_large_buffer = False
            self._facts.large_buffers.release()


def _error_frame(request_id: int, error: HsmuxError) -> Error:
    return Error(
        request_id,
        error.number,
        error.family,
        error.retryable,
        error.retry_after_ms,
        error.text[:ERROR_TEXT_MAX],
        error.reference,
    )
