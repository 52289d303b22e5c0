"""The engine: every request of every front comes through `Engine.call`.

Theory of operation
-------------------
A call is decided, done and recorded, here and nowhere else:

    decide   `access.decision.decide`, a pure function of facts read from memory
    do       the operation's handler, found in a table by the operation's name
    record   `audit.Recorder`; the front flushes it before it lets the answer leave

A handler is an async method that takes the call and the operation's arguments under the names and
in the order of the operation table, and returns the result values in the table's order. It raises
`HsmuxError` subclasses for everything a caller may see. Anything else that it raises is a fault of
the gateway: it is logged whole under the call's reference, the caller gets InternalError with that
reference, and nobody else notices.

Every call leaves one record, whatever became of it: done, refused, failed, out of time or
cancelled. A front that finds a request unreadable still brings it here, with the refusal it would
give, so that it is decided and recorded like any other: a revoked client key learns that it is
revoked and nothing about its arguments. The one exception are calls refused because nothing can be
recorded.

Idempotency: a changing call with a token whose effect is already stored gets the stored answer,
after it was decided again. The effect and its memory are one store transaction (see `effects`).

Runs: requests of one connection that came together and differ in nothing but their last argument
are decided once and done by one handler, `<operation>_run`, where the operation has one. Each is
recorded and answered for itself, and when anything about a run is not as usual, its calls are done
one by one: what becomes of a call never depends on its neighbours.

Bounds: calls in work are a `FairBudget` between access points; over it a call is Busy at once.
A call whose deadline passed while it waited for its turn is not begun.
"""

import hashlib
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgpack
import structlog

from hsmux_protocol.errors import (
    Busy,
    Cancelled,
    DeadlineExceeded,
    HsmuxError,
    InternalError,
    Unavailable,
)
from hsmux_protocol.fields import write_fields
from hsmux_protocol.operations import OPERATIONS

from .access.decision import CallFacts, Decision
from .access.permits import refuse_denied, refuse_stranger
from .audit.recorder import Record, Recorder
from .call import Call, Outcome
from .fairness import FairBudget
from .metrics import Metrics

__all__ = [
    "Engine",
    "Handler",
    "Identities",
    "Memory",
    "NotRecorded",
    "RunHandler",
    "arguments_hash",
    "collect_handlers",
    "collect_runs",
]

log = structlog.get_logger("hsmux.engine")

Handler = Callable[..., Awaitable[list[Any]]]

RunHandler = Callable[[Sequence[Call]], Awaitable[list[Outcome] | None]]
"""Does calls that differ in their last argument only; None if they must be done one by one."""

RETRY_AFTER_MS: Final = 100
"""What a caller is told to wait when the gateway as a whole is full."""


class NotRecorded(Unavailable):
    """Nothing can be recorded, so nothing was done; of this answer alone there is no record."""


class Identities(Protocol):
    """What the engine asks about a caller on every request."""

    def facts(self, call: Call) -> CallFacts:
        """The state of the caller's access point and client key now."""


class Memory(Protocol):
    """The memory of changes that were done under an idempotency token."""

    async def recall(self, call: Call, arguments_hash: bytes) -> list[Any] | None:
        """The stored answer of a change, or None; raises Conflict for another request's token."""


def collect_handlers(*services: object) -> dict[str, Handler]:
    """The handlers of all operations, each a method of exactly one service.

    Raises:
        TypeError: An operation has no handler or two, or a handler's parameters are not the
            operation's arguments.
    """
    handlers: dict[str, Handler] = {}
    for operation in OPERATIONS.values():
        found = [getattr(s, operation.name) for s in services if hasattr(s, operation.name)]
        if len(found) != 1:
            raise TypeError(f"operation {operation.name} has {len(found)} handlers")
        names = ["call", *(field.name for field in operation.arguments)]
        if list(inspect.signature(found[0]).parameters) != names:
            raise TypeError(f"the handler of {operation.name} must take {', '.join(names)}")
        handlers[operation.name] = found[0]
    return handlers


def collect_runs(*services: object) -> dict[str, RunHandler]:
    """The handlers of runs, by operation."""
    return {
        name: getattr(service, f"{name}_run")
        for name in OPERATIONS
        for service in services
        if hasattr(service, f"{name}_run")
    }


def arguments_hash(call: Call) -> bytes:
    """SHA-256 over operation and canonical arguments: what an idempotency token stands for."""
    values = write_fields(call.operation.arguments, tuple(call.arguments))
    packed: bytes = msgpack.packb([call.operation.number, _ordered(values)])
    return hashlib.sha256(packed).digest()


def _ordered(value: Any) -> Any:
    """Maps in the order of their keys, so that equal arguments have equal bytes."""
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value)}
    return [_ordered(item) for item in value] if isinstance(value, list) else value


def _cancellation(call: Call) -> HsmuxError:
    """What a caller learns of a call that was cancelled."""
    if time.monotonic() >= call.deadline:
        return DeadlineExceeded("the time for this request ran out")
    return Cancelled("cancelled by the caller")


