"""Files that have lost their last name while mounts have them open: who holds them, and when they go.

A mount that removes a name knows only of itself whether the file is open. So where other mounts of the bucket live, the
body stays under the file's number: a mount that has it open hears of the removal by the feed, and holds it
(docs/adr/0550). Who lets go last deletes it, else the sweep (services/files/watch).

Invariant: such a file stays while a live mount holds it, and for HOLD_MS while others of its bucket live.
Bound: HOLDERS_MAX mounts of one file.
"""

from __future__ import annotations

from typing import Final

import msgspec

from metadata.catalog import objects, placements, schema
from metadata.catalog.inodes import ORPHAN, hidden
from metadata.catalog.objects import ObjectRow
from metadata.catalog.packed import unpack
from metadata.services.files.work import FileWork, check_path, name_of
from metadata.services.names import posix
from metadata.services.names.mutations import Mutator
from tierstore.errors import ConflictError, RequestError
from tierstore.wire import decode, encode
from tierstore.wire.files import S_IFMT, S_IFREG, Attributes, FileResult, Hold
from tierstore.wire.names import ObjectMeta

#: A mount that is silent for so long has lost its open unlinked files.
MOUNT_LEASE_MS: Final = 120_000
#: Within so long a mount that lives has heard that a file of it went: the feed tells in seconds, or the lease ends.
HOLD_MS: Final = MOUNT_LEASE_MS
HOLDERS_MAX: Final = 1000
MOUNT_CHARACTERS_MAX: Final = 64
_HOLDER: Final = "holder"


def holders_of(row: ObjectRow) -> frozenset[str]:
    """The mounts that have an orphan open."""
    text = decode(row.meta, ObjectMeta).extra.get(_HOLDER, b"").decode() if row.meta is not None else ""
    return frozenset(text.split(",")) if text else frozenset()


class Unlinked(Mutator):
    """Decides about files without a name. Holds no state of a batch."""

    def hold(self, w: FileWork, m: Hold) -> FileResult:
        """A mount has it open. Raises NotFound when it has gone, or never came here."""
        check_path(m.path)
        row = w.require_file(m.path)
        if row.bucket_id > 0 or not m.mount.isalnum() or len(m.mount) > MOUNT_CHARACTERS_MAX:
            raise RequestError("a mount, by its name, holds a file without a name", code="bad-path")
        held = holders_of(row)
        if m.mount not in held:
            if len(held) >= HOLDERS_MAX:
                raise ConflictError(f"at most {HOLDERS_MAX} mounts hold a file", code="too-many-links")
            self._write_holders(w, row, held | {m.mount})
        return FileResult(entry=posix.entry(row, name_of(m.path)))

    def _stays(self, w: FileWork, row: ObjectRow, mount: str) -> bool:
        """A mount lets go of a file without a name: whether it stays for others, who hold it or may yet."""
        held = holders_of(row)
        left = held - {mount}
        is_young = w.facts.now_ms - row.created_at_ms < HOLD_MS
        if not mount or not (left or (is_young and w.has_others(mount))):
            return False
        if left != held:
            self._write_holders(w, row, left)
        return True

    def _write_holders(self, w: FileWork, row: ObjectRow, holders: frozenset[str]) -> None:
        assert row.meta is not None, "an orphan has attributes"
        meta = decode(row.meta, ObjectMeta)
        extra = {**meta.extra, _HOLDER: ",".join(sorted(holders)).encode()}
        new = row._replace(meta=encode(msgspec.structs.replace(meta, extra=extra)))
        w.session.write(objects.REPLACE_LATEST, [new])
        w.note(schema.CHANGE_META, new)

    def _may_be_open(self, w: FileWork, row: ObjectRow, a: Attributes, mount: str) -> bool:
        """Whether another mount may have a file open that this one removes. Bytes of another site are not kept: nobody
        could read them without a name."""
        is_regular = a.mode & S_IFMT == S_IFREG
        return bool(mount) and is_regular and row.kind != schema.KIND_REMOTE and w.has_others(mount)

    def _make_orphan(
        self, w: FileWork, row: ObjectRow, a: Attributes, holder: str, *, kept_as_version: bool
    ) -> ObjectRow:
        """The body stays under the file's number until the mounts that have it open let go, or die."""
        kind, body, ref = row.kind, row.body, row.ref
        if kept_as_version:
            row, ref = self._share(w.session, w.writes, w.bucket, row, is_latest=True)
            kind, body = row.kind, row.body
        gone = msgspec.structs.replace(a, links=0, ctime_ns=w.now_ns)
        packed = encode(ObjectMeta(extra={posix.POSIX: encode(gone), _HOLDER: holder.encode()}))
        orphan = row._replace(
            bucket_id=hidden(w.bucket.id), key=f"{ORPHAN}{a.ino:016x}", version=self._new_version(w.writes, row),
            meta=packed, kind=kind, body=body, ref=ref, created_at_ms=w.facts.now_ms,
        )  # fmt: skip
        if body:
            placements.move(w.session, unpack(body), (orphan.bucket_id, orphan.key, orphan.version))
        w.writes.put(orphan, w.row(orphan.bucket_id, orphan.key))
        w.note(schema.CHANGE_PUT, orphan)
        return row
