"""What a commit, a lookup and a listing mean: one suite for every engine."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa

from metadata.catalog import feed, operations, schema
from metadata.catalog.packed import INLINE_CHUNKS_MAX
from metadata.catalog.queries import Connection
from metadata.services.names.steps import NULL_VERSION
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.auth.access import Principal
from tierstore.clock import ManualClock
from tierstore.errors import AccessDenied, ConflictError, RequestError
from tierstore.names import UploadId, operation_of
from tierstore.ticket import ROLE_CACHE, ROLE_HOME
from tierstore.wire.names import CommitChunk, Condition, Copy, Delete, LookupItem, ObjectMeta, Put, Renew

__all__ = ["postgres", "run", "url_of"]

READER = Principal("R", "r", {"bbb": "readonly"})


def test_what_was_put_is_found_with_tickets_for_every_copy(run: Run) -> None:
    """The basic walk: nothing can be read without it."""

    async def check(w: NamesWorld) -> None:
        chunk = w.chunk(123)
        done = await w.put("k", chunks=[chunk], etag="e1", meta=ObjectMeta(content_type="text/plain"))
        assert (done.code, done.etag, done.size) == ("", "e1", 123)
        found = await w.look("k")
        assert (found.version, found.size, found.etag, found.is_latest) == (done.version, 123, "e1", True)
        assert found.meta == ObjectMeta(content_type="text/plain")
        [view] = found.chunks
        assert (view.id, view.start, view.length, view.crc32c) == (chunk.id, 0, 123, chunk.crc32c)
        assert sorted(r.device for r in view.replicas) == [10, 20]
        assert all(r.ticket for r in view.replicas)

    run(check)


def test_a_missing_key_and_a_missing_bucket_are_told_apart(run: Run) -> None:
    """Clients create what is missing by the code alone."""

    async def check(w: NamesWorld) -> None:
        assert (await w.look("nope")).code == "no-such-key"
        assert (await w.look("k", bucket="nope")).code == "no-such-bucket"
        assert (await w.put("k", bucket="nope")).code == "no-such-bucket"
        assert (await w.delete("nope")).existed is False

    run(check)


def test_an_overwrite_gives_a_larger_version_and_its_old_chunks_to_the_garbage(run: Run) -> None:
    """Else space leaks with every overwrite, or chunks still read are deleted at once."""

    async def check(w: NamesWorld) -> None:
        old, new = w.chunk(), w.chunk()
        first = await w.put("k", chunks=[old])
        second = await w.put("k", chunks=[new])
        assert second.version > first.version
        assert await w.garbage() == [old.id]
        assert (await w.look("k")).chunks[0].id == new.id
        assert (await w.look("k", version=first.version)).code == "no-such-version"

    run(check)


@pytest.mark.parametrize(
    ("condition", "is_met"),
    [
        (Condition(if_none_match=["*"]), False),
        (Condition(if_none_match=["other"]), True),
        (Condition(if_none_match=["e1"]), False),
        (Condition(if_match=["e1"]), True),
        (Condition(if_match=["other"]), False),
        (Condition(if_match=["*"]), True),
        (Condition(version=5), False),
    ],
)
def test_conditions_are_judged_on_the_row_that_stands(run: Run, condition: Condition, is_met: bool) -> None:
    """A lost update is silent."""

    async def check(w: NamesWorld) -> None:
        await w.put("k", etag="e1")
        done = await w.put("k", etag="e2", condition=condition)
        assert done.code == ("" if is_met else "precondition-failed")
        assert (await w.look("k")).etag == ("e2" if is_met else "e1")
        absent = await w.put("absent", condition=Condition(if_match=["*"]))
        assert absent.code == "precondition-failed"

    run(check)


def test_of_many_conditional_creates_at_once_exactly_one_wins(run: Run) -> None:
    """Locks and leases are built on If-None-Match: *."""

    async def check(w: NamesWorld) -> None:
        results = await asyncio.gather(
            *(w.put("k", etag=f"e{i}", condition=Condition(if_none_match=["*"])) for i in range(40))
        )
        winners = [r for r in results if not r.code]
        assert len(winners) == 1
        assert {r.code for r in results} == {"", "precondition-failed"}
        assert (await w.look("k")).etag == winners[0].etag

    run(check)


def test_writes_of_one_key_take_effect_in_arrival_order(run: Run) -> None:
    """A batch holds a key once; the last one sent must be the one that stays (rule 8)."""

    async def check(w: NamesWorld) -> None:
        results = await w.commit(*(Put("bbb", "k", 100, f"e{i}", [w.chunk()]) for i in range(30)))
        versions = [r.version for r in results]
        assert versions == sorted(versions) and len(set(versions)) == 30
        assert (await w.look("k")).etag == "e29"

    run(check)


def test_a_repeated_operation_gets_the_first_result_and_applies_once(run: Run) -> None:
    """A retried DELETE must not kill what was written after it (R14)."""

    async def check(w: NamesWorld) -> None:
        await w.put("k", etag="old")
        delete = w.item(Delete("bbb", "k"))
        [first] = await w.commits.commit([(delete, ADMIN)])
        assert first.existed
        await w.put("k", etag="newer")
        [again] = await w.commits.commit([(delete, ADMIN)])
        assert again == first
        assert (await w.look("k")).etag == "newer"
        put = w.item(Put("bbb", "c", 100, "e", [w.chunk()], None, Condition(if_none_match=["*"])))
        results = [(await w.commits.commit([(put, ADMIN)]))[0] for _ in range(3)]
        assert results[0].code == "" and results[1:] == results[:1] * 2
        both = await w.commits.commit([(put, ADMIN), (put, ADMIN)])
        assert both == results[:1] * 2

    run(check)


def test_a_late_operation_is_refused(run: Run) -> None:
    """Rule 12: a request that hung in the network for a minute must not act."""

    async def check(w: NamesWorld) -> None:
        item = w.item(Put("bbb", "k", 100, "e", [w.chunk()]))
        w.clock.advance(31)
        assert (await w.commits.commit([(item, ADMIN)]))[0].code == "too-late"
        endless = w.item(Delete("bbb", "k"), deadline_ms=w.clock.now_ms() + 10**8)
        assert (await w.commits.commit([(endless, ADMIN)]))[0].code == "bad-deadline"
        assert (await w.look("k")).code == "no-such-key"

    run(check)




def test_a_refusal_that_was_heard_is_the_answer_to_every_repeat(run: Run) -> None:
    """Simulation seed 3110: a copy of a refused conditional create came after the key was deleted, and took effect."""

    async def check(w: NamesWorld) -> None:
        assert (await w.put("k")).code == ""
        create = w.item(Put("bbb", "k", 100, "", [w.chunk()], None, Condition(if_none_match=["*"])))
        source = w.item(Copy("bbb", "copied", "bbb", "gone"))
        for item, code in ((create, "precondition-failed"), (source, "no-such-key")):
            assert (await w.commits.commit([(item, ADMIN)]))[0].code == code
        assert (await w.commits.commit([(w.item(Delete("bbb", "k")), ADMIN)]))[0].code == ""
        assert (await w.put("gone")).code == ""
        for _ in range(2):
            for item, code in ((create, "precondition-failed"), (source, "no-such-key")):
                assert (await w.commits.commit([(item, ADMIN)]))[0].code == code
        assert (await w.look("k")).code == (await w.look("copied")).code == "no-such-key"
        again = w.item(Put("bbb", "k", 100, "", [w.chunk()], None, Condition(if_none_match=["*"])))
        assert (await w.commits.commit([(again, ADMIN)]))[0].code == ""

    run(check)


def test_receipts_must_be_genuine_of_enough_servers_and_of_this_life(run: Run) -> None:
    """Rules 4 and 11: an acknowledged write has its copies."""

    async def check(w: NamesWorld) -> None:
        forged = w.chunk()
        bad = type(forged)(forged.id, forged.chunk_bytes, forged.crc32c ^ 1, forged.receipts)
        assert (await w.put("k", chunks=[bad])).code == "receipt-mismatch"
        w.view.ticket_keys[2] = {1: b"x" * 32}
        assert (await w.put("k")).code == "ticket-refused"
        w.view.ticket_keys[2] = {1: bytes([2]) * 32}
        assert (await w.put("k", chunks=[w.chunk(devices=(10, 11))])).code == "not-enough-servers"
        assert (await w.put("k", chunks=[w.chunk(devices=(10,))])).code == "not-enough-servers"
        assert (await w.put("k", chunks=[w.chunk(incarnation=6)])).code == "device-refused"

        def drained(c: Connection) -> None:
            c.execute(sa.update(schema.devices).where(schema.devices.c.id == 20).values(state="drained"))

        await w.database.write(drained)
        assert (await w.put("k")).code == "device-refused"
        assert (await w.put("k", chunks=[w.chunk(devices=(10, 30))])).code == ""
        mixed = w.chunk(devices=(10, 30, 20, 31))       # the third device is drained: as a cache copy it is left out
        mixed = CommitChunk(mixed.id, mixed.chunk_bytes, mixed.crc32c, mixed.receipts[:2], mixed.receipts[2:])
        assert (await w.put("k", chunks=[mixed])).code == ""
        found = await w.lookups.lookup(LookupItem("bbb", "k"), ADMIN)
        roles = {r.device: r.role for r in found.chunks[0].replicas}
        assert roles == {10: ROLE_HOME, 30: ROLE_HOME, 31: ROLE_CACHE}

    run(check)


def test_views_of_bodies_are_kept_no_longer_than_they_are_used(run: Run) -> None:
    """A process that looks up a million small objects in an hour would keep the views of the last 20,000 for good."""

    async def test(w: NamesWorld) -> None:
        for n in range(12):
            await w.put(f"k{n}")
        for n in range(12):
            await w.look(f"k{n}")
            w.clock.advance(0.2)
        kept = len(w.lookups._recent) + len(w.lookups._before)
        assert 0 < kept < 12, "those of the last two seconds"
        first = await w.look("k11")
        assert (await w.look("k11")).chunks[0].id == first.chunks[0].id
        w.clock.advance(10)
        await w.look("k0")
        w.clock.advance(10)
        await w.look("k1")
        assert set(map(len, (w.lookups._recent, w.lookups._before))) == {1}

    run(test)


def test_an_upload_commits_once(run: Run) -> None:
    """Two objects that both think they own a chunk would lose it with the first delete."""

    async def check(w: NamesWorld) -> None:
        chunk = w.chunk()
        assert (await w.put("a", chunks=[chunk])).code == ""
        assert (await w.put("b", chunks=[chunk])).code == "upload-committed"
        fresh = w.chunk()
        results = await asyncio.gather(*(w.put(f"c{i}", chunks=[fresh]) for i in range(5)))
        assert sorted(r.code for r in results) == ["", *["upload-committed"] * 4]

    run(check)


def test_an_upload_commits_once_whatever_operations_name_it(run: Run) -> None:
    """The row of the upload's own operation is the mark; a put under another operation must leave and heed it too."""

    async def check(w: NamesWorld) -> None:
        first, second = w.chunk(), w.chunk()
        own = w.item(Put("bbb", "a", 100, "", [first]))
        assert own.operation == operation_of(UploadId(first.id[:12]))
        [done] = await w.commits.commit([(own, ADMIN)])
        assert (done.code, await w.commits.commit([(own, ADMIN)])) == ("", [done])
        assert len(await w.rows(schema.operations)) == 1, "one row says that the put was applied and the upload used"
        other = w.item(Put("bbb", "b", 100, "", [first]), operation=own.operation[:6] + w.rng.randbytes(10))
        assert (await w.commits.commit([(other, ADMIN)]))[0].code == "upload-committed"

        foreign = w.item(Put("bbb", "c", 100, "", [second]), operation=own.operation[:6] + w.rng.randbytes(10))
        assert (await w.commits.commit([(foreign, ADMIN)]))[0].code == ""
        late = w.item(Put("bbb", "d", 100, "", [second]), operation=operation_of(UploadId(second.id[:12])))
        assert (await w.commits.commit([(late, ADMIN)]))[0].code == "upload-committed"
        assert [row.key for row in await w.rows(schema.objects)] == ["a", "c"]

    run(check)


