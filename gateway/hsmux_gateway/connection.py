"""One client's connection: frames in, calls to the engine, answers out.

Theory of operation
-------------------
One task reads. It decrypts, decodes one frame at a time, and either does the call itself (software
keys: nothing to wait for), with others that join it (see `runs`), or starts a task for it. Any task
that has finished a call queues its answer and flushes (see `answers`).

Back pressure is not reading. When `REQUESTS_IN_FLIGHT_MAX` calls have tasks, further ones that need
one are held, so that what concerns them, a CANCEL or a PING, is still seen. The reader stops
decoding when it may hold no more (`HELD_SIZE_MAX`, and a lease), or while more than
`ANSWERS_SIZE_MAX` bytes of answers wait for a peer that does not read them; unread requests stay in
the kernel and then with the peer. Memory beyond the connection's own is leased (see `buffers`):
without a lease no more of a large frame is read, and a call is Busy.

Fairness: the reader decrypts (see `tls`), decodes and does calls in slices of `SLICE_NS`, and takes
a turn of its access point for each (see `fairness`), so neither a flood nor many connections keep
the event loop from others.

Time: handshake and HELLO together have `handshake_timeout_s`; a frame that has begun must come at
1 KiB a second after `frame_timeout_s`, not counting what the gateway made it wait; a connection
with nothing open is closed after `idle_timeout_s`; a peer that does not read its answers for
`send_timeout_s` is dropped. A request's own budget runs from the arrival of its last byte.

Authority is checked per call by the engine, and by `recheck` whenever it may have changed, so a
revoked client key is told so on an open connection too; the connection then closes.

Cancellation: CANCEL cancels the call's scope. A change that has reached its effect is finished (see
`effects`); the caller gets the one answer that is true.

Stopping: GOAWAY and a PING. What the peer sent before it saw the GOAWAY is answered like
everything before; its PONG, or `GRACE_S` without one, says that nothing more is on its way. The
connection ends when nothing is open then.
"""

import enum
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from hsmux_protocol.connection import ALPN, ANNOUNCED_LIMITS, VERSION, ServerConnection, State
from hsmux_protocol.errors import (
    Busy,
    Cancelled,
    DeadlineExceeded,
    Denied,
    HsmuxError,
    InternalError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    Unauthenticated,
)
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

from .answers import Answers
from .audit.segments import RecordError
from .buffers import BufferLease, ConnectionBuffers
from .call import Call, Outcome, Principal
from .clock import now_ms
from .config import Limits
from .engine import Engine, NotRecorded, OverLimit
from .fairness import SLICE_NS, FairBudget, Turns
from .logs import structlog
from .requests import Asked, error_frame, read_request
from .runs import Run
from .tls import TlsClosed, TlsStream, TlsWaste

__all__ = ["Connection", "ConnectionFacts"]

log = structlog.get_logger("hsmux.connection")

ANSWERS_SIZE_MAX: Final = 64 * 1024
"""Bytes of answers waiting for the peer; more stop the reader."""

HELD_SIZE_MAX: Final = 256 * 1024
"""Bytes of requests that wait for a task; more stop the reader."""

HELD_OVERHEAD: Final = 1024
"""Bytes that one of these takes beside those of its frame."""

SMALL_SIZE: Final = 8 * 1024
"""Bytes of a call that is done here without asking for room: it adds no more than this."""

FRAME_RATE_MIN: Final = 1024
"""Bytes a second a frame must make once `frame_timeout_s` is over."""

GRACE_S: Final = 1.0
"""Seconds after GOAWAY for requests that crossed it, from a peer that does not answer the PING."""

GOAWAY_PING: Final = 0x676F61776179
"""The number of the PING behind GOAWAY."""

REFUSALS: Final = (
    *("handshake refused", "no client certificate", f"the peer does not speak {ALPN}"),
    *("a handshake longer than any", "protocol", "refused", "too slow"),
)
"""Why connections end before anybody is known that are counted in the audit log."""

CANCELLED_TEXT: Final = "cancelled by the caller"

