"""The operations that use keys: encrypt, decrypt, their batches, sign, verify, random, public key.

Every handler finds the key version, checks that its state and usage allow the operation, and hands
over to the cipher or signer of the key's protection. Software symmetric keys never wait, so a
single request on one takes the short way through `SoftwareCipher`'s `*_one` functions. Signing and
verifying takes up to milliseconds and goes to threads; what a thread needs of a key is opened
before, here, so that nothing but the event loop touches what is kept open.
"""

import os
from functools import partial
from typing import Any, Final

import structlog

from hsmux_protocol.columns import (
    column_count,
    pack_column,
    pack_u16_column,
    pack_u32_column,
    unpack_column,
)
from hsmux_protocol.envelope import HEADER_SIZE, SUITE_AES_GCM, Header, parse_header
from hsmux_protocol.errors import (
    InternalError,
    InvalidArgument,
    InvalidCiphertext,
    InvalidSignature,
    NotFound,
    WrongState,
)
from hsmux_protocol.keys import ALGORITHMS, Algorithm
from hsmux_protocol.references import KeyReference, format_key_id

from ..call import Call
from ..catalog import Catalog
from ..fairness import FairThreads, Turns
from ..store.rows import KeyRow, KeyVersionRow
from .batches import (
    DECRYPT_ITEM_SIZE,
    DECRYPT_STATUS,
    ENCRYPT_ITEM_SIZE,
    ENCRYPT_STATUS,
    check_context,
    check_fits,
    read_column,
    read_contexts,
    repeat_u32,
    status_column,
)
from .cipher import (
    Cipher,
    HardwareCipher,
    KeyInUse,
    SoftwareCipher,
    invalid_ciphertext,
    only_output,
)
from .hsm_keys import HsmKeys
from .material import Materials
from .signing import check_algorithm, der_from_raw, digest_of, sign_with, verify_with

__all__ = ["CryptographyService"]

log = structlog.get_logger("hsmux.keys")

INLINE: Final = frozenset({"encrypt", "decrypt", "encrypt_batch", "decrypt_batch"})
"""Operations that wait for nothing when the key is software-protected."""

SHRINKAGE_SIZE: Final = SUITE_AES_GCM.overhead_size
"""Bytes an envelope loses at least when it is opened."""

INLINE_ITEMS_MAX: Final = 1024
"""Items of a batch that are looked through in one go: about two milliseconds."""

FROM_MEMORY: Final = frozenset(
    {
        "get_public_key",
        "list_access_points",
        "list_client_keys",
        "list_keys",
        "show_key",
        "show_status",
    }
)
"""Operations that are answered from memory."""


