"""New bytes of a file: cut, lay pieces over what is there, append; one transaction, also with the file's creation.

Chunks are never changed: what a write replaces is cut out of the extent list, what it brings is put in. A body that
becomes a whole number of new chunks, in order, stays inline (as a REST put makes it); anything else lives in `extents`
and `chunks`. The offset of an append is what the file's size is here, under the row's lock.

Cost: a body written whole costs what a put does; an edit two index seeks and a few rows per run of pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import msgspec

from metadata.catalog import bodies, inodes, objects, placements, schema
from metadata.catalog.bodies import Extent
from metadata.catalog.inodes import ExtentEdit
from metadata.catalog.objects import ObjectRow
from metadata.catalog.packed import INLINE_CHUNKS_MAX, PackedChunk, pack, unpack
from metadata.services.files.moves import FileMoves
from metadata.services.files.names import check_clear, check_here
from metadata.services.files.work import FileWork, check_path, name_of
from metadata.services.names import posix
from metadata.services.names.facts import check_uploads
from metadata.services.names.receipts import Opened, pack_bodies
from tierstore.errors import ConflictError, RequestError, TierstoreError, TooLarge
from tierstore.names import CHUNK_ID_BYTES
from tierstore.wire.files import Attributes, Entry, FileResult, WriteFile
from tierstore.wire.storage_class import packed_class

#: Extents that one write may make (a hole of 512 GiB in chunks of 8 MiB).
EXTENTS_MAX: Final = 65_536
FILE_BYTES_MAX: Final = 5 << 40


@dataclass(frozen=True, slots=True)
class _Body:
    """A body as a row holds it."""

    kind: int
    body: bytes | None
    ref: int | None
    size: int


class FileBodies(FileMoves):
    """Decides about bodies of files."""

    def write(
        self, w: FileWork, m: WriteFile, opened: list[Opened] | TierstoreError
    ) -> FileResult:
        check_path(m.path)
        if isinstance(opened, TierstoreError):
            raise opened
        uploads = _uploads(m)
        check_uploads(w.facts, uploads)
        place = w.place(m.path)
        old = w.row(*place)
        row = None if old is None or old.kind == schema.KIND_MARKER else old
        if row is None and m.make is None:
            w.require_file(m.path)
        if w.directory(m.path) is not None:
            raise ConflictError(f"{m.path!r} is a directory", code="is-directory")
        others: list[ObjectRow] = []
        if row is not None:
            # Made at the same time elsewhere: an open with O_CREAT opens what is there.
            a = posix.attributes(row)
            if m.make is None and a.ino != m.ino:
                raise ConflictError(f"another file stands at {m.path!r} now", code="stale-file")
            if m.base_version and row.version != m.base_version:
                raise ConflictError("the file has changed", code="file-changed")
            others = w.others(row, a)
        else:
            assert m.make is not None, "a file that is not there is made"
            a = m.make
            w.touch_parent(m.path)
        base = row
        storage_class = packed_class(row.meta) if row is not None else ""
        copies = self._copies_for(w.bucket.name, m.path, _bytes_of(m), storage_class)
        chunks = [unpack(packed)[0] for packed in pack_bodies(m.chunks, opened, w.facts.members, copies)]
        extents = _extents(m, chunks, 0 if base is None else base.size)
        row_meta = base.meta if base is not None else None
        version = self._new_version(w.writes, old)
        made = self._new_body(w, m, base, chunks, extents)
        if made.size > FILE_BYTES_MAX:
            raise TooLarge(f"a file has at most {FILE_BYTES_MAX} bytes", code="too-large")
        if place[0] > 0:
            if row is None or w.bucket.versioning:
                w.grow(1, made.size)        # what was stays as a version
            else:
                w.grow(0, (made.size - row.size) * (1 + len(others)))
        a = _after_write(a, m)
        new = ObjectRow(
            place[0], place[1], version, made.kind, int(w.bucket.versioning != "enabled"), made.size,
            f"tsf-{version:016x}", w.facts.now_ms, made.body,
            posix.with_attributes(posix.without_checksums(row_meta), a), made.ref,
        )  # fmt: skip
        w.writes.put(new, old)
        w.writes.uploads += uploads
        w.writes.ended_leases += [(upload,) for upload in uploads if upload in w.facts.leases]
        if place[0] < 0:
            w.note(schema.CHANGE_PUT, new)
        else:
            self._note(w.writes, schema.CHANGE_PUT, w.bucket, new, old)
        count = len(unpack(made.body)) if made.body else 0
        if made.kind == schema.KIND_ROWS and made.ref is not None:
            # Not told where the file must not be put together: every rewrite would stay as a version, or cross sites.
            count = 0 if w.keeps_history else inodes.count_extents(w.session.connection, made.ref)
            self._spread(w, new, others, a)
        elif others:
            new = self._spread_inline(w, new, others, a)
        self.finish(w)
        return FileResult(entry=Entry(name_of(m.path), a, new.size, new.version, count))

    # -- the new body ---------------------------------------------------------------------------------------
    def _new_body(
        self, w: FileWork, m: WriteFile, base: ObjectRow | None, chunks: list[PackedChunk], extents: list[Extent]
    ) -> _Body:
        """Make the body; the old one is let go of, kept as a version, or edited in place."""
        left = 0 if base is None else (base.size if m.truncate_to < 0 else min(base.size, m.truncate_to))
        size = max(left, max((e.start + e.length for e in extents), default=0))
        is_whole = _covers(extents, size)
        if base is not None and not is_whole and left == base.size and not extents:
            # Nothing but times: the body stays; where versions are kept, the old one shares it.
            return self._same_body(w, base)
        if base is None or is_whole or left == 0:
            self._release_old(w, base)
            if is_whole and _is_put(extents, chunks) and len(chunks) <= INLINE_CHUNKS_MAX:
                return _Body(schema.KIND_INLINE, pack(chunks), None, size)
            if not extents:
                return _Body(schema.KIND_INLINE, b"", None, 0)
            edit = ExtentEdit(w.session, ref := self._body_id())
            _require_no_hole(extents, 0)
        else:
            check_here(base)
            check_clear(base)
            _require_no_hole(extents, left)
            if not extents and base.kind == schema.KIND_INLINE and not w.bucket.versioning:
                return self._shrunk(w, base, left)
            ref = self._own_rows(w, base)
            edit = ExtentEdit(w.session, ref)
            if left < base.size:
                edit.cut(left, None)
            for first, end in _runs(extents):
                if first < left:
                    edit.cut(first, end)
        edit.add_chunks(chunks)
        edit.add(extents)
        edit.finish(at_ms=w.facts.now_ms)
        return _Body(schema.KIND_ROWS, None, ref, size)

    def _release_old(self, w: FileWork, base: ObjectRow | None) -> None:
        if base is None:
            return
        if base.bucket_id < 0:
            w.writes.discard(w.session, base)
        else:
            self._displace(w.session, w.writes, w.bucket, base)

    def _same_body(self, w: FileWork, base: ObjectRow) -> _Body:
        check_here(base)
        check_clear(base)
        if w.bucket.versioning and base.bucket_id > 0:
            shared, ref = self._share(w.session, w.writes, w.bucket, base, is_latest=True)
            self._displace(w.session, w.writes, w.bucket, shared)
            return _Body(shared.kind, shared.body, ref, base.size)
        return _Body(base.kind, base.body, base.ref, base.size)

    def _shrunk(self, w: FileWork, base: ObjectRow, size: int) -> _Body:
        """An inline body, shorter: whole chunks behind the cut become garbage."""
        kept, gone, at = [], [], 0
        for chunk in unpack(base.body or b""):
            if at < size:
                kept.append(_used(chunk, min(chunk.length, size - at)))
            else:
                gone.append(chunk)
            at += chunk.length
        if gone:
            w.writes.garbage.append((w.facts.now_ms, pack(gone)))
        return _Body(schema.KIND_INLINE, pack(kept), None, size)

    def _own_rows(self, w: FileWork, base: ObjectRow) -> int:
        """The body id of extents that hold the base's body and may be edited."""
        if w.bucket.versioning and base.bucket_id > 0:
            shared, ref = self._share(w.session, w.writes, w.bucket, base, is_latest=True)
            self._displace(w.session, w.writes, w.bucket, shared)
            assert ref is not None, "a body of some bytes has extents once it is shared"
            return ref
        if base.kind == schema.KIND_ROWS:
            assert base.ref is not None, "a row of this kind names its body"
            return base.ref
        ref = self._body_id()
        extents, rows = bodies.make_rows(ref, held := unpack(base.body or b""))
        w.session.write(bodies.INSERT_CHUNKS, rows)
        w.session.write(bodies.INSERT_EXTENTS, extents)
        placements.move(w.session, held, None)
        return ref

    # -- other names ----------------------------------------------------------------------------------------
    def _spread(self, w: FileWork, new: ObjectRow, others: list[ObjectRow], a: Attributes) -> None:
        """The file's other names get the same bytes: each has a list of extents of its own over the same chunks."""
        for other in others:
            assert new.ref is not None, "only bodies with extents are spread"
            if other.kind == schema.KIND_ROWS or other.body:
                w.writes.discard(w.session, other)
            copy_id = self._body_id()
            bodies.share(w.session, new.ref, copy_id)
            self._put_other(w, other, new, a, ref=copy_id)

    def _spread_inline(self, w: FileWork, new: ObjectRow, others: list[ObjectRow], a: Attributes) -> ObjectRow:
        """The same for a body that is inline: it gets extents, unless it is empty."""
        if new.body:
            ref = self._body_id()
            extents, rows = bodies.make_rows(ref, unpack(new.body))
            w.session.write(bodies.INSERT_CHUNKS, rows)
            w.session.write(bodies.INSERT_EXTENTS, extents)
            shared = new._replace(kind=schema.KIND_ROWS, body=None, ref=ref)
            w.writes.replaced = [shared if row is new else row for row in w.writes.replaced]
            self._spread(w, shared, others, a)
            return shared
        for other in others:
            w.writes.discard(w.session, other)
            self._put_other(w, other, new, a, ref=None)
        return new

    def _put_other(self, w: FileWork, other: ObjectRow, new: ObjectRow, a: Attributes, *, ref: int | None) -> None:
        row = new._replace(
            bucket_id=other.bucket_id, key=other.key, version=self._new_version(w.writes, other), ref=ref,
            meta=posix.with_attributes(other.meta, a),
        )  # fmt: skip
        w.session.write(objects.REPLACE_LATEST, [row])
        self._note(w.writes, schema.CHANGE_PUT, w.bucket, row, other)


