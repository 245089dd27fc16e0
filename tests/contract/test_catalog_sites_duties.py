"""What runs beside the queue of other sites, on every engine: tombstones, a restored catalog, late heat."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from metadata.catalog import backlog, leases, schema, sites
from metadata.catalog.book import Located
from metadata.catalog.packed import PackedChunk, unpack
from metadata.services.cluster.duties import PROMOTER
from metadata.services.names.buckets import BucketService
from metadata.services.sites import backfill
from metadata.services.sites.backfill import Backfills
from metadata.services.sites.compare import Comparison
from metadata.services.sites.courier import Courier
from metadata.services.sites.holds import MARGIN_MS, Holdings
from metadata.services.sites.hot import LOOK_SECONDS, Body, HotBodies, HotParts
from metadata.services.sites.registry import Self, Sites
from metadata.services.sites.run import Replication
from metadata.services.sites.send import TargetWorker
from metadata.services.sites.tombstones import WALK_SECONDS, Tombstones
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.names_world import ADMIN, NamesWorld
from tests.kit.waits import until_told
from tierstore.errors import ConflictError, UnavailableError
from tierstore.names import VersionId
from tierstore.wire import decode, encode
from tierstore.wire.sites import (
    NAME_MARKER,
    NAME_PUT,
    BodyName,
    Compare,
    CompareAnswer,
    Hello,
    HelloAnswer,
    NameAnswer,
    NameBatch,
    NameRecord,
)

__all__ = ["postgres", "run", "url_of"]

HOUR_MS = 3_600_000
EVERYTHING = [{"target": "site2"}]


async def _shared(w: NamesWorld, *, epoch: int = 1) -> None:
    await w.buckets.set_replication("bbb", EVERYTHING, ADMIN)

    def lead(c: sa.Connection) -> None:
        leases.upsert(
            c, schema.leases, ["name"],
            {"name": PROMOTER, "holder": "here", "url": "", "epoch": epoch, "until_ms": w.clock.now_ms() * 2},
        )

    await w.database.write(lead)


async def _nothing_seen(site: str, wanted: Sequence[BodyName]) -> set[BodyName]:
    return set()


async def _walk(work: Tombstones) -> int:
    """One whole walk; how many tombstones went."""
    gone, more = 0, True
    while more:
        dropped, more = await work.step(1)
        gone += dropped
    return gone


async def _markers(w: NamesWorld) -> list[str]:
    return [row.key for row in await w.rows(schema.objects) if row.kind == schema.KIND_MARKER]


def test_a_tombstone_goes_once_every_site_has_everything_and_not_before(run: Run) -> None:
    """Forgotten too early, a late name of another site would bring a deleted object back; never, the bucket grows."""

    async def check(w: NamesWorld) -> None:
        await _shared(w)
        confirmed = {"site2": 0}
        work = Tombstones(w.database, w.clock, keep_ms=HOUR_MS, confirmed=lambda: confirmed, seen=_nothing_seen)
        for key in ("a", "b", "c"):
            await w.put(key)
            await w.delete(key)
        await w.put("kept")
        assert len(await _markers(w)) == 3
        w.clock.advance(2 * 3600)
        assert await _walk(work) == 0           # site2 is not known to have everything
        confirmed["site2"] = w.clock.now_ms()
        w.clock.advance(WALK_SECONDS + 1)
        assert await _walk(work) == 0           # nor to have sent everything of its own
        await w.database.write(lambda c: sites.set_heard(c, "site2", sites.Heard(1, 5, w.clock.now_ms())))
        w.clock.advance(WALK_SECONDS + MARGIN_MS / 1000)
        assert await _walk(work) == 3 and await _markers(w) == []
        assert [entry.key for entry in (await w.page()).objects] == ["kept"]
        # what is deleted now is young: it stays
        await w.delete("kept")
        w.clock.advance(WALK_SECONDS / 2)
        confirmed["site2"] = w.clock.now_ms()
        assert await _walk(work) == 0 and await _markers(w) == ["kept"]

    run(check)


def test_a_tombstone_stays_where_its_source_never_hears_of_deletes(run: Run) -> None:
    """A one-way rule from site2 to here: site2 would send the object again, and only the tombstone stops it."""

    async def check(w: NamesWorld) -> None:
        await _shared(w)
        await w.buckets.set_replication("bbb", [], ADMIN)
        version = VersionId(w.clock.now_ms() * (1 << 21) + 2)
        record = NameRecord("bbb", "k", NAME_PUT, version, 0, "e", 1)
        await w.taker.take(NameBatch("site2", [record], {"bbb": ""}), "site2")
        await w.delete("k")
        await w.database.write(lambda c: sites.set_heard(c, "site2", sites.Heard(1, 5, w.clock.now_ms() * 2)))
        w.clock.advance(100 * 3600)
        work = Tombstones(
            w.database, w.clock, keep_ms=HOUR_MS, confirmed=lambda: {"site2": w.clock.now_ms()}, seen=_nothing_seen
        )
        assert await _walk(work) == 0 and await _markers(w) == ["k"]

    run(check)


def test_in_a_ring_a_tombstone_goes_once_the_site_before_has_heard_of_it(run: Run) -> None:
    """site2 writes to here and hears of it by site3 only: kept for ever the ring would grow with each delete."""

    async def check(w: NamesWorld) -> None:
        w.buckets = BucketService(w.database, w.names, w.clock, sites=lambda: ["site2", "site3"])
        await _shared(w)
        await w.buckets.set_replication("bbb", [{"target": "site3"}], ADMIN)
        record = NameRecord("bbb", "theirs", NAME_PUT, VersionId(w.clock.now_ms() * (1 << 21) + 2), 0, "e", 1)
        await w.taker.take(NameBatch("site2", [record], {"bbb": ""}), "site2")
        for key in ("a", "b"):
            await w.put(key)
            await w.delete(key)
        w.clock.advance(2 * 3600)
        for site in ("site2", "site3"):
            await w.database.write(
                lambda c, s=site: sites.set_heard(c, s, sites.Heard(1, 5, w.clock.now_ms()))  # type: ignore[misc]
            )
        w.clock.advance(WALK_SECONDS + MARGIN_MS / 1000)
        asked: list[str] = []

        async def seen(site: str, wanted: Sequence[BodyName]) -> set[BodyName]:
            asked.append(site)
            return {name for name in wanted if name.key == "a"}

        work = Tombstones(
            w.database, w.clock, keep_ms=HOUR_MS, seen=seen,
            confirmed=lambda: {"site2": w.clock.now_ms(), "site3": w.clock.now_ms()},
        )  # fmt: skip
        assert await _walk(work) == 1 and await _markers(w) == ["b"] and asked == ["site2"]

    run(check)


def test_a_site_has_heard_of_a_delete_when_nothing_older_can_come_from_it(run: Run) -> None:
    """One that says so too early sends the object again after the tombstone is forgotten."""

    async def check(w: NamesWorld) -> None:
        await _shared(w)
        made = (await w.put("here")).version
        sound = True
        holdings = Holdings(w.database, is_sound=lambda: sound)

        async def ask(*names: tuple[str, str, int]) -> list[bool]:
            return (await holdings.seen([BodyName(*name) for name in names])).held

        later = made + (1 << 21)
        assert await ask(
            ("bbb", "here", made), ("bbb", "here", later), ("bbb", "none", later), ("no-such", "k", later)
        ) == [True, False, True, True]
        # site2 writes to the bucket: what is not here may still be on its way from there
        record = NameRecord("bbb", "theirs", NAME_PUT, VersionId(w.clock.now_ms() * (1 << 21) + 2), 0, "e", 1)
        await w.taker.take(NameBatch("site2", [record], {"bbb": ""}), "site2")
        assert await ask(("bbb", "none", later)) == [False]
        await w.database.write(lambda c: sites.set_heard(c, "site2", sites.Heard(1, 5, w.clock.now_ms())))
        assert await ask(("bbb", "none", later)) == [False]     # messages under way, clocks apart
        w.clock.advance(MARGIN_MS / 1000 + 2)
        await w.database.write(lambda c: sites.set_heard(c, "site2", sites.Heard(1, 5, w.clock.now_ms())))
        assert await ask(("bbb", "none", later), ("bbb", "here", later)) == [True, False]
        sound = False
        assert await ask(("bbb", "none", later)) == [False]

    run(check)


class _Peer:
    """The other site as the courier reaches it."""

    def __init__(self, backfills: Backfills) -> None:
        self._backfills = backfills

    async def send(self, row: Any, path: str, message: Any, kind: type[Any], *, seconds: float) -> Any:
        assert path == "/v1/sites/compare"
        asked = decode(encode(message), Compare)
        return decode(encode(CompareAnswer(await self._backfills.answer_compare(asked.site, asked.epoch))), kind)


def test_a_restored_catalog_hears_of_every_delete_before_it_takes_writes(run: Run) -> None:
    """An old backup still has what was deleted since: it must not come back, here or elsewhere."""

    async def check(w: NamesWorld) -> None:
        await _shared(w)
        backfills = Backfills(w.database, w.clock)
        here = Comparison(w.database, w.clock, _Peer(backfills), keep_ms=HOUR_MS)  # type: ignore[arg-type]
        await w.put("stays")
        await w.put("gone")
        await w.delete("gone")
        seen = await here.standing()
        # what another site saw is what is here: nothing happens
        await here.judge(HelloAnswer("site2", 0, "", seen.epoch, seen.sequence), ["site2"])
        assert here.waiting == [] and here.refusal() == ""
        # it saw more than is here: this catalog went back
        await here.judge(HelloAnswer("site2", 0, "", seen.epoch, seen.sequence + 5), ["site2"])
        assert here.waiting == ["site2"] and "site2" in here.refusal()
        assert (await here.standing()).epoch == seen.epoch + 1
        row = sites.SiteRow(2, "site2", [], [], {})
        # (this world plays both sites: site2 sends all names that it shares with "site2")
        left = await here.go_on(row, "site2", ["site2"])
        assert left > 0 and here.waiting == ["site2"]
        assert await backfills.step("site2") is False
        assert await here.go_on(row, "site2", ["site2"]) > 0
        queued = await w.database.read(lambda c: sites.waiting_names(c, "site2", 100))
        # the delete is among them, as a marker with its own id
        assert {(q.key, q.kind) for q in queued} >= {("gone", schema.CHANGE_MARKER), ("stays", schema.CHANGE_PUT)}

        def sent(c: sa.Connection) -> None:
            sites.set_names_through(c, "site2", queued[-1].sequence)
            backlog.finish(c, "site2", [q.sequence for q in queued])

        await w.database.write(sent)
        assert await here.go_on(row, "site2", ["site2"]) == 0
        assert here.waiting == [] and here.refusal() == ""

    run(check)


def test_a_restored_catalog_hears_which_versions_were_removed_for_good(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They leave no tombstone: an old backup would keep them, and its readers see what somebody wanted gone."""
    monkeypatch.setattr(backfill, "GONE_PAGE", 2)

    async def check(w: NamesWorld) -> None:
        await _shared(w)
        await w.buckets.configure("bbb", ADMIN, versioning="enabled")
        await w.buckets.create("elsewhere", ADMIN)
        await w.buckets.configure("elsewhere", ADMIN, versioning="enabled")
        first = (await w.put("k")).version
        await w.put("k")
        for bucket in ("bbb", "elsewhere"):
            last = (await w.put("k", bucket=bucket)).version
            await w.delete("k", version=last, bucket=bucket)
        await w.delete("k", version=first)
        before = max(row.sequence for row in await w.rows(schema.replication_queue))
        work = Backfills(w.database, w.clock)
        assert await work.answer_compare("site2", 2) > 0
        while await work.step("site2"):
            pass
        again = await w.database.read(lambda c: sites.waiting_names(c, "site2", 99, after=before))
        gone = {row.version for row in again if row.kind == schema.CHANGE_DELETE}
        assert len(gone) == 2 and first in gone
        assert (await work.progress("site2")).parts == 0

    run(check)


