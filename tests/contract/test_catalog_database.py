"""Transactions: what is shared, what is not, and what one failure may do to others. Every engine."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from metadata.catalog import feed, leases, schema
from metadata.catalog.database import open_database
from metadata.catalog.migrate import FLOOR, HEAD, upgrade
from metadata.catalog.objects import INSERT_LATEST, LATEST
from metadata.catalog.queries import Connection
from metadata.catalog.session import StaleRows
from metadata.catalog.sqlite import SqliteDatabase
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.names_world import ADMIN, NamesWorld
from tests.kit.postgres import PostgresServer
from tests.kit.waits import give_way
from tierstore.clock import ManualClock
from tierstore.errors import ConfigError, UnavailableError
from tierstore.names import UploadId, operation_of
from tierstore.wire.names import Condition

__all__ = ["postgres", "run", "url_of"]


def _insert(name: str, *, fail: bool = False) -> object:
    def work(c: Connection) -> str:
        c.execute(sa.insert(schema.settings).values(name=name, value="x"))
        if fail:
            raise ValueError(name)
        return name

    return work


def test_a_failing_write_undoes_only_itself(run: Run) -> None:
    """Writers of different duties share a transaction."""

    async def check(w: NamesWorld) -> None:
        works = [w.database.write(_insert(f"n{i}", fail=i % 3 == 0)) for i in range(12)]  # type: ignore[arg-type]
        results = await asyncio.gather(*works, return_exceptions=True)
        assert [isinstance(r, ValueError) for r in results] == [i % 3 == 0 for i in range(12)]
        names = {row.name for row in await w.rows(schema.settings)}
        assert {f"n{i}" for i in range(12) if i % 3} <= names
        assert not {f"n{i}" for i in range(0, 12, 3)} & names

    run(check)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 64, 65, 300])
def test_a_bulk_read_finds_the_rows_of_its_keys_and_no_others(run: Run, count: int) -> None:
    """Keys are read in pieces of fixed sizes filled up with NULLs: a batch must not miss its last ones."""

    async def check(w: NamesWorld) -> None:
        rows = [(1, f"k{i:03}\u00e9", i, 0, 1, i, "e", 5, b"", None, None) for i in range(0, 400, 2)]
        await w.database.batch(lambda session: session.write(INSERT_LATEST, rows))
        keys = [(1, f"k{i:03}\u00e9") for i in range(count)] + [(2, "k000\u00e9")]
        found = await w.database.batch(lambda session: session.fetch(LATEST, keys))
        assert sorted(tuple(row) for row in found) == rows[: (count + 1) // 2]
        assert sorted(tuple(row) for row in await w.database.select(LATEST, keys)) == rows[: (count + 1) // 2]

    run(check)


@pytest.mark.parametrize("count", [3, 64, 87])
@pytest.mark.parametrize("is_last_longer", [False, True])
def test_many_rows_are_inserted_as_they_are_or_not_at_all(run: Run, count: int, is_last_longer: bool) -> None:
    """Rows go many to a statement, without columns that are NULL in all of them: none may be lost, or lose a value; one
    that stands already gives the whole transaction up."""
    rows = [
        (
            7, f"k{i:04}", 1 << 40, 0, 1, i, "e", 5, b"body",
            b"" if is_last_longer and i == count - 1 else None, None,
        )
        for i in range(count)
    ]  # fmt: skip

    async def check(w: NamesWorld) -> None:
        assert await w.database.batch(lambda s: s.write(INSERT_LATEST, rows)) == count
        held = await w.database.select(LATEST, [(7, row[1]) for row in rows])
        assert sorted(map(tuple, held)) == rows
        again = [(7, f"new{i:04}", *row[2:]) for i, row in enumerate(rows[1:])] + rows[-1:]
        with pytest.raises(StaleRows):
            await w.database.batch(lambda s: s.write(INSERT_LATEST, again))
        assert len(await w.rows(schema.objects)) == count

    run(check)


def test_a_write_is_seen_by_every_read_that_starts_after_it(run: Run) -> None:
    """Read-after-write within a site."""

    async def check(w: NamesWorld) -> None:
        for i in range(20):
            done = await w.put("k", etag=f"e{i}")
            assert (await w.look("k")).version == done.version
            assert (await w.page()).objects[0].version == done.version

    run(check)


def test_a_read_sees_one_snapshot(run: Run) -> None:
    """A lookup of a large body reads three tables; they must fit together."""

    async def check(w: NamesWorld) -> None:
        def twice(c: Connection) -> tuple[int, int]:
            count = sa.select(sa.func.count()).select_from(schema.changes)
            return int(c.execute(count).scalar_one()), int(c.execute(count).scalar_one())

        writing = [asyncio.ensure_future(w.put(f"k{i}")) for i in range(50)]
        for _ in range(20):
            first, second = await w.database.read(twice)
            assert first == second
            await give_way()
        assert all(not r.code for r in await asyncio.gather(*writing))

    run(check)


def test_sixty_four_waiting_writers_share_their_commits(tmp_path: Path) -> None:
    """On a slow disk the number of commits decides; the bar is 40 times one writer."""

    async def main() -> None:
        w = await NamesWorld.open(f"sqlite:///{tmp_path}/c.db")
        database = w.database
        assert isinstance(database, SqliteDatabase)
        await w.buckets.create("bbb", ADMIN)
        database.commit_delay_seconds = 0.008

        async def rate(waiting: int, each: int) -> float:
            begun = time.perf_counter()

            async def writer(name: int) -> None:
                for i in range(each):
                    assert not (await w.put(f"{waiting}/{name}/{i}")).code

            await asyncio.gather(*(writer(n) for n in range(waiting)))
            return waiting * each / (time.perf_counter() - begun)

        before = database.commits
        await rate(64, 10)
        assert database.commits - before <= 80, "640 writes; ten to twenty rounds when nobody is late"
        await w.close()

    asyncio.run(main())


def test_two_processes_on_one_postgres_agree(postgres: PostgresServer) -> None:
    """Several metadata processes share a database: one winner per conditional create, one order, no gap in the feed."""

    async def main() -> None:
        url = await postgres.create_database()
        clock = ManualClock()
        behind = ManualClock(now_ms=clock.now_ms() - 2000)      # its own clock is two seconds late
        one = await NamesWorld.open(url, seed=1, clock=clock)
        two = await NamesWorld.open(url, seed=2, clock=behind)
        await one.buckets.create("bbb", ADMIN)
        works = []
        for i in range(40):
            for w in (one, two):
                works.append(w.put(f"c{i % 10}", condition=Condition(if_none_match=["*"]), etag=f"{id(w)}-{i}"))
                works.append(w.put("shared"))
                works.append(w.copy("shared", f"copy{i}-{w is one}"))
        results = await asyncio.gather(*works)
        assert {r.code for r in results} <= {"", "precondition-failed", "no-such-key"}
        created = [r for r in results[0::3] if not r.code]
        assert len(created) == 10
        changes = await one.database.read(lambda c: feed.read(c, 0, 10_000))
        assert [c.sequence for c in changes] == list(range(1, len(changes) + 1))
        shared = [c.version for c in changes if c.key == "shared" and c.kind == schema.CHANGE_PUT]
        assert shared == sorted(shared) and len(set(shared)) == 80
        assert (await two.look("shared")).version == shared[-1] == (await one.look("shared")).version
        await one.close()
        await two.close()

    asyncio.run(main())


def test_a_postgres_that_may_forget_commits_is_refused() -> None:
    """synchronous_commit = off acknowledges what a power cut takes back."""
    server = PostgresServer(synchronous_commit="off")
    try:
        with pytest.raises(ConfigError, match="synchronous_commit"):
            asyncio.run(open_database(server.url()))  # type: ignore[arg-type]
    finally:
        server.stop()


def test_a_database_that_is_away_is_said_so() -> None:
    """Not a traceback."""
    with pytest.raises(UnavailableError, match="cannot be reached"):
        asyncio.run(open_database("postgresql://postgres@/x?host=/nonexistent"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sqlite"):
        asyncio.run(open_database("mysql://x"))  # type: ignore[arg-type]


def test_a_full_disk_lets_deletes_through_and_refuses_puts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 19: a full catalog must still be able to free space."""

    async def main() -> None:
        w = await NamesWorld.open(f"sqlite:///{tmp_path}/c.db")
        await w.buckets.create("bbb", ADMIN)
        await w.put("k")
        assert isinstance(w.database, SqliteDatabase) and w.database.has_ballast
        w.database.release_ballast()
        monkeypatch.setattr("metadata.catalog.sqlite.BALLAST_BYTES", 1 << 60)
        assert (await w.put("more")).code == "catalog-full"
        assert (await w.delete("k")).existed
        monkeypatch.undo()
        assert (await w.put("more")).code == "" and w.database.has_ballast
        await w.close()

    asyncio.run(main())


