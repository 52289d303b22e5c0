"""Changes: the one way in which a call changes stored state.

An effect is a function of a store transaction that writes the rows and returns what the call
answers. It runs with the memory of its idempotency token in one transaction, so a token that is
remembered means an effect that happened, and the other way round. When it is durable, the
catalogue is brought up to date before the answer leaves: whoever saw the answer finds the change.

From the moment the transaction is handed over, cancellation and deadlines wait: the caller gets
the one answer that is true.
"""

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgpack
import structlog
import trio

from hsmux_protocol import errors
from hsmux_protocol.fields import read_fields, write_fields

from .call import Call
from .catalog import Catalog
from .engine import arguments_hash
from .store.errors import CommitUnknown, Conflict, SealBroken, StoreBusy, StoreError, StoreFull
from .store.store import Store
from .store.transaction import Reader, Transaction
from .store.writer import StoreWriter

__all__ = ["Effects", "presented"]

log = structlog.get_logger("hsmux.effects")

T = TypeVar("T")

RETRY_AFTER_MS: Final = 500
"""What a caller is told to wait while the store is away or full of work."""

NOT_REPEATABLE: Final = b"\xc0"
"""What is remembered of an answer that held a secret."""


def presented(error: StoreError) -> errors.HsmuxError:
    """What a caller sees of an error of the store."""
    if isinstance(error, Conflict):
        return errors.Conflict(str(error))
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
    """

    def __init__(self, store: Store, writer: StoreWriter, catalog: Catalog) -> None:
        self._store = store
        self._writer = writer
        self._catalog = catalog
        self._limiter = trio.CapacityLimiter(1)
        self._refreshing = trio.Lock()

    async def apply(
        self, call: Call, effect: Callable[[Transaction], list[Any]], *, repeatable: bool = True
    ) -> list[Any]:
        """Do an effect for a call and remember its answer.

        Args:
            call: The call, whose options may hold an idempotency token.
            effect: Writes the rows and returns the result values.
            repeatable: False when the answer holds a secret, which is never kept.

        Raises:
            HsmuxError: Nothing was changed, or OutcomeUnknown.
        """

        def work(transaction: Transaction) -> list[Any]:
            values = effect(transaction)
            token = call.options.get("idempotency_token")
            if token is not None:
                fields = call.operation.results
                packed = msgpack.packb(write_fields(fields, tuple(values)))
                transaction.remember(
                    call.principal.access_point_id,
                    call.operation.name,
                    token,
                    arguments_hash(call),
                    packed if repeatable else NOT_REPEATABLE,
                    now_ms=time.time_ns() // 1_000_000,
                )
            return values

        return await self.write(work)

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Do a work of the gateway's own, and bring the catalogue up to date.

        Raises:
            HsmuxError: Nothing was changed, or OutcomeUnknown.
        """
        with trio.CancelScope(shield=True):
            try:
                value = await self._writer.write(work)
            except StoreError as error:
                raise presented(error) from error
            await self.refresh()
        return value

    async def recall(self, call: Call, arguments_hash: bytes) -> list[Any] | None:
        """The stored answer of a change done under the call's token, or None.

        Raises:
            Conflict: The token was used for another request, or its answer held a secret.
        """
        token = call.options["idempotency_token"]
        access_point_id, name = call.principal.access_point_id, call.operation.name

        def work(reader: Reader) -> bytes | None:
            return reader.recall(access_point_id, name, token, arguments_hash)

        result = await self.read(work)
        if result is None:
            return None
        if result == NOT_REPEATABLE:
            raise errors.Conflict(f"{name} was done under this token; its answer is not kept")
        return read_fields(call.operation.results, msgpack.unpackb(result))

    async def refresh(self) -> None:
        """Bring the catalogue up to the store's revision.

        Raises:
            HsmuxError: The store is away.
        """
        async with self._refreshing:
            since = self._catalog.revision
            changes = await self._in_thread(lambda: self._changes_since(since))
            if changes is not None:
                self._catalog.apply(changes)
            self._catalog.confirm()

    def _changes_since(self, revision: int) -> Any:
        if self._store.revision() == revision:
            return None
        return self._store.read_changes(revision)

    async def read(self, work: Callable[[Reader], T]) -> T:
        """Read in the store itself, where memory is not enough.

        Raises:
            HsmuxError: The store is away.
        """
        return await self._in_thread(lambda: self._store.read(work))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except StoreError as error:
            raise presented(error) from error

    async def poll(self, interval_s: float) -> None:
        """Follow other processes' changes until cancelled; failures are logged once each time."""
        failing = False
        while True:
            await trio.sleep(interval_s)
            try:
                await self.refresh()
                failing = False
            except errors.HsmuxError as error:
                if not failing:
                    log.error("the store cannot be followed", error=error.text)
                failing = True
