"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
floor = "0001"
down_revision = None
branch_labels = None
depends_on = None

_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_key = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "settings",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("value", sa.Text(), nullable=False),
    )
    op.create_table(
        "feed_head",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "sites",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False, unique=True),
        sa.Column("gateways", sa.Text(), nullable=False, server_default="[]"),
        sa.Column("metadata_urls", sa.Text(), nullable=False, server_default="[]"),
        sa.Column("networks", sa.Text(), nullable=False, server_default="[]"),
        sa.Column("epoch", sa.BigInteger(), nullable=False, server_default="1"),
        sa.Column("is_local", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.create_table(
        "servers",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False, unique=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("instance", sa.LargeBinary(), nullable=False),
        sa.Column("incarnation", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("failure_domain", sa.Text(), nullable=False, server_default=""),
        sa.Column("software", sa.Text(), nullable=False, server_default=""),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False, server_default=sa.text("''")),
        sa.Column("state", sa.Text(), nullable=False, server_default="up"),
        sa.Column("joined_at_ms", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("seen_at_ms", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("reported", sa.Text(), nullable=False, server_default="up"),
        sa.Column("restart_until_ms", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("load", sa.Float(), nullable=False, server_default="0"),
        sa.Column("in_flight", sa.Integer(), nullable=False, server_default="0"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "devices",
        sa.Column("id", _id, primary_key=True),
        sa.Column("uuid", sa.LargeBinary(), nullable=False, unique=True),
        sa.Column("server_id", sa.Integer(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False, server_default=""),
        sa.Column("capacity_bytes", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("used_bytes", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("trash_bytes", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("garbage_bytes", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("state", sa.Text(), nullable=False, server_default="ok"),
        sa.Column("health", sa.Text(), nullable=False, server_default="ok"),
        sa.Column("detail", sa.Text(), nullable=False, server_default=""),
        sa.Column("chunks", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("seen_sequence", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("reconciled_incarnation", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("read_ms", sa.Float(), nullable=False, server_default="0"),
        sa.Column("read_bytes_per_second", sa.Float(), nullable=False, server_default="0"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_devices_server_id", "devices", ["server_id"])
    op.create_table(
        "ticket_keys",
        sa.Column("server_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("key_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("retires_at_ms", sa.BigInteger(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("server_id", "key_id"),
    )
    op.create_table(
        "buckets",
        sa.Column("id", _id, primary_key=True),
        sa.Column("name", sa.Text(), nullable=False, unique=True),
        sa.Column("owner", sa.Text(), nullable=False, server_default=""),
        sa.Column("versioning", sa.Text(), nullable=False, server_default=""),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False, server_default="{}"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "objects",
        sa.Column("bucket_id", sa.BigInteger(), nullable=False),
        sa.Column("key", _key, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("is_null", sa.SmallInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary()),
        sa.Column("meta", sa.LargeBinary()),
        sa.Column("ref", sa.BigInteger()),
        sa.PrimaryKeyConstraint("bucket_id", "key"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "versions",
        sa.Column("bucket_id", sa.BigInteger(), nullable=False),
        sa.Column("key", _key, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("is_null", sa.SmallInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary()),
        sa.Column("meta", sa.LargeBinary()),
        sa.Column("ref", sa.BigInteger()),
        sa.PrimaryKeyConstraint("bucket_id", "key", "version"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "extents",
        sa.Column("body_id", sa.BigInteger(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("chunk_id", sa.LargeBinary(), nullable=False),
        sa.Column("chunk_offset", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("body_id", "start"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "chunks",
        sa.Column("id", sa.LargeBinary(), primary_key=True),
        sa.Column("chunk_bytes", sa.BigInteger(), nullable=False),
        sa.Column("crc32c", sa.BigInteger(), nullable=False),
        sa.Column("redundancy", sa.SmallInteger(), nullable=False, server_default="0"),
        sa.Column("refcount", sa.BigInteger(), nullable=False),
        sa.Column("replicas", sa.LargeBinary(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "placements",
        sa.Column("device_id", sa.BigInteger(), nullable=False),
        sa.Column("chunk_id", sa.LargeBinary(), nullable=False),
        sa.Column("bucket_id", sa.BigInteger()),
        sa.Column("key", _key),
        sa.Column("version", sa.BigInteger()),
        sa.Column("chunk_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "chunk_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "inodes",
        sa.Column("id", _id, primary_key=True),
        sa.Column("bucket_id", sa.BigInteger(), nullable=False),
        sa.Column("links", sa.Integer(), nullable=False),
        sa.Column("attributes", sa.LargeBinary(), nullable=False),
        sa.Column("body_id", sa.BigInteger()),
        sa.Column("size", sa.BigInteger(), nullable=False, server_default="0"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "directories",
        sa.Column("bucket_id", sa.BigInteger(), nullable=False),
        sa.Column("path", _key, nullable=False),
        sa.Column("inode_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("bucket_id", "path"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "changes",
        sa.Column("sequence", _id, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("bucket_id", sa.BigInteger(), nullable=False),
        sa.Column("key", _key, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "operations",
        sa.Column("id", sa.LargeBinary(), primary_key=True),
        sa.Column("result", sa.LargeBinary(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "committed_uploads",
        sa.Column("id", sa.LargeBinary(), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "garbage",
        sa.Column("id", _id, primary_key=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "upload_leases",
        sa.Column("upload_id", sa.LargeBinary(), primary_key=True),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "condemned_uploads",
        sa.Column("upload_id", sa.LargeBinary(), primary_key=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "pins",
        sa.Column("chunk_id", sa.LargeBinary(), primary_key=True),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "multipart_uploads",
        sa.Column("id", sa.LargeBinary(), primary_key=True),
        sa.Column("bucket_id", sa.BigInteger(), nullable=False),
        sa.Column("key", _key, nullable=False),
        sa.Column("owner", sa.Text(), nullable=False, server_default=""),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("meta", sa.LargeBinary()),
        sqlite_with_rowid=False,
    )
    op.create_index("multipart_uploads_of_key", "multipart_uploads", ["bucket_id", "key", "id"])
    op.create_table(
        "multipart_parts",
        sa.Column("upload_id", sa.LargeBinary(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("checksums", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("upload_id", "number"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "jobs",
        sa.Column("id", _id, primary_key=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("class", sa.Integer(), nullable=False),
        sa.Column("heat", sa.Float(), nullable=False, server_default="0"),
        sa.Column("server_id", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.BigInteger(), nullable=False),
        sa.Column("chunk_id", sa.LargeBinary(), nullable=False, server_default=sa.text("''")),
        sa.Column("payload", sa.LargeBinary()),
        sa.Column("bytes", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("token", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("lease_ms", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("not_before_ms", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("finished_at_ms", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("progress", sa.Float(), nullable=False, server_default="0"),
        sa.Column("code", sa.Text(), nullable=False, server_default=""),
        sa.Column("detail", sa.Text(), nullable=False, server_default=""),
        sqlite_autoincrement=True,
    )
    op.create_index("jobs_of_chunk", "jobs", ["chunk_id", "device_id"])
    op.create_index("jobs_waiting", "jobs", ["server_id", "state", "class", "heat"])
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False, server_default=""),
    )
    op.create_table(
        "credentials",
        sa.Column("access", sa.Text(), primary_key=True),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("grants", sa.Text(), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(), nullable=False, unique=True),
        sa.Column("secret", sa.Text(), nullable=False, server_default=""),
        sa.Column("enabled", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("policies", sa.Text(), nullable=False, server_default="[]"),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False, server_default="0"),
    )
    op.create_table(
        "policies",
        sa.Column("revision", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False, server_default=""),
        sa.Column("note", sa.Text(), nullable=False, server_default=""),
    )
    op.create_table(
        "audit",
        sa.Column("id", _id, primary_key=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False, server_default=""),
        sa.Column("detail", sa.Text(), nullable=False, server_default=""),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "replication_queue",
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("bucket_id", sa.BigInteger(), nullable=False),
        sa.Column("key", _key, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("target", "sequence"),
        sqlite_with_rowid=False,
    )
