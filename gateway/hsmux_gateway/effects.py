"""Changes: the one way in which a call changes stored state.

An effect is a function of a store transaction that writes the rows and returns what the call
answers. It runs with the memory of its idempotency token in one transaction, so a token that is
remembered means an effect that happened, and the other way round. When it is durable, the
catalogue is brought up to date before the answer leaves: whoever saw the answer finds the change.

A change was decided on before it was made, and making it can take a while. So it is decided again
when it goes to the store, and in its transaction the rows that decision rests on must be those it
was made from: no change of somebody who lost a right follows the answer that took it.

The record of a change is stored in its transaction too, so that no process can die between the two
(see `audit.outbox`).

Some changes want the approvals of others (see `access.quorum`). They are judged in the transaction
of the effect, which is taken back where they lack; then, in another one, the request is kept for
its approvers.

While the transaction waits for its turn, cancellation and deadlines take it back: nothing is
changed. Once it is begun they wait up to `PATIENCE_S` for its end, because that is the one answer
that is true; a database that takes longer makes the outcome unknown.

Access points take turns, in the writer and in the thread that looks tokens up, so that one that
changes very much delays its own changes and no others. What is written together is shown together:
one refresh that began after the commit serves everybody who waits for it.

A token is looked up before anything is made, which saves the work, and again in the transaction of
the effect, which makes it certain: of two equal calls at the same time one has its effect and both
have its answer.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NoReturn, Protocol, TypeVar

import msgpack
import trio

from hsmux_protocol import errors
from hsmux_protocol.fields import read_fields, write_fields

from .access.approvals import Unapproved
from .call import Call
from .catalog import Catalog
from .clock import now_ms
from .engine import arguments_hash
from .errors import EXIT_AGAIN, OperatorError
from .fairness import SYSTEM_TENANT, FairBudget, FairThreads
from .logs import structlog
from .store.errors import (
    CommitUnknown,
    Conflict,
    SealBroken,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFull,
)
from .store.rows import RequestRow
from .store.store import Store
from .store.transaction import Reader, Transaction
from .store.writer import StoreWriter

__all__ = ["CONFLICTS", "ChangeRecords", "Effects", "Permits", "Quorum", "presented"]

log = structlog.get_logger("hsmux.effects")

T = TypeVar("T")


class Permits(Protocol):
    """Whether a call is allowed still."""

    def require(self, call: Call, decided: Callable[[str], None]) -> None:
        """Decide once more, from memory, and tell by what; raises Denied or Unauthenticated."""

    def require_unchanged(self, reader: Reader, call: Call, since: int) -> None:
        """Refuse a call whose decision, made at revision `since`, rests on rows that changed."""


class ChangeRecords(Protocol):
    """Where the records of changes are stored with them."""

    def decided(self, call: Call, statement: str) -> None:
        """Note what decided on a call when its change was made."""

    def also_decided(self, call: Call, statement: str) -> None:
        """Note what decided beside that."""

    def post(self, transaction: Transaction, call: Call, values: list[Any]) -> None:
        """Store the record of a change, in its transaction."""

    def stored(self, call: Call) -> None:
        """Note that the change of a call is durable."""

    def undone(self, call: Call) -> None:
        """Note that the change of a call was not made."""


class Quorum(Protocol):
    """Whether enough others have approved a change."""

    def do(
        self,
        transaction: Transaction,
        call: Call,
        effect: Callable[[Transaction], list[Any]],
        approved: Callable[[str], None],
    ) -> list[Any]:
        """Do an effect, and tell who has approved it; raises Unapproved."""

    def keep(self, transaction: Transaction, waiting: RequestRow) -> None:
        """Let a request wait for approvals; raises Conflict."""


RETRY_AFTER_MS: Final = 500
"""What a caller is told to wait while the store is away or full of work."""

PATIENCE_S: Final = 1.0
"""Seconds a change that is being committed has after its caller stopped waiting."""

CATCH_UP_S: Final = 2.0
"""Seconds to bring the catalogue up to date before a change that is done is answered."""

READS_MAX: Final = 4096
"""Calls that wait for a look into the store; an access point that has as many as are left for the
others gets Busy.
"""

NOT_REPEATABLE: Final = b"\xc0"
"""What begins the memory of an answer that held a secret; the name of what was made follows."""


CONFLICTS: Final = {
    "access_points.name": "an access point has this name already; choose another one",
    "client_keys.spki_sha256": "this public key belongs to a client key already; make a new pair",
    "mtls_bindings.name": "an access point is known by this already; change that one first",
    "aliases.name": "a key has this alias already; choose another one",
    "idempotency token": "this idempotency token was used with other arguments; use a new one",
}
"""What a caller did to hit a rule of the store, in the caller's words."""

