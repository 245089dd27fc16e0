"""File operations: what a mount asks of metadata, in batches. Paths are keys; a directory's path has no slash at its
end, "" is the root. An open file that lost its last name is reached as `ORPHAN + hex of its inode number` (no key of a
mounted file begins with a slash).

Reads (`FileQuestion`) may be repeated freely. Changes (`FileChange`) carry an operation id and a deadline, as commits
do; each is one transaction and its answer says how the file stands afterwards. Times are ns since 1970.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tierstore.wire.names import ChunkView, CommitChunk

ORPHAN: Final = "/orphan/"
#: uid and gid of what no mount has made: the mount puts its own defaults in.
NO_OWNER: Final = 0xFFFFFFFF
S_IFMT: Final = 0o170000
S_IFDIR: Final = 0o040000
S_IFREG: Final = 0o100000
S_IFLNK: Final = 0o120000


def orphan_path(number: int) -> str:
    """Where an open file is that has lost its last name."""
    return f"{ORPHAN}{number:016x}"


class Attributes(msgspec.Struct, array_like=True, frozen=True):
    """What POSIX keeps of a file beside its bytes. mode holds the type too. subdirs: directories only (link count)."""

    ino: int
    mode: int
    uid: int = NO_OWNER
    gid: int = NO_OWNER
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    rdev: int = 0
    target: bytes = b""                 # of a symbolic link
    xattrs: dict[str, bytes] = {}
    links: int = 1
    subdirs: int = 0

    @property
    def is_directory(self) -> bool:
        return self.mode & S_IFMT == S_IFDIR


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """A file or directory as it stands. version 0: a directory that no row says anything of. extents: pieces that its
    body is made of, as far as they were looked at (0: not known)."""

    name: str
    attributes: Attributes
    size: int = 0
    version: int = 0
    extents: int = 0


# -- reads ------------------------------------------------------------------------------------------------------
class Look(msgspec.Struct, array_like=True, frozen=True, tag="look"):
    bucket: str
    path: str


class ReadDirectory(msgspec.Struct, array_like=True, frozen=True, tag="readdir"):
    """A page of a directory's entries with their attributes; after: `next` of the page before. mount: who wants the
    directory delegated, if this page is all of it (wire/delegations); the answer's entry is the directory then."""

    bucket: str
    path: str
    after: str = ""
    limit: int = 1000
    mount: str = ""


class Extents(msgspec.Struct, array_like=True, frozen=True, tag="extents"):
    """The chunks of a range, with read tickets; whatever version is the latest now (the answer's entry says which).
    Taken for a read of what it covers, unless it asks for less than two bytes."""

    bucket: str
    path: str
    first: int
    length: int
    is_own: bool = False      # the mount's own housekeeping: no read in the access history


class Space(msgspec.Struct, array_like=True, frozen=True, tag="space"):
    bucket: str


class Find(msgspec.Struct, array_like=True, frozen=True, tag="find"):
    """What has these numbers (64 at most); entries: what stands there, name: the whole path. Slow: a pass over the
    bucket."""

    bucket: str
    numbers: list[int]


class FileQuestion(msgspec.Struct, array_like=True, frozen=True):
    question: Look | ReadDirectory | Extents | Space | Find
    access: str = ""


# -- changes ----------------------------------------------------------------------------------------------------
class Make(msgspec.Struct, array_like=True, frozen=True, tag="make"):
    """A new empty file, directory, symbolic link or special file; attributes.ino is the mount's proposal."""

    bucket: str
    path: str
    attributes: Attributes


class Remove(msgspec.Struct, array_like=True, frozen=True, tag="remove"):
    """Unlink, or rmdir. holder: the mount that still has the file open: then its body stays as an orphan. mount: who
    removes, or lets go of an orphan: while others live it stays for them, too ("": for nobody)."""

    bucket: str
    path: str
    now_ns: int
    directory: bool = False
    holder: str = ""
    mount: str = ""


class Rename(msgspec.Struct, array_like=True, frozen=True, tag="rename"):
    """holder, mount: as in Remove, of the file that is replaced. is_file: what the mount holds for true; then metadata
    need not look first whether a whole directory moves (others wait a little longer if it does all the same)."""

    bucket: str
    path: str
    to_path: str
    now_ns: int
    no_replace: bool = False
    holder: str = ""
    is_file: bool = False
    mount: str = ""


class Hold(msgspec.Struct, array_like=True, frozen=True, tag="hold"):
    """The mount has the file open that lost its last name by another's hand; path: of an orphan."""

    bucket: str
    path: str
    now_ns: int
    mount: str


