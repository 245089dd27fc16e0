"""What each change of files does to names: make, remove, link, set attributes. Renames: services/files/moves, bodies:
services/files/bodies.

Rules only, on the rows that the transaction reads. Everything is checked before the first row is written, so a
refusal changes nothing. A file is its object's row (docs/adr/0090); its number stays with it through renames.
"""

from __future__ import annotations

import msgspec

from metadata.catalog import objects, schema
from metadata.catalog.inodes import NAMES
from metadata.catalog.objects import ObjectRow
from metadata.services.files.unlinked import Unlinked
from metadata.services.files.work import LINKS_MAX, Directory, FileWork, check_path, directory_key, name_of
from metadata.services.names import posix
from metadata.services.names.steps import META_BYTES_MAX
from tierstore.errors import AccessDenied, ConflictError, NotFound, TooLarge
from tierstore.wire.files import Attributes, Entry, FileResult, Link, Make, Remove, SetAttributes
from tierstore.wire.s3 import is_sealed


def check_here(row: ObjectRow) -> None:
    """Raises ConflictError(body-not-here): only the site that has the bytes may give them another name or share them.
    A mount reads the file once, which brings them, and tries again."""
    if row.kind == schema.KIND_REMOTE:
        raise ConflictError("its bytes have not all come from another site yet", code="body-not-here")


def check_clear(row: ObjectRow) -> None:
    """Raises AccessDenied(encrypted-object): a mount has no keys, and would show or change what it cannot read."""
    if is_sealed(row.etag):
        raise AccessDenied(
            f"{row.key!r} is encrypted; read it by S3 or REST, replace it as a whole", code="encrypted-object"
        )


