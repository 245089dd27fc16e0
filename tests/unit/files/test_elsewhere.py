"""Files whose bytes are at another site: read through a gateway, and brought before what needs them here."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest

from tierstore.errors import ConflictError, NotFound
from tierstore.files.tree import Tree
from tierstore.wire.files import Attributes, Entry, Extents, FileMutation, FileResult, Link

BODY = bytes(range(256)) * 1000


class Walk:
    """Pieces of the body, as a gateway streams them."""

    def __init__(self, first: int, length: int, ended: list[int]) -> None:
        self.at, self.end, self._ended = first, first + length, ended
        self.whole = None

    async def start(self) -> None:
        return None

    async def next_piece(self) -> memoryview:
        piece = memoryview(BODY)[self.at : min(self.at + 10_000, self.end)]
        self.at += len(piece)
        return piece

    async def close(self) -> None:
        self._ended.append(self.at)


class Far:
    """Metadata and gateway at once: the body is elsewhere until somebody has read all of it and claims what the gateway
    has kept of it, which is not there yet at the first claim."""

    def __init__(self) -> None:
        self.ended: list[int] = []
        self.claims: list[int] = []
        self.refused = 0
        self.version = 3
        self.client: Any = None

    @property
    def is_remote(self) -> bool:
        return len(BODY) not in self.ended or self.claims.count(self.version) < 2

    async def fill(self, bucket: str, key: str, version: int, start: int, data: memoryview) -> None:
        """Replaced by a newer version: nobody claims the old one any more."""
        assert (bucket, key, start, len(data)) == ("b", "f", 0, 0)
        if version != self.version:
            raise NotFound("replaced")
        self.claims.append(version)

    def remote_walk(self, bucket: str, key: str, found: Any, *, first: int, length: int) -> Walk:
        assert (bucket, key, found.is_remote, found.size) == ("b", "f", True, len(BODY))
        return Walk(first, length, self.ended)

    async def ask(self, question: Extents) -> FileResult:
        return FileResult(entry=Entry("f", Attributes(7, 0o100644), len(BODY), self.version), is_remote=self.is_remote)

    async def change(self, mutation: FileMutation) -> FileResult:
        if self.is_remote:
            self.refused += 1
            raise ConflictError("not here", code="body-not-here")
        return FileResult(entry=Entry("g", Attributes(7, 0o100644), len(BODY), 4))


def tree_of(far: Far) -> Tree:
    store: Any = SimpleNamespace(client=None, remote_walk=far.remote_walk, fill=far.fill)
    tree = Tree(store, "b", mount="m", rng=random.Random(1))
    remote: Any = far
    tree.remote = remote
    return tree


def test_reads_come_through_a_gateway() -> None:
    """No chunk has a replica here that could be asked."""

    async def main() -> None:
        far = Far()
        tree = tree_of(far)
        node = tree.take_in(tree.node(1), Entry("f", Attributes(7, 0o100644), len(BODY), 3))
        body = tree.body(node)
        assert await body.read(5000, 20_000) == BODY[5000:25_000]
        assert await body.read(len(BODY) - 10, 100) == BODY[-10:]
        await body.close()

    asyncio.run(main())


def test_a_change_that_needs_the_bytes_brings_them_and_is_tried_again() -> None:
    async def main() -> None:
        far = Far()
        tree = tree_of(far)
        node = tree.take_in(tree.node(1), Entry("f", Attributes(7, 0o100644), len(BODY), 3))
        await tree.link(node, tree.node(1), "g")
        assert far.refused == 1
        assert far.ended == [len(BODY)] and far.claims == [3, 3]

    asyncio.run(main())


def test_a_file_that_is_replaced_while_it_is_brought_is_brought_again() -> None:
    """The newer bytes are those that must be here; waiting for the older ones ends after two minutes with an error."""

    async def main() -> None:
        far = Far()
        tree = tree_of(far)
        node = tree.take_in(tree.node(1), Entry("f", Attributes(7, 0o100644), len(BODY), 3))
        read_once = tree._read_once

        async def and_replace(path: str, entry: Entry) -> None:
            await read_once(path, entry)
            far.version = 5

        tree._read_once = and_replace  # type: ignore[method-assign]
        await tree.link(node, tree.node(1), "g")
        assert far.ended == [len(BODY)] * 2 and far.claims == [5, 5]

    asyncio.run(main())


def test_other_refusals_are_told_as_they_are() -> None:
    async def main() -> None:
        far = Far()
        tree = tree_of(far)

        async def refuse(mutation: FileMutation) -> FileResult:
            assert isinstance(mutation, Link)
            raise ConflictError("taken", code="file-exists")

        tree.remote.change = refuse  # type: ignore[method-assign]
        node = tree.take_in(tree.node(1), Entry("f", Attributes(7, 0o100644), len(BODY), 3))
        with pytest.raises(ConflictError, match="taken"):
            await tree.link(node, tree.node(1), "g")
        assert far.ended == []

    asyncio.run(main())
