"""What a crash leaves in a token: undone when its lease is over, never anybody else's."""

import time
from collections.abc import Awaitable, Callable

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from hsmux_gateway.fairness import SYSTEM_TENANT
from hsmux_gateway.hsm.memory import MemoryToken
from hsmux_gateway.hsm.token import FoundObject, HsmKey
from hsmux_gateway.store import GatewayKeyRow, IntentRow, KeyVersionRow, Transaction
from hsmux_gateway.store.rows import WRAPPING_KEY
from hsmux_protocol.errors import Unavailable
from tests.gateway.parts import Parts, running_parts

HOUR_MS = 3_600_000


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _leave_intent(parts: Parts, cka_id: bytes, *, expired: bool, made: bool) -> IntentRow:
    """What a gateway that was killed in the middle of a creation leaves."""
    intent = IntentRow(
        intent_id=cka_id,
        kind="create_key",
        token="twin",
        cka_id=cka_id,
        key_id=b"k" * 16,
        owner="dead",
        arguments=b"AES_256",
        created_at_ms=1,
        lease_until_ms=_now_ms() + (-1 if expired else HOUR_MS),
    )
    if made:
        await parts.token.generate("AES_256", cka_id, deadline=time.monotonic() + 9)
    return await parts.effects.write(lambda transaction: transaction.add_intent(intent))


async def _objects(token: MemoryToken) -> set[bytes]:
    return {item.cka_id for item in await token.list_objects(deadline=time.monotonic() + 9)}


def _intents(parts: Parts) -> set[bytes]:
    return {row.cka_id for row in parts.store.read(lambda reader: reader.select(IntentRow))}


async def test_only_expired_intents_are_undone() -> None:
    async with running_parts() as parts:
        await _leave_intent(parts, b"1" * 16, expired=True, made=True)
        await _leave_intent(parts, b"2" * 16, expired=True, made=False)
        await _leave_intent(parts, b"3" * 16, expired=False, made=True)
        await parts.token.generate("AES_256", b"4" * 16, deadline=time.monotonic() + 9)
        await parts.create_key("hardware")
        (version,) = parts.store.read(lambda reader: reader.select(KeyVersionRow))
        await parts.reconciliation.reconcile()
        assert await _objects(parts.token) == {b"3" * 16, b"4" * 16, version.cka_id}
        assert _intents(parts) == {b"3" * 16}


async def test_unclaimed_objects_are_told_and_stay() -> None:
    async with running_parts() as parts:
        await _leave_intent(parts, b"3" * 16, expired=False, made=True)
        await parts.create_key("hardware")
        await parts.reconciliation.survey()
        assert parts.reconciliation.unclaimed == {"twin": 0}
        await parts.token.generate("AES_256", b"4" * 16, deadline=time.monotonic() + 9)
        with capture_logs() as logs:
            await parts.reconciliation.survey()
        assert parts.reconciliation.unclaimed == {"twin": 1}
        assert logs[0]["cka_ids"] == [(b"4" * 16).hex()]
        await parts.reconciliation.reconcile()
        assert b"4" * 16 in await _objects(parts.token)


async def test_an_own_key_that_is_lost_or_another_one_is_told() -> None:
    async with running_parts() as parts:
        deadline = time.monotonic() + 9
        made = await parts.token.generate("AES_256", b"w" * 16, deadline=deadline, role="wrapping")
        other = await parts.token.generate("AES_256", b"o" * 16, deadline=deadline, role="wrapping")
        row = GatewayKeyRow(
            name=WRAPPING_KEY,
            spec=made.spec,
            token=parts.token.name,
            cka_id=made.cka_id,
            public_key=b"",
            certificate=b"",
            material=b"",
            proof=made.proof,
            state="active",
            created_at_ms=0,
        )
        stored = await parts.effects.write(lambda transaction: transaction.insert(row))
        await parts.reconciliation.survey()
        assert parts.reconciliation.unproven == []
        swapped = msgspec.structs.replace(stored, cka_id=other.cka_id)
        await parts.effects.write(lambda transaction: transaction.update(swapped))
        await parts.reconciliation.survey()
        (told,) = parts.reconciliation.unproven
        assert "wrapping" in told and parts.token.name in told
        await parts.token.destroy(other, deadline=deadline)
        await parts.reconciliation.survey()
        assert parts.reconciliation.unproven == [told]
        parts.token.away = True
        await parts.reconciliation.survey()
        assert parts.reconciliation.unproven == []


