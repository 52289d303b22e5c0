"""What every token must do, as library code: run it on a twin, a module at hand, or a new vendor's.

`check_token` makes keys in the token it is given, so give it one that may be thrown away. A check
that fails raises AssertionError with what was expected.
"""

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

import trio
import trio.testing

from hsmux_native import Arena
from hsmux_protocol.columns import pack_column, unpack_column
from hsmux_protocol.keys import ALGORITHMS, KEY_SPECS

from ..keys.signing import verify_with
from .errors import (
    InvalidInput,
    KeyMissing,
    KeyQuarantined,
    TokenDeadlineExceeded,
    TokenError,
    Unsupported,
)
from .token import DATA_SIZE_MAX, BatchResult, HsmKey, Token

__all__ = [
    "TOKEN_CHECKS",
    "check_a_dropped_key_can_be_found_again",
    "check_a_past_deadline_is_refused",
    "check_a_root_seals_and_opens",
    "check_a_wrapping_key_proves_itself_and_does_nothing_else",
    "check_bad_items_fail_alone",
    "check_cancelled_callers_leave_nothing_behind",
    "check_data_objects_are_kept_or_refused",
    "check_different_work_goes_side_by_side",
    "check_ivs_differ",
    "check_malformed_columns_are_refused",
    "check_missing_and_wrong_keys_are_refused",
    "check_no_two_objects_have_one_name",
    "check_objects_are_listed_and_destroyed",
    "check_private_keys_prove_themselves",
    "check_random",
    "check_signatures_verify",
    "check_tenants_take_turns",
    "check_tenants_take_turns_in_making_keys",
    "check_token",
    "check_what_is_encrypted_decrypts",
    "check_what_is_not_offered_is_refused",
]

TENANT: Final = b"conformance"
AAD: Final = pack_column([b"associated data"])
ITEM_SIZE_MAX: Final = 65536

SIGNING_SPECS: Final = ("EC_P256", "EC_P384", "RSA_2048", "RSA_3072", "RSA_4096")

FLOOD_COLUMNS: Final = 60
FLOOD_DONE_MAX: Final = 20
"""Columns of a flooding tenant, and how many may be done before a polite one's single item."""

FLOOD_KEYS: Final = 12
FLOOD_KEYS_DONE_MAX: Final = 3
"""Keys that a flooding tenant asks for, and how many may be made before a polite one's."""

CANCELLED_CALLS: Final = 40


def _deadline() -> float:
    return time.monotonic() + 60


def _check(condition: bool, expected: str) -> None:
    if not condition:
        raise AssertionError(expected)


async def _refused(call: Awaitable[object], *errors: type[Exception]) -> None:
    names = " or ".join(error.__name__ for error in errors)
    try:
        await call
    except errors:
        return
    except TokenError as error:
        raise AssertionError(f"expected {names}, not {error!r}") from error
    raise AssertionError(f"expected {names}")


async def _make(token: Token, spec: str = "AES_256", role: str = "key") -> HsmKey:
    return await token.generate(spec, os.urandom(16), deadline=_deadline(), role=role)


async def _encrypt(
    token: Token, key: HsmKey, items: Sequence[bytes], aads: bytes = AAD, tenant: bytes = TENANT
) -> BatchResult:
    column = pack_column(items)
    return await token.encrypt(key, column, aads, deadline=_deadline(), tenant=tenant)


async def _decrypt(
    token: Token, key: HsmKey, items: Sequence[bytes], aads: bytes = AAD
) -> BatchResult:
    column = pack_column(items)
    return await token.decrypt(key, column, aads, deadline=_deadline(), tenant=TENANT)


async def check_what_is_encrypted_decrypts(token: Token, arena: Arena) -> None:
    """Columns of every size come back, in order, under associated data for all or for each."""
    key = await _make(token)
    for count in (0, 1, 2, 64, 65, 1000):
        items = [os.urandom(number % 300) for number in range(count)]
        for aads in (AAD, pack_column([b"%d" % number for number in range(count)])):
            sealed = await _encrypt(token, key, items, aads)
            _check(list(sealed.statuses) == [0] * count, "every item is encrypted")
            outputs = unpack_column(sealed.outputs)
            sizes = [len(item) + 28 for item in items]
            _check([len(output) for output in outputs] == sizes, "IV 12, ciphertext, tag 16")
            opened = await _decrypt(token, key, outputs, aads)
            _check(unpack_column(opened.outputs) == items, "plaintexts come back in order")
    large = [os.urandom(ITEM_SIZE_MAX)] * 65
    outputs = unpack_column((await _encrypt(token, key, large)).outputs)
    opened = await _decrypt(token, key, outputs)
    _check(unpack_column(opened.outputs) == large, "items of 64 KiB come back")