RETRY_AFTER_MS: Final = 100
"""What a caller is told to wait when the buffers of all connections are full."""


class _Recorded(enum.Enum):
    """What must have become of a call's record before its answer leaves."""

    NOT = enum.auto()
    WRITTEN = enum.auto()
    DURABLE = enum.auto()


def _recorded(call: Call, outcome: Outcome, *, always_durable: bool) -> _Recorded:
    """Who manages, or is refused, is on record even after a power cut; if wanted, everybody."""
    if isinstance(outcome, NotRecorded | OverLimit):
        return _Recorded.NOT
    if always_durable or isinstance(outcome, Denied | Unauthenticated):
        return _Recorded.DURABLE
    is_management = call.operation.changes and call.operation.plane == "control"
    return _Recorded.DURABLE if is_management else _Recorded.WRITTEN


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """What every connection of a gateway shares.

    Attributes:
        engine: Does the calls.
        authenticate: The principal of a verified chain (DER, leaf first), or Unauthenticated.
        stands: Whether a principal is still accepted.
        runs_inline: Whether a call waits for nothing.
        new_reference: Makes references.
        deployment: 16 bytes, announced in WELCOME.
        limits: From the configuration.
        buffers: Bytes that connections hold beyond their own.
        turns: Shares the event loop.
        always_durable: Whether every record is on the disk before its answer leaves.
    """

    engine: Engine
    authenticate: Callable[[Sequence[bytes]], Awaitable[Principal]]
    stands: Callable[[Principal], bool]
    runs_inline: Callable[[Call], bool]
    new_reference: Callable[[], str]
    deployment: bytes
    limits: Limits
    buffers: FairBudget
    turns: Turns
    always_durable: bool = False


