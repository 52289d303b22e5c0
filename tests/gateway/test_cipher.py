"""Hardware keys: what an access point may have with a token at a time."""

import pytest
import trio
import trio.testing

from hsmux_gateway.fairness import FairBudget
from hsmux_gateway.hsm.memory import MemoryToken
from hsmux_gateway.hsm.token import BatchResult, HsmKey
from hsmux_gateway.keys.cipher import HardwareCipher, key_in_use
from hsmux_gateway.keys.counters import UseCounters
from hsmux_protocol.columns import pack_column, unpack_column
from hsmux_protocol.context import EMPTY_CONTEXT
from hsmux_protocol.errors import Busy
from tests.gateway.parts import Parts, running_parts

A, B = b"a" * 16, b"b" * 16


class SlowToken(MemoryToken):
    """A token that takes its time."""

    go_on = trio.Event()

    async def encrypt(
        self,
        key: HsmKey,
        plaintexts: bytes,
        associated_data: bytes,
        *,
        deadline: float,
        tenant: bytes,
    ) -> BatchResult:
        """Encrypt when the test lets it."""
        await self.go_on.wait()
        return await super().encrypt(
            key, plaintexts, associated_data, deadline=deadline, tenant=tenant
        )


async def test_one_access_point_does_not_fill_a_tokens_queue() -> None:
    first = Parts()
    token = SlowToken("twin", first.arena)
    queue = FairBudget(100)
    async with running_parts(Parts(first.store, token)) as parts:
        (record,) = await parts.create_key("hardware")

        async def lease(key_id: bytes, version: int, amount: int, tenant: bytes) -> int:
            return 0

        cipher = HardwareCipher(parts.hsm_keys, UseCounters(lease), {"twin": queue})
        used = key_in_use(parts.catalog, parts.catalog.keys[record.key_id], None)

        async def encrypt(tenant: bytes, count: int) -> None:
            items = pack_column([b"x"] * count)
            deadline = 2.0**40
            column, statuses = await cipher.encrypt(
                used, [EMPTY_CONTEXT], items, deadline, tenant=tenant
            )
            assert len(unpack_column(column)) == count
            assert set(statuses) == {0}

        async with trio.open_nursery() as nursery:
            nursery.start_soon(encrypt, A, 40)
            nursery.start_soon(encrypt, A, 10)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Busy) as refused:
                await encrypt(A, 1)
            assert refused.value.retry_after_ms
            nursery.start_soon(encrypt, B, 20)
            await trio.testing.wait_all_tasks_blocked()
            assert queue.used == 70
            token.go_on.set()
        assert queue.used == 0
