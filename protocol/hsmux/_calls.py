"""What each method of a client asks, and what it makes of the answer; no I/O.

A method of `Client` and its twin of `TrioClient` both build their `Call` here, so they cannot
differ in what they send, refuse or return. Arguments are checked against the operation table
before anything is sent: a mistake costs no round trip.
"""

import datetime
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from hsmux_protocol.errors import InvalidArgument, ProtocolError, RemoteProtocolError
from hsmux_protocol.fields import write_fields
from hsmux_protocol.keys import KEY_SPECS
from hsmux_protocol.limits import IDEMPOTENCY_TOKEN_SIZE
from hsmux_protocol.operations import OPERATIONS, OPTIONS, PAGE_ITEMS_MAX, Operation
from hsmux_protocol.records import (
    AccessPointRecord,
    ClientKeyRecord,
    KeyRecord,
    LimitsRecord,
    NetworkRuleRecord,
    PolicyRecord,
    QuorumRecord,
    RequestRecord,
)
from hsmux_protocol.references import ALIAS_PREFIX, format_identifier, format_key_id
from hsmux_protocol.references import parse_identifier as parse

from ._pem import der_of_request, pem_of
from ._retry import check_timeout
from .results import (
    AccessPoint,
    ClientKey,
    Decrypted,
    Encrypted,
    Explanation,
    IssuedClientKey,
    Key,
    NetworkRule,
    PendingRequest,
    Policy,
    PolicyDecision,
    PublicKey,
    Quorum,
    Signature,
    Status,
    TokenStatus,
)

__all__ = [
    "VALIDITY_DAYS_DEFAULT",
    "Call",
    "KeyName",
    "Page",
    "approve_request",
    "create_access_point",
    "create_client_key",
    "create_key",
    "decrypt",
    "delete_access_point",
    "delete_network_rule",
    "delete_policy",
    "encrypt",
    "end_of",
    "explain_reference",
    "following_page",
    "generate_random",
    "list_access_points",
    "list_client_keys",
    "list_keys",
    "list_network_rules",
    "list_policies",
    "list_requests",
    "make_call",
    "options_of",
    "public_key",
    "put_network_rule",
    "put_policy",
    "reference_of",
    "renew_client_key",
    "revoke_client_key",
    "set_quorum",
    "show_access_point",
    "show_client_key",
    "show_key",
    "show_network_rule",
    "show_policy",
    "show_quorum",
    "show_request",
    "sign",
    "status",
    "test_policy",
    "timeout_of",
    "update_access_point",
    "verify",
    "withdraw_request",
]

T = TypeVar("T")
R = TypeVar("R")

KeyName = str | Key
"""How a caller names a key: a reference, or a `Key` that a client returned."""

ACCESS_POINT_PREFIX: Final = "ap-"
CLIENT_KEY_PREFIX: Final = "ck-"

_REQUEST: Final = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)


Limits = tuple[int | None, int | None, int | None]
"""Requests and bytes a second, and requests in flight; None: not named."""

NO_LIMITS: Final[Limits] = (None, None, None)

VALIDITY_DAYS_DEFAULT: Final = 365
"""Days a client key is valid where none are named."""


class Call(NamedTuple, Generic[T]):
    """One request, whatever client sends it.

    Attributes:
        operation: From the operation table.
        arguments: Encodable, in the table's order.
        convert: Makes the method's result of the read result values.
    """

    operation: Operation
    arguments: list[Any]
    convert: Callable[[list[Any]], T]

    def __repr__(self) -> str:
        # Never the arguments: a plaintext is among them.
        return f"Call({self.operation.name})"

    def result(self, values: list[Any]) -> T:
        """The method's result.

        Raises:
            ProtocolError: The values are not what the operation answers.
        """
        try:
            return self.convert(values)
        except (RemoteProtocolError, ValueError, OverflowError) as error:
            raise ProtocolError(f"an answer to {self.operation.name}: {error}") from None


