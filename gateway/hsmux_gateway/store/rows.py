"""The rows of the store as values, and the tables they belong to.

A row is a frozen struct. Its fields are, in this order: the clear columns (in the order of the
schema, which is the order they are sealed in), the secret columns (kept only inside the seal) and
`row_revision`, the store revision that wrote it. A new row has `row_revision` 0.

Nothing that other processes follow is ever deleted: an alias that is gone points to no key, a
key that is gone is `Destroyed`. So "what changed since revision r" is one indexed question to
each followed table.

Times are milliseconds since 1970 UTC, identifiers 16 bytes. Integers are 0 to 2^63 - 1. Text is
without the character U+0000, which PostgreSQL cannot hold.
"""

from dataclasses import dataclass
from functools import cached_property
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    NamedTuple,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

__all__ = [
    "ACCESS_POINTS",
    "ALIASES",
    "AUDIT_KEY",
    "AUDIT_OUTBOX",
    "CA_KEY",
    "CLIENT_KEYS",
    "COUNTERS",
    "DEPLOYMENT",
    "GATEWAY_KEYS",
    "IDEMPOTENCY",
    "INTENTS",
    "KEKS",
    "KEK_SEALS",
    "KEYS",
    "KEY_VERSIONS",
    "MTLS_BINDINGS",
    "NETWORK_RULES",
    "POLICIES",
    "REQUESTS",
    "ROOTS",
    "SETTINGS",
    "STATE",
    "SUMMED",
    "TABLES",
    "WRAPPING_KEY",
    "AccessPointRow",
    "AliasRow",
    "ClientKeyRow",
    "Column",
    "CounterRow",
    "DeploymentRow",
    "GatewayKeyRow",
    "IdempotencyRow",
    "IntentRow",
    "KekRow",
    "KekSealRow",
    "Key",
    "KeyRow",
    "KeyVersionRow",
    "MtlsBindingRow",
    "NetworkRuleRow",
    "OutboxRow",
    "PolicyRow",
    "RequestRow",
    "RootRow",
    "Row",
    "SettingRow",
    "StateRow",
    "Table",
    "Value",
    "table_named",
    "table_of",
]

Value: TypeAlias = int | str | bytes | None
Key: TypeAlias = tuple[Value, ...]


class Row(msgspec.Struct, frozen=True):
    """The base of all rows. Its `repr` leaves out what is sealed or secret."""

    hidden: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:
        # Each struct's last field; declared here it would come first.
        @property
        def row_revision(self) -> int: ...

    def __repr__(self) -> str:
        shown = (
            f"{name}=<{len(getattr(self, name))} bytes>"
            if name in self.hidden
            else f"{name}={getattr(self, name)!r}"
            for name in self.__struct_fields__
        )
        return f"{type(self).__name__}({', '.join(shown)})"


class DeploymentRow(Row, frozen=True):
    """The deployment this store belongs to: one row, written when the store is created."""

    singleton: int
    deployment_id: bytes
    format: int
    created_at_ms: int
    row_revision: int = 0


class StateRow(Row, frozen=True):
    """One row whose `row_revision` is the revision of the whole store.

    Attributes:
        rows_sum: The sum over all other rows (see `sealing`); empty while the store is bare.
    """

    hidden = ("rows_sum",)
    singleton: int
    rows_sum: bytes = b""
    row_revision: int = 0


class RootRow(Row, frozen=True):
    """A key that seals key-encryption keys (KEKs).

    Attributes:
        kind: "hsm": a token object; "file": the development root file.
        token: The token's configured name; empty for a file.
        cka_id: The object's CKA_ID; empty for a file.
        proof: Bytes that only this key opens, checked before its first use.
        state: "active" or "retired".
    """

    hidden = ("proof",)
    root_id: bytes
    kind: str
    token: str
    cka_id: bytes
    proof: bytes
    state: str
    created_at_ms: int
    row_revision: int = 0


class KekRow(Row, frozen=True):
    """A key-encryption key; `state` is "active" or "retired"."""

    kek_id: bytes
    state: str
    created_at_ms: int
    row_revision: int = 0


class KekSealRow(Row, frozen=True):
    """A KEK sealed by one root; any number of roots can seal each KEK."""

    hidden = ("kek_sealed",)
    kek_id: bytes
    root_id: bytes
    kek_sealed: bytes
    row_revision: int = 0