class Engine:
    """Decides, does and records every call.

    Args:
        handlers: From `collect_handlers`.
        identities: Tells the caller's state now.
        memory: Remembers changes done under an idempotency token.
        recorder: Takes the records; the front flushes it.
        metrics: Counts calls by operation and outcome.
        requests_max: Calls in work at most; more get Busy.
        runs: From `collect_runs`.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        identities: Identities,
        memory: Memory,
        recorder: Recorder,
        metrics: Metrics,
        requests_max: int,
        runs: Mapping[str, RunHandler] | None = None,
    ) -> None:
        self._handlers = handlers
        self._runs = runs or {}
        self._identities = identities
        self._memory = memory
        self._metrics = metrics
        self._in_work = FairBudget(requests_max)
        self.recorder = recorder

    def __repr__(self) -> str:
        return f"Engine({self.in_work} in work, {self.recorder!r})"

    @property
    def in_work(self) -> int:
        """Calls that are being done."""
        return self._in_work.used

    async def call(
        self, call: Call, *, refusal: HsmuxError | None = None, waits: bool = True
    ) -> list[Any]:
        """Do one call.

        Args:
            call: The call.
            refusal: Why the front cannot have it done; raised if the caller is who it was.
            waits: Whether it may wait for something; one that does not is over before it could
                count as work.

        Returns:
            The result values, encodable, in the order of the operation table.

        Raises:
            NotRecorded: It was not even looked at.
            HsmuxError: It was refused or failed; its reference is the call's.
        """
        started = time.perf_counter_ns()
        if self.recorder.failing and not self.recorder.ready():
            raise NotRecorded(
                "requests cannot be recorded",
                reference=call.reference,
                retry_after_ms=RETRY_AFTER_MS,
            )
        failure: HsmuxError | None = None
        outcome = ""
        values: list[Any] = []
        try:
            self._decide(call, refusal)
            values = await (self._do_counted(call) if waits else self._do(call))
            outcome = "done"
        except HsmuxError as error:
            failure = error
        except Exception as error:
            log.exception("a handler failed", reference=call.reference, error=type(error).__name__)
            failure = InternalError("the gateway failed; its log tells more")
        finally:
            # Without an outcome or a failure it is being cancelled, which no clause names: a
            # handler's nursery may have put it into a group.
            outcome = outcome or type(failure or _cancellation(call)).__name__
            self._record(call, outcome, time.perf_counter_ns() - started)
        if failure is not None:
            failure.reference = call.reference
            raise failure
        return values

    def joins(self, call: Call, other: Call) -> bool:
        """Whether two calls of one connection, neither refused, can be of one run."""
        return (
            call.operation is other.operation
            and call.operation.name in self._runs
            and call.arguments[:-1] == other.arguments[:-1]
            and call.options == other.options
        )

    async def call_run(self, calls: Sequence[Call]) -> list[Outcome]:
        """Do calls that join each other and wait for nothing; each as `call` would.

        Args:
            calls: In the order in which they came.
        """
        started = time.perf_counter_ns()
        outcomes = None if self.recorder.failing else await self._done_together(calls)
        if outcomes is None:
            return [await self._outcome(call) for call in calls]
        elapsed_ns = (time.perf_counter_ns() - started) // len(calls)
        for call, outcome in zip(calls, outcomes, strict=True):
            if isinstance(outcome, HsmuxError):
                outcome.reference = call.reference
                self._record(call, type(outcome).__name__, elapsed_ns)
            else:
                self._record(call, "done", elapsed_ns)
        return outcomes

    async def _done_together(self, calls: Sequence[Call]) -> list[Outcome] | None:
        try:
            # All of one caller, of one key, at one moment: only sizes can differ.
            if "size" in self._decide(calls[0], None).depends_on:
                return None
            if time.monotonic() >= min(call.deadline for call in calls):
                return None
            return await self._runs[calls[0].operation.name](calls)
        except Exception:
            # Whatever it is, each call meets it again by itself and is told of it.
            return None

    async def _outcome(self, call: Call) -> Outcome:
        try:
            return await self.call(call, waits=False)
        except HsmuxError as error:
            return error

    def _decide(self, call: Call, refusal: HsmuxError | None) -> Decision:
        facts = self._identities.facts(call)
        refuse_stranger(facts)
        if refusal is not None:
            raise refusal
        decision = refuse_denied(call, facts)
        if time.monotonic() >= call.deadline:
            raise DeadlineExceeded("the time for this request ran out before it was begun")
        return decision

    async def _do_counted(self, call: Call) -> list[Any]:
        tenant = call.principal.access_point_id
        if not self._in_work.try_take(tenant, 1):
            raise Busy("the gateway has too much work", retry_after_ms=RETRY_AFTER_MS)
        try:
            return await self._do(call)
        finally:
            self._in_work.give_back(tenant, 1)

    def _do(self, call: Call) -> Awaitable[list[Any]]:
        if "idempotency_token" in call.options and call.operation.changes:
            return self._do_once(call)
        return self._handlers[call.operation.name](call, *call.arguments)

    async def _do_once(self, call: Call) -> list[Any]:
        remembered = await self._memory.recall(call, arguments_hash(call))
        if remembered is not None:
            return remembered
        return await self._handlers[call.operation.name](call, *call.arguments)

    def _record(self, call: Call, outcome: str, elapsed_ns: int) -> None:
        self._metrics.count(call.operation.name, outcome, elapsed_ns)
        principal = call.principal
        record = Record(
            time.time_ns() // 1_000_000,
            call.reference,
            principal.access_point,
            principal.client_key_id.hex(),
            call.peer_address,
            call.operation.name,
            outcome,
            elapsed_ns // 1000,
        )
        self.recorder.append(record)