def test_the_log_stays_small_while_writers_never_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that only grows fills the disk; a checkpoint per commit halves the rate."""
    monkeypatch.setattr("metadata.catalog.sqlite_log.CHECKPOINT_BYTES", 512 << 10)
    monkeypatch.setattr("metadata.catalog.sqlite.LOG_KEPT_BYTES", 64 << 10)
    monkeypatch.setattr("metadata.catalog.sqlite_log.CHECKPOINT_PAUSE_SECONDS", 0.0)

    async def main() -> None:
        w = await NamesWorld.open(f"sqlite:///{tmp_path}/c.db")
        database = w.database
        assert isinstance(database, SqliteDatabase) and database.log is not None
        await w.buckets.create("bbb", ADMIN)
        largest = 0
        for i in range(300):
            await asyncio.gather(*(w.put(f"{i}/{n}") for n in range(8)))
            largest = max(largest, (tmp_path / "c.db-wal").stat().st_size)
        assert 512 << 10 <= largest < 4 << 20
        assert 2 <= database.log.checkpoints < database.commits / 3, (database.log.checkpoints, database.commits)
        await w.close()

    asyncio.run(main())


def test_the_log_is_written_over_and_does_not_grow_again_at_each_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that makes a file longer waits for the file system's journal too: every commit would pay for it."""
    monkeypatch.setattr("metadata.catalog.sqlite_log.CHECKPOINT_BYTES", 512 << 10)
    monkeypatch.setattr("metadata.catalog.sqlite_log.CHECKPOINT_PAUSE_SECONDS", 0.0)

    async def main() -> None:
        w = await NamesWorld.open(f"sqlite:///{tmp_path}/c.db")
        assert isinstance(w.database, SqliteDatabase) and w.database.log is not None
        log = w.database.log
        await w.buckets.create("bbb", ADMIN)
        began_anew, was_long, sizes = 0, False, []
        for i in range(3_000):
            await asyncio.gather(*(w.put(f"{i}/{n}") for n in range(4)))
            is_long = log.reaches(256 << 10)
            if was_long and not is_long:
                began_anew += 1
                sizes.append((tmp_path / "c.db-wal").stat().st_size)
            was_long = is_long
            if began_anew == 3:
                break
        assert began_anew == 3, (i, log.checkpoints)
        assert min(sizes) >= 512 << 10, "it keeps its length"
        assert not log.reaches(1 << 30)
        (tmp_path / "cut").mkdir()      # what a crash leaves: new frames before those of the log's last life
        for name in ("c.db", "c.db-wal"):
            (tmp_path / "cut" / name).write_bytes((tmp_path / name).read_bytes())
        await w.close()
        assert not (tmp_path / "c.db-wal").exists()
        for path in (tmp_path / "c.db", tmp_path / "cut" / "c.db"):
            with contextlib.closing(sqlite3.connect(path)) as raw:
                assert raw.execute("SELECT count(*) FROM objects").fetchone() == (4 * (i + 1),)
                assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    asyncio.run(main())


