"""The anchor: an old store is refused, a good one never, whenever the process dies."""

import contextlib
import hmac
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

from hsmux_gateway.anchor import (
    NO_AUDIT,
    AnchorKeeper,
    AuditEnd,
    FilePlace,
    Place,
    TokenPlace,
    Verdict,
    anchor_of,
    judge,
    read_anchor,
    write_anchor,
)
from hsmux_gateway.clock import now_ms
from hsmux_gateway.config import load_config
from hsmux_gateway.daemon import run_init
from hsmux_gateway.errors import EXIT_AGAIN, EXIT_OPERATOR, OperatorError
from hsmux_gateway.hsm.errors import TokenUnavailable
from hsmux_gateway.hsm.memory import MemoryToken
from hsmux_gateway.store import AliasRow, StateRow, Store
from hsmux_native import Arena
from tests.gateway.hardware import write_hardware_config
from tests.gateway.journals import records_in
from tests.gateway.raw_client import client_context, connect
from tests.gateway.running import Running, running_gateway, write_config
from tests.gateway.store.sealer import AesSealer
from tests.postgresql import postgresql_cluster, postgresql_url

__all__ = ["postgresql_cluster", "postgresql_url"]

DEPLOYMENT = b"d" * 16
STATE = StateRow(1, b"s" * 64, 7)
HSMUX = str(Path(sys.executable).parent / "hsmux")


def _mac(body: bytes) -> bytes:
    return hmac.digest(b"a key of the tests", body, "sha256")


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        (STATE, Verdict.CURRENT),
        (StateRow(1, b"t" * 64, 8), Verdict.NEWER),
        (StateRow(1, b"t" * 64, 7), Verdict.ROLLED_BACK),
        (StateRow(1, b"s" * 64, 6), Verdict.ROLLED_BACK),
    ],
)
def test_an_anchor_judges_a_store(state: StateRow, verdict: Verdict) -> None:
    anchor = anchor_of(STATE, DEPLOYMENT, 1, 0, NO_AUDIT)
    assert judge(state, anchor) is verdict
    assert judge(state, None) is Verdict.UNKNOWN


def test_a_changed_anchor_says_nothing() -> None:
    anchor = anchor_of(STATE, DEPLOYMENT, 3, 1_800_000_000_000, AuditEnd(b"c" * 16, 9, b"h" * 32))
    value = write_anchor(anchor, _mac)
    assert read_anchor(value, DEPLOYMENT, _mac) == anchor
    assert read_anchor(value, b"e" * 16, _mac) is None
    changed = [
        value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]
        for place in range(len(value))
    ]
    for bad in (*changed, *(value[:size] for size in range(len(value))), value + b"x"):
        assert read_anchor(bad, DEPLOYMENT, _mac) is None


# Over twins


class Rig:
    """A sealed store in memory and a token in memory, and keepers of the anchor between them."""

    def __init__(self, tmp_path: Path) -> None:
        self.store = Store.in_memory(deployment_id=DEPLOYMENT, created_at_ms=1)
        self.store.reseal(AesSealer(), lambda transaction: None)
        self.token = MemoryToken("twin", Arena(1 << 20))
        self.file = tmp_path / "anchor"
        self.names = iter(map(str, range(1000)))

    def places(self) -> list[Place]:
        return [TokenPlace(self.token, DEPLOYMENT), FilePlace(self.file, "a file")]

    def keeper(self, wrap: Callable[[Place], Place] = lambda place: place) -> AnchorKeeper:
        """A new process' keeper."""
        places = [wrap(place) for place in self.places()]
        return AnchorKeeper(self.store, places, _mac, lambda: NO_AUDIT)

    def change(self) -> None:
        """One change of the store."""
        name = next(self.names)
        self.store.write(lambda transaction: transaction.insert(AliasRow(name, None)))

    async def revisions(self) -> list[int]:
        """Of the anchors that are kept, the newest last."""
        values = [value for place in self.places() for value in await place.read()]
        found = [read_anchor(value, DEPLOYMENT, _mac) for value in values]
        return [a.revision for a in sorted((a for a in found if a), key=lambda a: a.rank)]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@contextlib.contextmanager