def test_condemned_and_lapsed_uploads_are_refused_and_leases_prolong(run: Run) -> None:
    """Rule 3: after "delete" was answered to an object server, no commit may name the chunk."""

    async def check(w: NamesWorld) -> None:
        lost, slow, leased = w.chunk(), w.chunk(), w.chunk()
        await w.database.write(lambda c: operations.condemn(c, [lost.id[:12]], at_ms=w.clock.now_ms()))
        assert (await w.put("k", chunks=[lost])).code == "upload-condemned"
        w.clock.advance(500)
        await w.uploads.renew(Renew(uploads=[leased.id[:12]]), ADMIN)
        w.clock.advance(200)
        assert (await w.put("k", chunks=[slow])).code == "upload-lapsed"
        with pytest.raises(ConflictError, match="lapsed"):
            await w.uploads.renew(Renew(uploads=[slow.id[:12]]), ADMIN)
        assert (await w.put("k", chunks=[leased])).code == ""
        await w.uploads.renew(Renew(uploads=[leased.id[:12]]), ADMIN)
        assert await w.rows(schema.upload_leases) == [], "a committed upload needs and gets no lease"

    run(check)


def test_leases_need_the_right_to_write_and_pins_the_right_to_read(run: Run) -> None:
    """A key that may only read, or nothing, could keep what others uploaded from ever being collected."""

    async def check(w: NamesWorld) -> None:
        chunk = w.chunk()
        leases, pins = Renew(uploads=[chunk.id[:12]]), Renew(pins=[chunk.id])
        with pytest.raises(AccessDenied, match="write"):
            await w.uploads.renew(leases, READER)
        with pytest.raises(AccessDenied, match="read"):
            await w.uploads.renew(pins, Principal("N", "nobody", {}))
        assert await w.rows(schema.upload_leases) == [] and await w.rows(schema.pins) == []
        await w.uploads.renew(pins, READER)
        await w.uploads.renew(leases, Principal("W", "w", {"other": "readwrite"}))
        await w.uploads.renew(leases, Principal("", "server 3", {"*": "admin"}, server=3))
        assert len(await w.rows(schema.pins)) == 1

    run(check)