def test_a_backup_older_than_tombstones_are_kept_stays_closed(run: Run) -> None:
    """Its deletes may be forgotten everywhere: only a rebuild from another site is safe, or an operator's word."""

    async def check(w: NamesWorld) -> None:
        await _shared(w)
        here = Comparison(w.database, w.clock, Courier(None), keep_ms=HOUR_MS)  # type: ignore[arg-type]
        await w.put("old")
        w.clock.advance(2 * 3600)
        await here.begin(["site2"])
        assert await here.go_on(sites.SiteRow(2, "site2", [], [], {}), "site1", ["site2"]) > 0
        assert "rebuild" in here.refusal()
        assert await here.accept() == ["site2"] and here.refusal() == ""

    run(check)


def test_what_a_site_says_of_itself_is_kept_at_its_newest(run: Run) -> None:
    """An old catalog must not make the others forget how new it once was."""

    async def check(w: NamesWorld) -> None:
        here = Comparison(w.database, w.clock, Courier(None), keep_ms=HOUR_MS)  # type: ignore[arg-type]
        assert (await here.hear("site2", 1, 100, -1))[:2] == (0, 0)
        assert (await here.hear("site2", 1, 40, 5))[:2] == (1, 100)
        assert (await here.hear("site2", 2, 41, 1000, mark=7))[:2] == (1, 100)
        assert await w.database.read(lambda c: sites.heard(c, "site2")) == (2, 41, w.clock.now_ms() - 1000, 7)

    run(check)


