"""Where new chunks go."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tierstore.errors import CapacityError, UnavailableError
from tierstore.policy.placement import Candidate, Plan

GIB = 1 << 30


def plan(*candidates: Candidate, tiers: tuple[str, ...] = (), chunk_bytes: int = 8 << 20) -> Plan:
    return Plan(candidates, tiers=tiers, chunk_bytes=chunk_bytes)


def disks(*servers: int, free: int = 100 * GIB, tier: str = "hdd", domain: str = "") -> list[Candidate]:
    return [Candidate(s * 10 + (tier == "ssd"), s, tier, free, failure_domain=domain) for s in servers]


def test_copies_never_share_a_server() -> None:
    """Two copies on one server are one when it dies."""
    made = plan(*disks(1, 2, 3), *disks(1, 2, 3, tier="ssd"))
    draw = random.Random(1).random
    for _ in range(500):
        choice = made.choose(3, draw=draw)
        assert len({c.server for c in choice.targets}) == 3
        assert not {c.server for c in choice.targets} & {c.server for c in choice.spares}


def test_too_few_servers_and_too_little_room_are_told_apart() -> None:
    """One is mended by starting servers, the other by adding disks."""
    draw = random.Random(1).random
    with pytest.raises(UnavailableError) as few:
        plan(*disks(1)).choose(2, draw=draw)
    assert few.value.code == "not-enough-servers"
    with pytest.raises(CapacityError) as full:
        plan(*disks(1), *disks(2, 3, free=1 << 20)).choose(2, draw=draw)
    assert full.value.code == "cluster-full"
    with pytest.raises(UnavailableError):
        plan(*disks(1, 2)).choose(2, draw=draw, exclude_servers=frozenset({2}))


def test_a_full_preferred_tier_falls_back() -> None:
    """Promise 5: a full SSD fails nothing."""
    draw = random.Random(1).random
    choice = plan(*disks(1, 2, tier="ssd"), *disks(1, 2, 3), tiers=("ssd", "hdd")).choose(2, draw=draw)
    assert [c.tier for c in choice.targets] == ["ssd", "ssd"]
    choice = plan(
        *disks(1, 2, tier="ssd", free=1 << 20), *disks(1, 2, 3), tiers=("ssd", "hdd")
    ).choose(2, draw=draw)  # fmt: skip
    assert [c.tier for c in choice.targets] == ["hdd", "hdd"]


def test_failure_domains_are_spread_as_far_as_they_go() -> None:
    """A rack is lost as a whole."""
    draw = random.Random(1).random
    made = plan(*disks(1, 2, 3, domain="a"), *disks(4, domain="b"))
    for _ in range(100):
        assert {c.failure_domain for c in made.choose(2, draw=draw).targets} == {"a", "b"}
    assert len(made.choose(4, draw=draw).targets) == 4


def test_emptier_and_less_busy_devices_get_more() -> None:
    """Else the smallest device fills first and the busiest server slows everybody."""
    draw = random.Random(1).random
    made = plan(
        Candidate(1, 1, "hdd", 300 * GIB), Candidate(2, 2, "hdd", 100 * GIB),
        Candidate(3, 3, "hdd", 100 * GIB, load=1.0),
    )  # fmt: skip
    counted = Counter(made.choose(1, draw=draw, spares=0).targets[0].device for _ in range(4000))
    assert counted[1] > 2.5 * counted[2] > 5 * counted[3] > 0
