"""A bucket as a tree of files, neutral to whoever mounts it: names, attributes, links. Bytes: files/body.

Every operation asks metadata, which decides; what comes back is remembered in nodes. A file created without O_EXCL is
committed with its first bytes (one commit): until then it is `pending`, and anything but writing, looking and setting
attributes commits it first. Errors: tierstore.errors for what metadata says, FileError for what is decided here.
"""

from __future__ import annotations

import errno
import random
import time
from typing import Final

import msgspec

from tierstore.errors import NotFound, TierstoreError
from tierstore.files.body import Body, Commit
from tierstore.files.errno import FileError
from tierstore.files.node import ROOT, Node, Nodes
from tierstore.files.reader import Reader
from tierstore.files.remote import FilesRemote
from tierstore.sdk import Store
from tierstore.sdk.budget import BufferBudget
from tierstore.units import MIB
from tierstore.wire.files import (
    S_IFDIR,
    S_IFLNK,
    Attributes,
    Entry,
    Extents,
    FileResult,
    Link,
    Look,
    Make,
    ReadDirectory,
    Remove,
    Rename,
    SetAttributes,
    Space,
    WriteFile,
)

NAME_BYTES_MAX: Final = 255
TARGET_BYTES_MAX: Final = 4095
XATTR_BYTES_MAX: Final = 60 << 10
BUDGET_BYTES: Final = 256 * MIB
#: How long an answer is good without the feed.
FRESH_SECONDS: Final = 1.0
#: And with it (the feed drives invalidation).
WATCHED_SECONDS: Final = 60.0
SPACE_SECONDS: Final = 5.0
PAGE: Final = 1000
#: Written bytes that nobody syncs are committed after so long.
DIRTY_SECONDS: Final = 5.0
OWN_VERSIONS_MAX: Final = 50_000