def test_an_object_of_many_chunks_is_read_in_windows(run: Run) -> None:
    """A 5 GiB object has 640 chunks; a lookup must not carry them all."""

    async def check(w: NamesWorld) -> None:
        upload = w.upload()
        chunks = [w.chunk(1000, upload=upload, index=i) for i in range(200)]
        await w.put("big", chunks=chunks)
        found = await w.look("big")
        assert (found.size, len(found.chunks), found.more) == (200_000, 64, True)
        middle = await w.look("big", version=found.version, first=150_500, length=2000)
        assert [c.start for c in middle.chunks] == [150_000, 151_000, 152_000] and not middle.more
        assert [c.id for c in middle.chunks] == [c.id for c in chunks[150:153]]
        tail = await w.look("big", first=190_000)
        assert len(tail.chunks) == 10 and not tail.more
        assert (await w.look("big", first=200_000)).chunks == []
        await w.delete("big")
        assert await w.garbage() == sorted(c.id for c in chunks)
        assert await w.rows(schema.extents) == [] and await w.refcounts() == {}

    run(check)


@pytest.mark.parametrize("count", [0, 1, INLINE_CHUNKS_MAX, INLINE_CHUNKS_MAX + 1])
def test_copies_share_chunks_until_the_last_name_goes(run: Run, count: int) -> None:
    """A chunk deleted while a copy still names it is lost data; one that stays after the last is a leak."""

    async def check(w: NamesWorld) -> None:
        upload = w.upload()
        chunks = [w.chunk(10, upload=upload, index=i) for i in range(count)]
        await w.put("a", chunks=chunks, etag="e")
        done = await w.copy("a", "b")
        assert (done.code, done.etag) == ("", "e")
        await w.copy("b", "c")
        await w.copy("c", "c")
        assert set((await w.refcounts()).values()) <= {3}
        for key in ("a", "b", "c"):
            found = await w.look(key)
            assert (found.size, [c.id for c in found.chunks]) == (10 * count, [c.id for c in chunks])
        await w.delete("a")
        await w.put("b", chunks=[])
        assert await w.garbage() == []
        await w.delete("c")
        assert await w.garbage() == sorted(c.id for c in chunks)
        assert await w.refcounts() == {} and await w.rows(schema.extents) == []

    run(check)


