"""Rows of `buckets`: names, versioning, configuration documents."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import sqlalchemy as sa

from metadata.catalog import objects, schema
from metadata.catalog.feed import NewChange, append
from metadata.catalog.session import BulkRead, Row
from tierstore.errors import ConflictError, NotFound

COLUMNS: Final = ("id", "name", "owner", "versioning", "created_at_ms", "config")
#: Document of a bucket into which other sites replicate: their names, comma-separated.
REPLICATED_FROM: Final = "replicated-from"
#: Document of a bucket with object lock (tierstore.wire.lock).
OBJECT_LOCK: Final = "s3.object-lock"
#: Document of a bucket: the site that judges its conditional writes. Without it, each site judges its own.
HOME: Final = "home-site"
#: As lookups read it, and as commits hold it (so that a bucket is not removed under a commit).
BY_NAME: Final = BulkRead(schema.buckets, COLUMNS, ("name",))
BY_NAME_HELD: Final = BulkRead(schema.buckets, COLUMNS, ("name",), lock="KEY SHARE")


@dataclass(frozen=True)
class Bucket:
    """versioning: "" (never on) | enabled | suspended. config: documents by name, as the doors wrote them."""

    id: int
    name: str
    owner: str
    versioning: str
    created_at_ms: int
    config: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Row) -> Bucket:
        return cls(row[0], row[1], row[2], row[3], row[4], json.loads(row[5]) if row[5] != "{}" else {})

    @cached_property
    def replication(self) -> tuple[tuple[str, str], ...]:
        """(prefix, target site) of each replication rule."""
        text = self.config.get("replication")
        if not text:
            return ()
        return tuple((rule.get("prefix", ""), rule["target"]) for rule in json.loads(text).get("rules", ()))

    @cached_property
    def is_replicated(self) -> bool:
        """Whether deletes leave a tombstone: other sites send names here, or get them."""
        return "replication" in self.config or REPLICATED_FROM in self.config

    def targets(self, key: str) -> tuple[str, ...]:
        """The sites that must hear of a change of this key, each once."""
        if not self.replication:
            return ()
        return tuple(dict.fromkeys(target for prefix, target in self.replication if key.startswith(prefix)))


def _columns() -> list[sa.Column[object]]:
    return [schema.buckets.c[name] for name in COLUMNS]


def get(connection: sa.Connection, name: str, *, lock: bool = False) -> Bucket:
    """Raises NotFound(code="no-such-bucket")."""
    query = sa.select(*_columns()).where(schema.buckets.c.name == name)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound(f"there is no bucket {name!r}", code="no-such-bucket", bucket=name)
    return Bucket.of(tuple(row))


def everything(connection: sa.Connection) -> list[Bucket]:
    """All buckets by name."""
    return [Bucket.of(tuple(r)) for r in connection.execute(sa.select(*_columns()).order_by(schema.buckets.c.name))]


def names(connection: sa.Connection) -> dict[int, str]:
    return {int(i): str(n) for i, n in connection.execute(sa.select(schema.buckets.c.id, schema.buckets.c.name))}


def create(connection: sa.Connection, name: str, *, owner: str, at_ms: int) -> Bucket:
    """Raises ConflictError(code="bucket-exists")."""
    t = schema.buckets
    if connection.execute(sa.select(t.c.id).where(t.c.name == name)).first() is not None:
        raise ConflictError(f"bucket {name!r} exists already", code="bucket-exists", bucket=name)
    values = {"name": name, "owner": owner, "versioning": "", "created_at_ms": at_ms, "config": "{}"}
    try:
        # Another process may have been quicker: the name is unique.
        bucket_id = connection.execute(sa.insert(t).values(**values).returning(t.c.id)).scalar_one()
    except sa.exc.IntegrityError:
        raise ConflictError(f"bucket {name!r} exists already", code="bucket-exists", bucket=name) from None
    append(connection, [NewChange(schema.CHANGE_BUCKET, bucket_id, name, 0)], at_ms=at_ms)
    return Bucket(bucket_id, name, owner, "", at_ms)


def delete(connection: sa.Connection, name: str, *, at_ms: int) -> int:
    """The id that it had. Raises NotFound, ConflictError(code="bucket-not-empty") (old versions and unfinished uploads
    count too)."""
    bucket = get(connection, name, lock=True)
    if not bucket.versioning:
        objects.drop_tombstones(connection, bucket.id)
    if objects.has_any(connection, bucket.id):
        raise ConflictError(f"bucket {name!r} is not empty", code="bucket-not-empty", bucket=name)
    connection.execute(sa.delete(schema.buckets).where(schema.buckets.c.id == bucket.id))
    gone = [NewChange(schema.CHANGE_DELETE, -bucket.id, key, version) for key, version in _drop_directories(
        connection, bucket.id
    )]  # fmt: skip
    append(connection, [*gone, NewChange(schema.CHANGE_BUCKET, bucket.id, name, 0)], at_ms=at_ms)
    return bucket.id


def _drop_directories(connection: sa.Connection, bucket_id: int) -> list[tuple[str, int]]:
    """Empty directories go with their bucket. Open files without a name (keys from "o/" on) go when the mount that has
    them open ends, or its lease."""
    t = schema.objects
    below = t.c.bucket_id == -bucket_id, t.c.key < "o/"
    found = [(str(row[0]), int(row[1])) for row in connection.execute(sa.select(t.c.key, t.c.version).where(*below))]
    connection.execute(sa.delete(t).where(*below))
    return found


def configure(
    connection: sa.Connection, name: str, *, at_ms: int, versioning: str | None = None,
    documents: dict[str, str | None] | None = None,
) -> Bucket:  # fmt: skip
    """Change versioning and documents (None removes one). Raises NotFound, ConflictError when versioning is to go back
    to "never on"."""
    bucket = get(connection, name, lock=True)
    new_versioning = bucket.versioning if versioning is None else versioning
    if bucket.versioning and not new_versioning:
        raise ConflictError("versioning can be suspended, not undone", code="versioning-cannot-be-removed")
    if new_versioning != "enabled" and (OBJECT_LOCK in bucket.config or OBJECT_LOCK in (documents or {})):
        raise ConflictError("object lock needs versioning, and keeps it on", code="object-lock-needs-versioning")
    config = dict(bucket.config)
    for document, text in (documents or {}).items():
        if text is None:
            config.pop(document, None)
        else:
            config[document] = text
    connection.execute(
        sa.update(schema.buckets)
        .where(schema.buckets.c.id == bucket.id)
        .values(versioning=new_versioning, config=json.dumps(config))
    )
    append(connection, [NewChange(schema.CHANGE_BUCKET, bucket.id, name, 0)], at_ms=at_ms)
    return Bucket(bucket.id, bucket.name, bucket.owner, new_versioning, bucket.created_at_ms, config)
