"""Files that others rename while they are open here: found by another name, by what the feed told, by a search."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tierstore.errors import AccessDenied, ConflictError, NotFound, UnavailableError
from tierstore.files.errno import FileError
from tierstore.files.node import Node
from tierstore.files.tree import Tree
from tierstore.wire.files import (
    S_IFDIR,
    Attributes,
    Changed,
    Entry,
    Extents,
    FileMutation,
    FileResult,
    Hold,
    Look,
    Remove,
    SetAttributes,
    orphan_path,
)

DIRECTORY = S_IFDIR | 0o755


class Catalog:
    """Metadata as a table of paths. asked: paths looked at; searched: numbers searched for."""

    def __init__(self) -> None:
        self.files: dict[str, Attributes] = {}
        self.asked: list[str] = []
        self.searched: list[int] = []
        self.changed: list[str] = []
        self.held: list[str] = []
        self.released: list[str] = []
        self.after_answer: Callable[[], Awaitable[None]] | None = None      # done once, before an answer comes
        self.is_read_only = False
        self.is_away = False
        self.answers = asyncio.Event()      # cleared: searches have found something, and nobody has heard of it
        self.answers.set()

    def add(self, path: str, number: int, mode: int = 0o100644) -> None:
        self.files[path] = Attributes(number, mode)

    def move(self, source: str, to: str) -> list[Changed]:
        """Also what lies below; what the feed tells of it."""
        moved = sorted(p for p in self.files if p == source or p.startswith(f"{source}/"))
        for path in moved:
            self.files[to + path[len(source) :]] = self.files.pop(path)
        told: list[Changed] = []
        for kind in (False, True):      # as metadata moves a range: all that went, then all that came
            paths = [to + p[len(source) :] for p in moved]
            these = [(old, new) for old, new in zip(moved, paths, strict=True) if self.files[new].is_directory == kind]
            told += [Changed(old, 1, kind, gone=True) for old, _ in these]
            told += [Changed(new, 2, kind) for _, new in these]
        return told

    def unlink(self, path: str) -> list[Changed]:
        """Another mount removed it, and this one may have it open."""
        a = self.files.pop(path)
        self.files[orphan_path(a.ino)] = msgspec.structs.replace(a, links=0)
        return [Changed(path, 1, gone=True)]

    async def ask(self, question: Look | Extents) -> FileResult:
        self.asked.append(question.path)
        found = self.files.get(question.path)
        after, self.after_answer = self.after_answer, None
        if after is not None:
            await after()
        if found is None and question.path:
            raise NotFound("nothing is there", code="no-such-file")
        return FileResult(entry=Entry(question.path.rpartition("/")[2], found or Attributes(1, DIRECTORY), version=1))

    async def change(self, mutation: FileMutation) -> FileResult:
        found = self.files.get(mutation.path)
        if found is None:
            raise NotFound("nothing is there", code="no-such-file")
        if isinstance(mutation, Hold):
            if self.is_read_only:
                raise AccessDenied("read only")
            assert mutation.mount == "m"
            self.held.append(mutation.path)
            await self.answers.wait()
            return FileResult(entry=Entry("", found, version=1))
        if isinstance(mutation, Remove):
            assert mutation.mount == "m"
            self.released.append(mutation.path)
            del self.files[mutation.path]
            return FileResult(entry=Entry("", found, version=1))
        assert isinstance(mutation, SetAttributes)
        if mutation.ino != found.ino:
            raise ConflictError("another file stands there", code="stale-file")
        assert mutation.mode is not None
        found = self.files[mutation.path] = msgspec.structs.replace(found, mode=mutation.mode)
        self.changed.append(mutation.path)
        return FileResult(entry=Entry(mutation.path.rpartition("/")[2], found, version=1))

    async def find(self, number: int) -> Entry | None:
        self.searched.append(number)
        if self.is_away:
            raise UnavailableError("metadata is away")
        found = next((Entry(path, a) for path, a in self.files.items() if a.ino == number), None)
        await self.answers.wait()
        return found


class Here:
    """A mount that has looked at `path` and has it open."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        store: Any = SimpleNamespace(client=None)
        self.tree = Tree(store, "b", mount="m", rng=random.Random(1), cache_seconds=0.0)
        remote: Any = self.catalog
        self.tree.remote = self.tree.whereabouts._remote = remote

    async def opened(self, path: str) -> Node:
        node = await self.tree.whereabouts.walk(path)
        node.opens += 1
        node.lookups += 1
        return node

    def path(self, node: Node) -> str:
        return self.tree.nodes.path(node)


