"""A deployment that was stopped, with rows as only time or a fault could have made them."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

from hsmux_gateway.config import load_config
from hsmux_gateway.foundation import open_foundation
from hsmux_gateway.initialise import unlock
from hsmux_gateway.store import AccessPointRow, ClientKeyRow, Transaction

__all__ = ["end_client_keys", "make_old"]

DAYS = 2


def make_old(config: Path) -> None:
    """Make every access point two days older."""

    def work(transaction: Transaction) -> None:
        for row in transaction.select(AccessPointRow):
            at_ms = row.created_at_ms - DAYS * 24 * 3600 * 1000
            transaction.update(msgspec.structs.replace(row, created_at_ms=at_ms))

    trio.run(_write, config, work)


def end_client_keys(config: Path, name: str) -> None:
    """Let every client key of an access point have ended."""

    def work(transaction: Transaction) -> None:
        (point,) = transaction.select(AccessPointRow, name=name)
        for row in transaction.select(ClientKeyRow, access_point_id=point.access_point_id):
            transaction.update(msgspec.structs.replace(row, not_after_ms=row.not_before_ms))

    trio.run(_write, config, work)


async def _write(config: Path, work: Callable[[Transaction], None]) -> None:
    loaded = load_config(config)
    async with open_foundation(loaded, create=False) as base:
        await unlock(loaded, base.arena, base.tokens, base.store)
        await trio.to_thread.run_sync(base.store.write, work)
