"""The operation table: every operation is one record, and everything that lists operations reads
it here.

The wire numbers, the gateway's handlers, the clients' methods, the command's verbs, the audit
vocabulary and PROTOCOL.md are tested against this table. A handler takes the arguments in this
order and under these names; a client method takes them by name. Numbers are never reused.

Deadlines: a request's `budget_ms` of 0 means `deadline_default_ms`; more than `deadline_max_ms`
is cut to it.
"""

from dataclasses import dataclass
from typing import Final, Literal

from .fields import (
    Array,
    Binary,
    Boolean,
    Choice,
    Column,
    Context,
    Field,
    Integer,
    Name,
    Optional,
    Record,
    Reference,
    Tags,
    Text,
)
from .keys import ALGORITHMS, KEY_SPECS, KEY_STATES, PROTECTIONS, STORAGES, USAGES
from .limits import (
    FRAME_SIZE_MAX,
    IDEMPOTENCY_TOKEN_SIZE,
    ITEM_SIZE_MAX,
    RANDOM_SIZE_MAX,
)
from .records import (
    AccessPointRecord,
    ClientKeyRecord,
    ExpiryRecord,
    KeyRecord,
    LimitsRecord,
    NetworkRuleRecord,
    PolicyRecord,
    QuorumRecord,
    RequestRecord,
    TokenRecord,
)
from .references import MTLS_SIZE_MAX

__all__ = [
    "APPROVALS_MAX",
    "APPROVERS_SHOWN_MAX",
    "BYTES_PER_S_MAX",
    "CLIENT_KEYS_MAX",
    "DOCUMENT_SIZE_MAX",
    "ENVELOPE_SIZE_MAX",
    "IN_FLIGHT_MAX",
    "MTLS_MAX",
    "NETWORKS_MAX",
    "OPERATIONS",
    "OPERATION_BY_NUMBER",
    "OPTIONS",
    "PAGE_ITEMS_MAX",
    "PERMISSIONS",
    "POLICIES_MAX",
    "RECORDS",
    "REQUESTS_PER_S_MAX",
    "ROLES",
    "SIGNATURE_SIZE_MAX",
    "TOUCHED_SHOWN_MAX",
    "VALIDITY_DAYS_MAX",
    "Operation",
]

ENVELOPE_SIZE_MAX: Final = ITEM_SIZE_MAX + 1024
SIGNATURE_SIZE_MAX: Final = 512
PAGE_ITEMS_MAX: Final = 100
NAME_SIZE_MAX: Final = 128
DESCRIPTION_SIZE_MAX: Final = 8192
ALIASES_MAX: Final = 100
VALIDITY_DAYS_MAX: Final = 5 * 366
CLIENT_KEYS_MAX: Final = 256
"""Client keys of an access point that are accepted at a time."""
POLICIES_MAX: Final = 16
"""Policies of an access point, and network rules of one."""
MTLS_MAX: Final = 16
"""Certificates of other CAs that one access point is known by."""
DOCUMENT_SIZE_MAX: Final = 16 * 1024
"""Bytes of a policy's document."""
NETWORKS_MAX: Final = 256
"""Networks of a network rule."""
APPROVALS_MAX: Final = 16
"""Approvals that a request can be made to need."""
APPROVERS_SHOWN_MAX: Final = 100
"""Names of approvers that an answer has."""
TOUCHED_SHOWN_MAX: Final = 8
"""Names of those whose access a request would change, in each record of it."""
REQUEST_TEXT_SIZE_MAX: Final = 128 * 1024
"""Bytes of a request's arguments in readable form."""
REQUESTS_PER_S_MAX: Final = 10_000_000
"""Requests a second that a limit of an access point can be."""
BYTES_PER_S_MAX: Final = 2**32 - 1
"""Bytes a second that a limit of an access point can be."""
IN_FLIGHT_MAX: Final = 1_000_000
"""Requests in work that a limit of an access point can be."""
_TIME_MS_MAX: Final = 2**53

