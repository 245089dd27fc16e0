"""Changes of mounts that are answered before their sync: seen at once, durable soon, and never the ground of anything
that a power cut must not take back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest
import sqlalchemy as sa

from metadata.catalog import feed, schema
from metadata.catalog.sqlite import SqliteDatabase
from metadata.catalog.unsynced import Unsynced
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.contract.test_catalog_files import Files, on_files
from tests.kit.names_world import ADMIN, NamesWorld
from tests.kit.waits import until
from tests.unit.cluster.cluster_kit import new_world
from tierstore.errors import UnavailableError
from tierstore.files.remote import FilesRemote
from tierstore.names import operation_id
from tierstore.transport.metadata_client import MetadataClient
from tierstore.wire.files import FileChanges, FileMutation, FileResult, FileResults, Remove, Rename, Sync

__all__ = ["postgres", "run", "url_of"]


async def soon(files: Files, mutation: FileMutation) -> FileResult:
    item = msgspec.structs.replace(files.item(mutation), soon=True)
    return (await files.service.change([(item, ADMIN)]))[0]


def test_a_change_that_may_follow_is_seen_at_once_and_refused_as_ever(run: Run) -> None:
    """Only its sync may be late, not what it does."""

    async def check(files: Files) -> None:
        await files.make("a")
        assert not (await soon(files, Rename("bbb", "a", "b", 7, is_file=True))).code
        assert await files.names() == ["b"]
        assert (await soon(files, Rename("bbb", "a", "c", 7, is_file=True))).code == "no-such-file"
        assert not (await soon(files, Remove("bbb", "b", 8))).code
        assert not (await files.change(Sync("bbb"))).code
        await files.w.database.synced()
        assert await files.names() == []

    on_files(run, check)


@pytest.fixture
def no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what asks for a sync gets one."""
    monkeypatch.setattr("metadata.catalog.unsynced.SOON_SECONDS", 3600.0)


def on_disk(tmp_path: Path, test: Callable[[Files, Unsynced], Awaitable[None]]) -> None:
    """With a catalog in a file and its writer's thread."""

    async def main() -> None:
        w = await NamesWorld.open(f"sqlite:///{tmp_path}/c.db")
        assert isinstance(w.database, SqliteDatabase)
        unsynced = w.database.unsynced
        assert unsynced is not None
        await w.buckets.create("bbb", ADMIN)
        files = Files(w)
        await files.make("a")
        assert not unsynced.is_any, "whoever says nothing waits for the disk"
        await test(files, unsynced)
        await w.close()

    asyncio.run(main())


def test_what_was_answered_early_is_synced_within_a_moment(tmp_path: Path) -> None:
    """Nobody asks for it: the interval ends by itself, with one sync for all that came meanwhile."""

    async def check(files: Files, unsynced: Unsynced) -> None:
        for number in range(20):
            await soon(files, Rename("bbb", "ab"[number % 2], "ab"[1 - number % 2], 7, is_file=True))
        await until(lambda: not unsynced.is_any)
        assert unsynced.syncs >= 1

    on_disk(tmp_path, check)


@pytest.mark.parametrize("by", ["fsync", "another change", "the end"])
@pytest.mark.usefixtures("no_timer")
def test_what_is_synced_later_takes_the_earlier_along(tmp_path: Path, by: str) -> None:
    """The log is read back up to its first gap, so nothing durable may stand behind something that is not."""

    async def check(files: Files, unsynced: Unsynced) -> None:
        assert not (await soon(files, Rename("bbb", "a", "b", 7, is_file=True))).code
        assert unsynced.is_any
        if by == "fsync":
            await files.change(Sync("bbb"))
        elif by == "another change":
            await files.make("c")
        else:
            await files.w.database.close()
        assert not unsynced.is_any

    on_disk(tmp_path, check)