class Page(NamedTuple, Generic[T]):
    """A part of a list: the items and where the next part begins; empty at the end."""

    items: list[T]
    following: bytes


def make_call(name: str, convert: Callable[[list[Any]], T], *arguments: Any) -> Call[T]:
    """A call whose arguments fit the operation table.

    Raises:
        InvalidArgument: One does not; the text names it.
    """
    operation = OPERATIONS[name]
    try:
        return Call(operation, write_fields(operation.arguments, arguments), convert)
    except ValueError as error:
        raise InvalidArgument(f"{name}: {error}") from None


def timeout_of(call: Call[Any], timeout_s: float | None) -> float:
    """Seconds a call has: what the caller says, else the operation's own time.

    Raises:
        InvalidArgument: `timeout_s` is not a number.
    """
    if timeout_s is None:
        return call.operation.deadline_default_ms / 1000
    return check_timeout(timeout_s)


def end_of(now: float, timeout_s: float | None) -> float | None:
    """When all of several requests must be done; None where each has its operation's own time.

    Raises:
        InvalidArgument: `timeout_s` is not a number.
    """
    return None if timeout_s is None else now + check_timeout(timeout_s)


def options_of(call: Call[Any], idempotency_token: bytes | None) -> dict[str, Any]:
    """The option map of a request: a change always has a token, so that it can be sent again.

    Raises:
        InvalidArgument: The token has not 16 bytes.
    """
    if not call.operation.changes:
        return {}
    token = idempotency_token
    if token is None:
        token = secrets.token_bytes(IDEMPOTENCY_TOKEN_SIZE)
    try:
        return {"idempotency_token": OPTIONS["idempotency_token"].write(token)}
    except ValueError as error:
        raise InvalidArgument(f"idempotency_token: {error}") from None


def reference_of(key: KeyName) -> str:
    """The reference of a key that was named in either way."""
    return key.key_id if isinstance(key, Key) else key


def _moment(milliseconds: int) -> datetime.datetime:
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return epoch + datetime.timedelta(milliseconds=milliseconds)


def _key(record: KeyRecord) -> Key:
    return Key(
        format_key_id(record.key_id),
        record.spec,
        record.usage,
        record.protection,
        record.storage,
        record.token,
        record.state,
        record.version,
        tuple(ALIAS_PREFIX + alias for alias in record.aliases),
        record.description,
        record.tags,
        _moment(record.created_at_ms),
    )


def _access_point(record: AccessPointRecord) -> AccessPoint:
    return AccessPoint(
        format_identifier(ACCESS_POINT_PREFIX, record.access_point_id),
        record.name,
        record.description,
        record.state,
        tuple(record.policies),
        tuple(record.network_rules),
        _moment(record.created_at_ms),
        tuple(record.mtls),
        *(limit or 0 for limit in record.limits),
    )


def _policy(record: PolicyRecord, document: str = "") -> Policy:
    return Policy(
        record.name,
        record.description,
        record.statements,
        record.access_points,
        _moment(record.updated_at_ms),
        document,
    )


def _network_rule(record: NetworkRuleRecord) -> NetworkRule:
    return NetworkRule(record.name, tuple(record.networks), _moment(record.updated_at_ms))


def _quorum(record: QuorumRecord) -> Quorum:
    at_ms = record.updated_at_ms
    return Quorum(record.approvals, tuple(record.approvers), _moment(at_ms) if at_ms else None)


def _request_of(record: RequestRecord, arguments: str = "") -> PendingRequest:
    return PendingRequest(
        record.request.hex(),
        record.access_point,
        record.operation,
        tuple(record.touches),
        _moment(record.asked_at_ms),
        _moment(record.expires_at_ms),
        tuple(record.approved_by),
        record.missing,
        arguments,
    )


