"""Clocks: one conformance suite for every Clock, and the order of version ids."""

import asyncio

import pytest

from tierstore.clock import (
    Clock,
    HybridClock,
    LoopClock,
    ManualClock,
    SystemClock,
    version_ms,
    version_site,
)
from tierstore.names import SiteId


@pytest.mark.parametrize("kind", ["system", "loop", "manual"])
def test_every_clock_moves_forward_and_sleeps(kind: str) -> None:
    """Deadlines and leases rest on it."""

    async def main() -> None:
        clock: Clock = {"system": SystemClock, "loop": LoopClock, "manual": ManualClock}[kind]()
        start, wall = clock.monotonic(), clock.now_ms()
        sleeping = asyncio.ensure_future(clock.sleep(0.02))
        await asyncio.sleep(0)
        if isinstance(clock, ManualClock):
            assert not sleeping.done()
            clock.advance(0.02)
        await asyncio.wait_for(sleeping, 120)
        assert clock.monotonic() - start >= 0.019
        assert clock.now_ms() - wall >= 19

    asyncio.run(main())


def test_version_ids_rise_when_the_clock_stands_or_jumps_back() -> None:
    """A wall clock set back must not let an older write win."""
    clock = ManualClock()
    hybrid = HybridClock(clock, SiteId(3))
    ids = [hybrid.next() for _ in range(10_000)]
    clock.advance(-3600)
    ids += [hybrid.next() for _ in range(10)]
    assert ids == sorted(set(ids))
    assert {version_site(i) for i in ids} == {3}


def test_a_new_version_is_above_the_key_s_latest_from_another_site() -> None:
    """Overwriting what a faster clock wrote must win over it."""
    clock = ManualClock()
    ahead = HybridClock(ManualClock(now_ms=clock.now_ms() + 60_000), SiteId(2)).next()
    mine = HybridClock(clock, SiteId(1)).next(after=ahead)
    assert mine > ahead and version_site(mine) == 1


def test_an_id_from_the_far_future_does_not_drag_the_clock_along() -> None:
    """One broken peer must not push every later version a year ahead."""
    clock = ManualClock()
    hybrid = HybridClock(clock, SiteId(1))
    far = HybridClock(ManualClock(now_ms=clock.now_ms() + 30 * 86_400_000), SiteId(2)).next()
    hybrid.observe(far)
    assert not hybrid.is_acceptable(far)
    assert hybrid.next(after=far) > far
    assert version_ms(hybrid.next()) - clock.now_ms() < 1000


def test_the_clock_starts_above_the_largest_id_in_the_catalog() -> None:
    """After a restart with a clock set back, order still holds."""
    clock = ManualClock()
    last = HybridClock(ManualClock(now_ms=clock.now_ms() + 5000), SiteId(1)).next()
    assert HybridClock(clock, SiteId(1), floor=last).next() > last
