"""Creating keys: access points take turns at the token, and whatever fails, nothing is lost."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from hsmux_gateway.engine import arguments_hash
from hsmux_gateway.fairness import SYSTEM_TENANT
from hsmux_gateway.hsm.memory import MemoryToken
from hsmux_gateway.hsm.token import HsmKey
from hsmux_gateway.store import IntentRow, KeyVersionRow, Store
from hsmux_gateway.store.errors import CommitUnknown, StoreBusy, StoreFull, StoreUnavailable
from hsmux_gateway.store.memory import MemoryBackend, MemoryRows
from hsmux_gateway.store.transaction import Reader
from hsmux_protocol.errors import Busy, OutcomeUnknown, Unavailable
from tests.gateway.parts import PRINCIPAL, Parts, make_call, running_parts
from tests.gateway.store.sealer import AesSealer

FLOOD, POLITE = b"f" * 16, b"p" * 16


class NotingToken(MemoryToken):
    """A token that notes for whom it has made keys."""

    def __init__(self, parts: Parts) -> None:
        super().__init__("twin", parts.arena)
        self.made_for: list[bytes] = []
        self._asked, self.asked = trio.open_memory_channel[bytes](64)

    async def generate(
        self,
        spec: str,
        cka_id: bytes,
        *,
        deadline: float,
        role: str = "key",
        tenant: bytes = SYSTEM_TENANT,
    ) -> HsmKey:
        """Make a key, and note it."""
        self._asked.send_nowait(tenant)
        key = await super().generate(spec, cka_id, deadline=deadline, role=role, tenant=tenant)
        self.made_for.append(tenant)
        return key


async def _create(parts: Parts, tenant: bytes, spec: str) -> None:
    arguments: list[Any] = [spec, "SIGN_VERIFY", "hardware", None, None, "", {}]
    call = make_call("create_key", *arguments)
    call = call._replace(principal=PRINCIPAL._replace(access_point_id=tenant))
    await parts.lifecycle.create_key(call, *arguments)


async def test_access_points_take_turns_to_have_keys_made() -> None:
    first = Parts()
    token = NotingToken(first)
    async with running_parts(Parts(first.store, token)) as parts, trio.open_nursery() as nursery:
        async with token._turn(2.0**40):
            for _ in range(5):
                nursery.start_soon(_create, parts, FLOOD, "RSA_2048")
            for _ in range(5):
                await token.asked.receive()
            nursery.start_soon(_create, parts, POLITE, "EC_P256")
            assert await token.asked.receive() == POLITE
    assert token.made_for == [FLOOD, POLITE, FLOOD, FLOOD, FLOOD, FLOOD]


class FailingBackend(MemoryBackend):
    """A database that fails now and then: before it writes, or so that nobody knows if it did."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance
        self.fails = 0.0

    def _fail(self, *errors: type[Exception]) -> None:
        if self._chance.random() < self.fails:
            raise self._chance.choice(errors)("a fault")

    @contextmanager
    def begin(self) -> Iterator[MemoryRows]:
        """A writing transaction."""
        self._fail(StoreBusy, StoreFull, StoreUnavailable)
        with super().begin() as rows:
            yield rows
            self._fail(StoreFull, StoreUnavailable)
        self._fail(CommitUnknown)

    @contextmanager
    def snapshot(self) -> Iterator[MemoryRows]:
        """A reading transaction."""
        self._fail(StoreBusy, StoreUnavailable)
        with super().snapshot() as rows:
            yield rows


class Creator:
    """Creates keys under few tokens, gives up early now and then, and knows what was acknowledged.

    Attributes:
        made: Identifiers of keys by the token, or number, of the call that made them.
    """

    def __init__(self, parts: Parts, chance: random.Random) -> None:
        self._parts = parts
        self._chance = chance
        self.made: dict[bytes, set[bytes]] = {}

    async def create(self, number: int) -> None:
        """One call, of one of three access points."""
        chance, tenant = self._chance, bytes([number % 3]) * 16
        protection = ("software", "hardware")[number % 2]
        token = bytes([number % 6, chance.randrange(5)]) * 8 if chance.random() < 0.7 else None
        arguments: list[Any] = ["AES_256", "ENCRYPT_DECRYPT", protection, None, None, "", {}]
        call = make_call("create_key", *arguments)
        if token:
            call.options["idempotency_token"] = token
        call = call._replace(principal=PRINCIPAL._replace(access_point_id=tenant))
        patience_s = chance.choice((0.0, 0.002, 0.01, 9.0, 9.0))
        try:
            with trio.move_on_after(patience_s):
                if token:
                    await self._parts.effects.recall(call, arguments_hash(call))
                (record,) = await self._parts.lifecycle.create_key(call, *arguments)
                self.made.setdefault(token or b"%d" % number, set()).add(record.key_id)
        except (Busy, Unavailable, OutcomeUnknown):
            # Nothing was acknowledged.
            return


@pytest.mark.parametrize(
    "rounds", [pytest.param(4, id="few"), pytest.param(200, id="many", marks=pytest.mark.long)]
)
async def test_whatever_fails_what_is_acknowledged_is_there_once(rounds: int) -> None:
    for number in range(rounds):
        await _fail_and_check(random.Random(number))


async def _fail_and_check(chance: random.Random) -> None:
    backend = FailingBackend(chance)
    twin = Store.in_memory(deployment_id=b"d" * 16, created_at_ms=1)
    backend._tables = twin._backend._tables  # type: ignore[attr-defined]
    store = Store(backend)
    store.reseal(AesSealer(), lambda transaction: None)
    async with running_parts(Parts(store)) as parts:
        creator = Creator(parts, chance)
        backend.fails = 0.1
        async with trio.open_nursery() as nursery:
            for call in range(60):
                nursery.start_soon(creator.create, call)
                if chance.random() < 0.3:
                    await trio.sleep(0.001)
        backend.fails = 0.0
        await parts.effects.refresh()
        assert parts.writer.statistics().waiting == parts.token.statistics().waiting == 0
        assert repr(parts.effects._recalling) == "FairThreads(1 free, 0 waiting)"
        assert all(len(keys) == 1 for keys in creator.made.values())
        acknowledged = {key_id for keys in creator.made.values() for key_id in keys}
        assert acknowledged and acknowledged <= parts.catalog.keys.keys()
        # Every object is a key's or has an intent that undoes it, and no key is without its own.
        there = {o.cka_id for o in await parts.token.list_objects(deadline=time.monotonic() + 9)}
        keys, intended = store.read(_named)
        assert keys <= there <= keys | intended
        assert not keys & intended


def _named(reader: Reader) -> tuple[set[bytes], set[bytes]]:
    """CKA_IDs of keys, and of intents."""
    versions = {row.cka_id for row in reader.select(KeyVersionRow) if row.token}
    return versions, {row.cka_id for row in reader.select(IntentRow)}
