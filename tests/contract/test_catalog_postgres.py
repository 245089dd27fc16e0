"""What only PostgreSQL has: round trips of a batch, plans without statistics, connections that the server closes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from metadata.catalog import feed, objects, operations, placements, ranges, schema
from metadata.catalog.packed import pack_new
from metadata.catalog.session import COMMIT_LOCK, Session
from metadata.services.sites.backfill import Backfills
from tests.contract.catalog_subjects import postgres
from tests.kit.names_world import ADMIN, NamesWorld
from tests.kit.postgres import PostgresServer
from tests.kit.waits import until_told
from tierstore.clock import SystemClock
from tierstore.errors import UnavailableError
from tierstore.wire.names import Condition, Put

__all__ = ["postgres"]

BUCKET = 77
Row = tuple[Any, ...]


def row(key: str, version: int = 1) -> Row:
    return (BUCKET, key, version, 0, 1, 5, "e", 5, b"", None, None)


def change(key: str) -> feed.NewChange:
    return feed.NewChange(schema.CHANGE_PUT, BUCKET, key, 1)


def play(server: PostgresServer, test: Callable[[NamesWorld, str], Awaitable[None]]) -> None:
    async def main() -> None:
        url = await server.create_database()
        world = await NamesWorld.open(url, clock=SystemClock())
        try:
            await world.buckets.create("bbb", ADMIN)
            await test(world, url)
        finally:
            await world.close()

    asyncio.run(main())


def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on: each round trip that this process makes."""
    made: list[str] = []

    def note(of: type, name: str) -> None:
        real = getattr(of, name)

        async def noted(self: Any, *arguments: Any, **named: Any) -> Any:
            made.append(str(arguments[0]) if arguments and isinstance(arguments[0], str) else name)
            return await real(self, *arguments, **named)

        monkeypatch.setattr(of, name, noted)

    for name in ("execute", "fetch", "fetchrow", "fetchval", "executemany"):
        note(asyncpg.Connection, name)
    for name in ("fetch", "fetchrow"):
        note(asyncpg.prepared_stmt.PreparedStatement, name)
    return made


