"""Uses of an AES-GCM key in a token, counted so that its 96-bit random IVs stay safe.

NIST SP 800-38D section 8.3 bounds the invocations of one key with random 96-bit IVs to 2^32. Uses
are leased from the store in blocks before they happen, so that after a crash the count is too
high and never too low; blocks double from 256 to 65,536, so that a busy key rarely waits for the
store and an idle one wastes little.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from hsmux_protocol.errors import WrongState

__all__ = ["USES_MAX", "USES_ROTATE", "UseCounters"]

USES_ROTATE: Final = 2**31
"""Uses of a version after which it should be rotated; the gateway warns."""

USES_MAX: Final = 2**32
"""Uses of a version after which it encrypts no more."""

BLOCK_MIN: Final = 256
BLOCK_MAX: Final = 65536


@dataclass
class _Lease:
    """What is left of the current block and how large it was."""

    left: int = 0
    block: int = BLOCK_MIN // 2
    counted: int = 0


class UseCounters:
    """Leases uses of key versions.

    Args:
        lease: Durably leases `amount` uses of (key id, version) for a tenant, and returns how many
            were leased before.
    """

    def __init__(self, lease: Callable[[bytes, int, int, bytes], Awaitable[int]]) -> None:
        self._lease = lease
        self._leases: dict[tuple[bytes, int], _Lease] = {}
        self._locks: dict[tuple[bytes, int], trio.Lock] = {}

    async def take(self, key_id: bytes, version: int, uses: int, *, tenant: bytes) -> None:
        """Take `uses` uses for a tenant; returns when they are durable.

        Raises:
            WrongState: The version has been used `USES_MAX` times.
            HsmuxError: The store is away.
        """
        name = (key_id, version)
        lease = self._leases.setdefault(name, _Lease())
        if lease.left < uses:
            async with self._locks.setdefault(name, trio.Lock()):
                if lease.left < uses:
                    await self._renew(name, lease, uses, tenant)
        lease.left -= uses

    async def _renew(
        self, name: tuple[bytes, int], lease: _Lease, uses: int, tenant: bytes
    ) -> None:
        block = max(min(lease.block * 2, BLOCK_MAX), uses)
        before = await self._lease(*name, block, tenant)
        if before + block > USES_MAX:
            raise WrongState(
                f"version {name[1]} has been used {before} times, as often as its IVs allow; "
                "rotate the key"
            )
        lease.left = block
        lease.block = min(block, BLOCK_MAX)
        lease.counted = before + block

    def worn(self) -> list[tuple[bytes, int]]:
        """Key versions that should be rotated."""
        return [name for name, lease in self._leases.items() if lease.counted >= USES_ROTATE]
