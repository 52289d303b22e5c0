"""The token as a whole: away and back, short of sessions, closing idle ones, answering no start."""

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from hsmux_gateway.hsm import softhsm
from hsmux_gateway.hsm.errors import KeyMissing, TokenBusy, TokenError, TokenUnavailable
from hsmux_gateway.hsm.jobs import Message
from hsmux_gateway.hsm.messages import Answer, MessageError, encode_message
from hsmux_gateway.hsm.pool import PoolToken
from hsmux_gateway.hsm.sessions import RESERVE, plan_sessions
from hsmux_gateway.hsm.supervisor import _statuses_of
from hsmux_protocol.columns import pack_column
from tests.gateway.hsm.conftest import softhsm_settings
from tests.gateway.hsm.rig import AAD, ITEMS, Rig, Work, decrypt, encrypt, sign, soon
from tests.gateway.hsm.test_faults_workers import until
from tests.gateway.hsm.test_pool_state import make_column

BACK_S = 10
"""Seconds until a token that is back is in service."""


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(softhsm_settings(tmp_path), tmp_path)


async def away(work: Work) -> None:
    """Everything fails, until nobody tries any more."""
    with trio.fail_after(30):
        while work.token.statistics().breaker == "closed":
            with pytest.raises(TokenError):
                await work.all()


async def back_in_service(work: Work) -> None:
    """Everything works again, in time and without anybody's help."""
    with trio.fail_after(BACK_S):
        while True:
            try:
                await work.all()
                return
            except TokenError:
                await trio.sleep(0.02)


# ---- Away and back


async def test_a_token_directory_that_is_moved_away_and_back(rig: Rig) -> None:
    async with rig.open(workers=2) as token:
        work = await Work.prepare(token)
        (directory,) = softhsm.token_directories(rig.settings.environment)
        elsewhere = directory.parent.parent / "elsewhere"
        for _ in range(2):
            directory.rename(elsewhere)
            await away(work)
            job = token.encrypt(work.secret, pack_column([b"x"]), AAD, deadline=soon(), tenant=b"")
            with pytest.raises(TokenUnavailable):
                await job
            elsewhere.rename(directory)
            await back_in_service(work)


async def test_a_token_that_is_removed_and_put_back(rig: Rig) -> None:
    async with rig.open(workers=2) as token:
        work = await Work.prepare(token)
        rig.rules("token_removed=on")
        await away(work)
        rig.rules()
        await back_in_service(work)


@pytest.mark.parametrize("function", ["C_Initialize", "C_OpenSession", "C_Login"])
async def test_workers_that_cannot_start_are_tried_again(rig: Rig, function: str) -> None:
    async with rig.open(workers=2) as token:
        work = await Work.prepare(token)
        rig.rules(f"function={function} action=return code=CKR_DEVICE_ERROR")
        for pid in token.worker_pids():
            os.kill(pid, signal.SIGKILL)
        await until(lambda: rig.counters.faults(function) >= 2)
        rig.rules()
        await back_in_service(work)
        assert token.statistics().failed_logins == 0


