"""How a site finds out that its catalog is an old one, and what it does until it knows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from metadata.services.sites.compare import PROOF_SECONDS, Comparison
from metadata.services.sites.courier import Courier
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.wire.sites import HelloAnswer

HOUR_MS = 3_600_000


class Pair:
    """A site, and what another one has heard of it."""

    def __init__(self, w: NamesWorld, *, devices_agree: Callable[[], bool] = lambda: False) -> None:
        self.w = w
        self.devices_agree = devices_agree
        self.there = Comparison(w.database, w.clock, Courier(None), keep_ms=HOUR_MS)  # type: ignore[arg-type]
        self.restart()

    def restart(self) -> None:
        """A new process on the catalog as it is."""
        self.here = Comparison(
            self.w.database, self.w.clock, Courier(None), keep_ms=HOUR_MS,  # type: ignore[arg-type]
            devices_agree=self.devices_agree,
        )  # fmt: skip

    async def hello(self, *, is_answer_lost: bool = False) -> None:
        told = await self.here.told("site2")
        heard = await self.there.hear("site1", told.epoch, told.sequence, -1, mark=told.mark)
        if not is_answer_lost:
            await self.here.judge(HelloAnswer("site2", 0, "", heard.epoch, heard.sequence, heard.mark), ["site2"])


def on_a_pair(test: Callable[[Pair], Awaitable[None]], **kwargs: Callable[[], bool]) -> None:
    async def main() -> None:
        w = await NamesWorld.open("sqlite://", threads=False)
        await w.buckets.create("bbb", ADMIN)
        try:
            await test(Pair(w, **kwargs))
        finally:
            await w.close()

    asyncio.run(main())


async def _go_back(pair: Pair, sequence: int) -> None:
    """The catalog loses what it wrote behind a sequence, as when a backup is restored."""

    def work(c: object) -> None:
        c.exec_driver_sql("DELETE FROM changes WHERE sequence > ?", (sequence,))  # type: ignore[attr-defined]
        c.exec_driver_sql("UPDATE feed_head SET sequence = ?", (sequence,))  # type: ignore[attr-defined]

    await pair.w.database.write(work)  # type: ignore[arg-type]


def test_a_restored_site_that_has_written_past_what_others_saw_is_found_out() -> None:
    """Counting alone would take it for the one it was: its sequence is larger than the last one heard."""

    async def test(pair: Pair) -> None:
        w = pair.w
        for i in range(5):
            await w.put(f"k{i}")
        backup = (await pair.here.standing()).sequence
        for i in range(5):
            await w.put(f"lost{i}")
        await pair.hello()
        await pair.hello()
        assert not pair.here.waiting and pair.here.is_proven is False      # it knew nothing of this site's epoch yet
        await pair.hello()
        assert pair.here.is_proven and not pair.here.refusal()
        await _go_back(pair, backup)
        w.clock.advance(5.0)
        pair.restart()
        for i in range(9):
            assert not (await w.put(f"new{i}")).code
        await pair.hello(is_answer_lost=True)      # what the other one knows must outlive that
        assert pair.here.refusal()
        await pair.hello()
        assert pair.here.waiting == ["site2"] and "went back in time" in pair.here.refusal()

    on_a_pair(test)


def test_a_site_that_only_restarts_is_open_after_one_hello() -> None:
    async def test(pair: Pair) -> None:
        await pair.w.put("k")
        await pair.hello()
        await pair.hello()
        await pair.w.put("later")
        pair.restart()
        assert "has started" in pair.here.refusal()
        await pair.hello()
        assert not pair.here.refusal() and not pair.here.waiting

    on_a_pair(test)


def test_a_cut_off_site_is_open_once_its_own_object_servers_have_shown_its_age() -> None:
    """A partition stops nobody: not even a metadata service that restarts within it."""
    agreed = False

    async def test(pair: Pair) -> None:
        nonlocal agreed
        asked = asyncio.ensure_future(pair.here.settle())
        for _ in range(3):
            await asyncio.sleep(0)
        assert pair.here.refusal() and not asked.done()
        agreed = True
        pair.w.clock.advance(PROOF_SECONDS / 2)
        await asyncio.wait_for(asked, 60)
        assert not pair.here.refusal()

    on_a_pair(test, devices_agree=lambda: agreed)


def test_a_write_waits_only_so_long_for_that() -> None:
    async def test(pair: Pair) -> None:
        asked = asyncio.ensure_future(pair.here.settle())
        for _ in range(400):
            await asyncio.sleep(0)
            pair.w.clock.advance(PROOF_SECONDS / 100)
        await asyncio.wait_for(asked, 60)
        assert pair.here.refusal()
        await pair.here.accept()        # an operator's word
        assert not pair.here.refusal()

    on_a_pair(test)
