"""The form of dumps and journals of the catalog: checksummed frames of rows, independent of the engine.

    dump    = magic "TSCAT1\\n\\0", then frames; the last frame is the end frame with the totals
    frame   = u32 length, u32 CRC32C, payload (zlib of MessagePack: [table, columns, rows])
    journal = the same frames: rows as they are after the changes, keys of rows that are gone, the changes themselves

What is derived or short-lived is left out: placements (made anew by `reindex`), jobs, leases, pins. Who writes them:
snapshots.py; who reads them: snapshot_load.py.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from crc32c import crc32c

from metadata.catalog import schema
from tierstore.errors import IntegrityError

MAGIC: Final = b"TSCAT1\n\0"
FRAME: Final = struct.Struct("<II")
PAGE_ROWS: Final = 1000
FRAME_BYTES_MAX: Final = 256 << 20
END: Final = ""
GONE: Final = "-objects"          # frames of a journal: keys (bucket id, key) without a latest row
GONE_VERSIONS: Final = "-versions"
CHANGES: Final = "+changes"       # the feed's entries, for the tombstones among them

#: In the order in which they are loaded.
TABLES: Final[tuple[sa.Table, ...]] = (
    schema.settings, schema.feed_head, schema.sites, schema.servers, schema.devices, schema.ticket_keys,
    schema.buckets, schema.credentials, schema.policies, schema.objects, schema.versions, schema.extents,
    schema.chunks, schema.garbage, schema.condemned_uploads, schema.upload_leases, schema.multipart_uploads,
    schema.multipart_parts, schema.operations, schema.audit, schema.replication_queue,
)  # fmt: skip
#: Small tables that a journal carries whole when they changed.
SMALL: Final[tuple[sa.Table, ...]] = (
    schema.sites, schema.servers, schema.devices, schema.ticket_keys, schema.buckets, schema.credentials,
    schema.policies,
)  # fmt: skip
#: Kinds of rows whose body stands in `extents`.
LONG: Final = frozenset({schema.KIND_ROWS, schema.KIND_REMOTE})


def frame(table: str, columns: list[str], rows: list[Any]) -> bytes:
    """Rows of one table, in one piece. `frames_of` reads it again."""
    # SQLAlchemy's names may be a subclass of str, which MessagePack does not take.
    payload = zlib.compress(msgspec.msgpack.encode([str(table), [str(c) for c in columns], rows]), 1)
    return FRAME.pack(len(payload), crc32c(payload)) + payload


def pages(connection: sa.Connection, table: sa.Table) -> Iterator[list[list[Any]]]:
    """All rows in pages, by primary key: each page is a range, so no long cursor holds the catalog."""
    keys = list(table.primary_key.columns)
    last: list[Any] | None = None
    while True:
        query = sa.select(table).order_by(*keys).limit(PAGE_ROWS)
        if last is not None:
            bound = [sa.literal(value, key.type) for value, key in zip(last, keys, strict=True)]
            query = query.where(sa.tuple_(*keys) > sa.tuple_(*bound))
        rows = [list(row) for row in connection.execute(query)]
        if not rows:
            return
        yield rows
        names = [column.name for column in table.columns]
        last = [rows[-1][names.index(key.name)] for key in keys]


def frames_of(data: bytes | memoryview) -> Iterator[tuple[str, list[str], list[Any]]]:
    """The frames of a dump or journal. Raises IntegrityError(code="bad-snapshot") for anything torn or changed."""
    view = memoryview(data)
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise IntegrityError("this is no dump of a catalog", code="bad-snapshot")
    at = len(MAGIC)
    is_ended = False
    while at < len(view):
        if is_ended or at + FRAME.size > len(view):
            raise IntegrityError(f"the dump is torn at byte {at}", code="bad-snapshot")
        size, crc = FRAME.unpack_from(view, at)
        payload = view[at + FRAME.size : at + FRAME.size + size]
        if len(payload) != size or size > FRAME_BYTES_MAX or crc32c(payload) != crc:
            raise IntegrityError(f"the dump is torn or changed at byte {at}", code="bad-snapshot")
        table, columns, rows = msgspec.msgpack.decode(zlib.decompress(payload), type=tuple[str, list[str], list[Any]])
        is_ended = table == END
        yield table, columns, rows
        at += FRAME.size + size
    if not is_ended:
        raise IntegrityError("the dump has no end", code="bad-snapshot")
