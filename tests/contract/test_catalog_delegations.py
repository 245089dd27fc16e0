"""Directories delegated to mounts: to whom, for how long, and taken back before anybody can see the name that came."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from metadata.catalog import inodes
from metadata.catalog.database import Database
from metadata.services.files.delegations import Delegations
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.contract.test_catalog_files import Files
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.wire.delegations import PAGE_BYTES, SLOTS, slot_of
from tierstore.wire.files import (
    S_IFDIR,
    S_IFREG,
    Attributes,
    FileMutation,
    FileQuestion,
    FileResult,
    Link,
    Make,
    ReadDirectory,
    Remove,
    Rename,
)

__all__ = ["postgres", "run", "url_of"]


class Watched(Delegations):
    """Notes for each name that is told whether a reader could see it already."""

    def __init__(self, words: memoryview, database: Database) -> None:
        super().__init__(words, first=1000, place="here")
        self._database = database
        self.early: list[str] = []
        self.late: list[str] = []

    def came(self, names: Sequence[tuple[int, str]], by: str) -> None:
        super().came(names, by)
        if getattr(self._database, "path", ""):      # in memory a reader sees what the transaction has written so far
            for bucket_id, key in names:
                seen = self._database.read_now(lambda c, b=bucket_id, k=key: inodes.latest(c, b, k) is not None)  # type: ignore[misc]
                (self.late if seen else self.early).append(key)


class Mounts(Files):
    """Files, with mounts that have directories delegated."""

    def __init__(self, w: NamesWorld) -> None:
        super().__init__(w)
        self.words = memoryview(bytearray(PAGE_BYTES)).cast("Q")
        self.delegations = Watched(self.words, w.database)
        self.gives = self.service.delegate(self.delegations)

    async def read(self, mount: str, path: str = "", **options: object) -> FileResult:
        question = msgspec.structs.replace(ReadDirectory("bbb", path, mount=mount), **options)
        return await self.service.ask(FileQuestion(question), ADMIN)

    async def take(self, mount: str, path: str = "") -> int:
        number = (await self.read(mount, path)).delegation
        assert number and self.holds(number)
        return number

    def holds(self, number: int) -> bool:
        return self.words[slot_of(number)] == number

    async def by(self, mount: str, mutation: FileMutation) -> FileResult:
        item = msgspec.structs.replace(self.item(mutation), mount=mount)
        result = (await self.service.change([(item, ADMIN)]))[0]
        assert not result.code, result.detail
        return result

    def new(self, path: str, kind: int = S_IFREG) -> Make:
        return Make("bbb", path, Attributes(next(self.numbers), kind | 0o644, 1, 2, 5, 5, 5))


def only_here(run: Run, test: Callable[[NamesWorld, Mounts], Awaitable[None]]) -> None:
    """The test where one process decides; on PostgreSQL that nothing is delegated, whatever is asked."""

    async def both(w: NamesWorld) -> None:
        m = Mounts(w)
        if w.database.dialect == "postgresql":
            assert not m.gives and (await m.read("m1")).delegation == 0
            return
        assert m.gives
        await test(w, m)
        assert not m.delegations.late, "told after it could be seen"

    run(both)


def test_a_directory_is_delegated_to_who_reads_it_whole(run: Run) -> None:
    async def test(w: NamesWorld, m: Mounts) -> None:
        await m.make("d", kind=S_IFDIR)
        for name in ("a", "b", "c"):
            await m.make(f"d/{name}")
        found = await m.read("m1", "d")
        assert m.holds(found.delegation) and [entry.name for entry in found.entries] == ["a", "b", "c"]
        there = (await m.look("d")).entry
        assert found.entry is not None and there is not None
        assert found.entry.attributes.ino == there.attributes.ino, "which directory it is, should another come there"
        assert (await m.read("", "d")).delegation == 0, "nobody asked"
        assert (await m.read("m1", "d", limit=2)).delegation == 0, "a page of it"
        assert (await m.read("m1", "d", after="a")).delegation == 0
        assert (await m.read("m1", "d/a")).delegation == 0 and (await m.read("m1", "none")).delegation == 0
        again = await m.take("m1", "d")
        assert not m.holds(found.delegation) and m.holds(again), "one for each directory and mount"

    only_here(run, test)


def test_names_that_others_bring_take_it_back(run: Run) -> None:
    """By REST, by S3's copies and revived versions, by another mount, by names far below."""

    async def test(w: NamesWorld, m: Mounts) -> None:
        await m.make("d", kind=S_IFDIR)
        await m.make("e", kind=S_IFDIR)
        root, d, e, of_other = (
            await m.take("m1"), await m.take("m1", "d"), await m.take("m1", "e"), await m.take("m2", "d")
        )  # fmt: skip

        await w.put("d/by-rest")
        assert [m.holds(number) for number in (root, d, e, of_other)] == [False, False, True, False]
        root, d = await m.take("m1"), await m.take("m1", "d")
        await w.put("d/by-rest")
        await w.delete("d/by-rest")
        assert m.holds(root) and m.holds(d), "nothing came"
        await w.put("e/f/g/h")
        assert not m.holds(e) and not m.holds(root) and m.holds(d), "names above it came, too"
        await w.copy("e/f/g/h", "d/copied")
        assert not m.holds(d)

        await w.buckets.configure("bbb", ADMIN, versioning="enabled")
        marker = await w.delete("d/copied")
        d = await m.take("m1", "d")
        await w.delete("d/copied", version=marker.version)
        assert not m.holds(d), "what the marker hid is there again"
        assert {"d/by-rest", "e/f/g/h", "d/copied"} <= {*m.delegations.early} or w.database.path == ""  # type: ignore[attr-defined]

    only_here(run, test)


