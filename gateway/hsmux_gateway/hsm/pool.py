"""A token behind a pool of workers: what the engine asks for becomes jobs, and answers values.

Callers put jobs in and wait for their request; their own deadline ends the wait, not the job.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from hsmux_native import Arena
from hsmux_native.pkcs11 import SecretPage
from hsmux_protocol.columns import pack_column, unpack_column
from hsmux_protocol.errors import RemoteProtocolError

from ..fairness import SYSTEM_TENANT
from .errors import InvalidInput, TokenDeadlineExceeded, TokenOutcomeUnknown, TokenUnavailable
from .jobs import ITEMS_MAX, Arguments, Column, Job
from .requests import ColumnRequest, PageRequest, PoolRequest, ValueRequest
from .settings import TokenSettings
from .supervisor import Supervisor
from .token import BatchResult, FoundObject, HsmKey, TokenStatistics

__all__ = ["PoolToken", "open_token"]

KILL_S: Final[dict[str, float]] = {
    "sign": 10.0,
    "generate": 60.0,
    "destroy": 10.0,
    "list_objects": 30.0,
    "try_quirk": 20.0,
    "list_data": 10.0,
    "put_data": 10.0,
    "remove_data": 10.0,
}
"""Seconds an operation, or an item of a column, may run before its worker is killed."""
KILL_DEFAULT_S: Final = 5.0

EXCLUSIVE: Final = frozenset({"generate", "destroy", "put_data", "remove_data"})
"""Operations that make or destroy objects: one at a time in a token."""

SILENCE_S: Final = 1.0
"""Seconds until a worker that was killed for its silence is gone."""

KEY_SIZE: Final = 32
"""Bytes of the key that goes through a worker's page."""

WORK_SIZE_MAX: Final = 4 << 20
"""Bytes of items in one job."""


