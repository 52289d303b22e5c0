"""kill -9: no answer without its record, no change without its record, at every border."""

import contextlib
import os
import shutil
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest

from hsmux_gateway.audit.checkpoints import load_public_key
from hsmux_gateway.audit.layout import chain_directories
from hsmux_gateway.audit.verify import verify
from tests.gateway import running as running_module
from tests.gateway.journals import records_in
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config
from tests.postgresql import postgresql_cluster, postgresql_url

__all__ = ["postgresql_cluster", "postgresql_url"]

ROUNDS = [pytest.param(3, id="few"), pytest.param(200, id="many", marks=pytest.mark.long)]
DOCUMENT = '{"statements": [{"effect": "allow", "role": "auditor", "resources": ["*"]}]}'
LOST = (OSError, EOFError)

DYING = """
import os, signal
from hsmux_gateway.audit import journal, outbox, recovery
from hsmux_gateway.store import Store

def dying(owner, name, before):
    done = getattr(owner, name)
    def wrapped(self, *arguments, **named):
        if before and armed(self): os.kill(os.getpid(), signal.SIGKILL)
        value = done(self, *arguments, **named)
        if not before and armed(self): os.kill(os.getpid(), signal.SIGKILL)
        return value
    setattr(owner, name, wrapped)

seen = []
post = outbox.Outbox.post
def posted(self, *arguments):
    post(self, *arguments)
    seen.append(1)
outbox.Outbox.post = posted

def armed(self):
    return seen

"""
BORDERS = {
    "before the commit": "dying(outbox.Outbox, 'post', False)",
    "after the commit": "dying(outbox.Outbox, 'stored', True)",
    "before the write": "dying(journal.Journal, 'flush', True)",
    "after the write": "dying(journal.Journal, 'flush', False)",
    "after the sync": "dying(journal.Journal, '_sync_files', False)",
    "before it is settled": "dying(outbox.Outbox, 'durable_rows', True)",
    "after it is settled": "dying(outbox.Outbox, 'forget', True)",
}


def _policies(client: RawClient) -> set[str]:
    names, page = set[str](), b""
    while True:
        found, page = client.call("list_policies", page, 100)
        names |= {policy.name for policy in found}
        if not page:
            return names


def _made(root: Path) -> Counter[str]:
    """Policies by the records that say they were put."""
    return Counter(
        record["resource"]
        for record in records_in(root)
        if record.get("operation") == "put_policy" and record["outcome"] == "done"
    )


def _check_whole(running: Running, place: Path) -> None:
    """The log is whole, and every torn end is told by a record."""
    copy = Path(shutil.copytree(running.directory / "audit", place / "copy"))
    report = verify(copy, load_public_key((copy / "key.pem").read_bytes()))
    assert report.ok, report.problems
    torn = sum(1 for record in records_in(copy) if record["kind"] == "torn")
    assert len(list(copy.glob("*/*.torn"))) == torn
    shutil.rmtree(copy)


@pytest.mark.parametrize("border", BORDERS)
def test_a_kill_at_a_border(
    own_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, border: str
) -> None:
    program = running_module.PROGRAM
    monkeypatch.setattr(running_module, "PROGRAM", DYING + BORDERS[border] + program)
    with running_gateway(own_config) as running:
        with contextlib.suppress(*LOST):
            with connect(running.address, client_context(running.administrator)) as client:
                client.call("put_policy", "made", DOCUMENT)
                # Where it dies is behind the answer.
                running.process.wait(10)
        assert running.process.wait(10) == -signal.SIGKILL
    monkeypatch.setattr(running_module, "PROGRAM", program)
    with running_gateway(own_config) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            is_there = "made" in _policies(client)
        assert is_there == (border != "before the commit")
        assert _made(running.directory / "audit")["made"] == is_there
        assert running.stop() == 0
        _check_whole(running, tmp_path)


IMPATIENT = """
from hsmux_gateway.audit import outbox
outbox.LEASE_MS = 500
from hsmux_gateway import daemon
daemon.RECOVER_INTERVAL_S = 0.1
"""


def test_a_gateway_on_the_same_store_records_what_another_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgresql_url: str
) -> None:
    program = running_module.PROGRAM
    configs = [_shared_config(tmp_path / name, postgresql_url) for name in ("first", "second")]
    monkeypatch.setattr(running_module, "PROGRAM", IMPATIENT + program)
    with running_gateway(configs[1]) as two:
        dying = IMPATIENT + DYING + BORDERS["after the commit"]
        monkeypatch.setattr(running_module, "PROGRAM", dying + program)
        with running_gateway(configs[0]) as one:
            with contextlib.suppress(*LOST):
                with connect(one.address, client_context(one.administrator)) as client:
                    client.call("put_policy", "made", DOCUMENT)
            assert one.process.wait(10) == -signal.SIGKILL
        (chain,) = chain_directories(one.directory / "audit")
        pause = threading.Event()
        for _ in range(400):
            told = [r for r in records_in(two.directory / "audit") if r["kind"] == "recovered"]
            if told:
                break
            pause.wait(0.05)
        assert [(r["resource"], r["meant_for"]) for r in told] == [("made", chain.name)]
        assert two.stop() == 0


def _shared_config(directory: Path, url: str) -> Path:
    directory.mkdir()
    config = write_config(directory, f'[store]\nurl = "{url}"\npoll_ms = 100\n')
    # The root file is what the gateways share beside the store.
    text = config.read_text().replace(f"{directory}/root.key", f"{directory.parent}/root.key")
    config.write_text(text)
    return config


class _Load(threading.Thread):
    """Puts policies until the gateway is gone, and knows what was acknowledged."""

    def __init__(self, running: Running, name: str, enough: threading.Semaphore) -> None:
        super().__init__()
        self._running, self._enough, self._name = running, enough, name
        self.acknowledged: list[str] = []

    def run(self) -> None:
        with contextlib.suppress(*LOST):
            context = client_context(self._running.administrator)
            with connect(self._running.address, context) as client:
                for number in range(10**9):
                    name = f"{self._name}-{number}"
                    client.call("put_policy", name, DOCUMENT)
                    self.acknowledged.append(name)
                    self._enough.release()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_kill_9_under_load(own_config: Path, tmp_path: Path, rounds: int) -> None:
    acknowledged: list[str] = []
    for number in range(rounds):
        with running_gateway(own_config) as running:
            enough = threading.Semaphore(0)
            loads = [_Load(running, f"p{number}-{one}", enough) for one in range(4)]
            for load in loads:
                load.start()
            for _ in range(20 + number % 17):
                enough.acquire()
            os.kill(running.process.pid, signal.SIGKILL)
            for load in loads:
                load.join()
                acknowledged += load.acknowledged
    with running_gateway(own_config) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            there = {name for name in _policies(client) if name.startswith("p")}
        made = _made(running.directory / "audit")
        assert set(acknowledged) <= there
        assert {name for name in made if name.startswith("p")} == there
        assert set(made.values()) == {1}
        assert "Traceback" not in running.log.read_text()
        assert running.stop() == 0
        _check_whole(running, tmp_path)
