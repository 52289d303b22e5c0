"""The probe: what a token really does, not what its mechanism list says.

Every answer comes from trying: keys are made, used and destroyed again (`quirks` has the trials
that need no key of the token). The result is the token's quirk profile, one fact a line; `hsmux hsm
probe` shows it, and it is what to send along with a bug report. A trial that the module does not
survive is a fact too: the worker is replaced and the probe goes on.
"""

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from hsmux_native import Arena
from hsmux_protocol.columns import pack_column, unpack_column
from hsmux_protocol.keys import ALGORITHMS, KEY_SPECS

from ..keys.signing import verify_with
from ..private_files import check_directory
from .errors import TokenError, TokenOutcomeUnknown
from .pool import PoolToken, open_token
from .quirks import QUIRKS
from .settings import TokenSettings
from .token import HsmKey

__all__ = ["probe"]

PROBE_TIMEOUT_S: Final = 60.0
"""Seconds for each thing that is tried."""

TENANT: Final = bytes(16)
ARENA_SIZE: Final = 1 << 20
_AAD: Final = pack_column([b"probe"])

_PIN_FLAGS: Final = {
    0x00010000: "PIN entered wrongly before",  # CKF_USER_PIN_COUNT_LOW
    0x00020000: "one PIN attempt left",  # CKF_USER_PIN_FINAL_TRY
    0x00040000: "PIN locked",  # CKF_USER_PIN_LOCKED
}

_SHOWN_BY: Final[dict[str, str]] = {
    "AES_KEY_GEN": "generate:AES_256",
    "AES_GCM": "AES_256:64_kib",
    "EC_KEY_PAIR_GEN": "generate:EC_",
    "ECDSA": "sign:EC_",
    "RSA_PKCS_KEY_PAIR_GEN": "generate:RSA_",
    "RSA_PKCS": "sign:RSA_2048:RSA_PKCS1_",
    "RSA_PKCS_PSS": "sign:RSA_2048:RSA_PSS_",
    "RSA_PKCS_OAEP": "oaep:",
    "AES_KEY_WRAP": "wrap:AES_KEY_WRAP",
    "AES_KEY_WRAP_PAD": "wrap:AES_KEY_WRAP_PAD",
    "AES_KEY_WRAP_KWP": "wrap:AES_KEY_WRAP_KWP",
    "0x1054": "wrap:RSA_AES_KEY_WRAP",
}
"""Mechanisms, and the beginnings of the names of facts that show whether they work."""


def _deadline() -> float:
    return time.monotonic() + PROBE_TIMEOUT_S


async def _answer(ask: Callable[[], Awaitable[Any]]) -> str:
    """What came of trying: "ok", or why not."""
    try:
        found = await ask()
    except TokenOutcomeUnknown:
        return "the module crashes or hangs (!)"
    except TokenError as error:
        return f"no: {error}"
    return found if isinstance(found, str) else "ok"


async def _try_gcm(token: PoolToken, key: HsmKey) -> dict[str, str]:
    """Encrypt, decrypt, tamper, cut: as the gateway does it."""

    async def crypt(size: int) -> str:
        plain = pack_column([os.urandom(size)])
        sealed = await token.encrypt(key, plain, _AAD, deadline=_deadline(), tenant=TENANT)
        opened = await token.decrypt(key, sealed.outputs, _AAD, deadline=_deadline(), tenant=TENANT)
        return "ok" if opened.outputs == plain else "no: another plaintext came back (!)"

    async def refused(change: Callable[[bytes], bytes]) -> str:
        plain = pack_column([b"probe"])
        sealed = await token.encrypt(key, plain, _AAD, deadline=_deadline(), tenant=TENANT)
        bad = pack_column([change(unpack_column(sealed.outputs)[0])])
        opened = await token.decrypt(key, bad, _AAD, deadline=_deadline(), tenant=TENANT)
        return "refused" if list(opened.statuses) == [1] else "accepted (!)"

    return {
        "AES_256:empty": await _answer(lambda: crypt(0)),
        "AES_256:64_kib": await _answer(lambda: crypt(65536)),
        "AES_256:changed": await _answer(
            lambda: refused(lambda item: item[:-1] + bytes([item[-1] ^ 1]))
        ),
        "AES_256:cut": await _answer(lambda: refused(lambda item: item[:20])),
    }