CA_KEY: Final = "ca"
"""The gateway key that signs client and server certificates."""

AUDIT_KEY: Final = "audit"
"""The gateway key that signs checkpoints of the audit log."""

WRAPPING_KEY: Final = "wrapping"
"""The gateway key that wraps keys which live outside their token."""


class GatewayKeyRow(Row, frozen=True):
    """A key the gateway made for itself; its name says what for.

    Attributes:
        material: The inner sealed blob of a software key; empty for a token object.
        public_key: SubjectPublicKeyInfo DER; empty for a symmetric key.
        certificate: X.509 DER that goes with it; empty if there is none.
    """

    hidden = ("material", "proof")
    name: str
    spec: str
    token: str
    cka_id: bytes
    public_key: bytes
    certificate: bytes
    material: bytes
    proof: bytes
    state: str
    created_at_ms: int
    row_revision: int = 0


class KeyRow(Row, frozen=True):
    """A key of the Key Service without its material.

    Attributes:
        storage: "hsm" for a token object; empty for a software-protected key.
        token: The token's configured name; empty for a software-protected key.
        current_version: The newest version's number, from 1; 0 while there is none.
        created_by: Who asked for it (an access point).
    """

    key_id: bytes
    spec: str
    usage: str
    protection: str
    storage: str
    token: str
    state: str
    current_version: int
    description: str
    tags: dict[str, str]
    created_at_ms: int
    created_by: bytes
    row_revision: int = 0


class KeyVersionRow(Row, frozen=True):
    """One version of a key.

    Attributes:
        token, cka_id: Where the token object is; empty for a software-protected key.
        public_key: SubjectPublicKeyInfo DER; empty for a symmetric key.
        material: The inner sealed blob of a software key; empty for a token object.
        proof: The inner sealed blob that proves a token object is this key; may be empty.
    """

    hidden = ("material", "proof")
    key_id: bytes
    version: int
    state: str
    token: str
    cka_id: bytes
    public_key: bytes
    material: bytes
    proof: bytes
    created_at_ms: int
    row_revision: int = 0


class AliasRow(Row, frozen=True):
    """A name for a key; None when it is gone, so that others learn of it."""

    name: str
    key_id: bytes | None
    row_revision: int = 0


class AccessPointRow(Row, frozen=True):
    """An application access point.

    Attributes:
        policies: Names of its policies, a line each, ascending.
        network_rules: Names of network rules, likewise; a request must come from inside one.
        requests_per_s: Requests a second, of a batch each item; 0: what the configuration says.
        bytes_per_s: Bytes of requests a second, likewise.
        in_flight: Calls in work at a time, likewise.
    """

    access_point_id: bytes
    name: str
    description: str
    state: str
    policies: str
    network_rules: str
    created_at_ms: int
    requests_per_s: int = 0
    bytes_per_s: int = 0
    in_flight: int = 0
    row_revision: int = 0


class PolicyRow(Row, frozen=True):
    """A policy; its document is empty when it is gone, so that others learn of it."""

    name: str
    document: str
    updated_at_ms: int
    row_revision: int = 0


class NetworkRuleRow(Row, frozen=True):
    """A named list of networks, a line each; empty when it is gone."""

    name: str
    networks: str
    updated_at_ms: int
    row_revision: int = 0


class ClientKeyRow(Row, frozen=True):
    """A client key of an access point: SHA-256 of the SubjectPublicKeyInfo DER identifies it.

    Attributes:
        renews: The client key in whose place it was issued; empty: none.
    """

    client_key_id: bytes
    access_point_id: bytes
    spki_sha256: bytes
    serial: str
    subject: str
    not_before_ms: int
    not_after_ms: int
    state: str
    created_at_ms: int
    renews: bytes = b""
    row_revision: int = 0


class MtlsBindingRow(Row, frozen=True):
    """Whose certificates of other CAs are that carry a URI or a public key.

    Attributes:
        name: `uri:<URI>` or `spki:<SHA-256>`: what a certificate carries.
        access_point_id: Whose it is; None when it is nobody's any more, so that others learn of it.
    """

    name: str
    access_point_id: bytes | None
    row_revision: int = 0