class Connection:
    """One connection from handshake to close.

    Args:
        tls: The accepted stream, not yet shaken hands.
        peer_address: For records and logs.
        facts: What all connections share.
        on_open: Called when the peer has said who it is.

    Attributes:
        draining: Whether GOAWAY was said or will be.
        was_welcomed: Whether the peer has said who it is.
        was_wasteful: Whether it was closed because of what the peer sent for nothing.
    """

    def __init__(
        self,
        tls: TlsStream,
        peer_address: str,
        facts: ConnectionFacts,
        on_open: Callable[["Connection"], None],
    ) -> None:
        self._tls = tls
        self._peer_address = peer_address
        self._facts = facts
        self._on_open = on_open
        self._protocol = ServerConnection()
        self._answers = Answers(tls, facts.engine.journal, facts.limits.send_timeout_s)
        self._principal = Principal(bytes(16), "nobody yet", bytes(16), 0)
        self._buffers = self._buffers_of(b"")
        self._run = Run(facts.engine.joins)
        self._nursery: trio.Nursery | None = None
        self._scopes: dict[int, trio.CancelScope] = {}
        self._held: OrderedDict[int, tuple[Asked, int]] = OrderedDict()
        self._held_size = 0
        self._cancelled: set[int] = set()
        self._changed = trio.Event()
        self._opening = trio.CancelScope()
        self._closing = trio.CancelScope(shield=True)
        self._receiving = trio.CancelScope()
        self._received_at = 0.0
        self._rested_ns = 0
        self._frame_began: float | None = None
        self._unauthenticated = False
        self._nothing_crosses = False
        self.draining = False
        self.was_welcomed = False
        self.was_wasteful = False

    def __repr__(self) -> str:
        name, state = self._principal.access_point, self._protocol.state.value
        return f"Connection({name}, {state}, {len(self._scopes)} in work)"

    def _buffers_of(self, tenant: bytes) -> ConnectionBuffers:
        lease = BufferLease(self._facts.buffers, tenant)
        return ConnectionBuffers(lease, self._protocol, self._answers)

    @property
    def is_open(self) -> bool:
        """Whether the peer was welcomed and may speak."""
        return self._nursery is not None

    @property
    def _is_over(self) -> bool:
        """Whether it is draining and nothing is open, unsent or on its way."""
        if not (self.draining and self._nothing_crosses):
            return False
        return not (self._protocol.open_ids or self._answers.size or self._protocol.buffered_size)

    async def run(self) -> str:
        """Serve the connection to its end; returns why it ended."""
        reason = "closed"
        try:
            with self._opening:
                await self._open()
            if self._opening.cancelled_caught:
                raise TlsClosed("cut off: the gateway is stopping, or too many are opening")
            self.was_welcomed = True
            self._on_open(self)
            await self._serve_open()
        except* (TlsClosed, RecordError) as group:
            reason = str(group.exceptions[0])
            self.was_wasteful = group.subgroup(TlsWaste) is not None
        except* trio.TooSlowError:
            reason = "too slow"
        finally:
            self._buffers.release()
            with self._closing:
                await self._tls.close()
        kind = reason.partition(":")[0]
        if not self.was_welcomed and kind in REFUSALS:
            # Nobody is known yet, so it is counted and not written one by one.
            source = self._peer_address.rpartition(":")[0]
            at_ms = now_ms()
            self._facts.engine.journal.floods.count(source, kind, at_ms)
        return reason

    async def _serve_open(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self.draining:
                    self._say_goaway()
                await self._read(nursery)
                await self._finish()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None

    def drain(self) -> None:
        """Say GOAWAY; the connection ends when what was sent before that is answered."""
        self.draining = True
        if self.is_open:
            self._say_goaway()
        else:
            self._opening.cancel()

    def cut(self) -> None:
        """End a connection that has not been welcomed at once, to make room for another."""
        self._opening.cancel()
        self._closing.cancel()

    def recheck(self) -> None:
        """End the connection if its principal is not accepted any more."""
        if self.is_open and not self._facts.stands(self._principal):
            self._refuse_principal()

    def _refuse_principal(self) -> None:
        self._unauthenticated = True
        self._receiving.cancel()

    def _say_goaway(self) -> None:
        if self._nursery is None or self._protocol.state is not State.OPEN:
            return
        self._put(Goaway(0, "the gateway is stopping; connect again"))
        self._put(Ping(GOAWAY_PING))
        self._nursery.start_soon(self._answers.flush)
        self._nursery.start_soon(self._end_grace)

    async def _end_grace(self) -> None:
        await trio.sleep(GRACE_S)
        self._nothing_crosses = True
        self._wake_if_over()

    def _wake_if_over(self) -> None:
        if self._is_over:
            self._receiving.cancel()

    # Opening

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
            with trio.fail_after(self._facts.limits.handshake_timeout_s):
                self._principal = await self._facts.authenticate(self._tls.peer_chain)
        except HsmuxError as error:
            await self._refuse(error)
            raise TlsClosed(f"refused: {error.text}") from None
        self._tls.tenant = self._principal.access_point_id
        self._buffers = self._buffers_of(self._principal.access_point_id)
        name = self._principal.access_point
        self._put(Welcome(VERSION, [], ANNOUNCED_LIMITS, self._facts.deployment, name))
        await self._answers.flush()

    async def _next_hello(self) -> Hello:
        while True:
            frame = self._protocol.next_frame()
            if isinstance(frame, Hello):
                return frame
            data = await self._tls.receive()
            self._note(data)
            if not data:
                raise TlsClosed("closed before HELLO")

    def _note(self, data: bytes) -> None:
        self._received_at = time.monotonic()
        self._protocol.receive_data(data)

    # Reading

    async def _read(self, nursery: trio.Nursery) -> None:
        """Take frames until the peer ends, breaks the protocol or may no longer speak.

        A peer that ends is not waiting any more: its open calls are cancelled.
        """
        try:
            while True:
                await self._take_frames(nursery)
                await self._answers.flush()
                self._buffers.settle()
                if self._unauthenticated or self._is_over:
                    return
                data = await self._receive()
                if data is None:
                    continue
                self._note(data)
                if not data:
                    self._cancel_all()
                    return
        except RemoteProtocolError as error:
            log.info("protocol error", peer=self._peer_address, error=str(error))
            await self._answers.drain()
            await self._refuse(ProtocolError(str(error)))
            raise TlsClosed(f"protocol: {error}") from None

    async def _receive(self) -> bytes | None:
        """What comes next; None if there is something else to look at first."""
        size = self._buffers.room() or await self._make_room()
        if not size:
            return None
        deadline = self._receive_deadline()
        data: bytes | None = b""
        if trio.current_time() < deadline and self._tls.try_fill(size):
            # Usually more is there already, and nothing has to be waited for.
            await self._rest()
            data = self._tls.try_decrypt()
        if data is None or not (data or self._tls.is_over):
            data = await self._wait_for_data(size, deadline, is_more=data is None)
        if data is not None:
            self._buffers.came(len(data))
        return data

    async def _wait_for_data(self, size: int, deadline: float, *, is_more: bool) -> bytes | None:
        """What comes until a deadline; None if there is something else to look at first.

        Args:
            size: Bytes to read.
            deadline: When the peer is too slow.
            is_more: Whether something is to be decrypted already.
        """
        if self._unauthenticated or self._is_over:
            return None
        with trio.CancelScope(deadline=deadline) as self._receiving:
            data = await self._decrypt() if is_more else b""
            while not (data or self._tls.is_over):
                await self._tls.wait(size)
                now = self._tls.try_decrypt()
                data = await self._decrypt() if now is None else now
            self._rested_ns = time.perf_counter_ns()
            return data
        is_late = trio.current_time() >= self._receiving.deadline
        if is_late and (self._protocol.buffered_size or not self._protocol.open_ids):
            raise trio.TooSlowError
        return None

    async def _make_room(self) -> int:
        """Wait for leave to read; the peer's time does not run. 0: there is something else."""
        began, size = trio.current_time(), 0
        with trio.CancelScope() as self._receiving:
            size = await self._buffers.make_room()
        if self._frame_began is not None:
            self._frame_began += trio.current_time() - began
        # Whoever cancels may come when there is room already.
        return 0 if self._receiving.cancel_called else size

    async def _decrypt(self) -> bytes:
        """What came, decrypted; the peer's time does not run while it waits for its turn."""
        began, deadline = trio.current_time(), self._receiving.deadline
        self._receiving.deadline = math.inf
        data = await self._tls.decrypt()
        waited = trio.current_time() - began
        self._receiving.deadline = deadline + waited
        if self._frame_began is not None:
            self._frame_began += waited
        return data

    def _receive_deadline(self) -> float:
        now, limits = trio.current_time(), self._facts.limits
        held = self._protocol.buffered_size
        if not held:
            return now + limits.idle_timeout_s
        if self._frame_began is None:
            self._frame_began = now
        return self._frame_began + limits.frame_timeout_s + held / FRAME_RATE_MIN

    async def _take_frames(self, nursery: trio.Nursery) -> None:
        """Decode and dispatch every whole frame that was received, slice by slice."""
        tenant = self._principal.access_point_id
        is_more = True
        while is_more and not self._unauthenticated:
            await self._wait_for_room()
            await self._facts.turns.take(tenant)
            began = time.perf_counter_ns()
            is_more = await self._take_slice(nursery, began + SLICE_NS)
            self._facts.turns.spend(tenant, time.perf_counter_ns() - began)
            if is_more:
                await self._answers.flush()
                await self._rest()

    async def _rest(self) -> None:
        """Let others run, unless they could not long ago."""
        if time.perf_counter_ns() - self._rested_ns >= SLICE_NS:
            await trio.lowlevel.checkpoint()
            self._rested_ns = time.perf_counter_ns()

    async def _take_slice(self, nursery: trio.Nursery, until_ns: int) -> bool:
        """Take frames until the time is over or there is no room; whether there may be more.

        Requests that join each other are done together, before anything else is looked at.
        """
        protocol, answers, run = self._protocol, self._answers, self._run
        left = protocol.buffered_size
        try:
            while answers.size + run.size <= ANSWERS_SIZE_MAX and self._may_take:
                frame = protocol.next_frame()
                if frame is None:
                    return False
                before, left = left, protocol.buffered_size
                self._frame_began = None
                self._buffers.frame_taken()
                if isinstance(frame, Request):
                    asked = self._take_request(nursery, frame, before - left)
                    if asked is not None and not run.add(frame.id, asked):
                        await self._do_run()
                        run.add(frame.id, asked)
                else:
                    await self._do_run()
                    await self._take_other(frame)
                if self._unauthenticated or time.perf_counter_ns() >= until_ns:
                    break
            return True
        finally:
            await self._do_run()

    @property
    def _may_take(self) -> bool:
        """Whether one more request can be begun or held."""
        if len(self._scopes) < REQUESTS_IN_FLIGHT_MAX:
            return True
        return self._held_size < HELD_SIZE_MAX and self._buffers.has_room(0)

    async def _wait_for_room(self) -> None:
        """Wait while too many calls are in work and held, or too many answers are unread."""
        while not self._may_take:
            await self._answers.flush()
            if not self._may_take:
                self._changed = trio.Event()
                await self._changed.wait()
        await self._answers.drain(ANSWERS_SIZE_MAX)

    async def _take_other(self, frame: Frame) -> None:
        if isinstance(frame, Cancel):
            scope = self._scopes.get(frame.id)
            if frame.id in self._held:
                asked = self._release(frame.id)._replace(refusal=Cancelled(CANCELLED_TEXT))
                self._put_answer(*await self._do(frame.id, asked, waits=False))
            elif scope is not None:
                self._cancelled.add(frame.id)
                scope.cancel()
        elif isinstance(frame, Ping):
            self._put(Pong(frame.number))
        elif isinstance(frame, Pong) and frame.number == GOAWAY_PING:
            self._nothing_crosses = self.draining

    def _take_request(self, nursery: trio.Nursery, request: Request, size: int) -> Asked | None:
        """What is to be done here, or None when it has a task of its own now."""
        asked = read_request(
            request,
            self._principal,
            self._peer_address,
            size,
            self._received_at,
            self._facts.new_reference(),
        )
        if asked.refusal is not None or self._facts.runs_inline(asked.call):
            return asked if asked.size <= SMALL_SIZE else self._with_room(asked)
        if len(self._scopes) >= REQUESTS_IN_FLIGHT_MAX:
            self._hold(request.id, asked, size + HELD_OVERHEAD)
            return None
        asked = self._with_room(asked)
        if asked.refusal is not None:
            return asked
        self._begin(nursery, request.id, asked)
        return None

    def _with_room(self, asked: Asked) -> Asked:
        """The request, refused if there is no room for it."""
        if self._buffers.has_room(asked.size):
            return asked
        refusal = Busy("the gateway holds too much data", retry_after_ms=RETRY_AFTER_MS)
        return asked._replace(refusal=asked.refusal or refusal)

    def _begin(self, nursery: trio.Nursery, request_id: int, asked: Asked) -> None:
        self._buffers.begin(asked.size)
        self._scopes[request_id] = trio.CancelScope()
        nursery.start_soon(self._serve, request_id, asked)

    def _hold(self, request_id: int, asked: Asked, size: int) -> None:
        self._held[request_id] = asked, size
        self._held_size += size
        self._buffers.begin(size)

    def _release(self, request_id: int) -> Asked:
        asked, size = self._held.pop(request_id)
        self._held_size -= size
        self._buffers.end(size)
        return asked

    def _begin_held(self) -> None:
        """A place is free: the request that has been held longest gets it."""
        if self._held and self._nursery is not None:
            request_id = next(iter(self._held))
            self._begin(self._nursery, request_id, self._with_room(self._release(request_id)))

    # Calls and answers

    async def _serve(self, request_id: int, asked: Asked) -> None:
        """A task for one call that waits for something."""
        call = asked.call
        scope = self._scopes[request_id]
        scope.deadline = trio.current_time() + call.deadline - time.monotonic()
        answer, recorded = None, _Recorded.WRITTEN
        with scope:
            answer, recorded = await self._do(request_id, asked, waits=True)
        if answer is None:
            error = self._cancellation(request_id)
            error.reference = call.reference
            answer, recorded = error_frame(request_id, error), self._recorded(call, error)
        self._put_answer(answer, recorded)
        self._buffers.end(asked.size)
        self._cancelled.discard(request_id)
        del self._scopes[request_id]
        self._begin_held()
        self._changed.set()
        await self._answers.flush()
        self._buffers.settle()
        if self._unauthenticated:
            self._receiving.cancel()
        self._wake_if_over()

    def _cancellation(self, request_id: int) -> HsmuxError:
        if request_id in self._cancelled:
            return Cancelled(CANCELLED_TEXT)
        return DeadlineExceeded("the time for this request ran out")

    async def _do(
        self, request_id: int, asked: Asked, *, waits: bool
    ) -> tuple[Result | Error, _Recorded]:
        """The answer to a request, and what must become of its record first."""
        outcome: Outcome
        try:
            call, refusal = asked.call, asked.refusal
            outcome = await self._facts.engine.call(call, refusal=refusal, waits=waits)
        except HsmuxError as error:
            outcome = error
        return self._answer_of(request_id, asked.call, outcome)

    async def _do_run(self) -> None:
        """Do the requests that were collected, and queue their answers."""
        requests = self._run.take_all()
        if len(requests) < 2:
            for request_id, asked in requests:
                self._put_answer(*await self._do(request_id, asked, waits=False))
            return
        outcomes = await self._facts.engine.call_run([asked.call for _, asked in requests])
        for (request_id, asked), outcome in zip(requests, outcomes, strict=True):
            self._put_answer(*self._answer_of(request_id, asked.call, outcome))

    def _answer_of(
        self, request_id: int, call: Call, outcome: Outcome
    ) -> tuple[Result | Error, _Recorded]:
        recorded = self._recorded(call, outcome)
        if not isinstance(outcome, HsmuxError):
            return Result(request_id, outcome), recorded
        self._unauthenticated |= isinstance(outcome, Unauthenticated)
        return error_frame(request_id, outcome), recorded

    def _recorded(self, call: Call, outcome: Outcome) -> _Recorded:
        return _recorded(call, outcome, always_durable=self._facts.always_durable)

    def _put(self, frame: Frame) -> None:
        """Queue a frame that answers no request; it leaves at the next flush."""
        self._answers.put(self._protocol.send(frame))

    def _put_answer(self, frame: Result | Error, recorded: _Recorded) -> None:
        """Queue the one answer to a request; after the farewell nobody waits for one."""
        if frame.id not in self._protocol.open_ids:
            return
        try:
            data = self._encode_answer(frame)
        except LocalProtocolError as error:
            reference = self._facts.new_reference()
            log.critical("an answer does not fit a frame", reference=reference, error=str(error))
            failure = InternalError("the answer does not fit a frame", reference=reference)
            data = self._encode_answer(error_frame(frame.id, failure))
        if recorded is _Recorded.NOT:
            self._answers.put(data)
        else:
            self._answers.put_recorded(data, durable=recorded is _Recorded.DURABLE)

    def _encode_answer(self, frame: Result | Error) -> bytes:
        if self._protocol.state is State.CLOSED:
            return self._protocol.late_answer(frame)
        return self._protocol.send(frame)

    # Ending

    async def _refuse(self, error: HsmuxError) -> None:
        """Say why the whole connection ends, if it can still be said."""
        error.reference = error.reference or self._facts.new_reference()
        farewell = self._protocol.farewell(error_frame(0, error))
        with suppress(TlsClosed), trio.move_on_after(self._facts.limits.send_timeout_s):
            await self._tls.send_all(farewell)

    async def _finish(self) -> None:
        """Let calls in work end and their answers leave, then say why if the key is refused."""
        while self._scopes:
            self._changed = trio.Event()
            await self._changed.wait()
        await self._answers.drain()
        if self._unauthenticated:
            await self._refuse(Unauthenticated("this client key is not accepted any more"))

    def _cancel_all(self) -> None:
        while self._held:
            self._release(next(iter(self._held)))
        for scope in self._scopes.values():
            scope.cancel()
