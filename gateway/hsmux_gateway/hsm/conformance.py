"""What every token must do, as library code: run it on a twin, a module at hand, or a new vendor's.

`check_token` makes keys in the token it is given, so give it one that may be thrown away. A check
that fails raises AssertionError with what was expected.
"""

import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final

from hsmux_native import Arena
from hsmux_protocol.columns import pack_column, unpack_column
from hsmux_protocol.keys import ALGORITHMS

from ..keys.signing import verify_with
from .errors import InvalidInput, KeyMissing, KeyQuarantined, TokenDeadlineExceeded, TokenError
from .token import HsmKey, Token

__all__ = [
    "TOKEN_CHECKS",
    "check_a_past_deadline_is_refused",
    "check_a_root_seals_and_opens",
    "check_bad_items_fail_alone",
    "check_ivs_differ",
    "check_missing_and_wrong_keys_are_refused",
    "check_objects_are_listed_and_destroyed",
    "check_random",
    "check_signatures_verify",
    "check_token",
    "check_what_is_encrypted_decrypts",
]

TENANT: Final = b"conformance"
AAD: Final = pack_column([b"associated data"])


def _deadline() -> float:
    return time.monotonic() + 30


def _check(condition: bool, expected: str) -> None:
    if not condition:
        raise AssertionError(expected)


async def _refused(call: Awaitable[object], error: type[TokenError]) -> None:
    try:
        await call
    except error:
        return
    raise AssertionError(f"expected {error.__name__}")


async def _make(token: Token, spec: str = "AES_256", role: str = "key") -> HsmKey:
    return await token.generate(spec, os.urandom(16), deadline=_deadline(), role=role)


async def check_what_is_encrypted_decrypts(token: Token, arena: Arena) -> None:
    """Columns of every size come back, in order, under associated data for all or for each."""
    key = await _make(token)
    for count in (1, 2, 64, 65, 200):
        items = [os.urandom(number % 300) for number in range(count)]
        for aads in (AAD, pack_column([b"%d" % number for number in range(count)])):
            sealed = await token.encrypt(
                key, pack_column(items), aads, deadline=_deadline(), tenant=TENANT
            )
            _check(not any(sealed.statuses), "every item is encrypted")
            opened = await token.decrypt(
                key, sealed.outputs, aads, deadline=_deadline(), tenant=TENANT
            )
            _check(unpack_column(opened.outputs) == items, "plaintexts come back in order")


async def check_ivs_differ(token: Token, arena: Arena) -> None:
    """No two items have one IV, and none is zero."""
    key = await _make(token)
    sealed = await token.encrypt(
        key, pack_column([b""] * 300), AAD, deadline=_deadline(), tenant=TENANT
    )
    ivs = {item[:12] for item in unpack_column(sealed.outputs)}
    _check(len(ivs) == 300 and bytes(12) not in ivs, "300 different IVs")


async def check_bad_items_fail_alone(token: Token, arena: Arena) -> None:
    """A changed, cut or foreign item is invalid; its neighbours open."""
    key, other = await _make(token), await _make(token)
    sealed = await token.encrypt(
        key, pack_column([b"good"] * 3), AAD, deadline=_deadline(), tenant=TENANT
    )
    good, changed, cut = unpack_column(sealed.outputs)
    foreign = await token.encrypt(
        other, pack_column([b"x"]), AAD, deadline=_deadline(), tenant=TENANT
    )
    changed = changed[:-1] + bytes([changed[-1] ^ 1])
    batch = [good, changed, cut[:-5], b"", unpack_column(foreign.outputs)[0], good]
    opened = await token.decrypt(key, pack_column(batch), AAD, deadline=_deadline(), tenant=TENANT)
    _check(list(opened.statuses) == [0, 1, 1, 1, 1, 0], "only the good items open")
    _check(unpack_column(opened.outputs)[0] == b"good", "a good item opens")
    again = await token.decrypt(
        key, pack_column([good]), pack_column([b"other"]), deadline=_deadline(), tenant=TENANT
    )
    _check(list(again.statuses) == [1], "other associated data does not open")


