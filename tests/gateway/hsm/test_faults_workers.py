"""Workers that hang, crash and are killed: who pays for it, and what is never lost."""

import contextlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from hsmux_gateway.hsm import softhsm
from hsmux_gateway.hsm.errors import (
    TokenDeadlineExceeded,
    TokenError,
    TokenOutcomeUnknown,
    TokenUnavailable,
)
from hsmux_gateway.hsm.pool import PoolToken
from hsmux_gateway.hsm.token import HsmKey
from hsmux_protocol.columns import pack_column, unpack_column
from tests.gateway.hsm.conftest import MAKERS, softhsm_settings
from tests.gateway.hsm.rig import AAD, ITEMS, TENANT, Rig, Work, decrypt, encrypt, soon

OTHERS = 1000
"""Requests that other callers complete while a worker hangs."""

POISON_SIZE = 5000
"""Bytes of the item that rules can tell from others."""


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(softhsm_settings(tmp_path), tmp_path)


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that happens in another process."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - another process does not set events
            await trio.sleep(0.002)


# ---- Hanging


async def test_a_stopped_worker_holds_up_nobody_else(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsmux_gateway.hsm.pool.KILL_DEFAULT_S", 2.0)
    async with rig.open(workers=2) as token:
        work = await Work.prepare(token)
        await until(lambda: token.statistics().workers == 2)
        stopped = token.worker_pids()[0]
        os.kill(stopped, signal.SIGSTOP)
        late: list[type[TokenError]] = []
        done = 0

        async def ask() -> None:
            try:
                await decrypt(token, work.secret, work.sealed, deadline=soon(0.5))
            except TokenDeadlineExceeded as error:
                late.append(type(error))

        async def ask_others() -> None:
            nonlocal done
            for _ in range(OTHERS // 10):
                await decrypt(token, work.secret, work.sealed, tenant=b"other")
                done += 1

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(ask)
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(ask_others)
            # Everybody but those whose message was with it has been served meanwhile.
            assert done == OTHERS and len(late) <= 2
            await until(lambda: stopped not in token.worker_pids())
            await until(lambda: token.statistics().workers == 2)
        await work.all()
        assert token.statistics().restarts == 1


async def test_a_call_that_hangs_is_tried_once_more_and_then_refused(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsmux_gateway.hsm.pool.KILL_DEFAULT_S", 1.5)
    async with rig.open(workers=2) as token:
        work = await Work.prepare(token)
        rig.rules(f"function=C_Encrypt min_size={POISON_SIZE} action=hang")
        items = [b"good", b"p" * POISON_SIZE, b"good"]
        result = await token.encrypt(
            work.secret, pack_column(items), AAD, deadline=soon(), tenant=TENANT
        )
        assert list(result.statuses) == [0, 4, 0]
        sealed = unpack_column(result.outputs)
        assert await decrypt(token, work.secret, [sealed[0], sealed[2]]) == [b"good", b"good"]
        assert rig.counters.faults("C_Encrypt") == 2
        with pytest.raises(TokenUnavailable, match="refused"):
            await encrypt(token, work.secret, [b"x"])
        await encrypt(token, work.secret, [b"x"], tenant=b"other")
        await work.open()


async def test_a_slow_column_is_not_a_hanging_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsmux_gateway.hsm.pool.KILL_DEFAULT_S", 1.0)
    async with rig.open(workers=1, verify_every=1000) as token:
        work = await Work.prepare(token)
        rig.rules("function=C_Encrypt action=latency ms=100")
        items = [b"x"] * 13
        assert await decrypt(token, work.secret, await encrypt(token, work.secret, items)) == items
        assert token.statistics().restarts == 0


async def test_items_behind_the_deadline_are_not_begun(rig: Rig) -> None:
    async with rig.open(workers=1, verify_every=1000) as token:
        work = await Work.prepare(token)
        rig.rules("function=C_Encrypt action=latency ms=30")
        for _ in range(3):
            await encrypt(token, work.secret, [b"x"] * 4)
        before = rig.counters.count("C_Encrypt")
        result = await token.encrypt(
            work.secret, pack_column([b"x"] * 60), AAD, deadline=soon(0.5), tenant=TENANT
        )
        done = list(result.statuses).count(0)
        assert 0 < done < 60 and set(result.statuses) == {0, 3}
        rig.rules()
        await work.all()
        begun = rig.counters.count("C_Encrypt") - before - len(work.sealed)
        assert begun <= done + 1


# ---- Crashing


async def test_a_crash_in_a_batch_costs_one_item(rig: Rig) -> None:
    async with rig.open(workers=2) as token:
        work = await Work.prepare(token)
        await until(lambda: token.statistics().workers == 2)
        rig.rules(f"function=C_Encrypt min_size={POISON_SIZE} action=segv")
        items = [b"%d" % number for number in range(300)]
        items[77] = b"p" * POISON_SIZE
        neighbours: list[bytes] = []

        async def ask_beside() -> None:
            for number in range(50):
                item = b"%d" % number
                (sealed,) = await encrypt(token, work.secret, [item], tenant=b"beside")
                neighbours.extend(await decrypt(token, work.secret, [sealed], tenant=b"beside"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_beside)
            result = await token.encrypt(
                work.secret, pack_column(items), AAD, deadline=soon(), tenant=TENANT
            )
        assert [status for status in result.statuses if status] == [4]
        assert result.statuses[77] == 4
        sealed = unpack_column(result.outputs)
        rig.rules()
        opened = await decrypt(token, work.secret, sealed[:77] + sealed[78:], tenant=b"beside")
        assert opened == items[:77] + items[78:]
        assert neighbours == [b"%d" % number for number in range(50)]
        assert rig.counters.faults("C_Encrypt") == 2


@pytest.mark.parametrize("function", ["C_Sign", "C_FindObjectsInit", "C_Decrypt"])
async def test_a_crash_once_is_nobodys_error(rig: Rig, function: str) -> None:
    async with rig.open(workers=2) as token:
        work = await Work.prepare(token)
        await until(lambda: token.statistics().workers == 2)
        rig.rules(f"function={function} count=1 action=segv")
        await work.all()
        assert rig.counters.faults(function) == 1
        await until(lambda: token.statistics().restarts == 1)


async def test_a_crash_in_the_middle_of_a_change_is_an_unknown_outcome(rig: Rig) -> None:
    async with rig.open(workers=2) as token:
        work = await Work.prepare(token)
        before = len(await token.list_objects(deadline=soon()))
        await until(lambda: token.statistics().workers == 2)
        for when, left in (("before", 0), ("after", 1)):
            rig.rules(
                f"function=C_GenerateKey when={when} count=1 mechanism=CKM_AES_KEY_GEN "
                "skip=0 action=exit status=1"
            )
            with pytest.raises(TokenOutcomeUnknown):
                await token.generate("AES_256", os.urandom(16), deadline=soon())
            rig.rules()
            await until(lambda: token.statistics().workers == 2)
            await work.all()
            found = len(await token.list_objects(deadline=soon()))
            assert found - before == left
            before = found


# ---- Killed under load


async def kill_under_load(token: PoolToken, work: Work, rounds: int) -> list[HsmKey]:
    """Kill workers while others use and make keys; the keys that were acknowledged."""
    made: list[HsmKey] = []
    chance = random.Random(7)

    async def use() -> None:
        while True:
            # An item that was with two killed workers is unavailable; none is wrong.
            with contextlib.suppress(TokenError):
                assert await decrypt(token, work.secret, work.sealed) == ITEMS
                sealed = await encrypt(token, work.secret, [b"x"])
                assert await decrypt(token, work.secret, sealed) == [b"x"]

    async def make() -> None:
        while True:
            with contextlib.suppress(TokenError):
                made.append(await token.generate("AES_256", os.urandom(16), deadline=soon()))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(use)
        nursery.start_soon(make)
        for number in range(rounds):
            await trio.sleep(chance.random() * 0.05)
            await until(lambda n=number: len(made) > n // 2 and token.worker_pids())  # type: ignore[misc]
            pids = token.worker_pids()
            os.kill(pids[number % len(pids)], signal.SIGKILL)
        nursery.cancel_scope.cancel()
    return made


@pytest.mark.parametrize("module", MAKERS)
@pytest.mark.parametrize("rounds", [5, pytest.param(300, marks=pytest.mark.long)])
async def test_workers_killed_under_load_lose_no_key(
    tmp_path: Path, module: str, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsmux_gateway.hsm.pool_state.REFUSAL_S", 0.05)
    rig = Rig(MAKERS[module](tmp_path), tmp_path, workers=3)
    async with rig.open() as token:
        work = await Work.prepare(token)
        made = await kill_under_load(token, work, rounds)
        await until(lambda: token.statistics().workers)
        assert len(made) >= rounds // 2
        for key in made:
            await token.prove(key, deadline=soon())
        await work.all()
    async with rig.open() as token:
        work.token = token
        await work.all()
        for key in made:
            await token.prove(key, deadline=soon())


# ---- Killed inside C_Login


@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.long)])
async def test_a_kill_inside_c_login_loses_no_token(rig: Rig, rounds: int) -> None:
    async with rig.open(workers=1) as token:
        work = await Work.prepare(token)
        for number in range(rounds):
            when = "after" if number % 2 else "before"
            before = rig.counters.faults("C_Login")
            rig.rules(f"function=C_Login count=1 when={when} action=hang")
            os.kill(token.worker_pids()[0], signal.SIGKILL)
            await until(lambda b=before: rig.counters.faults("C_Login") > b)  # type: ignore[misc]
            os.kill(token.worker_pids()[0], signal.SIGKILL)
            rig.rules()
            await until(lambda: token.statistics().workers == 1)
            await work.all()
        assert token.statistics().failed_logins == 0


async def test_a_gateway_that_ends_lets_a_worker_finish_its_login(rig: Rig) -> None:
    rig.rules("function=C_Login action=sleep ms=1000")
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            async with rig.open(workers=1):
                raise AssertionError("it was cancelled before")

        nursery.start_soon(serve)
        await until(lambda: rig.counters.faults("C_Login"))
        nursery.cancel_scope.cancel()
    # The canary is made right after the login.
    assert rig.counters.count("C_GenerateKey") == 1


@pytest.mark.parametrize("left", [0, 1, 7, 100, None])
async def test_a_token_file_that_was_cut_short_is_put_back(rig: Rig, left: int | None) -> None:
    async with rig.open(workers=1) as token:
        work = await Work.prepare(token)
        (directory,) = softhsm.token_directories(rig.settings.environment)
        path = directory / "token.object"
        whole = path.read_bytes()
        if left is None:
            path.unlink()
        else:
            path.write_bytes(whole[:left])
        os.kill(token.worker_pids()[0], signal.SIGKILL)
        await until(lambda: token.statistics().restarts == 1)
        await until(lambda: token.statistics().workers == 1)
        await work.all()
        assert softhsm.attribute_count(path.read_bytes()) == softhsm.attribute_count(whole)


def test_a_whole_token_file_is_never_replaced(rig: Rig) -> None:
    environment, copies = rig.settings.environment, rig.directory
    (directory,) = softhsm.token_directories(environment)
    path = directory / "token.object"
    softhsm.keep_copies(environment, copies)
    (copy,) = copies.glob("softhsm-*")
    assert copy.read_bytes() == path.read_bytes() and copy.stat().st_mode & 0o777 == 0o600
    changed = path.read_bytes().replace(b"test ", b"best ")
    path.write_bytes(changed)
    assert softhsm.restore(environment, copies) == []
    softhsm.keep_copies(environment, copies)
    assert copy.read_bytes() == changed
    for cut in range(len(changed)):
        path.write_bytes(changed[:cut])
        softhsm.keep_copies(environment, copies)
        assert copy.read_bytes() == changed, "a file that is cut short was kept as a copy"
        assert softhsm.restore(environment, copies) == [directory.name]
        assert path.read_bytes() == changed


# ---- Forgetting


async def test_a_silent_worker_is_killed_when_a_key_must_be_forgotten(rig: Rig) -> None:
    async with rig.open(workers=2) as token:
        work = await Work.prepare(token)
        await until(lambda: token.statistics().workers == 2)
        os.kill(silent := token.worker_pids()[0], signal.SIGSTOP)
        await token.drop_key(work.secret, deadline=soon(0.3))
        assert silent not in token.worker_pids()
        await work.all()