def _client_key(record: ClientKeyRecord) -> ClientKey:
    return ClientKey(
        format_identifier(CLIENT_KEY_PREFIX, record.client_key_id),
        record.access_point,
        record.spki_sha256,
        record.serial,
        record.state,
        _moment(record.not_before_ms),
        _moment(record.not_after_ms),
        format_identifier(CLIENT_KEY_PREFIX, record.renews) if record.renews else "",
    )


def encrypt(key: KeyName, plaintext: bytes, context: Mapping[str, str] | None) -> Call[Encrypted]:
    """Encrypt one plaintext."""

    def convert(values: list[Any]) -> Encrypted:
        return Encrypted(values[0], format_key_id(values[1]), values[2])

    return make_call("encrypt", convert, reference_of(key), context, plaintext)


def decrypt(
    ciphertext: bytes, context: Mapping[str, str] | None, key: KeyName | None
) -> Call[Decrypted]:
    """Open one envelope."""

    def convert(values: list[Any]) -> Decrypted:
        return Decrypted(values[0], format_key_id(values[1]), values[2])

    pinned = None if key is None else reference_of(key)
    return make_call("decrypt", convert, pinned, context, ciphertext)


def sign(key: KeyName, message: bytes, algorithm: str, digest: bool) -> Call[Signature]:
    """Sign a message or a digest."""

    def convert(values: list[Any]) -> Signature:
        return Signature(values[0], algorithm, format_key_id(values[1]), values[2])

    return make_call("sign", convert, reference_of(key), algorithm, digest, message)


def verify(
    key: KeyName, message: bytes, signature: bytes, algorithm: str, digest: bool
) -> Call[None]:
    """Verify a signature; an answer means that it is valid."""
    return make_call(
        "verify", lambda _: None, reference_of(key), algorithm, digest, message, signature
    )


def public_key(key: KeyName) -> Call[PublicKey]:
    """The public part of a signing key."""

    def convert(values: list[Any]) -> PublicKey:
        return PublicKey(values[0], values[1], format_key_id(values[2]), values[3])

    return make_call("get_public_key", convert, reference_of(key))


def generate_random(length: int) -> Call[bytes]:
    """Random bytes."""

    def convert(values: list[Any]) -> bytes:
        random: bytes = values[0]
        return random

    return make_call("generate_random", convert, length)


def create_key(
    spec: str,
    usage: str | None,
    protection: str | None,
    storage: str | None,
    alias: str | None,
    description: str,
    tags: Mapping[str, str] | None,
) -> Call[Key]:
    """Make a key; what is None follows from the rest."""
    if usage is None:
        known = KEY_SPECS.get(spec) if isinstance(spec, str) else None
        usage = known.usage if known else ""
    if protection is None:
        protection = "hardware" if storage else "software"
    return make_call(
        "create_key",
        lambda values: _key(values[0]),
        spec,
        usage,
        protection,
        storage,
        alias,
        description,
        tags or {},
    )


def show_key(key: KeyName) -> Call[Key]:
    """One key without its material."""
    return make_call("show_key", lambda values: _key(values[0]), reference_of(key))


def _list(name: str, convert: Callable[[Any], R], following: bytes) -> Call[Page[R]]:
    def page(values: list[Any]) -> Page[R]:
        return Page([convert(record) for record in values[0]], values[1])

    return make_call(name, page, following, PAGE_ITEMS_MAX)


def following_page(page: Page[Any], previous: bytes) -> bytes:
    """Where the next page begins; empty at the end of the list.

    Raises:
        ProtocolError: There is no end to this list.
    """
    if page.following and (page.following == previous or not page.items):
        raise ProtocolError("a list that does not go on and does not end")
    return page.following


def list_keys(following: bytes) -> Call[Page[Key]]:
    """A page of keys."""
    return _list("list_keys", _key, following)


def list_access_points(following: bytes) -> Call[Page[AccessPoint]]:
    """A page of access points."""
    return _list("list_access_points", _access_point, following)


def list_client_keys(following: bytes) -> Call[Page[ClientKey]]:
    """A page of client keys."""
    return _list("list_client_keys", _client_key, following)


