"""Several metadata processes on one catalog, of which it is not known yet whether it is an old one: who knows tells the
others, on every engine (in production on PostgreSQL only)."""

from __future__ import annotations

from collections.abc import Callable

from metadata.catalog import leases
from metadata.services.sites.compare import ASKED, ASKERS_MAX, Comparison
from metadata.services.sites.courier import Courier
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.names_world import NamesWorld
from tierstore.wire.sites import HelloAnswer

__all__ = ["postgres", "run", "url_of"]

HOUR_MS = 3_600_000


def process(w: NamesWorld, token: str, *, devices_agree: Callable[[], bool] = lambda: False) -> Comparison:
    """A metadata process that has just started; only the holder of the duties talks to other sites."""
    return Comparison(
        w.database, w.clock, Courier(None), keep_ms=HOUR_MS, devices_agree=devices_agree, token=token  # type: ignore[arg-type]
    )  # fmt: skip


async def hello(holder: Comparison, there: Comparison) -> None:
    told = await holder.told("site2")
    heard = await there.hear("site1", told.epoch, told.sequence, -1, mark=told.mark)
    await holder.judge(HelloAnswer("site2", 0, "", heard.epoch, heard.sequence, heard.mark), ["site2"])


def test_what_one_process_knows_of_the_catalogs_age_opens_the_others(run: Run) -> None:
    """Else a process that holds no lease hears of no other site, and refuses writes for as long as the object servers
    cannot show the catalog's age."""

    async def test(w: NamesWorld) -> None:
        await w.put("k")
        holder, second = process(w, "a"), process(w, "b")
        there = Comparison(w.database, w.clock, Courier(None), keep_ms=HOUR_MS)  # type: ignore[arg-type]
        for each in (second, holder, second):
            await each.refresh()
        assert holder.refusal() and second.refusal(), "nobody knows yet"
        for _ in range(3):
            await hello(holder, there)
        assert not holder.refusal() and second.refusal()
        await holder.refresh()
        await second.refresh()
        assert not second.refusal() and not second.waiting

    run(test)


def test_an_operators_word_at_one_process_opens_all(run: Run) -> None:
    async def test(w: NamesWorld) -> None:
        processes = [process(w, token) for token in "abc"]
        for each in processes:
            await each.refresh()
        await processes[1].accept()
        assert [bool(each.refusal()) for each in processes] == [True, False, True]
        for each in (*processes[1:], *processes):
            await each.refresh()
        assert not any(each.refusal() for each in processes)

    run(test)


def test_an_answer_out_of_an_old_backup_vouches_for_nobody(run: Run) -> None:
    """The setting is in the backup too: it names processes that are gone."""

    async def test(w: NamesWorld) -> None:
        knows, asks = process(w, "a", devices_agree=lambda: True), process(w, "b")
        for each in (asks, knows, asks):
            await each.refresh()
        assert not asks.refusal()
        restarted = [process(w, "c"), process(w, "d")]
        for _ in range(3):
            for each in restarted:
                await each.refresh()
        assert all(each.refusal() for each in restarted)

    run(test)


def test_a_catalog_that_is_compared_is_closed_at_every_process(run: Run) -> None:
    """The holder finds out that it went back in time; that the others were vouched for does not keep them open."""

    async def test(w: NamesWorld) -> None:
        holder, second = process(w, "a", devices_agree=lambda: True), process(w, "b")
        for each in (second, holder, second):
            await each.refresh()
        assert not second.refusal()
        await holder.begin(["site2"])
        await second.refresh()
        assert "went back in time" in second.refusal() and "went back in time" in holder.refusal()
        late = process(w, "c")
        for each in (late, holder, late):
            await each.refresh()
        assert "went back in time" in late.refusal(), "known age is not the same as open"
        await second.accept()
        for each in (holder, late):
            await each.refresh()
        assert not any(each.refusal() for each in (holder, second, late))

    run(test)


def test_those_who_asked_and_died_are_forgotten(run: Run) -> None:
    async def test(w: NamesWorld) -> None:
        for number in range(3 * ASKERS_MAX):
            await process(w, f"gone{number}").refresh()
        text = await w.database.read(lambda c: leases.setting(c, ASKED))
        assert text.count("gone") == ASKERS_MAX
        knows, asks = process(w, "a", devices_agree=lambda: True), process(w, "b")
        for each in (asks, knows, asks):
            await each.refresh()
        assert not asks.refusal()

    run(test)