class CryptographyService:
    """Handlers of the operations that use keys.

    Args:
        catalog: Finds keys.
        materials: Open software key material.
        software: The cipher of software-protected keys.
        hardware: The cipher of hardware-protected keys.
        hsm_keys: Finds token objects.
        random_token: The token whose randomness is mixed in, or None.
        signers: Threads that sign and verify.
        turns: Shares the event loop.
    """

    def __init__(
        self,
        catalog: Catalog,
        materials: Materials,
        software: SoftwareCipher,
        hardware: HardwareCipher,
        hsm_keys: HsmKeys,
        random_token: str | None,
        signers: FairThreads,
        turns: Turns,
    ) -> None:
        self._catalog = catalog
        self._materials = materials
        self._software = software
        self._ciphers: dict[str, Cipher] = {"software": software, "hardware": hardware}
        self._hsm_keys = hsm_keys
        self._random_token = random_token
        self._signers = signers
        self._turns = turns

    def runs_inline(self, call: Call) -> bool:
        """Whether this call waits for nothing: a short symmetric operation on a software key, or a
        look into memory.
        """
        if call.operation.name in FROM_MEMORY:
            return True
        if call.operation.name not in INLINE or _is_long(call):
            return False
        reference = call.arguments[0]
        if reference is None:
            reference = _named_by(call.arguments[-1])
        try:
            return (
                reference is not None and self._catalog.find_key(reference).protection == "software"
            )
        except NotFound:
            return True

    def _in_use(self, row: KeyRow, number: int | None) -> KeyInUse:
        if row.usage != "ENCRYPT_DECRYPT":
            raise WrongState(f"{format_key_id(row.key_id)} is for {row.usage}")
        return KeyInUse(row, self._catalog.usable_version(row, number))

    async def encrypt(
        self, call: Call, key: KeyReference, context: bytes, plaintext: bytes
    ) -> list[Any]:
        """One plaintext into one envelope."""
        used = self._in_use(self._catalog.find_key(key), key.version)
        if used.row.protection == "software":
            envelope = self._software.encrypt_one(used, context, plaintext)
        else:
            column, statuses = await self._ciphers[used.row.protection].encrypt(
                used,
                [context],
                pack_column([plaintext]),
                call.deadline,
                tenant=call.principal.access_point_id,
            )
            envelope = only_output(column, statuses, decrypting=False)
        return [envelope, used.row.key_id, used.version.version]

    async def decrypt(
        self, call: Call, key: KeyReference | None, context: bytes, ciphertext: bytes
    ) -> list[Any]:
        """One envelope into one plaintext."""
        header = _read_header(ciphertext)
        used = self._opening(header, key)
        if not ciphertext.startswith(used.header):
            raise invalid_ciphertext()
        if used.row.protection == "software":
            plaintext = self._software.decrypt_one(used, context, ciphertext)
        else:
            column, statuses = await self._ciphers[used.row.protection].decrypt(
                used,
                [context],
                pack_column([ciphertext]),
                call.deadline,
                tenant=call.principal.access_point_id,
            )
            plaintext = only_output(column, statuses, decrypting=True)
        return [plaintext, used.row.key_id, used.version.version]

    def _opening(self, header: Header, pinned: KeyReference | None) -> KeyInUse:
        """The key version an envelope names, if it is the pinned one."""
        row = self._catalog.find_key(KeyReference(header.key_id, None, None))
        if pinned is not None:
            expected = self._catalog.find_key(pinned)
            if expected.key_id != row.key_id or pinned.version not in (None, header.key_version):
                raise InvalidCiphertext("the ciphertext is not of the expected key")
        if header.key_version not in self._catalog.versions.get(row.key_id, {}):
            raise invalid_ciphertext()
        return self._in_use(row, header.key_version)

    async def encrypt_batch(
        self,
        call: Call,
        key: KeyReference,
        context: bytes,
        contexts: bytes | None,
        plaintexts: bytes,
    ) -> list[Any]:
        """A column of plaintexts into a column of envelopes, a status an item."""
        used = self._in_use(self._catalog.find_key(key), key.version)
        check_fits(plaintexts, used.suite.overhead_size, ENCRYPT_ITEM_SIZE)
        items = await self._contexts(call, context, contexts, column_count(plaintexts))
        try:
            column, statuses = await self._ciphers[used.row.protection].encrypt(
                used, items, plaintexts, call.deadline, tenant=call.principal.access_point_id
            )
        except ValueError as error:
            raise InvalidArgument(f"plaintexts: {error}") from None
        return [
            status_column(statuses, ENCRYPT_STATUS),
            column,
            used.row.key_id,
            used.version.version,
        ]

    async def decrypt_batch(
        self,
        call: Call,
        key: KeyReference | None,
        context: bytes,
        contexts: bytes | None,
        ciphertexts: bytes,
    ) -> list[Any]:
        """A column of envelopes of one key into a column of plaintexts, a status an item.

        Most batches are of one key version: then the column goes on as it is. Items of other
        versions of the same key are done version by version.
        """
        items = read_column(ciphertexts, "ciphertexts")
        chosen = await self._contexts(call, context, contexts, len(items))
        row = self._catalog.find_key(key or _first_named(items))
        check_fits(ciphertexts, -SHRINKAGE_SIZE, DECRYPT_ITEM_SIZE)
        groups = await self._versions(call, items, row.key_id)
        # An item can name any of 2^32 versions: only those that exist are worth a look.
        there = groups.keys() & self._catalog.versions.get(row.key_id, {}).keys()
        if key is not None and key.version is not None:
            there &= {key.version}
        for version in there:
            if len(groups[version]) == len(items):
                return await self._open_alike(call, row, version, chosen, ciphertexts)
        outputs: list[bytes] = [b""] * len(items)
        statuses = [1] * len(items)
        versions = [0] * len(items)
        for version in there:
            used, indexes = self._in_use(row, version), groups[version]
            some = chosen if len(chosen) == 1 else [chosen[index] for index in indexes]
            column, found = await self._open(
                call, used, some, pack_column([items[index] for index in indexes])
            )
            for index, output, status in zip(indexes, unpack_column(column), found, strict=True):
                outputs[index], statuses[index], versions[index] = output, status, version
        return [
            pack_u16_column([DECRYPT_STATUS[status] for status in statuses]),
            pack_column(outputs),
            row.key_id,
            pack_u32_column(versions),
        ]

    async def _contexts(
        self, call: Call, context: bytes, contexts: bytes | None, count: int
    ) -> list[bytes]:
        """The contexts of a batch, checked; many of them in turns with other access points."""
        items = read_contexts(context, contexts, count)
        if contexts is not None:
            await self._turns.each(call.principal.access_point_id, set(items), check_context)
        return items

    async def _versions(
        self, call: Call, items: list[bytes], key_id: bytes
    ) -> dict[int, list[int]]:
        """Indexes of items by the version of the key they name; 0 for those of no version."""
        sorting = _Sorting(key_id)
        if _is_long(call):
            tenant = call.principal.access_point_id
            await self._turns.each(tenant, enumerate(items), sorting.add)
        else:
            for indexed in enumerate(items):
                sorting.add(indexed)
        return sorting.groups

    async def _open_alike(
        self, call: Call, row: KeyRow, version: int, contexts: list[bytes], envelopes: bytes
    ) -> list[Any]:
        """A batch whose items are all of one version: the usual case, without touching items."""
        used = self._in_use(row, version)
        column, statuses = await self._open(call, used, contexts, envelopes)
        return [
            status_column(statuses, DECRYPT_STATUS),
            column,
            row.key_id,
            repeat_u32(version, len(statuses)),
        ]

    async def _open(
        self, call: Call, used: KeyInUse, contexts: list[bytes], envelopes: bytes
    ) -> tuple[bytes, Any]:
        return await self._ciphers[used.row.protection].decrypt(
            used, contexts, envelopes, call.deadline, tenant=call.principal.access_point_id
        )

    async def sign(
        self, call: Call, key: KeyReference, algorithm: str, digest: bool, message: bytes
    ) -> list[Any]:
        """A signature of a message or a digest."""
        row = self._catalog.find_key(key)
        chosen = check_algorithm(algorithm, row.spec)
        version = self._catalog.usable_version(row, key.version)
        value = digest_of(chosen, message, digest)
        if row.protection == "software":
            private_key = self._materials.private_key(version)
            signature = await self._signers.run(
                call.principal.access_point_id, partial(sign_with, private_key, chosen, value)
            )
        else:
            signature = await self._sign_hardware(call, row, version, chosen, value)
        return [signature, row.key_id, version.version]

    async def _sign_hardware(
        self,
        call: Call,
        row: KeyRow,
        version: KeyVersionRow,
        algorithm: Algorithm,
        digest: bytes,
    ) -> bytes:
        token, hsm_key = self._hsm_keys.find(row.spec, version)
        signature = await self._hsm_keys.ask(
            lambda: token.sign(
                hsm_key,
                algorithm.name.removesuffix("_RAW"),
                digest,
                deadline=call.deadline,
                tenant=call.principal.access_point_id,
            )
        )
        await self._check_signature(call, version, algorithm, digest, signature)
        is_der = algorithm.scheme == "ECDSA" and not algorithm.raw
        return der_from_raw(signature) if is_der else signature

    async def _check_signature(
        self,
        call: Call,
        version: KeyVersionRow,
        algorithm: Algorithm,
        digest: bytes,
        signature: bytes,
    ) -> None:
        """Verify what a token signed: a flipped bit or another key never leaves the gateway."""
        verified = ALGORITHMS.get(f"{algorithm.name}_RAW", algorithm)
        try:
            await self._signers.run(
                call.principal.access_point_id,
                partial(verify_with, version.public_key, verified, digest, signature),
            )
        except InvalidSignature:
            log.critical(
                "a token made a wrong signature",
                key=format_key_id(version.key_id),
                token=version.token,
                reference=call.reference,
            )
            raise InternalError("the token made a wrong signature; ask the operator") from None

    async def verify(
        self,
        call: Call,
        key: KeyReference,
        algorithm: str,
        digest: bool,
        message: bytes,
        signature: bytes,
    ) -> list[Any]:
        """Whether a signature is valid; InvalidSignature if not."""
        row = self._catalog.find_key(key)
        chosen = check_algorithm(algorithm, row.spec)
        version = self._catalog.usable_version(row, key.version)
        value = digest_of(chosen, message, digest)
        await self._signers.run(
            call.principal.access_point_id,
            partial(verify_with, version.public_key, chosen, value, signature),
        )
        return [row.key_id, version.version]

    async def generate_random(self, call: Call, length: int) -> list[Any]:
        """Random bytes; the token's are mixed in where there is one."""
        random = os.urandom(length)
        if self._random_token is not None:
            token = self._hsm_keys.token(self._random_token)
            more = await self._hsm_keys.ask(lambda: token.random(length, deadline=call.deadline))
            random = bytes(a ^ b for a, b in zip(random, more, strict=True))
        return [random]

    async def get_public_key(self, call: Call, key: KeyReference) -> list[Any]:
        """The public key of a signing key."""
        row = self._catalog.find_key(key)
        if row.usage != "SIGN_VERIFY":
            raise WrongState(f"{format_key_id(row.key_id)} has no public key")
        version = self._catalog.usable_version(row, key.version)
        return [version.public_key, row.spec, row.key_id, version.version]


