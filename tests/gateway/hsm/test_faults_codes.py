"""Return codes injected into every function that is used: typed errors, right results, recovery."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio

from hsmux_gateway.hsm.errors import TokenError
from tests.gateway.hsm.conftest import MAKERS
from tests.gateway.hsm.rig import ITEMS, Rig, Work, decrypt, soon

CODES = {
    "caller": "CKR_DATA_INVALID",
    "caller of decrypt": "CKR_ENCRYPTED_DATA_INVALID",
    "key": "CKR_KEY_FUNCTION_NOT_PERMITTED",
    "unsupported": "CKR_FUNCTION_NOT_SUPPORTED",
    "mechanism": "CKR_MECHANISM_INVALID",
    "busy": "CKR_FUNCTION_FAILED",
    "memory": "CKR_DEVICE_MEMORY",
    "sessions": "CKR_SESSION_COUNT",
    "session": "CKR_SESSION_HANDLE_INVALID",
    "handle": "CKR_OBJECT_HANDLE_INVALID",
    "operation": "CKR_OPERATION_ACTIVE",
    "auth": "CKR_PIN_INCORRECT",
    "login": "CKR_USER_NOT_LOGGED_IN",
    "token": "CKR_DEVICE_ERROR",
    "general": "CKR_GENERAL_ERROR",
    "removed": "CKR_DEVICE_REMOVED",
    "module": "CKR_CRYPTOKI_NOT_INITIALIZED",
    "arguments": "CKR_ARGUMENTS_BAD",
    "vendor": "0x80000001",
}
"""A code of every class, and the troublesome ones."""

FEW = ("caller of decrypt", "session", "general", "token", "busy")

USES: dict[str, tuple[Callable[[Work], Awaitable[None]], ...]] = {
    "C_EncryptInit": (Work.seal,),
    "C_Encrypt": (Work.seal,),
    "C_DecryptInit": (Work.open, Work.refuse, Work.seal),
    "C_Decrypt": (Work.open, Work.refuse, Work.seal),
    "C_SignInit": (Work.sign,),
    "C_Sign": (Work.sign,),
    "C_FindObjectsInit": (Work.list,),
    "C_FindObjects": (Work.list,),
    "C_FindObjectsFinal": (Work.list,),
    "C_GetAttributeValue": (Work.list,),
    "C_GenerateRandom": (Work.random,),
}
"""Functions that keys are used with."""

MAKES = (*USES, "C_GenerateKey", "C_GenerateKeyPair", "C_DestroyObject")
"""Functions that keys are made and destroyed with."""

CANARY = ("C_DecryptInit", "C_Decrypt")
"""What the canary needs: a fault there can look like one of the device, and cost a worker."""

SKIPS = (0, 1, 4)
TRIAL_TIMEOUT_S = 30


@pytest.fixture
async def work(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Rig, Work]]:
    """Work in a token of the module that the test names."""
    rig = Rig(MAKERS[request.param](tmp_path), tmp_path, workers=1, verify_every=1)
    async with rig.open() as token:
        yield rig, await Work.prepare(token)


async def recover(work: Work) -> None:
    """Everything works again, after a key that was quarantined has been given another chance."""
    while True:
        try:
            await work.all()
            return
        except TokenError:
            await trio.sleep(0.02)


async def try_rule(rig: Rig, work: Work, rule: str, steps: tuple[object, ...]) -> None:
    """Do each step under a rule of its own, then without; whatever is told must be true."""
    for step in steps:
        assert callable(step)
        rig.rules(rule)
        with trio.fail_after(TRIAL_TIMEOUT_S):
            try:
                await step(work)
            except TokenError:
                pass
            rig.rules()
            await recover(work)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are not refused for a minute, so that a trial need not wait for it."""
    monkeypatch.setattr("hsmux_gateway.hsm.pool_state.QUARANTINE_S", 0.05)
    monkeypatch.setattr("hsmux_gateway.hsm.pool_state.REFUSAL_S", 0.05)


@pytest.mark.parametrize("work", ["softhsm"], indirect=True)
@pytest.mark.parametrize("function", USES)
async def test_a_code_while_keys_are_used(work: tuple[Rig, Work], function: str) -> None:
    rig, doing = work
    for name in FEW:
        for skip in SKIPS:
            rule = f"function={function} skip={skip} count=1 action=return code={CODES[name]}"
            await try_rule(rig, doing, rule, USES[function])
    assert rig.counters.faults(function) >= len(FEW)
    if function not in CANARY:
        assert doing.token.statistics().restarts == 0


@pytest.mark.long
@pytest.mark.parametrize("work", MAKERS, indirect=True)
@pytest.mark.parametrize("name", ["caller of decrypt", "general", "caller"])
async def test_a_burst_of_errors_does_not_make_a_good_ciphertext_invalid(
    work: tuple[Rig, Work], name: str
) -> None:
    rig, doing = work

    async def open_one(work: Work) -> None:
        assert await decrypt(work.token, work.secret, work.sealed[:1]) == ITEMS[:1]

    for function in ("C_DecryptInit", "C_Decrypt"):
        for count in range(2, 8):
            rule = f"function={function} count={count} action=return code={CODES[name]}"
            await try_rule(rig, doing, rule, (open_one,))


@pytest.mark.parametrize("work", ["softhsm"], indirect=True)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_code_while_a_key_is_made(work: tuple[Rig, Work], when: str) -> None:
    # With "after" the token has done it and nobody learned of it.
    rig, doing = work
    before = await doing.token.list_objects(deadline=soon())
    for function in ("C_GenerateKey", "C_GenerateKeyPair", "C_GetAttributeValue", "C_FindObjects"):
        for skip in (0, 1):
            rule = (
                f"function={function} skip={skip} count=1 when={when} "
                "action=return code=CKR_DEVICE_ERROR"
            )
            await try_rule(rig, doing, rule, (Work.make, Work.make_pair))
    assert await doing.token.list_objects(deadline=soon()) == before, "something was left behind"


@pytest.mark.long
@pytest.mark.parametrize("work", MAKERS, indirect=True)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("function", MAKES)
async def test_every_code_at_every_call(work: tuple[Rig, Work], function: str, when: str) -> None:
    rig, doing = work
    steps = USES.get(function, (Work.make, Work.make_pair))
    for code in CODES.values():
        for count in (1, 2, 3):
            for skip in range(4):
                rule = (
                    f"function={function} skip={skip} count={count} when={when} "
                    f"action=return code={code}"
                )
                await try_rule(rig, doing, rule, steps)


@pytest.mark.long
@pytest.mark.parametrize("work", MAKERS, indirect=True)
@pytest.mark.parametrize("function", USES)
async def test_every_code_while_a_key_is_made(work: tuple[Rig, Work], function: str) -> None:
    rig, doing = work
    for code in CODES.values():
        rule = f"function={function} count=1 when=after action=return code={code}"
        await try_rule(rig, doing, rule, (Work.make, Work.make_pair))
