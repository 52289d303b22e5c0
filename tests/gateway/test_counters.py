"""Uses of hardware keys: counted before they happen, never too few."""

import pytest
import trio

from hsmux_gateway.keys.counters import USES_MAX, USES_ROTATE, UseCounters
from hsmux_gateway.store import CounterRow
from hsmux_protocol.errors import Unavailable, WrongState
from tests.gateway.parts import Parts, running_parts

KEY = b"k" * 16
TENANT = b"t" * 16


class Ledger:
    """The durable side: what was leased, in the order it was."""

    def __init__(self) -> None:
        self.leased = 0
        self.blocks: list[int] = []
        self.away = False

    async def lease(self, key_id: bytes, version: int, amount: int, tenant: bytes) -> int:
        """Lease the next uses."""
        await trio.lowlevel.checkpoint()
        if self.away:
            raise Unavailable("away")
        before, self.leased = self.leased, self.leased + amount
        self.blocks.append(amount)
        return before


async def test_blocks_double_and_large_uses_get_what_they_need() -> None:
    ledger = Ledger()
    counters = UseCounters(ledger.lease)
    for _ in range(256 + 512):
        await counters.take(KEY, 1, 1, tenant=TENANT)
    assert ledger.blocks == [256, 512]
    await counters.take(KEY, 1, 100_000, tenant=TENANT)
    assert ledger.blocks == [256, 512, 100_000]
    for _ in range(70_000):
        await counters.take(KEY, 1, 1, tenant=TENANT)
    assert ledger.blocks[3:] == [65536, 65536]


async def test_nobody_uses_what_is_not_leased() -> None:
    ledger = Ledger()
    counters = UseCounters(ledger.lease)
    used = 0

    async def use(amount: int) -> None:
        nonlocal used
        for _ in range(50):
            await counters.take(KEY, 1, amount, tenant=TENANT)
            used += amount
            assert used <= ledger.leased

    async with trio.open_nursery() as nursery:
        for amount in (1, 7, 64, 300):
            for _ in range(5):
                nursery.start_soon(use, amount)
    assert used == 50 * 5 * (1 + 7 + 64 + 300)


async def test_a_lease_that_fails_or_is_cancelled_gives_nothing() -> None:
    ledger = Ledger()
    counters = UseCounters(ledger.lease)
    ledger.away = True
    with pytest.raises(Unavailable):
        await counters.take(KEY, 1, 1, tenant=TENANT)
    ledger.away = False
    with trio.CancelScope() as scope:
        scope.cancel()
        await counters.take(KEY, 1, 1, tenant=TENANT)
    assert ledger.leased == 0
    await counters.take(KEY, 1, 1, tenant=TENANT)
    assert ledger.leased == 256


async def test_a_worn_key_is_told_and_refused_before_its_ivs_could_meet() -> None:
    ledger = Ledger()
    counters = UseCounters(ledger.lease)
    await counters.take(KEY, 1, 1, tenant=TENANT)
    assert counters.worn() == []
    ledger.leased = USES_ROTATE
    await counters.take(KEY, 2, 1, tenant=TENANT)
    assert counters.worn() == [(KEY, 2)]
    ledger.leased = USES_MAX - 10
    with pytest.raises(WrongState, match="rotate"):
        await counters.take(KEY, 3, 1, tenant=TENANT)


async def test_a_crash_counts_too_many_and_never_too_few() -> None:
    first = Parts()
    used = 0
    for _ in range(4):
        async with running_parts(Parts(first.store, first.token)) as parts:

            async def lease(
                key_id: bytes, version: int, amount: int, tenant: bytes, parts: Parts = parts
            ) -> int:
                return await parts.effects.write(
                    lambda transaction: transaction.lease_counter(key_id, version, amount)
                )

            # A new process knows nothing of what the old one had left of its lease.
            counters = UseCounters(lease)
            for _ in range(10):
                await counters.take(KEY, 1, 30, tenant=TENANT)
                used += 30
                (row,) = parts.store.read(lambda reader: reader.select(CounterRow))
                assert used <= row.leased
