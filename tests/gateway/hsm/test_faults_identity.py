"""Never an output under another key, and never a wrong one: re-initialised, renamed, flipped."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import trio

from hsmux_gateway.hsm import softhsm
from hsmux_gateway.hsm.errors import KeyQuarantined, TokenError
from hsmux_gateway.hsm.pool import PoolToken, open_token
from hsmux_native import Arena
from hsmux_protocol.columns import pack_column, unpack_column
from tests.gateway.hsm.conftest import MAKERS, PIN, softhsm_settings
from tests.gateway.hsm.known_keys import KnownKey, make_known_keys, swap_names
from tests.gateway.hsm.rig import AAD, ITEMS, TENANT, Rig, Work, decrypt, encrypt, soon

(AAD_ITEM,) = unpack_column(AAD)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(softhsm_settings(tmp_path), tmp_path)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and requests are not refused for a minute."""
    monkeypatch.setattr("hsmux_gateway.hsm.pool_state.QUARANTINE_S", 0.05)
    monkeypatch.setattr("hsmux_gateway.hsm.pool_state.REFUSAL_S", 0.05)


async def use_rightly(token: PoolToken, known: KnownKey) -> None:
    """Encrypt and decrypt; AssertionError if anything is under another key."""
    items = [os.urandom(20) for _ in range(3)]
    sealed = await encrypt(token, known.key, items)
    assert [known.opens(item, AAD_ITEM) for item in sealed] == items, "under another key"
    assert await decrypt(token, known.key, sealed) == items


async def restart_worker(token: PoolToken) -> None:
    """Kill the only worker and wait for the next."""
    pid = token.worker_pids()[0]
    os.kill(pid, signal.SIGKILL)
    with trio.fail_after(30):
        while pid in token.worker_pids() or not token.statistics().workers:  # noqa: ASYNC110
            await trio.sleep(0.002)


def object_files(rig: Rig) -> list[Path]:
    """SoftHSM's files of all objects."""
    (directory,) = softhsm.token_directories(rig.settings.environment)
    return sorted(p for p in directory.glob("*.object") if p.name != "token.object")


def reverse_discovery(rig: Rig) -> None:
    """Let SoftHSM meet its objects in the other order: their files exchange their names."""
    files = object_files(rig)
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, reversed(contents), strict=True):
        temporary = path.with_suffix(".new")
        temporary.write_bytes(content)
        temporary.rename(path)


# ---- Re-initialised


@pytest.mark.parametrize("module", MAKERS)
@pytest.mark.parametrize("rounds", [4, pytest.param(200, marks=pytest.mark.long)])
async def test_a_new_numbering_under_load_changes_no_output(
    tmp_path: Path, module: str, rounds: int
) -> None:
    rig = Rig(MAKERS[module](tmp_path), tmp_path, workers=2)
    known = make_known_keys(rig.settings, PIN, 8)
    rig.rules("renumber=on")
    uses = 0
    async with rig.open() as token:

        async def use(which: KnownKey) -> None:
            nonlocal uses
            while True:
                with contextlib.suppress(TokenError):
                    await use_rightly(token, which)
                    uses += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for which in known:
                nursery.start_soon(use, which)
            for number in range(rounds):
                before = uses
                if module == "softhsm":
                    reverse_discovery(rig)
                with trio.fail_after(30):
                    while uses < before + 20:  # noqa: ASYNC110
                        await trio.sleep(0.002)
                if pids := token.worker_pids():
                    os.kill(pids[number % len(pids)], signal.SIGKILL)
            nursery.cancel_scope.cancel()
    assert uses >= 20 * rounds


REINITIALISED = """
import os, sys, time
import hsmux_native
from hsmux_gateway.hsm.application import Application
from hsmux_gateway.hsm.operations import Operations
from hsmux_gateway.hsm.progress import Progress
from hsmux_native.pkcs11 import SecretPage
from hsmux_protocol.columns import pack_column, unpack_column
import pkcs11

label, pin, logs_in, *keys = sys.argv[1:]
module = hsmux_native.adapter_path(faults=True)
application = Application(module, label)
application.log_in(pin, is_single=False)
operations = Operations(application, SecretPage(), Progress(), 1)
column, aads, far = pack_column([b"text"]), pack_column([b"aad"]), time.monotonic_ns() + 10**12

def encrypt(key):
    cka_id, proof = (bytes.fromhex(part) for part in key.split(":"))
    arguments = [cka_id, "AES_256", proof, column, aads, [far]]
    number, kind, *rest = operations.do(1, "encrypt", far, arguments)
    sealed = unpack_column(rest[0][0])[0].hex() if kind == "done" and not any(rest[0][1]) else "-"
    print(kind, sealed, "ends" if operations.ending else "goes on", flush=True)

for key in keys:
    encrypt(key)
pkcs11.lib(module).reinitialize()
if logs_in == "yes":
    # The sessions get their old numbers again, and the objects other ones.
    held = [pkcs11.lib(module).get_token(token_label=label).open(rw=True, user_pin=pin)]
    held.append(held[0].token.open(rw=True))
    list(held[1].get_objects())
for key in keys:
    encrypt(key)
"""


