"""The operations on access points and client keys."""

import datetime
import os
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificatePublicKeyTypes,
)

from hsmux_protocol.errors import Conflict, InvalidArgument, NotFound
from hsmux_protocol.limits import ELEMENTS_MAX, FRAME_SIZE_MAX
from hsmux_protocol.operations import MTLS_MAX, POLICIES_MAX
from hsmux_protocol.records import AccessPointRecord, ClientKeyRecord, LimitsRecord
from hsmux_protocol.references import (
    check_access_point_name,
    check_mtls,
    format_identifier,
)

from ..call import Call
from ..catalog import Catalog, next_page
from ..clock import now_ms
from ..effects import CONFLICTS, Effects
from ..fairness import FairThreads
from ..hsm.errors import TokenError
from ..keys.hsm_keys import presented
from ..store.rows import AccessPointRow, ClientKeyRow, MtlsBindingRow
from ..store.transaction import Reader, Transaction
from .authority import check_request, issue
from .policy_service import require_network_rules, require_policies
from .renewal import Attempts, refuse_renewal, renewed_validity, require_room
from .rules import lines_of
from .safeguards import Safeguards
from .trust import spki_sha256

__all__ = ["AdministrationService", "Authority", "client_key_row", "serial_text"]


RECORD_OVERHEAD: Final = 256
"""Bytes of an access point in a page beside its words and lists: identifier, name, state, time."""

RECORD_ELEMENTS: Final = 16
"""msgpack values of an access point beside the items of its lists."""

PAGE_SIZE_MAX: Final = FRAME_SIZE_MAX - 4096
"""Bytes of access points in one answer."""

PAGE_ELEMENTS_MAX: Final = ELEMENTS_MAX - 64
"""msgpack values of access points in one answer."""


class Authority(Protocol):
    """The deployment's CA as the administration uses it."""

    certificate: x509.Certificate

    def open_key(self) -> CertificateIssuerPrivateKeyTypes:
        """The CA's private key; using it blocks, so only in a thread."""


def client_key_row(
    certificate: x509.Certificate, access_point_id: bytes, *, renews: bytes = b""
) -> ClientKeyRow:
    """The row of a client key for its certificate, which may be in the place of another's."""
    return ClientKeyRow(
        client_key_id=os.urandom(16),
        access_point_id=access_point_id,
        spki_sha256=spki_sha256(certificate),
        serial=serial_text(certificate.serial_number),
        subject=certificate.subject.rfc4514_string(),
        not_before_ms=int(certificate.not_valid_before_utc.timestamp() * 1000),
        not_after_ms=int(certificate.not_valid_after_utc.timestamp() * 1000),
        state="Enabled",
        created_at_ms=now_ms(),
        renews=renews,
    )


def serial_text(serial: int) -> str:
    """A certificate's serial number as other tools show it: hexadecimal, two digits a byte."""
    digits = f"{serial:x}"
    return digits.zfill(len(digits) + len(digits) % 2)


def _access_point_record(row: AccessPointRow, mtls: list[str]) -> AccessPointRecord:
    return AccessPointRecord(
        row.access_point_id,
        row.name,
        row.description,
        row.state,
        lines_of(row.policies),
        lines_of(row.network_rules),
        row.created_at_ms,
        mtls,
        LimitsRecord(row.requests_per_s, row.bytes_per_s, row.in_flight),
    )


def _changed_names(what: str, column: str, add: list[str], remove: list[str]) -> str:
    """A column of names after some came and some went.

    Raises:
        InvalidArgument: There would be too many, or one comes and goes.
    """
    for name in set(add) & set(remove):
        raise InvalidArgument(f"{what} {name}: it cannot be added and removed at once")
    names = sorted({*lines_of(column), *add} - set(remove))
    if len(names) > POLICIES_MAX:
        raise InvalidArgument(f"{what}: {len(names)} of them; at most {POLICIES_MAX}")
    return "\n".join(names)


def _named_limits(limits: LimitsRecord | None) -> dict[str, int]:
    """The columns of the limits that a request names."""
    named = {} if limits is None else limits._asdict()
    return {name: value for name, value in named.items() if value is not None}


def _checked_mtls(names: list[str]) -> list[str]:
    """Each once.

    Raises:
        InvalidArgument: One is nothing that a certificate is known by.
    """
    try:
        return sorted(set(map(check_mtls, names)))
    except ValueError as error:
        raise InvalidArgument(f"mtls: {error}") from None


def _known_by(reader: Reader, row: AccessPointRow) -> list[str]:
    bindings = reader.select(MtlsBindingRow, access_point_id=row.access_point_id)
    return [binding.name for binding in bindings]


