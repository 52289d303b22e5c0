"""A gateway's parts over in-memory twins: for tests of one part that need the others around it."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from hsmux_gateway.call import Call, Principal
from hsmux_gateway.catalog import Catalog
from hsmux_gateway.effects import Effects
from hsmux_gateway.fairness import FairBudget, FairThreads
from hsmux_gateway.hsm.memory import MemoryToken
from hsmux_gateway.keys.hsm_keys import HsmKeys
from hsmux_gateway.keys.lifecycle_service import LifecycleService
from hsmux_gateway.keys.material import Materials
from hsmux_gateway.keys.reconciliation import Reconciliation
from hsmux_gateway.store import Reader, RequestRow, Store, StoreWriter, Transaction
from hsmux_native import Arena
from hsmux_protocol.operations import OPERATIONS
from tests.gateway.store.sealer import AesSealer

PRINCIPAL = Principal(b"p" * 16, "tester", b"k" * 16, 2**50)


class Permissive:
    """Permits every change: the parts are tried without access points in the store."""

    def require(self, call: Call, decided: Callable[[str], None]) -> None:
        """It is."""
        decided("allowed by the test")

    def require_unchanged(self, reader: Reader, call: Call, since: int) -> None:
        """It is not."""


class Unrecorded:
    """Takes the records of changes, and keeps none: the parts are tried without an audit log."""

    def decided(self, call: Call, statement: str) -> None:
        """Nothing is noted."""

    def also_decided(self, call: Call, statement: str) -> None:
        """Nothing is noted."""

    def post(self, transaction: Transaction, call: Call, values: list[Any]) -> None:
        """Nothing is stored."""

    def stored(self, call: Call) -> None:
        """Nothing is noted."""

    def undone(self, call: Call) -> None:
        """Nothing is noted."""


class Unasked:
    """Nobody has to approve anything."""

    def do(
        self,
        transaction: Transaction,
        call: Call,
        effect: Callable[[Transaction], list[Any]],
        approved: Callable[[str], None],
    ) -> list[Any]:
        """It is done."""
        return effect(transaction)

    def keep(self, transaction: Transaction, waiting: RequestRow) -> None:
        """Nothing waits."""


class Parts:
    """Everything between the engine and the twins of store and token."""

    def __init__(self, store: Store | None = None, token: MemoryToken | None = None) -> None:
        self.arena = Arena(1 << 20)
        self.store = store or Store.in_memory(deployment_id=b"d" * 16, created_at_ms=1)
        self.token = token or MemoryToken("twin", self.arena)
        if store is None:
            self.store.reseal(AesSealer(), lambda transaction: None)
        self.catalog = Catalog()
        self.writer = StoreWriter(self.store)
        self.effects = Effects(
            self.store, self.writer, self.catalog, Permissive(), Unrecorded(), Unasked()
        )
        self.materials = Materials(
            self.arena,
            self.arena.generate(),
            self.store.deployment_id,
            private_keys_max=8,
            idle_s=60.0,
        )
        self.hsm_keys = HsmKeys({"twin": self.token}, self.materials)
        self.lifecycle = LifecycleService(
            self.catalog,
            self.effects,
            self.materials,
            self.hsm_keys,
            "twin",
            "tests",
            FairThreads(2, FairBudget(64)),
        )
        self.reconciliation = Reconciliation(self.catalog, self.effects, self.hsm_keys, "tests")

    async def create_key(self, protection: str = "software", **options: Any) -> list[Any]:
        """The answer of `create_key` for an AES key; `options` are those of the request."""
        arguments: tuple[Any, ...] = (
            *("AES_256", "ENCRYPT_DECRYPT", protection, None, None, ""),
            dict[str, str](),
        )
        return await self.lifecycle.create_key(
            make_call("create_key", *arguments, **options), *arguments
        )


def make_call(name: str, *arguments: Any, budget_s: float = 30.0, **options: Any) -> Call:
    """A call of the tester's."""
    operation, deadline = OPERATIONS[name], time.monotonic() + budget_s
    return Call(PRINCIPAL, "here", operation, list(arguments), options, deadline, "r-test-1")


@asynccontextmanager
async def running_parts(parts: Parts | None = None) -> AsyncIterator[Parts]:
    """Parts whose store's writer runs and whose catalogue is read."""
    parts = parts or Parts()
    async with trio.open_nursery() as nursery:
        await nursery.start(_run_writer, parts)
        await parts.effects.refresh()
        yield parts
        nursery.cancel_scope.cancel()


async def _run_writer(parts: Parts, task_status: trio.TaskStatus[None]) -> None:
    await parts.writer.run(task_status=task_status)
