"""The engine: every request of every front comes through `Engine.call`.

Theory of operation
-------------------
A call is decided, done and recorded, here and nowhere else:

    decide   `access.decision.decide`, a pure function of facts read from memory
    do       the operation's handler, found in a table by the operation's name
    record   `audit.journal.Journal`; the front flushes it before it lets the answer leave. That of
             a change is stored with the change as well (`audit.outbox`)

A handler is an async method that takes the call and the operation's arguments under the names and
in the order of the operation table, and returns the result values in the table's order. It raises
`HsmuxError` subclasses for everything a caller may see. Anything else that it raises is a fault of
the gateway: it is logged whole under the call's reference, the caller gets InternalError with that
reference, and nobody else notices.

Every call leaves one record, whatever became of it: done, refused, failed, out of time or
cancelled. A front that finds a request unreadable still brings it here, with the refusal it would
give, so that it is decided and recorded like any other: a revoked client key learns that it is
revoked and nothing about its arguments. The exceptions are calls refused because nothing can be
recorded, and those over a limit.

Idempotency: a changing call with a token whose effect is already stored gets the stored answer,
after it was decided again. The effect and its memory are one store transaction (see `effects`).

Runs: requests of one connection that came together and differ in nothing but their last argument
are decided once and done by one handler, `<operation>_run`, where the operation has one. Each is
recorded and answered for itself, and when anything about a run is not as usual, its calls are done
one by one: what becomes of a call never depends on its neighbours.

Limits of an access point come before anything else of a call is looked at (`access.limits`). A call
over one is Busy and is counted in the audit log instead of recorded, so that nobody can fill a disk
with what is refused. A run takes its cost at once.

Bounds: calls in work are a `FairBudget` between access points; over it a call is Busy at once.
A call whose deadline passed while it waited for its turn is not begun.
"""

import hashlib
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgpack

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

from .access.decision import CallFacts, Decision, decide_again, unknown_because
from .access.limits import AccessLimits, Over
from .access.permits import refuse_denied, refuse_stranger
from .audit.calls import CallRecords
from .audit.journal import Journal
from .audit.outbox import Outbox
from .audit.records import DONE
from .call import Call, Outcome
from .clock import now_ms
from .fairness import FairBudget
from .logs import structlog
from .metrics import Metrics

