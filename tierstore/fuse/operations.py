"""The tree as pyfuse3 operations: a thin adapter. Every handler ends in an answer (fuse/answered)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields, StatvfsData

from tierstore.errors import TierstoreError
from tierstore.files.looking import NAME_BYTES_MAX
from tierstore.files.node import Node
from tierstore.files.stream import Bytes
from tierstore.files.tree import Tree
from tierstore.fuse.answered import answered
from tierstore.fuse.handles import DirectoryHandle, Handle, Handles
from tierstore.fuse.xattrs import attribute_name
from tierstore.wire.files import NO_OWNER, S_IFREG

BLOCK: Final = 4096
_DOTS: Final = (b".", b"..")
FILE_BYTES_MAX: Final = 5 << 40


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns what no mount has made."""

    uid: int
    gid: int


class Operations(pyfuse3.Operations):
    """One mount. Event loop only."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, tree: Tree, owner: Owner) -> None:
        super().__init__()
        self.tree = tree
        self._owner = owner
        self._handles = Handles()
        self.is_begun = asyncio.Event()

    def init(self) -> None:
        """The kernel and libfuse have agreed on what each can do."""
        self.is_begun.set()

    def attributes(self, node: Node) -> EntryAttributes:
        a = node.attributes
        size = node.entry_size()
        seconds = self.tree.fresh_seconds
        e = EntryAttributes()
        e.st_ino = node.ino
        e.generation = 0
        e.entry_timeout = e.attr_timeout = seconds
        e.st_mode = a.mode
        e.st_nlink = 2 + a.subdirs if a.is_directory and a.links else a.links
        e.st_uid = self._owner.uid if a.uid == NO_OWNER else a.uid
        e.st_gid = self._owner.gid if a.gid == NO_OWNER else a.gid
        e.st_rdev = a.rdev
        e.st_size = BLOCK if a.is_directory else size
        e.st_blksize = 128 * 1024
        e.st_blocks = -(-size // 512)
        e.st_atime_ns, e.st_mtime_ns, e.st_ctime_ns = a.atime_ns, a.mtime_ns, a.ctime_ns
        return e

    def _entry(self, node: Node) -> EntryAttributes:
        """An answer that the kernel will forget again."""
        node.lookups += 1
        return self.attributes(node)

    # -- names ----------------------------------------------------------------------------------------------
    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name in _DOTS:       # how the kernel opens a handle: by number, which may be from an earlier mount
            parent = await self.tree.by_number(parent_inode)
        else:
            parent = self.tree.node(parent_inode)
        return self._entry(await self.tree.lookup(parent, self.tree.name(name)))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            self.tree.forget(ino, count)

    @answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        parent = self.tree.node(parent_inode)
        made = await self.tree.make(
            parent, self.tree.name(name), stat.S_IFDIR | (mode & 0o7777 & ~ctx.umask), ctx.uid, ctx.gid
        )
        return self._entry(made)

    @answered
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self.tree.node(parent_inode)
        kind = stat.S_IFMT(mode) or S_IFREG
        made = await self.tree.make(
            parent, self.tree.name(name), kind | (mode & 0o7777 & ~ctx.umask), ctx.uid, ctx.gid, rdev=rdev
        )
        return self._entry(made)

    @answered
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self.tree.node(parent_inode)
        return self._entry(await self.tree.symlink(parent, self.tree.name(name), target, ctx.uid, ctx.gid))

    @answered
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.tree.node(inode).attributes.target

    @answered
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        node, parent = self.tree.node(inode), self.tree.node(new_parent_inode)
        return self._entry(await self.tree.link(node, parent, self.tree.name(new_name)))

    @answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self.tree.unlink(self.tree.node(parent_inode), self.tree.name(name))

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self.tree.rmdir(self.tree.node(parent_inode), self.tree.name(name))

    @answered
    async def rename(  # noqa: PLR0917 - the order is pyfuse3's
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int,
        ctx: RequestContext,
    ) -> None:  # fmt: skip
        if flags & ~int(pyfuse3.RENAME_NOREPLACE):
            raise FUSEError(errno.EINVAL)
        tree = self.tree
        await tree.rename(
            tree.node(parent_inode_old), tree.name(name_old), tree.node(parent_inode_new), tree.name(name_new),
            no_replace=bool(flags),
        )  # fmt: skip

    # -- attributes -----------------------------------------------------------------------------------------
    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        node = self.tree.node(inode)
        await self.tree.check(node)
        return self.attributes(node)

    @answered
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        node = self.tree.node(inode)
        if fields.update_size:
            await self._truncate(node, attr.st_size, ctx.uid)
        mode = attr.st_mode & 0o7777 if fields.update_mode else None
        uid = attr.st_uid if fields.update_uid else None
        gid = attr.st_gid if fields.update_gid else None
        atime_ns = attr.st_atime_ns if fields.update_atime else None
        mtime_ns = attr.st_mtime_ns if fields.update_mtime else None
        if any(value is not None for value in (mode, uid, gid, atime_ns, mtime_ns)) or not fields.update_size:
            await self.tree.set_attributes(
                node, mode=mode, uid=uid, gid=gid, atime_ns=atime_ns, mtime_ns=mtime_ns
            )
        return self.attributes(node)

    async def _truncate(self, node: Node, size: int, uid: int) -> None:
        if size > FILE_BYTES_MAX:
            raise FUSEError(errno.EFBIG)
        if node.attributes.is_directory:
            raise FUSEError(errno.EISDIR)
        await self.tree.check(node)
        body = self.tree.body(node)
        self._note_write(node, uid)
        if size == body.size:
            await self.tree.set_attributes(node, mtime_ns=node.attributes.mtime_ns)
            return
        await body.truncate(size)
        if body.is_dirty:
            self.tree.mark_dirty(node)
            if not node.opens:
                try:
                    await body.flush()
                except TierstoreError:
                    await self.tree.abandon(node)       # nobody has it open who could try again
                    raise

    def _note_write(self, node: Node, uid: int) -> None:
        now = self.tree.now_ns()
        a = node.attributes
        mode = a.mode
        if uid and mode & 0o6000 and (mode & 0o4000 or mode & 0o010):
            node.clear_setuid = True
            mode &= ~0o6000
        node.pinned_times = False
        node.set(mtime_ns=now, ctime_ns=now, mode=mode)

    @answered
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        return True     # the kernel checks (default_permissions)

    @answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        space = await self.tree.space()
        s = StatvfsData()
        s.f_bsize = s.f_frsize = BLOCK
        s.f_blocks, s.f_bfree = space.total_bytes // BLOCK, space.free_bytes // BLOCK
        s.f_bavail = s.f_bfree
        s.f_files, s.f_ffree, s.f_favail = 1 << 40, 1 << 40, 1 << 40
        s.f_namemax = NAME_BYTES_MAX
        return s

    # -- extended attributes --------------------------------------------------------------------------------
    @answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        text = attribute_name(name)
        await self.tree.set_xattr(self.tree.node(inode), text, value)

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        text = attribute_name(name)
        node = self.tree.node(inode)
        await self.tree.check(node)
        value = node.attributes.xattrs.get(text)
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    @answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        node = self.tree.node(inode)
        await self.tree.check(node)
        return [name.encode() for name in node.attributes.xattrs]

    @answered
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self.tree.set_xattr(self.tree.node(inode), attribute_name(name), None)

    # -- files ----------------------------------------------------------------------------------------------
    @answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        tree = self.tree
        parent, text = tree.node(parent_inode), tree.name(name)
        bits = stat.S_IFREG | (mode & 0o7777 & ~ctx.umask)
        if flags & os.O_EXCL:
            node = await tree.make(parent, text, bits, ctx.uid, ctx.gid)
        else:
            node = tree.make_pending(parent, text, bits, ctx.uid, ctx.gid, cut=bool(flags & os.O_TRUNC))
        node.opens += 1
        info = FileInfo(fh=self._handles.add(Handle(node, flags, ctx.uid)), keep_cache=True)
        return info, self._entry(node)

    @answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        node = self.tree.node(inode)
        if node.unlinked_elsewhere:     # by a name that the kernel remembers: told this, it looks it up anew
            raise FUSEError(errno.ESTALE)
        changed = await self.tree.opening(node)
        if changed:
            # The pages go with the answer, but not the size that the kernel remembers, and it reads no further than
            # that. Attributes only: this waits for no page, so for no request that this loop has yet to answer.
            with contextlib.suppress(OSError):      # the kernel has just forgotten the file
                pyfuse3.invalidate_inode(inode, attr_only=True)
        try:
            if flags & os.O_TRUNC:      # also of an empty file: its times change
                await self.tree.body(node).truncate(0)
                self._note_write(node, ctx.uid)
                self.tree.mark_dirty(node)
                changed = True
        except BaseException:
            await self.tree.failed_opening(node)
            raise
        return FileInfo(fh=self._handles.add(Handle(node, flags, ctx.uid)), keep_cache=not changed)

    @answered
    async def read(self, fh: int, off: int, size: int) -> Bytes:
        return await self.tree.body(self._handles.file(fh).node).read(off, size)

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._handles.file(fh)
        if off + len(buf) > FILE_BYTES_MAX:
            raise FUSEError(errno.EFBIG)
        node = handle.node
        self._note_write(node, handle.uid)
        self.tree.mark_dirty(node)
        handle.is_written = True
        await self.tree.body(node).write(off, buf, appended=bool(handle.flags & os.O_APPEND))
        return len(buf)

    @answered
    async def flush(self, fh: int) -> None:
        await self.tree.closing(self._handles.file(fh).node)

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self.tree.sync(self._handles.file(fh).node)

    @answered
    async def release(self, fh: int) -> None:
        handle = self._handles.pop(fh)
        if isinstance(handle, Handle):
            handle.node.opens -= 1
            await self.tree.closed(handle.node)

    # -- directories ----------------------------------------------------------------------------------------
    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        node = self.tree.node(inode)
        node.opens += 1
        return self._handles.add(DirectoryHandle(node))

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        handle = self._handles.directory(fh)
        if start_id == 0:
            handle.entries, handle.next = [], ""
        at = start_id
        while True:
            while at >= len(handle.entries) and handle.next is not None:
                entries, handle.next = await self.tree.page(handle.node, handle.next)
                handle.entries += entries
            if at >= len(handle.entries):
                return
            entry = handle.entries[at]
            node = self.tree.take_in(handle.node, entry)
            at += 1
            if not pyfuse3.readdir_reply(token, entry.name.encode(), self.attributes(node), at):
                self.tree.nodes.drop_if_idle(node)
                return
            node.lookups += 1

    @answered
    async def releasedir(self, fh: int) -> None:
        handle = self._handles.pop(fh)
        if handle is not None:
            handle.node.opens -= 1
            self.tree.nodes.drop_if_idle(handle.node)

    @answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self.tree.sync(self._handles.directory(fh).node)