def test_a_body_that_becomes_hot_later_is_queued_once(run: Run) -> None:
    """Under a `hot` rule its name went alone; without this its readers elsewhere would fetch it for ever."""

    async def check(w: NamesWorld) -> None:
        await _shared(w)
        await w.put("cold")
        made = await w.put("warm")
        heat: dict[bytes, float] = {}

        async def find(chunks: Any) -> dict[bytes, Located]:
            rows = {row.key: row for row in await w.rows(schema.objects)}
            owners = {c.id: (row, c) for row in rows.values() for c in unpack(row.body)}
            return {c: Located((owners[c][0].bucket_id, owners[c][0].key, 0), owners[c][1], "bbb", 100) for c in chunks}

        hot = HotBodies(
            w.database, w.clock, hottest=lambda n: sorted(heat.items(), key=lambda i: -i[1])[:n], find=find,
            name_of=lambda located: (located.bucket, located.owner[1] if located.owner else "", located.size),
        )  # fmt: skip
        rules = {"bbb": [("", "site2")]}
        assert await hot.step(rules) == 0
        warm: PackedChunk = unpack(next(row.body for row in await w.rows(schema.objects) if row.key == "warm"))[0]
        heat[warm.id] = 5.0
        before = len(await w.rows(schema.replication_queue))
        w.clock.advance(LOOK_SECONDS)
        assert await hot.step(rules) == 1
        queue = await w.rows(schema.replication_queue)
        assert len(queue) == before + 1 and queue[-1].key == "warm" and queue[-1].version == made.version
        assert hot.parts.knows(Body("site2", queue[-1].bucket_id, "warm", made.version))
        w.clock.advance(LOOK_SECONDS)
        assert await hot.step(rules) == 0

    run(check)


