"""Bodies fetched from another site for a reader: kept while there is room, the coldest let go of, on every engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from metadata.catalog import leases, schema, sites
from metadata.services.access.credentials import Credentials
from metadata.services.cluster.duties import PROMOTER
from metadata.services.sites.backfill import Backfills
from metadata.services.sites.fetched import FetchedBodies
from metadata.services.sites.holds import Holdings, Vouchers
from metadata.services.sites.registry import Known, Self, Sites
from metadata.services.sites.target import TargetStatus
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.contract.test_catalog_sites import fill, take, version
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.errors import RequestError, UnavailableError
from tierstore.wire.names import CommitResult, Fill
from tierstore.wire.sites import HOLDS_MAX, NAME_PUT, BodyName, Holds, NameRecord

__all__ = ["postgres", "run", "url_of"]


async def read_there(w: NamesWorld, key: str, of: int, start: int, size: int) -> bytes:
    """What a gateway commits after it fetched bytes for a reader; the chunk."""
    chunk = w.chunk(size)
    result = (await w.commit(Fill("bbb", key, of, start, [chunk], is_cached=True)))[0]
    assert not result.code, result
    return bytes(chunk.id)


async def own(w: NamesWorld, key: str, of: int) -> CommitResult:
    """What it commits when replication asks for bytes that are here."""
    return (await w.commit(Fill("bbb", key, of, 0, [])))[0]


async def named(w: NamesWorld, *keys: str, size: int = 100) -> int:
    v = version(w)
    await take(w, *(NameRecord("bbb", key, NAME_PUT, v, size, "e", 5) for key in keys))
    return v


async def all_of_them(names: Sequence[BodyName]) -> set[BodyName]:
    return set(names)


async def duty(
    w: NamesWorld, *, capacity: int, heats: dict[bytes, float],
    vouched: Callable[[Sequence[BodyName]], Awaitable[set[BodyName]]] = all_of_them,
) -> FetchedBodies:  # fmt: skip
    def lead(c: sa.Connection) -> None:
        row = {"name": PROMOTER, "holder": "here", "url": "", "epoch": 1, "until_ms": 1 << 60}
        leases.upsert(c, schema.leases, ["name"], row)

    await w.database.write(lead)
    return FetchedBodies(
        w.database, w.clock, heat_of=lambda chunk: heats.get(chunk, 0.0), capacity=lambda: capacity, copies=lambda: 2,
        share=0.5, vouched=vouched,
    )  # fmt: skip


def test_the_coldest_bodies_go_once_they_take_more_than_their_share_and_their_names_stay(run: Run) -> None:
    """A site under an on-demand rule must not fill up with what its readers once read."""

    async def check(w: NamesWorld) -> None:
        keys = [f"k{i:02}" for i in range(20)]
        v = await named(w, *keys)
        chunks = {key: await read_there(w, key, v, 0, 100) for key in keys}
        found = await w.look("k00")
        assert found.is_remote and sum(chunk.length for chunk in found.chunks) == 100
        hot = {chunks[key]: 9.0 for key in keys[:4]}
        work = await duty(w, capacity=8_000, heats=hot)     # of which half, for two copies of 2,000 bytes
        assert await work.step(1) == (0, False) and work.kept_bytes == 2_000
        work = await duty(w, capacity=6_000, heats=hot)
        while (await work.step(1))[1]:
            pass
        assert work.kept_bytes <= 1_500 * 0.9
        left = {key for key in keys if (await w.look(key)).chunks}
        assert left >= set(keys[:4]) and len(left) * 100 == work.kept_bytes
        away = next(key for key in keys if key not in left)
        gone = await w.look(away)
        assert gone.is_remote and gone.version == v and not gone.chunks
        assert {chunks[key] for key in keys if key not in left} == set(await w.garbage())
        assert not (await fill(w, away, v, 0, [100])).code     # it may come again
        assert not (await w.look(away)).is_remote

    run(check)


def test_what_replication_brings_or_owns_is_never_let_go_of(run: Run) -> None:
    """Under a rule with all bodies a reader may have been first; half of a large body must not travel twice."""

    async def check(w: NamesWorld) -> None:
        v = await named(w, "read-first", "half", "both", size=200)
        await read_there(w, "read-first", v, 0, 200)
        assert not (await own(w, "read-first", v)).code
        assert not (await w.look("read-first")).is_remote
        assert (await own(w, "read-first", v)).code == "already-here"
        await fill(w, "half", v, 0, [100])                      # replication's, then a reader comes
        await read_there(w, "half", v, 100, 100)
        await read_there(w, "both", v, 0, 100)                  # a reader's, then replication goes on
        await fill(w, "both", v, 100, [100])
        work = await duty(w, capacity=0, heats={})
        assert await work.step(1) == (0, False)
        assert not await w.rows(schema.fetched_bodies)
        assert len((await w.look("half")).chunks) == 2
        assert not (await w.look("both")).is_remote
        assert not (await own(w, "half", v)).code
        assert not (await w.look("half")).is_remote and not await w.garbage()

    run(check)


def test_a_fetched_body_that_was_replaced_is_only_forgotten(run: Run) -> None:
    async def check(w: NamesWorld) -> None:
        v = await named(w, "k")
        chunk = await read_there(w, "k", v, 0, 100)
        w.clock.advance(1.0)
        newer = await named(w, "k")
        assert newer > v and await w.garbage() == [chunk]
        work = await duty(w, capacity=0, heats={})
        assert (await work.step(1))[0] == 0
        assert not await w.rows(schema.fetched_bodies) and await w.garbage() == [chunk]

    run(check)


def test_what_no_other_site_vouches_for_is_never_let_go_of(run: Run) -> None:
    """The site that wrote it may have lost it: this may be the only copy."""

    async def check(w: NamesWorld) -> None:
        keys = [f"k{i}" for i in range(10)]
        v = await named(w, *keys)
        for key in keys:
            await read_there(w, key, v, 0, 100)
        lost = {"k0", "k3", "k7"}

        async def vouched(names: Sequence[BodyName]) -> set[BodyName]:
            return {name for name in names if name.key not in lost}

        async def nobody(names: Sequence[BodyName]) -> set[BodyName]:
            return set()

        cut_off = await duty(w, capacity=0, heats={}, vouched=nobody)
        assert await cut_off.step(1) == (0, False) and cut_off.kept_back == 10
        assert all([(await w.look(key)).chunks for key in keys])
        work = await duty(w, capacity=0, heats={}, vouched=vouched)
        for _ in keys:      # those that stay go to the back, so that the others have their turn
            w.clock.advance(1.0)
            await work.step(1)
        assert {key for key in keys if (await w.look(key)).chunks} == lost

    run(check)


def test_a_body_that_is_to_be_kept_meanwhile_stays_though_a_site_vouched_for_it(run: Run) -> None:
    """The site was replaced while it was asked: its word is of its former life."""

    async def check(w: NamesWorld) -> None:
        v = await named(w, "k")
        await read_there(w, "k", v, 0, 100)

        async def replaced_now(names: Sequence[BodyName]) -> set[BodyName]:
            await Backfills(w.database, w.clock).answer_compare("site2", 9)
            return set(names)

        await w.database.write(lambda c: sites.put(c, sites.SiteRow(2, "site2", [], [], {})))
        work = await duty(w, capacity=0, heats={}, vouched=replaced_now)
        assert (await work.step(1))[0] == 0 and not await w.rows(schema.fetched_bodies)
        assert (await w.look("k")).chunks and not await w.garbage()

    run(check)


@pytest.mark.parametrize("how", ["removed", "replaced", "compared"])
def test_copies_of_a_site_that_is_lost_are_kept_for_good_and_go_back_to_it(run: Run, how: str) -> None:
    """After a site was removed, rebuilt or restored, nobody may count on what it had."""

    async def check(w: NamesWorld) -> None:
        v = await named(w, "whole", "half", "name-only")
        await read_there(w, "whole", v, 0, 100)
        await read_there(w, "half", v, 0, 50)
        members = await _members(w)
        if how == "removed":
            await members.remove("site2", drop_queue=True, who=ADMIN)
        elif how == "replaced":
            await members.join("site2", 2, ["http://there"], "tst.x", who=ADMIN, is_replacement=True)
        backfills = Backfills(w.database, w.clock)
        if how != "removed":
            await backfills.answer_compare("site2", 7)
            while await backfills.step("site2"):
                pass
            queued = await w.database.read(lambda c: sites.waiting_names(c, "site2", 100))
            assert [row.key for row in queued] == ["whole"]
        assert not await w.rows(schema.fetched_bodies)
        work = await duty(w, capacity=0, heats={})
        assert await work.step(1) == (0, False)
        await read_there(w, "half", v, 50, 50)      # what a reader adds to it stays too
        assert not await w.rows(schema.fetched_bodies) and await work.step(1) == (0, False)
        assert len((await w.look("half")).chunks) == 2 and not await w.garbage()

    run(check)


def test_a_site_that_is_removed_is_no_buckets_home_any_more(run: Run) -> None:
    """Else every conditional write is refused, with the advice to send it to a site that is gone."""

    async def check(w: NamesWorld) -> None:
        members = await _members(w)
        await w.buckets.create("other", ADMIN)
        await w.buckets.set_replication("bbb", [{"target": "site2"}], ADMIN, home="site2")
        await w.buckets.set_replication("other", [], ADMIN, home="site1")
        await members.refresh()
        assert members.homes == {"bbb": "site2"}
        assert await members.remove("site2", drop_queue=True, who=ADMIN) == (0, ["bbb"], ["bbb"])
        assert not members.homes and not await w.buckets.home("bbb", ADMIN)
        assert await w.buckets.home("other", ADMIN) == "site1"

    run(check)


async def _members(w: NamesWorld) -> Sites:
    """This site as it knows site2, which writes to "bbb"."""
    made = iter(range(100))
    keys = Credentials(
        w.database, w.clock, daemon=lambda secret: None, random_bytes=lambda n: bytes([next(made)]) * n
    )
    courier: Any = None
    members = Sites(
        w.database, w.names, w.clock, keys, courier, me=lambda: Self("site1", 1, ["http://here"]),
        random_hex=lambda: f"{next(made):04x}",
    )  # fmt: skip
    await w.database.write(lambda c: sites.put(c, sites.SiteRow(2, "site2", ["http://there"], [], {})))
    await members.refresh()
    return members


class _Others:
    """Other sites as the courier reaches them: each answers by its Holdings, or not at all."""

    def __init__(self, **holdings: Holdings | None) -> None:
        self._holdings = holdings
        self.asked: list[str] = []

    async def send(self, row: Any, path: str, message: Any, kind: type[Any], *, seconds: float) -> Any:
        assert path == "/v1/sites/holds" and isinstance(message, Holds)
        self.asked.append(row.name)
        holdings = self._holdings[row.name]
        if holdings is None:
            raise UnavailableError("away", code="unreachable")
        return await holdings.answer(message.bodies)


def test_a_site_vouches_for_what_is_its_own_now(run: Run) -> None:
    """Two sites that vouched for what readers fetched would both let go of it."""

    async def check(w: NamesWorld) -> None:
        v = await named(w, "fetched", "name-only", "mine")
        await read_there(w, "fetched", v, 0, 100)
        await fill(w, "mine", v, 0, [100])
        made = await w.put("written-here")
        asked = [
            BodyName("bbb", "fetched", v), BodyName("bbb", "name-only", v), BodyName("bbb", "mine", v),
            BodyName("bbb", "written-here", made.version), BodyName("bbb", "written-here", v),
            BodyName("no-such", "k", v), BodyName("bbb", "no-such", v),
        ]  # fmt: skip
        sound = True
        holdings = Holdings(w.database, is_sound=lambda: sound)
        assert (await holdings.answer(asked)).held == [False, False, True, True, False, False, False]
        sound = False       # its catalog may be an old one, or its servers are gone
        assert not any((await holdings.answer(asked)).held)
        with pytest.raises(RequestError, match="at most"):
            await holdings.answer([asked[0]] * (HOLDS_MAX + 1))

    run(check)


def test_only_sites_that_have_answered_for_long_are_asked_and_the_rest_by_turns(run: Run) -> None:
    """A site that has just come back may be about to find out that it was restored."""

    async def check(w: NamesWorld) -> None:
        made = await w.put("mine")
        v = await named(w, "elsewhere")
        wanted = [BodyName("bbb", "mine", made.version), BodyName("bbb", "elsewhere", v)]
        holdings = Holdings(w.database, is_sound=lambda: True)
        others = _Others(site2=None, site3=holdings, site4=holdings)
        rows = [sites.SiteRow(n, f"site{n}", [], [], {}) for n in (2, 3, 4)]
        statuses = [TargetStatus(f"site{n}", is_reachable=True, reachable_since=0.0) for n in (2, 3, 4)]
        courier: Any = others
        vouchers = Vouchers(w.clock, courier, Known(rows=rows), statuses=lambda: statuses, settle_seconds=600)
        w.clock.advance(599)
        assert not await vouchers.vouched(wanted) and not others.asked
        w.clock.advance(2)
        assert await vouchers.vouched(wanted) == {wanted[0]}
        assert others.asked == ["site2", "site3", "site4"]      # the writer of one first; the last about the rest
        others.asked.clear()
        statuses[1].compare_left, statuses[2].is_reachable = 1, False
        assert not await vouchers.vouched(wanted) and others.asked == ["site2"]

    run(check)
