"""The operations that use keys: encrypt, decrypt, sign, verify, random, public key.

Every handler finds the key version, checks that its state and usage allow the operation, and hands
over to the cipher or signer of the key's protection. Software symmetric keys never wait, so a
single request on one takes the short way through `SoftwareCipher`'s `*_one` functions, and requests
that came together for one key and context are a column (`*_run`, see `engine`). Signing and
verifying takes up to milliseconds and goes to threads; what a thread needs of a key is opened
before, here, so that nothing but the event loop touches what is kept open.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from hsmux_protocol.columns import (
    column_count,
    pack_column,
    unpack_column,
)
from hsmux_protocol.envelope import HEADER_SIZE, Header
from hsmux_protocol.errors import (
    InternalError,
    InvalidSignature,
    NotFound,
    WrongState,
)
from hsmux_protocol.keys import ALGORITHMS, Algorithm
from hsmux_protocol.references import KeyReference, format_key_id

from ..call import Call, Outcome
from ..catalog import Catalog
from ..fairness import FairThreads
from ..logs import structlog
from ..store.rows import KeyRow, KeyVersionRow
from .batch_service import header_of, is_long, read_header
from .cipher import (
    Cipher,
    HardwareCipher,
    KeyInUse,
    SoftwareCipher,
    invalid_ciphertext,
    key_in_use,
    only_output,
)
from .hsm_keys import HsmKeys
from .material import Materials
from .signing import check_algorithm, der_from_raw, digest_of, sign_with, verify_with

__all__ = ["CryptographyService"]

log = structlog.get_logger("hsmux.keys")

INLINE: Final = frozenset({"encrypt", "decrypt", "encrypt_batch", "decrypt_batch"})
"""Operations that wait for nothing when the key is software-protected."""

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
    ) -> None:
        self._catalog = catalog
        self._materials = materials
        self._software = software
        self._ciphers: dict[str, Cipher] = {"software": software, "hardware": hardware}
        self._hsm_keys = hsm_keys
        self._random_token = random_token
        self._signers = signers

    def runs_inline(self, call: Call) -> bool:
        """Whether this call waits for nothing: a short symmetric operation on a software key, or a
        look into memory.
        """
        if call.operation.name in FROM_MEMORY:
            return True
        if call.operation.name not in INLINE or is_long(call):
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

    async def encrypt(
        self, call: Call, key: KeyReference, context: bytes, plaintext: bytes
    ) -> list[Any]:
        """One plaintext into one envelope."""
        used = key_in_use(self._catalog, self._catalog.find_key(key), key.version)
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

    async def encrypt_run(self, calls: Sequence[Call]) -> list[Outcome] | None:
        """Plaintexts under one key and context: a column for the C module, an answer each."""
        key, context, _ = calls[0].arguments
        used = key_in_use(self._catalog, self._catalog.find_key(key), key.version)
        column, statuses = self._software.encrypt_column(used, context, _last_arguments(calls))
        if any(statuses):
            return None
        key_id, version = used.row.key_id, used.version.version
        return [[envelope, key_id, version] for envelope in unpack_column(column)]

    async def decrypt(
        self, call: Call, key: KeyReference | None, context: bytes, ciphertext: bytes
    ) -> list[Any]:
        """One envelope into one plaintext."""
        header = read_header(ciphertext)
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

    async def decrypt_run(self, calls: Sequence[Call]) -> list[Outcome] | None:
        """Envelopes of one key version and context; one that does not open fails for itself."""
        key, context, first = calls[0].arguments
        used = self._opening(read_header(first), key)
        size_min = used.suite.overhead_size
        envelopes = _last_arguments(calls)
        if not all(len(e) >= size_min and e.startswith(used.header) for e in envelopes):
            return None
        column, statuses = self._software.decrypt_column(used, context, envelopes)
        key_id, version = used.row.key_id, used.version.version
        return [
            invalid_ciphertext() if status else [plaintext, key_id, version]
            for plaintext, status in zip(unpack_column(column), statuses, strict=True)
        ]

    def _opening(self, header: Header, pinned: KeyReference | None) -> KeyInUse:
        """The key version an envelope names, if it is the pinned one.

        Whether a key or version exists that only the envelope names, nobody is told.
        """
        if pinned is not None:
            expected = self._catalog.find_key(pinned)
            if expected.key_id != header.key_id or pinned.version not in (None, header.key_version):
                raise invalid_ciphertext()
        row = self._catalog.keys.get(header.key_id)
        if row is None or header.key_version not in self._catalog.versions.get(row.key_id, {}):
            raise invalid_ciphertext()
        return key_in_use(self._catalog, row, header.key_version)

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
            tenant = call.principal.access_point_id
            more = await self._hsm_keys.ask(
                lambda: token.random(length, deadline=call.deadline, tenant=tenant)
            )
            random = bytes(a ^ b for a, b in zip(random, more, strict=True))
        return [random]

    async def get_public_key(self, call: Call, key: KeyReference) -> list[Any]:
        """The public key of a signing key."""
        row = self._catalog.find_key(key)
        if row.usage != "SIGN_VERIFY":
            raise WrongState(f"{format_key_id(row.key_id)} has no public key")
        version = self._catalog.usable_version(row, key.version)
        return [version.public_key, row.spec, row.key_id, version.version]


def _last_arguments(calls: Sequence[Call]) -> list[bytes]:
    return [call.arguments[-1] for call in calls]


def _named_by(ciphertexts: bytes) -> KeyReference | None:
    """The key an envelope, or the first one of a column, names; None if it names none."""
    for start in (0, 4 * (column_count(ciphertexts) + 2)):
        header = header_of(ciphertexts[start : start + HEADER_SIZE])
        if header is not None:
            return KeyReference(header.key_id, None, None)
    return None
