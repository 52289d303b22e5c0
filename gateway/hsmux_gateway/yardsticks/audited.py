"""`audit`: a whole gateway that records as it is shipped, or nothing at all, at a line's word.

It is `hsmux serve` with an instance directory, a root key file and a log of its own in the
directory that it is given, initialised at its start; the first line says its port, and the files of
its administrator. A line `off` on its standard input, and no record of a request is made, encoded,
chained, logged or made durable any more, in the same process and with everything else as it was;
`on`, and it is again. When its standard input ends it stops in order.

The switch is here and not in the gateway: functions of its classes are exchanged for others that do
nothing, and back, so that nothing is asked on the way of a request while it records, and a gateway
that serves has no such switch. It is turned between two steps of the event loop; whoever turns it
has no request in work then, and is answered when what was recorded before is durable.
"""

import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from ..access.first_policies import EVERYTHING
from ..audit.calls import CallRecords
from ..audit.journal import LAG_S, Journal
from ..audit.outbox import Outbox
from ..config import Config, load_config
from ..daemon import Addresses, log_to, run_serve
from ..foundation import Foundation
from ..initialise import FirstAdministrator, administrator_files, initialise
from ..instance import Instance
from .lines import say

__all__ = ["run_audited"]

_CONFIGURATION: Final = """\
instance_dir = "{directory}/instance"

[server]
listen = ["127.0.0.1:0"]

[health]
listen = "127.0.0.1:0"

[root]
file = "{directory}/root.key"
"""

_Function = Callable[..., Any]


def _makes_nothing(*_: Any, **__: Any) -> None:
    """Instead of a record."""


def _makes_no_run(*_: Any, **__: Any) -> list[Any]:
    """Instead of the records of a run."""
    return []


def _keeps_nothing(journal: Journal, _: Any) -> int:
    """Instead of keeping a record; what has a number is what was kept before."""
    return journal.records


_SILENT: Final[tuple[tuple[type, str, _Function], ...]] = (
    (CallRecords, "request", _makes_nothing),
    (CallRecords, "run", _makes_no_run),
    (Outbox, "post", _makes_nothing),
    (Journal, "append", _keeps_nothing),
)
"""What makes and keeps records, and what stands in its place while nothing is recorded. Without a
record in the journal, nothing is written, logged or synced.
"""

_RECORDING: Final = tuple((owner, name, getattr(owner, name)) for owner, name, _ in _SILENT)

_STATES: Final = {"on": _RECORDING, "off": _SILENT}


async def _take_lines() -> None:
    """Turn recording off and on; at the end of the lines, stop as at a signal."""
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        state = line.strip()
        for owner, name, function in _STATES[state]:
            setattr(owner, name, function)
        if state == "off":
            # What is on record becomes durable, and is logged, at its own cost.
            await trio.sleep(2 * LAG_S)
        say({"recording": state})
    signal.raise_signal(signal.SIGTERM)


async def _initialise(base: Foundation) -> None:
    administrator = FirstAdministrator(EVERYTHING)
    await initialise(base.config, base.instance, base.arena, base.tokens, base.store, administrator)


def _announce(config: Config, addresses: Addresses) -> None:
    files = administrator_files(Instance(Path(config.instance_dir)))
    say(
        {
            "port": int(addresses.server[0].rpartition(":")[2]),
            "certificate": str(files.certificate),
            "private_key": str(files.private_key),
            "ca": str(files.ca),
        }
    )


async def _serve(config: Config, descriptor: int) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_take_lines)
        await run_serve(
            config,
            ready=partial(_announce, config),
            before=_initialise,
            log_requests=log_to(descriptor),
        )
        nursery.cancel_scope.cancel()


def run_audited(directory: str) -> None:
    """Serve.

    Args:
        directory: Empty, for this gateway alone; without links, and only its owner's.
    """
    path = Path(directory) / "hsmux.toml"
    path.write_text(_CONFIGURATION.format(directory=directory))
    path.chmod(0o600)
    with open(path.with_name("gateway.log"), "ab", buffering=0) as log:
        trio.run(_serve, load_config(path), log.fileno())