async def test_a_token_that_is_away_is_asked_again_later() -> None:
    async with running_parts() as parts:
        await _leave_intent(parts, b"1" * 16, expired=True, made=True)
        parts.token.away = True
        await parts.reconciliation.reconcile()
        await parts.reconciliation.survey()
        parts.token.away = False
        # Its lease was taken over for a while.
        assert _intents(parts) == {b"1" * 16}
        await _expire_all(parts)
        await parts.reconciliation.reconcile()
        assert _intents(parts) == set()
        assert await _objects(parts.token) == set()


class UndoneMeanwhile(MemoryToken):
    """A token that others tidy up right after its objects were listed."""

    def __init__(self, parts: Parts) -> None:
        super().__init__("twin", parts.arena)
        self.tidy_up: Callable[[], Awaitable[None]] | None = None

    async def list_objects(self, *, deadline: float) -> list[FoundObject]:
        """What was there before."""
        listed = await super().list_objects(deadline=deadline)
        if self.tidy_up is not None:
            tidy_up, self.tidy_up = self.tidy_up, None
            await tidy_up()
        return listed


async def test_what_is_undone_during_a_survey_is_not_unclaimed() -> None:
    first = Parts()
    token = UndoneMeanwhile(first)
    async with running_parts(Parts(first.store, token)) as parts:
        await _leave_intent(parts, b"1" * 16, expired=True, made=True)
        token.tidy_up = parts.reconciliation.reconcile
        await parts.reconciliation.survey()
        assert parts.reconciliation.unclaimed == {"twin": 0}
        assert await _objects(token) == set()


async def _expire_all(parts: Parts) -> None:
    def work(transaction: Transaction) -> None:
        for intent in transaction.select(IntentRow):
            transaction.update(msgspec.structs.replace(intent, lease_until_ms=1))

    await parts.effects.write(work)


class SlowToken(MemoryToken):
    """A token whose next key takes as long as the test wants."""

    def __init__(self, parts: Parts) -> None:
        super().__init__("twin", parts.arena)
        self.made = trio.Event()
        self.go_on = trio.Event()

    async def generate(
        self,
        spec: str,
        cka_id: bytes,
        *,
        deadline: float,
        role: str = "key",
        tenant: bytes = SYSTEM_TENANT,
    ) -> HsmKey:
        key = await super().generate(spec, cka_id, deadline=deadline, role=role, tenant=tenant)
        self.made.set()
        await self.go_on.wait()
        return key


async def test_a_creation_that_was_undone_meanwhile_is_not_acknowledged() -> None:
    first = Parts()
    token = SlowToken(first)
    async with running_parts(Parts(first.store, token)) as parts:

        async def create() -> None:
            with pytest.raises(Unavailable, match="undone"):
                await parts.create_key("hardware")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(create)
            await token.made.wait()
            # As if the process had been stopped for longer than its lease.
            await _expire_all(parts)
            await parts.reconciliation.reconcile()
            token.go_on.set()
        assert parts.store.read(lambda reader: reader.select(KeyVersionRow)) == []
        assert await _objects(token) == set()


async def test_several_gateways_reconcile_at_once() -> None:
    first = Parts()
    async with running_parts(first) as one, running_parts(Parts(first.store, first.token)) as two:
        for number in range(20):
            await _leave_intent(one, bytes([number]) * 16, expired=True, made=number % 2 == 0)
        async with trio.open_nursery() as nursery:
            for parts in (one, two):
                nursery.start_soon(parts.reconciliation.reconcile)
        assert _intents(one) == set()
        assert await _objects(first.token) == set()
