"""Initialise deployments in processes that are killed at a border of a durable step.

usage: init_until.py file|softhsm chain|each DIRECTORY

A border is before or after a write of the store, a file, a key in the token. `chain`: one
deployment, whose runs are killed at their first border, their third, their fifth, until one gets
to its end. `each`: a deployment for every border there is, killed once and initialised again.
Either way the deployment must then be whole: one root, one CA, one administrator, no intent, no
other object in the token. Prints how many runs were killed.

A chain skips every other border: with `each`, none is left out.
"""

import functools
import itertools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from hsmux_gateway import daemon, foundation, initialise, root
from hsmux_gateway.config import load_config
from hsmux_gateway.hsm.pool import PoolToken
from hsmux_gateway.store import AccessPointRow, ClientKeyRow, IntentRow, Reader, RootRow, Store
from tests.gateway.hardware import write_hardware_config
from tests.gateway.running import write_config

STEPS: tuple[tuple[Any, str], ...] = (
    (Store, "create"),
    (Store, "write"),
    (Store, "reseal"),
    (initialise, "write_file"),
    (root, "write_file"),
    (PoolToken, "generate"),
    (PoolToken, "destroy"),
)


def kill_at(border: int) -> None:
    """Have this process killed at its border of that number."""
    left = border

    def cross() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def crossing(step: Callable[..., Any]) -> Callable[..., Any]:
        if step.__name__ in ("generate", "destroy"):

            @functools.wraps(step)
            async def waiting(*arguments: Any, **named: Any) -> Any:
                cross()
                value = await step(*arguments, **named)
                cross()
                return value

            return waiting

        @functools.wraps(step)
        def blocking(*arguments: Any, **named: Any) -> Any:
            cross()
            value = step(*arguments, **named)
            cross()
            return value

        return blocking

    for owner, name in STEPS:
        setattr(owner, name, crossing(getattr(owner, name)))


def in_child(work: Callable[[], object]) -> bool:
    """Do a work in a child; whether it got to its end, instead of being killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status:
        sys.exit(f"a run ended with status {status}")
    return True


def run_killed_at(config: Path, border: int) -> None:
    """Initialise until a border."""
    kill_at(border)
    trio.run(daemon.run_init, load_config(config))


async def check(config: Path) -> None:
    """Initialise once more, then look at what is there."""
    loaded = load_config(config)
    made = await daemon.run_init(loaded)
    async with foundation.open_foundation(loaded, create=False) as base:
        await initialise.unlock(loaded, base.arena, base.tokens, base.store)
        for token in base.tokens.values():
            objects = await token.list_objects(deadline=time.monotonic() + 30)
            # The root, the wrapping key, the CA and the audit key.
            assert len({item.cka_id for item in objects}) == 4, objects

        def count(reader: Reader) -> list[int]:
            kinds = (RootRow, AccessPointRow, ClientKeyRow, IntentRow)
            return [len(reader.select(kind)) for kind in kinds]

        assert base.store.read(count) == [1, 1, 1, 0]
    left = [path for path in made.ca.parents[1].rglob("*") if path.name.endswith(".new")]
    assert not left, left


def chain(make_config: Callable[[Path], Path], directory: Path) -> int:
    """Kill one deployment's runs one after the other."""
    config, killed = make_config(directory), 0
    while not in_child(partial(run_killed_at, config, 2 * killed + 1)):
        killed += 1
    assert in_child(partial(trio.run, check, config))
    return killed


def each(make_config: Callable[[Path], Path], directory: Path) -> int:
    """Kill a deployment at each border."""
    for killed in itertools.count():
        place = directory / str(killed)
        place.mkdir()
        config = make_config(place)
        got_through = in_child(partial(run_killed_at, config, killed + 1))
        assert in_child(partial(trio.run, check, config))
        if got_through:
            return killed
    raise AssertionError


def main() -> None:
    """See the module."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    make_config = {"file": write_config, "softhsm": write_hardware_config}[sys.argv[1]]
    run = {"chain": chain, "each": each}[sys.argv[2]]
    print(run(make_config, Path(sys.argv[3])))


if __name__ == "__main__":
    main()