__all__ = [
    "Engine",
    "Handler",
    "Identities",
    "Memory",
    "NotRecorded",
    "OverLimit",
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


class OverLimit(Busy):
    """A limit of the access point is reached; of this answer there is no record of its own."""


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
        journal: Takes the records; the front flushes it.
        records: Makes them.
        outbox: Takes the records of calls that change something.
        metrics: Counts calls by operation and outcome.
        requests_max: Calls in work at most; more get Busy.
        limits: Of the access points; none has any where this is left out.
        runs: From `collect_runs`.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        identities: Identities,
        memory: Memory,
        journal: Journal,
        records: CallRecords,
        outbox: Outbox,
        metrics: Metrics,
        requests_max: int,
        limits: AccessLimits | None = None,
        runs: Mapping[str, RunHandler] | None = None,
    ) -> None:
        self._handlers = handlers
        self._runs = runs or {}
        self._identities = identities
        self._memory = memory
        self._metrics = metrics
        self._in_work = FairBudget(requests_max)
        self._limits = limits or AccessLimits()
        self._records = records
        self._outbox = outbox
        self.journal = journal

    def __repr__(self) -> str:
        return f"Engine({self.in_work} in work, {self.journal!r})"

    @property
    def in_work(self) -> int:
        """Calls that are being done."""
        return self._in_work.used

    async def call(
        self,
        call: Call,
        *,
        refusal: HsmuxError | None = None,
        waits: bool = True,
        is_admitted: bool = False,
    ) -> list[Any]:
        """Do one call.

        Args:
            call: The call.
            refusal: Why the front cannot have it done; raised if the caller is who it was.
            waits: Whether it may wait for something; one that does not is over before it could
                count as work.
            is_admitted: Whether its cost was taken already.

        Returns:
            The result values, encodable, in the order of the operation table.

        Raises:
            NotRecorded: It was not even looked at.
            OverLimit: Likewise; its access point asked for too much.
            HsmuxError: It was refused or failed; its reference is the call's.
        """
        started = time.perf_counter_ns()
        if self.journal.failing and not self.journal.ready():
            raise NotRecorded(
                "requests cannot be recorded",
                reference=call.reference,
                retry_after_ms=RETRY_AFTER_MS,
            )
        if not is_admitted:
            tenant = call.principal.access_point_id
            meter = self._limits.meters.get(tenant)
            if meter is not None:
                in_work = self._in_work.held(tenant) if waits else 0
                over = meter.take(call, started, in_work)
                if over is not None:
                    raise self._over_limit(call, over, started)
        failure: HsmuxError | None = None
        is_done = False
        statement = ""
        values: list[Any] = []
        try:
            facts, decision = self._decide(call, refusal)
            statement = decision.statement
            _enforce(call, facts, decision)
            values = await (self._do_counted(call) if waits else self._do(call))
            is_done = True
        except HsmuxError as error:
            failure = error
        except Exception as error:
            log.exception("a handler failed", reference=call.reference, error=type(error).__name__)
            failure = InternalError("the gateway failed; its log tells more")
        finally:
            # Neither done nor failed, it is being cancelled, which no clause names: a handler's
            # nursery may have put it into a group.
            why = None if is_done else failure or _cancellation(call)
            self._record(call, statement, why, values, time.perf_counter_ns() - started)
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
        is_admitted = not self.journal.failing and self._admits(calls, started)
        done = await self._done_together(calls) if is_admitted else None
        if done is None:
            return [await self._outcome(call, is_admitted) for call in calls]
        outcomes, statement = done
        elapsed_ns = time.perf_counter_ns() - started
        answers = [outcome for outcome in outcomes if not isinstance(outcome, HsmuxError)]
        if len(answers) == len(calls):
            self._record_run(calls, statement, answers, elapsed_ns)
            return outcomes
        for call, outcome in zip(calls, outcomes, strict=True):
            if isinstance(outcome, HsmuxError):
                outcome.reference = call.reference
                self._record(call, statement, outcome, [], elapsed_ns // len(calls))
            else:
                self._record(call, statement, None, outcome, elapsed_ns // len(calls))
        return outcomes

    async def _done_together(self, calls: Sequence[Call]) -> tuple[list[Outcome], str] | None:
        """What became of calls that were done together, and the statement that allowed them."""
        try:
            # All of one caller, of one key, at one moment: only sizes can differ.
            facts, decision = self._decide(calls[0], None)
            _enforce(calls[0], facts, decision)
            if "size" in decision.depends_on:
                return None
            if time.monotonic() >= min(call.deadline for call in calls):
                return None
            outcomes = await self._runs[calls[0].operation.name](calls)
            return None if outcomes is None else (outcomes, decision.statement)
        except Exception:
            # Whatever it is, each call meets it again by itself and is told of it.
            return None

    async def _outcome(self, call: Call, is_admitted: bool) -> Outcome:
        try:
            return await self.call(call, waits=False, is_admitted=is_admitted)
        except HsmuxError as error:
            return error

    def _admits(self, calls: Sequence[Call], now_ns: int) -> bool:
        """Whether the cost of calls of one connection was taken, all of it."""
        meter = self._limits.meters.get(calls[0].principal.access_point_id)
        return meter is None or meter.take_together(calls, now_ns)

    def _over_limit(self, call: Call, over: Over, started_ns: int) -> OverLimit:
        """The refusal of a call that was not admitted, which is counted."""
        elapsed_ns = time.perf_counter_ns() - started_ns
        self._metrics.count(call.operation.name, Busy.__name__, elapsed_ns)
        self._limits.refused[over.limit] += 1
        self.journal.limited.count(call.principal.access_point, over.limit, now_ms())
        return OverLimit(over.text, reference=call.reference, retry_after_ms=over.retry_after_ms)

    def _decide(self, call: Call, refusal: HsmuxError | None) -> tuple[CallFacts, Decision]:
        """What is decided on a call; its refusal is raised if the caller is who it was."""
        facts = self._identities.facts(call)
        if refusal is not None and not unknown_because(facts):
            raise refusal
        return facts, decide_again(facts)

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

    def _record(
        self,
        call: Call,
        statement: str,
        error: HsmuxError | None,
        values: list[Any],
        elapsed_ns: int,
    ) -> None:
        outcome = "done" if error is None else type(error).__name__
        self._metrics.count(call.operation.name, outcome, elapsed_ns)
        changes = call.operation.changes
        if changes:
            statement = self._outbox.statement_of(call) or statement
        record = self._records.request(
            call,
            statement=statement,
            outcome=DONE if error is None else error.number,
            values=values,
            elapsed_us=elapsed_ns // 1000,
        )
        if changes:
            self._outbox.append(call, record)
        else:
            self.journal.append(record)

    def _record_run(
        self, calls: Sequence[Call], statement: str, answers: list[list[Any]], elapsed_ns: int
    ) -> None:
        for call in calls:
            self._metrics.count(call.operation.name, "done", elapsed_ns // len(calls))
        records = self._records.run(
            calls, statement=statement, answers=answers, elapsed_us=elapsed_ns // 1000
        )
        for record in records:
            self.journal.append(record)


def _enforce(call: Call, facts: CallFacts, decision: Decision) -> None:
    """Refuse a call that is not allowed, or whose time is over before it was begun."""
    refuse_stranger(facts)
    refuse_denied(call, decision)
    if time.monotonic() >= call.deadline:
        raise DeadlineExceeded("the time for this request ran out before it was begun")