def _used(chunk: PackedChunk, length: int) -> PackedChunk:
    """The chunk, used for so many bytes."""
    return PackedChunk(chunk.id, length, chunk.chunk_bytes, chunk.crc32c, chunk.redundancy, chunk.replicas)


def _uploads(m: WriteFile) -> list[bytes]:
    """The uploads of the chunks. Raises RequestError for chunks and pieces that do not fit."""
    ids = set()
    for chunk in m.chunks:
        if len(chunk.id) != CHUNK_ID_BYTES or chunk.chunk_bytes <= 0:
            raise RequestError("a chunk has an id of 16 bytes and at least one byte", code="bad-chunk")
        ids.add(chunk.id)
    if len(ids) != len(m.chunks):
        raise RequestError("a chunk is named twice", code="bad-chunk")
    named: set[int] = set()
    total = 0
    for p in m.pieces:
        if not 0 <= p.chunk < len(m.chunks) or p.start < 0 or p.length <= 0 or p.chunk_offset < 0 or p.times < 1:
            raise RequestError("a piece names a part of one of the chunks", code="bad-piece")
        if p.chunk_offset + p.length > m.chunks[p.chunk].chunk_bytes:
            raise RequestError("a piece ends behind its chunk", code="bad-piece")
        named.add(p.chunk)
        total += p.times
    if len(named) != len(m.chunks):
        raise RequestError("a chunk that no piece names", code="bad-piece")
    if total > EXTENTS_MAX:
        raise TooLarge(f"a write makes at most {EXTENTS_MAX} extents", code="too-large")
    return sorted({chunk[:12] for chunk in ids})


