"""One change of files under way: paths, what stands there, directories touched. Used by services/files/names and
bodies; no decisions about operations here.

Paths and keys are the same text; a directory's attributes lie in a hidden row (catalog/inodes). Where both `a` and
keys below `a/` exist, the path `a` is the directory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec

from metadata.catalog import inodes, leases, schema
from metadata.catalog.buckets import Bucket
from metadata.catalog.feed import NewChange
from metadata.catalog.inodes import DIRECTORY, NAMES, hidden
from metadata.catalog.objects import LATEST_LOCKED, ObjectRow
from metadata.catalog.session import Session
from metadata.services.names import posix, quotas
from metadata.services.names.facts import Facts
from metadata.services.names.writes import WriteSet
from tierstore.errors import ConflictError, NotFound, RequestError
from tierstore.names import PATH_BYTES_MAX
from tierstore.wire import decode, encode
from tierstore.wire.files import ORPHAN, Attributes, Entry
from tierstore.wire.names import ObjectMeta

NAME_BYTES_MAX: Final = 255
LINKS_MAX: Final = 1000


def check_path(path: str) -> str:
    """Return path if a file may have it: segments of 1..255 bytes, none of them "." or "..". "" is the root."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise RequestError("the path is not valid UTF-8", code="bad-path") from None
    if size > PATH_BYTES_MAX:
        raise RequestError(f"a path has at most {PATH_BYTES_MAX} bytes, this one {size}", code="name-too-long")
    if path.startswith(ORPHAN):
        return path
    for name in path.split("/") if path else ():
        if name in ("", ".", "..") or "\x00" in name:
            raise RequestError(f"{name!r} cannot be a name in a path", code="bad-path")
        if len(name.encode()) > NAME_BYTES_MAX:
            raise RequestError(f"a name has at most {NAME_BYTES_MAX} bytes", code="name-too-long")
    return path


def directory_key(path: str) -> str:
    """The hidden key of a directory's attributes."""
    return f"{DIRECTORY}{path}/" if path else DIRECTORY


def parent_of(path: str) -> str:
    return path.rpartition("/")[0]


def name_of(path: str) -> str:
    return path.rpartition("/")[2]


@dataclass(slots=True)
class Directory:
    """A directory as this change leaves it. row: its hidden row, None while only keys imply it."""

    row: ObjectRow | None
    attributes: Attributes


