"""What a mount has of its files that metadata does not have yet: new names, written bytes; and their commits.

A file created without O_EXCL is `pending` until its first bytes are committed: it exists in this mount only. Whoever
needs metadata to know of it settles it first.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Final

import msgspec

from tierstore.errors import NotFound, TierstoreError
from tierstore.files.behind import Behind
from tierstore.files.body import Body, Commit
from tierstore.files.compact import Compactor, is_fragmented
from tierstore.files.looking import BUDGET_BYTES, WATCHED_SECONDS, Looking
from tierstore.files.node import Node
from tierstore.files.reader import READ_SECONDS, Reader
from tierstore.files.remote import PATIENCE_SECONDS
from tierstore.sdk import Store
from tierstore.wire.files import Entry, Extents, FileResult, ReadDirectory, WriteFile

PAGE: Final = 1000
#: Written bytes that nobody syncs are committed after so long.
DIRTY_SECONDS: Final = 5.0
#: Files that are committed side by side.
SETTLED_AT_ONCE: Final = 64


class Dirty(Looking):
    """One mount. Event loop only."""

    def __init__(
        self, store: Store, bucket: str, *, mount: str, rng: random.Random, budget_bytes: int = BUDGET_BYTES,
        cache_seconds: float = WATCHED_SECONDS, patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:  # fmt: skip
        super().__init__(
            store, bucket, mount=mount, rng=rng, budget_bytes=budget_bytes, cache_seconds=cache_seconds,
            patience_seconds=patience_seconds,
        )  # fmt: skip
        self._dirty: dict[int, tuple[Node, float]] = {}
        self.compactor = Compactor(
            store, bucket, self.remote, budget=self.dirty_budget, change=self._compacted, now_ns=self.now_ns
        )
        #: Set where a close does not wait for its commit.
        self.behind: Behind | None = None

    async def close(self) -> None:
        """Commit what is written, let go of open unlinked files."""
        failures = await self._settle_each([node for node, _ in self._dirty.values()])
        try:
            await self.remote.synced()
        except TierstoreError as error:
            failures.append(error)
        for node in list(self.nodes.by_ino.values()):
            if node.body is not None:
                await node.body.close()
        await self.remote.close()
        self.absent.close()
        if failures:
            raise failures[0]

    async def page(self, node: Node, after: str) -> tuple[list[Entry], str | None]:
        """Entries of a directory behind `after`, and what to go on from."""
        await self.settle_children(node)
        found = await self.ask_of(
            node, lambda path: ReadDirectory(self.bucket, path, after, PAGE), is_open=node.opens > 0
        )
        return found.entries, found.next

    async def settle(self, node: Node) -> None:
        """Commit what the node has that metadata does not: its name, its bytes."""
        if node.pending or (node.body is not None and node.body.is_dirty):
            await self.body(node).flush()

    async def sync(self, node: Node) -> None:
        """fsync: the node's name and bytes are durable when it returns, of a directory the names in it; so is every
        change of names that this mount was answered before."""
        if node.attributes.is_directory:
            await self.settle_children(node)
        else:
            await self.settle(node)
        await self.remote.synced()

    async def settle_children(self, parent: Node) -> None:
        below = [
            node for node, _ in self._dirty.values()
            if node.pending and node.names and node.names[-1][0] == parent.ino
        ]  # fmt: skip
        if failures := await self._settle_each(below):
            raise failures[0]

    async def settle_all(self) -> None:
        if failures := await self._settle_each([node for node, _ in self._dirty.values()]):
            raise failures[0]

    async def _settle_each(self, nodes: list[Node]) -> list[TierstoreError]:
        """Commit files side by side, so that they share messages and transactions; what went wrong."""
        failures: list[TierstoreError] = []

        async def one(node: Node) -> None:
            try:
                await self.settle(node)
            except TierstoreError as error:
                failures.append(error)

        for first in range(0, len(nodes), SETTLED_AT_ONCE):
            await asyncio.gather(*(one(node) for node in nodes[first : first + SETTLED_AT_ONCE]))
        return failures

    async def relieve(self) -> None:
        """Memory is short: commit the file that holds the most."""
        holders = [node for node, _ in self._dirty.values() if node.body is not None and node.body.held_bytes]
        if holders:
            fullest = max(holders, key=lambda node: node.body.held_bytes if node.body is not None else 0)
            await self.body(fullest).flush()

    async def flush_old(self) -> None:
        """Commit what nobody synced for a while. A failure is the file's own: its next fsync or close tells."""
        limit = time.monotonic() - DIRTY_SECONDS
        await self._settle_each([node for node, since in self._dirty.values() if since < limit and node.opens])

    def mark_dirty(self, node: Node) -> None:
        if node.ino not in self._dirty:
            self._dirty[node.ino] = node, time.monotonic()

    def note_pieces(self, node: Node) -> None:
        """Have the file put together when it is in many pieces."""
        pieces = Entry("", node.attributes, node.size, node.version, node.extents)
        if node.names and not node.orphan and is_fragmented(pieces, is_open=node.opens > 0):
            with contextlib.suppress(NotFound):     # one of its directories has just gone
                self.compactor.note(node.number, self.nodes.path(node))

    async def _compacted(self, write: WriteFile) -> FileResult:
        """The same bytes in fewer pieces: no page that the kernel has is wrong."""
        result = await self.remote.change(write)
        self._note_own(result.entry)
        node = self.nodes.by_ino.get(write.ino) or self.nodes.aliases.get(write.ino)
        if node is not None and result.entry is not None:
            node.version, node.extents = result.entry.version, result.entry.extents
            if node.body is not None and node.body.version == write.base_version:
                node.body.version = result.entry.version
                node.body.reader.reset(result.entry.version, result.entry.size)
        return result

    def body(self, node: Node) -> Body:
        """The node's bytes; made when they are first needed."""
        if node.body is None:
            def path() -> str:
                """For rules and names of chunks: where the file was last, when its name has just gone."""
                try:
                    return self.nodes.path(node)
                except NotFound:
                    if node.pending:
                        raise
                    return self.whereabouts.hinted(node)

            async def find(first: int, length: int) -> FileResult:
                return await self.ask_of(
                    node, lambda path: Extents(self.bucket, path, first, length), is_open=node.opens > 0
                )

            async def change(write: WriteFile) -> FileResult:
                if write.make is None:
                    result = await self.change_of(node, lambda path: msgspec.structs.replace(write, path=path))
                else:
                    result = await self._change(write)
                self._note_own(result.entry)
                return result

            def about() -> Commit:
                make = node.attributes if node.pending else None
                return Commit(
                    path(), node.number, node.attributes.mtime_ns or self.now_ns(), make,
                    node.clear_setuid, node.pinned_times,
                )  # fmt: skip

            def committed(entry: Entry) -> None:
                node.pending = False
                if entry.attributes.ino != node.number:
                    node.alias = entry.attributes.ino
                    self.nodes.aliases[node.alias] = node
                node.clear_setuid = False
                node.version, node.size, node.extents = entry.version, entry.size, entry.extents
                if node.opens:
                    self.note_pieces(node)
                if node.body is None or not node.body.is_dirty:
                    node.attributes = entry.attributes
                    node.checked_at = time.monotonic()
                    self._dirty.pop(node.ino, None)

            reader = Reader(
                self.store, self.bucket, path, find, self.read_memory, version=node.version,
                size=node.size, seconds=READ_SECONDS * self.patience_seconds / PATIENCE_SECONDS,
            )  # fmt: skip
            node.body = Body(
                self.store, self.bucket, size=node.size, version=node.version, budget=self.dirty_budget,
                change=change, about=about, committed=committed, relieve=self.relieve, reader=reader,
            )  # fmt: skip
        return node.body
