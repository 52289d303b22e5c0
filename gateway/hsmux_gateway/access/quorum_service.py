"""The operations on quorum and on requests that wait for approvals.

Requests are no part of the catalogue: they are few, short-lived and read by people, so they are
read in the store itself, and go from it when they are over.
"""

import datetime
from typing import Any

import msgspec

from hsmux_protocol.errors import Denied, NotFound
from hsmux_protocol.operations import APPROVALS_MAX, APPROVERS_SHOWN_MAX
from hsmux_protocol.records import QuorumRecord, RequestRecord

from ..call import Call
from ..catalog import next_page
from ..effects import Effects
from ..store.rows import AccessPointRow, MtlsBindingRow, RequestRow
from ..store.transaction import Reader, Transaction
from .approvals import (
    APPROVAL_KEPT_MS,
    APPROVER_AGE_MS,
    Approval,
    is_expired,
    write_approvals,
)
from .quorum import Quorum, QuorumSetting, read_setting, write_setting
from .rules import lines_of

__all__ = ["QuorumService"]


class QuorumService:
    """Handlers of the operations on quorum and requests.

    Args:
        quorum: Judges approvals.
        effects: Stores changes, and reads in the store.
    """

    def __init__(self, quorum: Quorum, effects: Effects) -> None:
        self._quorum = quorum
        self._effects = effects

    async def set_quorum(self, call: Call, approvals: int) -> list[Any]:
        """Another number of approvals, if so many can be given."""

        def effect(transaction: Transaction) -> list[Any]:
            if approvals:
                self._quorum.keep_approvers(transaction, call, approvals)
            if approvals != read_setting(transaction).approvals:
                write_setting(transaction, QuorumSetting(approvals, self._quorum.clock()))
            return [self._quorum_record(transaction)]

        return await self._effects.apply(call, effect)

    async def show_quorum(self, call: Call) -> list[Any]:
        """How many approvals are wanted, and who can give them."""
        return [await self._effects.read(self._quorum_record)]

    async def approve_request(self, call: Call, request: bytes) -> list[Any]:
        """Approve what another access point asks; again, it counts from now."""

        def effect(transaction: Transaction) -> list[Any]:
            row = self._standing(transaction, request)
            self._refuse_approver(transaction, call, row)
            own = call.principal.access_point_id
            kept = [
                one
                for one in self._quorum.approvals_of(transaction, row)
                if one.access_point_id != own
            ]
            if len(kept) < APPROVALS_MAX:
                column = write_approvals([*kept, self._approval(transaction, call)])
                row = transaction.update(msgspec.structs.replace(row, approvals=column))
            return [self._request_record(transaction, row)]

        return await self._effects.apply(call, effect)

    def _approval(self, reader: Reader, call: Call) -> Approval:
        principal, bindings = call.principal, set[str]()
        if principal.outside is not None:
            rows = reader.select(MtlsBindingRow, access_point_id=principal.access_point_id)
            bindings = {row.name for row in rows}.intersection(principal.outside.names)
        return Approval(
            principal.access_point_id,
            principal.client_key_id,
            tuple(sorted(bindings)),
            call.peer_host,
            self._quorum.clock(),
        )

    def _refuse_approver(self, reader: Reader, call: Call, row: RequestRow) -> None:
        """Refuse who asked, and who was made just now.

        Raises:
            Denied: It is one of them.
        """
        own = call.principal.access_point_id
        if own == row.access_point_id:
            raise Denied("nobody approves what its own access point asks")
        point = reader.get(AccessPointRow, own)
        may_from_ms = 0 if point is None else point.created_at_ms + APPROVER_AGE_MS
        if self._quorum.clock() < may_from_ms:
            at = datetime.datetime.fromtimestamp(may_from_ms / 1000, datetime.UTC)
            raise Denied(
                f"access point {call.principal.access_point} is younger than 24 hours: it can "
                f"approve from {at:%Y-%m-%dT%H:%M:%SZ}"
            )

    async def list_requests(self, call: Call, page: bytes, limit: int) -> list[Any]:
        """A page of requests that wait."""

        def read(reader: Reader) -> list[Any]:
            rows = [
                row
                for row in reader.select(RequestRow)
                if row.request_hash > page and not is_expired(row, self._quorum.clock())
            ][:limit]
            records = [self._request_record(reader, row) for row in rows]
            return [records, next_page([row.request_hash for row in rows], limit)]

        return await self._effects.read(read)

    async def show_request(self, call: Call, request: bytes) -> list[Any]:
        """One request with its arguments."""

        def read(reader: Reader) -> list[Any]:
            row = self._standing(reader, request)
            return [self._request_record(reader, row), row.arguments]

        return await self._effects.read(read)

    async def withdraw_request(self, call: Call, request: bytes) -> list[Any]:
        """Forget a request: who asked takes it back, who should approve it refuses."""

        def effect(transaction: Transaction) -> list[Any]:
            row = self._standing(transaction, request)
            record = self._request_record(transaction, row)
            transaction.delete(row)
            return [record]

        return await self._effects.apply(call, effect)

    def _standing(self, reader: Reader, request: bytes) -> RequestRow:
        """A request that waits.

        Raises:
            NotFound: There is none.
        """
        row = reader.get(RequestRow, request)
        if row is None or is_expired(row, self._quorum.clock()):
            raise NotFound("no such request waits: it was done, withdrawn, is over, or never was")
        return row

    def _quorum_record(self, reader: Reader) -> QuorumRecord:
        setting = read_setting(reader)
        names = sorted(row.name for row in self._quorum.approvers(reader))
        return QuorumRecord(setting.approvals, names[:APPROVERS_SHOWN_MAX], setting.updated_at_ms)

    def _request_record(self, reader: Reader, row: RequestRow) -> RequestRecord:
        approvals = self._quorum.approvals_of(reader, row)
        asks = reader.get(AccessPointRow, row.access_point_id)
        return RequestRecord(
            row.request_hash,
            "" if asks is None else asks.name,
            row.operation,
            lines_of(row.touches),
            row.asked_at_ms,
            row.asked_at_ms + APPROVAL_KEPT_MS,
            self._quorum.names_of(reader, approvals),
            max(0, read_setting(reader).approvals - len(approvals)),
        )
