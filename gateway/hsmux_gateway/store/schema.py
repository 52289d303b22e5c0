"""The tables as SQLAlchemy sees them, made from the row structs.

Every column is NOT NULL unless the struct says None, and SQLite's tables are STRICT: a value of
another type is refused by the database already. The migrations spell the same columns out (a
migration never changes once it is released); a test compares the two on both databases.
"""

from typing import Any, Final

import sqlalchemy as sa

from .rows import TABLES, Column, Table

__all__ = [
    "METADATA",
    "OLDER_VERSIONS",
    "SCHEMA_VERSION",
    "SEAL_COLUMNS",
    "VERSION_TABLE",
    "sql_table",
]

SCHEMA_VERSION: Final = "0003"
"""The newest migration."""
OLDER_VERSIONS: Final[tuple[str, ...]] = ("0001", "0002")
"""The migrations before it, which `hsmux store migrate` starts from."""

SEAL_COLUMNS: Final = ("row_revision", "row_kek_id", "row_sealed")
"""What stands behind the clear columns of every table."""

_TYPES: Final[dict[type, sa.types.TypeEngine[Any]]] = {
    int: sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
    str: sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
    bytes: sa.LargeBinary(),
    dict: sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
}


def _column(column: Column) -> sa.Column[Any]:
    kind = _TYPES[column.kind]
    return sa.Column(column.name, kind, nullable=column.nullable, autoincrement=False)


def _sql_table(table: Table[Any], metadata: sa.MetaData) -> sa.Table:
    columns = [_column(column) for column in table.columns[: len(table.clear)]]
    rules: list[sa.schema.SchemaItem] = [
        sa.PrimaryKeyConstraint(*table.key, name=f"{table.name}_key")
    ]
    for unique in table.unique:
        rules.append(sa.UniqueConstraint(*unique, name=f"{table.name}_{'_'.join(unique)}_unique"))
    for name, other in table.references:
        rule = f"{table.name}_{name}_reference"
        rules.append(sa.ForeignKeyConstraint([name], [f"{other}.{name}"], name=rule))
    for name in (*table.indexed, *(["row_revision"] if table.followed else [])):
        rules.append(sa.Index(f"{table.name}_{name}_index", name))
    return sa.Table(
        table.name,
        metadata,
        *columns,
        sa.Column("row_revision", _TYPES[int], nullable=False),
        sa.Column("row_kek_id", _TYPES[bytes], nullable=False),
        sa.Column("row_sealed", _TYPES[bytes], nullable=False),
        *rules,
        sqlite_strict=True,
    )


METADATA: Final = sa.MetaData()
VERSION_TABLE: Final = sa.table("alembic_version", sa.column("version_num", sa.Text()))
_SQL_TABLES: Final = {table.name: _sql_table(table, METADATA) for table in TABLES}


def sql_table(table: Table[Any]) -> sa.Table:
    """The SQL table of a table."""
    return _SQL_TABLES[table.name]