class Tree:
    """One mount. Event loop only."""

    def __init__(
        self, store: Store, bucket: str, *, mount: str, rng: random.Random, budget_bytes: int = BUDGET_BYTES,
        cache_seconds: float = WATCHED_SECONDS,
    ) -> None:  # fmt: skip
        """mount: names this mount in leases; unique. cache_seconds: 0 turns attribute caching off."""
        self.store = store
        self.bucket = bucket
        self.mount = mount
        self.remote = FilesRemote(store.client)
        self._rng = rng
        self._cache_seconds = cache_seconds
        # Halves, so that streams that read ahead never keep a writer waiting, nor the other way round.
        self.dirty_budget = BufferBudget(budget_bytes // 2)
        self.read_budget = BufferBudget(budget_bytes - budget_bytes // 2)
        self.nodes = Nodes(Attributes(ROOT, S_IFDIR | 0o755, links=2))
        self.is_watched = False
        self._own: dict[int, None] = {}
        self._dirty: dict[int, tuple[Node, float]] = {}
        self._space: tuple[float, FileResult] | None = None

    async def open(self) -> Tree:
        """Look at the root. Raises NotFound(no-such-bucket), AccessDenied."""
        found = await self.remote.ask(Look(self.bucket, ""))
        assert found.entry is not None, "the root is always there"
        self._refresh(self.nodes.by_ino[ROOT], found.entry)
        return self

    async def close(self) -> None:
        """Commit what is written, let go of open unlinked files."""
        for node in list(self.nodes.by_ino.values()):
            if node.body is not None or node.pending:
                await self.settle(node)
            if node.body is not None:
                await node.body.close()
        await self.remote.close()

    # -- time and freshness ---------------------------------------------------------------------------------
    @staticmethod
    def now_ns() -> int:
        return time.time_ns()

    @property
    def fresh_seconds(self) -> float:
        """How long the kernel may keep names and attributes."""
        if self._cache_seconds <= 0:
            return 0.0
        return self._cache_seconds if self.is_watched else min(FRESH_SECONDS, self._cache_seconds)

    def is_own(self, version: int) -> bool:
        """This mount made that version itself."""
        return version in self._own

    def _note_own(self, entry: Entry | None) -> None:
        if entry is not None and entry.version:
            self._own[entry.version] = None
            while len(self._own) > OWN_VERSIONS_MAX:
                del self._own[next(iter(self._own))]

    def _refresh(self, node: Node, entry: Entry) -> bool:
        """Take in what metadata says; True when the bytes changed under us."""
        a = entry.attributes
        changed = False
        if node.ino == ROOT:
            a = msgspec.structs.replace(a, ino=ROOT)
        if node.body is not None:
            if node.body.is_dirty:
                a = msgspec.structs.replace(a, mtime_ns=node.attributes.mtime_ns, ctime_ns=node.attributes.ctime_ns)
            elif node.body.refresh(entry):
                changed = True
        elif entry.version != node.version:
            changed = True
        node.attributes, node.size, node.version = a, entry.size, entry.version
        node.checked_at = time.monotonic()
        return changed

    # -- looking --------------------------------------------------------------------------------------------
    def node(self, ino: int) -> Node:
        found = self.nodes.by_ino.get(ino)
        if found is None:
            raise FileError(errno.ESTALE)
        return found

    def name(self, raw: bytes) -> str:
        """A name as a key's segment. Keys are UTF-8: other bytes cannot be names here."""
        if len(raw) > NAME_BYTES_MAX:
            raise FileError(errno.ENAMETOOLONG)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise FileError(errno.EILSEQ) from None

    async def lookup(self, parent: Node, name: str) -> Node:
        if name == ".":
            return parent
        if name == "..":
            return self.node(parent.names[0][0]) if parent.names else parent
        known = self.nodes.child(parent.ino, name)
        if known is not None and (known.pending or (known.body is not None and known.body.is_dirty)):
            return known
        try:
            found = await self.remote.ask(Look(self.bucket, self.nodes.path_of(parent, name)))
        except NotFound:
            if known is not None and not known.pending:
                self.nodes.unbind(parent, name)
            raise
        assert found.entry is not None, "a look answers with an entry"
        return self.take_in(parent, found.entry)

    def take_in(self, parent: Node, entry: Entry) -> Node:
        node = self.nodes.learn(parent, entry)
        self._refresh(node, entry)
        return node

    async def check(self, node: Node, *, always: bool = False) -> bool:
        """See to it that the node's attributes are fresh; True when its bytes changed under us."""
        if node.pending or (node.orphan and not always) or (node.body is not None and node.body.is_dirty):
            return False
        if not always and time.monotonic() - node.checked_at < self.fresh_seconds:
            return False
        found = await self.remote.ask(Look(self.bucket, self.nodes.path(node)))
        assert found.entry is not None, "a look answers with an entry"
        if node.number not in (found.entry.attributes.ino, ROOT):
            raise FileError(errno.ESTALE)
        return self._refresh(node, found.entry)

    async def page(self, node: Node, after: str) -> tuple[list[Entry], str | None]:
        """Entries of a directory behind `after`, and what to go on from."""
        await self.settle_children(node)
        found = await self.remote.ask(ReadDirectory(self.bucket, self.nodes.path(node), after, PAGE))
        return found.entries, found.next

    async def space(self) -> FileResult:
        now = time.monotonic()
        if self._space is None or now - self._space[0] > SPACE_SECONDS:
            self._space = now, await self.remote.ask(Space(self.bucket))
        return self._space[1]

    # -- pending and dirty ----------------------------------------------------------------------------------
    async def settle(self, node: Node) -> None:
        """Commit what the node has that metadata does not: its name, its bytes."""
        if node.pending or (node.body is not None and node.body.is_dirty):
            await self.body(node).flush()

    async def settle_children(self, parent: Node) -> None:
        for node, _ in list(self._dirty.values()):
            if node.pending and node.names and node.names[-1][0] == parent.ino:
                await self.settle(node)

    async def settle_all(self) -> None:
        for node, _ in list(self._dirty.values()):
            await self.settle(node)

    async def relieve(self) -> None:
        """Memory is short: commit the file that holds the most."""
        holders = [node for node, _ in self._dirty.values() if node.body is not None and node.body.held_bytes]
        if holders:
            fullest = max(holders, key=lambda node: node.body.held_bytes if node.body is not None else 0)
            await self.body(fullest).flush()

    async def flush_old(self) -> None:
        """Commit what nobody synced for a while. A failure is the file's own: its next fsync or close tells."""
        limit = time.monotonic() - DIRTY_SECONDS
        for node, since in list(self._dirty.values()):
            if since < limit:
                try:
                    await self.settle(node)
                except TierstoreError:
                    continue        # kept in the body and raised to the program that has it open

    def mark_dirty(self, node: Node) -> None:
        if node.ino not in self._dirty:
            self._dirty[node.ino] = node, time.monotonic()

    def body(self, node: Node) -> Body:
        """The node's bytes; made when they are first needed."""
        if node.body is None:
            async def find(first: int, length: int) -> FileResult:
                return await self.remote.ask(Extents(self.bucket, self.nodes.path(node), first, length))

            async def change(write: WriteFile) -> FileResult:
                result = await self.remote.change(write)
                self._note_own(result.entry)
                return result

            def about() -> Commit:
                make = node.attributes if node.pending else None
                return Commit(
                    self.nodes.path(node), node.number, node.attributes.mtime_ns or self.now_ns(), make,
                    node.clear_setuid, node.pinned_times,
                )  # fmt: skip

            def committed(entry: Entry) -> None:
                node.pending = False
                if entry.attributes.ino != node.number:
                    node.alias = entry.attributes.ino
                    self.nodes.aliases[node.alias] = node
                node.clear_setuid = False
                node.version, node.size, node.extents = entry.version, entry.size, entry.extents
                if node.body is None or not node.body.is_dirty:
                    node.attributes = entry.attributes
                    node.checked_at = time.monotonic()
                    self._dirty.pop(node.ino, None)

            reader = Reader(
                self.store, self.bucket, lambda: self.nodes.path(node), find, self.read_budget, version=node.version,
                size=node.size,
            )  # fmt: skip
            node.body = Body(
                self.store, self.bucket, size=node.size, version=node.version, budget=self.dirty_budget,
                change=change, about=about, committed=committed, relieve=self.relieve, reader=reader,
            )  # fmt: skip
        return node.body

    # -- making ---------------------------------------------------------------------------------------------
    def _new(self, parent: Node, mode: int, uid: int, gid: int) -> Attributes:
        """Attributes of something new. A directory with the setgid bit passes its group on (to directories the bit)."""
        if parent.attributes.mode & 0o2000:
            gid = parent.attributes.gid
            if mode & 0o170000 == S_IFDIR:
                mode |= 0o2000
        now = self.now_ns()
        return Attributes(self._rng.getrandbits(61) | 1 << 60, mode, uid, gid, now, now, now)

    async def make(
        self, parent: Node, name: str, mode: int, uid: int, gid: int, *, rdev: int = 0, target: bytes = b""
    ) -> Node:
        """A directory, link, special file or empty file, committed when it returns."""
        if len(target) > TARGET_BYTES_MAX:
            raise FileError(errno.ENAMETOOLONG)
        await self._settle_name(parent, name)
        a = msgspec.structs.replace(self._new(parent, mode, uid, gid), rdev=rdev, target=target)
        result = await self.remote.change(Make(self.bucket, self.nodes.path_of(parent, name), a))
        return self._made(parent, result)

    async def symlink(self, parent: Node, name: str, target: bytes, uid: int, gid: int) -> Node:
        return await self.make(parent, name, S_IFLNK | 0o777, uid, gid, target=target)

    def _made(self, parent: Node, result: FileResult) -> Node:
        assert result.entry is not None, "what was made is in the answer"
        self._note_own(result.entry)
        self._touched(parent)
        return self.take_in(parent, result.entry)

    def _touched(self, parent: Node) -> None:
        """The directory's times changed on the server: ask again."""
        parent.checked_at = -1e9

    def make_pending(self, parent: Node, name: str, mode: int, uid: int, gid: int, *, cut: bool) -> Node:
        """A file that is committed with its first bytes, or when it is closed. cut: O_TRUNC, should it be there by
        then."""
        a = self._new(parent, mode, uid, gid)
        node = Node(a.ino, a, pending=True)
        self.nodes.by_ino[a.ino] = node
        self.nodes.bind(parent, name, node)
        self._touched(parent)
        body = self.body(node)
        body.truncate_to = 0 if cut else -1
        self.mark_dirty(node)
        return node

    async def _settle_name(self, parent: Node, name: str) -> None:
        known = self.nodes.child(parent.ino, name)
        if known is not None:
            await self.settle(known)

    # -- removing and moving --------------------------------------------------------------------------------
    async def unlink(self, parent: Node, name: str) -> Node | None:
        """Returns the node that lost this name, if it is known here."""
        await self._settle_name(parent, name)
        node = self.nodes.child(parent.ino, name)
        holder = self.mount if node is not None and node.opens else ""
        path = self.nodes.path_of(parent, name)
        result = await self.remote.change(Remove(self.bucket, path, self.now_ns(), holder=holder))
        self._touched(parent)
        return self._lost(parent, name, result.entry)

    def _lost(self, parent: Node, name: str, entry: Entry | None) -> Node | None:
        node = self.nodes.child(parent.ino, name)
        if node is None or entry is None or entry.attributes.ino != node.number:
            self.nodes.unbind(parent, name)
            return None
        node.set(links=entry.attributes.links, ctime_ns=entry.attributes.ctime_ns)
        if entry.attributes.links == 0 and not node.attributes.is_directory:
            node.orphan = True
        self.nodes.unbind(parent, name)
        return node

    async def rmdir(self, parent: Node, name: str) -> Node | None:
        known = self.nodes.child(parent.ino, name)
        if known is not None:
            await self.settle_children(known)
        path = self.nodes.path_of(parent, name)
        result = await self.remote.change(Remove(self.bucket, path, self.now_ns(), directory=True))
        self._touched(parent)
        return self._lost(parent, name, result.entry)

    async def rename(self, parent: Node, name: str, to: Node, to_name: str, *, no_replace: bool) -> None:
        source, target = self.nodes.child(parent.ino, name), self.nodes.child(to.ino, to_name)
        if source is None:
            source = await self.lookup(parent, name)
        if source.attributes.is_directory:
            await self.settle_all()
        await self.settle(source)
        if target is not None:
            await self.settle(target)
        holder = self.mount if target is not None and target.opens else ""
        change = Rename(
            self.bucket, self.nodes.path_of(parent, name), self.nodes.path_of(to, to_name), self.now_ns(), no_replace,
            holder,
        )  # fmt: skip
        result = await self.remote.change(change)
        self._note_own(result.entry)
        self._touched(parent)
        self._touched(to)
        assert result.entry is not None, "what was renamed is in the answer"
        if source is target:
            return
        if result.replaced is not None or target is not None:
            self._lost(to, to_name, result.replaced)
        self.nodes.move(parent, name, source)
        self.nodes.bind(to, to_name, source)
        if result.entry.attributes.ino == source.number:
            if source.body is not None:
                source.body.version = result.entry.version
            self._refresh(source, result.entry)

    async def link(self, node: Node, parent: Node, name: str) -> Node:
        await self.settle(node)
        result = await self.remote.change(
            Link(self.bucket, self.nodes.path(node), self.nodes.path_of(parent, name), self.now_ns())
        )
        assert result.entry is not None, "what was linked is in the answer"
        if node.body is not None:
            node.body.version = result.entry.version
        return self._made(parent, result)

    # -- attributes -----------------------------------------------------------------------------------------
    async def set_attributes(
        self, node: Node, *, mode: int | None = None, uid: int | None = None, gid: int | None = None,
        atime_ns: int | None = None, mtime_ns: int | None = None, by_root: bool = True,
    ) -> None:  # fmt: skip
        now = self.now_ns()
        a = node.attributes
        is_given_away = (uid is not None or gid is not None) and not a.is_directory and a.mode & 0o6000
        if is_given_away and (not by_root or a.mode & 0o010):
            # A new owner does not inherit the right to run as the old one.
            mode = (a.mode if mode is None else mode) & ~0o6000
        if node.pending:
            node.pinned_times = node.pinned_times or mtime_ns is not None
            values = {"uid": uid, "gid": gid, "atime_ns": atime_ns, "mtime_ns": mtime_ns, "ctime_ns": now}
            if mode is not None:
                values["mode"] = (a.mode & ~0o7777) | (mode & 0o7777)
            node.set(**{key: value for key, value in values.items() if value is not None})
            return
        await self.settle(node)
        await self._change_attributes(node, SetAttributes(
            self.bucket, self.nodes.path(node), 0 if node.ino == ROOT else node.number, now, mode, uid, gid, atime_ns,
            mtime_ns,
        ))  # fmt: skip

    async def set_xattr(
        self, node: Node, name: str, value: bytes | None, *, create: bool = False, replace: bool = False
    ) -> None:
        """value None removes. create, replace: as setxattr's flags."""
        if value is not None and len(value) > XATTR_BYTES_MAX:
            raise FileError(errno.E2BIG)
        await self.settle(node)
        await self._change_attributes(node, SetAttributes(
            self.bucket, self.nodes.path(node), 0 if node.ino == ROOT else node.number, self.now_ns(),
            xattrs={name: value}, create_only=create, replace_only=replace,
        ))  # fmt: skip

    async def _change_attributes(self, node: Node, change: SetAttributes) -> None:
        result = await self.remote.change(change)
        assert result.entry is not None, "attributes are in the answer"
        self._refresh(node, result.entry)

    # -- forgetting -----------------------------------------------------------------------------------------
    def forget(self, ino: int, count: int) -> None:
        node = self.nodes.by_ino.get(ino)
        if node is not None:
            node.lookups = max(0, node.lookups - count)
            self.nodes.drop_if_idle(node)

    async def closed(self, node: Node) -> None:
        """The last handle is gone."""
        if node.opens:
            return
        if node.orphan:
            if node.body is not None:
                await node.body.close(abandon=True)
                node.body = None
            self._dirty.pop(node.ino, None)
            change = Remove(self.bucket, self.nodes.path(node), self.now_ns())
            try:
                await self.remote.change(change)
            except NotFound:
                pass        # it had no body to keep, or its lease ended
        elif node.body is not None:
            await self.settle(node)
            await node.body.close()
            if not node.body.is_dirty and not node.opens:
                node.body = None
        self.nodes.drop_if_idle(node)
