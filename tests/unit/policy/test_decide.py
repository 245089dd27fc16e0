"""The promoter's tick: who is promoted, who goes, and what bounds it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tierstore.policy.decide import Planner
from tierstore.policy.heat import HeatTable, pack_delta
from tierstore.policy.plan import Candidate, Plan
from tierstore.policy.rules import Mode, PromoterRules, Schedule
from tierstore.policy.shelf import Device

HDD, SSD, NVME, SSD2 = 9, 1, 2, 3
MIB = 1 << 20


def chunk(n: int) -> bytes:
    return n.to_bytes(16, "big")


def hdd(**changes: Any) -> Device:
    return replace(Device(HDD, 9, "hdd", 1 << 50, 8e-3, 160e6), **changes)


def ssd(capacity: int = 100 * MIB, **changes: Any) -> Device:
    return replace(Device(SSD, 1, "ssd", capacity, 1e-4, 2e9), **changes)


class Rig:
    """A planner over a heat table; reads go in, ticks come out."""

    def __init__(self, *devices: Device, **rules: Any) -> None:
        defaults = {"device_bytes_per_second_max": 0, "chunk_share_max": 1.0, "budget": 10.0, "fill": 1.0}
        self.heat = HeatTable()
        self.planner = Planner(self.heat, PromoterRules(**{**defaults, **rules}), devices or (ssd(), hdd()))
        self.sizes: dict[bytes, int] = {}
        self.modes: dict[bytes, Mode] = {}
        self.fast: dict[bytes, tuple[str, ...]] = {}
        self.server_reads = self.per_second = 0.0

    def read(self, n: int, count: float, *, size: int = MIB, at: float = 0.0) -> None:
        self.sizes[chunk(n)] = size
        self.heat.merge(pack_delta([(chunk(n), count)]), at)

    def tick(self, at: float = 10.0, served: int = 1 << 40) -> Plan:
        movable, settled = self.heat.take_touched(4096, 16)
        return self.planner.tick(at, [self.candidate(c, s) for c, s in movable + settled], served)

    def candidate(self, c: bytes, score: float) -> Candidate:
        devices = (*self.planner.devices_of(c), HDD)
        return Candidate(c, self.sizes[c], score, devices, self.modes.get(c, "auto"), self.fast.get(c, ()),
                         self.server_reads, self.per_second)  # fmt: skip

    def held(self, tier: str = "ssd") -> set[int]:
        devices = {d.id for d in self.planner._devices.values() if d.tier == tier}
        return {n for n in range(1000) if devices & set(self.planner.devices_of(chunk(n)))}


def moved(plan: Plan) -> list[int]:
    return [int.from_bytes(p.chunk, "big") for p in plan.promotions]


def test_a_read_chunk_takes_free_room() -> None:
    """An empty fast tier is waste: no absolute threshold."""
    rig = Rig()
    rig.read(1, 1)
    plan = rig.tick()
    assert moved(plan) == [1]
    assert (plan.promotions[0].device, plan.promotions[0].why, plan.bytes_moved) == (SSD, "promoted", MIB)
    assert rig.tick(20.0).promotions == []  # not touched since


def test_the_hotter_chunk_displaces_the_lowest_resident() -> None:
    """The rule itself: rank against the residents, lowest first."""
    rig = Rig(ssd(2 * MIB), hdd())
    rig.read(1, 5)
    rig.read(2, 2)
    rig.tick()
    rig.read(3, 4, at=10.0)
    plan = rig.tick(20.0)
    assert moved(plan) == [3]
    assert [(d.chunk, d.why) for d in plan.demotions] == [(chunk(2), "displaced")]
    assert rig.held() == {1, 3}


def test_a_chunk_that_is_not_better_by_the_hysteresis_stays_out() -> None:
    """Two equally hot chunks must not push each other out at every tick."""
    rig = Rig(ssd(MIB), hdd())
    rig.read(1, 4)
    rig.tick()
    rig.read(2, 4.5)
    plan = rig.tick(20.0)
    assert plan.promotions == []
    decision = plan.decisions[-1]
    assert (decision.action, decision.why) == ("skip", "rank-too-low")
    assert decision.lowest < decision.rank  # it is hotter, but not by a quarter
    rig.read(2, 2)
    assert moved(rig.tick(30.0)) == [2]


def test_small_chunks_rank_above_large_ones_of_the_same_heat() -> None:
    """beta: reads served per byte of the fast tier."""
    rig = Rig(ssd(10 * MIB), hdd())
    rig.read(1, 3, size=5 * MIB)
    rig.read(2, 3, size=64 * 1024)
    plan = rig.tick()
    assert moved(plan) == [2, 1]


def test_several_small_residents_make_room_for_one_that_is_worth_more() -> None:
    """And none of them goes when they would not free enough."""
    rig = Rig(ssd(4 * MIB), hdd())
    for n in (1, 2, 3):
        rig.read(n, 1)
    rig.read(4, 100)
    rig.tick()
    rig.read(9, 50, size=2 * MIB)
    plan = rig.tick(20.0)
    assert moved(plan) == [9]
    assert len(plan.demotions) == 2
    rig.read(10, 60, size=2 * MIB)  # 4 is too hot: only 1 MiB could be freed beside 9
    plan = rig.tick(30.0)
    assert (moved(plan), plan.demotions) == ([], [])
    assert len(rig.held()) == 3


def test_a_resident_that_is_read_again_is_not_the_lowest_any_more() -> None:
    """The heap holds old ranks: taking the top unrefreshed would throw out what just became hot."""
    rig = Rig(ssd(2 * MIB), hdd())
    rig.read(1, 1)
    rig.read(2, 2)
    rig.tick()
    rig.read(1, 50)
    rig.read(3, 10)
    plan = rig.tick(20.0)
    assert [d.chunk for d in plan.demotions] == [chunk(2)]


def test_the_budget_bounds_the_bytes_moved_by_the_bytes_served() -> None:
    """Migration must not cost more than it brings: 0.2 bytes for a byte served, and one bucket."""
    rig = Rig(ssd(100 * MIB), hdd(), budget=0.2, chunk_share_max=0.02)
    for n in range(50):
        rig.read(n, 1 + n)
    assert len(rig.tick(served=10 * MIB).promotions) == 2  # the bucket holds 2 MiB
    for n in range(50):
        rig.read(n, 1)
    plan = rig.tick(20.0, served=5 * MIB)
    assert len(plan.promotions) == 1
    assert "budget" in {d.why for d in plan.decisions}
    assert rig.planner.moved_bytes <= 0.2 * rig.planner.served_bytes + 2 * MIB


def test_a_device_takes_no_more_than_its_rate() -> None:
    """A fast device that is busy with writes serves nobody."""
    rig = Rig(ssd(100 * MIB), hdd(), device_bytes_per_second_max=MIB // 5)
    for n in range(20):
        rig.read(n, 1 + n)
    plan = rig.tick()
    assert len(plan.promotions) == 2
    assert {d.why for d in plan.decisions if d.action == "skip"} == {"device-rate"}


def test_what_is_too_large_paused_or_read_too_little_does_not_move() -> None:
    """Each bound, and its reason for explain."""
    for rules, why in (
        ({"chunk_share_max": 0.001}, "too-large"), ({"is_paused": True}, "paused"), ({"count_min": 3}, "too-few-reads"),
        ({"schedule": Schedule(60, 120)}, "paused"),
    ):  # fmt: skip
        rig = Rig(**rules)
        rig.read(1, 1)
        plan = rig.tick()
        assert plan.promotions == []
        assert plan.decisions[0].why == why


def test_pinned_chunks_come_first_and_are_not_displaced() -> None:
    """pin means a fast copy always; a rule that is removed loses its effect."""
    rig = Rig(ssd(MIB), hdd())
    rig.modes[chunk(1)] = "pin"
    rig.read(1, 1)
    rig.read(2, 100)
    plan = rig.tick()
    assert (moved(plan), plan.promotions[0].why) == ([1], "pinned")
    rig.read(2, 100)
    assert moved(rig.tick(20.0)) == []
    rig.planner.unpin()
    rig.read(2, 1)
    assert moved(rig.tick(30.0)) == [2]


def test_never_drops_the_copies_there_are() -> None:
    """After a policy change every resident is offered again."""
    rig = Rig()
    rig.read(1, 5)
    rig.tick()
    rig.modes[chunk(1)] = "never"
    candidates = [rig.candidate(c, rig.heat.score(c)) for c in rig.planner.chunks()]
    plan = rig.planner.tick(20.0, candidates, 0)
    assert [(d.chunk, d.why) for d in plan.demotions] == [(chunk(1), "never")]
    assert rig.held() == set()


def test_the_fastest_tier_is_asked_first_and_the_copy_between_goes() -> None:
    """Any number of tiers by the same rule."""
    rig = Rig(Device(NVME, 1, "nvme", MIB, 5e-5, 4e9), ssd(10 * MIB), hdd())
    rig.read(1, 5)
    rig.read(2, 3)
    rig.tick()
    assert (rig.held("nvme"), rig.held("ssd")) == ({1}, {2})
    rig.read(2, 500)
    plan = rig.tick(20.0)
    assert [(p.chunk, p.device) for p in plan.promotions] == [(chunk(2), NVME)]
    assert {(d.chunk, d.why) for d in plan.demotions} == {(chunk(1), "displaced"), (chunk(2), "superseded")}
    assert (rig.held("nvme"), rig.held("ssd")) == ({2}, set())


def test_a_rule_may_keep_a_chunk_off_a_tier() -> None:
    """fast = ["ssd"] with an NVMe tier there."""
    rig = Rig(Device(NVME, 1, "nvme", 10 * MIB, 5e-5, 4e9), ssd(), hdd())
    rig.fast[chunk(1)] = ("ssd",)
    rig.read(1, 5)
    assert [p.device for p in rig.tick().promotions] == [SSD]


def test_a_fast_device_slower_than_the_slow_one_gets_nothing_and_is_named() -> None:
    """Grey failure: it answers, but every read it is preferred for is slow."""
    good = Device(SSD2, 2, "ssd", 100 * MIB, 1e-4, 2e9)
    rig = Rig(ssd(), good, hdd())
    rig.planner.set_devices([ssd(seconds=0.05), good, hdd()])
    rig.read(1, 5)
    plan = rig.tick()
    assert plan.grey_devices == (SSD,)
    assert [p.device for p in plan.promotions] == [SSD2]


def test_a_chunk_on_a_device_that_turned_grey_gets_another_copy() -> None:
    """Else the hottest chunks stay slow for as long as the device limps."""
    good = Device(SSD2, 2, "ssd", 100 * MIB, 1e-4, 2e9)
    rig = Rig(ssd(), good, hdd())
    rig.planner.set_devices([ssd(), replace(good, is_usable=False), hdd()])
    rig.read(1, 5)
    assert [p.device for p in rig.tick().promotions] == [SSD]
    rig.planner.set_devices([ssd(seconds=0.05), good, hdd()])
    rig.read(1, 1)
    assert [p.device for p in rig.tick(20.0).promotions] == [SSD2]


def test_a_very_hot_chunk_gets_copies_on_other_servers() -> None:
    """One server must not carry a flash crowd alone; and no more copies than servers."""
    devices = [Device(n, n, "ssd", 100 * MIB, 1e-4, 2e9) for n in (1, 2, 3)]
    rig = Rig(*devices, hdd())
    rig.per_second = 6000.0  # x 0.6 ms: more than three devices' worth
    for n in range(5):
        rig.read(1, 60_000, at=10.0 * n)
        rig.tick(10.0 * n)
    assert sorted(rig.planner.devices_of(chunk(1))) == [1, 2, 3]


def test_a_busy_server_s_hottest_chunk_is_spread() -> None:
    """The other reason for a second copy: the server's load, when this chunk makes up a good part of it."""
    devices = [Device(n, n, "ssd", 100 * MIB, 1e-4, 2e9) for n in (1, 2)]
    rig = Rig(*devices, hdd())
    rig.read(1, 100)
    first = rig.tick().promotions[0].device
    rig.planner.set_devices([replace(d, load=0.9 if d.id == first else 0.1) for d in devices] + [hdd()])
    rig.server_reads = 0.05
    rig.read(1, 100, at=10.0)
    plan = rig.tick(20.0)
    assert [p.why for p in plan.promotions] == ["spread"]
    assert plan.promotions[0].device != first


