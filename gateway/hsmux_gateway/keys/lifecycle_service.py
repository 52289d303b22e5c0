"""The operations that make and show keys.

A hardware key is made in four durable steps, so that no crash loses an acknowledged key or leaves
an object nobody knows of:

    1. an intent row: the CKA_ID we chose, who makes it, until when
    2. the object in the token, made durable and proven there
    3. one transaction: key, version, alias, the answer's memory; the intent ends in it
    4. the answer

After a crash between 1 and 3 the intent expires, and `reconciliation` undoes what it names. A
creation that was so slow that its intent was taken over finds that out in step 3 and fails.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from cryptography.hazmat.primitives import serialization

from hsmux_protocol.errors import Conflict, InvalidArgument, Unavailable, Unsupported
from hsmux_protocol.keys import KEY_SPECS
from hsmux_protocol.limits import ELEMENTS_MAX
from hsmux_protocol.records import KeyRecord
from hsmux_protocol.references import KeyReference, check_alias

from ..call import Call
from ..catalog import Catalog
from ..clock import now_ms
from ..effects import Effects
from ..fairness import FairThreads
from ..logs import structlog
from ..store.rows import AliasRow, IntentRow, KeyRow, KeyVersionRow
from ..store.transaction import Transaction
from .hsm_keys import HsmKeys
from .material import Materials, generate_private_key

__all__ = ["INTENT_LEASE_MS", "LifecycleService", "key_record", "now_ms"]

log = structlog.get_logger("hsmux.keys")

INTENT_LEASE_MS: Final = 300_000
"""Milliseconds a creation may take before anybody may undo it: longer than its longest deadline and
the time a worker may then still be at it.
"""

PAGE_ELEMENTS_MAX: Final = ELEMENTS_MAX - 256
"""msgpack values of one page of keys; a page ends early when tags and aliases fill it."""

PAGE_SIZE_MAX: Final = 512 * 1024
"""Bytes of descriptions, tags and aliases of one page of keys, roughly."""


def key_record(catalog: Catalog, row: KeyRow) -> KeyRecord:
    """A key as answers show it."""
    return KeyRecord(
        row.key_id,
        row.spec,
        row.usage,
        row.protection,
        row.storage,
        row.token,
        row.state,
        row.current_version,
        catalog.aliases_of(row.key_id),
        row.description,
        row.tags,
        row.created_at_ms,
    )


class LifecycleService:
    """Handlers of the operations that make and show keys.

    Args:
        catalog: Finds keys.
        effects: Stores changes.
        materials: Makes and seals software key material.
        hsm_keys: Calls tokens.
        token_name: The token that hardware keys are made in, or None.
        owner: Names this process in intents.
        generators: Threads that make software key pairs.
    """

    def __init__(
        self,
        catalog: Catalog,
        effects: Effects,
        materials: Materials,
        hsm_keys: HsmKeys,
        token_name: str | None,
        owner: str,
        generators: FairThreads,
    ) -> None:
        self._catalog = catalog
        self._effects = effects
        self._materials = materials
        self._hsm_keys = hsm_keys
        self._token_name = token_name
        self._owner = owner
        self._generators = generators

    async def create_key(
        self,
        call: Call,
        spec: str,
        usage: str,
        protection: str,
        storage: str | None,
        alias: str | None,
        description: str,
        tags: dict[str, str],
    ) -> list[Any]:
        """A new key with one version, and an alias for it if one is given."""
        if KEY_SPECS[spec].usage != usage:
            raise InvalidArgument(f"usage: a key of spec {spec} is for {KEY_SPECS[spec].usage}")
        name = self._free_alias(alias)
        row = KeyRow(
            key_id=os.urandom(16),
            spec=spec,
            usage=usage,
            protection=protection,
            storage=self._storage(protection, storage),
            token=self._token_name or "" if protection == "hardware" else "",
            state="Enabled",
            current_version=1,
            description=description,
            tags=tags,
            created_at_ms=now_ms(),
            created_by=call.principal.access_point_id,
        )
        if protection == "software":
            version = await self._make_software(call, row)
            return await self._store(call, row, version, name, lambda transaction: None)
        intent = await self._intend(call, row)
        version = await self._make_hardware(call, row, intent)
        return await self._store(
            call,
            row,
            version,
            name,
            lambda transaction: _finish_own(transaction, intent),
        )

    def _free_alias(self, alias: str | None) -> str | None:
        """The alias' name without prefix; taken ones are refused before anything is made."""
        if alias is None:
            return None
        try:
            name = check_alias(alias)
        except ValueError as error:
            raise InvalidArgument(f"alias: {error}") from None
        if name in self._catalog.aliases:
            raise Conflict(f"alias/{name} is taken")
        return name

    def _storage(self, protection: str, storage: str | None) -> str:
        if protection == "software":
            if storage is not None:
                raise InvalidArgument("storage: only a hardware-protected key has one")
            return ""
        if self._token_name is None:
            raise Unsupported("this gateway has no HSM; it makes software-protected keys only")
        return storage or "hsm"

    async def _make_software(self, call: Call, row: KeyRow) -> KeyVersionRow:
        public_key = b""
        if KEY_SPECS[row.spec].family == "AES":
            material = self._materials.make_symmetric(row.key_id, 1)
        else:
            private_key = await self._generators.run(
                call.principal.access_point_id, partial(generate_private_key, row.spec)
            )
            public_key = private_key.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            material = self._materials.seal_private_key(private_key, row.key_id, 1)
        return KeyVersionRow(
            row.key_id, 1, "Enabled", "", b"", public_key, material, b"", row.created_at_ms
        )

    async def _intend(self, call: Call, row: KeyRow) -> IntentRow:
        at_ms = now_ms()
        intent = IntentRow(
            intent_id=os.urandom(16),
            kind="create_key",
            token=row.token,
            cka_id=os.urandom(16),
            key_id=row.key_id,
            owner=self._owner,
            arguments=row.spec.encode(),
            created_at_ms=at_ms,
            lease_until_ms=at_ms + INTENT_LEASE_MS,
        )
        return await self._effects.write_for(
            call, lambda transaction: transaction.add_intent(intent)
        )

    async def _make_hardware(self, call: Call, row: KeyRow, intent: IntentRow) -> KeyVersionRow:
        token = self._hsm_keys.token(row.token)
        made = await self._hsm_keys.ask(
            lambda: token.generate(
                row.spec,
                intent.cka_id,
                deadline=call.deadline,
                tenant=call.principal.access_point_id,
            )
        )
        proof = self._materials.seal_proof(made.proof, row.key_id, 1) if made.proof else b""
        return KeyVersionRow(
            row.key_id,
            1,
            "Enabled",
            row.token,
            made.cka_id,
            made.public_key,
            b"",
            proof,
            row.created_at_ms,
        )

    async def _store(
        self,
        call: Call,
        row: KeyRow,
        version: KeyVersionRow,
        alias: str | None,
        finish: Callable[[Transaction], None],
    ) -> list[Any]:
        """Key, version, alias, memory and the end of the intent in one transaction."""

        def effect(transaction: Transaction) -> list[Any]:
            transaction.insert(row)
            transaction.insert(version)
            if alias is not None:
                _point_alias(transaction, alias, row.key_id)
            finish(transaction)
            record = key_record(self._catalog, row)
            return [record._replace(aliases=[alias] if alias else [])]

        return await self._effects.apply(call, effect)

    async def show_key(self, call: Call, key: KeyReference) -> list[Any]:
        """One key."""
        return [key_record(self._catalog, self._catalog.find_key(key))]

    async def list_keys(self, call: Call, page: bytes, limit: int) -> list[Any]:
        """A page of keys behind the one whose identifier is `page`."""
        records: list[KeyRecord] = []
        elements = size = 0
        identifiers = self._catalog.key_order.after(page, limit)
        for identifier in identifiers:
            record = key_record(self._catalog, self._catalog.keys[identifier])
            elements += len(record) + len(record.aliases) + 2 * len(record.tags) + 1
            size += len(record.description) * 4 + 600 * len(record.tags) + 130 * len(record.aliases)
            if records and (elements > PAGE_ELEMENTS_MAX or size > PAGE_SIZE_MAX):
                break
            records.append(record)
        is_last = len(records) == len(identifiers) < limit
        return [records, b"" if is_last or not records else records[-1].key_id]


def _finish_own(transaction: Transaction, intent: IntentRow) -> None:
    """End an intent with its effect, unless somebody has taken it over.

    Raises:
        Unavailable: Its object may be gone.
    """
    if transaction.get(IntentRow, intent.intent_id) != intent:
        raise Unavailable("making the key took so long that it was undone", retry_after_ms=0)
    transaction.finish_intent(intent.intent_id)


def _point_alias(transaction: Transaction, name: str, key_id: bytes) -> None:
    """Make an alias; one that was deleted before is used again."""
    gone = transaction.get(AliasRow, name)
    if gone is not None and gone.key_id is None:
        transaction.update(AliasRow(name, key_id, gone.row_revision))
    else:
        transaction.insert(AliasRow(name, key_id))