@pytest.mark.parametrize("logs_in", ["no", "yes"])
def test_handles_kept_over_a_new_initialisation_do_nothing_wrong(rig: Rig, logs_in: str) -> None:
    known = make_known_keys(rig.settings, PIN, 4)
    rig.rules("renumber=on")
    keys = [f"{k.key.cka_id.hex()}:{k.key.proof.hex()}" for k in known]
    environment = {
        **os.environ,
        **rig.settings.environment,
        "HSMUX_ADAPTER_MODULE": rig.settings.module,
    }
    done = subprocess.run(
        [sys.executable, "-c", REINITIALISED, rig.settings.token_label, PIN, logs_in, *keys],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert len(lines) == 2 * len(known)
    for which, (kind, sealed, _) in zip(known * 2, lines, strict=True):
        if kind == "done" and sealed != "-":
            assert which.opens(bytes.fromhex(sealed), b"aad") == b"text", "under another key"
    assert [kind for kind, _, _ in lines[: len(known)]] == ["done"] * len(known)
    # Not one of them notices nothing: the first ends the worker, or proves itself anew.
    assert lines[len(known)][2] == "ends" or logs_in == "yes"


# ---- Renamed


async def test_objects_that_exchanged_their_names_are_quarantined(rig: Rig) -> None:
    known = make_known_keys(rig.settings, PIN, 3)
    async with rig.open(workers=1) as token:
        for which in known:
            await use_rightly(token, which)
        swap_names(rig.settings, PIN, known[0].key, known[1].key)
        for _ in range(2):
            for which in known[:2]:
                with contextlib.suppress(KeyQuarantined):
                    await use_rightly(token, which)
            await use_rightly(token, known[2])
            await restart_worker(token)
        for which in known[:2]:
            with pytest.raises(KeyQuarantined):
                await use_rightly(token, which)
        assert token.statistics().quarantined >= 1
        swap_names(rig.settings, PIN, known[0].key, known[1].key)
        await restart_worker(token)
        await trio.sleep(0.06)
        for which in known:
            await use_rightly(token, which)


async def test_a_new_session_believes_no_proof_of_the_old_one(rig: Rig, arena: Arena) -> None:
    # What is sealed under a root key is not sampled: its proof is all there is.
    first, second = (known.key for known in make_known_keys(rig.settings, PIN, 2))
    settings = msgspec.structs.replace(rig.settings, workers=1)
    async with open_token(settings, arena, rig.directory) as token:
        slot = arena.generate()
        await token.seal_slot(first, slot, b"aad", deadline=soon())
        swap_names(rig.settings, PIN, first, second)
        rig.rules("function=C_Encrypt count=1 action=return code=CKR_DEVICE_ERROR")
        with pytest.raises(KeyQuarantined):
            await token.seal_slot(first, slot, b"aad", deadline=soon())
        assert token.statistics().restarts == 0


async def test_a_proof_that_is_asked_for_is_never_one_of_before(rig: Rig) -> None:
    first, second = (known.key for known in make_known_keys(rig.settings, PIN, 2))
    async with rig.open(workers=1) as token:
        await token.prove(first, deadline=soon())
        swap_names(rig.settings, PIN, first, second)
        with pytest.raises(KeyQuarantined):
            await token.prove(first, deadline=soon())


async def test_a_key_that_can_leave_the_token_is_quarantined(rig: Rig) -> None:
    known = make_known_keys(rig.settings, PIN, 2)
    async with rig.open(workers=1) as token:
        await use_rightly(token, known[0])
    # What SoftHSM's file says of one key, turned: CKA_EXTRACTABLE, kind boolean, false.
    extractable = (0x162).to_bytes(8, "big") + (1).to_bytes(8, "big")
    for path in object_files(rig):
        content = path.read_bytes()
        assert content.count(extractable + b"\0") == 1
        path.write_bytes(content.replace(extractable + b"\0", extractable + b"\1"))
    async with rig.open(workers=1) as token:
        for which in known:
            with pytest.raises(KeyQuarantined, match="EXTRACTABLE"):
                await encrypt(token, which.key, [b"x"])


# ---- Flipped bits


@pytest.mark.parametrize("function", ["C_Encrypt", "C_Decrypt", "C_Sign"])
async def test_one_flipped_bit_in_an_output_is_noticed(rig: Rig, function: str) -> None:
    async with rig.open(workers=1, verify_every=1) as token:
        work = await Work.prepare(token)
        step = {"C_Encrypt": work.seal, "C_Decrypt": work.open, "C_Sign": work.sign}[function]
        chance = random.Random(function)
        for skip in range(6):
            rig.rules(
                f"function={function} skip={skip} count=1 action=flip bit={chance.randrange(4096)}"
            )
            with contextlib.suppress(TokenError):
                for _ in range(skip + 1 if function == "C_Sign" else 1):
                    await step()
                if function == "C_Encrypt":
                    rig.rules()
                    await work.check_pending()
            rig.rules()
            await trio.sleep(0.06)
            await work.all()
        assert rig.counters.faults(function) >= 4


async def test_a_seal_that_does_not_open_is_not_told(rig: Rig, arena: Arena) -> None:
    async with open_token(rig.settings, arena, rig.directory) as token:
        root = await token.generate("AES_256", os.urandom(16), deadline=soon(), role="root")
        slot = arena.generate()
        rig.rules("function=C_Encrypt count=1 action=flip bit=3")
        sealed = await token.seal_slot(root, slot, b"aad", deadline=soon())
        assert rig.counters.faults("C_Encrypt") == 1
        await token.open_slot(root, sealed, b"aad", deadline=soon())
        for process in token.supervisor._processes.values():
            assert not any(process.page.view[:]), "a key stays in a page"
        rig.rules("function=C_Encrypt action=flip bit=3")
        with pytest.raises(TokenError):
            await token.seal_slot(root, slot, b"aad", deadline=soon())


@pytest.mark.parametrize("function", ["C_Encrypt", "C_Decrypt", "C_Sign"])
async def test_a_module_that_goes_wrong_for_good_is_stopped_at_once(
    rig: Rig, function: str
) -> None:
    # Of many results only few are verified; the next one that is stops it.
    async with rig.open(workers=1) as token:
        work = await Work.prepare(token)
        rig.rules(f"function={function} action=flip bit=3")
        await restart_or_not(token, function)
        step = {"C_Encrypt": work.seal, "C_Decrypt": work.open, "C_Sign": work.sign}[function]
        for _ in range(3):
            with pytest.raises(TokenError):
                await step()
        rig.rules()
        with trio.fail_after(10):
            while True:
                try:
                    await work.all()
                    break
                except TokenError:
                    await trio.sleep(0.05)


async def restart_or_not(token: PoolToken, function: str) -> None:
    """A new session, in which the first result is verified; with a broken canary there is none."""
    pid = token.worker_pids()[0]
    os.kill(pid, signal.SIGKILL)
    with trio.fail_after(30):
        while pid in token.worker_pids():  # noqa: ASYNC110
            await trio.sleep(0.002)
        while function == "C_Sign" and not token.statistics().workers:  # noqa: ASYNC110
            await trio.sleep(0.002)


@pytest.mark.parametrize("rounds", [8, pytest.param(1500, marks=pytest.mark.long)])
async def test_flipped_bits_in_token_files_give_no_wrong_answer(rig: Rig, rounds: int) -> None:
    # A bit can make a key vanish or another one, or end every process that opens the token.
    known = make_known_keys(rig.settings, PIN, 1)[0]
    async with rig.open(workers=1) as token:
        work = await Work.prepare(token)
        await use_known(token, known)
    chance = random.Random(7)
    files = object_files(rig)
    for number in range(rounds):
        path = files[number % len(files)]
        whole = path.read_bytes()
        content = bytearray(whole)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        with contextlib.suppress(TokenError):
            async with rig.open(workers=1) as token:
                work.token = token
                for step in (use_known(token, known), work.open(), work.sign(), work.seal()):
                    with contextlib.suppress(TokenError):
                        await step
        path.write_bytes(whole)
    async with rig.open(workers=1) as token:
        work.token = token
        await work.all()
        await use_known(token, known)


async def use_known(token: PoolToken, known: KnownKey) -> None:
    """Encrypt alone, and look under which key it is."""
    sealed = await encrypt(token, known.key, ITEMS, tenant=TENANT)
    assert [known.opens(item, AAD_ITEM) for item in sealed] == ITEMS, "under another key"


# ---- Garbage


@pytest.mark.parametrize("module", MAKERS)
@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.long)])
async def test_garbage_costs_no_worker(tmp_path: Path, module: str, count: int) -> None:
    rig = Rig(MAKERS[module](tmp_path), tmp_path)
    async with rig.open(workers=2) as token:
        work = await Work.prepare(token)
        chance = random.Random(count)
        garbage = [chance.randbytes(chance.choice((0, 1, 27, 28, 60))) for _ in range(count)]
        good = work.sealed[0]

        async def ask(items: list[bytes], expected: list[int]) -> None:
            column = pack_column(items)
            result = await token.decrypt(
                work.secret, column, AAD, deadline=soon(120), tenant=TENANT
            )
            assert list(result.statuses) == expected

        async with trio.open_nursery() as nursery:
            singles = garbage[: count // 10]
            for item in singles:
                nursery.start_soon(ask, [item], [1])
            for start in range(len(singles), count, 90):
                part = garbage[start : start + 90]
                nursery.start_soon(ask, [good, *part, good], [0, *([1] * len(part)), 0])
        await work.all()
        assert token.statistics().restarts == 0
