"""Quorum: a change of administrators is done when enough others have approved it.

Theory of operation
-------------------
Who may change access can come to everything, so where the deployment wants approvals, it does so
for every change of what administrators and approvers have. Which change that is, is not guessed
from its arguments. The effect is made in its transaction, and what they have is compared before and
after: their state, policies with documents, network rules with networks, and client keys. Whoever
was or becomes an administrator or an approver counts, so that nobody makes one unseen. A change
that lacks approvals is taken back with its transaction, as if it had not been asked.

The table says of each operation when it can be such a change (`Operation.quorum`). What a caller
may have without any grant, the renewal of its own client key, gives nobody anything and is none.

Approvals are judged by the rows as they are before the effect, in the same transaction; the request
goes with them when it is done. Transactions of all gateways happen one after the other, so they are
used once.

A request that could not be done anyway is refused as such: only what waits for nothing else is kept
for approvers. How many are kept is limited, and they end after a day.

The number of approvals can never be more than there are access points, beside the one that asks,
that could give them now: a setting or a change after which it would be is refused.
"""

import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgpack
import msgspec
from cryptography import x509

from hsmux_protocol.errors import Conflict
from hsmux_protocol.operations import TOUCHED_SHOWN_MAX
from hsmux_protocol.references import SPKI_PREFIX, format_identifier

from ..call import Call
from ..clock import now_ms
from ..engine import arguments_hash
from ..store.rows import (
    AccessPointRow,
    ClientKeyRow,
    MtlsBindingRow,
    NetworkRuleRow,
    PolicyRow,
    RequestRow,
    SettingRow,
)
from ..store.transaction import Reader, Transaction
from .approvals import (
    APPROVER_AGE_MS,
    Approval,
    Approver,
    Unapproved,
    counting,
    is_expired,
    name_request,
    write_approvals,
)
from .asked import is_own
from .decision import CallFacts, decide
from .policy import network_rules_of
from .rules import lines_of, read_policy
from .safeguards import APPROVAL, Safeguards, grants_in
from .trust import spki_sha256
from .windows import FOREVER_MS

__all__ = [
    "NO_QUORUM",
    "QUORUM",
    "REQUESTS_MAX",
    "REQUESTS_PER_ACCESS_POINT_MAX",
    "Quorum",
    "QuorumSetting",
    "read_setting",
    "write_setting",
]

QUORUM: Final = "quorum"
"""The name of the setting."""

REQUESTS_PER_ACCESS_POINT_MAX: Final = 16
"""Requests of one access point that wait: more than people approve in a day."""

BEGIN_SIZE: Final = 16
"""Bytes of a SHA-256 that name a public key: as many as a principal has."""

REQUESTS_MAX: Final = 256
"""Requests that wait in all: they are read as a whole."""


class QuorumSetting(NamedTuple):
    """What the deployment wants.

    Attributes:
        approvals: How many; 0: none.
        updated_at_ms: When it was set, milliseconds since 1970 UTC; 0: never.
    """

    approvals: int
    updated_at_ms: int


NO_QUORUM: Final = QuorumSetting(0, 0)
"""As a deployment begins."""


def read_setting(reader: Reader) -> QuorumSetting:
    """What is wanted now."""
    row = reader.get(SettingRow, QUORUM)
    return NO_QUORUM if row is None else QuorumSetting(*msgpack.unpackb(row.value))


def write_setting(transaction: Transaction, setting: QuorumSetting) -> None:
    """Want something else from now on."""
    row = SettingRow(QUORUM, msgpack.packb(list(setting)), b"")
    found = transaction.get(SettingRow, QUORUM)
    if found is None:
        transaction.insert(row)
    else:
        transaction.update(msgspec.structs.replace(row, row_revision=found.row_revision))