class Sync(msgspec.Struct, array_like=True, frozen=True, tag="sync"):
    """Changes nothing; durable when it is answered, and so is all that was answered before it was sent."""

    bucket: str
    path: str = ""
    now_ns: int = 0


class Link(msgspec.Struct, array_like=True, frozen=True, tag="link"):
    bucket: str
    path: str
    to_path: str
    now_ns: int


class SetAttributes(msgspec.Struct, array_like=True, frozen=True, tag="setattr"):
    """Change what is not None; xattrs: names to values, None removes. ino 0: whatever is there."""

    bucket: str
    path: str
    ino: int
    now_ns: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    xattrs: dict[str, bytes | None] = {}
    create_only: bool = False           # xattrs: fail when one is there
    replace_only: bool = False          # xattrs: fail when one is not there


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """Bytes [chunk_offset, chunk_offset + length) of chunks[chunk] stand at `start`; times > 1: repeated, one after
    the other (holes are a chunk of zeros, repeated)."""

    start: int
    length: int
    chunk: int
    chunk_offset: int = 0
    times: int = 1


class WriteFile(msgspec.Struct, array_like=True, frozen=True, tag="write"):
    """New bytes of a file: cut to truncate_to (-1: not), then lay the pieces over what is there.

    append_at: pieces at or behind it are appended: they move by (size now - append_at) (-1: none). make: the file is
    new (one transaction for name and body); one that is there meanwhile is written to (its number is in the answer).
    base_version: refuse unless the file still is that version (0: any)."""

    bucket: str
    path: str
    ino: int
    now_ns: int
    pieces: list[Piece]
    chunks: list[CommitChunk]
    truncate_to: int = -1
    append_at: int = -1
    make: Attributes | None = None
    base_version: int = 0
    clear_setuid: bool = False
    keep_times: bool = False


FileMutation = Make | Remove | Rename | Link | SetAttributes | WriteFile | Hold | Sync
#: Changes of names and attributes, which may be answered before they are durable when their sender says so.
MAY_BE_SOON: Final = (Make, Remove, Rename, Link, SetAttributes)


class FileChange(msgspec.Struct, array_like=True, frozen=True):
    """mount: who sends it, and so knows of the names that it brings ("": nobody's delegation stays). soon: it may be
    durable a moment after its answer (docs/adr/0740): of MAY_BE_SOON only, and where no other site hears of it."""

    operation: bytes
    deadline_ms: int
    mutation: FileMutation
    access: str = ""
    mount: str = ""
    soon: bool = False


class FileResult(msgspec.Struct, array_like=True, frozen=True):
    """entry: how the file stands now (removed: how it stood, with the links that are left)."""

    code: str = ""
    detail: str = ""
    entry: Entry | None = None
    entries: list[Entry] = []
    next: str | None = None
    chunks: list[ChunkView] = []
    more: bool = False
    total_bytes: int = 0
    free_bytes: int = 0
    replaced: Entry | None = None       # rename: what stood at the new name; links 0: nothing is left of it
    is_remote: bool = False             # extents: (some of) its bytes are at another site; a gateway brings them
    touched: list[Entry] = []           # directories that a change left with new times; name: their whole path
    delegation: int = 0                 # readdir: its number (wire/delegations); 0: none was given


class FileQuestions(msgspec.Struct, array_like=True, frozen=True):
    items: list[FileQuestion]


class FileChanges(msgspec.Struct, array_like=True, frozen=True):
    items: list[FileChange]


class FileResults(msgspec.Struct, array_like=True, frozen=True):
    results: list[FileResult]
    now_ms: int = 0


class Watch(msgspec.Struct, array_like=True, frozen=True):
    """What changed in a bucket behind a sequence (-1: only tell where the feed is). Waits up to wait_seconds for
    something. mount: renews that mount's lease on its open unlinked files."""

    bucket: str
    after: int
    mount: str = ""
    wait_seconds: float = 0.0
    access: str = ""


class Changed(msgspec.Struct, array_like=True, frozen=True):
    """version: what stands there now, or (gone) what went; the same as before when only attributes changed. Of a
    directory: its attributes', 0 when they are not stored."""

    path: str
    version: int
    directory: bool = False
    gone: bool = False
    attributes_only: bool = False


class Watched(msgspec.Struct, array_like=True, frozen=True):
    """resync: changes were missed; everything may have changed. place: where this process's delegations are to be seen
    (wire/delegations); "": it gives none."""

    sequence: int
    changes: list[Changed] = []
    resync: bool = False
    place: str = ""
