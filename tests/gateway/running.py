"""A gateway that really runs: in a process of its own, on loopback, with a root key file."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 20

PROGRAM = """
import json, sys, trio
from pathlib import Path
from hsmux_gateway.access.first_policies import EVERYTHING
from hsmux_gateway.config import load_config
from hsmux_gateway.daemon import log_to, run_init, run_serve
from hsmux_gateway.initialise import FirstAdministrator

log = open(sys.argv[2], "a")
sink = log_to(log.fileno())
config = load_config(Path(sys.argv[1]))
if "init" in sys.argv[3:]:
    trio.run(run_init, config, FirstAdministrator(EVERYTHING))

def ready(addresses):
    print(json.dumps([addresses.server, addresses.health]), flush=True)

async def main():
    await run_serve(
        config,
        ready=ready,
        reload=lambda: load_config(Path(sys.argv[1])),
        log_requests=sink,
        accept_rollback="accept-rollback" in sys.argv[3:],
    )

trio.run(main)
"""


@dataclass
class Running:
    """A gateway process.

    Attributes:
        address: Where it listens, `host:port`.
        health: Where its health server listens.
        directory: Its instance directory.
        log: Its log file.
        process: The process.
    """

    address: str
    health: str
    directory: Path
    log: Path
    process: subprocess.Popen[str]

    @property
    def administrator(self) -> Path:
        """The first administrator's client key."""
        return self.directory / "administrator"

    def reload(self) -> dict[str, Any]:
        """Send SIGHUP; the line of the log that says what became of it."""
        before = len(self._reloads())
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while len(self._reloads()) == before:
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        return self._reloads()[before]

    def _reloads(self) -> list[dict[str, Any]]:
        whole, _, _ = self.log.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines() if "reloaded" in line]

    def log_with(self, text: str) -> str:
        """The log, once it has a text: a request is logged a moment after it is answered."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while text not in (log := self.log.read_text()):
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        return log.rpartition("\n")[0]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(STOP_TIMEOUT_S)
        if code > 0 and self.process.stderr is not None:
            # What a test that did not expect it needs to see.
            print(self.process.stderr.read())
        return code


def write_config(directory: Path, extra: str = "") -> Path:
    """A configuration with a root key file and free ports."""
    path = directory / "hsmux.toml"
    path.write_text(
        f'instance_dir = "{directory}/instance"\n[server]\nlisten = ["127.0.0.1:0"]\n'
        f'[health]\nlisten = "127.0.0.1:0"\n[root]\nfile = "{directory}/root.key"\n{extra}'
    )
    return path


@contextmanager
def running_gateway(
    config: Path, *, init: bool = True, before: tuple[str, ...] = (), accept_rollback: bool = False
) -> Iterator[Running]:
    """Start a gateway and stop it at the end.

    Args:
        config: Its configuration; everything else lies beside it.
        init: Initialise it first.
        before: A program and its arguments that starts the gateway, such as `prlimit`.
        accept_rollback: Have it accept a store that is older than its anchor.
    """
    directory = config.parent
    log = directory / "gateway.log"
    command = [*before, sys.executable, "-c", PROGRAM, str(config), str(log)]
    process = subprocess.Popen(
        [*command, *["init"] * init, *["accept-rollback"] * accept_rollback],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        if not line:
            process.wait(START_TIMEOUT_S)
            raise RuntimeError(process.stderr.read() + log.read_text())
        (address,), health = json.loads(line)
        yield Running(address, health, directory / "instance", log, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()
        process.stderr.close()