class _Held(NamedTuple):
    """What an administrator or approver has.

    Attributes:
        name: Of the access point.
        state: Of it.
        policies: Names and documents.
        inside: Names of the network rules it must come from.
        networks: Names and networks of all network rules it depends on.
        mtls: What it is known by in certificates of outside CAs.
        client_keys: Identifiers and states.
    """

    name: str
    state: str
    policies: tuple[tuple[str, str], ...]
    inside: str
    networks: tuple[tuple[str, str], ...]
    mtls: tuple[str, ...]
    client_keys: tuple[tuple[bytes, str], ...]


class Quorum:
    """Sees to it that enough have approved.

    Args:
        safeguards: Knows who is an administrator and who an approver.
        clock: The time, milliseconds since 1970 UTC.
    """

    def __init__(self, safeguards: Safeguards, clock: Callable[[], int] = now_ms) -> None:
        self._safeguards = safeguards
        self.clock = clock

    def do(
        self,
        transaction: Transaction,
        call: Call,
        effect: Callable[[Transaction], list[Any]],
        approved: Callable[[str], None],
    ) -> list[Any]:
        """Do the effect of a call if enough have approved it.

        Args:
            transaction: Of the change.
            call: Who asks for it.
            effect: Writes the rows and returns the result values.
            approved: Told who has approved it, if somebody had to.

        Returns:
            What the effect returns.

        Raises:
            Unapproved: More have to approve it first.
            Conflict: There would not be enough approvers left.
        """
        wanted = read_setting(transaction).approvals
        if call.operation.quorum == "never" or not wanted or is_own(call):
            return effect(transaction)
        ready = self._ready(transaction, call)
        before = self._held(transaction)
        values = effect(transaction)
        after = self._held(transaction)
        touched = sorted(one for one in before | after if before.get(one) != after.get(one))
        if touched:
            self.keep_approvers(transaction, call, wanted)
        elif call.operation.quorum == "administrators":
            return values
        waiting = _request_of(call, touched, before, after, self.clock())
        found, approvals = ready.get(waiting.request_hash, (None, []))
        if found is None or len(approvals) < wanted:
            missing = wanted - len(approvals)
            kept = waiting if found is None else None
            raise Unapproved(waiting.request_hash, wanted, missing, kept)
        transaction.delete(found)
        names = ", ".join(self.names_of(transaction, approvals))
        approved(f"request {waiting.request_hash.hex()} approved by {names}")
        return values

    def keep(self, transaction: Transaction, waiting: RequestRow) -> None:
        """Let a request wait for approvals; forget those that have waited too long.

        Raises:
            Conflict: Too many wait already.
        """
        at_ms, mine, all_of_them = self.clock(), 0, 0
        for row in transaction.select(RequestRow):
            if is_expired(row, at_ms):
                transaction.delete(row)
                continue
            if row.request_hash == waiting.request_hash:
                return
            all_of_them += 1
            mine += row.access_point_id == waiting.access_point_id
        if mine >= REQUESTS_PER_ACCESS_POINT_MAX:
            raise Conflict(
                f"{mine} requests of this access point wait for approvals: withdraw one first"
            )
        if all_of_them >= REQUESTS_MAX:
            raise Conflict(f"{all_of_them} requests wait for approvals: some must be withdrawn")
        transaction.insert(waiting)

    def approvals_of(self, reader: Reader, request: RequestRow) -> list[Approval]:
        """The approvals of a request that count now."""
        asks = _public_keys(reader, request.access_point_id)
        return counting(request, lambda one: self._approver(reader, one, asks), self.clock())

    def names_of(self, reader: Reader, approvals: list[Approval]) -> list[str]:
        """Names of the access points that gave these."""
        points = (reader.get(AccessPointRow, one.access_point_id) for one in approvals)
        return [point.name for point in points if point is not None]

    def keep_approvers(self, reader: Reader, call: Call, wanted: int) -> None:
        """Refuse a setting or a change that would want more approvals than can be given.

        Raises:
            Conflict: It would.
        """
        own = call.principal.access_point_id
        there = sum(one.access_point_id != own for one in self.approvers(reader))
        if there < wanted:
            raise Conflict(
                f"{wanted} approvals are wanted, and beside this access point there would be "
                f"{there} that can approve: enabled, with a client key or certificate, with "
                f"{APPROVAL} granted, made 24 hours ago or longer"
            )

    def lacking(self, reader: Reader) -> str:
        """What an operator should mend if no administrator could get enough approvals; empty: one
        could.
        """
        wanted = read_setting(reader).approvals
        if not wanted:
            return ""
        approve = {row.access_point_id for row in self.approvers(reader)}
        ask = self._usable(reader, self._safeguards.may_administer)
        there = max((len(approve - {row.access_point_id}) for row in ask), default=0)
        if there >= wanted:
            return ""
        return f"{wanted} approvals are wanted, and {there} can be given: see `hsmux quorum show`"

    def approvers(self, reader: Reader) -> list[AccessPointRow]:
        """The access points whose approvals would count now."""
        oldest_ms = self.clock() - APPROVER_AGE_MS
        found = self._usable(reader, self._safeguards.may_approve)
        return [row for row in found if row.created_at_ms <= oldest_ms]

    def _usable(
        self, reader: Reader, may: Callable[[Reader, AccessPointRow], bool]
    ) -> list[AccessPointRow]:
        """The access points that may do something and could connect."""
        can: dict[str, bool] = {}
        found = []
        for row in reader.select(AccessPointRow, state="Enabled"):
            if row.policies not in can:
                can[row.policies] = may(reader, row)
            if can[row.policies] and self._has_key(reader, row, self.clock()):
                found.append(row)
        return found

    def _has_key(self, reader: Reader, row: AccessPointRow, at_ms: int) -> bool:
        keys = reader.select(ClientKeyRow, access_point_id=row.access_point_id, state="Enabled")
        is_there = any(key.not_after_ms > at_ms for key in keys)
        return is_there or bool(_bindings_of(reader, row.access_point_id))

    def _ready(self, reader: Reader, call: Call) -> dict[bytes, tuple[RequestRow, list[Approval]]]:
        """The requests of a caller that wait, with the approvals that count."""
        rows = reader.select(RequestRow, access_point_id=call.principal.access_point_id)
        return {
            row.request_hash: (row, self.approvals_of(reader, row))
            for row in rows
            if row.operation == call.operation.name and not is_expired(row, self.clock())
        }

    def _approver(
        self, reader: Reader, approval: Approval, asks: frozenset[bytes]
    ) -> Approver | None:
        """What is known of who gave an approval, and whether it shares a key with who asks."""
        point = reader.get(AccessPointRow, approval.access_point_id)
        if point is None:
            return None
        given_with = _key_of(reader, approval)
        own = _public_keys(reader, approval.access_point_id) | {given_with}
        grants, networks = grants_in(reader, point)
        facts = CallFacts(
            True,
            True,
            FOREVER_MS,
            approval.at_ms,
            APPROVAL,
            grants=grants,
            is_inside=not networks or any(one.contain(approval.peer_host) for one in networks),
            peer_address=approval.peer_host,
        )
        return Approver(
            point.state == "Enabled",
            bool(given_with),
            not own.isdisjoint(asks),
            point.created_at_ms,
            decide(facts).allowed,
        )

    def _held(self, reader: Reader) -> dict[bytes, _Held]:
        """What every administrator and approver has."""
        counts: dict[str, bool] = {}
        found = {}
        for row in reader.select(AccessPointRow):
            if row.policies not in counts:
                # It depends on the policies alone, and many have the same.
                counts[row.policies] = self._safeguards.may_administer(
                    reader, row
                ) or self._safeguards.may_approve(reader, row)
            if counts[row.policies]:
                found[row.access_point_id] = _held_by(reader, row)
        return found


