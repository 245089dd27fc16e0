"""Files of mounts, the short ways: changes queued without a task, questions answered at once, what is a directory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from metadata.catalog import inodes
from metadata.catalog.feed import NewChange
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.contract.test_catalog_files import Files
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.wire.files import (
    S_IFDIR,
    S_IFREG,
    Attributes,
    FileQuestion,
    FileResult,
    Look,
    Make,
    Remove,
    Rename,
    Space,
)
from tierstore.wire.names import CommitResult

__all__ = ["postgres", "run", "url_of"]


class Waits:
    """The rules of other sites: wanted from some moment on; who confirms is counted."""

    def __init__(self) -> None:
        self.is_wanted = False
        self.confirmed: list[str] = []

    async def confirm_changes(self, name: str, changes: Sequence[NewChange]) -> CommitResult:
        self.confirmed += [change.key for change in changes]
        return CommitResult(code="unavailable", detail="the other site is away")


def make(number: int, path: str) -> Make:
    return Make("bbb", path, Attributes(1 << 60 | number, S_IFREG | 0o644, 1, 2, 5, 5, 5))


def never(results: Callable[[], Awaitable[list[FileResult]]]) -> None:
    raise AssertionError("nobody has to be waited for")


def unanswered(results: list[FileResult]) -> None:
    raise AssertionError("nothing was to be answered yet")


def test_queued_changes_have_each_its_own_result_in_order(run: Run) -> None:
    async def test(w: NamesWorld) -> None:
        f = Files(w)
        done: asyncio.Future[list[FileResult]] = asyncio.get_running_loop().create_future()
        rename = Rename("bbb", "a", "c", 7, is_file=True)
        mutations = [make(1, "a"), make(2, "a"), make(3, "no/b"), rename, make(4, "d")]
        items = [(f.item(mutation), ADMIN) for mutation in mutations]
        assert f.service.submit(items, done.set_result, never)
        results = await done
        assert [result.code for result in results] == ["", "file-exists", "no-such-directory", "", ""]
        assert (await f.look("c")).entry is not None and (await f.look("d")).entry is not None
        assert (await f.look("a")).code == "no-such-file", "it was renamed"
        again: asyncio.Future[list[FileResult]] = asyncio.get_running_loop().create_future()
        assert f.service.submit(items[:1], again.set_result, never)
        assert await again == results[:1], "a repeat gets what the first one got"

    run(test)


def test_what_takes_longer_is_not_queued(run: Run) -> None:
    async def test(w: NamesWorld) -> None:
        f = Files(w)
        await f.make("dir", kind=S_IFDIR)

        assert not f.service.submit([], unanswered, never)
        move = f.item(Rename("bbb", "dir", "other", 7))
        assert not f.service.submit([(move, ADMIN)], unanswered, never), "a directory's move"
        waits = Waits()
        waits.is_wanted = True
        f.service.sync = waits
        assert not f.service.submit([(f.item(make(1, "a")), ADMIN)], unanswered, never), "another site is waited for"
        assert (await f.look("a")).code == "no-such-file" and (await f.look("dir")).entry is not None

    run(test)


def test_a_rule_that_comes_meanwhile_is_waited_for(run: Run) -> None:
    async def test(w: NamesWorld) -> None:
        f = Files(w)
        await w.buckets.set_replication("bbb", [{"target": "site2", "mode": "sync", "on_failure": "fail"}], ADMIN)
        f.service.sync = waits = Waits()
        later: asyncio.Future[Callable[[], Awaitable[list[FileResult]]]] = asyncio.get_running_loop().create_future()
        assert f.service.submit([(f.item(make(1, "a")), ADMIN)], unanswered, later.set_result)
        waits.is_wanted = True
        assert not waits.confirmed
        assert [result.code for result in await (await later)()] == ["unavailable"], "what the other site's rule says"
        assert waits.confirmed == ["a"]

    run(test)


def test_questions_are_answered_at_once_where_the_engine_can(run: Run) -> None:
    async def test(w: NamesWorld) -> None:
        f = Files(w)
        await f.make("a")
        for path in ("a", "missing", "a//b", ""):
            question = FileQuestion(Look("bbb", path))
            now = f.service.ask_now(question, ADMIN)
            assert now is None if w.database.dialect == "postgresql" else now == await f.service.ask(question, ADMIN)
        assert f.service.ask_now(FileQuestion(Space("bbb")), ADMIN) is None, "it may have to wait"

    run(test)


def test_what_is_a_directory(run: Run) -> None:
    """An explicit one, empty; one that keys imply; one that directories below imply; not a file, not what only delete
    markers are left of."""

    async def test(w: NamesWorld) -> None:
        f = Files(w)
        await f.make("explicit", kind=S_IFDIR)
        await f.make("above", kind=S_IFDIR)
        await f.make("above/below", kind=S_IFDIR)
        await f.make("file")
        await f.make("explicit0")
        for key in ("implied/by/key", "marker/", "gone/key"):
            assert not (await w.put(key)).code
        await w.buckets.configure("bbb", ADMIN, versioning="enabled")
        assert not (await w.delete("gone/key")).code
        bucket = await w.names.get("bbb")
        found = {
            path: await w.database.read(lambda c, p=path: inodes.is_directory(c, bucket.id, p))  # type: ignore[misc]
            for path in ("explicit", "above", "above/below", "file", "explicit0", "expl", "implied", "implied/by",
                         "implied/by/key", "marker", "gone", "nothing")
        }  # fmt: skip
        assert [path for path, is_one in found.items() if is_one] == [
            "explicit", "above", "above/below", "implied", "implied/by", "marker"
        ]  # fmt: skip
        removed = await f.change(Remove("bbb", "explicit", 9, directory=True))
        assert not removed.code
        assert not await w.database.read(lambda c: inodes.is_directory(c, bucket.id, "explicit"))

    run(test)