def older(rig: Rig) -> Iterator[None]:
    """Put the store back to what it was before the block."""
    tables = rig.store._backend._tables  # type: ignore[attr-defined]
    yield
    rig.store._backend._tables = tables  # type: ignore[attr-defined]
    rig.store._seen = 0


async def test_two_are_kept_and_the_interval_holds(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = rig.keeper()
    assert await keeper.check(accept=False) is None
    await keeper.write()
    first = rig.store.revision()
    await keeper.write()
    rig.change()
    await keeper.write()
    assert await rig.revisions() == [first]
    await keeper.write(at_stop=True)
    assert await rig.revisions() == [first, first + 1]
    clock = now_ms()
    for number in range(3):
        rig.change()
        later = clock + (number + 1) * 10_000
        monkeypatch.setattr("hsmux_gateway.anchor.now_ms", lambda later=later: later)
        await keeper.write()
    assert await rig.revisions() == [first + 3, first + 4]
    assert await rig.keeper().check(accept=False) is None


@pytest.mark.parametrize("keeps_data", [True, False], ids=["token", "file"])
async def test_an_older_store_is_refused_until_it_is_accepted(rig: Rig, keeps_data: bool) -> None:
    rig.token.keeps_data = keeps_data
    with older(rig):
        rig.change()
        keeper = rig.keeper()
        await keeper.write()
        assert keeper.warnings() == ([] if keeps_data else ["a file"])
    with pytest.raises(OperatorError, match=r"rolled back.*--accept-rollback") as refused:
        await rig.keeper().check(accept=False)
    assert refused.value.exit_code == EXIT_OPERATOR
    with pytest.raises(OperatorError, match="rolled back"):
        await rig.keeper().write()
    keeper = rig.keeper()
    passed_over = await keeper.check(accept=True)
    assert passed_over is not None and passed_over.revision == rig.store.revision() + 1
    # Until it is anchored it is not accepted.
    with pytest.raises(OperatorError):
        await rig.keeper().check(accept=False)
    await keeper.write(accept=True)
    assert await rig.keeper().check(accept=False) is None
    rig.change()
    assert await rig.keeper().check(accept=False) is None


async def test_a_store_that_was_given_up_is_older_from_then_on(rig: Rig) -> None:
    tables: list[Any] = []
    with older(rig):
        for _ in range(5):
            rig.change()
        await rig.keeper().write()
        # What came after its last anchor is given up as well.
        rig.change()
        tables.append(rig.store._backend._tables)  # type: ignore[attr-defined]
        given_up = rig.store.revision()
    keeper = rig.keeper()
    await keeper.check(accept=True)
    await keeper.write(accept=True)
    rig.change()
    assert rig.store.revision() > given_up
    assert await rig.keeper().check(accept=False) is None
    rig.store._backend._tables = tables[0]  # type: ignore[attr-defined]
    rig.store._seen = 0
    with pytest.raises(OperatorError, match="rolled back"):
        await rig.keeper().check(accept=False)


async def test_a_token_without_data_objects_is_told_at_each_start(rig: Rig) -> None:
    rig.token.keeps_data = False
    await rig.keeper().write()
    again = rig.keeper()
    await again.check(accept=False)
    await again.write()
    assert again.warnings() == ["a file"]
    rig.token.keeps_data = True
    await rig.keeper().write(at_stop=True)
    assert len(await TokenPlace(rig.token, DEPLOYMENT).read()) == 1


async def test_another_history_of_the_same_length_is_refused(rig: Rig) -> None:
    with older(rig):
        rig.change()
        await rig.keeper().write()
    rig.change()
    with pytest.raises(OperatorError, match="with other rows"):
        await rig.keeper().check(accept=False)


async def test_a_damaged_anchor_is_as_if_it_were_missing(rig: Rig) -> None:
    await rig.keeper().write()
    place = TokenPlace(rig.token, DEPLOYMENT)
    (good,) = await place.read()
    await place.put(good[:-1])
    await place.put(b"")
    assert await rig.keeper().check(accept=False) is None
    rig.change()
    await rig.keeper().write(at_stop=True)
    assert len(await place.read()) == 2
    assert len(await rig.revisions()) == 2


async def test_a_token_that_is_away_is_told_and_made_up_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = rig.keeper()
    await keeper.write()
    rig.change()
    rig.token.away = True
    with pytest.raises(OperatorError, match="cannot be read") as refused:
        await rig.keeper().check(accept=False)
    assert refused.value.exit_code == EXIT_AGAIN
    put = rig.token.put_data
    await keeper.write(at_stop=True)
    rig.token.away = False

    async def fails(*arguments: object, **named: object) -> None:
        raise TokenUnavailable("the token is away")

    monkeypatch.setattr(rig.token, "put_data", fails)
    await keeper.write(at_stop=True)
    assert keeper.warnings() == []
    monkeypatch.setattr("hsmux_gateway.anchor.LATE_S", -1)
    assert keeper.warnings() == ["the anchor of the store is not current: the token is away"]
    monkeypatch.setattr(rig.token, "put_data", put)
    await keeper.write(at_stop=True)
    assert (await rig.revisions())[-1] == rig.store.revision()
    assert keeper.warnings() == [] and keeper.age_s() is not None


async def test_two_that_write_at_the_same_time_never_refuse_the_store(rig: Rig) -> None:
    """The one that looked first writes last, and what it says is older: the other's counts."""
    slow = rig.keeper()
    found, state = await slow._look()
    assert found is None
    rig.change()
    await rig.keeper().write(at_stop=True)
    late = anchor_of(state, DEPLOYMENT, 1, 0, NO_AUDIT)
    await TokenPlace(rig.token, DEPLOYMENT).put(write_anchor(late, _mac))
    assert (await rig.revisions())[-1] == rig.store.revision()
    assert await rig.keeper().check(accept=False) is None


async def test_a_shorter_audit_log_is_told(rig: Rig) -> None:
    long, short = AuditEnd(b"c" * 16, 9, b"h" * 32), AuditEnd(b"c" * 16, 8, b"g" * 32)
    await AnchorKeeper(rig.store, rig.places(), _mac, lambda: long).write()
    for end, warned in ((long, False), (short, True), (AuditEnd(b"o" * 16, 1, b""), False)):
        keeper = AnchorKeeper(rig.store, rig.places(), _mac, partial(AuditEnd, *end))
        await keeper.check(accept=False)
        assert any("audit log" in text for text in keeper.warnings()) is warned


# A whole gateway


def _change(running: Running, name: str) -> None:
    with connect(running.address, client_context(running.administrator)) as client:
        kind: tuple[Any, ...] = ("AES_256", "ENCRYPT_DECRYPT", "software", None)
        key = (*kind, f"alias/{name}", "", {})
        client.call("create_key", *key)


def _serve(config: Path) -> subprocess.CompletedProcess[str]:
    command = [HSMUX, "serve", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _check_refused(config: Path) -> None:
    refused = _serve(config)
    assert refused.returncode == 8, refused.stderr
    assert "the store was rolled back" in refused.stderr
    assert "Traceback" not in refused.stderr


def _check_accepted_once(config: Path, audit: Path) -> None:
    # What `init` would write could make the store look newer.
    with pytest.raises(RuntimeError, match="rolled back"), running_gateway(config):
        pass
    with running_gateway(config, init=False, accept_rollback=True) as running:
        _change(running, "after")
        assert running.stop() == 0
    with running_gateway(config, init=False) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            assert client.call("show_status")[8] < 600
        assert running.stop() == 0
    # What was given up is older now, though it had come further.
    _copy(config, config.parent / "accepted")
    _restore(config, config.parent / "given-up")
    _check_refused(config)
    _restore(config, config.parent / "accepted")
    (accepted,) = [r for r in records_in(audit) if r["kind"] == "rollback_accepted"]
    assert accepted["revision"] < accepted["anchored_revision"]


def _copy(config: Path, into: Path) -> None:
    """The store's file with its log, as they are now."""
    into.mkdir()
    for path in (config.parent / "instance").glob("store.db*"):
        shutil.copy(path, into)


def _restore(config: Path, copy: Path) -> None:
    for path in (config.parent / "instance").glob("store.db*"):
        path.unlink()
    for path in copy.iterdir():
        shutil.copy(path, config.parent / "instance")


@pytest.mark.parametrize(
    "make_config", [write_config, write_hardware_config], ids=["file", "softhsm"]
)
def test_a_restored_sqlite_store_is_refused(
    tmp_path: Path, make_config: Callable[[Path], Path]
) -> None:
    config = make_config(tmp_path)
    with running_gateway(config) as running:
        _change(running, "before")
        # With what is in the log and not in the file yet.
        _copy(config, tmp_path / "copy")
        assert (tmp_path / "copy" / "store.db-wal").stat().st_size > 0
        _change(running, "later")
        assert running.stop() == 0
    _copy(config, tmp_path / "given-up")
    _restore(config, tmp_path / "copy")
    _check_refused(config)
    if make_config is write_hardware_config:
        _check_accepted_once(config, tmp_path / "instance" / "audit")


def test_a_store_with_a_row_missing_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    trio.run(run_init, load_config(config))
    with contextlib.closing(sqlite3.connect(tmp_path / "instance" / "store.db")) as raw, raw:
        raw.execute("DELETE FROM client_keys")
    refused = _serve(config)
    assert refused.returncode == 8, refused.stderr
    assert "rows were deleted" in refused.stderr and "restore the newest backup" in refused.stderr
    assert "Traceback" not in refused.stderr


def _postgresql(program: str, url: str, *arguments: str) -> bytes:
    (path,) = Path("/usr/lib/postgresql").glob(f"*/bin/{program}")
    made = subprocess.run([str(path), *arguments, f"--dbname={url}"], capture_output=True)
    assert made.returncode == 0, made.stderr
    return made.stdout


def test_a_restored_dump_of_postgresql_is_refused(tmp_path: Path, postgresql_url: str) -> None:
    config = write_config(tmp_path, f'[store]\nurl = "{postgresql_url}"\n')
    dump = tmp_path / "dump"
    with running_gateway(config) as running:
        _change(running, "before")
        _postgresql("pg_dump", postgresql_url, "--format=custom", f"--file={dump}")
        _change(running, "later")
        assert running.stop() == 0
    _postgresql("pg_restore", postgresql_url, "--clean", "--single-transaction", str(dump))
    _check_refused(config)


def test_a_store_put_back_under_a_running_gateway_ends_it(
    tmp_path: Path, postgresql_url: str
) -> None:
    config = write_config(tmp_path, f'[store]\nurl = "{postgresql_url}"\n')
    with running_gateway(config) as running:
        with psycopg.connect(postgresql_url, autocommit=True) as other:
            other.execute("CREATE TABLE old AS SELECT * FROM state")
            _change(running, "later")
            other.execute(
                "UPDATE state SET (row_revision, row_sealed) = (SELECT row_revision, row_sealed "
                "FROM old)"
            )
        assert running.process.wait(20) != 0
        assert running.process.stderr is not None
        assert "put back" in running.process.stderr.read()


@pytest.mark.parametrize("root", ["file", "softhsm"])
@pytest.mark.parametrize(
    "rounds",
    [pytest.param(8, id="few"), pytest.param(60, id="many", marks=pytest.mark.long)],
)
def test_a_kill_at_any_border_refuses_no_good_store(tmp_path: Path, root: str, rounds: int) -> None:
    program = [sys.executable, "-m", "tests.gateway.anchor_until", root, str(rounds)]
    done = subprocess.run([*program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == rounds