async def check_ivs_differ(token: Token, arena: Arena) -> None:
    """No two items have one IV, and none is zero."""
    sealed = await _encrypt(token, await _make(token), [b""] * 300)
    ivs = {item[:12] for item in unpack_column(sealed.outputs)}
    _check(len(ivs) == 300 and bytes(12) not in ivs, "300 different IVs")


async def check_bad_items_fail_alone(token: Token, arena: Arena) -> None:
    """A changed, cut or foreign item is invalid; its neighbours open."""
    key, other = await _make(token), await _make(token)
    good, changed, cut = unpack_column((await _encrypt(token, key, [b"good"] * 3)).outputs)
    (foreign,) = unpack_column((await _encrypt(token, other, [b"x"])).outputs)
    changed = changed[:-1] + bytes([changed[-1] ^ 1])
    batch = [good, changed, cut[:-5], b"", cut[:27], foreign, good]
    opened = await _decrypt(token, key, batch)
    _check(list(opened.statuses) == [0, 1, 1, 1, 1, 1, 0], "only the good items open")
    expected = [b"good", b"", b"", b"", b"", b"", b"good"]
    _check(unpack_column(opened.outputs) == expected, "a bad item has no output")
    again = await _decrypt(token, key, [good], pack_column([b"other"]))
    _check(list(again.statuses) == [1], "other associated data does not open")


async def check_malformed_columns_are_refused(token: Token, arena: Arena) -> None:
    """Columns that are none, and associated data for another number of items."""
    key = await _make(token)
    column = pack_column([b"a", b"b", b"c"])
    for items, aads in ((b"\0\0", AAD), (column[:-1], AAD), (column, pack_column([b"", b""]))):
        for crypt in (token.encrypt, token.decrypt):
            call = crypt(key, items, aads, deadline=_deadline(), tenant=TENANT)
            await _refused(call, ValueError)


async def check_signatures_verify(token: Token, arena: Arena) -> None:
    """Every algorithm's signature verifies under the public key the token gave, with every spec."""
    for spec in SIGNING_SPECS:
        key = await _make(token, spec)
        for algorithm in ALGORITHMS.values():
            if algorithm.family != KEY_SPECS[spec].family:
                continue
            if (algorithm.scheme == "ECDSA") != algorithm.raw:
                continue
            name, digest = algorithm.name.removesuffix("_RAW"), os.urandom(algorithm.digest_size)
            signature = await token.sign(key, name, digest, deadline=_deadline(), tenant=TENANT)
            verify_with(key.public_key, algorithm, digest, signature)
        await token.prove(key, deadline=_deadline())
        await token.destroy(key, deadline=_deadline())


async def check_missing_and_wrong_keys_are_refused(token: Token, arena: Arena) -> None:
    """An object that is not there, or not the key its proof names, does nothing."""
    key, other = await _make(token), await _make(token)
    missing = HsmKey(os.urandom(16), "AES_256", key.proof, b"")
    unproven = HsmKey(key.cka_id, "AES_256", b"", b"")
    swapped = HsmKey(other.cka_id, "AES_256", key.proof, b"")
    for bad, error in (
        (missing, KeyMissing),
        (swapped, KeyQuarantined),
        (unproven, KeyQuarantined),
    ):
        await _refused(_encrypt(token, bad, [b"x"]), error)
        await _refused(_decrypt(token, bad, [b"x"]), error)
        await _refused(token.prove(bad, deadline=_deadline()), error)
    for good in (key, other):
        await token.prove(good, deadline=_deadline())
        await _encrypt(token, good, [b"x"])


