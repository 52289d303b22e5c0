"""The first tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BYTES = sa.LargeBinary()


def upgrade() -> None:
    """Make all tables and the indexes that changes and old rows are found by."""
    _deployment_tables()
    _root_tables()
    _key_tables()
    _access_tables()
    _work_tables()
    for table in (
        "roots",
        "keks",
        "kek_seals",
        "gateway_keys",
        "keys",
        "key_versions",
        "aliases",
        "access_points",
        "client_keys",
        "policies",
        "network_rules",
        "settings",
    ):
        op.create_index(f"{table}_row_revision_index", table, ["row_revision"])
    op.create_index("client_keys_access_point_id_index", "client_keys", ["access_point_id"])
    op.create_index("requests_access_point_id_index", "requests", ["access_point_id"])
    op.create_index("intents_lease_until_ms_index", "intents", ["lease_until_ms"])
    op.create_index("idempotency_created_at_ms_index", "idempotency", ["created_at_ms"])


def _table(name: str, *parts: sa.schema.SchemaItem) -> None:
    op.create_table(
        name,
        *parts,
        sa.Column("row_revision", INTEGER, nullable=False),
        sa.Column("row_kek_id", BYTES, nullable=False),
        sa.Column("row_sealed", BYTES, nullable=False),
        sqlite_strict=True,
    )


def _key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=f"{table}_key")


def _unique(table: str, column: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint(column, name=f"{table}_{column}_unique")


def _reference(table: str, column: str, other: str) -> sa.ForeignKeyConstraint:
    name = f"{table}_{column}_reference"
    return sa.ForeignKeyConstraint([column], [f"{other}.{column}"], name=name)


def _column(name: str, kind: sa.types.TypeEngine[Any], nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=nullable, autoincrement=False)


def _deployment_tables() -> None:
    _table(
        "deployment",
        _column("singleton", INTEGER),
        _column("deployment_id", BYTES),
        _column("format", INTEGER),
        _column("created_at_ms", INTEGER),
        _key("deployment", "singleton"),
    )
    _table(
        "state",
        _column("singleton", INTEGER),
        _key("state", "singleton"),
    )


def _root_tables() -> None:
    _table(
        "roots",
        _column("root_id", BYTES),
        _column("kind", TEXT),
        _column("token", TEXT),
        _column("cka_id", BYTES),
        _column("proof", BYTES),
        _column("state", TEXT),
        _column("created_at_ms", INTEGER),
        _key("roots", "root_id"),
    )
    _table(
        "keks",
        _column("kek_id", BYTES),
        _column("state", TEXT),
        _column("created_at_ms", INTEGER),
        _key("keks", "kek_id"),
    )
    _table(
        "kek_seals",
        _column("kek_id", BYTES),
        _column("root_id", BYTES),
        _column("kek_sealed", BYTES),
        _key("kek_seals", "kek_id", "root_id"),
        _reference("kek_seals", "kek_id", "keks"),
        _reference("kek_seals", "root_id", "roots"),
    )
    _table(
        "gateway_keys",
        _column("name", TEXT),
        _column("spec", TEXT),
        _column("token", TEXT),
        _column("cka_id", BYTES),
        _column("public_key", BYTES),
        _column("certificate", BYTES),
        _column("material", BYTES),
        _column("proof", BYTES),
        _column("state", TEXT),
        _column("created_at_ms", INTEGER),
        _key("gateway_keys", "name"),
    )


def _key_tables() -> None:
    _table(
        "keys",
        _column("key_id", BYTES),
        _column("spec", TEXT),
        _column("usage", TEXT),
        _column("protection", TEXT),
        _column("storage", TEXT),
        _column("token", TEXT),
        _column("state", TEXT),
        _column("current_version", INTEGER),
        _column("description", TEXT),
        _column("tags", TEXT),
        _column("created_at_ms", INTEGER),
        _column("created_by", BYTES),
        _key("keys", "key_id"),
    )
    _table(
        "key_versions",
        _column("key_id", BYTES),
        _column("version", INTEGER),
        _column("state", TEXT),
        _column("token", TEXT),
        _column("cka_id", BYTES),
        _column("public_key", BYTES),
        _column("material", BYTES),
        _column("proof", BYTES),
        _column("created_at_ms", INTEGER),
        _key("key_versions", "key_id", "version"),
        _reference("key_versions", "key_id", "keys"),
    )
    _table(
        "aliases",
        _column("name", TEXT),
        _column("key_id", BYTES, nullable=True),
        _key("aliases", "name"),
        _reference("aliases", "key_id", "keys"),
    )


def _access_tables() -> None:
    _table(
        "access_points",
        _column("access_point_id", BYTES),
        _column("name", TEXT),
        _column("description", TEXT),
        _column("state", TEXT),
        _column("policies", TEXT),
        _column("network_rules", TEXT),
        _column("created_at_ms", INTEGER),
        _column("requests_per_s", INTEGER),
        _column("bytes_per_s", INTEGER),
        _column("in_flight", INTEGER),
        _key("access_points", "access_point_id"),
        _unique("access_points", "name"),
    )
    _table(
        "client_keys",
        _column("client_key_id", BYTES),
        _column("access_point_id", BYTES),
        _column("spki_sha256", BYTES),
        _column("serial", TEXT),
        _column("subject", TEXT),
        _column("not_before_ms", INTEGER),
        _column("not_after_ms", INTEGER),
        _column("state", TEXT),
        _column("created_at_ms", INTEGER),
        _column("renews", BYTES),
        _key("client_keys", "client_key_id"),
        _unique("client_keys", "spki_sha256"),
        _reference("client_keys", "access_point_id", "access_points"),
    )
    _table(
        "policies",
        _column("name", TEXT),
        _column("document", TEXT),
        _column("updated_at_ms", INTEGER),
        _key("policies", "name"),
    )
    _table(
        "network_rules",
        _column("name", TEXT),
        _column("networks", TEXT),
        _column("updated_at_ms", INTEGER),
        _key("network_rules", "name"),
    )
    _table(
        "settings",
        _column("name", TEXT),
        _column("value", BYTES),
        _key("settings", "name"),
    )


def _work_tables() -> None:
    _table(
        "requests",
        _column("request_hash", BYTES),
        _column("access_point_id", BYTES),
        _column("operation", TEXT),
        _column("arguments", TEXT),
        _column("touches", TEXT),
        _column("approvals", BYTES),
        _column("asked_at_ms", INTEGER),
        _key("requests", "request_hash"),
        _reference("requests", "access_point_id", "access_points"),
    )
    _table(
        "counters",
        _column("key_id", BYTES),
        _column("version", INTEGER),
        _column("leased", INTEGER),
        _key("counters", "key_id", "version"),
    )
    _table(
        "intents",
        _column("intent_id", BYTES),
        _column("kind", TEXT),
        _column("token", TEXT),
        _column("cka_id", BYTES),
        _column("key_id", BYTES, nullable=True),
        _column("owner", TEXT),
        _column("arguments", BYTES),
        _column("created_at_ms", INTEGER),
        _column("lease_until_ms", INTEGER),
        _key("intents", "intent_id"),
    )
    _table(
        "idempotency",
        _column("access_point_id", BYTES),
        _column("operation", TEXT),
        _column("token", BYTES),
        _column("arguments_hash", BYTES),
        _column("result", BYTES),
        _column("created_at_ms", INTEGER),
        _key("idempotency", "access_point_id", "operation", "token"),
    )
