"""A token behind the fault-injecting adapter, and work whose results are checked here."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from hsmux_gateway.hsm.errors import TokenError
from hsmux_gateway.hsm.pool import PoolToken, open_token
from hsmux_gateway.hsm.settings import TokenSettings
from hsmux_gateway.hsm.token import HsmKey
from hsmux_gateway.keys.signing import verify_with
from hsmux_native import Arena
from hsmux_native.faults import Counters, write_rules
from hsmux_protocol.columns import pack_column, unpack_column
from hsmux_protocol.errors import InvalidSignature
from hsmux_protocol.keys import ALGORITHMS

TENANT = b"tenant"
AAD = pack_column([b"associated data"])
ITEMS = [os.urandom(100) for _ in range(5)]


def soon(seconds: float = 30.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


class Rig:
    """A token of SoftHSM or NSS whose calls can be made to fail.

    Attributes:
        settings: How to reach it.
        directory: Of its PIN marks and copies.
        counters: Of all its workers together.
    """

    def __init__(self, settings: TokenSettings, directory: Path, **changes: Any) -> None:
        self._rules = directory / "rules"
        self.counters = Counters(directory / "counters")
        self.directory = directory / "hsm"
        self.directory.mkdir(exist_ok=True)
        self.rules()
        environment = {
            **settings.environment,
            "HSMUX_ADAPTER_RULES": str(self._rules),
            "HSMUX_ADAPTER_COUNTERS": str(directory / "counters"),
        }
        self.settings = msgspec.structs.replace(settings, environment=environment, **changes)

    def rules(self, *lines: str) -> None:
        """Replace the rules; none: nothing fails."""
        write_rules(self._rules, *lines)

    @asynccontextmanager
    async def open(self, **changes: Any) -> AsyncIterator[PoolToken]:
        """The token, open."""
        settings = msgspec.structs.replace(self.settings, **changes)
        async with open_token(settings, Arena(1 << 20), self.directory) as token:
            yield token


async def encrypt(token: PoolToken, key: HsmKey, items: list[bytes], **options: Any) -> list[bytes]:
    """Encrypt, every item; raises TokenError if one was not."""
    found = {"deadline": soon(), "tenant": TENANT, **options}
    result = await token.encrypt(key, pack_column(items), AAD, **found)
    if any(result.statuses):
        raise TokenError(f"statuses {list(result.statuses)}")
    return unpack_column(result.outputs)


async def decrypt(token: PoolToken, key: HsmKey, items: list[bytes], **options: Any) -> list[bytes]:
    """Decrypt, every item; raises TokenError if one was not, AssertionError if one is invalid."""
    found = {"deadline": soon(), "tenant": TENANT, **options}
    result = await token.decrypt(key, pack_column(items), AAD, **found)
    assert 1 not in result.statuses, "a good ciphertext was called invalid"
    if any(result.statuses):
        raise TokenError(f"statuses {list(result.statuses)}")
    return unpack_column(result.outputs)


async def sign(token: PoolToken, key: HsmKey, algorithm: str = "ECDSA_SHA_256") -> None:
    """Sign, and verify; raises AssertionError if the signature is wrong."""
    digest = os.urandom(ALGORITHMS[algorithm].digest_size)
    signature = await token.sign(key, algorithm, digest, deadline=soon(), tenant=TENANT)
    verified = ALGORITHMS.get(f"{algorithm}_RAW", ALGORITHMS[algorithm])
    try:
        verify_with(key.public_key, verified, digest, signature)
    except InvalidSignature:
        raise AssertionError("a wrong signature") from None


class Work:
    """Keys in a token and things sealed under them, to see whether the token still serves right.

    Make it with `prepare` while nothing fails.
    """

    def __init__(self, token: PoolToken, secret: HsmKey, pair: HsmKey, sealed: list[bytes]) -> None:
        self.token = token
        self.secret = secret
        self.pair = pair
        self.sealed = sealed

    @classmethod
    async def prepare(cls, token: PoolToken) -> "Work":
        """Make the keys."""
        secret = await token.generate("AES_256", os.urandom(16), deadline=soon())
        pair = await token.generate("EC_P256", os.urandom(16), deadline=soon())
        return cls(token, secret, pair, await encrypt(token, secret, ITEMS))

    async def seal(self) -> None:
        """Encrypt, and look with what is known to be good that it opens."""
        sealed = await encrypt(self.token, self.secret, ITEMS)
        self.pending = sealed

    async def open(self) -> None:
        """Decrypt what was sealed while nothing failed."""
        assert await decrypt(self.token, self.secret, self.sealed) == ITEMS, "another plaintext"

    async def refuse(self) -> None:
        """Garbage is invalid, or there is an error; it never opens."""
        flipped = self.sealed[0][:-1] + bytes([self.sealed[0][-1] ^ 1])
        bad = pack_column([flipped, b"short"])
        result = await self.token.decrypt(self.secret, bad, AAD, deadline=soon(), tenant=TENANT)
        assert 0 not in result.statuses, "garbage opened"

    async def sign(self) -> None:
        """Sign and verify."""
        await sign(self.token, self.pair)

    async def random(self) -> None:
        """Random bytes."""
        assert len(await self.token.random(32, deadline=soon())) == 32

    async def make(self) -> None:
        """Make a key, use it, destroy it."""
        made = await self.token.generate("AES_256", os.urandom(16), deadline=soon())
        assert await decrypt(self.token, made, await encrypt(self.token, made, [b"x"])) == [b"x"]
        await self.token.destroy(made, deadline=soon())

    async def make_pair(self) -> None:
        """Make a key pair, use it, destroy it."""
        made = await self.token.generate("EC_P256", os.urandom(16), deadline=soon())
        await sign(self.token, made)
        await self.token.destroy(made, deadline=soon())

    async def list(self) -> None:
        """Both keys are there."""
        found = {item.cka_id for item in await self.token.list_objects(deadline=soon())}
        assert {self.secret.cka_id, self.pair.cka_id} <= found

    async def all(self) -> None:
        """Everything, without an error; what was encrypted under faults opens."""
        for work in (self.seal, self.open, self.refuse, self.sign, self.random, self.list):
            await work()
        await self.check_pending()

    async def check_pending(self) -> None:
        """What was encrypted last opens."""
        assert await decrypt(self.token, self.secret, self.pending) == ITEMS, "another plaintext"