async def test_a_module_that_opens_under_a_wrong_tag_is_not_used(rig: Rig) -> None:
    # The changed text's decryption, behind the right one's, is answered "ok".
    rig.rules("function=C_Decrypt skip=1 count=1 action=return code=CKR_OK")
    with pytest.raises(TokenUnavailable, match="decrypts under a wrong tag"):
        async with rig.open(workers=1):
            pass


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[], None]]:
    """Lets this process open no descriptor any more, until the end; not even a number that is free
    again.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (sys.stderr.fileno() + 1, hard))

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_worker_that_finds_no_descriptor_is_started_later(
    rig: Rig, few_descriptors: Callable[[], None]
) -> None:
    async with rig.open(workers=1) as token:
        work = await Work.prepare(token)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        few_descriptors()
        os.kill(token.worker_pids()[0], signal.SIGKILL)
        await until(lambda: token.statistics().breaker != "closed")
        with pytest.raises(TokenUnavailable):
            await encrypt(token, work.secret, [b"x"])
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await back_in_service(work)


async def test_a_directory_that_is_not_there_starts_nothing(rig: Rig) -> None:
    rig.directory.rmdir()
    with pytest.raises(TokenUnavailable, match="No such file or directory"):
        async with rig.open():
            pass
    assert rig.counters.count("C_Login") == 0


FOREIGN_ANSWER = [1 << 40, "done", [pack_column([bytes(40)] * len(ITEMS)), bytes(len(ITEMS))]]
"""It fits what is asked next, but for its number."""


async def test_a_worker_that_talks_nonsense_is_replaced(rig: Rig) -> None:
    async with rig.open(workers=2) as token:
        work = await Work.prepare(token)
        await until(lambda: token.statistics().workers == 2)
        for nonsense in (
            b"\xff" * 8,
            b"\0\0\0\x01\xc0",
            encode_message(["hello", 1]),
            encode_message(FOREIGN_ANSWER),
        ):
            pids = set(token.worker_pids())
            process = next(iter(token.supervisor._processes.values()))
            # As if the worker had said it: read again what is put before its next words.
            process._reader._buffer += nonsense
            while pids == set(token.worker_pids()):
                await work.all()
            await until(lambda: token.statistics().workers == 2)
        await work.all()


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        [pack_column([b"x"] * 3)],
        [pack_column([b"x"] * 3), bytes(2)],
        [pack_column([b"x"] * 2), bytes(3)],
        [pack_column([b"x"] * 4), bytes(4)],
        [b"no column", bytes(3)],
    ],
)
def test_an_answer_that_does_not_fit_its_column_is_nonsense(value: object) -> None:
    message = Message([make_column(3)])
    with pytest.raises(MessageError):
        _statuses_of(message, Answer(1, "done", value, 0, ""))
    right = Answer(1, "done", [pack_column([b"x"] * 3), b"\0\1\0"], 0, "")
    assert _statuses_of(message, right) == b"\0\1\0"


# ---- Sessions


@pytest.mark.parametrize(
    ("workers", "sessions_max", "expected"),
    [
        (2, 0, (2, False)),
        (2, 4 + RESERVE, (2, False)),
        (2, 3 + RESERVE, (2, True)),
        (8, 16, (8, True)),
        (8, 4 + RESERVE, (4, True)),
        (8, 1, (1, True)),
    ],
)
def test_how_many_workers_a_token_has_sessions_for(
    workers: int, sessions_max: int, expected: tuple[int, bool]
) -> None:
    assert plan_sessions(workers, sessions_max) == expected


async def many(token: PoolToken, work: Work, count: int) -> None:
    """Callers of everything at a time; none of them gets an error."""

    async def use() -> None:
        for _ in range(count // 10):
            assert await decrypt(token, work.secret, await encrypt(token, work.secret, [b"x"]))
            await sign(token, work.pair)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(use)


async def test_a_token_short_of_sessions_gives_nobody_an_error(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsmux_gateway.hsm.pool_state.GROW_S", 0.3)
    rig.rules("sessions_max=5")
    async with rig.open(workers=4) as token:
        work = await Work.prepare(token)
        await until(lambda: token.statistics().workers_max < 4)
        await many(token, work, 100)
        assert token.statistics().workers <= 2
        assert token.statistics().breaker == "closed"
        rig.rules("sessions_max=20")
        await until(lambda: token.statistics().workers == 4)
        # Now it has fewer again, and an error makes a worker open a session anew.
        rig.rules("sessions_max=8", "function=C_Sign count=3 action=return code=CKR_DEVICE_ERROR")
        await many(token, work, 100)
        await work.all()


async def test_one_session_a_worker_where_the_token_has_few(rig: Rig) -> None:
    rig.rules("sessions_max=4")
    async with rig.open(workers=4, sessions_max=4 + RESERVE) as token:
        work = await Work.prepare(token)
        await until(lambda: token.statistics().workers == 4)
        await many(token, work, 100)
        # To replace its only session a worker ends; its caller is served by another.
        rig.rules("sessions_max=4", "function=C_Sign count=1 action=return code=CKR_DEVICE_ERROR")
        await many(token, work, 100)
        await until(lambda: token.statistics().restarts == 1)
        await work.all()


async def test_a_session_that_failed_is_not_used_again_but_one_that_did_not_is(rig: Rig) -> None:
    async with rig.open(workers=1) as token:
        work = await Work.prepare(token)
        before = rig.counters.count("C_OpenSession")
        await work.refuse()
        with pytest.raises(KeyMissing):
            await token.prove(replace(work.pair, cka_id=bytes(16)), deadline=soon())
        assert rig.counters.count("C_OpenSession") == before
        rig.rules("function=C_Sign count=1 action=return code=CKR_DEVICE_ERROR")
        await work.sign()
        assert rig.counters.count("C_OpenSession") == before + 1
        assert token.statistics().restarts == 0


async def test_idle_sessions_are_kept_open(rig: Rig) -> None:
    rig.rules("idle_timeout_ms=600")
    async with rig.open(workers=2, keep_alive_s=0.1) as token:
        work = await Work.prepare(token)
        await until(lambda: token.statistics().workers == 2)
        before = rig.counters.count("C_OpenSession")
        # The login sessions are idle even while their workers are busy.
        for _ in range(8):
            await encrypt(token, work.secret, [b"x"])
            await trio.sleep(0.1)
        await work.all()
        assert token.statistics().restarts == 0
        assert rig.counters.count("C_OpenSession") == before


async def test_sessions_that_were_closed_all_the_same_are_nobodys_error(rig: Rig) -> None:
    async with rig.open(workers=2, keep_alive_s=100.0) as token:
        work = await Work.prepare(token)
        rig.rules("idle_timeout_ms=50")
        await trio.sleep(0.2)
        await back_in_service(work)


async def test_old_workers_are_replaced_without_an_error(rig: Rig) -> None:
    async with rig.open(workers=2, age_s=0.4) as token:
        work = await Work.prepare(token)
        first = set(token.worker_pids())
        while token.statistics().login_epoch < 4:
            await many(token, work, 20)
        assert token.statistics().restarts == 0
        assert not first & set(token.worker_pids())


async def test_a_busy_token_is_asked_again_after_a_while(rig: Rig) -> None:
    async with rig.open(workers=2) as token:
        work = await Work.prepare(token)
        rig.rules("function=C_EncryptInit count=2 action=return code=CKR_FUNCTION_FAILED")
        await work.all()
        rig.rules("function=C_EncryptInit action=return code=CKR_FUNCTION_FAILED")
        with pytest.raises(TokenBusy):
            await encrypt(token, work.secret, [b"x"])
        rig.rules()
        await work.all()
        assert token.statistics().restarts == 0