def test_a_rename_moves_the_name_in_one_step(run: Run) -> None:
    """Half a rename is a lost or a doubled file."""

    async def check(w: NamesWorld) -> None:
        old, victim = w.chunk(), w.chunk()
        first = await w.put("a", chunks=[old], etag="e")
        await w.put("b", chunks=[victim])
        await w.indexer.catch_up()
        w.clock.advance(5)
        done = await w.copy("a", "b", rename=True)
        assert done.code == "" and done.version > first.version and done.created_at_ms == first.created_at_ms
        assert (await w.look("a")).code == "no-such-key"
        assert [c.id for c in (await w.look("b")).chunks] == [old.id]
        assert await w.garbage() == [victim.id]
        assert (10, old.id, "b") in await w.placed(), "between rename and feed the owner must be known"
        assert (await w.copy("b", "b", rename=True)).code == "bad-rename"
        assert (await w.copy("a", "c", rename=True)).code == "no-such-key"

    run(check)


def test_versioning_keeps_what_was_overwritten_and_marks_what_was_deleted(run: Run) -> None:
    """S3's rules, which backup tools rely on."""

    async def check(w: NamesWorld) -> None:
        null = await w.put("k", etag="null")
        await w.buckets.configure("bbb", ADMIN, versioning="enabled")
        one, two = await w.put("k", etag="one"), await w.put("k", etag="two")
        marker = await w.delete("k")
        assert marker.is_delete_marker and marker.existed and marker.version > two.version
        assert (await w.look("k")).code == "no-such-key"
        assert (await w.page()).objects == []
        for done, etag in ((null, "null"), (one, "one"), (two, "two")):
            found = await w.look("k", version=done.version)
            assert (found.etag, found.is_latest) == (etag, False)
        assert (await w.look("k", version=NULL_VERSION)).etag == "null"
        gone = await w.delete("k", version=marker.version)
        assert gone.is_delete_marker
        assert (await w.look("k")).etag == "two"
        await w.delete("k", version=two.version)
        assert (await w.look("k")).etag == "one"
        assert len(await w.garbage()) == 1
        await w.buckets.configure("bbb", ADMIN, versioning="suspended")
        await w.put("k", etag="newnull")
        assert (await w.look("k", version=NULL_VERSION)).etag == "newnull"
        assert len(await w.garbage()) == 2, "the old null version was replaced"
        assert (await w.look("k", version=one.version)).etag == "one"
        await w.put("k", etag="third")
        assert len(await w.garbage()) == 3

    run(check)


