"""Change a store and anchor it in processes that are killed at a border of a durable step.

usage: anchor_until.py file|softhsm ROUNDS DIRECTORY

A border is before or after a commit, an anchor that is made, one that is destroyed. The first
process is killed at its first border, the next at its second, and so on. Each begins with what a
start does: it compares store and anchor, and must not refuse. Prints how many were killed.
"""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from hsmux_gateway import daemon, foundation, initialise
from hsmux_gateway.anchor import NO_AUDIT, FilePlace, TokenPlace, make_keeper
from hsmux_gateway.config import load_config
from hsmux_gateway.store import AliasRow, Store, Transaction
from tests.gateway.hardware import write_hardware_config
from tests.gateway.init_until import in_child
from tests.gateway.running import write_config

WRITES = 100


def kill_at(border: int) -> None:
    """Have this process killed at its border of that number."""
    left = border

    def cross() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def crossing(step: Callable[..., Any]) -> Callable[..., Any]:
        async def waiting(*arguments: Any) -> Any:
            cross()
            value = await step(*arguments)
            cross()
            return value

        return waiting

    def committing(*arguments: Any) -> Any:
        cross()
        value = commit(*arguments)
        cross()
        return value

    commit = Store.write
    setattr(Store, "write", committing)  # noqa: B010
    for place in (TokenPlace, FilePlace):
        for name in ("put", "remove"):
            setattr(place, name, crossing(getattr(place, name)))


def insert(number: int, transaction: Transaction) -> None:
    """A change of the store."""
    transaction.insert(AliasRow(f"{os.getpid()}-{number}", None))


async def change(config: Path) -> None:
    """Start, then change and anchor again and again."""
    loaded = load_config(config)
    async with foundation.open_foundation(loaded, create=False) as base:
        sealer = await initialise.unlock(loaded, base.arena, base.tokens, base.store)
        base.store.read_changes(0)
        keeper = make_keeper(
            loaded, base.instance, sealer, base.tokens, base.store, lambda: NO_AUDIT
        )
        await keeper.check(accept=False)
        for number in range(WRITES):
            base.store.write(partial(insert, number))
            await keeper.write(at_stop=True)


def run_killed_at(config: Path, border: int) -> None:
    """Change the store until a border."""
    kill_at(border)
    trio.run(change, config)


def main() -> None:
    """See the module."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    make_config = {"file": write_config, "softhsm": write_hardware_config}[sys.argv[1]]
    config = make_config(Path(sys.argv[3]))
    assert in_child(lambda: trio.run(daemon.run_init, load_config(config)))
    killed = 0
    for border in range(1, int(sys.argv[2]) + 1):
        killed += not in_child(partial(run_killed_at, config, border))
    print(killed)


if __name__ == "__main__":
    main()