def list_policies(following: bytes) -> Call[Page[Policy]]:
    """A page of policies."""
    return _list("list_policies", _policy, following)


def list_network_rules(following: bytes) -> Call[Page[NetworkRule]]:
    """A page of network rules."""
    return _list("list_network_rules", _network_rule, following)


def list_requests(following: bytes) -> Call[Page[PendingRequest]]:
    """A page of requests that wait for approvals."""
    return _list("list_requests", _request_of, following)


def _limits(limits: Limits) -> LimitsRecord | None:
    """Limits as a request has them: nothing if none is named."""
    return None if limits == NO_LIMITS else LimitsRecord(*limits)


def create_access_point(
    name: str,
    description: str,
    policies: Sequence[str],
    mtls: Sequence[str],
    limits: Limits = NO_LIMITS,
) -> Call[AccessPoint]:
    """Make an access point."""
    lists = [list(policies), list(mtls)]
    return make_call(
        "create_access_point", _one(_access_point), name, description, *lists, _limits(limits)
    )


def show_access_point(access_point: str) -> Call[AccessPoint]:
    """One access point."""
    return make_call("show_access_point", _one(_access_point), access_point)


def update_access_point(
    access_point: str,
    description: str | None,
    enabled: bool | None,
    moved: tuple[Sequence[str], ...],
    limits: Limits = NO_LIMITS,
) -> Call[AccessPoint]:
    """Change an access point.

    Args:
        access_point: Which one.
        description: New words; None: those that are there.
        enabled: Whether it is accepted; None: as it is.
        moved: Policies to add and to remove, network rules and certificates of other CAs likewise.
        limits: Those that are not None change.
    """
    state = None if enabled is None else ("Enabled" if enabled else "Disabled")
    arguments = (access_point, description, state, *map(list, moved), _limits(limits))
    return make_call("update_access_point", _one(_access_point), *arguments)


def delete_access_point(access_point: str) -> Call[AccessPoint]:
    """Refuse an access point for ever."""
    return make_call("delete_access_point", _one(_access_point), access_point)


def put_policy(name: str, document: str) -> Call[Policy]:
    """Make or replace a policy."""
    return make_call("put_policy", _one(_policy), name, document)


def show_policy(name: str) -> Call[Policy]:
    """One policy with its document."""
    return make_call("show_policy", lambda values: _policy(*values), name)


def delete_policy(name: str) -> Call[Policy]:
    """Remove a policy."""
    return make_call("delete_policy", _one(_policy), name)


def explain_reference(reference: str) -> Call[Explanation]:
    """What was decided of a request."""

    def convert(values: list[Any]) -> Explanation:
        point, operation, resource, outcome, statement, policy, text, since, now = values[1:10]
        return Explanation(
            _moment(values[0]),
            point,
            operation,
            resource,
            outcome,
            statement,
            policy,
            text,
            since,
            now,
            tuple(values[10]),
        )

    return make_call("explain_reference", convert, reference)


def test_policy(
    access_point: str,
    operation: str,
    resource: KeyName | None,
    context: Mapping[str, str] | None,
    address: str | None,
    size: int,
) -> Call[PolicyDecision]:
    """What would be decided."""
    return make_call(
        "test_policy",
        lambda values: PolicyDecision(values[0], values[1], tuple(values[2])),
        access_point,
        operation,
        None if resource is None else reference_of(resource),
        context,
        address,
        size,
    )


def put_network_rule(name: str, networks: Sequence[str]) -> Call[NetworkRule]:
    """Make or replace a network rule."""
    return make_call("put_network_rule", _one(_network_rule), name, list(networks))


def show_network_rule(name: str) -> Call[NetworkRule]:
    """One network rule."""
    return make_call("show_network_rule", _one(_network_rule), name)


def delete_network_rule(name: str) -> Call[NetworkRule]:
    """Remove a network rule."""
    return make_call("delete_network_rule", _one(_network_rule), name)