def test_a_rename_where_versions_are_kept_leaves_a_marker(run: Run) -> None:
    """The old versions of the old name stay readable."""

    async def check(w: NamesWorld) -> None:
        await w.buckets.configure("bbb", ADMIN, versioning="enabled")
        chunk = w.chunk()
        first = await w.put("a", etag="e", chunks=[chunk])
        assert (await w.copy("a", "b", rename=True)).code == ""
        assert (await w.look("a")).code == "no-such-key"
        assert [c.id for c in (await w.look("a", version=first.version)).chunks] == [chunk.id]
        assert set((await w.refcounts()).values()) == {2}
        assert (await w.look("b")).etag == "e"

    run(check)


def test_metadata_is_replaced_in_place(run: Run) -> None:
    """Tags change without a new version."""

    async def check(w: NamesWorld) -> None:
        done = await w.put("k", meta=ObjectMeta(tags={"a": "1"}))
        changed = await w.set_meta("k", ObjectMeta(tags={"b": "2"}))
        assert changed.version == done.version
        found = await w.look("k")
        assert found.meta is not None and found.meta.tags == {"b": "2"} and found.version == done.version
        assert (await w.set_meta("nope", ObjectMeta())).code == "no-such-key"
        assert (await w.set_meta("k", ObjectMeta(user_meta={"a": "x\r\n"}))).code == "bad-user-metadata"

    run(check)