def _held_by(reader: Reader, row: AccessPointRow) -> _Held:
    policies = [reader.get(PolicyRow, name) for name in lines_of(row.policies)]
    documents = tuple((one.name, one.document) for one in policies if one is not None)
    rules = set(lines_of(row.network_rules)).union(
        *(network_rules_of(read_policy(document)) for _, document in documents if document)
    )
    networks = [reader.get(NetworkRuleRow, name) for name in sorted(rules)]
    keys = reader.select(ClientKeyRow, access_point_id=row.access_point_id)
    return _Held(
        row.name,
        row.state,
        documents,
        row.network_rules,
        tuple((one.name, one.networks) for one in networks if one is not None),
        tuple(one.name for one in _bindings_of(reader, row.access_point_id)),
        tuple((key.client_key_id, key.state) for key in keys),
    )


def _bindings_of(reader: Reader, access_point_id: bytes) -> list[MtlsBindingRow]:
    return reader.select(MtlsBindingRow, access_point_id=access_point_id)


def _public_keys(reader: Reader, access_point_id: bytes) -> frozenset[bytes]:
    """The public keys that an access point is known by: the begins of their SHA-256."""
    keys = reader.select(ClientKeyRow, access_point_id=access_point_id, state="Enabled")
    names = [one.name for one in _bindings_of(reader, access_point_id)]
    spki = [name.removeprefix(SPKI_PREFIX) for name in names if name.startswith(SPKI_PREFIX)]
    return frozenset(
        digest[:BEGIN_SIZE]
        for digest in (*(key.spki_sha256 for key in keys), *map(bytes.fromhex, spki))
    )


