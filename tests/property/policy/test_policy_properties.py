"""Properties of the tiering policy that hold for every sequence of reads, writes and ticks."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tierstore.errors import RequestError
from tierstore.policy.decide import Planner
from tierstore.policy.heat import HeatTable, pack_delta
from tierstore.policy.memcache import MemCache
from tierstore.policy.parser import parse, parse_toml
from tierstore.policy.plan import Candidate
from tierstore.policy.rules import MODES, Match, Policy, PromoterRules, Rule, Schedule
from tierstore.policy.segment import Access, Requests, decode, encode
from tierstore.policy.shelf import Device

keys = st.integers(0, 20)
counts = st.sampled_from([0.25, 1.0, 2.0, 7.0])


def chunk(n: int) -> bytes:
    return n.to_bytes(16, "big")


@given(st.lists(st.tuples(keys, counts, st.integers(0, 5000)), max_size=60))
def test_scores_are_the_decayed_sum_and_only_rise(reads: list[tuple[int, float, int]]) -> None:
    """The log2 domain, whatever the order of merges, against the plain sum; the heaps rest on `only rise`."""
    heat = HeatTable(half_life_seconds=1000)
    total: dict[int, float] = {}
    for key, count, at in reads:
        before = heat.score(chunk(key))
        heat.merge(pack_delta([(chunk(key), count)]), float(at))
        assert heat.score(chunk(key)) >= before
        total[key] = total.get(key, 0.0) + count * 2.0 ** ((at - 5000) / 1000)
    for key, value in total.items():
        assert math.isclose(heat.reads(heat.score(chunk(key)), 5000.0), value, rel_tol=1e-9)


@given(st.lists(st.tuples(keys, st.integers(1, 60), st.sampled_from(["get", "put", "remove"])), max_size=200))
def test_the_ram_cache_never_exceeds_its_bound_and_never_lies(steps: list[tuple[int, int, str]]) -> None:
    """Bytes held are the bytes counted, and a value is that of the last put."""
    mem: MemCache[int, int] = MemCache(200, admit_bytes_max=50)
    model: dict[int, tuple[int, int]] = {}
    for n, (key, size, step) in enumerate(steps):
        if step == "get":
            got = mem.get(key)
            assert got is None or got == model[key][0]
        elif step == "put":
            assert mem.put(key, n, size) == (size <= 50)
            model[key] = (n, size)
            assert (key in mem) == (size <= 50)
        else:
            mem.remove(key)
            assert key not in mem
        assert mem.used_bytes == sum(model[k][1] for k in model if k in mem) <= 200


ticks = st.lists(
    st.tuples(
        st.lists(st.tuples(keys, counts), max_size=12), st.integers(0, 3000), st.sampled_from(["", "drop", "landmark"])
    ),
    max_size=25,
)


@settings(deadline=None)
@given(ticks, st.integers(100, 900), st.lists(st.integers(1, 300), min_size=21, max_size=21), st.sampled_from([0, 20]))
def test_every_plan_keeps_the_bounds(steps: list[Any], capacity: int, sizes: list[int], rate: int) -> None:
    """Fill, budget and the largest chunk are never passed; nobody worse displaces; same calls, same plan."""
    runs = [_run(steps, capacity, sizes, rate) for _ in range(2)]
    assert runs[0] == runs[1]


def _run(steps: list[Any], capacity: int, sizes: list[int], rate: int) -> list[Any]:
    rules = PromoterRules(device_bytes_per_second_max=rate, chunk_share_max=0.3, fill=0.9)
    heat = HeatTable(half_life_seconds=60)
    devices = [Device(1, 1, "ssd", capacity, 1e-4, 2e9), Device(2, 2, "ssd", capacity, 1e-4, 2e9),
               Device(3, 1, "nvme", capacity // 3, 5e-5, 4e9), Device(9, 3, "hdd", 1 << 50, 8e-3, 160e6)]  # fmt: skip
    planner = Planner(heat, rules, devices)
    held: dict[int, set[bytes]] = {1: set(), 2: set(), 3: set()}
    log: list[Any] = []
    for n, (reads, served, event) in enumerate(steps):
        at = 10.0 * (n + 1)
        heat.merge(pack_delta([(chunk(key), count) for key, count in reads]), at)
        if event == "drop":
            planner.forget(chunk(n % 21))
            for copies in held.values():
                copies.discard(chunk(n % 21))
        elif event == "landmark":
            heat.renormalise(at)
        movable, settled = heat.take_touched(100, 16)
        candidates = [
            Candidate(c, sizes[int.from_bytes(c, "big")], s, (*planner.devices_of(c), 9)) for c, s in movable + settled
        ]
        plan = planner.tick(at, candidates, served)
        for demotion in plan.demotions:
            held[demotion.device].remove(demotion.chunk)
            if demotion.why == "displaced":
                better = [p.rank for p in plan.promotions if p.device == demotion.device]
                assert any(demotion.rank + math.log2(1.25) < rank for rank in better)
        for promotion in plan.promotions:
            assert promotion.chunk not in held[promotion.device]
            held[promotion.device].add(promotion.chunk)
            assert promotion.size <= 0.3 * 2 * capacity
        for device, copies in held.items():
            used = sum(sizes[int.from_bytes(c, "big")] for c in copies)
            assert used <= 0.9 * devices[device - 1].capacity_bytes
            assert all(device in planner.devices_of(c) for c in copies)
        assert planner.used_bytes("ssd") + planner.used_bytes("nvme") == sum(
            sizes[int.from_bytes(c, "big")] for copies in held.values() for c in copies
        )
        assert planner.moved_bytes <= 0.2 * planner.served_bytes + 0.3 * 2 * capacity + 1e-6
        log.append((plan.demotions, plan.promotions, plan.decisions))
    return log


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
minutes = st.integers(0, 1439)
schedules = st.none() | st.builds(Schedule, minutes, minutes).filter(lambda window: window.start != window.end)
rules_of = st.builds(
    Rule,
    name=texts.filter(lambda name: name != "default"),
    match=st.builds(
        Match, bucket=st.sampled_from(["", "abc", "logs"]), prefix=st.one_of(st.just(""), texts),
        size_min=st.integers(0, 1 << 30), size_max=st.one_of(st.none(), st.integers(1 << 30, 1 << 40)),
    ),
    mode=st.sampled_from(MODES),
    home=st.sampled_from(["", "hdd"]),
    fast=st.lists(st.sampled_from(["ssd", "nvme"]), max_size=2, unique=True).map(tuple),
    copies=st.integers(0, 9),
    schedule=schedules,
)  # fmt: skip
policies = st.builds(
    Policy,
    st.lists(rules_of, max_size=4, unique_by=lambda rule: rule.name).map(tuple),
    st.builds(PromoterRules, tick_seconds=st.integers(1, 600).map(float), beta=st.floats(0, 1), budget=st.floats(0, 10),
              device_bytes_per_second_max=st.integers(0, 1 << 40), is_paused=st.booleans(), schedule=schedules),
)  # fmt: skip


@given(policies)
def test_every_policy_goes_round_as_toml_and_json(policy: Policy) -> None:
    """What is shown is what is set."""
    assert parse(policy.document()) == policy
    assert parse_toml(policy.toml()) == policy


@given(policies, st.sampled_from(["abc", "logs", "zzz"]), texts, st.integers(0, 1 << 41), st.integers(0, 86_400 * 3))
def test_the_index_by_bucket_finds_what_a_plain_search_finds(
    policy: Policy, bucket: str, key: str, size: int, now: int
) -> None:
    """rule_for is compiled for speed; the meaning is this loop."""
    for rule in policy.rules:
        match = rule.match
        if (
            match.bucket in ("", bucket) and key.startswith(match.prefix) and size >= match.size_min
            and (match.size_max is None or size <= match.size_max)
            and (rule.schedule is None or rule.schedule.is_open(now))
        ):  # fmt: skip
            assert policy.rule_for(bucket, key, size, now) is rule
            return
    assert policy.rule_for(bucket, key, size, now) is policy.default


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["version", "rules", "promoter", "name", "match", "mode", "fast", "tick", "x"]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_a_policy_or_a_clear_refusal(document: Any) -> None:
    """Never another exception: that would be a 500 to whoever sent it."""
    try:
        assert isinstance(parse(document), Policy)
    except RequestError as error:
        assert error.code == "bad-policy"
        assert error.fields["problems"]


any_key = st.text(st.characters(exclude_characters="\0"), max_size=10)
accesses_of = st.builds(
    Access, st.integers(0, 1 << 45), st.integers(0, 2), st.sampled_from(["b", "c"]), any_key, st.integers(0, 1 << 50)
)


@given(st.lists(accesses_of, min_size=1, max_size=40))
def test_history_segments_go_round(accesses: list[Access]) -> None:
    """In order of time, everything comes back; no step is longer than 49 days."""
    ordered = sorted(accesses, key=lambda a: a.at_ms)
    near = [a._replace(at_ms=ordered[0].at_ms + n) for n, a in enumerate(ordered)]
    assert list(decode(encode(Requests.of(near).columns()))) == near