def _one(convert: Callable[[Any], R]) -> Callable[[list[Any]], R]:
    """What makes a result of an answer that is one record."""
    return lambda values: convert(values[0])


def show_client_key(client_key_id: str) -> Call[ClientKey]:
    """One client key."""
    return _with_client_key("show_client_key", client_key_id)


def create_client_key(
    access_point: str, csr: bytes | None, validity_days: int
) -> Call[IssuedClientKey]:
    """Issue a client certificate."""
    name = "create_client_key"
    return make_call(name, _issued, access_point, _request(name, csr), validity_days)


def renew_client_key(
    client_key_id: str | None, csr: bytes | None, force: bool
) -> Call[IssuedClientKey]:
    """Issue a client certificate in the place of another; None: of the one that is used."""
    name = "renew_client_key"
    renewed = None if client_key_id is None else _client_key_id(name, client_key_id)
    return make_call(name, _issued, renewed, _request(name, csr), force)


def _issued(values: list[Any]) -> IssuedClientKey:
    record, certificate, ca, private_key = values
    return IssuedClientKey(
        _client_key(record),
        pem_of("CERTIFICATE", certificate),
        pem_of("CERTIFICATE", ca),
        None if private_key is None else private_key.decode("ascii"),
    )


def _request(name: str, csr: bytes | None) -> bytes | None:
    try:
        return None if csr is None else der_of_request(csr)
    except ValueError as error:
        raise InvalidArgument(f"{name}: {error}") from None


def revoke_client_key(client_key_id: str) -> Call[ClientKey]:
    """Refuse a client key from now on."""
    return _with_client_key("revoke_client_key", client_key_id)


def _with_client_key(name: str, client_key_id: str) -> Call[ClientKey]:
    return make_call(name, _one(_client_key), _client_key_id(name, client_key_id))


def _client_key_id(name: str, client_key_id: str) -> bytes:
    try:
        if not isinstance(client_key_id, str):
            raise ValueError(f"client_key_id: must be text, {CLIENT_KEY_PREFIX}<identifier>")
        return parse(CLIENT_KEY_PREFIX, client_key_id)
    except ValueError as error:
        raise InvalidArgument(f"{name}: {error}") from None


def set_quorum(approvals: int) -> Call[Quorum]:
    """Set how many approvals are needed."""
    return make_call("set_quorum", _one(_quorum), approvals)


def show_quorum() -> Call[Quorum]:
    """How many approvals are needed."""
    return make_call("show_quorum", _one(_quorum))


def approve_request(request: str) -> Call[PendingRequest]:
    """Approve a request."""
    return _with_request("approve_request", _one(_request_of), request)


def show_request(request: str) -> Call[PendingRequest]:
    """One request with its arguments."""
    return _with_request("show_request", lambda values: _request_of(*values), request)


def withdraw_request(request: str) -> Call[PendingRequest]:
    """Forget a request."""
    return _with_request("withdraw_request", _one(_request_of), request)


def _with_request(
    name: str, convert: Callable[[list[Any]], PendingRequest], request: str
) -> Call[PendingRequest]:
    if not isinstance(request, str) or not _REQUEST.fullmatch(request):
        raise InvalidArgument(f"{name}: request: must be 64 hexadecimal digits")
    return make_call(name, convert, bytes.fromhex(request))


def status() -> Call[Status]:
    """What the gateway is and how it fares."""

    def convert(values: list[Any]) -> Status:
        version, deployment, uptime_s, backend, root, store, revision, *rest = values
        ends, age_s, warnings, tokens = rest
        return Status(
            version,
            deployment.hex(),
            uptime_s,
            backend,
            root,
            store,
            revision,
            age_s,
            tuple(warnings),
            tuple(TokenStatus(*token) for token in tokens),
            _moment(ends.ca_not_after_ms),
            _moment(ends.server_not_after_ms),
            ends.client_keys_ending,
            ends.client_keys_ended,
        )

    return make_call("show_status", convert)