def test_rights_are_checked_for_every_item(run: Run) -> None:
    """Default deny."""

    async def check(w: NamesWorld) -> None:
        await w.put("k")
        assert (await w.put("k", who=READER)).code == "access-denied"
        assert (await w.commit(Delete("bbb", "k"), who=READER))[0].code == "access-denied"
        assert (await w.look("k", who=READER)).code == ""
        assert (await w.look("k", who=Principal("X", "x", {"other": "admin"}))).code == "access-denied"
        assert (await w.look("k", who=Principal("", "anonymous"))).code == "not-authenticated"

    run(check)


def test_a_refused_item_leaves_the_others_of_its_batch_alone(run: Run) -> None:
    """Items of strangers share a transaction."""

    async def check(w: NamesWorld) -> None:
        puts = [Put("bbb", f"k{i}", 100 + (i % 3 == 0), "e", [w.chunk()]) for i in range(12)]
        results = await w.commit(*puts)
        assert [r.code for r in results] == ["size-mismatch" if i % 3 == 0 else "" for i in range(12)]
        assert [e.key for e in (await w.page()).objects] == sorted(f"k{i}" for i in range(12) if i % 3)

    run(check)


def test_odd_names_come_back_exactly_or_are_refused(run: Run) -> None:
    """S4: traversal, NUL, long and non-ASCII keys."""

    async def check(w: NamesWorld) -> None:
        keys = ["a/../b", "..", "//", "\u00e9", "\U0001f600", "a" * 1024, " ", "\r\n", "\ud7ff\ue000", "%00", "'\";--"]
        for key in keys:
            assert (await w.put(key)).code == "", key
        listed = [e.key for e in (await w.page()).objects]
        assert listed == sorted(keys, key=str.encode)
        for key in ("", "a" * 1025, "a\x00b"):
            assert (await w.put(key)).code == "bad-key"
            assert (await w.look(key)).code in ("no-such-key", "bad-key")

    run(check)


def test_the_feed_has_every_change_once_in_order_without_gaps(run: Run) -> None:
    """Rule 6: replication and the journal read it by sequence."""

    async def check(w: NamesWorld) -> None:
        await asyncio.gather(*(w.put(f"k{i % 50:02}") for i in range(200)))
        await w.delete("k00")
        changes = await w.database.read(lambda c: feed.read(c, 0, 10_000))
        assert [c.sequence for c in changes] == list(range(1, len(changes) + 1))
        puts = [c for c in changes if c.kind == schema.CHANGE_PUT]
        assert len(puts) == 200 and len({(c.key, c.version) for c in puts}) == 200
        for key in {c.key for c in puts}:
            versions = [c.version for c in puts if c.key == key]
            assert versions == sorted(versions)
        assert changes[-1].kind == schema.CHANGE_DELETE
        sequence, floor = await w.database.read(feed.head)
        assert sequence == changes[-1].sequence and floor == max(c.version for c in puts)

    run(check)