class RequestRow(Row, frozen=True):
    """A request that waits for approvals.

    Attributes:
        request_hash: What approvals are bound to, 32 bytes.
        access_point_id: Who asks.
        operation: What it asks, by name.
        arguments: In readable form, JSON; nothing secret.
        touches: Names of those whose access it would change, a line each.
        approvals: As `access.approvals` writes them.
    """

    hidden = ("arguments", "approvals")
    request_hash: bytes
    access_point_id: bytes
    operation: str
    arguments: str
    touches: str
    approvals: bytes
    asked_at_ms: int
    row_revision: int = 0


class CounterRow(Row, frozen=True):
    """How many uses of a key version have been leased, ever: it over-counts after a crash and
    never under-counts.
    """

    key_id: bytes
    version: int
    leased: int
    row_revision: int = 0


class IntentRow(Row, frozen=True):
    """Something that is about to be done in a token, written before it is begun.

    Attributes:
        kind: What is being done, such as "create_key".
        key_id: The key it is for, or None.
        owner: The process that does it; after `lease_until_ms` anybody may reconcile it.
        arguments: What reconciliation needs to know.
    """

    hidden = ("arguments",)
    intent_id: bytes
    kind: str
    token: str
    cka_id: bytes
    key_id: bytes | None
    owner: str
    arguments: bytes
    created_at_ms: int
    lease_until_ms: int
    row_revision: int = 0


class IdempotencyRow(Row, frozen=True):
    """What an operation with an idempotency token answered."""

    hidden = ("result",)
    access_point_id: bytes
    operation: str
    token: bytes
    arguments_hash: bytes
    result: bytes
    created_at_ms: int
    row_revision: int = 0


class OutboxRow(Row, frozen=True):
    """The audit record of a change, stored with the change, until it is durable in a chain.

    Attributes:
        chain: The chain it belongs into; who has that chain open appends it.
        sequence: A record of that chain which was written before it.
        lease_until_ms: After that, anybody may append it to a chain of his own.
        record: The record's body.
    """

    hidden = ("record",)
    outbox_id: bytes
    chain: bytes
    sequence: int
    lease_until_ms: int
    record: bytes
    row_revision: int = 0


class SettingRow(Row, frozen=True):
    """A named value of the deployment; `secret` is kept only inside the seal."""

    hidden = ("value", "secret")
    name: str
    value: bytes
    secret: bytes
    row_revision: int = 0


R = TypeVar("R", bound=Row)


class Column(NamedTuple):
    """A field of a row: `kind` is int, str, bytes or (a map of texts) dict."""

    name: str
    kind: type
    nullable: bool


@dataclass(frozen=True, eq=False)
class Table(Generic[R]):
    """A table: which row it holds and how its columns are treated.

    Attributes:
        name: The name in the database and inside the seal.
        row: The struct its rows are.
        key: The primary key's columns, the first of the struct.
        unique: Other sets of columns no two rows may share.
        secret: Columns that are kept only inside the seal, the last of the struct.
        json: Clear columns that hold a map of texts and are stored as canonical JSON.
        references: Columns that name the row of another table by its primary key, and that table.
        indexed: Columns that rows are found by, equal to a value or below a bound.
        followed: Whether processes keep its rows in memory and follow its changes.
    """

    name: str
    row: type[R]
    key: tuple[str, ...]
    unique: tuple[tuple[str, ...], ...] = ()
    secret: tuple[str, ...] = ()
    json: tuple[str, ...] = ()
    references: tuple[tuple[str, str], ...] = ()
    indexed: tuple[str, ...] = ()
    followed: bool = False

    @cached_property
    def clear(self) -> tuple[str, ...]:
        """The clear columns in the order of the schema."""
        return self.row.__struct_fields__[: -1 - len(self.secret)]

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The clear columns, then the secret ones."""
        hints = get_type_hints(self.row)
        return tuple(_column(name, hints[name]) for name in (*self.clear, *self.secret))

    @cached_property
    def json_positions(self) -> tuple[int, ...]:
        """Where in `clear` the columns of `json` are."""
        return tuple(self.clear.index(name) for name in self.json)

    def key_of(self, row: R) -> Key:
        """The row's primary key."""
        return tuple(getattr(row, name) for name in self.key)