def test_a_batch_of_puts_takes_four_round_trips(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one costs a wake-up of two processes: fifteen of them were three quarters of what a commit took."""

    async def test(world: NamesWorld, url: str) -> None:
        async def puts(names: range, **fields: Any) -> None:
            items = [world.item(Put("bbb", f"k{n}", 4096, "", [world.chunk(4096)], **fields)) for n in names]
            results = await world.commits.commit([(item, ADMIN) for item in items])
            assert not [result for result in results if result.code]

        await puts(range(8))    # learns which ids bucket and servers have
        made = statements(monkeypatch)
        await puts(range(8, 72))
        assert len(made) == 4, made
        assert made[0].startswith("BEGIN") and made[-1] == "COMMIT"
        made.clear()
        await puts(range(40))   # over those that are there: their chunks become garbage
        assert len(made) == 4, made
        made.clear()
        await puts(range(60, 80))
        assert len(made) <= 5, made

    play(postgres, test)


def test_lookups_take_one_round_trip(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one moment share a statement, and nothing is asked before or after it."""

    async def test(world: NamesWorld, url: str) -> None:
        rows = [row(f"k{n}") for n in range(64)]
        await world.database.batch(lambda session: session.write(objects.INSERT_LATEST, rows))
        keys = [(BUCKET, f"k{n}") for n in range(64)]
        assert len(await world.database.select(objects.LATEST, keys)) == 64
        made = statements(monkeypatch)
        found = await asyncio.gather(*(world.database.select(objects.LATEST, [key]) for key in keys))
        assert [len(of_key) for of_key in found] == [1] * 64
        assert len(made) == 1, made

    play(postgres, test)


def test_no_statement_of_a_batch_reads_the_whole_table(postgres: PostgresServer) -> None:
    """A new table has no statistics until autovacuum comes by; the planner then hashed it, and a put of a catalog of
    16,000 names took ten times what one of the first did."""

    async def test(world: NamesWorld, url: str) -> None:
        statement = sa.text("ALTER TABLE objects SET (autovacuum_enabled = off)")
        await world.database.write(lambda connection: connection.execute(statement))
        rows = [row(f"k{n:06}") for n in range(6000)]
        await world.database.batch(lambda session: session.write(objects.INSERT_LATEST, rows))
        keys = [(BUCKET, f"k{n:06}") for n in range(0, 6000, 100)]

        def work(session: Session) -> None:
            session.ask_ahead([(objects.LATEST_LOCKED, keys), (operations.CONDEMNED, [(b"u",)])])
            assert len(session.fetch(objects.LATEST_LOCKED, keys)) == len(keys)
            assert len(session.fetch(objects.LATEST, keys)) == len(keys)
            assert session.write(objects.REPLACE_LATEST, [row(key, 2) for _, key in keys]) == len(keys)
            # what scans of the table read; the views of statistics hear of it only after the transaction
            read = session.connection.execute(
                sa.text("SELECT pg_stat_get_xact_tuples_returned('objects'::regclass)")
            ).scalar_one()
            assert read == 0, f"{read} rows read by scans"

        for _ in range(7):      # from the sixth time on the plan may be one for any parameters
            await world.database.batch(work)
        assert len(await world.database.select(objects.LATEST, keys)) == len(keys)

    play(postgres, test)


@pytest.mark.parametrize("has_statistics", [False, True])
def test_a_walk_over_keys_reads_each_row_once(postgres: PostgresServer, has_statistics: bool) -> None:
    """A directory is walked page by page before it moves. Left to itself, the planner read and sorted all that was left
    of the range for every page: a rename of 100,000 keys took minutes."""
    keys, elsewhere = 5000, 1000

    async def test(world: NamesWorld, url: str) -> None:
        for table in ("objects", "placements"):
            statement = sa.text(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            await world.database.write(lambda connection, s=statement: connection.execute(s))
        body = pack_new(b"i" * 16, 5, 0, [(10, 0, 1, 1), (20, 0, 1, 1)])

        def make(session: Session) -> None:
            names = [f"d/{n:06}" for n in range(keys)] + [f"e{n:06}" for n in range(elsewhere)]
            chunks = {name: n.to_bytes(16, "big") for n, name in enumerate(names)}
            session.write(objects.INSERT_LATEST, [(*row(n)[:8], chunks[n] + body[16:], None, None) for n in names])
            for device in (10, 20):
                session.write(placements.UPSERT, [(device, chunks[n], BUCKET, n, 1, 5) for n in names])

        await world.database.batch(make)
        if has_statistics:
            await world.database.write(lambda connection: connection.execute(sa.text("ANALYZE")))

        def read_by(connection: sa.Connection, *relations: str) -> list[int]:
            """What scans of tables and indexes read in this transaction."""
            asked = ", ".join(f"pg_stat_get_xact_tuples_returned('{name}'::regclass)" for name in relations)
            return list(connection.execute(sa.text(f"SELECT {asked}")).one())

        def work(session: Session) -> None:
            connection = session.connection
            pages = list(ranges.rows(connection, BUCKET, "d/"))
            assert len(pages) == 3
            assert [found.key for page in pages for found in page] == [f"d/{n:06}" for n in range(keys)]
            scanned, by_index = read_by(connection, "objects", "objects_pkey")
            assert (scanned, by_index <= keys + len(pages)) == (0, True), f"{scanned} scanned, {by_index} by the index"
            ranges.move_places(connection, BUCKET, "d/", "other/", 9)
            scanned, by_index, placed, places = read_by(
                connection, "objects", "objects_pkey", "placements", "placements_pkey"
            )
            assert (scanned, by_index <= 2 * keys + len(pages)) == (0, True), f"{scanned}, {by_index} by the index"
            assert (placed, places) == (0, 2 * keys)

        await world.database.batch(work)
        owners = sorted(found.key for found in await world.rows(schema.placements))
        wanted = [f"other/{n:06}" for n in range(keys)] + [f"e{n:06}" for n in range(elsewhere)]
        assert owners == sorted(wanted * 2)

    play(postgres, test)


def test_a_wrong_guess_costs_a_read_and_decides_nothing(postgres: PostgresServer) -> None:
    """Another metadata process deletes a bucket and makes one of the same name: its id is another one, and the first
    process must not judge a put by the old one's rows."""

    async def test(world: NamesWorld, url: str) -> None:
        other = await NamesWorld.open(url, seed=2, clock=SystemClock())
        try:
            assert not (await world.put("k")).code
            assert not (await world.delete("k")).code
            await other.buckets.delete("bbb", ADMIN)
            await other.buckets.create("bbb", ADMIN)
            assert not (await other.put("k")).code
            refused = await world.put("k", condition=Condition(if_none_match=["*"]))
            assert refused.code == "precondition-failed"
            assert not (await world.put("new", condition=Condition(if_none_match=["*"]))).code
            [bucket] = {found.bucket_id for found in await world.rows(schema.objects)}
            assert bucket == (await world.rows(schema.buckets))[-1].id
        finally:
            await other.close()

    play(postgres, test)


def test_a_commit_waits_for_who_locks_commits_out_and_sees_what_he_wrote(postgres: PostgresServer) -> None:
    """Collection condemns an upload in the moment of its commit. A statement sees what was committed before it began:
    the lock has to be held before the first read, or the chunk would get a name and be deleted."""

    async def test(world: NamesWorld, url: str) -> None:
        assert not (await world.put("before")).code
        chunk = world.chunk(4096)
        raw = await asyncpg.connect(url)
        try:
            await raw.execute(f"BEGIN; SELECT pg_advisory_xact_lock({COMMIT_LOCK})")
            await raw.execute("INSERT INTO condemned_uploads (upload_id, at_ms) VALUES ($1, 1)", bytes(chunk.id[:12]))
            item = world.item(Put("bbb", "k", 4096, "", [chunk]))
            committing = asyncio.ensure_future(world.commits.commit([(item, ADMIN)]))

            async def is_waiting() -> bool:
                waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                return committing.done() or bool(await raw.fetchval(waiting))

            await until_told(is_waiting)
            await raw.execute("COMMIT")
        finally:
            await raw.close()
        [result] = await committing
        assert result.code, "the upload was condemned before its commit began"
        assert {found.key for found in await world.rows(schema.objects)} == {"before"}

    play(postgres, test)


ROW_WAITS = "SELECT count(*) FROM pg_locks WHERE locktype IN ('transactionid', 'tuple') AND NOT granted"


def test_a_commit_beside_new_rules_is_queued_by_them_or_there_before_their_backfill(postgres: PostgresServer) -> None:
    """A commit that read the bucket without the rule and ended after the backfill had passed its key would never reach
    the other site: so it ends before the rule holds, or it waits and sees the rule."""

    async def test(world: NamesWorld, url: str) -> None:
        backfills = Backfills(world.database, world.clock)
        world.buckets.in_rules = backfills.rules_changed
        raw = await asyncpg.connect(url)

        async def is_waiting() -> bool:
            return bool(await raw.fetchval(ROW_WAITS))

        try:
            # as a commit that has read its bucket and is not at its end yet: the rule waits for it
            await raw.execute("BEGIN")
            await raw.execute("SELECT 1 FROM buckets WHERE name = 'bbb' FOR KEY SHARE")
            ruling = asyncio.ensure_future(world.buckets.set_replication("bbb", [{"target": "site2"}], ADMIN))
            await until_told(is_waiting)
            assert (await backfills.progress("site2")).parts == 0 and not ruling.done()
            await raw.execute("COMMIT")
            await ruling
            assert (await backfills.progress("site2")).parts == 1

            # as a rule that is being set: the commit waits for it, and goes by it
            await world.buckets.set_replication("bbb", [], ADMIN)
            assert not (await world.put("before")).code         # what is asked ahead is known from here on
            assert not await world.rows(schema.replication_queue)
            await raw.execute("BEGIN")
            await raw.execute("SELECT 1 FROM buckets WHERE name = 'bbb' FOR UPDATE")
            rules = json.dumps({"rules": [{"target": "site2", "prefix": ""}]})
            await raw.execute(
                "UPDATE buckets SET config = $1 WHERE name = 'bbb'", json.dumps({"replication": rules})
            )
            committing = asyncio.ensure_future(world.put("beside"))
            await until_told(is_waiting)
            assert not committing.done()
            await raw.execute("COMMIT")
            assert not (await committing).code
            assert [queued.key for queued in await world.rows(schema.replication_queue)] == ["beside"]
        finally:
            await raw.close()

    play(postgres, test)


def test_what_was_asked_ahead_is_not_answered_after_a_write(postgres: PostgresServer) -> None:
    """A read that follows a write sees it, also when it was announced before; what was put off is done by then."""

    async def test(world: NamesWorld, url: str) -> None:
        def work(session: Session) -> None:
            keys = [(BUCKET, "a"), (BUCKET, "b")]
            session.ask_ahead([(objects.LATEST, keys), (operations.RESULTS, [(b"o" * 16,)])])
            session.defer(objects.INSERT_LATEST, [row("a")])
            session.defer(operations.INSERT_RESULTS, [(b"o" * 16, b"r")])
            session.defer(objects.INSERT_LATEST, [row("b")])     # the same table again: in a statement of its own
            last, _ = session.append(feed.INSERT_CHANGES, [(7, *change(key)[:4]) for key in "ab"], 9)
            assert len(session.fetch(objects.LATEST, keys)) == 2
            assert session.fetch(operations.RESULTS, [(b"o" * 16,)]) == [(b"o" * 16, b"r")]
            rows = session.connection.execute(sa.select(schema.changes).order_by(schema.changes.c.sequence)).all()
            told = [(found.sequence, found.at_ms, found.key) for found in rows[-2:]]
            assert told == [(last - 1, 7, "a"), (last, 7, "b")]

        await world.database.batch(work)

    play(postgres, test)


def test_writes_that_were_put_off_undo_everything_when_one_has_no_effect(postgres: PostgresServer) -> None:
    """A row that another process wrote in between: nothing of the batch stays, and the connection is as good as new."""

    async def test(world: NamesWorld, url: str) -> None:
        await world.database.batch(lambda session: session.write(objects.INSERT_LATEST, [row("there")]))
        before = len(await world.rows(schema.changes))

        def work(session: Session) -> None:
            session.guard()
            session.defer(operations.INSERT_RESULTS, [(b"o" * 16, b"r")])
            session.defer(objects.INSERT_LATEST, [row("new"), row("there")])
            session.append(feed.INSERT_CHANGES, [(7, *change("new")[:4])], 9)

        with pytest.raises(Exception, match="insert objects: 1 of 2 rows"):
            await world.database.batch(work)
        assert {found.key for found in await world.rows(schema.objects)} == {"there"}
        assert len(await world.rows(schema.changes)) == before
        assert not (await world.put("k")).code

    play(postgres, test)


def test_connections_that_the_server_closed_are_replaced(postgres: PostgresServer) -> None:
    """PostgreSQL was restarted, or an operator ended its sessions: no transaction begins on a dead connection."""

    async def test(world: NamesWorld, url: str) -> None:
        await asyncio.gather(*(world.put(f"k{n}") for n in range(10)))
        raw = await asyncpg.connect(url)
        try:
            ended = await raw.fetchval(
                "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        finally:
            await raw.close()
        assert ended > 0

        async def is_put(key: str) -> bool:
            return not (await world.put(key)).code

        for n in range(11):     # the loop hears of each closed connection in one of its turns
            await until_told(lambda n=n: is_put(f"after{n}"))
        assert (await world.look("k3")).version

    play(postgres, test)


def test_a_batch_that_is_given_up_in_the_middle_leaves_no_transaction_open(postgres: PostgresServer) -> None:
    """Its time is over while it waits for a lock: the connection is not used again, and its locks are gone."""

    async def test(world: NamesWorld, url: str) -> None:
        assert not (await world.put("k")).code
        raw = await asyncpg.connect(url)
        try:
            await raw.execute("BEGIN; LOCK TABLE feed_head IN ACCESS EXCLUSIVE MODE")

            def work(session: Session) -> None:
                session.guard()
                session.defer(objects.INSERT_LATEST, [row("late")])
                session.append(feed.INSERT_CHANGES, [(7, *change("late")[:4])], 9)

            with pytest.raises(UnavailableError) as caught:
                await world.database.batch(work, seconds=0.3)
            assert caught.value.code == "outcome-unknown"
            await raw.execute("COMMIT")
        finally:
            await raw.close()
        async with asyncio.timeout(120):
            assert not (await world.put("late")).code
        assert {found.key for found in await world.rows(schema.objects) if found.bucket_id == BUCKET} == set()

    play(postgres, test)