def _change_mtls(
    transaction: Transaction, row: AccessPointRow, add: list[str], remove: list[str]
) -> list[str]:
    """Make an access point known by other certificates; by which it is then, ascending.

    Raises:
        InvalidArgument: There would be too many, or one comes and goes.
        Conflict: Another access point is known by one.
    """
    known = set(_known_by(transaction, row))
    if both := set(add) & set(remove):
        raise InvalidArgument(f"mtls {min(both)}: it cannot be added and removed at once")
    for name in known & set(remove):
        _bind(transaction, name, None)
    for name in sorted(set(add) - known):
        _bind(transaction, name, row.access_point_id)
    known = known - set(remove) | set(add)
    if len(known) > MTLS_MAX:
        raise InvalidArgument(f"mtls: {len(known)} of them; at most {MTLS_MAX}")
    return sorted(known)


def _bind(transaction: Transaction, name: str, access_point_id: bytes | None) -> None:
    found = transaction.get(MtlsBindingRow, name)
    if found is None:
        transaction.insert(MtlsBindingRow(name, access_point_id))
    elif found.access_point_id is None or access_point_id is None:
        transaction.update(msgspec.structs.replace(found, access_point_id=access_point_id))
    else:
        # In the words of a caller who may not look at others: no other name is told.
        raise Conflict(f"another access point is known by {name}; take it from that one first")


def _fitting(records: list[AccessPointRecord]) -> list[AccessPointRecord]:
    """As many of a page's records as an answer holds, at least one."""
    size = elements = 0
    for number, record in enumerate(records):
        lists = (record.policies, record.network_rules, record.mtls)
        size += RECORD_OVERHEAD + len(record.description.encode())
        size += sum(len(name) + 3 for names in lists for name in names)
        elements += RECORD_ELEMENTS + sum(map(len, lists))
        if number and (size > PAGE_SIZE_MAX or elements > PAGE_ELEMENTS_MAX):
            return records[:number]
    return records


