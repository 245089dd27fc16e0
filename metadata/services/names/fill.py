"""Fill: the bytes of a version whose name came from another site, piece by piece, as they arrive.

A remote row (schema.KIND_REMOTE) names a body that may have gaps: extents of what is here. One fill that covers the
whole of a small object makes the row inline at once; else each adds extents, and the one that closes the last gap
makes it an ordinary body. Invariants: extents never overlap; the row's version, size and metadata stay; readers ask
another site for a remote row's gaps, so a row is ordinary only when it has none. Bytes that were fetched for a reader
leave the row a remote one, even whole: they may be let go of (services/sites/fetched), until replication owns them.
"""

from __future__ import annotations

from typing import Final

from metadata.catalog import bodies, fetched, objects, schema
from metadata.catalog.objects import ObjectRow
from metadata.catalog.packed import INLINE_CHUNKS_MAX, unpack
from metadata.catalog.session import Session
from metadata.services.names.writes import WriteSet
from tierstore.errors import ConflictError, RequestError

ALREADY_HERE: Final = "already-here"


def fill(
    session: Session, writes: WriteSet, row: ObjectRow, *, is_latest: bool, start: int, packed: list[bytes],
    body_id: int, is_cached: bool = False,
) -> ObjectRow:  # fmt: skip
    """The row with these chunks from `start` on; written at once. body_id: a new one, taken by the first fill.
    is_cached: the row stays a remote one, whose bytes the site may let go of.

    Raises ConflictError(code="already-here"), RequestError for bytes beyond the object's end."""
    if row.kind != schema.KIND_REMOTE:
        raise ConflictError("the whole body is here", code=ALREADY_HERE)
    if not packed:
        return _own(session, row, is_latest=is_latest)
    body = b"".join(packed)
    chunks = unpack(body)
    length = sum(chunk.length for chunk in chunks)
    if start < 0 or not length or start + length > row.size:
        raise RequestError(f"bytes {start}..{start + length} of an object of {row.size} bytes", code="size-mismatch")
    if not is_cached and row.ref is None and length == row.size and len(chunks) <= INLINE_CHUNKS_MAX:
        new = row._replace(kind=schema.KIND_INLINE, body=body)
    else:
        here = 0
        if row.ref is not None:
            here, overlaps = bodies.covered(session.connection, row.ref, start, start + length)
            if overlaps:
                raise ConflictError(f"bytes from {start} on are here", code=ALREADY_HERE)
        ref = row.ref if row.ref is not None else body_id
        extents, rows = bodies.make_rows(ref, chunks)
        writes.extents += [(ref, start + at, chunk, offset, size) for _, at, chunk, offset, size in extents]
        writes.chunks += rows
        is_whole = here + length == row.size and not is_cached
        kind = schema.KIND_ROWS if is_whole else schema.KIND_REMOTE
        new = row._replace(kind=kind, ref=ref)
    if is_cached:
        if row.ref is None or fetched.is_noted(session.connection, row):    # else replication began it: it stays
            fetched.note(session.connection, row, length, at_ms=writes.at_ms)
    elif row.ref is not None:
        fetched.forget(session.connection, row.bucket_id, row.key, row.version)
    session.write(objects.REPLACE_LATEST if is_latest else objects.REPLACE_VERSION, [new])
    return new


def _own(session: Session, row: ObjectRow, *, is_latest: bool) -> ObjectRow:
    """What is here of a row is not let go of any more; it is an ordinary row when it has no gaps."""
    if row.ref is None:
        return row
    fetched.forget(session.connection, row.bucket_id, row.key, row.version)
    if bodies.covered(session.connection, row.ref, 0, row.size)[0] < row.size:
        return row
    new = row._replace(kind=schema.KIND_ROWS)
    session.write(objects.REPLACE_LATEST if is_latest else objects.REPLACE_VERSION, [new])
    return new