@pytest.mark.usefixtures("no_timer")
def test_a_commit_without_a_change_takes_nothing_along(tmp_path: Path) -> None:
    """SQLite syncs nothing for it: what was answered early would be taken for durable, and never be synced."""

    async def check(files: Files, unsynced: Unsynced) -> None:
        assert not (await soon(files, Rename("bbb", "a", "b", 7, is_file=True))).code
        await files.w.database.write(lambda c: c.execute(sa.select(schema.buckets)).all())
        assert unsynced.is_any
        await files.w.database.synced()
        assert unsynced.syncs == 1

    on_disk(tmp_path, check)


@pytest.mark.usefixtures("no_timer")
def test_where_other_sites_hear_of_it_a_change_waits_for_the_disk(tmp_path: Path) -> None:
    """Else another site would know of a name that a power cut took back here."""

    async def check(files: Files, unsynced: Unsynced) -> None:
        await files.w.buckets.set_replication("bbb", [{"target": "site2", "mode": "async"}], ADMIN)
        assert not (await soon(files, Rename("bbb", "a", "b", 7, is_file=True))).code
        assert not unsynced.is_any

    on_disk(tmp_path, check)


def test_after_a_sync_that_failed_nothing_more_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second sync of the same pages says that all is well, whatever became of them: what is committed then would
    stand behind a gap of the log."""

    async def check(files: Files, unsynced: Unsynced) -> None:
        def fail() -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(unsynced, "_sync", fail)
        assert not (await soon(files, Rename("bbb", "a", "b", 7, is_file=True))).code
        with pytest.raises(UnavailableError, match="restart metadata"):
            await files.w.database.synced()
        assert (await files.make("c")).code == "catalog-unavailable"
        assert await files.names() == ["b"], "reads go on"

    on_disk(tmp_path, check)


@pytest.mark.usefixtures("no_timer")
def test_devices_are_told_of_what_is_on_the_disk_only(tmp_path: Path) -> None:
    """A device that has noted a later sequence than its catalog's deletes nothing, until somebody looks after it."""

    async def check(files: Files, unsynced: Unsynced) -> None:
        database = files.w.database
        world = await new_world(database)
        await soon(files, Rename("bbb", "a", "b", 7, is_file=True))
        assert unsynced.is_any
        await world.cluster.refresh()
        assert not unsynced.is_any
        assert world.cluster.sequence == await database.read(lambda c: feed.head(c)[0])

    on_disk(tmp_path, check)


class Client:
    """What a mount's calls to metadata pass through, without the wire."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def catalog_ms(self) -> int:
        return self.files.w.clock.now_ms()

    def note_catalog_ms(self, now_ms: int) -> None:
        """The clock is the same."""

    def new_operation(self) -> bytes:
        return operation_id(self.catalog_ms(), self.files.w.rng.getrandbits(80))

    async def ask(self, target: bytes, message: FileChanges, kind: object, *, seconds: float) -> FileResults:
        assert target.endswith(b"/change")
        return FileResults(await self.files.service.change([(item, ADMIN) for item in message.items]))


@pytest.mark.usefixtures("no_timer")
def test_a_mounts_fsync_waits_for_the_names_that_it_was_answered(tmp_path: Path) -> None:
    """fsync of a file that has nothing to commit, or of a directory, after a rename: the promise is the disk's."""

    async def check(files: Files, unsynced: Unsynced) -> None:
        remote = FilesRemote(cast(MetadataClient, Client(files)), "bbb")
        await remote.change(Rename("bbb", "a", "b", 7, is_file=True))
        assert not unsynced.is_any, "a mount that was told nothing waits for the disk"
        remote.is_soon = True
        await remote.change(Rename("bbb", "b", "c", 7, is_file=True))
        assert unsynced.is_any
        await remote.synced()
        assert not unsynced.is_any
        database = files.w.database
        assert isinstance(database, SqliteDatabase)
        done = database.commits
        await remote.synced()
        assert database.commits == done, "nothing was left to sync"
        await remote.close()

    on_disk(tmp_path, check)
