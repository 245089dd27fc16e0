"""A file is its object's row (docs/adr/0090): the tables that were kept for inodes and directories never held a row."""

from __future__ import annotations

from alembic import op

revision = "0002"
floor = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_table("directories")
    op.drop_table("inodes")
