"""What a mount knows of a bucket and how sure it is of it: nodes and their freshness. What it holds: files/dirty.

Metadata decides; what it answered is remembered in nodes and good for as long as the change feed vouches for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import time
from collections.abc import Callable
from typing import Final, Self

import msgspec

from tierstore.errors import ConflictError, NotFound, TierstoreError
from tierstore.files.absent import Absent
from tierstore.files.errno import FileError
from tierstore.files.memory import ReadMemory
from tierstore.files.node import ROOT, Node, Nodes
from tierstore.files.remote import PATIENCE_SECONDS, FilesRemote
from tierstore.files.whereabouts import FOLLOWS_MAX, Whereabouts, is_lost
from tierstore.sdk import Store
from tierstore.sdk.budget import BufferBudget
from tierstore.units import MIB
from tierstore.wire.files import (
    S_IFDIR,
    Attributes,
    Changed,
    Entry,
    Extents,
    FileMutation,
    FileResult,
    Look,
    ReadDirectory,
    Space,
    Watch,
)
from tierstore.wire.names import LookupResult

NAME_BYTES_MAX: Final = 255
BUDGET_BYTES: Final = 256 * MIB
#: How long an answer is good without the feed.
FRESH_SECONDS: Final = 1.0
#: And with it (the feed drives invalidation).
WATCHED_SECONDS: Final = 60.0
SPACE_SECONDS: Final = 5.0
#: A file that is at another site comes within so long, or the change of it fails.
BRING_SECONDS: Final = 120.0
BRING_POLL_SECONDS: Final = 0.1
OWN_VERSIONS_MAX: Final = 50_000
#: Names of a directory that is read to have it delegated.
NAMES_OF_ONE_MAX: Final = 1000
#: Open files that are looked at side by side when others changed their names.
LOOKS_AT_ONCE: Final = 64
#: How a look at a file may end that went away, or whose metadata is away: whoever uses it next is told.
_LOOK_FAILURES: Final = (TierstoreError, FileError, TimeoutError)


class Looking:
    """One mount. Event loop only."""

    def __init__(
        self, store: Store, bucket: str, *, mount: str, rng: random.Random, budget_bytes: int = BUDGET_BYTES,
        cache_seconds: float = WATCHED_SECONDS, patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:  # fmt: skip
        """mount: names this mount in leases; unique. cache_seconds: 0 turns attribute caching off.
        patience_seconds: that a question or change waits for metadata."""
        self.store = store
        self.bucket = bucket
        self.mount = mount
        self.patience_seconds = patience_seconds
        self.remote = FilesRemote(store.client, bucket, seconds=patience_seconds, mount=mount)
        self.absent = Absent()
        self._rng = rng
        self._cache_seconds = cache_seconds
        # Halves, so that streams that read ahead never keep a writer waiting, nor the other way round.
        self.dirty_budget = BufferBudget(budget_bytes // 2)
        self.read_memory = ReadMemory(budget_bytes - budget_bytes // 2)
        self.nodes = Nodes(Attributes(ROOT, S_IFDIR | 0o755, links=2))
        self.whereabouts = Whereabouts(
            bucket, self.nodes, self.remote, mount=mount, lookup=self.lookup, take_in=self.take_in
        )
        self.is_watched = False
        self._own: dict[int, None] = {}
        self._space: tuple[float, FileResult] | None = None

    async def open(self) -> Self:
        """Look at the root. Raises NotFound(no-such-bucket), AccessDenied."""
        found = await self.remote.ask(Look(self.bucket, ""))
        assert found.entry is not None, "the root is always there"
        self._refresh(self.nodes.by_ino[ROOT], found.entry)
        with contextlib.suppress(TierstoreError, TimeoutError):     # who follows the feed says it again
            # Others know that this mount lives before it opens a file that they may remove.
            await self.remote.watch(Watch(self.bucket, -1, self.mount))
        return self

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
        if a.is_directory and 0 < entry.version < node.version:
            return False        # an answer from before the change that was answered first
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

    async def _change(self, mutation: FileMutation) -> FileResult:
        """Apply one change. A file whose bytes are at another site is read once, which brings them, when it must be
        here for that."""
        try:
            result = await self.remote.change(mutation)
        except ConflictError as error:
            if error.code != "body-not-here":
                raise
            await self._bring(mutation.path)
            result = await self.remote.change(mutation)
        for directory in result.touched:
            self._touched(directory)
        return result

    def _touched(self, directory: Entry) -> None:
        """A change of ours left a directory with new times: they are known, the feed tells nothing new of it."""
        self._note_own(directory)
        node = self.nodes.at(directory.name)
        if node is not None and (node.ino == ROOT or node.number == directory.attributes.ino):
            self._refresh(node, directory)

    async def _bring(self, path: str) -> None:
        """Have the bytes of another site here as this site's own: read once through a gateway, which keeps them as
        bytes that may be let go of, then claimed. The gateway may still be storing them when they have been read."""
        read = 0        # the version that was
        async with asyncio.timeout(BRING_SECONDS):
            while (found := await self.remote.ask(Extents(self.bucket, path, 0, 1))).is_remote:
                if found.entry is None:
                    return      # nothing is known of it: the change itself says what is wrong
                if found.entry.version == read:
                    await asyncio.sleep(BRING_POLL_SECONDS)
                else:
                    await self._read_once(path, found.entry)
                    read = found.entry.version
                with contextlib.suppress(ConflictError, NotFound):      # whole already; replaced by a newer version
                    await self.store.fill(self.bucket, path, read, 0, memoryview(b""))

    async def _read_once(self, path: str, entry: Entry) -> None:
        lookup = LookupResult(version=entry.version, size=entry.size, is_remote=True)
        walk = self.store.remote_walk(self.bucket, path, lookup, first=0, length=entry.size)
        try:
            await walk.start()
            while await walk.next_piece():
                pass
        finally:
            await walk.close()

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
        if known is None and self._may_answer and self.absent.is_known(parent.ino, name):
            raise NotFound(f"there is no file {name!r}", code="no-such-file")
        try:
            found = await self.remote.ask(Look(self.bucket, self.nodes.path_of(parent, name)))
        except NotFound:
            if known is not None and not known.pending:
                self.nodes.unbind(parent, name)
            if self._may_answer and self.absent.is_worth_reading(parent.ino):
                await self._learn_names(parent)
            raise
        assert found.entry is not None, "a look answers with an entry"
        return self.take_in(parent, found.entry)

    @property
    def _may_answer(self) -> bool:
        """A mount that the feed does not reach may have lost its rights."""
        return self.is_watched and self._cache_seconds > 0

    async def _learn_names(self, parent: Node) -> None:
        """Have the directory delegated, if it is small enough and metadata can do it now."""
        with contextlib.suppress(TierstoreError, TimeoutError):
            path = self.nodes.path(parent)
            found = await self.remote.ask(ReadDirectory(self.bucket, path, limit=NAMES_OF_ONE_MAX, mount=self.mount))
            directory = found.entry
            if not found.delegation or directory is None:
                return
            if parent.ino == ROOT or directory.attributes.ino == parent.number:
                self.absent.take(parent.ino, found.delegation, [entry.name for entry in found.entries])

    async def by_number(self, ino: int) -> Node:
        """The node with that number, also one that this mount has never seen: an NFS server keeps numbers for as long
        as its clients do. Raises FileError(ESTALE) when nothing has it any more."""
        known = self.nodes.by_ino.get(ino)
        if known is not None:
            return known
        entry = await self.remote.find(ino)
        if entry is None:
            raise FileError(errno.ESTALE)
        try:
            node = await self.whereabouts.walk(entry.name)
        except NotFound:
            raise FileError(errno.ESTALE) from None
        if node.number != ino:      # something else came to stand there meanwhile
            raise FileError(errno.ESTALE)
        return node

    def take_in(self, parent: Node, entry: Entry) -> Node:
        node = self.nodes.learn(parent, entry)
        self._refresh(node, entry)
        return node

    async def check(self, node: Node, *, always: bool = False) -> bool:
        """See to it that the node's attributes are fresh; True when its bytes changed under us."""
        if node.pending or (node.orphan and not always) or (node.body is not None and node.body.is_dirty):
            return False
        if node.attributes.is_directory and not node.attributes.links:
            return False        # removed, and still open somewhere: nothing new will ever be known of it
        if not always and time.monotonic() - node.checked_at < self.fresh_seconds:
            return False
        # An open asks about a name: a file that has gone from it is not what is meant.
        found = await self.ask_of(node, lambda path: Look(self.bucket, path), is_open=node.opens > 0 and not always)
        assert found.entry is not None, "a look answers with an entry"
        if node.number not in (found.entry.attributes.ino, ROOT):
            raise FileError(errno.ESTALE)
        return self._refresh(node, found.entry)

    async def look_after(self, changes: list[Changed] | None) -> None:
        """Look at open files at whose names others did something (None: at all that are open): one that has lost its
        last name stays if this mount says in time that it has it open."""
        if changes is None:
            nodes = list(self.nodes.by_ino.values())
        else:
            told = [c for c in changes if c.gone or not (c.attributes_only or self.is_own(c.version))]
            nodes = [node for change in told if (node := self.nodes.at(change.path)) is not None]
        opened = [node for node in nodes if node.opens and not node.orphan and not node.attributes.is_directory]
        for first in range(0, len(opened), LOOKS_AT_ONCE):
            looks = (self.check(node) for node in opened[first : first + LOOKS_AT_ONCE])
            for failure in await asyncio.gather(*looks, return_exceptions=True):
                if isinstance(failure, BaseException) and not isinstance(failure, _LOOK_FAILURES):
                    raise failure

    async def ask_of(
        self, node: Node, question: Callable[[str], Look | ReadDirectory | Extents], *, is_open: bool
    ) -> FileResult:
        """Ask about a file by its path, and again if it is open and has another one by now."""
        for _ in range(FOLLOWS_MAX):
            asked = ""
            try:
                asked = self.nodes.path(node)
                found = await self.remote.ask(question(asked))
            except TierstoreError as error:
                if not is_open or not is_lost(error) or not await self.whereabouts.find(node, asked):
                    raise
            else:
                entry = found.entry
                is_there = entry is None or node.ino == ROOT or entry.attributes.ino == node.number
                # An object that REST replaced is another file too: not each of its readers is worth a search.
                if is_there or not is_open or not await self.whereabouts.find(node, asked, may_search=False):
                    return found
        return await self.remote.ask(question(self.nodes.path(node)))

    async def change_of(self, node: Node, change: Callable[[str], FileMutation]) -> FileResult:
        """Change a file by its path, and again if it is open, or has bytes to commit, and has another one by now."""
        for _ in range(FOLLOWS_MAX):
            asked = ""
            try:
                asked = self.nodes.path(node)
                return await self._change(change(asked))
            except TierstoreError as error:
                is_held = node.opens > 0 or (node.body is not None and node.body.is_dirty)
                if not is_held or not is_lost(error) or not await self.whereabouts.find(node, asked):
                    raise
        return await self._change(change(self.nodes.path(node)))

    async def space(self) -> FileResult:
        now = time.monotonic()
        if self._space is None or now - self._space[0] > SPACE_SECONDS:
            self._space = now, await self.remote.ask(Space(self.bucket))
        return self._space[1]