async def check_private_keys_prove_themselves(token: Token, arena: Arena) -> None:
    """A private key signs only for the public key it belongs to."""
    key, other = await _make(token, "EC_P256"), await _make(token, "EC_P256")
    swapped = HsmKey(key.cka_id, "EC_P256", b"", other.public_key)
    missing = HsmKey(os.urandom(16), "EC_P256", b"", other.public_key)
    for bad, error in ((swapped, KeyQuarantined), (missing, KeyMissing)):
        await _refused(token.prove(bad, deadline=_deadline()), error)
        call = token.sign(bad, "ECDSA_SHA_256", bytes(32), deadline=_deadline(), tenant=TENANT)
        await _refused(call, error)
    await token.prove(key, deadline=_deadline())


async def check_a_wrapping_key_proves_itself_and_does_nothing_else(
    token: Token, arena: Arena
) -> None:
    """It unwraps what it wrapped, and neither encrypts nor decrypts."""
    key, other = await _make(token, role="wrapping"), await _make(token, role="wrapping")
    await token.prove(key, deadline=_deadline())
    swapped = replace(other, proof=key.proof)
    missing = replace(key, cka_id=os.urandom(16))
    malformed = replace(key, proof=b"x")
    for bad, error in (
        (swapped, KeyQuarantined),
        (missing, KeyMissing),
        (malformed, KeyQuarantined),
    ):
        await _refused(token.prove(bad, deadline=_deadline()), error)
    await _refused(_encrypt(token, key, [b"x"]), KeyQuarantined, KeyMissing)


async def check_what_is_not_offered_is_refused(token: Token, arena: Arena) -> None:
    """Unknown specs and roles, and algorithms of other keys, by their own error."""
    deadline = _deadline()
    await _refused(token.generate("AES_999", os.urandom(16), deadline=deadline), Unsupported)
    unknown = token.generate("AES_256", os.urandom(16), deadline=deadline, role="none")
    await _refused(unknown, Unsupported)
    key = await _make(token, "EC_P256")
    for name in ("RSA_PSS_SHA_256", "ECDSA_SHA_1"):
        call = token.sign(key, name, bytes(32), deadline=deadline, tenant=TENANT)
        await _refused(call, Unsupported)


async def check_objects_are_listed_and_destroyed(token: Token, arena: Arena) -> None:
    """What was made is listed once; what was destroyed is gone, for every worker at once."""
    keys = [await _make(token), await _make(token, "EC_P256")]
    listed = await token.list_objects(deadline=_deadline())
    found = [(item.cka_id, item.object_class, item.key_type) for item in listed]
    expected = [
        (keys[0].cka_id, "SECRET_KEY", "AES"),
        (keys[1].cka_id, "PRIVATE_KEY", "EC"),
    ]
    _check([found.count(item) for item in expected] == [1, 1], "each key is listed once")
    for _ in range(8):
        await _encrypt(token, keys[0], [b"x"])
    for key in (*keys, keys[0]):
        await token.destroy(key, deadline=_deadline())
    names = [item.cka_id for item in await token.list_objects(deadline=_deadline())]
    _check(not {key.cka_id for key in keys} & set(names), "destroyed keys are gone")
    for _ in range(8):
        await _refused(_encrypt(token, keys[0], [b"x"]), KeyMissing)


async def check_no_two_objects_have_one_name(token: Token, arena: Arena) -> None:
    """A CKA_ID that is taken is refused, and the object that has it is left alone."""
    key = await _make(token)
    for spec in ("AES_256", "EC_P256"):
        await _refused(token.generate(spec, key.cka_id, deadline=_deadline()), InvalidInput)
    await token.prove(key, deadline=_deadline())


async def check_a_dropped_key_can_be_found_again(token: Token, arena: Arena) -> None:
    """Forgetting a key does nothing to it."""
    key = await _make(token)
    (sealed,) = unpack_column((await _encrypt(token, key, [b"x"])).outputs)
    await token.drop_key(key, deadline=_deadline())
    opened = await _decrypt(token, key, [sealed])
    _check(unpack_column(opened.outputs) == [b"x"], "the key still opens what it sealed")