UNDECIDED: Final = "access was changed while the change was made"
"""Stands for a statement where the one that had allowed a change may not hold any more."""

CHANGED_MEANWHILE: Final = "somebody else changed this meanwhile; look at it and ask again"


def presented(error: StoreError) -> errors.HsmuxError:
    """What a caller sees of an error of the store."""
    if isinstance(error, Conflict):
        log.info("a change conflicts", error=str(error))
        return errors.Conflict(CONFLICTS.get(error.what, CHANGED_MEANWHILE))
    if isinstance(error, CommitUnknown):
        return errors.OutcomeUnknown("the change may or may not be stored; ask before repeating it")
    if isinstance(error, StoreBusy):
        return errors.Busy("the store has too much work", retry_after_ms=RETRY_AFTER_MS)
    if isinstance(error, StoreFull):
        return errors.Unavailable("the store is full", retry_after_ms=RETRY_AFTER_MS)
    if isinstance(error, SealBroken):
        log.critical("the store was changed from outside", error=str(error))
        return errors.InternalError("a stored row is not what this gateway wrote")
    return errors.Unavailable("the store is away", retry_after_ms=RETRY_AFTER_MS)


class Effects:
    """Writes changes, remembers them, and keeps the catalogue current.

    Args:
        store: Read through `read_limiter`.
        writer: Groups writes.
        catalog: Brought up to date after every change.
        permits: Asked before every change of a call.
        outbox: Takes the record of every change of a call.
        quorum: Judges approvals.
    """

    def __init__(
        self,
        store: Store,
        writer: StoreWriter,
        catalog: Catalog,
        permits: Permits,
        outbox: ChangeRecords,
        quorum: Quorum,
    ) -> None:
        self._quorum = quorum
        self._outbox = outbox
        self._store = store
        self._writer = writer
        self._catalog = catalog
        self._permits = permits
        self._limiter = trio.CapacityLimiter(1)
        self._recalling = FairThreads(1, FairBudget(READS_MAX))
        self._refreshing = trio.Lock()

    async def apply(
        self, call: Call, effect: Callable[[Transaction], list[Any]], *, secret_of: str = ""
    ) -> list[Any]:
        """Do an effect for a call and remember its answer.

        Args:
            call: The call, whose options may hold an idempotency token.
            effect: Writes the rows and returns the result values.
            secret_of: Names what was made when the answer holds its secret, which is never kept.

        Returns:
            The result values; those of an equal call that was done already, if there was one.

        Raises:
            ApprovalsMissing: Others have to approve it; nothing was changed.
            HsmuxError: Nothing was changed, or OutcomeUnknown.
        """
        also = partial(self._outbox.also_decided, call)

        def recorded(transaction: Transaction) -> list[Any]:
            values = self._quorum.do(transaction, call, effect, also)
            self._outbox.post(transaction, call, values)
            return values

        token = call.options.get("idempotency_token")
        if token is None:
            return await self._make(call, recorded)
        hashed = arguments_hash(call)
        access_point_id, name = call.principal.access_point_id, call.operation.name

        def work(transaction: Transaction) -> list[Any]:
            remembered = transaction.recall(access_point_id, name, token, hashed)
            if remembered is not None:
                return _repeat(call, remembered)
            values = recorded(transaction)
            memory: bytes = NOT_REPEATABLE + secret_of.encode()
            if not secret_of:
                memory = msgpack.packb(write_fields(call.operation.results, tuple(values)))
            at_ms = now_ms()
            transaction.remember(access_point_id, name, token, hashed, memory, now_ms=at_ms)
            return values

        return await self._make(call, work)

    async def _make(self, call: Call, work: Callable[[Transaction], list[Any]]) -> list[Any]:
        """Do a work, and note what became of its record."""
        try:
            values = await self.write_for(call, work)
        except errors.OutcomeUnknown:
            # Whether the record is stored tells whether the change was made.
            raise
        except errors.HsmuxError:
            self._outbox.undone(call)
            raise
        except Unapproved as missing:
            self._outbox.undone(call)
            await self._await_approvals(call, missing)
        self._outbox.stored(call)
        return values

    async def _await_approvals(self, call: Call, missing: Unapproved) -> NoReturn:
        """Keep a request for its approvers, and refuse it."""
        waiting = missing.waiting
        if waiting is not None:
            await self.write_for(call, lambda t: self._quorum.keep(t, waiting))
        self._outbox.also_decided(call, missing.statement)
        raise missing.error from None

    async def write_for(self, call: Call, work: Callable[[Transaction], T]) -> T:
        """Do a work that a call asks for, and bring the catalogue up to date.

        Raises:
            HsmuxError: Nothing was changed, or OutcomeUnknown.
        """
        self._permits.require(call, partial(self._outbox.decided, call))
        since = self._catalog.revision

        def permitted(transaction: Transaction) -> T:
            try:
                self._permits.require_unchanged(transaction, call, since)
            except errors.Busy:
                self._outbox.decided(call, UNDECIDED)
                raise
            return work(transaction)

        return await self._write(permitted, call.principal.access_point_id, is_own=False)

    async def write(self, work: Callable[[Transaction], T], *, tenant: bytes = SYSTEM_TENANT) -> T:
        """Do a work of the gateway's own, and bring the catalogue up to date.

        Args:
            work: What to write.
            tenant: The access point whose request needs it, if one does.

        Raises:
            HsmuxError: Nothing was changed, or OutcomeUnknown.
        """
        return await self._write(work, tenant, is_own=True)

    async def _write(self, work: Callable[[Transaction], T], tenant: bytes, is_own: bool) -> T:
        revision = 0

        def noted(transaction: Transaction) -> T:
            nonlocal revision
            revision = transaction.revision
            return work(transaction)

        try:
            value = await self._writer.write(
                noted, tenant=tenant, is_own=is_own, patience_s=PATIENCE_S
            )
        except StoreDamaged as error:
            raise presented(CommitUnknown(str(error))) from error
        except StoreError as error:
            raise presented(error) from error
        with trio.move_on_after(CATCH_UP_S, shield=True):
            await self._catch_up(revision)
        return value

    async def _catch_up(self, revision: int) -> None:
        """Show a change that is durable; if the store is away just now, `poll` does it later."""
        try:
            async with self._refreshing:
                # Changes that were committed together are shown together.
                if self._catalog.revision < revision:
                    await self._refresh()
        except errors.HsmuxError as error:
            log.warning("a change is stored and not shown yet", error=error.text)

    async def recall(self, call: Call, arguments_hash: bytes) -> list[Any] | None:
        """The stored answer of a change done under the call's token, or None.

        Raises:
            Conflict: The token was used for another request, or its answer held a secret.
            Busy: Too many calls of this access point wait for the store.
        """
        token = call.options["idempotency_token"]
        access_point_id, name = call.principal.access_point_id, call.operation.name

        def work(reader: Reader) -> bytes | None:
            return reader.recall(access_point_id, name, token, arguments_hash)

        try:
            remembered = await self._recalling.run(
                call.principal.access_point_id, lambda: self._store.read(work)
            )
        except StoreError as error:
            raise presented(error) from error
        return None if remembered is None else _repeat(call, remembered)

    async def forget(self) -> None:
        """Forget idempotency tokens that are older than a day.

        Raises:
            HsmuxError: The store is away.
        """
        at_ms = now_ms()
        while await self.write(lambda transaction: transaction.purge_idempotency(at_ms)):
            pass

    async def refresh(self) -> None:
        """Bring the catalogue up to the store's revision.

        Raises:
            HsmuxError: The store is away.
        """
        async with self._refreshing:
            await self._refresh()

    async def _refresh(self) -> None:
        since, asked_at = self._catalog.revision, time.monotonic()
        changes = await self._in_thread(lambda: self._changes_since(since))
        if changes is not None:
            self._catalog.apply(changes)
        self._catalog.confirm(asked_at)

    def _changes_since(self, revision: int) -> Any:
        if self._store.revision() == revision:
            return None
        return self._store.read_changes(revision)

    async def read(self, work: Callable[[Reader], T]) -> T:
        """Read in the store itself, where memory is not enough; who is cancelled does not wait.

        Raises:
            HsmuxError: The store is away.
        """
        return await self._in_thread(lambda: self._store.read(work))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(
                work, limiter=self._limiter, abandon_on_cancel=True
            )
        except StoreError as error:
            raise presented(error) from error

    async def poll(self, interval_s: float) -> None:
        """Follow other processes' changes until cancelled; failures are logged once each time.

        Raises:
            OperatorError: The database failed in a way that only a new process mends.
        """
        failing = False
        while True:
            await trio.sleep(interval_s)
            try:
                await self.refresh()
                failing = False
            except errors.HsmuxError as error:
                if isinstance(error.__cause__, StoreDamaged):
                    text = f"store: {error.__cause__}; starting again recovers what is stored"
                    raise OperatorError(text, exit_code=EXIT_AGAIN) from error
                if not failing:
                    log.error("the store cannot be followed", error=error.text)
                failing = True


def _repeat(call: Call, remembered: bytes) -> list[Any]:
    """The answer of a change that was done under the call's token."""
    if remembered.startswith(NOT_REPEATABLE):
        what = remembered.removeprefix(NOT_REPEATABLE).decode()
        raise errors.Conflict(
            f"{call.operation.name} was done under this token and made {what}; its secret is not "
            "kept and cannot be repeated"
        )
    return read_fields(call.operation.results, msgpack.unpackb(remembered))