def test_a_failed_promotion_gives_its_room_and_budget_back() -> None:
    """Else a flaky device eats the fast tier without holding anything."""
    rig = Rig(ssd(MIB), hdd(), budget=0.0)
    rig.read(1, 1)
    promotion = rig.tick(served=0).promotions[0]
    assert rig.planner.is_wanted(promotion)
    rig.planner.failed(promotion)
    rig.planner.failed(promotion)
    assert not rig.planner.is_wanted(promotion)
    assert (rig.planner.used_bytes("ssd"), rig.planner.budget_bytes, rig.planner.moved_bytes) == (0, MIB, 0)
    rig.read(1, 1)
    assert moved(rig.tick(20.0, served=0)) == [1]


def test_a_device_that_is_gone_takes_its_residents_along() -> None:
    """All SSDs pulled: nothing may still count as resident."""
    rig = Rig()
    rig.read(1, 5)
    rig.tick()
    rig.planner.set_devices([hdd()])
    assert rig.planner.devices_of(chunk(1)) == ()
    rig.read(1, 1)
    assert rig.tick(20.0).promotions == []
    rig.planner.set_devices([ssd(), hdd()])
    rig.read(1, 1)
    assert moved(rig.tick(30.0)) == [1]


def test_home_copies_that_grow_push_the_lowest_cache_copies_out() -> None:
    """Cache copies are extra: they never stand in the way of a write."""
    rig = Rig(ssd(4 * MIB), hdd())
    for n in (1, 2, 3, 4):
        rig.read(n, n)
    rig.tick()
    rig.planner.set_devices([ssd(4 * MIB, other_bytes=2 * MIB), hdd()])
    plan = rig.tick(20.0)
    assert [d.chunk for d in plan.demotions] == [chunk(1), chunk(2)]
    assert {d.why for d in plan.demotions} == {"over-fill"}