def _key_of(reader: Reader, approval: Approval) -> bytes:
    """The begin of the SHA-256 of the public key that an approval was given with; empty: it does
    not stand for the access point any more.
    """
    if approval.bindings:
        rows = (reader.get(MtlsBindingRow, name) for name in approval.bindings)
        stands = any(row and row.access_point_id == approval.access_point_id for row in rows)
        return approval.client_key_id if stands else b""
    key = reader.get(ClientKeyRow, approval.client_key_id)
    return key.spki_sha256[:BEGIN_SIZE] if key is not None and key.state == "Enabled" else b""


def _request_of(
    call: Call,
    touched: list[bytes],
    before: dict[bytes, _Held],
    after: dict[bytes, _Held],
    at_ms: int,
) -> RequestRow:
    """The request that a call is, for approvers."""
    names = sorted((after.get(one) or before[one]).name for one in touched)
    # Without client keys: those that are made have other names each time, and which public key
    # they are for is among the arguments.
    outcome = sorted(list(held[:-1]) for one in touched if (held := after.get(one)) is not None)
    principal = call.principal
    hashed = name_request(
        principal.access_point_id, arguments_hash(call), msgpack.packb([names, outcome])
    )
    return RequestRow(
        hashed,
        principal.access_point_id,
        call.operation.name,
        _readable(call),
        "\n".join(names[:TOUCHED_SHOWN_MAX]),
        write_approvals([]),
        at_ms,
    )


def _readable(call: Call) -> str:
    """The arguments of a call for people, as JSON."""
    fields = call.operation.arguments
    shown = {
        field.name: _SHOWN.get(field.name, _plain)(value)
        for field, value in zip(fields, call.arguments, strict=True)
    }
    return json.dumps(shown, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return {"bytes": len(value)} if isinstance(value, bytes) else value


def _csr(value: bytes | None) -> Any:
    """The public key that a certificate request is for, as `hsmux client-key list` shows it."""
    if value is None:
        return None
    return {"spki_sha256": spki_sha256(x509.load_der_x509_csr(value)).hex()}


def _client_key_id(value: bytes | None) -> str | None:
    return None if value is None else format_identifier("ck-", value)


_SHOWN: Final[dict[str, Callable[[Any], Any]]] = {
    "csr": _csr,
    "client_key_id": _client_key_id,
    "document": json.loads,
}
"""Arguments that people read in another form."""
