"""Certificates of other CAs that access points are known by."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BYTES = sa.LargeBinary()


def upgrade() -> None:
    """Make the table and the indexes that changes and the bindings of one are found by."""
    op.create_table(
        "mtls_bindings",
        sa.Column("name", TEXT, nullable=False),
        sa.Column("access_point_id", BYTES, nullable=True),
        sa.Column("row_revision", INTEGER, nullable=False),
        sa.Column("row_kek_id", BYTES, nullable=False),
        sa.Column("row_sealed", BYTES, nullable=False),
        sa.PrimaryKeyConstraint("name", name="mtls_bindings_key"),
        sa.ForeignKeyConstraint(
            ["access_point_id"],
            ["access_points.access_point_id"],
            name="mtls_bindings_access_point_id_reference",
        ),
        sqlite_strict=True,
    )
    for column in ("access_point_id", "row_revision"):
        op.create_index(f"mtls_bindings_{column}_index", "mtls_bindings", [column])
