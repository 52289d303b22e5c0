"""Creating keys: access points take turns at the token."""

from typing import Any

import trio

from hsmux_gateway.fairness import SYSTEM_TENANT
from hsmux_gateway.hsm.memory import MemoryToken
from hsmux_gateway.hsm.token import HsmKey
from tests.gateway.parts import PRINCIPAL, Parts, make_call, running_parts

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