OPTIONS: Final[dict[str, Binary]] = {
    "idempotency_token": Binary(IDEMPOTENCY_TOKEN_SIZE, IDEMPOTENCY_TOKEN_SIZE),
}
"""What a request's option map may hold; `idempotency_token` only for operations that change
something.
"""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
        number: On the wire.
        name: Everywhere: verb_noun.
        summary: One sentence for documents and help.
        arguments: What a request carries, in order.
        results: What an answer carries, in order.
        permission: What a policy must grant.
        changes: Whether it changes stored state; such a request may carry an idempotency token
            and is never repeated by itself once sent without one.
        deadline_default_ms: Time in milliseconds when the caller names none.
        deadline_max_ms: The longest time in milliseconds a caller can ask for.
        plane: "data" uses keys, "control" manages things.
        resource: What a policy may name: "key": the key of its first reference or envelope;
            "new key": the names a key is made with; empty: nothing, so only `*` grants it.
        roles: Roles of policies that grant its permission.
        quorum: When it needs the approvals of others where the deployment wants any: "never";
            "always"; "administrators": when it changes the access of one that can administer access
            or approve.
        own: What a caller may have it for without any grant: "client key": for the client key
            that it proved; empty: nothing.
        command: The command's verb, or empty where a batch or a client does it.
    """

    number: int
    name: str
    summary: str
    arguments: tuple[Field, ...]
    results: tuple[Field, ...]
    permission: str
    changes: bool = False
    deadline_default_ms: int = 10_000
    deadline_max_ms: int = 60_000
    plane: Literal["data", "control"] = "data"
    resource: Literal["", "key", "new key"] = ""
    roles: tuple[str, ...] = ()
    quorum: Literal["never", "always", "administrators"] = "never"
    own: Literal["", "client key"] = ""
    command: str = ""


_KEY: Final = Field("key", Reference())
_CONTEXT: Final = Field("context", Context())
_KEY_ID: Final = Field("key_id", Binary(16, 16))
_KEY_VERSION: Final = Field("key_version", Integer(2**32 - 1, 1))
_USED: Final = (_KEY_ID, _KEY_VERSION)
_ALGORITHM: Final = Field("algorithm", Choice(tuple(ALGORITHMS)))
_MESSAGE: Final = Field("message", Binary(ITEM_SIZE_MAX))
_DIGEST: Final = Field("digest", Boolean())
_CONTEXTS: Final = Field("contexts", Optional(Column(FRAME_SIZE_MAX, items="context")))
_PAGE: Final = Field("page", Binary(64))
_LIMIT: Final = Field("limit", Integer(PAGE_ITEMS_MAX, 1))
_NEXT_PAGE: Final = Field("next_page", Binary(64))
_ACCESS_POINT: Final = Field("access_point", Text(NAME_SIZE_MAX, 1))
_TIME: Final = Integer(_TIME_MS_MAX)
_STATE: Final = Choice(("Enabled", "Disabled", "Revoked"))
_NAME: Final = Field("name", Name())
_POLICIES: Final = Array(Name(), POLICIES_MAX)
_MTLS: Final = Array(Text(MTLS_SIZE_MAX, 1), MTLS_MAX)

KEY_RECORD: Final = Record(
    KeyRecord,
    (
        _KEY_ID,
        Field("spec", Choice(tuple(KEY_SPECS))),
        Field("usage", Choice(USAGES)),
        Field("protection", Choice(PROTECTIONS)),
        Field("storage", Choice(("", *STORAGES))),
        Field("token", Text(NAME_SIZE_MAX)),
        Field("state", Choice(KEY_STATES)),
        Field("version", Integer(2**32 - 1, 1)),
        Field("aliases", Array(Text(NAME_SIZE_MAX, 1), ALIASES_MAX)),
        Field("description", Text(DESCRIPTION_SIZE_MAX)),
        Field("tags", Tags()),
        Field("created_at_ms", _TIME),
    ),
)
LIMITS_RECORD: Final = Record(
    LimitsRecord,
    (
        Field("requests_per_s", Optional(Integer(REQUESTS_PER_S_MAX))),
        Field("bytes_per_s", Optional(Integer(BYTES_PER_S_MAX))),
        Field("in_flight", Optional(Integer(IN_FLIGHT_MAX))),
    ),
)
ACCESS_POINT_RECORD: Final = Record(
    AccessPointRecord,
    (
        Field("access_point_id", Binary(16, 16)),
        Field("name", Text(NAME_SIZE_MAX, 1)),
        Field("description", Text(DESCRIPTION_SIZE_MAX)),
        Field("state", Choice(("Enabled", "Disabled", "Deleted"))),
        Field("policies", _POLICIES),
        Field("network_rules", _POLICIES),
        Field("created_at_ms", _TIME),
        Field("mtls", _MTLS),
        Field("limits", LIMITS_RECORD),
    ),
)
POLICY_RECORD: Final = Record(
    PolicyRecord,
    (
        _NAME,
        Field("description", Text(1024)),
        Field("statements", Integer(2**16)),
        Field("access_points", Integer(2**32)),
        Field("updated_at_ms", _TIME),
    ),
)
NETWORK_RULE_RECORD: Final = Record(
    NetworkRuleRecord,
    (
        _NAME,
        Field("networks", Array(Text(64, 1), NETWORKS_MAX)),
        Field("updated_at_ms", _TIME),
    ),
)
CLIENT_KEY_RECORD: Final = Record(
    ClientKeyRecord,
    (
        Field("client_key_id", Binary(16, 16)),
        _ACCESS_POINT,
        Field("spki_sha256", Binary(32, 32)),
        Field("serial", Text(64)),
        Field("state", _STATE),
        Field("not_before_ms", _TIME),
        Field("not_after_ms", _TIME),
        Field("renews", Binary(16)),
    ),
)
QUORUM_RECORD: Final = Record(
    QuorumRecord,
    (
        Field("approvals", Integer(APPROVALS_MAX)),
        Field("approvers", Array(Text(NAME_SIZE_MAX, 1), APPROVERS_SHOWN_MAX)),
        Field("updated_at_ms", _TIME),
    ),
)
_REQUEST: Final = Field("request", Binary(32, 32))
REQUEST_RECORD: Final = Record(
    RequestRecord,
    (
        _REQUEST,
        _ACCESS_POINT,
        Field("operation", Text(NAME_SIZE_MAX, 1)),
        Field("touches", Array(Text(NAME_SIZE_MAX, 1), TOUCHED_SHOWN_MAX)),
        Field("asked_at_ms", _TIME),
        Field("expires_at_ms", _TIME),
        Field("approved_by", Array(Text(NAME_SIZE_MAX, 1), APPROVALS_MAX)),
        Field("missing", Integer(APPROVALS_MAX)),
    ),
)
_WAITING: Final = (Field("request", REQUEST_RECORD),)
_LIMITS: Final = Field("limits", Optional(LIMITS_RECORD))
_CSR: Final = Field("csr", Optional(Binary(16384, 1)))
_ISSUED: Final = (
    Field("client_key", CLIENT_KEY_RECORD),
    Field("certificate", Binary(16384)),
    Field("ca_certificate", Binary(16384)),
    Field("private_key", Optional(Binary(16384))),
)
EXPIRY_RECORD: Final = Record(
    ExpiryRecord,
    (
        Field("ca_not_after_ms", _TIME),
        Field("server_not_after_ms", _TIME),
        Field("client_keys_ending", Integer(2**32)),
        Field("client_keys_ended", Integer(2**32)),
    ),
)
TOKEN_RECORD: Final = Record(
    TokenRecord,
    (
        Field("name", Text(NAME_SIZE_MAX, 1)),
        Field("state", Text(NAME_SIZE_MAX)),
        Field("workers", Integer(2**16)),
        Field("busy", Integer(2**16)),
        Field("waiting", Integer(2**32)),
        Field("restarts", Integer(2**32)),
    ),
)
RECORDS: Final = (
    KEY_RECORD,
    ACCESS_POINT_RECORD,
    LIMITS_RECORD,
    CLIENT_KEY_RECORD,
    POLICY_RECORD,
    NETWORK_RULE_RECORD,
    QUORUM_RECORD,
    REQUEST_RECORD,
    EXPIRY_RECORD,
    TOKEN_RECORD,
)

_TABLE: Final = (
    Operation(
        1,
        "encrypt",
        "Encrypt one plaintext; the answer is an envelope that names the key version.",
        (_KEY, _CONTEXT, Field("plaintext", Binary(ITEM_SIZE_MAX))),
        (Field("ciphertext", Binary(ENVELOPE_SIZE_MAX)), *_USED),
        permission="encrypt",
        resource="key",
        roles=("crypto-user", "encrypt-only"),
        command="encrypt",
    ),
    Operation(
        2,
        "decrypt",
        "Open one envelope; the key is optional and pins which key it must be.",
        (
            Field("key", Optional(Reference())),
            _CONTEXT,
            Field("ciphertext", Binary(ENVELOPE_SIZE_MAX)),
        ),
        (Field("plaintext", Binary(ITEM_SIZE_MAX)), *_USED),
        permission="decrypt",
        resource="key",
        roles=("crypto-user", "decrypt-only"),
        command="decrypt",
    ),
    Operation(
        3,
        "encrypt_batch",
        "Encrypt many plaintexts under one key; each item has its own status.",
        (_KEY, _CONTEXT, _CONTEXTS, Field("plaintexts", Column(FRAME_SIZE_MAX))),
        (
            Field("statuses", Column(FRAME_SIZE_MAX, items="u16")),
            Field("ciphertexts", Column(FRAME_SIZE_MAX)),
            *_USED,
        ),
        permission="encrypt",
        resource="key",
        roles=("crypto-user", "encrypt-only"),
        deadline_default_ms=30_000,
    ),
    Operation(
        4,
        "decrypt_batch",
        "Open many envelopes of one key; each item has its own status.",
        (
            Field("key", Optional(Reference())),
            _CONTEXT,
            _CONTEXTS,
            Field("ciphertexts", Column(FRAME_SIZE_MAX)),
        ),
        (
            Field("statuses", Column(FRAME_SIZE_MAX, items="u16")),
            Field("plaintexts", Column(FRAME_SIZE_MAX)),
            _KEY_ID,
            Field("key_versions", Column(FRAME_SIZE_MAX, items="u32")),
        ),
        permission="decrypt",
        resource="key",
        roles=("crypto-user", "decrypt-only"),
        deadline_default_ms=30_000,
    ),
    Operation(
        5,
        "sign",
        "Sign a message, or a digest the caller made.",
        (_KEY, _ALGORITHM, _DIGEST, _MESSAGE),
        (Field("signature", Binary(SIGNATURE_SIZE_MAX)), *_USED),
        permission="sign",
        resource="key",
        roles=("crypto-user",),
        command="sign",
    ),
    Operation(
        6,
        "verify",
        "Verify a signature; an answer means it is valid.",
        (_KEY, _ALGORITHM, _DIGEST, _MESSAGE, Field("signature", Binary(SIGNATURE_SIZE_MAX))),
        _USED,
        permission="verify",
        resource="key",
        roles=("crypto-user", "verifier"),
        command="verify",
    ),
    Operation(
        7,
        "generate_random",
        "Random bytes from the operating system, mixed with the token's where there is one.",
        (Field("length", Integer(RANDOM_SIZE_MAX, 1)),),
        (Field("random", Binary(RANDOM_SIZE_MAX)),),
        permission="generate_random",
        roles=("crypto-user",),
        command="random",
    ),
    Operation(
        8,
        "get_public_key",
        "The public key of a signing key as SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7).",
        (_KEY,),
        (Field("der", Binary(4096)), Field("spec", Choice(tuple(KEY_SPECS))), *_USED),
        permission="get_public_key",
        resource="key",
        roles=("crypto-user", "verifier", "key-admin", "auditor"),
        command="key public",
    ),
    Operation(
        32,
        "create_key",
        "Make a key; an alias may be given with it.",
        (
            Field("spec", Choice(tuple(KEY_SPECS))),
            Field("usage", Choice(USAGES)),
            Field("protection", Choice(PROTECTIONS)),
            Field("storage", Optional(Choice(STORAGES))),
            Field("alias", Optional(Text(NAME_SIZE_MAX + len("alias/"), 1))),
            Field("description", Text(DESCRIPTION_SIZE_MAX)),
            Field("tags", Tags()),
        ),
        (Field("key", KEY_RECORD),),
        permission="create_key",
        resource="new key",
        roles=("key-admin",),
        changes=True,
        deadline_default_ms=30_000,
        deadline_max_ms=120_000,
        plane="control",
        command="key create",
    ),
    Operation(
        33,
        "list_keys",
        "Keys in the order of their identifiers, a page at a time.",
        (_PAGE, _LIMIT),
        (Field("keys", Array(KEY_RECORD, PAGE_ITEMS_MAX)), _NEXT_PAGE),
        permission="list_keys",
        roles=("key-admin", "auditor"),
        plane="control",
        command="key list",
    ),
    Operation(
        34,
        "show_key",
        "One key without its material.",
        (_KEY,),
        (Field("key", KEY_RECORD),),
        permission="show_key",
        resource="key",
        roles=("crypto-user", "key-admin", "auditor"),
        plane="control",
        command="key show",
    ),
    Operation(
        64,
        "create_access_point",
        "Make an access point: the identity of one application.",
        (
            Field("name", Text(NAME_SIZE_MAX, 1)),
            Field("description", Text(DESCRIPTION_SIZE_MAX)),
            Field("policies", _POLICIES),
            Field("mtls", _MTLS),
            _LIMITS,
        ),
        (Field("access_point", ACCESS_POINT_RECORD),),
        permission="create_access_point",
        roles=("access-admin",),
        changes=True,
        quorum="administrators",
        plane="control",
        command="access-point create",
    ),
    Operation(
        65,
        "list_access_points",
        "Access points in the order of their identifiers, a page at a time.",
        (_PAGE, _LIMIT),
        (Field("access_points", Array(ACCESS_POINT_RECORD, PAGE_ITEMS_MAX)), _NEXT_PAGE),
        permission="list_access_points",
        roles=("access-admin", "auditor"),
        plane="control",
        command="access-point list",
    ),
    Operation(
        66,
        "show_access_point",
        "One access point.",
        (_ACCESS_POINT,),
        (Field("access_point", ACCESS_POINT_RECORD),),
        permission="show_access_point",
        plane="control",
        roles=("access-admin", "auditor"),
        command="access-point show",
    ),
    Operation(
        67,
        "update_access_point",
        "Change what is not nil; give or take policies, network rules and other CAs' certificates.",
        (
            _ACCESS_POINT,
            Field("description", Optional(Text(DESCRIPTION_SIZE_MAX))),
            Field("state", Optional(Choice(("Enabled", "Disabled")))),
            Field("add_policies", _POLICIES),
            Field("remove_policies", _POLICIES),
            Field("add_network_rules", _POLICIES),
            Field("remove_network_rules", _POLICIES),
            Field("add_mtls", _MTLS),
            Field("remove_mtls", _MTLS),
            _LIMITS,
        ),
        (Field("access_point", ACCESS_POINT_RECORD),),
        permission="update_access_point",
        changes=True,
        quorum="administrators",
        plane="control",
        roles=("access-admin",),
        command="access-point update",
    ),
    Operation(
        68,
        "delete_access_point",
        "Refuse an access point for ever; its name is not given again.",
        (_ACCESS_POINT,),
        (Field("access_point", ACCESS_POINT_RECORD),),
        permission="delete_access_point",
        changes=True,
        quorum="administrators",
        plane="control",
        roles=("access-admin",),
        command="access-point delete",
    ),
    Operation(
        72,
        "create_client_key",
        "Issue a client certificate, for a PKCS#10 request or with a gateway-made private key.",
        (
            _ACCESS_POINT,
            _CSR,
            Field("validity_days", Integer(VALIDITY_DAYS_MAX, 1)),
        ),
        _ISSUED,
        permission="create_client_key",
        roles=("access-admin",),
        changes=True,
        quorum="administrators",
        plane="control",
        command="client-key create",
    ),
    Operation(
        73,
        "list_client_keys",
        "Client keys in the order of their identifiers, a page at a time.",
        (_PAGE, _LIMIT),
        (Field("client_keys", Array(CLIENT_KEY_RECORD, PAGE_ITEMS_MAX)), _NEXT_PAGE),
        permission="list_client_keys",
        roles=("access-admin", "auditor"),
        plane="control",
        command="client-key list",
    ),
    Operation(
        74,
        "revoke_client_key",
        "Refuse a client key from now on, on open connections too.",
        (Field("client_key_id", Binary(16, 16)),),
        (Field("client_key", CLIENT_KEY_RECORD),),
        permission="revoke_client_key",
        roles=("access-admin",),
        changes=True,
        quorum="administrators",
        plane="control",
        command="client-key revoke",
    ),
    Operation(
        75,
        "show_client_key",
        "One client key.",
        (Field("client_key_id", Binary(16, 16)),),
        (Field("client_key", CLIENT_KEY_RECORD),),
        permission="show_client_key",
        plane="control",
        roles=("access-admin", "auditor"),
        command="client-key show",
    ),
    Operation(
        76,
        "renew_client_key",
        "Issue a client certificate with a new key in the place of one that is still accepted.",
        (
            Field("client_key_id", Optional(Binary(16, 16))),
            _CSR,
            Field("force", Boolean()),
        ),
        _ISSUED,
        permission="renew_client_key",
        roles=("access-admin",),
        own="client key",
        changes=True,
        quorum="administrators",
        plane="control",
        command="client-key renew",
    ),
    Operation(
        80,
        "put_policy",
        "Make a policy, or replace it for all access points that have it.",
        (_NAME, Field("document", Text(DOCUMENT_SIZE_MAX, 1))),
        (Field("policy", POLICY_RECORD),),
        permission="put_policy",
        changes=True,
        quorum="administrators",
        plane="control",
        roles=("access-admin",),
        command="policy put",
    ),
    Operation(
        81,
        "show_policy",
        "One policy with its document.",
        (_NAME,),
        (Field("policy", POLICY_RECORD), Field("document", Text(DOCUMENT_SIZE_MAX))),
        permission="show_policy",
        plane="control",
        roles=("access-admin", "auditor"),
        command="policy show",
    ),
    Operation(
        82,
        "list_policies",
        "Policies in the order of their names, a page at a time.",
        (_PAGE, _LIMIT),
        (Field("policies", Array(POLICY_RECORD, PAGE_ITEMS_MAX)), _NEXT_PAGE),
        permission="list_policies",
        plane="control",
        roles=("access-admin", "auditor"),
        command="policy list",
    ),
    Operation(
        83,
        "delete_policy",
        "Remove a policy that no access point has.",
        (_NAME,),
        (Field("policy", POLICY_RECORD),),
        permission="delete_policy",
        changes=True,
        plane="control",
        roles=("access-admin",),
        command="policy delete",
    ),
    Operation(
        84,
        "test_policy",
        "What would be decided of a request, and by which statement.",
        (
            _ACCESS_POINT,
            Field("operation", Text(NAME_SIZE_MAX, 1)),
            Field("resource", Optional(Reference())),
            _CONTEXT,
            Field("address", Optional(Text(64, 1))),
            Field("size", Integer(FRAME_SIZE_MAX)),
        ),
        (
            Field("allowed", Boolean()),
            Field("statement", Text(1024)),
            Field("missing", Array(Text(1024), 64)),
        ),
        permission="test_policy",
        plane="control",
        roles=("access-admin", "auditor"),
        command="policy test",
    ),
    Operation(
        88,
        "put_network_rule",
        "Make a network rule, or replace it wherever it is required.",
        (_NAME, Field("networks", Array(Text(64, 1), NETWORKS_MAX))),
        (Field("network_rule", NETWORK_RULE_RECORD),),
        permission="put_network_rule",
        changes=True,
        quorum="administrators",
        plane="control",
        roles=("access-admin",),
        command="network-rule put",
    ),
    Operation(
        89,
        "show_network_rule",
        "One network rule.",
        (_NAME,),
        (Field("network_rule", NETWORK_RULE_RECORD),),
        permission="show_network_rule",
        plane="control",
        roles=("access-admin", "auditor"),
        command="network-rule show",
    ),
    Operation(
        90,
        "list_network_rules",
        "Network rules in the order of their names, a page at a time.",
        (_PAGE, _LIMIT),
        (Field("network_rules", Array(NETWORK_RULE_RECORD, PAGE_ITEMS_MAX)), _NEXT_PAGE),
        permission="list_network_rules",
        plane="control",
        roles=("access-admin", "auditor"),
        command="network-rule list",
    ),
    Operation(
        91,
        "delete_network_rule",
        "Remove a network rule that nothing requires.",
        (_NAME,),
        (Field("network_rule", NETWORK_RULE_RECORD),),
        permission="delete_network_rule",
        changes=True,
        plane="control",
        roles=("access-admin",),
        command="network-rule delete",
    ),
    Operation(
        96,
        "show_status",
        "What the gateway is and how it fares.",
        (),
        (
            Field("version", Text(64)),
            Field("deployment", Binary(16, 16)),
            Field("uptime_s", Integer(2**32)),
            Field("native_backend", Text(128)),
            Field("root", Text(64)),
            Field("store", Text(64)),
            Field("store_revision", Integer(2**63)),
            Field("expiry", EXPIRY_RECORD),
            Field("anchor_age_s", Optional(Integer(2**32))),
            Field("warnings", Array(Text(1024), 32)),
            Field("tokens", Array(TOKEN_RECORD, 64)),
        ),
        permission="show_status",
        roles=("key-admin", "access-admin", "auditor"),
        plane="control",
        command="status",
    ),
    Operation(
        100,
        "set_quorum",
        "Set how many approvals changes of administrators need; 0: none.",
        (Field("approvals", Integer(APPROVALS_MAX)),),
        (Field("quorum", QUORUM_RECORD),),
        permission="set_quorum",
        changes=True,
        quorum="always",
        plane="control",
        roles=("access-admin",),
        command="quorum set",
    ),
    Operation(
        101,
        "show_quorum",
        "How many approvals changes of administrators need, and who can approve.",
        (),
        (Field("quorum", QUORUM_RECORD),),
        permission="show_quorum",
        plane="control",
        roles=("access-admin", "approver", "auditor"),
        command="quorum show",
    ),
    Operation(
        102,
        "approve_request",
        "Approve what another access point asks.",
        (_REQUEST,),
        _WAITING,
        permission="approve_request",
        changes=True,
        plane="control",
        roles=("approver",),
        command="request approve",
    ),
    Operation(
        103,
        "list_requests",
        "Requests that wait for approvals in the order of their hashes, a page at a time.",
        (_PAGE, _LIMIT),
        (Field("requests", Array(REQUEST_RECORD, PAGE_ITEMS_MAX)), _NEXT_PAGE),
        permission="list_requests",
        plane="control",
        roles=("access-admin", "approver", "auditor"),
        command="request list",
    ),
    Operation(
        104,
        "show_request",
        "One request that waits for approvals, with its arguments as JSON.",
        (_REQUEST,),
        (*_WAITING, Field("arguments", Text(REQUEST_TEXT_SIZE_MAX))),
        permission="show_request",
        plane="control",
        roles=("access-admin", "approver", "auditor"),
        command="request show",
    ),
    Operation(
        105,
        "withdraw_request",
        "Forget a request that waits for approvals, and those it has.",
        (_REQUEST,),
        _WAITING,
        permission="withdraw_request",
        changes=True,
        plane="control",
        roles=("access-admin", "approver"),
        command="request withdraw",
    ),
    Operation(
        120,
        "explain_reference",
        "What was decided of a request that has left a reference, by which statement, and what is "
        "missing.",
        (Field("reference", Text(64, 1)),),
        (
            Field("at_ms", _TIME),
            Field("access_point", Text(1024)),
            Field("operation", Text(NAME_SIZE_MAX)),
            Field("resource", Text(1024)),
            Field("outcome", Text(NAME_SIZE_MAX)),
            Field("statement", Text(1024)),
            Field("policy", Text(1024)),
            Field("text", Text(DOCUMENT_SIZE_MAX)),
            Field("since", Choice(("same", "changed", "gone", "none"))),
            Field("statement_now", Text(1024)),
            Field("missing", Array(Text(1024), 64)),
        ),
        permission="explain_reference",
        plane="control",
        roles=("access-admin", "auditor"),
        command="policy explain",
    ),
)

OPERATIONS: Final[dict[str, Operation]] = {operation.name: operation for operation in _TABLE}
PERMISSIONS: Final = frozenset(operation.permission for operation in _TABLE)
"""All that a policy can grant."""

ROLES: Final[dict[str, frozenset[str]]] = {
    role: frozenset(o.permission for o in _TABLE if role in o.roles)
    for role in sorted({role for operation in _TABLE for role in operation.roles})
}
"""Permissions by role."""

OPERATION_BY_NUMBER: Final[dict[int, Operation]] = {o.number: o for o in _TABLE}
