"""The catalog's tables, portable between SQLite and PostgreSQL. The only truth about names; migrations add up to it.

Ids and packed bodies are BLOB/BYTEA, times are ms since 1970 (BIGINT), JSON documents are TEXT. Keys compare by their
UTF-8 bytes on both (SQLite's BINARY collation, PostgreSQL's "C"), so one index range is one listing.

Clustered tables (WITHOUT ROWID) are those that the hot path reads by their primary key. `feed_head` is one row: the
sequence is taken by updating it in the transaction that writes the change, so the row's lock orders the feed and a
rolled back transaction leaves no gap (rule 6).
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

tables = sa.MetaData()

#: `objects.kind` and `versions.kind`.
KIND_INLINE: Final = 0      # body = packed chunks, owned exclusively
KIND_ROWS: Final = 1        # ref = body id in extents/chunks
KIND_INODE: Final = 2       # not used: a file is its object's row (docs/adr/0090)
KIND_MARKER: Final = 3      # delete marker
KIND_REMOTE: Final = 4      # the name came from another site; ref = body id of the bytes that are here, or NULL

#: `changes.kind`.
CHANGE_PUT: Final = 1        # (bucket, key, version) is a new version
CHANGE_DELETE: Final = 2     # that version is gone for good
CHANGE_MARKER: Final = 3     # that version is a delete marker
CHANGE_META: Final = 4       # metadata of that version replaced in place
CHANGE_REPLICAS: Final = 5   # where its chunks lie changed
CHANGE_SHARED: Final = 6     # its chunks moved from the row to `chunks`
CHANGE_BUCKET: Final = 7     # bucket made, configured or removed; key holds its name
CHANGE_CREDENTIAL: Final = 8  # key holds the access key
CHANGE_POLICY: Final = 9     # version holds the revision
CHANGE_CHUNK: Final = 10     # where a shared chunk lies changed; key holds its id in hex

_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_key = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_bytes = sa.LargeBinary()
_ms = sa.BigInteger()

settings = sa.Table(
    "settings", tables,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)  # fmt: skip

feed_head = sa.Table(
    "feed_head", tables,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),   # always 1
    sa.Column("sequence", sa.BigInteger, nullable=False),                 # of the newest change
    sa.Column("version", sa.BigInteger, nullable=False),                  # no version id in the catalog is larger
)  # fmt: skip

sites = sa.Table(
    "sites", tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("gateways", sa.Text, nullable=False, server_default="[]"),      # JSON lists of URLs and CIDRs
    sa.Column("metadata_urls", sa.Text, nullable=False, server_default="[]"),
    sa.Column("networks", sa.Text, nullable=False, server_default="[]"),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("is_local", sa.Boolean, nullable=False, server_default=sa.false()),
)  # fmt: skip

servers = sa.Table(
    "servers", tables,
    sa.Column("id", sa.Integer, primary_key=True),        # 1..65535, never reused
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("role", sa.Text, nullable=False),           # objectd | gateway
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("site_id", sa.Integer, nullable=False, server_default="1"),
    sa.Column("instance", _bytes, nullable=False),
    sa.Column("incarnation", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("failure_domain", sa.Text, nullable=False, server_default=""),
    sa.Column("software", sa.Text, nullable=False, server_default=""),
    sa.Column("secret_sha256", _bytes, nullable=False, server_default=sa.text("''")),
    sa.Column("state", sa.Text, nullable=False, server_default="up"),   # wish: up | draining | drained | removed
    sa.Column("joined_at_ms", _ms, nullable=False, server_default="0"),
    sa.Column("seen_at_ms", _ms, nullable=False, server_default="0"),
    sa.Column("reported", sa.Text, nullable=False, server_default="up"),  # up | draining | stopping, as it said
    sa.Column("restart_until_ms", _ms, nullable=False, server_default="0"),
    sa.Column("load", sa.Float, nullable=False, server_default="0"),
    sa.Column("in_flight", sa.Integer, nullable=False, server_default="0"),
    sqlite_autoincrement=True,
)  # fmt: skip

devices = sa.Table(
    "devices", tables,
    sa.Column("id", _id, primary_key=True),               # never reused
    sa.Column("uuid", _bytes, nullable=False, unique=True),
    sa.Column("server_id", sa.Integer, nullable=False, index=True),
    sa.Column("tier", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False, server_default=""),
    sa.Column("capacity_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("used_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("trash_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("garbage_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("state", sa.Text, nullable=False, server_default="ok"),    # wish: ok | draining | drained | removed
    sa.Column("health", sa.Text, nullable=False, server_default="ok"),   # ok | read-only | failed | full
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
    sa.Column("chunks", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("seen_sequence", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("reconciled_incarnation", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("read_ms", sa.Float, nullable=False, server_default="0"),
    sa.Column("read_bytes_per_second", sa.Float, nullable=False, server_default="0"),
    sqlite_autoincrement=True,
)  # fmt: skip

ticket_keys = sa.Table(
    "ticket_keys", tables,
    sa.Column("server_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key_id", sa.Integer, primary_key=True, autoincrement=False),   # u8
    sa.Column("key", _bytes, nullable=False),
    sa.Column("created_at_ms", _ms, nullable=False),
    sa.Column("retires_at_ms", _ms, nullable=False, server_default="0"),      # 0: not yet known
)  # fmt: skip

buckets = sa.Table(
    "buckets", tables,
    sa.Column("id", _id, primary_key=True),               # never reused
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False, server_default=""),
    sa.Column("versioning", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at_ms", _ms, nullable=False),
    sa.Column("config", sa.Text, nullable=False, server_default="{}"),        # JSON: document name -> text
    sqlite_autoincrement=True,
)  # fmt: skip


def _body_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("is_null", sa.SmallInteger, nullable=False),     # 1: S3's "null" version (versioning was not on)
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("etag", sa.Text, nullable=False),
        sa.Column("created_at_ms", _ms, nullable=False),
        sa.Column("body", _bytes),
        sa.Column("meta", _bytes),
        sa.Column("ref", sa.BigInteger),
    ]


objects = sa.Table(
    "objects", tables,
    sa.Column("bucket_id", sa.BigInteger, nullable=False),
    sa.Column("key", _key, nullable=False),
    *_body_columns(),
    sa.PrimaryKeyConstraint("bucket_id", "key"),
    sqlite_with_rowid=False,
)  # fmt: skip

versions = sa.Table(
    "versions", tables,
    sa.Column("bucket_id", sa.BigInteger, nullable=False),
    sa.Column("key", _key, nullable=False),
    *_body_columns(),
    sa.PrimaryKeyConstraint("bucket_id", "key", "version"),
    sqlite_with_rowid=False,
)  # fmt: skip

extents = sa.Table(
    "extents", tables,
    sa.Column("body_id", sa.BigInteger, nullable=False),
    sa.Column("start", sa.BigInteger, nullable=False),
    sa.Column("chunk_id", _bytes, nullable=False),
    sa.Column("chunk_offset", sa.BigInteger, nullable=False),
    sa.Column("length", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("body_id", "start"),
    sqlite_with_rowid=False,
)  # fmt: skip

chunks = sa.Table(
    "chunks", tables,
    sa.Column("id", _bytes, primary_key=True),
    sa.Column("chunk_bytes", sa.BigInteger, nullable=False),
    sa.Column("crc32c", sa.BigInteger, nullable=False),
    sa.Column("redundancy", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("refcount", sa.BigInteger, nullable=False),          # extents that name it
    sa.Column("replicas", _bytes, nullable=False),
    sqlite_with_rowid=False,
)  # fmt: skip

placements = sa.Table(
    "placements", tables,
    sa.Column("device_id", sa.BigInteger, nullable=False),
    sa.Column("chunk_id", _bytes, nullable=False),
    sa.Column("bucket_id", sa.BigInteger),                         # NULL: the chunk has a row in `chunks`
    sa.Column("key", _key),
    sa.Column("version", sa.BigInteger),
    sa.Column("chunk_bytes", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("device_id", "chunk_id"),
    sqlite_with_rowid=False,
)  # fmt: skip

changes = sa.Table(
    "changes", tables,
    sa.Column("sequence", _id, primary_key=True, autoincrement=False),
    sa.Column("at_ms", _ms, nullable=False),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("bucket_id", sa.BigInteger, nullable=False),
    sa.Column("key", _key, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
)  # fmt: skip

operations = sa.Table(
    "operations", tables,             # also uploads that have committed: see catalog/operations
    sa.Column("id", _bytes, primary_key=True),
    sa.Column("result", _bytes, nullable=False),      # MessagePack of wire.names.CommitResult; empty: only an upload
    sqlite_with_rowid=False,
)  # fmt: skip

garbage = sa.Table(
    "garbage", tables,
    sa.Column("id", _id, primary_key=True),
    sa.Column("at_ms", _ms, nullable=False),
    sa.Column("body", _bytes, nullable=False),                     # packed chunks with their replicas
    sqlite_autoincrement=True,
)  # fmt: skip

upload_leases = sa.Table(
    "upload_leases", tables,
    sa.Column("upload_id", _bytes, primary_key=True),
    sa.Column("until_ms", _ms, nullable=False),
    sqlite_with_rowid=False,
)  # fmt: skip

condemned_uploads = sa.Table(
    "condemned_uploads", tables,
    sa.Column("upload_id", _bytes, primary_key=True),
    sa.Column("at_ms", _ms, nullable=False),
    sqlite_with_rowid=False,
)  # fmt: skip

pins = sa.Table(
    "pins", tables,
    sa.Column("chunk_id", _bytes, primary_key=True),
    sa.Column("until_ms", _ms, nullable=False),
    sqlite_with_rowid=False,
)  # fmt: skip

multipart_uploads = sa.Table(
    "multipart_uploads", tables,
    sa.Column("id", _bytes, primary_key=True),
    sa.Column("bucket_id", sa.BigInteger, nullable=False),
    sa.Column("key", _key, nullable=False),
    sa.Column("owner", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at_ms", _ms, nullable=False),
    sa.Column("meta", _bytes),
    sa.Index("multipart_uploads_of_key", "bucket_id", "key", "id"),
    sqlite_with_rowid=False,
)  # fmt: skip

multipart_parts = sa.Table(
    "multipart_parts", tables,
    sa.Column("upload_id", _bytes, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("etag", sa.Text, nullable=False),
    sa.Column("created_at_ms", _ms, nullable=False),
    sa.Column("body", _bytes, nullable=False),                     # packed chunks
    sa.Column("checksums", _bytes),
    sa.PrimaryKeyConstraint("upload_id", "number"),
    sqlite_with_rowid=False,
)  # fmt: skip

jobs = sa.Table(
    "jobs", tables,
    sa.Column("id", _id, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),                    # copy | delete | verify | undelete | inventory
    sa.Column("why", sa.Text, nullable=False),                     # repair | drain | promote | demote | collect | ...
    sa.Column("state", sa.Text, nullable=False),                   # waiting | leased | done | failed
    sa.Column("class", sa.Integer, nullable=False),                # smaller goes first; endangered chunks: live homes
    sa.Column("heat", sa.Float, nullable=False, server_default="0"),
    sa.Column("server_id", sa.Integer, nullable=False),            # who is to do it
    sa.Column("device_id", sa.BigInteger, nullable=False),
    sa.Column("chunk_id", _bytes, nullable=False, server_default=sa.text("''")),
    sa.Column("payload", _bytes),
    sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("token", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("lease_ms", _ms, nullable=False, server_default="0"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("not_before_ms", _ms, nullable=False, server_default="0"),
    sa.Column("created_at_ms", _ms, nullable=False),
    sa.Column("finished_at_ms", _ms, nullable=False, server_default="0"),
    sa.Column("progress", sa.Float, nullable=False, server_default="0"),
    sa.Column("code", sa.Text, nullable=False, server_default=""),
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
    sa.Index("jobs_waiting", "server_id", "state", "class", "heat"),
    sa.Index("jobs_of_chunk", "chunk_id", "device_id"),
    sqlite_autoincrement=True,
)  # fmt: skip

leases = sa.Table(
    "leases", tables,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("until_ms", _ms, nullable=False),
    sa.Column("url", sa.Text, nullable=False, server_default=""),
)  # fmt: skip

credentials = sa.Table(
    "credentials", tables,
    sa.Column("access", sa.Text, primary_key=True),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("grants", sa.Text, nullable=False),                  # JSON: bucket or "*" -> role
    sa.Column("token_sha256", _bytes, nullable=False, unique=True),
    sa.Column("secret", sa.Text, nullable=False, server_default=""),
    sa.Column("enabled", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("policies", sa.Text, nullable=False, server_default="[]"),
    sa.Column("created_at_ms", _ms, nullable=False),
    sa.Column("expires_at_ms", _ms, nullable=False, server_default="0"),
)  # fmt: skip

policies = sa.Table(
    "policies", tables,
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("document", sa.Text, nullable=False),                # JSON
    sa.Column("at_ms", _ms, nullable=False),
    sa.Column("who", sa.Text, nullable=False, server_default=""),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
)  # fmt: skip

audit = sa.Table(
    "audit", tables,
    sa.Column("id", _id, primary_key=True),
    sa.Column("at_ms", _ms, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False, server_default=""),
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
    sqlite_autoincrement=True,
)  # fmt: skip

#: Bodies of other sites that were fetched for a reader: their rows stay KIND_REMOTE, and the bytes may be let go of.
fetched_bodies = sa.Table(
    "fetched_bodies", tables,
    sa.Column("bucket_id", sa.BigInteger, nullable=False),
    sa.Column("key", _key, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),             # that are here
    sa.Column("at_ms", _ms, nullable=False),                       # fetched, or last found to be hot
    sa.PrimaryKeyConstraint("bucket_id", "key", "version"),
    sa.Index("fetched_bodies_by_age", "at_ms"),
    sqlite_with_rowid=False,
)  # fmt: skip

replication_queue = sa.Table(
    "replication_queue", tables,
    sa.Column("target", sa.Text, nullable=False),                  # site name
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("at_ms", _ms, nullable=False),
    sa.Column("bucket_id", sa.BigInteger, nullable=False),
    sa.Column("key", _key, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.SmallInteger, nullable=False),            # CHANGE_*
    sa.Column("size", sa.BigInteger, nullable=False, server_default="0"),
    sa.PrimaryKeyConstraint("target", "sequence"),
    sqlite_with_rowid=False,
)  # fmt: skip