class PoolToken:
    """A token behind a pool of workers; satisfies `Token`. Use `open_token`.

    Args:
        supervisor: Of its workers.
        arena: For keys that a root key seals and opens.
    """

    def __init__(self, supervisor: Supervisor, arena: Arena) -> None:
        self.name = supervisor.name
        self.supervisor = supervisor
        self._arena = arena

    def __repr__(self) -> str:
        return f"PoolToken({self.name}, {self.supervisor!r})"

    @property
    def facts(self) -> dict[str, Any]:
        """What the token says of itself."""
        return self.supervisor.facts

    def statistics(self) -> TokenStatistics:
        """How it fares now."""
        return self.supervisor.statistics()

    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        return self.supervisor.worker_pids()

    def _job(
        self,
        request: PoolRequest,
        operation: str,
        values: list[Any],
        deadline: float,
        key: HsmKey | None = None,
        tenant: bytes = SYSTEM_TENANT,
    ) -> Job:
        return Job(
            request,
            tenant,
            key.name if key else b"",
            operation,
            Arguments(values),
            deadline,
            KILL_S.get(operation, KILL_DEFAULT_S),
            repeatable=operation not in ("generate", "try_quirk"),
            exclusive=operation in EXCLUSIVE,
            alone=isinstance(request, PageRequest) or operation == "try_quirk",
        )

    async def _ask(
        self,
        operation: str,
        values: list[Any],
        deadline: float,
        key: HsmKey | None = None,
        tenant: bytes = SYSTEM_TENANT,
        request: ValueRequest | None = None,
    ) -> Any:
        """Have one thing done, and wait for its value until the deadline at most.

        Raises:
            TokenError: It was not done; TokenOutcomeUnknown: it may have been.
        """
        waiting = request or ValueRequest()
        job = self._job(waiting, operation, values, deadline, key, tenant)
        self.supervisor.submit(job)
        try:
            is_settled = await waiting.wait(deadline - time.monotonic())
        finally:
            is_begun = job.place == "running"
            self.supervisor.cancel(waiting)
        if is_settled:
            return waiting.result()
        if is_begun and not job.repeatable:
            raise TokenOutcomeUnknown("the deadline passed during a change")
        raise TokenDeadlineExceeded("the deadline passed before the token answered")

    async def generate(
        self,
        spec: str,
        cka_id: bytes,
        *,
        deadline: float,
        role: str = "key",
        tenant: bytes = SYSTEM_TENANT,
    ) -> HsmKey:
        """Make a token object; see `Token`."""
        key = HsmKey(cka_id, spec, b"", b"")
        made = await self._ask("generate", [spec, cka_id, role], deadline, key, tenant)
        proof, public_key = made
        return HsmKey(cka_id, spec, proof, public_key, role)

    async def destroy(self, key: HsmKey, *, deadline: float, tenant: bytes = SYSTEM_TENANT) -> None:
        """Destroy every object with the key's CKA_ID; no worker knows it any more on return."""
        await self._ask("destroy", [key.cka_id], deadline, key, tenant)
        await self.drop_key(key, deadline=deadline)

    async def drop_key(self, key: HsmKey, *, deadline: float) -> None:
        """Have every worker forget a key; one that does not answer in time is killed."""
        request = ValueRequest()

        def make() -> Job:
            return self._job(request, "drop_key", [key.cka_id], deadline, key)

        self.supervisor.broadcast(make)
        request.settle()
        if not await request.wait(deadline - time.monotonic()):
            self.supervisor.silence(request)
            await request.wait(SILENCE_S)

    async def list_objects(self, *, deadline: float) -> list[FoundObject]:
        """Keys in the token."""
        found = await self._ask("list_objects", [], deadline)
        return [FoundObject(*item) for item in found]

    async def list_data(self, label: str, *, deadline: float) -> list[bytes]:
        """The values of the data objects under a label; see `Token`."""
        found: list[bytes] = await self._ask("list_data", [label], deadline)
        return found

    async def put_data(self, label: str, value: bytes, *, deadline: float) -> None:
        """Keep a value as a data object; see `Token`."""
        await self._ask("put_data", [label, value], deadline)

    async def remove_data(self, label: str, value: bytes, *, deadline: float) -> None:
        """Destroy data objects; see `Token`."""
        await self._ask("remove_data", [label, value], deadline)

    async def mechanisms(self, *, deadline: float) -> list[str]:
        """Mechanisms the token lists."""
        found: list[str] = await self._ask("mechanisms", [], deadline)
        return found

    async def try_quirk(self, name: str, *, deadline: float) -> str:
        """What one of `quirks.QUIRKS` finds out.

        Raises:
            TokenOutcomeUnknown: The module did not survive it.
        """
        found: str = await self._ask("try_quirk", [name], deadline)
        return found

    async def encrypt(
        self,
        key: HsmKey,
        plaintexts: bytes,
        associated_data: bytes,
        *,
        deadline: float,
        tenant: bytes,
    ) -> BatchResult:
        """AES-GCM over a column; see `Token`."""
        return await self._crypt("encrypt", key, plaintexts, associated_data, deadline, tenant)

    async def decrypt(
        self, key: HsmKey, sealed: bytes, associated_data: bytes, *, deadline: float, tenant: bytes
    ) -> BatchResult:
        """Open a column of what `encrypt` made; see `Token`."""
        return await self._crypt("decrypt", key, sealed, associated_data, deadline, tenant)

    async def _crypt(
        self,
        operation: str,
        key: HsmKey,
        column: bytes,
        associated_data: bytes,
        deadline: float,
        tenant: bytes,
    ) -> BatchResult:
        """Split a column into jobs, have them done side by side, and put it together again."""
        parts = _split(key, column, associated_data)
        request = ColumnRequest(sum(part.count for part in parts))
        kill_s = KILL_S.get(operation, KILL_DEFAULT_S)
        jobs = [Job(request, tenant, key.name, operation, p, deadline, kill_s) for p in parts]
        request.jobs.update(jobs)
        try:
            for job in jobs:
                self.supervisor.submit(job)
            await request.wait(deadline - time.monotonic())
        finally:
            self.supervisor.cancel(request)
        return request.result()

    async def sign(
        self, key: HsmKey, algorithm: str, digest: bytes, *, deadline: float, tenant: bytes
    ) -> bytes:
        """Sign a digest; see `Token`."""
        values = [key.cka_id, key.spec, key.public_key, algorithm, digest]
        signature: bytes = await self._ask("sign", values, deadline, key, tenant)
        return signature

    async def random(self, length: int, *, deadline: float, tenant: bytes = SYSTEM_TENANT) -> bytes:
        """Random bytes of the token."""
        data: bytes = await self._ask("random", [length], deadline, tenant=tenant)
        if len(data) != length:
            raise TokenUnavailable("the token gave another number of random bytes")
        return data

    async def prove(self, key: HsmKey, *, deadline: float, tenant: bytes = SYSTEM_TENANT) -> None:
        """Prove that the token's object is this key."""
        values = [key.cka_id, key.spec, key.proof, key.public_key, key.role]
        await self._ask("prove", values, deadline, key, tenant)

    async def seal_slot(
        self,
        root: HsmKey,
        slot: int,
        associated_data: bytes,
        *,
        deadline: float,
        tenant: bytes = SYSTEM_TENANT,
    ) -> bytes:
        """Seal the key in an arena slot under a root key, through a worker's page."""
        request = PageRequest(
            before=lambda page: self._arena.store(slot, memoryview(page.view)),
            after=lambda page, value: value,
        )
        values = [root.cka_id, root.spec, root.proof, associated_data, KEY_SIZE]
        sealed: bytes = await self._ask("seal_page", values, deadline, root, tenant, request)
        return sealed

    async def open_slot(
        self,
        root: HsmKey,
        sealed: bytes,
        associated_data: bytes,
        *,
        deadline: float,
        tenant: bytes = SYSTEM_TENANT,
    ) -> int:
        """Open what `seal_slot` made into an arena slot, through a worker's page."""

        def load(page: SecretPage, is_open: Any) -> int:
            if not is_open:
                raise InvalidInput("the sealed key does not open under this root key")
            return self._arena.load_from(memoryview(page.view)[:KEY_SIZE])

        request = PageRequest(before=lambda page: page.wipe(), after=load)
        values = [root.cka_id, root.spec, root.proof, associated_data, sealed]
        slot: int = await self._ask("open_page", values, deadline, root, tenant, request)
        return slot


