"""Committed uploads become rows of `operations`: one insert less for each put (ADR 0130)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
floor = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    zeros, nothing = (r"'\x00000000'::bytea", "''::bytea") if is_postgresql else ("x'00000000'", "x''")
    whole = f"committed_uploads.id || {zeros}" if is_postgresql else f"CAST(committed_uploads.id || {zeros} AS BLOB)"
    op.execute(
        sa.text(
            f"INSERT INTO operations (id, result) SELECT {whole}, {nothing} FROM committed_uploads "
            "WHERE true ON CONFLICT DO NOTHING"
        )
    )
    op.drop_table("committed_uploads")