def test_a_bucket_learns_its_home_site_with_its_names(run: Run) -> None:
    """Both sites must agree on who judges conditional writes."""

    async def check(w: NamesWorld) -> None:
        await w.buckets.set_replication("bbb", EVERYTHING, ADMIN, home="site2")
        assert await w.buckets.home("bbb", ADMIN) == "site2"
        version = VersionId(w.clock.now_ms() * (1 << 21) + 2)
        record = NameRecord("new", "k", NAME_MARKER, version)
        await w.taker.take(NameBatch("site2", [record], {"new": ""}, {"new": "site2"}), "site2")
        assert await w.buckets.home("new", ADMIN) == "site2"

    run(check)


@pytest.mark.parametrize("seed", range(3))
def test_a_paused_backfill_stands_still_and_counts(run: Run, seed: int) -> None:
    """An operator must see how far it is, and may stop it for the night. Meanwhile the site does not have everything:
    tombstones that it needs would go."""

    async def check(w: NamesWorld) -> None:
        rng = random.Random(seed)
        count = rng.randrange(3, 9)
        for i in range(count):
            await w.put(f"k{i}")
        backfills = Backfills(w.database, w.clock)
        await backfills.begin("site2", "bbb")
        await backfills.pause("site2", paused=True)
        assert await backfills.step("site2") is False
        progress = await backfills.progress("site2")
        assert (progress.parts, progress.walked, progress.is_paused) == (1, 0, True)
        parts: Any = SimpleNamespace(
            database=w.database, clock=w.clock, heats_of=lambda chunks: [0.0] * len(chunks), lost_devices=tuple,
            foreground=lambda: 0, epoch=lambda: 1,
        )
        worker = TargetWorker(parts, "site2")
        await worker.measure()
        assert not worker.status.backlog.objects and not worker.status.lacks_nothing
        await backfills.pause("site2", paused=False)
        await backfills.step("site2")
        progress = await backfills.progress("site2")
        assert (progress.parts, progress.walked, progress.queued) == (0, count, count)
        await worker.measure()
        assert worker.status.backlog.objects == count and not worker.status.lacks_nothing
        queue = await w.rows(schema.replication_queue)
        await w.database.write(lambda c: backlog.finish(c, "site2", [row.sequence for row in queue]))
        await worker.measure()
        assert worker.status.lacks_nothing

    run(check)


