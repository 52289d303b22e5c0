"""Approvals: which count, what they are bound to, and how a request waits for them. No I/O.

A request is named by a SHA-256 over who asks, what exactly is asked, and what would be so when it
was done: the policies and networks of every administrator or approver it touches. So an approval
is for one access point, one request and one outcome; if a policy that is only named in the request
is given another document meanwhile, the request has another name and no approval.

An approval counts if, at the moment when the request is done,

    it is not older than a day, nor is the request;
    it was not given by the access point that asks;
    the access point that gave it is enabled, and was there for a day;
    what it was given with, client key or certificate, stands for that access point still;
    the two access points are not known by one public key;
    what holds now would allow it as it was given: from that address, at that time.

Each access point counts once.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import msgpack

from hsmux_protocol.errors import ApprovalsMissing

from ..store.rows import RequestRow

__all__ = [
    "APPROVAL_KEPT_MS",
    "APPROVER_AGE_MS",
    "Approval",
    "Approver",
    "Unapproved",
    "counting",
    "is_expired",
    "name_request",
    "read_approvals",
    "write_approvals",
]

APPROVAL_KEPT_MS: Final = 24 * 3600 * 1000
"""How long a request waits and an approval counts."""

APPROVER_AGE_MS: Final = 24 * 3600 * 1000
"""How long an access point must have been there to approve: who makes one is seen before."""

_NAME: Final = b"hsmux request 1\0"


class Approval(NamedTuple):
    """One approval.

    Attributes:
        access_point_id: Who gave it.
        client_key_id: With which client key; of a certificate of an outside CA the begin of the
            SHA-256 of its public key.
        bindings: What the access point was known by in that certificate; empty: a client key.
        peer_host: From which IP address.
        at_ms: When, milliseconds since 1970 UTC.
    """

    access_point_id: bytes
    client_key_id: bytes
    bindings: tuple[str, ...]
    peer_host: str
    at_ms: int


class Approver(NamedTuple):
    """What is known now of who gave an approval.

    Attributes:
        is_enabled: Whether the access point is.
        has_key: Whether the client key is not revoked, or the certificate still stands for it.
        shares_key: Whether the access point that asks is known by one of its public keys.
        created_at_ms: When the access point was made.
        is_allowed: Whether what holds now would allow the approval as it was given.
    """

    is_enabled: bool
    has_key: bool
    shares_key: bool
    created_at_ms: int
    is_allowed: bool


class Unapproved(Exception):
    """A change wants more approvals. Never leaves the gateway's effects.

    Attributes:
        error: What the caller is told.
        statement: The same for the record.
        waiting: The request to keep for its approvers; None: it is kept already.
    """

    def __init__(
        self, request_hash: bytes, wanted: int, missing: int, waiting: RequestRow | None
    ) -> None:
        self.statement = f"request {request_hash.hex()} lacks {missing} of {wanted} approvals"
        self.error = ApprovalsMissing(
            f"this wants {wanted} approvals and lacks {missing}: others have to approve request "
            f"{request_hash.hex()} within 24 hours, then ask for the same again"
        )
        self.waiting = waiting
        super().__init__(self.statement)


def name_request(access_point_id: bytes, arguments_hash: bytes, outcome: bytes) -> bytes:
    """The SHA-256 that names a request.

    Args:
        access_point_id: Who asks.
        arguments_hash: Of the operation and its canonical arguments.
        outcome: What would be so when it was done, in one sequence of bytes.
    """
    outcome_hash = hashlib.sha256(outcome).digest()
    return hashlib.sha256(_NAME + access_point_id + arguments_hash + outcome_hash).digest()


def is_expired(request: RequestRow, now_ms: int) -> bool:
    """Whether a request waits no longer."""
    return now_ms >= request.asked_at_ms + APPROVAL_KEPT_MS


def counting(
    request: RequestRow, approver_of: Callable[[Approval], Approver | None], now_ms: int
) -> list[Approval]:
    """The approvals of a request that count now, in the order in which they were given.

    Args:
        request: With its approvals.
        approver_of: What is known of who gave one; None: there is no such access point.
        now_ms: Milliseconds since 1970 UTC.
    """
    found: dict[bytes, Approval] = {}
    if is_expired(request, now_ms):
        return []
    for approval in read_approvals(request.approvals):
        is_own = approval.access_point_id == request.access_point_id
        if is_own or now_ms >= approval.at_ms + APPROVAL_KEPT_MS:
            continue
        approver = approver_of(approval)
        if approver is not None and _stands(approver, now_ms):
            found.setdefault(approval.access_point_id, approval)
    return list(found.values())


def _stands(approver: Approver, now_ms: int) -> bool:
    is_old = now_ms >= approver.created_at_ms + APPROVER_AGE_MS
    has_own_key = approver.has_key and not approver.shares_key
    return approver.is_enabled and has_own_key and approver.is_allowed and is_old


def write_approvals(approvals: Iterable[Approval]) -> bytes:
    """The column that holds approvals."""
    packed: bytes = msgpack.packb([list(approval) for approval in approvals])
    return packed


def read_approvals(column: bytes) -> list[Approval]:
    """The approvals of a column."""
    return [Approval(*fields) for fields in msgpack.unpackb(column, use_list=False)]
