"""Access points of a deployment that was stopped, as if they had been made long ago."""

from pathlib import Path

import msgspec
import trio

from hsmux_gateway.config import load_config
from hsmux_gateway.foundation import open_foundation
from hsmux_gateway.initialise import unlock
from hsmux_gateway.store import AccessPointRow, Transaction

__all__ = ["make_old"]

DAYS = 2


def make_old(config: Path) -> None:
    """Make every access point of a deployment that does not run two days older."""
    trio.run(_make_old, config)


async def _make_old(config: Path) -> None:
    loaded = load_config(config)
    async with open_foundation(loaded, create=False) as base:
        await unlock(loaded, base.arena, base.tokens, base.store)

        def work(transaction: Transaction) -> None:
            for row in transaction.select(AccessPointRow):
                at_ms = row.created_at_ms - DAYS * 24 * 3600 * 1000
                transaction.update(msgspec.structs.replace(row, created_at_ms=at_ms))

        await trio.to_thread.run_sync(base.store.write, work)