async def check_signatures_verify(token: Token, arena: Arena) -> None:
    """Every algorithm's signature verifies under the public key the token gave."""
    for spec in ("EC_P256", "EC_P384", "RSA_2048"):
        key = await _make(token, spec)
        for algorithm in ALGORITHMS.values():
            is_own = spec.startswith(algorithm.family)
            if not is_own or (algorithm.scheme == "ECDSA") != algorithm.raw:
                continue
            digest = hashlib.new(algorithm.hash_name, b"message").digest()
            signature = await token.sign(
                key,
                algorithm.name.removesuffix("_RAW"),
                digest,
                deadline=_deadline(),
                tenant=TENANT,
            )
            verify_with(key.public_key, algorithm, digest, signature)


async def check_missing_and_wrong_keys_are_refused(token: Token, arena: Arena) -> None:
    """An object that is not there, or not the key its proof names, does nothing."""
    key, other = await _make(token), await _make(token)
    missing = HsmKey(os.urandom(16), "AES_256", key.proof, b"")
    swapped = HsmKey(other.cka_id, "AES_256", key.proof, b"")
    column = pack_column([b"x"])
    for bad, error in ((missing, KeyMissing), (swapped, KeyQuarantined)):
        await _refused(token.encrypt(bad, column, AAD, deadline=_deadline(), tenant=TENANT), error)
        await _refused(token.prove(bad, deadline=_deadline()), error)
    await token.prove(key, deadline=_deadline())


async def check_objects_are_listed_and_destroyed(token: Token, arena: Arena) -> None:
    """What was made is listed once; what was destroyed is gone."""
    keys = [await _make(token), await _make(token, "EC_P256")]
    listed = [item.cka_id for item in await token.list_objects(deadline=_deadline())]
    _check(all(listed.count(key.cka_id) == 1 for key in keys), "each key is listed once")
    for key in keys:
        await token.destroy(key, deadline=_deadline())
    listed = [item.cka_id for item in await token.list_objects(deadline=_deadline())]
    _check(not {key.cka_id for key in keys} & set(listed), "destroyed keys are gone")


async def check_a_root_seals_and_opens(token: Token, arena: Arena) -> None:
    """A slot goes through the root and comes back; changed or moved seals do not open."""
    root = await _make(token, role="root")
    slot = arena.generate()
    sealed = await token.seal_slot(root, slot, b"bound", deadline=_deadline())
    opened = await token.open_slot(root, sealed, b"bound", deadline=_deadline())
    same = arena.hmac_sha256(slot, b"") == arena.hmac_sha256(opened, b"")
    _check(same and slot != opened, "the same key in another slot")
    for bad, bound in ((sealed, b"other"), (sealed[:-1] + b"\0", b"bound"), (sealed[:40], b"")):
        await _refused(token.open_slot(root, bad, bound, deadline=_deadline()), InvalidInput)
    arena.free(slot)
    arena.free(opened)


async def check_random(token: Token, arena: Arena) -> None:
    """The length asked for, and never the same twice."""
    first = await token.random(64, deadline=_deadline())
    second = await token.random(64, deadline=_deadline())
    _check(len(first) == 64 and first != second, "64 fresh bytes")


async def check_a_past_deadline_is_refused(token: Token, arena: Arena) -> None:
    """Nothing is begun for a caller that stopped waiting."""
    await _refused(token.random(1, deadline=time.monotonic() - 1), TokenDeadlineExceeded)


TOKEN_CHECKS: Final[tuple[Callable[[Token, Arena], Awaitable[None]], ...]] = (
    check_what_is_encrypted_decrypts,
    check_ivs_differ,
    check_bad_items_fail_alone,
    check_signatures_verify,
    check_missing_and_wrong_keys_are_refused,
    check_objects_are_listed_and_destroyed,
    check_a_root_seals_and_opens,
    check_random,
    check_a_past_deadline_is_refused,
)


async def check_token(token: Token, arena: Arena) -> None:
    """Run every check on a token that may be thrown away.

    Raises:
        AssertionError: The token does not conform; says what was expected.
    """
    for check in TOKEN_CHECKS:
        await check(token, arena)