def test_a_mount_keeps_it_through_what_it_does_itself(run: Run) -> None:
    async def test(w: NamesWorld, m: Mounts) -> None:
        await m.make("d", kind=S_IFDIR)
        mine, other = await m.take("m1", "d"), await m.take("m2", "d")
        await m.by("m1", m.new("d/a"))
        assert m.holds(mine) and not m.holds(other)
        await m.by("m1", Rename("bbb", "d/a", "d/b", 7, is_file=True))
        await m.by("m1", Link("bbb", "d/b", "d/c", 8))
        await m.by("m1", m.new("d/below", S_IFDIR))
        await m.by("m1", m.new("d/below/x"))
        await m.by("m1", Remove("bbb", "d/c", 9))
        assert m.holds(mine)
        await m.by("m2", m.new("d/e"))
        assert not m.holds(mine)

    only_here(run, test)


def test_a_directory_that_moves_takes_all_of_the_bucket_back(run: Run) -> None:
    """Paths lead elsewhere then, also for the mount that moved it."""

    async def test(w: NamesWorld, m: Mounts) -> None:
        for path in ("d", "d/in", "e"):
            await m.make(path, kind=S_IFDIR)
        await w.buckets.create("ccc", ADMIN)
        held = [await m.take("m1", path) for path in ("", "d", "d/in", "e")]
        await m.by("m1", Rename("bbb", "d", "f", 7))
        assert not any(m.holds(number) for number in held)
        assert (await m.read("m1", "d")).delegation == 0
        await m.take("m1", "f/in")

    only_here(run, test)


def test_a_bucket_that_goes_takes_it_back(run: Run) -> None:
    async def test(w: NamesWorld, m: Mounts) -> None:
        await m.make("d", kind=S_IFDIR)
        held = [await m.take("m1"), await m.take("m1", "d")]
        await w.buckets.delete("bbb", ADMIN)
        assert not any(m.holds(number) for number in held)

    only_here(run, test)


def test_nothing_is_delegated_while_a_change_is_under_way(run: Run) -> None:
    """It may have been told before, and be seen only later."""

    async def test(w: NamesWorld, m: Mounts) -> None:
        writing = asyncio.create_task(w.put("d/a"))
        given: list[tuple[int, list[str]]] = []
        while not writing.done():
            is_idle = w.database.is_idle
            found = m.service.ask_now(FileQuestion(ReadDirectory("bbb", "", mount="m1")), ADMIN)
            if found is not None and found.delegation:
                given.append((found.delegation, [entry.name for entry in found.entries]))
                assert is_idle
            await asyncio.sleep(0)
        assert all(names == ["d"] for number, names in given if m.holds(number)), "who was not shown it, was told"
        await m.take("m1", "d")

    only_here(run, test)


def test_the_oldest_make_room(run: Run) -> None:
    async def test(w: NamesWorld, m: Mounts) -> None:
        first = await m.take("m0")
        for number in range(1, SLOTS):
            await m.take(f"m{number}")
        assert m.holds(first)
        await m.take("more")
        assert not m.holds(first)
        await w.put("a")
        assert not any(m.words), "every one was known"

    only_here(run, test)