def _read_header(envelope: bytes) -> Header:
    try:
        return parse_header(envelope)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def _named_by(ciphertexts: bytes) -> KeyReference | None:
    """The key an envelope, or the first one of a column, names; None if it names none."""
    for start in (0, 4 * (column_count(ciphertexts) + 2)):
        header = _header_of(ciphertexts[start : start + HEADER_SIZE])
        if header is not None:
            return KeyReference(header.key_id, None, None)
    return None


def _first_named(items: list[bytes]) -> KeyReference:
    """The key that the first envelope of a batch names.

    Raises:
        InvalidArgument: No item is an envelope.
    """
    for item in items:
        header = _header_of(item[:HEADER_SIZE])
        if header is not None:
            return KeyReference(header.key_id, None, None)
    raise InvalidArgument("ciphertexts: no item is an hsmux envelope")


def _header_of(start: bytes) -> Header | None:
    """The header of an envelope of any length, or None; a short one is refused when opened."""
    try:
        return parse_header(start + bytes(2 * HEADER_SIZE) if len(start) == HEADER_SIZE else b"")
    except ValueError:
        return None


def _is_long(call: Call) -> bool:
    """Whether a batch is so long that it must not be looked through in one go."""
    if not call.operation.name.endswith("_batch"):
        return False
    contexts, items = call.arguments[2:]
    return contexts is not None or column_count(items) > INLINE_ITEMS_MAX


class _Sorting:
    """Sorts items of a batch by the version of one key that they name; 0: by none."""

    def __init__(self, key_id: bytes) -> None:
        self._key_id = key_id
        self._known: dict[bytes, int] = {}
        self.groups: dict[int, list[int]] = {}

    def add(self, indexed: tuple[int, bytes]) -> None:
        """Sort one item, with its index."""
        index, item = indexed
        start = item[:HEADER_SIZE]
        version = self._known.get(start)
        if version is None:
            header = _header_of(start)
            version = header.key_version if header and header.key_id == self._key_id else 0
            self._known[start] = version
        self.groups.setdefault(version, []).append(index)