def test_what_exists_is_for_a_new_rule_from_the_moment_it_holds(run: Run) -> None:
    """Killed between the rule and its backfill, a site would never get what was there before, and nobody would see."""

    async def check(w: NamesWorld) -> None:
        await w.put("before")
        backfills = Backfills(w.database, w.clock)
        rules: list[dict[str, Any]] = [{"target": "site2"}, {"target": "site2", "prefix": "logs/"}]

        def killed(c: Any, bucket: Any, new: Any) -> None:
            backfills.rules_changed(c, bucket, new)
            raise ConflictError("killed", code="lease-lost")

        w.buckets.in_rules = killed
        with pytest.raises(ConflictError, match="killed"):
            await w.buckets.set_replication("bbb", rules, ADMIN)
        assert not await w.buckets.replication("bbb", ADMIN)
        assert (await backfills.progress("site2")).parts == 0
        w.buckets.in_rules = backfills.rules_changed
        for _ in range(2):      # set again, nothing of it is new
            assert len(await w.buckets.set_replication("bbb", rules, ADMIN)) == 2
            assert (await backfills.progress("site2")).parts == 2
        while await backfills.step("site2"):
            pass
        assert [row.key for row in await w.database.read(lambda c: sites.waiting_names(c, "site2", 9))] == ["before"]

    run(check)


def test_a_walk_that_begins_beside_a_step_of_another_is_not_lost(run: Run) -> None:
    """With PostgreSQL one process sets rules while another one walks: the state is one row, written by both."""

    async def check(w: NamesWorld) -> None:
        names = [f"bucket{i}" for i in range(6)]
        for name in names:
            await w.buckets.create(name, ADMIN)
            await w.put("k", bucket=name)
        backfills = Backfills(w.database, w.clock)

        async def step() -> None:
            for _ in names:
                await backfills.step("site2")

        await asyncio.gather(*(backfills.begin("site2", name) for name in names), step(), step())
        while await backfills.step("site2"):
            pass
        queue = await w.database.read(lambda c: sites.waiting_names(c, "site2", 99))
        assert len(queue) == len({row.bucket_id for row in queue}) == len(names)

    run(check)


def test_every_process_knows_which_site_is_away_once_the_one_that_asks_does(run: Run) -> None:
    """Else each write under `degrade` waits its ten seconds at all the others, for as long as the site is away."""

    async def check(w: NamesWorld) -> None:
        await _shared(w)
        nobody: Any = None

        def process(epoch: int) -> tuple[Replication, Sites]:
            members = Sites(
                w.database, w.names, w.clock, nobody, nobody, me=lambda: Self("site1", 1, []), random_hex=str
            )
            parts: Any = SimpleNamespace(
                database=w.database, clock=w.clock, courier=SimpleNamespace(send=send), known=members.known,
                me=members.me, heats_of=lambda chunks: [0.0] * len(chunks), lost_devices=tuple, epoch=lambda: epoch,
                comparison=Comparison(w.database, w.clock, nobody, keep_ms=1), is_delivered=lambda *_: False,
                hot=HotParts(), foreground=lambda: 0,
            )  # fmt: skip
            hot = HotBodies(w.database, w.clock, hottest=nobody, find=nobody, name_of=nobody)
            return Replication(
                parts, members, nobody, nobody, backfills=Backfills(w.database, w.clock), hot=hot,
                sync_seconds=300.0,
            ), members

        is_known, is_there = asyncio.Event(), asyncio.Event()

        async def send(row: Any, path: str, message: Any, kind: Any, *, seconds: float) -> Any:
            await is_known.wait()
            if not is_there.is_set():
                raise UnavailableError("no answer", code="unreachable")
            return HelloAnswer("site2", 0, "", 1, 0) if isinstance(message, Hello) else NameAnswer(0, 0, [])

        await w.database.write(lambda c: sites.put(c, sites.SiteRow(2, "site2", ["http://b"], [], {})))
        (holder, _), (other, read) = process(1), process(0)
        try:
            await holder.step()
            assert not holder.is_away("site2")      # not known yet: it has not answered, nor failed to
            is_known.set()

            async def both(*, away: bool) -> bool:
                w.clock.advance(1.0)
                await holder.step()
                await read.refresh()
                return holder.is_away("site2") == other.is_away("site2") == away

            await until_told(lambda: both(away=True))
            is_there.set()
            await until_told(lambda: both(away=False))
        finally:
            await holder.close()

    run(check)
