"""Audit records that are stored with the change they are about."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BYTES = sa.LargeBinary()


def upgrade() -> None:
    """Make the table; it begins empty, so nothing has to be sealed."""
    op.create_table(
        "audit_outbox",
        sa.Column("outbox_id", BYTES, nullable=False, autoincrement=False),
        sa.Column("chain", BYTES, nullable=False, autoincrement=False),
        sa.Column("sequence", INTEGER, nullable=False, autoincrement=False),
        sa.Column("lease_until_ms", INTEGER, nullable=False, autoincrement=False),
        sa.PrimaryKeyConstraint("outbox_id", name="audit_outbox_key"),
        sa.Column("row_revision", INTEGER, nullable=False),
        sa.Column("row_kek_id", BYTES, nullable=False),
        sa.Column("row_sealed", BYTES, nullable=False),
        sqlite_strict=True,
    )
    for column in ("chain", "lease_until_ms"):
        op.create_index(f"audit_outbox_{column}_index", "audit_outbox", [column])