class AdministrationService:
    """Handlers of the operations on access points and client keys.

    Args:
        catalog: Finds them.
        effects: Stores changes.
        authority: Issues certificates.
        issuing: Threads that check requests and wait for the CA's key.
        safeguards: Looks at changes before they are committed.
    """

    def __init__(
        self,
        catalog: Catalog,
        effects: Effects,
        authority: Authority,
        issuing: FairThreads,
        safeguards: Safeguards,
    ) -> None:
        self._catalog = catalog
        self._safeguards = safeguards
        self._effects = effects
        self._authority = authority
        self._issuing = issuing
        self._attempts = Attempts()

    async def create_access_point(
        self,
        call: Call,
        name: str,
        description: str,
        policies: list[str],
        mtls: list[str],
        limits: LimitsRecord | None,
    ) -> list[Any]:
        """A new, enabled access point."""
        try:
            check_access_point_name(name)
        except ValueError as error:
            raise InvalidArgument(f"name: {error}") from None
        at_ms, known_by = now_ms(), _checked_mtls(mtls)
        names = _changed_names("policies", "", policies, [])
        bare = AccessPointRow(os.urandom(16), name, description, "Enabled", names, "", at_ms)
        row = msgspec.structs.replace(bare, **_named_limits(limits))

        def effect(transaction: Transaction) -> list[Any]:
            require_policies(transaction, policies)
            stored = transaction.insert(row)
            known = _change_mtls(transaction, stored, known_by, [])
            return [_access_point_record(stored, known)]

        return await self._effects.apply(call, effect)

    async def list_access_points(self, call: Call, page: bytes, limit: int) -> list[Any]:
        """A page of access points."""
        found = self._catalog.access_point_order.after(page, limit)
        rows = [self._catalog.access_points[identifier] for identifier in found]
        records = _fitting([self._shown(row) for row in rows])
        following = next_page(found, limit)
        if len(records) < len(found):
            following = records[-1].access_point_id
        return [records, following]

    async def show_access_point(self, call: Call, access_point: str) -> list[Any]:
        """One access point."""
        return [self._shown(self._catalog.find_access_point(access_point))]

    def _shown(self, row: AccessPointRow) -> AccessPointRecord:
        return _access_point_record(row, self._catalog.mtls_of(row.access_point_id))

    async def update_access_point(
        self,
        call: Call,
        access_point: str,
        description: str | None,
        state: str | None,
        add_policies: list[str],
        remove_policies: list[str],
        add_network_rules: list[str],
        remove_network_rules: list[str],
        add_mtls: list[str],
        remove_mtls: list[str],
        limits: LimitsRecord | None,
    ) -> list[Any]:
        """Change what is named of an access point."""
        found = self._catalog.find_access_point(access_point)
        moved = [add_policies, remove_policies, add_network_rules, remove_network_rules]
        known_by = [_checked_mtls(add_mtls), _checked_mtls(remove_mtls)]
        limited = _named_limits(limits)

        def effect(transaction: Transaction) -> list[Any]:
            row = self._standing(transaction, found)
            # Other words take nothing from anybody.
            counts = False
            if any(moved) or any(known_by) or limited or state is not None:
                self._safeguards.refuse_own(call, row.access_point_id)
                counts = self._safeguards.may_administer(transaction, row)
            require_policies(transaction, add_policies)
            require_network_rules(transaction, add_network_rules)
            changed = msgspec.structs.replace(
                row,
                description=row.description if description is None else description,
                state=row.state if state is None else state,
                policies=_changed_names("policies", row.policies, *moved[:2]),
                network_rules=_changed_names("network rules", row.network_rules, *moved[2:]),
                **limited,
            )
            stored = row if changed == row else transaction.update(changed)
            known = _change_mtls(transaction, stored, *known_by)
            if counts:
                self._safeguards.keep_administrator(transaction, call)
            return [_access_point_record(stored, known)]

        return await self._effects.apply(call, effect)

    async def delete_access_point(self, call: Call, access_point: str) -> list[Any]:
        """Refuse an access point for ever; its name stays taken, so that records stay clear."""
        found = self._catalog.find_access_point(access_point)

        def effect(transaction: Transaction) -> list[Any]:
            row = self._standing(transaction, found)
            self._safeguards.refuse_own(call, row.access_point_id)
            counts = self._safeguards.may_administer(transaction, row)
            gone = msgspec.structs.replace(row, state="Deleted", policies="", network_rules="")
            stored = transaction.update(gone)
            # Its certificates may be another one's from now on.
            _change_mtls(transaction, stored, [], _known_by(transaction, stored))
            if counts:
                self._safeguards.keep_administrator(transaction, call)
            return [_access_point_record(stored, [])]

        return await self._effects.apply(call, effect)

    def _standing(self, reader: Reader, found: AccessPointRow) -> AccessPointRow:
        """An access point as the transaction sees it, if it is not deleted.

        Raises:
            NotFound: It is not there any more.
        """
        row = reader.get(AccessPointRow, found.access_point_id)
        if row is None or row.state == "Deleted":
            raise NotFound(f"access point {found.name!r} is deleted")
        return row

    async def create_client_key(
        self, call: Call, access_point: str, csr: bytes | None, validity_days: int
    ) -> list[Any]:
        """A certificate for a request's key, or for a key made here and returned once."""
        owner = self._catalog.find_access_point(access_point)
        validity = datetime.timedelta(days=validity_days)
        private_key, certificate = await self._certify(call, owner.name, csr, validity)
        row = client_key_row(certificate, owner.access_point_id)

        def check(transaction: Transaction) -> None:
            require_room(_keys_of(transaction, owner), now_ms())

        return await self._store_issued(call, owner, row, certificate, private_key, check)

    async def renew_client_key(
        self, call: Call, client_key_id: bytes | None, csr: bytes | None, force: bool
    ) -> list[Any]:
        """A certificate for another key in the place of one that stays accepted until its end."""
        renewed_id = client_key_id or call.principal.client_key_id
        found = self._catalog.client_keys.get(renewed_id)
        if found is None and client_key_id is None:
            raise NotFound("this certificate is of another CA, which renews it: no client key")
        if found is None:
            raise NotFound("there is no such client key")
        owner = self._catalog.access_points[found.access_point_id]
        known = self._catalog.client_keys_of[owner.access_point_id]
        # Before the CA's key is asked for anything, and again when it is certain.
        refuse_renewal(
            found, [self._catalog.client_keys[one] for one in known], now_ms(), force=force
        )
        ca_ends = self._authority.certificate.not_valid_after_utc
        validity = renewed_validity(found, ca_ends, datetime.datetime.now(datetime.UTC))

        def begin() -> None:
            if not force:
                self._attempts.begin(renewed_id, time.monotonic())

        private_key, certificate = await self._certify(call, owner.name, csr, validity, begin)
        row = client_key_row(certificate, owner.access_point_id, renews=renewed_id)

        def check(transaction: Transaction) -> None:
            key = transaction.get(ClientKeyRow, renewed_id)
            if key is None:
                raise NotFound("there is no such client key")
            refuse_renewal(key, _keys_of(transaction, owner), now_ms(), force=force)

        return await self._store_issued(call, owner, row, certificate, private_key, check)

    async def _store_issued(
        self,
        call: Call,
        owner: AccessPointRow,
        row: ClientKeyRow,
        certificate: x509.Certificate,
        private_key: bytes | None,
        check: Callable[[Transaction], None],
    ) -> list[Any]:
        """Store a client key that was certified, if the transaction's check lets it pass."""

        def effect(transaction: Transaction) -> list[Any]:
            self._standing(transaction, owner)
            check(transaction)
            transaction.insert(row)
            return [
                self._client_key_record(row),
                certificate.public_bytes(serialization.Encoding.DER),
                self._authority.certificate.public_bytes(serialization.Encoding.DER),
                private_key,
            ]

        made = "" if private_key is None else format_identifier("ck-", row.client_key_id)
        return await self._effects.apply(call, effect, secret_of=made)

    async def _certify(
        self,
        call: Call,
        name: str,
        csr: bytes | None,
        validity: datetime.timedelta,
        begin: Callable[[], None] = lambda: None,
    ) -> tuple[bytes | None, x509.Certificate]:
        """A certificate for a request's key, or for a key made here, which comes with it.

        What may still refuse it begins in the thread, right before the CA's key is used.
        """

        def certify() -> tuple[bytes | None, x509.Certificate]:
            private_key, public_key = _make_key() if csr is None else (None, self._new_key(csr))
            begin()
            certificate = issue(
                self._authority.certificate,
                self._authority.open_key(),
                public_key,
                common_name=name,
                now=datetime.datetime.now(datetime.UTC),
                validity=validity,
            )
            return private_key, certificate

        try:
            return await self._issuing.run(call.principal.access_point_id, certify)
        except TokenError as error:
            raise presented(error) from error

    def _new_key(self, csr: bytes) -> CertificatePublicKeyTypes:
        """A request's public key, before the CA's key is asked for anything.

        Raises:
            InvalidArgument: It is no request.
            Conflict: A client key has it; that it has none is certain when it is stored.
        """
        try:
            request = check_request(csr)
        except ValueError as error:
            raise InvalidArgument(f"csr: {error}") from None
        if spki_sha256(request) in self._catalog.client_keys_by_spki:
            raise Conflict(CONFLICTS["client_keys.spki_sha256"])
        return request.public_key()

    async def list_client_keys(self, call: Call, page: bytes, limit: int) -> list[Any]:
        """A page of client keys."""
        found = self._catalog.client_key_order.after(page, limit)
        rows = [self._catalog.client_keys[identifier] for identifier in found]
        return [[self._client_key_record(row) for row in rows], next_page(found, limit)]

    async def show_client_key(self, call: Call, client_key_id: bytes) -> list[Any]:
        """One client key."""
        row = self._catalog.client_keys.get(client_key_id)
        if row is None:
            raise NotFound("there is no such client key")
        return [self._client_key_record(row)]

    def _client_key_record(self, row: ClientKeyRow) -> ClientKeyRecord:
        return ClientKeyRecord(
            row.client_key_id,
            self._catalog.access_points[row.access_point_id].name,
            row.spki_sha256,
            row.serial,
            row.state,
            row.not_before_ms,
            row.not_after_ms,
            row.renews,
        )

    async def revoke_client_key(self, call: Call, client_key_id: bytes) -> list[Any]:
        """Refuse a client key from now on; revoking it again changes nothing."""
        if client_key_id not in self._catalog.client_keys:
            raise NotFound("there is no such client key")

        def effect(transaction: Transaction) -> list[Any]:
            row = transaction.get(ClientKeyRow, client_key_id)
            if row is None:
                raise NotFound("there is no such client key")
            if row.state != "Revoked":
                row = transaction.update(msgspec.structs.replace(row, state="Revoked"))
                owner = transaction.get(AccessPointRow, row.access_point_id)
                if self._safeguards.may_administer(transaction, owner):
                    self._safeguards.keep_administrator(transaction, call)
            return [self._client_key_record(row)]

        if client_key_id == call.principal.client_key_id:
            raise Conflict("a client key cannot revoke itself; use another one")
        return await self._effects.apply(call, effect)


def _keys_of(reader: Reader, owner: AccessPointRow) -> list[ClientKeyRow]:
    """Every client key that an access point ever had."""
    return reader.select(ClientKeyRow, access_point_id=owner.access_point_id)


def _make_key() -> tuple[bytes | None, CertificatePublicKeyTypes]:
    """A new P-256 private key as PKCS#8 PEM, and its public key."""
    made = ec.generate_private_key(ec.SECP256R1())
    private_key = made.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private_key, made.public_key()
