"""kill -9 under load: what was acknowledged is there, is counted, and was done once."""

import contextlib
import os
import signal
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from hsmux_gateway.config import load_config
from hsmux_gateway.foundation import open_foundation
from hsmux_gateway.initialise import unlock
from hsmux_gateway.store import CounterRow
from hsmux_protocol.references import format_key_id
from tests.gateway.hardware import write_hardware_config
from tests.gateway.journals import requests_in
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config

ROUNDS = [pytest.param(2, id="few"), pytest.param(150, id="many", marks=pytest.mark.long)]
LOST = (OSError, EOFError)


@dataclass
class Load:
    """Makes keys and uses them until the gateway is gone, and knows what was acknowledged.

    Attributes:
        protection: Of the keys.
        has_tokens: Whether each creation carries an idempotency token.
        envelopes: Made with acknowledged keys, by their identifiers; the last ones may have none.
        acknowledged: Identifiers of keys.
        uncertain: The token of a creation whose answer never came.
        uses: Acknowledged encryptions with `counted`.
        counted: A key whose uses are counted.
    """

    protection: str
    has_tokens: bool
    envelopes: dict[bytes, bytes] = field(default_factory=dict)
    acknowledged: list[bytes] = field(default_factory=list)
    uncertain: bytes | None = None
    uses: int = 0
    counted: str = ""
    worked: threading.Event = field(default_factory=threading.Event)

    def work(self, address: str, context: ssl.SSLContext) -> None:
        """Go on until the connection breaks."""
        self.worked.clear()
        with contextlib.suppress(*LOST), connect(address, context) as client:
            before = len(self.acknowledged)
            while True:
                self._make(client)
                if len(self.acknowledged) >= before + 2:
                    self.worked.set()

    def _make(self, client: RawClient) -> None:
        storage = "hsm" if self.protection == "hardware" else None
        arguments: tuple[Any, ...] = (
            *("AES_256", "ENCRYPT_DECRYPT", self.protection, storage, None, ""),
            dict[str, str](),
        )
        options = {}
        if self.has_tokens:
            # One that may or may not have been done is asked again under its own token.
            self.uncertain = self.uncertain or os.urandom(16)
            options["idempotency_token"] = self.uncertain
        (key,) = client.call("create_key", *arguments, **options)
        self.uncertain = None
        self.acknowledged.append(key.key_id)
        name = format_key_id(key.key_id)
        self.envelopes[key.key_id] = client.call("encrypt", name, {}, key.key_id)[0]
        for _ in range(5):
            client.call("encrypt", self.counted or name, {}, b"counted")
            self.uses += bool(self.counted)

    def finish(self, client: RawClient) -> None:
        """Ask again what may or may not have been done; a first and a second time are the same."""
        token = self.uncertain
        if token is not None:
            self._make(client)
            made = self.acknowledged.pop()
            self.uncertain = token
            self._make(client)
            assert self.acknowledged[-1] == made

    def check(self, client: RawClient, last: int) -> None:
        """What was acknowledged last decrypts."""
        for key_id in self.acknowledged[-last:]:
            assert client.call("show_key", format_key_id(key_id))
            if key_id in self.envelopes:
                plaintext, used, _ = client.call("decrypt", None, {}, self.envelopes[key_id])
                assert plaintext == used == key_id


def _run_and_kill(running: Running, loads: list[Load], round_number: int) -> None:
    context = client_context(running.administrator)
    threads = [
        threading.Thread(target=load.work, args=(running.address, context)) for load in loads
    ]
    for thread in threads:
        thread.start()
    for load in loads:
        assert load.worked.wait(30)
    # A little later each time, so that it meets every step of a creation.
    threading.Event().wait(round_number % 7 * 0.001)
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait()
    for thread in threads:
        thread.join()


def _keys(client: RawClient) -> int:
    count, page = 0, b""
    while True:
        keys, page = client.call("list_keys", page, 100)
        count += len(keys)
        if not page:
            return count


@pytest.mark.parametrize("root", ["file", "softhsm"])
@pytest.mark.parametrize("rounds", ROUNDS)
def test_kill_9_under_load_loses_nothing(tmp_path: Path, root: str, rounds: int) -> None:
    config = write_config(tmp_path) if root == "file" else write_hardware_config(tmp_path)
    loads = [Load("software", True), Load("software", False)]
    if root == "softhsm":
        loads += [Load("hardware", True), Load("hardware", False)]
    for number in range(rounds):
        with running_gateway(config) as running:
            with connect(running.address, client_context(running.administrator)) as client:
                if number == 0 and root == "softhsm":
                    kind = ("AES_256", "ENCRYPT_DECRYPT", "hardware", "hsm")
                    key: tuple[Any, ...] = (*kind, "alias/counted", "", {})
                    client.call("create_key", *key)
                    for load in loads:
                        load.counted = "alias/counted"
                for load in loads:
                    load.check(client, 50)
            _run_and_kill(running, loads, number)
    with running_gateway(config) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            for load in loads:
                load.check(client, len(load.acknowledged))
                load.finish(client)
            made = sum(len(load.acknowledged) for load in loads) + (root == "softhsm")
            without_token = sum(not load.has_tokens for load in loads)
            # Only a creation without a token can have been done without anybody knowing.
            assert made <= _keys(client) <= made + rounds * without_token
        assert "Traceback" not in running.log.read_text()
        records = requests_in(running.directory / "audit")
        kept = [(record["operation"], record["outcome"]) for record in records]
        assert kept.count(("create_key", "done")) >= made
        assert running.stop() == 0
    if root == "softhsm":
        assert _leased(config) >= sum(load.uses for load in loads) > 0


def _leased(config: Path) -> int:
    """The largest counter of a store that nobody else has open."""

    async def read() -> int:
        loaded = load_config(config)
        async with open_foundation(loaded, create=False) as base:
            await unlock(loaded, base.arena, base.tokens, base.store)
            rows = base.store.read(lambda reader: reader.select(CounterRow))
            return max(row.leased for row in rows)

    return trio.run(read)