async def check_a_root_seals_and_opens(token: Token, arena: Arena) -> None:
    """A slot goes through the root and comes back; changed or moved seals do not open."""
    root, other = await _make(token, role="root"), await _make(token, role="root")
    slot = arena.generate()
    sealed = await token.seal_slot(root, slot, b"bound", deadline=_deadline())
    opened = await token.open_slot(root, sealed, b"bound", deadline=_deadline())
    same = arena.hmac_sha256(slot, b"") == arena.hmac_sha256(opened, b"")
    _check(same and slot != opened, "the same key in another slot")
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for key, bad, bound in (
        (root, sealed, b"other"),
        (root, changed, b"bound"),
        (root, sealed[:40], b""),
        (other, sealed, b"bound"),
    ):
        await _refused(token.open_slot(key, bad, bound, deadline=_deadline()), InvalidInput)
    arena.free(slot)
    arena.free(opened)


async def check_random(token: Token, arena: Arena) -> None:
    """The length asked for, and never the same twice."""
    for length in (0, 1, 64, 1023, 1024, 1025, 4096):
        _check(len(await token.random(length, deadline=_deadline())) == length, "every byte")
    found = {await token.random(16, deadline=_deadline()) for _ in range(50)}
    _check(len(found) == 50, "fresh bytes")


async def check_data_objects_are_kept_or_refused(token: Token, arena: Arena) -> None:
    """Values come back under their label and no other; a token without data objects says so."""
    first, second = os.urandom(DATA_SIZE_MAX), os.urandom(100)
    try:
        await token.put_data("conformance", first, deadline=_deadline())
    except Unsupported:
        _check(not await _data(token), "a token that refuses data objects has none")
        return
    for _ in range(2):
        await token.put_data("conformance", second, deadline=_deadline())
    await token.put_data("conformance other", second, deadline=_deadline())
    _check(await _data(token) == sorted([first, second]), "every value, once")
    too_large = os.urandom(DATA_SIZE_MAX + 1)
    call = token.put_data("conformance", too_large, deadline=_deadline())
    await _refused(call, InvalidInput)
    names = [item.object_class for item in await token.list_objects(deadline=_deadline())]
    _check("DATA" not in names, "a data object is no key")
    for _ in range(2):
        await token.remove_data("conformance", first, deadline=_deadline())
    _check(await _data(token) == [second], "what was removed is gone, and nothing else")
    await token.remove_data("conformance", second, deadline=_deadline())
    _check(await _data(token, "conformance other") == [second], "another label is left alone")
    await token.remove_data("conformance other", second, deadline=_deadline())


async def _data(token: Token, label: str = "conformance") -> list[bytes]:
    try:
        return sorted(await token.list_data(label, deadline=_deadline()))
    except Unsupported:
        return []


async def check_a_past_deadline_is_refused(token: Token, arena: Arena) -> None:
    """Nothing is begun for a caller that stopped waiting."""
    key, root = await _make(token), await _make(token, role="root")
    signer = await _make(token, "EC_P256")
    slot, column, past = arena.generate(), pack_column([b"x"] * 100), time.monotonic() - 1
    unmade = os.urandom(16)
    for call in (
        token.generate("AES_256", unmade, deadline=past),
        token.destroy(key, deadline=past),
        token.list_objects(deadline=past),
        token.encrypt(key, column, AAD, deadline=past, tenant=TENANT),
        token.decrypt(key, column, AAD, deadline=past, tenant=TENANT),
        token.sign(signer, "ECDSA_SHA_256", bytes(32), deadline=past, tenant=TENANT),
        token.random(1, deadline=past),
        token.prove(key, deadline=past),
        token.list_data("conformance", deadline=past),
        token.put_data("conformance", b"x", deadline=past),
        token.remove_data("conformance", b"x", deadline=past),
        token.seal_slot(root, slot, b"", deadline=past),
        token.open_slot(root, bytes(60), b"", deadline=past),
    ):
        await _refused(call, TokenDeadlineExceeded)
    names = [item.cka_id for item in await token.list_objects(deadline=_deadline())]
    _check(unmade not in names and key.cka_id in names, "nothing was made or destroyed")
    arena.free(slot)