def _bytes_of(m: WriteFile) -> int:
    return max((p.start + p.length * p.times for p in m.pieces), default=0)


def _extents(m: WriteFile, chunks: list[PackedChunk], size: int) -> list[Extent]:
    """The pieces in order, appends at their place. Raises RequestError when they overlap."""
    if m.truncate_to >= 0:
        size = min(size, m.truncate_to)
    shift = size - m.append_at if m.append_at >= 0 else 0
    extents = []
    for p in m.pieces:
        start = p.start + (shift if m.append_at >= 0 and p.start >= m.append_at else 0)
        for number in range(p.times):
            extents.append(Extent(start + number * p.length, chunks[p.chunk].id, p.chunk_offset, p.length))
    extents.sort()
    for before, after in pairwise(extents):
        if before.start + before.length > after.start:
            raise RequestError("pieces overlap", code="bad-piece")
    return extents


def _covers(extents: list[Extent], size: int) -> bool:
    """Whether the pieces are the whole body."""
    at = 0
    for e in extents:
        if e.start != at:
            return False
        at += e.length
    return at == size and size > 0


def _is_put(extents: list[Extent], chunks: list[PackedChunk]) -> bool:
    """Whole chunks, each once, in order: what a put makes."""
    return len(extents) == len(chunks) and all(
        e.chunk_id == c.id and e.chunk_offset == 0 and e.length == c.chunk_bytes
        for e, c in zip(extents, chunks, strict=True)
    )


def _runs(extents: list[Extent]) -> list[tuple[int, int]]:
    """(first, end) of the stretches without a gap."""
    runs: list[tuple[int, int]] = []
    for e in extents:
        if runs and runs[-1][1] == e.start:
            runs[-1] = (runs[-1][0], e.start + e.length)
        else:
            runs.append((e.start, e.start + e.length))
    return runs


def _require_no_hole(extents: list[Extent], size: int) -> None:
    """A body has no holes: the mount fills them with zeros. Raises ConflictError(code="hole")."""
    at = size
    for first, end in _runs(extents):
        if first > at:
            raise ConflictError(f"nothing fills the bytes from {at} to {first}", code="hole", size=size)
        at = max(at, end)


def _after_write(a: Attributes, m: WriteFile) -> Attributes:
    mode = a.mode & ~0o6000 if m.clear_setuid else a.mode
    if m.keep_times:
        return msgspec.structs.replace(a, mode=mode)
    return msgspec.structs.replace(a, mode=mode, mtime_ns=m.now_ns, ctime_ns=m.now_ns)
