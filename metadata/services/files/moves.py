"""Renames: of a file one row, of a directory the ranges below it, each in one transaction.

Where the bucket keeps nothing of what was (no versions, no other site that must hear of it), a directory moves by a
few statements over its range (catalog/ranges); what lies outside of the rows (where chunks are, numbers of files that
no mount has touched, lists of names) is brought along page by page. Else every file is renamed on its own, so that
each leaves its version or its marker behind. A directory's transaction runs beside the event loop (Database.work).

Cost: about 15 us per key, half of it without the interpreter's lock.
"""

from __future__ import annotations

from typing import Final

import msgspec

from metadata.catalog import objects, placements, ranges, schema
from metadata.catalog.inodes import DIRECTORY, hidden
from metadata.catalog.objects import ObjectRow
from metadata.catalog.packed import unpack
from metadata.services.files.names import FileNames, check_here
from metadata.services.files.work import Directory, FileWork, check_path, directory_key, name_of
from metadata.services.names import posix
from tierstore.errors import ConflictError, RequestError, TooLarge
from tierstore.wire.files import Attributes, Entry, FileResult, Rename

#: Keys and directories that one rename may move, and as many where each is moved on its own.
RENAME_KEYS_MAX: Final = 1_000_000
RENAME_SINGLY_MAX: Final = 50_000