@dataclass(slots=True)
class FileWork:
    """The transaction of one change."""

    session: Session
    facts: Facts
    writes: WriteSet
    bucket: Bucket
    now_ns: int
    directories: dict[str, Directory] = field(default_factory=dict)
    touched: list[Entry] = field(default_factory=list)      # directories as they were written; name: the path
    #: What the change adds to the bucket, where that has a quota.
    grown_objects: int = 0
    grown_bytes: int = 0

    def grow(self, objects: int, held: int) -> None:
        """The bucket holds so much more (or less). Raises AccessDenied(quota-exceeded)."""
        if quotas.DOCUMENT in self.bucket.config:
            quotas.check_growth(self.session, self.bucket, self.grown_objects + objects, self.grown_bytes + held)
            self.grown_objects += objects
            self.grown_bytes += held

    def count(self) -> None:
        """Have the transaction count what the change has added."""
        if self.grown_objects or self.grown_bytes:
            quotas.watch(self.writes, [self.bucket])
            self.writes.count(self.bucket.id, self.grown_objects, self.grown_bytes)

    @property
    def keeps_history(self) -> bool:
        """What leaves a key leaves a version or a marker there."""
        return bool(self.bucket.versioning) or self.bucket.is_replicated

    def has_others(self, mount: str) -> bool:
        """Whether mounts of the bucket live beside this one: they may have its files open."""
        live = self.facts.mounts.get(self.bucket.id)
        if live is None:
            connection = self.session.connection
            now_ms = leases.catalog_now_ms(connection, self.facts.now_ms)
            live = leases.live_mounts(connection, self.bucket.id, now_ms=now_ms)
            self.facts.mounts[self.bucket.id] = live
        return bool(live - {mount})

    # -- what stands where ----------------------------------------------------------------------------------
    def row(self, bucket_id: int, key: str) -> ObjectRow | None:
        """The latest row, locked; delete markers too."""
        rows = self.session.fetch(LATEST_LOCKED, [(bucket_id, key)])
        return ObjectRow._make(rows[0]) if rows else None

    def file(self, path: str) -> ObjectRow | None:
        """The file at a path, also an orphan; None when there is none (or a directory hides it: ask `directory`)."""
        row = self.row(*self.place(path))
        return None if row is None or row.kind == schema.KIND_MARKER else row

    def place(self, path: str) -> tuple[int, str]:
        if path.startswith(ORPHAN):
            return hidden(self.bucket.id), inodes.ORPHAN + path[len(ORPHAN) :]
        return self.bucket.id, path

    def directory(self, path: str, *, is_likely: bool = False) -> Directory | None:
        """The directory at a path, explicit or implied by keys below it. is_likely: look for its row first."""
        if path.startswith(ORPHAN):
            return None
        known = self.directories.get(path)
        if known is not None:
            return known
        if path and not is_likely and not inodes.is_directory(self.session.connection, self.bucket.id, path):
            return None
        row = self.row(hidden(self.bucket.id), directory_key(path))
        if row is not None:
            return Directory(row, posix.attributes(row))
        if path and is_likely and not inodes.is_directory(self.session.connection, self.bucket.id, path):
            return None
        return Directory(None, posix.implied_directory(self.bucket.id, path, self.bucket.created_at_ms))

    def is_empty(self, path: str) -> bool:
        """No key below the directory but its own marker, no directory."""
        connection = self.session.connection
        return not inodes.below(connection, self.bucket.id, f"{path}/", itself=False) and not inodes.below(
            connection, hidden(self.bucket.id), directory_key(path), itself=False
        )

    def require_file(self, path: str, ino: int = 0) -> ObjectRow:
        """Raises NotFound(no-such-file), ConflictError(is-directory, stale-file)."""
        row = self.file(path)
        if row is None:
            if self.directory(path) is not None:
                raise ConflictError(f"{path!r} is a directory", code="is-directory")
            raise NotFound(f"there is no file {path!r}", code="no-such-file")
        if ino and posix.attributes(row).ino != ino:
            raise ConflictError(f"another file stands at {path!r} now", code="stale-file")
        return row

    # -- directories ----------------------------------------------------------------------------------------
    def touch_parent(self, path: str, *, subdirs: int = 0) -> None:
        """The parent's entries change: its times do too. Raises NotFound(no-such-directory), ConflictError."""
        if path.startswith(ORPHAN):
            return
        parent = parent_of(path)
        found = self.directory(parent, is_likely=True)
        if found is None:
            if self.file(parent) is not None:
                raise ConflictError(f"{parent!r} is not a directory", code="not-directory")
            raise NotFound(f"there is no directory {parent!r}", code="no-such-directory")
        a = found.attributes
        found.attributes = msgspec.structs.replace(
            a, mtime_ns=self.now_ns, ctime_ns=self.now_ns, subdirs=max(0, a.subdirs + subdirs)
        )
        self.directories[parent] = found

    def hidden_row(self, key: str, meta: bytes, version: int) -> ObjectRow:
        """A row of the hidden namespace that has no body."""
        return ObjectRow(
            hidden(self.bucket.id), key, version, schema.KIND_INLINE, 1, 0, "", self.facts.now_ms, b"", meta, None
        )

    def note(self, kind: int, row: ObjectRow) -> None:
        """A change of a hidden row for the feed: no site, rule or listener hears of it."""
        self.writes.changes.append(NewChange(kind, row.bucket_id, row.key, row.version))

    # -- several names --------------------------------------------------------------------------------------
    def names(self, ino: int) -> tuple[ObjectRow | None, list[str]]:
        """The row that lists the names of a file with several, and the names."""
        row = self.row(hidden(self.bucket.id), f"{NAMES}{ino:016x}")
        if row is None or row.meta is None:
            return row, []
        return row, decode(decode(row.meta, ObjectMeta).extra[NAMES], list[str])

    def names_meta(self, names: list[str]) -> bytes:
        return encode(ObjectMeta(extra={NAMES: encode(names)}))

    def others(self, row: ObjectRow, a: Attributes) -> list[ObjectRow]:
        """The rows of the file's other names; a name that was replaced since (by REST) is no longer one."""
        if a.links <= 1:
            return []
        rows = [self.file(name) for name in self.names(a.ino)[1] if name != row.key]
        return [other for other in rows if other is not None and posix.attributes(other).ino == a.ino]