async def _try_signing(token: PoolToken, key: HsmKey) -> dict[str, str]:
    """Every algorithm of the key's family, verified here."""
    found = {}
    for algorithm in ALGORITHMS.values():
        is_family = algorithm.family == KEY_SPECS[key.spec].family
        if not is_family or algorithm.raw != (algorithm.scheme == "ECDSA"):
            continue
        name = algorithm.name.removesuffix("_RAW")
        digest = os.urandom(algorithm.digest_size)

        async def sign(name: str = name, digest: bytes = digest) -> str:
            signature = await token.sign(key, name, digest, deadline=_deadline(), tenant=TENANT)
            verified = ALGORITHMS.get(f"{name}_RAW", ALGORITHMS[name])
            verify_with(key.public_key, verified, digest, signature)
            return "ok"

        found[f"sign:{key.spec}:{name}"] = await _answer(sign)
    return found


async def _try_spec(token: PoolToken, spec: str) -> dict[str, str]:
    """Make a key, use it in every way, destroy it."""
    named = HsmKey(os.urandom(16), spec, b"", b"")
    found: dict[str, str] = {}
    keys: list[HsmKey] = []

    async def make() -> None:
        keys.append(await token.generate(spec, named.cka_id, deadline=_deadline()))

    found[f"generate:{spec}"] = await _answer(make)
    if keys:
        use = _try_gcm if KEY_SPECS[spec].family == "AES" else _try_signing
        found |= await use(token, keys[0])
    # Even if it was not made, as far as we know: nothing may be left behind.
    destroyed = await _answer(lambda: token.destroy(named, deadline=_deadline()))
    return {**found, f"destroy:{spec}": destroyed} if keys else found


async def _try_all(token: PoolToken) -> dict[str, str]:
    found: dict[str, str] = {}
    for spec in KEY_SPECS:
        found |= await _try_spec(token, spec)
    found["random"] = await _answer(lambda: token.random(32, deadline=_deadline()))
    for name in QUIRKS:

        async def ask(name: str = name) -> str:
            return await token.try_quirk(name, deadline=_deadline())

        found[name] = await _answer(ask)
    return found


def _works(found: dict[str, str], beginning: str) -> bool:
    """Whether any fact of these names is a success."""
    answers = [
        answer
        for name, answer in found.items()
        if name == beginning or (beginning[-1] in ":_" and name.startswith(beginning))
    ]
    return any(answer == "ok" or answer.startswith("RFC") for answer in answers)


def _about_mechanisms(found: dict[str, str], listed: list[str]) -> dict[str, Any]:
    """What the mechanism list says, and where trying said something else."""
    works = {name for name, beginning in _SHOWN_BY.items() if _works(found, beginning)}
    tried = set(_SHOWN_BY)
    return {
        "mechanisms": listed,
        "mechanisms_tried": sorted(tried),
        "mechanisms_listed_that_do_not_work": sorted((tried - works) & set(listed)),
        "mechanisms_that_work_unlisted": sorted(works - set(listed)),
    }


def _identity(facts: dict[str, Any]) -> dict[str, Any]:
    """What the token says of itself before any login."""
    warnings = [text for flag, text in _PIN_FLAGS.items() if facts["flags"] & flag]
    return {
        **{name: facts[name] for name in ("manufacturer", "model", "serial")},
        "pin": ", ".join(warnings) or "no warning",
        "sessions_max_stated": facts["sessions_max"] or "none",
        "iv": "made by the gateway",
    }


def _make_private(directory: Path) -> None:
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    for used in (directory.parent, directory):
        check_directory("instance_dir", used)


async def probe(settings: TokenSettings, directory: Path) -> dict[str, Any]:
    """Try a token; nothing is left behind in it.

    Args:
        settings: How to reach it.
        directory: Of the PIN marks, made if it is not there, so that a refused PIN is tried once.

    Returns:
        What the token says of itself, and what came of each thing tried: one fact an entry.

    Raises:
        TokenError: It cannot be reached; PinRefused: nobody may log in.
    """
    await trio.to_thread.run_sync(_make_private, directory)
    single = msgspec.structs.replace(settings, workers=1)
    async with open_token(single, Arena(ARENA_SIZE), directory) as token:
        identity = _identity(token.facts)
        found = await _try_all(token)
        listed = await token.mechanisms(deadline=_deadline())
    return {**identity, **found, **_about_mechanisms(found, listed)}