def play(test: Callable[[Here], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(120):
            await test(Here())

    asyncio.run(main())


@pytest.mark.parametrize("is_told", [True, False])
def test_an_open_file_is_found_under_its_new_name(is_told: bool) -> None:
    """By what the feed told at the cost of a look, else by one search; and the old name is forgotten."""

    async def test(here: Here) -> None:
        here.catalog.add("a", 7)
        node = await here.opened("a")
        changes = here.catalog.move("a", "b")
        if is_told:
            here.tree.whereabouts.note(changes)
        await here.tree.check(node)
        assert here.path(node) == "b" and len(node.names) == 1 and here.tree.nodes.at("a") is None
        assert here.catalog.searched == ([] if is_told else [7])
        await here.tree.set_attributes(node, mode=0o600)
        assert here.catalog.changed == ["b"] and len(here.catalog.searched) <= 1

    play(test)


def test_another_file_at_the_old_name_is_not_taken_for_it() -> None:
    """A log that is rotated: renamed, and a new one made in its place."""

    async def test(here: Here) -> None:
        here.catalog.add("log", 7)
        node = await here.opened("log")
        here.tree.whereabouts.note(here.catalog.move("log", "log.1"))
        here.catalog.add("log", 8)
        await here.tree.set_attributes(node, mode=0o640)
        assert here.catalog.changed == ["log.1"] and here.path(node) == "log.1"
        assert (await here.tree.lookup(here.tree.node(1), "log")).ino == 8

    play(test)


def test_without_a_word_of_the_feed_only_changes_and_lost_names_are_worth_a_search() -> None:
    """Where another file stands, the open one may have been replaced: fstat says so, and no pass over the bucket is
    made for each of the file's readers; bytes and attributes that would be lost are worth one."""

    async def test(here: Here) -> None:
        here.catalog.add("log", 7)
        node = await here.opened("log")
        here.catalog.move("log", "log.1")
        here.catalog.add("log", 8)
        with pytest.raises(FileError):
            await here.tree.check(node)
        assert here.catalog.searched == []
        await here.tree.set_attributes(node, mode=0o640)
        assert here.catalog.changed == ["log.1"] and here.catalog.searched == [7]

    play(test)


@pytest.mark.parametrize("is_told", [True, False])
def test_files_below_a_renamed_directory_are_found(is_told: bool) -> None:
    """The directory's one name is replaced, so the others below it cost nothing more."""

    async def test(here: Here) -> None:
        here.catalog.add("d", 3, DIRECTORY)
        here.catalog.add("d/e", 4, DIRECTORY)
        for number in range(3):
            here.catalog.add(f"d/e/{number}", 10 + number)
        nodes = [await here.opened(f"d/e/{number}") for number in range(3)]
        changes = here.catalog.move("d", "other")
        if is_told:
            here.tree.whereabouts.note(changes)
        for node in nodes:
            await here.tree.check(node)
        assert [here.path(node) for node in nodes] == [f"other/e/{number}" for number in range(3)]
        assert here.catalog.searched == ([] if is_told else [10])
        assert here.tree.nodes.at("d") is None

    play(test)


def test_all_who_ask_while_a_file_is_searched_for_find_it() -> None:
    """The look that the feed causes may be searching when an fsync asks: that one must not hear that nothing is there,
    which its program would take for the loss of what it wrote."""

    async def test(here: Here) -> None:
        here.catalog.add("d", 3, DIRECTORY)
        here.catalog.add("d/f", 7)
        node = await here.opened("d/f")
        told = here.catalog.move("d", "z")
        here.catalog.answers.clear()
        look = asyncio.create_task(here.tree.look_after(told))
        while not here.catalog.searched:
            await asyncio.sleep(0)
        change = asyncio.create_task(here.tree.set_attributes(node, mode=0o600))
        ask = asyncio.create_task(here.tree.ask_of(node, lambda path: Look("b", path), is_open=True))
        for _ in range(10):
            await asyncio.sleep(0)
        here.catalog.answers.set()
        await asyncio.gather(look, change, ask)
        assert here.catalog.changed == ["z/f"] and here.catalog.searched == [7]

    play(test)


def test_a_search_that_metadata_did_not_answer_is_made_again() -> None:
    """It says nothing of the file: the next fsync must not be told that it is gone."""

    async def test(here: Here) -> None:
        here.catalog.add("a", 7)
        node = await here.opened("a")
        here.catalog.move("a", "b")
        here.catalog.is_away = True
        with pytest.raises(UnavailableError):
            await here.tree.set_attributes(node, mode=0o600)
        here.catalog.is_away = False
        await here.tree.set_attributes(node, mode=0o600)
        assert here.catalog.changed == ["b"]

    play(test)


@pytest.mark.parametrize("is_told", [True, False])
def test_a_file_that_moves_on_while_it_is_followed_is_followed(is_told: bool) -> None:
    """Between the answer that says where it is and the change that is made there."""

    async def test(here: Here) -> None:
        here.catalog.add("a", 7)
        node = await here.opened("a")
        first = here.catalog.move("a", "b")
        if is_told:
            here.tree.whereabouts.note(first)
        find, walk, moves = here.catalog.find, here.tree.whereabouts.walk, [("b", "c"), ("c", "d")]

        async def find_and_lose(number: int) -> Entry | None:
            found = await find(number)
            if moves:
                here.catalog.move(*moves.pop(0))
            return found

        async def walk_and_lose(path: str) -> Node:
            found = await walk(path)
            if moves:
                here.catalog.move(*moves.pop(0))
            return found

        here.catalog.find = find_and_lose  # type: ignore[method-assign]
        here.tree.whereabouts.walk = walk_and_lose  # type: ignore[method-assign]
        await here.tree.set_attributes(node, mode=0o600)
        assert here.catalog.changed == ["d"] and not moves

    play(test)


def test_a_renamed_file_that_is_unlinked_next_is_held() -> None:
    """That it was not among the files without a name a moment ago says nothing of now."""

    async def test(here: Here) -> None:
        here.catalog.add("a", 7)
        node = await here.opened("a")
        here.catalog.move("a", "b")
        await here.tree.check(node)
        await here.tree.look_after(here.catalog.unlink("b"))
        assert here.catalog.held == [orphan_path(7)] and node.orphan

    play(test)


def test_a_file_that_is_unlinked_while_it_is_searched_for_is_held() -> None:
    """The look among the files without a name came too early for it, and the search too late."""

    async def test(here: Here) -> None:
        here.catalog.add("a", 7)
        node = await here.opened("a")
        here.catalog.move("a", "b")
        find = here.catalog.find

        async def unlink_and_find(number: int) -> Entry | None:
            here.catalog.unlink("b")
            orphan = here.catalog.files.pop(orphan_path(7))     # a search passes over files without a name
            found = await find(number)
            here.catalog.files[orphan_path(7)] = orphan
            return found

        here.catalog.find = unlink_and_find  # type: ignore[method-assign]
        await here.tree.check(node)
        assert here.catalog.held == [orphan_path(7)] and node.orphan

    play(test)


@pytest.mark.parametrize("extra", ["before", "after", "both"])
def test_a_rename_is_read_off_the_feed_beside_other_changes(extra: str) -> None:
    async def test(here: Here) -> None:
        here.catalog.add("x", 3, DIRECTORY)
        for number in range(4):
            here.catalog.add(f"x/{number}", 10 + number)
        nodes = [await here.opened(f"x/{number}") for number in range(4)]
        gone = [Changed("x/old", 1, gone=True)] if extra != "after" else []
        came = [Changed("x/new", 1)] if extra != "before" else []
        renamed = here.catalog.move("x", "y")
        here.tree.whereabouts.note([*gone, *renamed[:8], *came])
        assert [here.tree.whereabouts.hinted(node) for node in nodes] == [f"y/{number}" for number in range(4)]

    play(test)


def test_a_file_with_another_name_is_found_there() -> None:
    """A hard link whose last used name another mount removed."""

    async def test(here: Here) -> None:
        here.catalog.add("one", 7)
        here.catalog.add("two", 7)
        node = await here.opened("one")
        assert await here.opened("two") is node
        del here.catalog.files["two"]
        await here.tree.check(node)
        assert here.path(node) == "one" and len(node.names) == 1 and here.catalog.searched == []

    play(test)


def test_a_file_that_is_gone_is_searched_for_once_in_a_while() -> None:
    """Its program may ask again and again; each search is a pass over the bucket."""

    async def test(here: Here) -> None:
        here.catalog.add("a", 7)
        node = await here.opened("a")
        del here.catalog.files["a"]
        for _ in range(5):
            with pytest.raises(NotFound):
                await here.tree.check(node)
        assert here.catalog.searched == [7]

    play(test)


def test_an_open_asks_for_the_name_and_not_for_the_file() -> None:
    """Whoever opens the old name after the rename must not get the file."""

    async def test(here: Here) -> None:
        here.catalog.add("a", 7)
        node = await here.opened("a")
        here.tree.whereabouts.note(here.catalog.move("a", "b"))
        with pytest.raises(NotFound):
            await here.tree.check(node, always=True)
        node.opens = 0
        with pytest.raises(NotFound):
            await here.tree.check(node)
        assert here.catalog.searched == []

    play(test)


def test_what_the_feed_tells_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files that are known here only, and of the last ones: the others are searched for."""
    monkeypatch.setattr("tierstore.files.whereabouts.HINTS_MAX", 2)

    async def test(here: Here) -> None:
        for number in range(4):
            here.catalog.add(f"f{number}", 10 + number)
        nodes = [await here.opened(f"f{number}") for number in range(3)]
        for number in range(4):
            here.tree.whereabouts.note(here.catalog.move(f"f{number}", f"g{number}"))
        assert len(here.tree.whereabouts._hints) == 2
        for node in nodes:
            await here.tree.check(node)
        assert [here.path(node) for node in nodes] == ["g0", "g1", "g2"] and here.catalog.searched == [10]

    play(test)


def test_an_open_file_that_another_mount_unlinked_is_held_as_soon_as_the_feed_tells() -> None:
    """Metadata waits two minutes for that; a program that reads nothing meanwhile must not lose its file."""

    async def test(here: Here) -> None:
        for name, number in (("open", 7), ("closed", 8)):
            here.catalog.add(name, number)
        node = await here.opened("open")
        await here.tree.lookup(here.tree.node(1), "closed")
        await here.tree.look_after(here.catalog.unlink("open") + here.catalog.unlink("closed"))
        assert here.catalog.held == [orphan_path(7)] and here.catalog.searched == []
        assert node.orphan and node.attributes.links == 0 and here.tree.nodes.at("open") is None
        await here.tree.set_attributes(node, mode=0o600)
        assert here.catalog.changed == [orphan_path(7)]

    play(test)


@pytest.mark.parametrize("is_there_at_first", [True, False])
def test_a_file_that_another_mount_unlinks_while_it_is_opened_is_held(is_there_at_first: bool) -> None:
    """The answer that it is there, and the word that it went, may come in either order; who does not get to open it
    lets go of it."""

    async def test(here: Here) -> None:
        here.catalog.add("f", 7)
        node = await here.tree.lookup(here.tree.node(1), "f")
        node.lookups += 1
        told = [] if is_there_at_first else here.catalog.unlink("f")

        async def meanwhile() -> None:
            await here.tree.look_after(told or here.catalog.unlink("f"))

        here.catalog.after_answer = meanwhile
        if is_there_at_first:
            await here.tree.opening(node)
            assert node.opens == 1 and node.orphan and here.catalog.released == []
        else:
            with pytest.raises(NotFound):
                await here.tree.opening(node)
            assert node.opens == 0 and here.catalog.released == [orphan_path(7)]
        assert here.catalog.held == [orphan_path(7)]

    play(test)


def test_a_file_that_is_closed_while_it_is_being_held_is_let_go() -> None:
    async def test(here: Here) -> None:
        here.catalog.add("f", 7)
        node = await here.opened("f")
        here.catalog.answers.clear()
        looking = asyncio.create_task(here.tree.look_after(here.catalog.unlink("f")))
        while not here.catalog.held:
            await asyncio.sleep(0)
        node.opens -= 1
        await here.tree.closed(node)
        assert here.catalog.released == []
        here.catalog.answers.set()
        await looking
        assert here.catalog.released == [orphan_path(7)] and node.orphan

    play(test)


@pytest.mark.parametrize("is_read_only", [True, False])
def test_all_who_ask_at_once_for_an_unlinked_file_find_it(is_read_only: bool) -> None:
    """Some ask before and some while it is found. Whoever may only read cannot hold it, and reads all the same."""

    async def test(here: Here) -> None:
        here.catalog.add("f", 7)
        here.catalog.is_read_only = is_read_only
        node = await here.opened("f")
        here.catalog.unlink("f")
        here.catalog.add("f", 8)

        async def ask() -> int:
            found = await here.tree.ask_of(node, lambda path: Look("b", path), is_open=True)
            assert found.entry is not None
            return found.entry.attributes.ino

        assert await asyncio.gather(*(ask() for _ in range(5))) == [7] * 5
        assert node.attributes.links == 0 and bool(here.catalog.held) is not is_read_only

    play(test)


def test_a_file_that_an_object_replaced_is_looked_for_once_in_a_while() -> None:
    """REST keeps nothing for who has it open: its readers must not cost a second question each time."""

    async def test(here: Here) -> None:
        here.catalog.add("f", 7)
        node = await here.opened("f")
        here.catalog.add("f", 8)
        for _ in range(5):
            with pytest.raises(FileError):
                await here.tree.check(node)
        assert here.catalog.asked.count(orphan_path(7)) == 1 and not node.orphan

    play(test)
