"""Bodies fetched from other sites for a reader are listed, so that they can be let go of (ADR 0250)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
floor = "0003"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    key = sa.Text(collation="C") if is_postgresql else sa.Text()
    op.create_table(
        "fetched_bodies",
        sa.Column("bucket_id", sa.BigInteger, nullable=False),
        sa.Column("key", key, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("bucket_id", "key", "version"),
        sqlite_with_rowid=False,
    )
    op.create_index("fetched_bodies_by_age", "fetched_bodies", ["at_ms"])