def _split(key: HsmKey, column: bytes, associated_data: bytes) -> list[Column]:
    """A column in parts of at most `ITEMS_MAX` items and `WORK_SIZE_MAX` bytes.

    Raises:
        ValueError: It is malformed, or the associated data are not one or one for each item.
    """
    try:
        items, aads = unpack_column(column), unpack_column(associated_data)
    except RemoteProtocolError as error:
        raise ValueError(str(error)) from None
    if len(aads) not in (1, len(items)):
        raise ValueError(f"{len(aads)} texts of associated data for {len(items)} items")
    name, count = (key.cka_id, key.spec, key.proof), len(items)
    if count <= ITEMS_MAX and len(column) <= WORK_SIZE_MAX:
        return [Column(name, column, associated_data, range(count))]
    parts = []
    start = 0
    while start < count:
        stop, size = start, 0
        while stop < min(count, start + ITEMS_MAX) and (not size or size <= WORK_SIZE_MAX):
            size += len(items[stop])
            stop += 1
        own = associated_data if len(aads) == 1 else pack_column(aads[start:stop])
        parts.append(Column(name, pack_column(items[start:stop]), own, range(start, stop)))
        start = stop
    return parts


@asynccontextmanager
async def open_token(
    settings: TokenSettings, arena: Arena, directory: Path
) -> AsyncIterator[PoolToken]:
    """Open a token: prove its PIN, start its workers, end them at the end.

    Args:
        settings: How to reach it.
        arena: For keys that a root key seals and opens.
        directory: Where PIN marks and copies of token files are kept.

    Raises:
        PinRefused: Nobody may log in; says what to do.
        TokenError: The first worker did not get ready; says why.
    """
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(settings, directory, nursery)
        try:
            failure = await supervisor.start()
            if failure is None:
                yield PoolToken(supervisor, arena)
        finally:
            with trio.CancelScope(shield=True):
                await supervisor.stop()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
