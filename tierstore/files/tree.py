"""A bucket as a tree of files, neutral to whoever mounts it: names, attributes, links. Bytes: files/body.

Every operation asks metadata, which decides; what comes back is remembered in nodes. A file created without O_EXCL is
committed with its first bytes (one commit): until then it is `pending`, and anything but writing, looking and setting
attributes commits it first. Errors: tierstore.errors for what metadata says, FileError for what is decided here.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from typing import Final

import msgspec

from tierstore.errors import NotFound, TierstoreError
from tierstore.files.behind import Behind
from tierstore.files.dirty import Dirty
from tierstore.files.errno import FileError
from tierstore.files.node import ROOT, Node
from tierstore.wire.files import (
    S_IFDIR,
    S_IFLNK,
    Attributes,
    Entry,
    FileResult,
    Link,
    Make,
    Remove,
    Rename,
    SetAttributes,
)

TARGET_BYTES_MAX: Final = 4095
XATTR_BYTES_MAX: Final = 60 << 10


class Tree(Dirty):
    """One mount. Event loop only."""

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
        self.absent.note(parent.ino, name)
        a = msgspec.structs.replace(self._new(parent, mode, uid, gid), rdev=rdev, target=target)
        result = await self._change(Make(self.bucket, self.nodes.path_of(parent, name), a))
        return self._made(parent, result)

    async def symlink(self, parent: Node, name: str, target: bytes, uid: int, gid: int) -> Node:
        return await self.make(parent, name, S_IFLNK | 0o777, uid, gid, target=target)

    def _made(self, parent: Node, result: FileResult) -> Node:
        assert result.entry is not None, "what was made is in the answer"
        self._note_own(result.entry)
        return self.take_in(parent, result.entry)

    def make_pending(self, parent: Node, name: str, mode: int, uid: int, gid: int, *, cut: bool) -> Node:
        """A file that is committed with its first bytes, or when it is closed. cut: O_TRUNC, should it be there by
        then."""
        a = self._new(parent, mode, uid, gid)
        self.absent.note(parent.ino, name)
        node = Node(a.ino, a, pending=True)
        self.nodes.by_ino[a.ino] = node
        self.nodes.bind(parent, name, node)
        parent.set(mtime_ns=a.mtime_ns, ctime_ns=a.ctime_ns)      # as the commit is going to set them
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
        result = await self._change(Remove(self.bucket, path, self.now_ns(), holder=holder, mount=self.mount))
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
        result = await self._change(Remove(self.bucket, path, self.now_ns(), directory=True))
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
        self.absent.note(to.ino, to_name)
        holder = self.mount if target is not None and target.opens else ""
        change = Rename(
            self.bucket, self.nodes.path_of(parent, name), self.nodes.path_of(to, to_name), self.now_ns(), no_replace,
            holder, is_file=not source.attributes.is_directory, mount=self.mount,
        )  # fmt: skip
        result = await self._change(change)
        self._note_own(result.entry)
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
        self.absent.note(parent.ino, name)
        result = await self._change(
            Link(self.bucket, self.nodes.path(node), self.nodes.path_of(parent, name), self.now_ns())
        )
        assert result.entry is not None, "what was linked is in the answer"
        if node.body is not None:
            node.body.version = result.entry.version
        return self._made(parent, result)

    # -- attributes -----------------------------------------------------------------------------------------
    async def set_attributes(
        self, node: Node, *, mode: int | None = None, uid: int | None = None, gid: int | None = None,
        atime_ns: int | None = None, mtime_ns: int | None = None,
    ) -> None:  # fmt: skip
        now = self.now_ns()
        a = node.attributes
        if (uid is not None or gid is not None) and not a.is_directory and a.mode & 0o6000:
            # A new owner does not inherit the right to run as the old one. Without the right to run at all, the group's
            # bit means something else (mandatory locks, once), and stays.
            mode = (a.mode if mode is None else mode) & ~(0o6000 if a.mode & 0o010 else 0o4000)
        if node.pending:
            node.pinned_times = node.pinned_times or mtime_ns is not None
            values = {"uid": uid, "gid": gid, "atime_ns": atime_ns, "mtime_ns": mtime_ns, "ctime_ns": now}
            if mode is not None:
                values["mode"] = (a.mode & ~0o7777) | (mode & 0o7777)
            node.set(**{key: value for key, value in values.items() if value is not None})
            return
        await self.settle(node)
        await self._change_attributes(node, lambda path: SetAttributes(
            self.bucket, path, 0 if node.ino == ROOT else node.number, now, mode, uid, gid, atime_ns, mtime_ns,
        ))  # fmt: skip

    async def set_xattr(
        self, node: Node, name: str, value: bytes | None, *, create: bool = False, replace: bool = False
    ) -> None:
        """value None removes. create, replace: as setxattr's flags."""
        if value is not None and len(value) > XATTR_BYTES_MAX:
            raise FileError(errno.E2BIG)
        await self.settle(node)
        await self._change_attributes(node, lambda path: SetAttributes(
            self.bucket, path, 0 if node.ino == ROOT else node.number, self.now_ns(),
            xattrs={name: value}, create_only=create, replace_only=replace,
        ))  # fmt: skip

    async def _change_attributes(self, node: Node, change: Callable[[str], SetAttributes]) -> None:
        result = await self.change_of(node, change)
        assert result.entry is not None, "attributes are in the answer"
        self._refresh(node, result.entry)

    # -- forgetting -----------------------------------------------------------------------------------------
    def forget(self, ino: int, count: int) -> None:
        node = self.nodes.by_ino.get(ino)
        if node is not None:
            node.lookups = max(0, node.lookups - count)
            self.nodes.drop_if_idle(node)

    async def opening(self, node: Node) -> bool:
        """Count one more handle of the file; True when its bytes changed under us. Counted before metadata is asked:
        who removes it while the answer is under way removes a file that is open (look_after). Raises what `check` does;
        then there is no handle."""
        node.opens += 1
        try:
            return await self.check(node, always=True)
        except BaseException:
            await self.failed_opening(node)
            raise

    async def failed_opening(self, node: Node) -> None:
        """There is no handle after all. What was held for it goes, or, when that cannot be told now, at the end of the
        mount's lease."""
        node.opens -= 1
        if node.orphan:
            with contextlib.suppress(TierstoreError):
                await self.closed(node)

    def commit_behind(self) -> Behind:
        """From now on a close does not wait for its commit: the rounds of what this returns see to it. Nor do changes
        of names and attributes wait for the disk: metadata syncs them within a moment."""
        self.remote.is_soon = True
        self.behind = Behind(self._commit_behind, self.abandon)
        return self.behind

    async def closing(self, node: Node) -> None:
        """A handle is being closed. Durable when it returns, unless closes do not wait; then what failed so far is
        raised."""
        if self.behind is None:
            await self.settle(node)
        elif node.pending or (node.body is not None and node.body.is_dirty):
            self.body(node).check()
            await self.behind.add(node)

    async def _commit_behind(self, node: Node) -> None:
        if node.pending or (node.body is not None and node.body.is_dirty):
            await self.body(node).flush(again=True)
        await self.closed(node)

    async def abandon(self, node: Node) -> None:
        """What could not be committed is dropped, unless a program that still has the file open may yet mend it."""
        if node.opens:
            return
        self._dirty.pop(node.ino, None)
        if node.body is not None:
            await node.body.close(abandon=True)
            node.body = None
        if node.pending:
            node.pending = False
            for parent, name in list(node.names):
                self.nodes.unbind(self.node(parent), name)
        node.checked_at = -1e9
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
            change = Remove(self.bucket, self.nodes.path(node), self.now_ns(), mount=self.mount)
            try:
                await self._change(change)
            except NotFound:
                pass        # it had no body to keep, or its lease ended
        elif node.body is not None:
            if self.behind is not None and (node.pending or node.body.is_dirty):
                try:
                    return await self.behind.add(node)      # its round calls this again
                except TierstoreError:
                    await self.abandon(node)       # its close has told
                    raise
            try:
                await self.settle(node)
            except TierstoreError:
                await self.abandon(node)       # its close has told
                raise
            await node.body.close()
            self.note_pieces(node)
            if not node.body.is_dirty and not node.opens:
                node.body = None
        self.nodes.drop_if_idle(node)