class FileMoves(FileNames):
    """Decides about renames."""

    def rename(self, w: FileWork, m: Rename) -> FileResult:
        check_path(m.path)
        check_path(m.to_path)
        source = w.directory(m.path)
        target = w.directory(m.to_path)
        if source is not None:
            return self._rename_directory(w, m, source, target)
        row = w.require_file(m.path)
        if target is not None:
            code = "file-exists" if m.no_replace else "is-directory"
            raise ConflictError(f"{m.to_path!r} is a directory", code=code)
        old = w.row(w.bucket.id, m.to_path)
        there = old if old is not None and old.kind != schema.KIND_MARKER else None
        if there is not None and m.no_replace:
            raise ConflictError(f"{m.to_path!r} exists", code="file-exists")
        a = posix.attributes(row)
        if m.path == m.to_path or (there is not None and posix.attributes(there).ino == a.ino):
            return FileResult(entry=posix.entry(row, name_of(m.to_path)))
        check_here(row)
        w.touch_parent(m.path)
        w.touch_parent(m.to_path)
        replaced = None
        if there is not None:
            there, left = self._let_go(w, there, m.holder, m.mount)
            gone = msgspec.structs.replace(posix.attributes(there), links=left, ctime_ns=w.now_ns)
            replaced = Entry(name_of(m.to_path), gone, there.size, there.version)
            old = there
        if w.bucket.versioning:
            self._displace(w.session, w.writes, w.bucket, old)
        a = msgspec.structs.replace(a, ctime_ns=w.now_ns)
        moved = self._move_file(w, row, m.to_path, a, old)
        others = w.others(row, a)
        if others:
            self._set_names(w, a.ino, [*(other.key for other in others), m.to_path])
            self._rewrite_meta(w, others, a)
        self.finish(w)
        return FileResult(entry=posix.entry(moved, name_of(m.to_path)), replaced=replaced)

    def _move_file(self, w: FileWork, row: ObjectRow, to: str, a: Attributes, old: ObjectRow | None) -> ObjectRow:
        """One row under another key, with the same body."""
        version = self._new_version(w.writes, max(row.version, old.version if old is not None else 0))
        body, kind, ref = row.body, row.kind, row.ref
        if w.bucket.versioning:
            shared, ref = self._share(w.session, w.writes, w.bucket, row, is_latest=True)
            body, kind = shared.body, shared.kind
            self._leave_marker(w.session, w.facts, w.writes, w.bucket, shared)
        else:
            self._leave_name(w, row)
            if body:
                placements.move(w.session, unpack(body), (w.bucket.id, to, version))
        moved = row._replace(
            key=to, version=version, kind=kind, body=body, ref=ref, meta=posix.with_attributes(row.meta, a),
            is_null=int(w.bucket.versioning != "enabled"),
        )  # fmt: skip
        w.writes.put(moved, old)
        self._note(w.writes, schema.CHANGE_PUT, w.bucket, moved, old)
        return moved

    # -- directories ----------------------------------------------------------------------------------------
    def _rename_directory(
        self, w: FileWork, m: Rename, source: Directory, target: Directory | None
    ) -> FileResult:
        if target is not None and m.no_replace:
            raise ConflictError(f"{m.to_path!r} exists", code="file-exists")
        if m.path == m.to_path:
            return FileResult(entry=Entry(name_of(m.to_path), source.attributes))
        if not m.path or not m.to_path or f"{m.to_path}/".startswith(f"{m.path}/"):
            raise RequestError("a directory cannot be moved into itself", code="bad-rename")
        if target is None and w.file(m.to_path) is not None:
            raise ConflictError(f"{m.to_path!r} is not a directory", code="not-directory")
        if target is not None and not w.is_empty(m.to_path):
            raise ConflictError(f"{m.to_path!r} is not empty", code="directory-not-empty")
        self._check_range(w, m.path)
        w.touch_parent(m.path, subdirs=-1)
        w.touch_parent(m.to_path, subdirs=int(target is None))
        replaced = None
        if target is not None:
            self._drop_directory(w, m.to_path, target)
            replaced = Entry(name_of(m.to_path), msgspec.structs.replace(target.attributes, links=0))
        # What was gathered so far stands before keys move into the same names.
        self._flush_rows(w)
        if w.keeps_history:
            self._move_singly(w, f"{m.path}/", f"{m.to_path}/")
        else:
            self._bring_along(w, f"{m.path}/", f"{m.to_path}/")
        self._move_range(w, hidden(w.bucket.id), f"{DIRECTORY}{m.path}/", f"{DIRECTORY}{m.to_path}/")
        a = msgspec.structs.replace(source.attributes, ctime_ns=w.now_ns)
        there = w.row(hidden(w.bucket.id), directory_key(m.to_path))
        w.directories[m.to_path] = Directory(there, a)
        self.finish(w)
        return FileResult(entry=Entry(name_of(m.to_path), a), replaced=replaced)

    def _check_range(self, w: FileWork, path: str) -> None:
        """Raises TooLarge(directory-too-large), ConflictError(directory-not-here)."""
        below = ranges.span(w.session.connection, w.bucket.id, f"{path}/")
        limit = RENAME_SINGLY_MAX if w.keeps_history else RENAME_KEYS_MAX
        if below.rows > limit:
            raise TooLarge(f"more than {limit} keys lie below {path!r}", code="directory-too-large")
        if below.remote:
            raise ConflictError(f"bytes of {below.remote} files below {path!r} are at another site",
                                code="directory-not-here")  # fmt: skip

    def _flush_rows(self, w: FileWork) -> None:
        w.session.write(objects.DELETE_LATEST, w.writes.deleted)
        w.session.write(objects.INSERT_LATEST, w.writes.inserted)
        w.session.write(objects.REPLACE_LATEST, w.writes.replaced)
        w.writes.deleted, w.writes.inserted, w.writes.replaced = [], [], []

    def _move_singly(self, w: FileWork, source: str, target: str) -> None:
        for page in list(ranges.rows(w.session.connection, w.bucket.id, source)):
            for moved in page:
                row = w.row(w.bucket.id, moved.key)
                assert row is not None, "the row was read in this transaction"
                to = target + row.key[len(source) :]
                self._move_file(w, row, to, posix.attributes(row), w.row(w.bucket.id, to))

    def _move_range(self, w: FileWork, bucket_id: int, source: str, target: str, version: int = 0) -> None:
        """version: one that was taken for it already."""
        below = ranges.span(w.session.connection, bucket_id, source)
        if below.rows:
            ranges.move(
                w.session, bucket_id, source, target, count=below.rows,
                version=version or self._new_version(w.writes, below.version), at_ms=w.writes.at_ms,
            )  # fmt: skip

    def _bring_along(self, w: FileWork, source: str, target: str) -> None:
        """The files below a prefix, with what is not in their rows: placements, numbers, lists of names."""
        bucket_id = w.bucket.id
        newest = max(ranges.span(w.session.connection, bucket_id, prefix).version for prefix in (source, target))
        version = self._new_version(w.writes, newest)
        linked: dict[int, dict[str, str]] = {}
        ranges.move_places(w.session.connection, bucket_id, source, target, version)
        for page in ranges.rows(w.session.connection, bucket_id, source):
            numbered: list[tuple[int, str, bytes]] = []
            moves: list[tuple[bytes, tuple[int, str, int]]] = []
            for row in page:
                to = target + row.key[len(source) :]
                a = posix.stored(row.meta)
                if a is None:
                    # Its number was made from its key: from now on it is kept.
                    default = posix.default(bucket_id, row.key, row.version, row.created_at_ms)
                    numbered.append((bucket_id, row.key, posix.with_attributes(row.meta, default)))
                elif a.links > 1:
                    linked.setdefault(a.ino, {})[row.key] = to
                if row.body:
                    moves.append((row.body, (bucket_id, to, version)))
            w.session.write(ranges.SET_META, numbered)
            placements.move_bodies(w.session, moves)
        for ino, renamed in linked.items():
            _, names = w.names(ino)
            self._set_names_now(w, ino, [renamed.get(name, name) for name in names])
        self._move_range(w, bucket_id, source, target, version)
