"""The start-up probe: what a token really does, not what its mechanism list says.

Every answer comes from trying: keys are made, used and destroyed again. The result is the token's
quirk profile; `hsmux hsm probe` shows it, and it is what to send along with a bug report.
"""

import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio

from hsmux_native import Arena
from hsmux_protocol.columns import pack_column, unpack_column
from hsmux_protocol.keys import ALGORITHMS, KEY_SPECS

from ..keys.signing import verify_with
from .errors import TokenError
from .pool import PoolToken, open_token
from .settings import TokenSettings
from .token import HsmKey

__all__ = ["probe"]

PROBE_TIMEOUT_S: Final = 60.0
"""Seconds for each thing that is tried."""

TENANT: Final = bytes(16)
ARENA_SIZE: Final = 1 << 20
_AAD: Final = pack_column([b"probe"])


def _deadline() -> float:
    return time.monotonic() + PROBE_TIMEOUT_S


async def _answer(ask: Callable[[], Awaitable[Any]]) -> str:
    """What came of trying: "ok", or why not."""
    try:
        found = await ask()
    except TokenError as error:
        return f"no: {error}"
    return found if isinstance(found, str) else "ok"


async def _try_gcm(token: PoolToken, key: HsmKey) -> dict[str, str]:
    """Encrypt, decrypt, tamper, cut, largest item."""

    async def crypt(size: int) -> str:
        plain = pack_column([os.urandom(size)])
        sealed = await token.encrypt(key, plain, _AAD, deadline=_deadline(), tenant=TENANT)
        opened = await token.decrypt(key, sealed.outputs, _AAD, deadline=_deadline(), tenant=TENANT)
        return "ok" if opened.outputs == plain else "no: another plaintext came back"

    async def refused(change: Callable[[bytes], bytes]) -> str:
        plain = pack_column([b"probe"])
        sealed = await token.encrypt(key, plain, _AAD, deadline=_deadline(), tenant=TENANT)
        bad = pack_column([change(unpack_column(sealed.outputs)[0])])
        opened = await token.decrypt(key, bad, _AAD, deadline=_deadline(), tenant=TENANT)
        return "refused" if list(opened.statuses) == [1] else "accepted (!)"

    return {
        "aes_gcm_empty": await _answer(lambda: crypt(0)),
        "aes_gcm_64_kib": await _answer(lambda: crypt(65536)),
        "aes_gcm_changed_tag": await _answer(
            lambda: refused(lambda item: item[:-1] + bytes([item[-1] ^ 1]))
        ),
        "aes_gcm_cut": await _answer(lambda: refused(lambda item: item[:20])),
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

        found[f"{key.spec}:{name}"] = await _answer(sign)
    return found


async def _try_spec(token: PoolToken, spec: str) -> dict[str, str]:
    """Make a key, use it in every way, destroy it."""
    cka_id = os.urandom(16)
    found: dict[str, str] = {}
    keys: list[HsmKey] = []

    async def make() -> None:
        keys.append(await token.generate(spec, cka_id, deadline=_deadline()))

    found[f"generate:{spec}"] = await _answer(make)
    if not keys:
        return found
    use = _try_gcm if KEY_SPECS[spec].family == "AES" else _try_signing
    found |= await use(token, keys[0])
    found[f"destroy:{spec}"] = await _answer(lambda: token.destroy(keys[0], deadline=_deadline()))
    return found


async def probe(settings: TokenSettings, directory: Path) -> dict[str, Any]:
    """Try a token; nothing is left behind in it.

    Args:
        settings: How to reach it.
        directory: Of the PIN marks, so that a refused PIN is not tried again.

    Returns:
        What the token says of itself, its mechanisms, and what came of each thing tried.

    Raises:
        TokenError: It cannot be reached; PinRefused: nobody may log in.
    """
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        is_kept = await trio.to_thread.run_sync(directory.is_dir)
        marks = directory if is_kept else Path(scratch)
        async with open_token(settings, Arena(ARENA_SIZE), marks) as token:
            for spec in KEY_SPECS:
                found |= await _try_spec(token, spec)
            found["random"] = await _answer(lambda: token.random(32, deadline=_deadline()))
            return {
                **{name: token.facts[name] for name in ("manufacturer", "model", "serial")},
                "iv": "made by the gateway",
                "results": found,
                "mechanisms": await token.mechanisms(deadline=_deadline()),
            }