class FileNames(Unlinked):
    """Decides about names. Holds no state of a batch."""

    # -- make -----------------------------------------------------------------------------------------------
    def make(self, w: FileWork, m: Make) -> FileResult:
        check_path(m.path)
        old = self._require_free(w, m.path)
        a = m.attributes
        w.touch_parent(m.path, subdirs=int(a.is_directory))
        if a.is_directory:
            w.directories[m.path] = Directory(None, a)
            self.finish(w)
            return FileResult(entry=Entry(name_of(m.path), a))
        row = self._new_file(w, m.path, a, old)
        self.finish(w)
        return FileResult(entry=posix.entry(row, name_of(m.path)))

    def _require_free(self, w: FileWork, path: str) -> ObjectRow | None:
        """What the row of a new name replaces: nothing, or a delete marker. Raises ConflictError(file-exists)."""
        old = w.row(*w.place(path))
        if (old is not None and old.kind != schema.KIND_MARKER) or w.directory(path) is not None or not path:
            raise ConflictError(f"{path!r} exists", code="file-exists")
        return old

    def _new_file(self, w: FileWork, path: str, a: Attributes, old: ObjectRow | None) -> ObjectRow:
        w.grow(1, 0)
        version = self._new_version(w.writes, old)
        row = ObjectRow(
            w.bucket.id, path, version, schema.KIND_INLINE, int(w.bucket.versioning != "enabled"), 0,
            f"tsf-{version:016x}", w.facts.now_ms, b"", posix.with_attributes(None, a), None,
        )  # fmt: skip
        self._displace(w.session, w.writes, w.bucket, old)
        w.writes.put(row, old)
        self._note(w.writes, schema.CHANGE_PUT, w.bucket, row, old)
        return row

    def finish(self, w: FileWork) -> None:
        """Write the directories that the change touched."""
        for path, directory in w.directories.items():
            old = directory.row
            meta = posix.with_attributes(None, directory.attributes)
            row = w.hidden_row(directory_key(path), meta, self._new_version(w.writes, old))
            w.writes.put(row, old)
            w.note(schema.CHANGE_PUT, row)
            w.touched.append(Entry(path, directory.attributes, 0, row.version))

    # -- remove ---------------------------------------------------------------------------------------------
    def remove(self, w: FileWork, m: Remove) -> FileResult:
        check_path(m.path)
        directory = w.directory(m.path)
        if m.directory:
            return self._remove_directory(w, m.path, directory)
        if directory is not None:
            raise ConflictError(f"{m.path!r} is a directory", code="is-directory")
        row = w.require_file(m.path)
        if row.bucket_id < 0 and self._stays(w, row, m.mount):
            return FileResult(entry=posix.entry(row, name_of(m.path)))
        w.touch_parent(m.path)
        row, left = self._let_go(w, row, m.holder, m.mount)
        if row.bucket_id < 0:
            w.writes.deleted.append((row.bucket_id, row.key))
            w.note(schema.CHANGE_DELETE, row)
        elif w.bucket.versioning:
            self._leave_marker(w.session, w.facts, w.writes, w.bucket, row)
        else:
            self._leave_name(w, row)
        self.finish(w)
        a = msgspec.structs.replace(posix.attributes(row), links=left, ctime_ns=w.now_ns)
        return FileResult(entry=Entry(name_of(m.path), a, row.size, row.version))

    def _remove_directory(self, w: FileWork, path: str, found: Directory | None) -> FileResult:
        if found is None:
            if w.file(path) is not None:
                raise ConflictError(f"{path!r} is not a directory", code="not-directory")
            raise NotFound(f"there is no directory {path!r}", code="no-such-file")
        if not path:
            raise ConflictError("the root stays", code="directory-busy")
        if not w.is_empty(path):
            raise ConflictError(f"{path!r} is not empty", code="directory-not-empty")
        w.touch_parent(path, subdirs=-1)
        self._drop_directory(w, path, found)
        self.finish(w)
        return FileResult(entry=Entry(name_of(path), msgspec.structs.replace(found.attributes, links=0)))

    def _drop_directory(self, w: FileWork, path: str, found: Directory) -> None:
        """An empty directory goes, with the marker that S3 clients make for one."""
        marker = w.row(w.bucket.id, path + "/")
        if marker is not None and marker.kind != schema.KIND_MARKER:
            if w.bucket.versioning:
                self._leave_marker(w.session, w.facts, w.writes, w.bucket, marker)
            else:
                w.writes.discard(w.session, marker)
                self._leave_name(w, marker)
        if found.row is not None:
            w.writes.deleted.append((found.row.bucket_id, found.row.key))
            w.note(schema.CHANGE_DELETE, found.row)

    def _leave_name(self, w: FileWork, row: ObjectRow) -> None:
        """A row of a bucket without versions leaves its key; its body is somebody else's by now, or garbage. Other
        sites are told by a marker."""
        if not w.bucket.is_replicated:
            w.writes.deleted.append((row.bucket_id, row.key))
            self._note(w.writes, schema.CHANGE_DELETE, w.bucket, row, row)
            return
        marker = ObjectRow(
            row.bucket_id, row.key, self._new_version(w.writes, row), schema.KIND_MARKER, 1, 0, "", w.facts.now_ms,
            None, None, None,
        )  # fmt: skip
        w.writes.put(marker, row)
        self._note(w.writes, schema.CHANGE_MARKER, w.bucket, marker, row)

    def _let_go(self, w: FileWork, row: ObjectRow, holder: str, mount: str) -> tuple[ObjectRow, int]:
        """A name of a file is about to go: see to its body and its other names. Returns (the row as it is now, links
        that are left). The row itself is the caller's to delete or replace."""
        a = posix.attributes(row)
        others = w.others(row, a)
        kept_as_version = bool(w.bucket.versioning) and row.bucket_id > 0
        if row.bucket_id > 0 and not kept_as_version:
            w.grow(-1, -row.size)
        if others:
            self._set_names(w, a.ino, [other.key for other in others])
            left = msgspec.structs.replace(a, links=len(others), ctime_ns=w.now_ns)
            self._rewrite_meta(w, others, left)
        elif row.bucket_id > 0 and (holder or self._may_be_open(w, row, a, mount)):
            row = self._make_orphan(w, row, a, holder, kept_as_version=kept_as_version)
            return row, 0
        if not kept_as_version:
            w.writes.discard(w.session, row)
        return row, len(others)

    # -- links ----------------------------------------------------------------------------------------------
    def link(self, w: FileWork, m: Link) -> FileResult:
        check_path(m.path)
        check_path(m.to_path)
        row = w.require_file(m.path)
        old = self._require_free(w, m.to_path)
        if row.bucket_id < 0:
            raise NotFound("a file without a name gets none", code="no-such-file")
        check_here(row)
        a = posix.attributes(row)
        others = w.others(row, a)
        if len(others) + 2 > LINKS_MAX:
            raise ConflictError(f"a file has at most {LINKS_MAX} names", code="too-many-links")
        w.grow(1, row.size)
        w.touch_parent(m.to_path)
        a = msgspec.structs.replace(a, links=len(others) + 2, ctime_ns=w.now_ns)
        shared, ref = self._share(w.session, w.writes, w.bucket, row, is_latest=True)
        meta = posix.with_attributes(row.meta, a)
        made = shared._replace(key=m.to_path, version=self._new_version(w.writes, row), ref=ref, meta=meta)
        self._displace(w.session, w.writes, w.bucket, old)
        w.writes.put(made, old)
        self._note(w.writes, schema.CHANGE_PUT, w.bucket, made, old)
        self._rewrite_meta(w, [shared, *others], a)
        self._set_names(w, a.ino, [row.key, *(other.key for other in others), m.to_path])
        self.finish(w)
        return FileResult(entry=posix.entry(made, name_of(m.to_path)))

    def _set_names(self, w: FileWork, ino: int, names: list[str]) -> None:
        """Note the names of a file; one name needs no list."""
        old, _ = w.names(ino)
        if len(names) > 1:
            row = w.hidden_row(f"{NAMES}{ino:016x}", w.names_meta(names), self._new_version(w.writes, old))
            w.writes.put(row, old)
            w.note(schema.CHANGE_PUT, row)
        elif old is not None:
            w.writes.deleted.append((old.bucket_id, old.key))
            w.note(schema.CHANGE_DELETE, old)

    def _set_names_now(self, w: FileWork, ino: int, names: list[str]) -> None:
        """The same, written at once: a directory may hold several names of one file."""
        old, _ = w.names(ino)
        if old is not None:
            row = w.hidden_row(old.key, w.names_meta(names), self._new_version(w.writes, old))
            w.session.write(objects.REPLACE_LATEST, [row])
            w.note(schema.CHANGE_PUT, row)

    def _rewrite_meta(self, w: FileWork, rows: list[ObjectRow], a: Attributes) -> None:
        """The same attributes on several names of one file."""
        new = [row._replace(meta=posix.with_attributes(row.meta, a)) for row in rows]
        w.session.write(objects.REPLACE_LATEST, new)
        for row in new:
            self._note(w.writes, schema.CHANGE_META, w.bucket, row, None)

    # -- attributes -----------------------------------------------------------------------------------------
    def set_attributes(self, w: FileWork, m: SetAttributes) -> FileResult:
        check_path(m.path)
        directory = w.directory(m.path)
        if directory is not None:
            if m.ino and m.path and directory.attributes.ino != m.ino:
                raise ConflictError(f"another directory stands at {m.path!r} now", code="stale-file")
            directory.attributes = changed(directory.attributes, m)
            w.directories[m.path] = directory
            self.finish(w)
            return FileResult(entry=Entry(name_of(m.path), directory.attributes))
        row = w.require_file(m.path, m.ino)
        a = changed(posix.attributes(row), m)
        new = row._replace(meta=posix.with_attributes(row.meta, a))
        if new.meta is not None and len(new.meta) > META_BYTES_MAX:
            raise TooLarge(f"attributes have at most {META_BYTES_MAX} bytes in all", code="xattrs-full")
        w.session.write(objects.REPLACE_LATEST, [new])
        if row.bucket_id > 0:
            self._note(w.writes, schema.CHANGE_META, w.bucket, new, None)
            self._rewrite_meta(w, w.others(row, a), a)
        else:
            w.note(schema.CHANGE_META, new)
        return FileResult(entry=posix.entry(new, name_of(m.path)))


def changed(a: Attributes, m: SetAttributes) -> Attributes:
    """Raises ConflictError(xattr-exists), NotFound(no-such-xattr)."""
    xattrs = a.xattrs
    if m.xattrs:
        xattrs = dict(a.xattrs)
        for name, value in m.xattrs.items():
            if m.create_only and name in xattrs:
                raise ConflictError(f"the attribute {name!r} exists", code="xattr-exists")
            if name not in xattrs and (m.replace_only or value is None):
                raise NotFound(f"there is no attribute {name!r}", code="no-such-xattr")
            if value is None:
                del xattrs[name]
            else:
                xattrs[name] = value
    return msgspec.structs.replace(
        a,
        mode=a.mode if m.mode is None else (a.mode & ~0o7777) | (m.mode & 0o7777),
        uid=a.uid if m.uid is None else m.uid,
        gid=a.gid if m.gid is None else m.gid,
        atime_ns=a.atime_ns if m.atime_ns is None else m.atime_ns,
        mtime_ns=a.mtime_ns if m.mtime_ns is None else m.mtime_ns,
        ctime_ns=m.now_ns, xattrs=xattrs,
    )  # fmt: skip