def test_the_log_is_cut_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 19: what the log keeps for its pace is room that deletes need more."""
    monkeypatch.setattr("metadata.catalog.sqlite_log.CHECKPOINT_BYTES", 512 << 10)
    monkeypatch.setattr("metadata.catalog.sqlite_log.CHECKPOINT_PAUSE_SECONDS", 0.0)

    async def main() -> None:
        w = await NamesWorld.open(f"sqlite:///{tmp_path}/c.db")
        assert isinstance(w.database, SqliteDatabase) and w.database.log is not None
        await w.buckets.create("bbb", ADMIN)
        w.database.release_ballast()
        assert w.database.log.is_to_be_cut
        largest, size = 0, 0
        for i in range(3_000):
            assert (await w.put(f"{i}")).code == "", "there is room again: the ballast comes back with the first look"
            w.database.log.is_to_be_cut = True
            size = (tmp_path / "c.db-wal").stat().st_size
            if size < largest:
                break
            largest = size
        assert size < 512 << 10 <= largest
        await w.close()

    asyncio.run(main())


def test_uploads_that_had_committed_stay_committed(url_of: Callable[[], Awaitable[str]]) -> None:
    """Migration 0003 moves their rows: one that is lost lets a chunk get a second owner."""
    upload, operation = bytes(range(12)), bytes(range(100, 116))

    def of_old(c: Connection) -> None:
        upgrade(c, to="0002")
        c.execute(sa.text("INSERT INTO committed_uploads (id) VALUES (:upload)"), {"upload": upload})
        c.execute(sa.insert(schema.operations).values(id=operation, result=b"result"))

    async def main() -> None:
        url = await url_of()
        database = await open_database(url, threads=url != "sqlite://")
        try:
            await database.write(of_old)
            await database.write(upgrade)
            rows = await database.read(
                lambda c: c.execute(sa.select(schema.operations).order_by(schema.operations.c.id)).all()
            )
            assert [tuple(row) for row in rows] == [(operation_of(UploadId(upload)), b""), (operation, b"result")]
        finally:
            await database.close()

    asyncio.run(main())


def test_a_migration_waits_for_no_one_who_would_not_work_after_it(postgres: PostgresServer) -> None:
    """An operator starts the new release beside the old one: it says what to stop, and the old one goes on working."""

    async def main() -> None:
        import asyncpg

        url = await postgres.create_database()
        database = await open_database(url)
        try:
            await database.write(lambda c: upgrade(c, "0002"))
            old = await asyncpg.connect(url, server_settings={"application_name": "tierstore schema 0002"})
            with pytest.raises(ConfigError, match=r"schema 0002.*stop all metadata processes of the older release"):
                await database.write(upgrade)
            assert await old.fetchval("SELECT count(*) FROM committed_uploads") == 0, "nothing was taken from under it"
            assert await old.fetchval("SELECT version_num FROM alembic_version") == "0002"
            await old.close()

            sessions = sa.text("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%0002'")
            async with asyncio.timeout(300):    # the server ends a closed session in its own time; each look is a query
                while await database.read(lambda c: c.execute(sessions).all()):
                    await give_way()
            await database.write(upgrade)
            await database.write(upgrade)
            assert "0003" <= await database.read(lambda c: leases.setting(c, FLOOR)) <= HEAD
        finally:
            await database.close()

    asyncio.run(main())