def test_replication_work_is_queued_with_the_write(run: Run) -> None:
    """Promise 6: nothing is dropped between the write and the queue."""

    async def check(w: NamesWorld) -> None:
        await w.buckets.set_replication("bbb", [{"prefix": "logs/", "target": "site2"}], ADMIN)
        await w.put("logs/a", size=5)
        await w.put("other")
        await w.delete("logs/a")
        queue = await w.rows(schema.replication_queue)
        assert [(r.target, r.key, r.kind) for r in queue] == [
            ("site2", "logs/a", schema.CHANGE_PUT), ("site2", "logs/a", schema.CHANGE_MARKER),
        ]  # fmt: skip
        # the tombstone is an object for nobody, and the bucket goes with it
        assert (await w.look("logs/a")).code == "no-such-key"
        assert (await w.delete("logs/a")).existed is False
        await w.delete("other")
        await w.buckets.delete("bbb", ADMIN)
        assert not await w.rows(schema.objects)
        await w.buckets.create("bbb", ADMIN)
        with pytest.raises(RequestError, match="no site"):
            await w.buckets.set_replication("bbb", [{"target": "nowhere"}], ADMIN)

    run(check)


def test_a_bucket_goes_only_when_nothing_is_in_it(run: Run) -> None:
    """Old versions count too."""

    async def check(w: NamesWorld) -> None:
        with pytest.raises(ConflictError, match="exists"):
            await w.buckets.create("bbb", ADMIN)
        await w.put("k")
        with pytest.raises(ConflictError, match="not empty"):
            await w.buckets.delete("bbb", ADMIN)
        await w.delete("k")
        await w.buckets.delete("bbb", ADMIN)
        assert (await w.look("k")).code == "no-such-bucket"
        assert (await w.put("k")).code == "no-such-bucket"
        await w.buckets.create("bbb", ADMIN)
        assert (await w.look("k")).code == "no-such-key"

    run(check)


def test_the_reverse_table_follows_the_feed(run: Run) -> None:
    """Repair of a lost device starts from it (rule 2)."""

    async def check(w: NamesWorld) -> None:
        upload = w.upload()
        inline = w.chunk()
        many = [w.chunk(10, upload=upload, index=i) for i in range(20)]
        await w.put("a", chunks=[inline])
        await w.put("big", chunks=many)
        mark = await w.indexer.catch_up()
        assert mark == (await w.database.read(feed.head))[0]
        expected = {(d, inline.id, "a") for d in (10, 20)} | {(d, c.id, None) for d in (10, 20) for c in many}
        assert await w.placed() == expected
        await w.copy("a", "b")
        await w.delete("big")
        await w.indexer.catch_up()
        assert await w.placed() == {(d, inline.id, None) for d in (10, 20)}

    run(check)


def test_a_reopened_catalog_gives_larger_versions_even_when_the_clock_went_back(url_of: object) -> None:
    """Rule 7: order and is_latest follow the id only."""

    async def main() -> None:
        url = await url_of()  # type: ignore[operator]
        if url == "sqlite://":
            return
        w = await NamesWorld.open(url)
        await w.buckets.create("bbb", ADMIN)
        first = await w.put("k")
        await w.close()
        back = ManualClock(now_ms=w.clock.now_ms() - 3_600_000)
        again = await NamesWorld.open(url, clock=back)
        assert (await again.look("k")).version == first.version
        assert (await again.put("other")).version > first.version
        await again.close()

    asyncio.run(main())