def test_residents_told_from_the_catalog_are_ranked_like_promoted_ones() -> None:
    """After a restart the planner starts from the catalog's copies and the snapshot's heat."""
    rig = Rig(ssd(2 * MIB), hdd())
    rig.read(1, 5)
    rig.read(2, 2)
    for n in (1, 2):
        rig.planner.resident(chunk(n), MIB, SSD, [HDD])
    assert rig.planner.lowest_rank("ssd") == rig.planner.rank_of(chunk(2), MIB, [HDD], SSD)
    rig.heat.renormalise(36_000.0)
    rig.read(3, 1000, at=36_000.0)
    assert [d.chunk for d in rig.tick(36_010.0).demotions] == [chunk(2)]


def test_a_tick_looks_at_no_more_than_its_candidates() -> None:
    """Bounded work: a burst of a million touched chunks costs one tick's worth."""
    rig = Rig(candidates_max=10)
    for n in range(50):
        rig.read(n, 1)
    plan = rig.tick()
    assert len(plan.promotions) + sum(d.action == "skip" for d in plan.decisions) == 10


def test_one_tier_alone_promotes_nothing() -> None:
    """A cluster of disks only must not stumble."""
    rig = Rig(hdd())
    rig.read(1, 5)
    assert rig.tick().promotions == []
    assert rig.planner.lowest_rank("ssd") == float("-inf")


@pytest.mark.parametrize("gone", [True, False])
def test_a_deleted_chunk_leaves_room_and_no_heat(gone: bool) -> None:
    """Chunks come and go with overwrites; what is left behind would fill the tier with ghosts."""
    rig = Rig()
    rig.read(1, 5)
    rig.tick()
    if gone:
        rig.planner.forget(chunk(1))
        assert rig.heat.score(chunk(1)) == float("-inf")
    else:
        rig.planner.dropped(chunk(1), SSD)
        rig.planner.dropped(chunk(1), SSD)
    assert (rig.planner.used_bytes("ssd"), rig.held()) == (0, set())
