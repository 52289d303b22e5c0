"""PINs: a wrong one is one failed login, however many processes and restarts there are."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import trio

from hsmux_gateway.hsm.errors import PinRefused, TokenUnavailable
from hsmux_gateway.hsm.pin import PinMarks
from hsmux_gateway.hsm.pool import open_token
from hsmux_native import Arena
from tests.gateway.hsm.conftest import MAKERS, PIN, softhsm_settings
from tests.gateway.hsm.known_keys import run_program
from tests.gateway.hsm.rig import Rig, Work
from tests.gateway.hsm.test_faults_workers import until

HSMUX = Path(sys.executable).with_name("hsmux")
RESTARTS = 5
WORKERS = 4


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(softhsm_settings(tmp_path), tmp_path, workers=WORKERS)


def write_pin(rig: Rig, pin: str) -> None:
    rig.settings.pin_path().write_text(f"{pin}\n")


@pytest.mark.parametrize("module", MAKERS)
async def test_a_wrong_pin_is_tried_once(tmp_path: Path, module: str) -> None:
    rig = Rig(MAKERS[module](tmp_path), tmp_path, workers=WORKERS)
    write_pin(rig, "wrong")
    for _ in range(RESTARTS):
        with pytest.raises(PinRefused, match="clear-pin"):
            async with rig.open():
                pass
    assert rig.counters.count("C_Login") == 1
    # The right one needs no clearing, and is proven by one worker before the others log in.
    write_pin(rig, PIN)
    async with rig.open() as token:
        await (await Work.prepare(token)).all()
        await until(lambda: token.statistics().workers == WORKERS)
        assert token.statistics().failed_logins == 0
    assert rig.counters.count("C_Login") == 1 + WORKERS


@pytest.mark.parametrize("module", MAKERS)
async def test_several_gateways_at_once_try_a_wrong_pin_once(tmp_path: Path, module: str) -> None:
    rig = Rig(MAKERS[module](tmp_path), tmp_path)
    rig.rules("function=C_Login action=latency ms=100")
    write_pin(rig, "wrong")
    refused = 0

    async def start() -> None:
        nonlocal refused
        try:
            async with rig.open():
                pass
        except PinRefused:
            refused += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(start)
    assert (refused, rig.counters.count("C_Login")) == (3, 1)


async def test_a_refused_pin_is_tried_again_when_it_was_cleared(rig: Rig) -> None:
    write_pin(rig, "wrong")
    for expected in (1, 2):
        with pytest.raises(PinRefused):
            async with rig.open():
                pass
        assert rig.counters.count("C_Login") == expected
        assert PinMarks(rig.directory, "test").clear() == 1


async def test_a_pin_that_is_refused_while_serving_stops_nobody_who_is_logged_in(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsmux_gateway.hsm.pool_state.REFUSED_PAUSE_S", 0.3)
    async with rig.open(workers=2) as token:
        work = await Work.prepare(token)
        await until(lambda: token.statistics().workers == 2)
        logins = rig.counters.count("C_Login")
        write_pin(rig, "wrong")
        token.supervisor._processes[1].kill()
        await until(lambda: token.statistics().failed_logins == 1)
        await work.all()
        before = rig.counters.count("C_Initialize")
        await until(lambda: rig.counters.count("C_Initialize") >= before + 2)
        assert rig.counters.count("C_Login") == logins + 1
        assert token.statistics().breaker == "closed"
        # The right PIN is found without a restart.
        write_pin(rig, PIN)
        await until(lambda: token.statistics().workers == 2)
        await work.all()


async def test_a_login_that_a_crash_cut_off_is_tried_again_unless_the_token_warns(
    rig: Rig,
) -> None:
    rig.rules("function=C_Login count=1 action=exit status=1")
    with pytest.raises(TokenUnavailable, match="ended before it was ready"):
        async with rig.open(workers=1):
            pass
    (mark,) = rig.directory.glob("pin-*.json")
    assert json.loads(mark.read_text())["outcome"] == "trying"
    async with rig.open(workers=1):
        pass
    assert json.loads(mark.read_text())["outcome"] == "ok"
    # Now a crash again, and meanwhile somebody enters a wrong PIN with another tool: then SoftHSM
    # says that the count is low.
    PinMarks(rig.directory, "test").clear()
    rig.rules("function=C_Login count=1 action=exit status=1")
    with pytest.raises(TokenUnavailable):
        async with rig.open(workers=1):
            pass
    with pytest.raises(subprocess.CalledProcessError):
        run_program(rig.settings, "make", "wrong", "[]")
    before = rig.counters.count("C_Login")
    with pytest.raises(PinRefused, match="entered wrongly"):
        async with rig.open(workers=1):
            pass
    assert rig.counters.count("C_Login") == before


@pytest.fixture
async def marks(tmp_path: Path) -> AsyncIterator[tuple[PinMarks, Path]]:
    pin = tmp_path / "pin"
    pin.write_text("1234\n")
    yield PinMarks(tmp_path, "main"), pin


COUNT_LOW, FINAL_TRY, LOCKED = 0x10000, 0x20000, 0x40000


@pytest.mark.parametrize(
    ("outcome", "flags", "is_tried"),
    [
        ("", 0, True),
        ("", COUNT_LOW, True),
        ("", FINAL_TRY, False),
        ("", LOCKED, False),
        ("trying", 0, True),
        ("trying", COUNT_LOW, False),
        ("trying", FINAL_TRY, False),
        ("ok", 0, True),
        ("ok", COUNT_LOW, True),
        ("ok", FINAL_TRY, True),
        ("ok", LOCKED, False),
        ("refused", 0, False),
    ],
)
async def test_who_may_log_in(
    marks: tuple[PinMarks, Path], outcome: str, flags: int, is_tried: bool
) -> None:
    kept, pin = marks
    if outcome:
        kept.begin("serial", 0, pin)
    if outcome in ("ok", "refused"):
        kept.finish("serial", pin, accepted=outcome == "ok")
    if is_tried:
        kept.begin("serial", flags, pin)
        return
    with pytest.raises(PinRefused, match="hsmux hsm clear-pin --config FILE --token main"):
        kept.begin("serial", flags, pin)


async def test_marks_hold_no_pin_and_are_of_one_token(marks: tuple[PinMarks, Path]) -> None:
    kept, pin = marks
    kept.begin("serial/1", 0, pin)
    kept.finish("serial/1", pin, accepted=False)
    kept.begin("serial/2", 0, pin)
    for path in pin.parent.glob("pin-*"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"1234" not in path.read_bytes()
    pin.write_text("1234")
    with pytest.raises(PinRefused):
        kept.begin("serial/1", 0, pin)
    pin.write_text("12345")
    kept.begin("serial/1", 0, pin)
    pin.unlink()
    with pytest.raises(PinRefused, match="cannot be read"):
        kept.begin("serial/1", 0, pin)


CONFIG = """
instance_dir = "{directory}/instance"
[health]
listen = "127.0.0.1:0"
[server]
listen = ["127.0.0.1:0"]
[root]
token = "test"
[hsm.test]
module = "{module}"
token_label = "test"
pin_file = "{pin}"
workers = {workers}
environment = {environment}
"""


def test_the_command_ends_with_the_code_that_keeps_it_from_being_started_again(
    rig: Rig, tmp_path: Path
) -> None:
    write_pin(rig, "wrong")
    environment = ", ".join(f'{n} = "{v}"' for n, v in rig.settings.environment.items())
    config = tmp_path / "hsmux.toml"
    config.write_text(
        CONFIG.format(
            directory=tmp_path,
            module=rig.settings.module,
            pin=rig.settings.pin_path(),
            workers=WORKERS,
            environment=f"{{ {environment} }}",
        )
    )
    # Before `init` too: the marks are where the gateway will look for them.
    for _ in range(2):
        done = subprocess.run(
            [str(HSMUX), "hsm", "probe", "--config", str(config)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 8, done.stderr
        assert "clear-pin" in done.stderr and "Traceback" not in done.stderr
    assert rig.counters.count("C_Login") == 1


async def test_a_pin_file_that_is_not_there_starts_nothing(rig: Rig) -> None:
    settings = msgspec.structs.replace(rig.settings, pin_file=str(rig.directory / "none"))
    with pytest.raises(PinRefused, match="cannot be read"):
        async with open_token(settings, Arena(1 << 20), rig.directory):
            pass
    assert rig.counters.count("C_Login") == 0


SPOILT = [
    b"",
    b"null",
    b"{}",
    b'{"outcome": "ok"}',
    b"\xff",
    b'{"salt": "zz", "hash": "", "outcome": "ok"}',
]


@pytest.mark.parametrize("content", SPOILT)
def test_a_mark_that_is_spoilt_is_named(tmp_path: Path, content: bytes) -> None:
    """It may have said that the PIN was refused, so nobody logs in on its word."""
    (tmp_path / "pin").write_text("1234")
    marks = PinMarks(tmp_path, "main")
    marks.begin("serial", 0, tmp_path / "pin")
    (path,) = tmp_path.glob("pin-*.json")
    path.write_bytes(content)
    with pytest.raises(PinRefused, match=r"clear-pin --config FILE --token main"):
        marks.begin("serial", 0, tmp_path / "pin")
    assert marks.clear() == 1
    marks.begin("serial", 0, tmp_path / "pin")


@pytest.mark.parametrize("content", ["", "\n", "\r\n"])
def test_an_empty_pin_is_never_tried(tmp_path: Path, content: str) -> None:
    (tmp_path / "pin").write_text(content)
    with pytest.raises(PinRefused, match="is empty"):
        PinMarks(tmp_path, "main").begin("serial", 0, tmp_path / "pin")
    assert not list(tmp_path.glob("pin-*.json"))