async def check_tenants_take_turns(token: Token, arena: Arena) -> None:
    """One item of a polite tenant is done long before a flood of another's."""
    key = await _make(token)
    done = 0

    async def flood() -> None:
        nonlocal done
        await _encrypt(token, key, [b"x" * 100] * 64, tenant=b"flood")
        done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(FLOOD_COLUMNS):
            nursery.start_soon(flood)
        await trio.testing.wait_all_tasks_blocked()
        before = done
        await _encrypt(token, key, [b"x"], tenant=b"polite")
        _check(done - before <= FLOOD_DONE_MAX, "tenants take turns")


async def check_tenants_take_turns_in_making_keys(token: Token, arena: Arena) -> None:
    """A tenant that wants many keys delays one of another tenant by few of them."""
    made: list[HsmKey] = []
    done = 0

    async def flood() -> None:
        nonlocal done
        key = await token.generate("EC_P256", os.urandom(16), deadline=_deadline(), tenant=b"flood")
        made.append(key)
        done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(FLOOD_KEYS):
            nursery.start_soon(flood)
        # All of them are in the queue, and hardly one is made.
        await trio.lowlevel.checkpoint()
        before = done
        made.append(
            await token.generate("EC_P256", os.urandom(16), deadline=_deadline(), tenant=b"polite")
        )
        _check(done - before <= FLOOD_KEYS_DONE_MAX, "tenants take turns in making keys")
    for key in made:
        await token.destroy(key, deadline=_deadline())


async def check_cancelled_callers_leave_nothing_behind(token: Token, arena: Arena) -> None:
    """Callers that go away leave no permit taken and nothing waiting."""
    key = await _make(token)
    for number in range(CANCELLED_CALLS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_encrypt, token, key, [b"x"] * 200)
            nursery.start_soon(_encrypt, token, key, [b"x"])
            for _ in range(number % 8):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    await _encrypt(token, key, [b"x"] * 200)
    _check(token.statistics().waiting == 0, "nothing waits for a caller that has gone")


async def check_different_work_goes_side_by_side(token: Token, arena: Arena) -> None:
    """Callers of every kind at a time, each gets its own answer."""
    key, signer = await _make(token), await _make(token, "EC_P256")
    algorithm = ALGORITHMS["ECDSA_SHA_256_RAW"]

    async def crypt(number: int) -> None:
        items = [b"%d" % number] * (number + 1)
        sealed = await _encrypt(token, key, items, tenant=b"%d" % (number % 3))
        opened = await _decrypt(token, key, unpack_column(sealed.outputs))
        _check(unpack_column(opened.outputs) == items, "its own plaintexts")

    async def sign(number: int) -> None:
        digest = bytes([number]) * 32
        deadline = _deadline()
        signature = await token.sign(
            signer, "ECDSA_SHA_256", digest, deadline=deadline, tenant=TENANT
        )
        verify_with(signer.public_key, algorithm, digest, signature)

    async def make(number: int) -> None:
        made = await _make(token)
        await _encrypt(token, made, [b"x"])
        await token.destroy(made, deadline=_deadline())

    async with trio.open_nursery() as nursery:
        for number in range(24):
            for work in (crypt, sign, make) if number % 6 == 0 else (crypt, sign):
                nursery.start_soon(work, number)


TOKEN_CHECKS: Final[tuple[Callable[[Token, Arena], Awaitable[None]], ...]] = (
    check_what_is_encrypted_decrypts,
    check_ivs_differ,
    check_bad_items_fail_alone,
    check_malformed_columns_are_refused,
    check_signatures_verify,
    check_missing_and_wrong_keys_are_refused,
    check_private_keys_prove_themselves,
    check_a_wrapping_key_proves_itself_and_does_nothing_else,
    check_what_is_not_offered_is_refused,
    check_objects_are_listed_and_destroyed,
    check_no_two_objects_have_one_name,
    check_a_dropped_key_can_be_found_again,
    check_a_root_seals_and_opens,
    check_random,
    check_data_objects_are_kept_or_refused,
    check_a_past_deadline_is_refused,
    check_tenants_take_turns,
    check_tenants_take_turns_in_making_keys,
    check_cancelled_callers_leave_nothing_behind,
    check_different_work_goes_side_by_side,
)


async def check_token(token: Token, arena: Arena) -> None:
    """Run every check on a token that may be thrown away.

    Raises:
        AssertionError: The token does not conform; says what was expected.
    """
    for check in TOKEN_CHECKS:
        await check(token, arena)