def _column(name: str, annotation: Any) -> Column:
    nullable = isinstance(annotation, UnionType)
    if nullable:
        (annotation,) = (a for a in get_args(annotation) if a is not NoneType)
    return Column(name, get_origin(annotation) or annotation, nullable)


DEPLOYMENT: Final = Table("deployment", DeploymentRow, ("singleton",))
STATE: Final = Table("state", StateRow, ("singleton",), secret=("rows_sum",))
ROOTS: Final = Table("roots", RootRow, ("root_id",), followed=True)
KEKS: Final = Table("keks", KekRow, ("kek_id",), followed=True)
KEK_SEALS: Final = Table(
    "kek_seals",
    KekSealRow,
    ("kek_id", "root_id"),
    references=(("kek_id", "keks"), ("root_id", "roots")),
    followed=True,
)
GATEWAY_KEYS: Final = Table("gateway_keys", GatewayKeyRow, ("name",), followed=True)
KEYS: Final = Table("keys", KeyRow, ("key_id",), json=("tags",), followed=True)
KEY_VERSIONS: Final = Table(
    "key_versions",
    KeyVersionRow,
    ("key_id", "version"),
    references=(("key_id", "keys"),),
    followed=True,
)
ALIASES: Final = Table(
    "aliases", AliasRow, ("name",), references=(("key_id", "keys"),), followed=True
)
ACCESS_POINTS: Final = Table(
    "access_points", AccessPointRow, ("access_point_id",), unique=(("name",),), followed=True
)
CLIENT_KEYS: Final = Table(
    "client_keys",
    ClientKeyRow,
    ("client_key_id",),
    unique=(("spki_sha256",),),
    references=(("access_point_id", "access_points"),),
    indexed=("access_point_id",),
    followed=True,
)
POLICIES: Final = Table("policies", PolicyRow, ("name",), followed=True)
NETWORK_RULES: Final = Table("network_rules", NetworkRuleRow, ("name",), followed=True)
MTLS_BINDINGS: Final = Table(
    "mtls_bindings",
    MtlsBindingRow,
    ("name",),
    references=(("access_point_id", "access_points"),),
    indexed=("access_point_id",),
    followed=True,
)
SETTINGS: Final = Table("settings", SettingRow, ("name",), secret=("secret",), followed=True)
REQUESTS: Final = Table(
    "requests",
    RequestRow,
    ("request_hash",),
    references=(("access_point_id", "access_points"),),
    indexed=("access_point_id",),
)
COUNTERS: Final = Table("counters", CounterRow, ("key_id", "version"))
INTENTS: Final = Table("intents", IntentRow, ("intent_id",), indexed=("lease_until_ms",))
IDEMPOTENCY: Final = Table(
    "idempotency",
    IdempotencyRow,
    ("access_point_id", "operation", "token"),
    indexed=("created_at_ms",),
)
AUDIT_OUTBOX: Final = Table(
    "audit_outbox",
    OutboxRow,
    ("outbox_id",),
    secret=("record",),
    indexed=("chain", "lease_until_ms"),
)

TABLES: Final[tuple[Table[Any], ...]] = (
    DEPLOYMENT,
    STATE,
    ROOTS,
    KEKS,
    KEK_SEALS,
    GATEWAY_KEYS,
    KEYS,
    KEY_VERSIONS,
    ALIASES,
    ACCESS_POINTS,
    CLIENT_KEYS,
    POLICIES,
    NETWORK_RULES,
    MTLS_BINDINGS,
    SETTINGS,
    REQUESTS,
    COUNTERS,
    INTENTS,
    IDEMPOTENCY,
    AUDIT_OUTBOX,
)
"""All tables, each after those it refers to."""

SUMMED: Final = tuple(table for table in TABLES if table is not STATE)
"""The tables whose rows are in the sum that the state holds."""

_BY_ROW: Final[dict[type[Row], Table[Any]]] = {table.row: table for table in TABLES}


_BY_NAME: Final[dict[str, Table[Any]]] = {table.name: table for table in TABLES}


def table_named(name: str) -> Table[Any]:
    """The table of this name."""
    return _BY_NAME[name]


def table_of(row: type[R]) -> Table[R]:
    """The table that holds rows of this type."""
    return _BY_ROW[row]
