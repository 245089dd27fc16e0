"""Replay, what-if, traces and the synthetic workloads."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from bench.tiering.synthetic import PRESETS, csv_text, fitted_alpha, generate, one_hit_share
from bench.tiering.workloads import cut, load
from tierstore.errors import RequestError
from tierstore.policy.rules import Match, Policy, PromoterRules, Rule
from tierstore.policy.simulate import Fleet, replay
from tierstore.policy.trace import GET, Trace, parse_csv, prefix_of
from tierstore.policy.whatif import compare, curve

FREE = Policy((), PromoterRules(device_bytes_per_second_max=0))


def trace(*rows: str) -> Trace:
    return parse_csv(["time,key,size,op", *rows])


def test_a_trace_is_read_with_its_names() -> None:
    """The form of the published traces, and of what admin exports."""
    got = trace("0,b/x/1,10,GET", "1.5,b/y,20,PUT", "2,b/x/1,10,DELETE")
    assert (got.time.tolist(), got.key.tolist(), got.size.tolist(), got.op.tolist()) == (
        [0, 1.5, 2], [0, 1, 0], [10, 20, 10], [0, 1, 2],
    )  # fmt: skip
    assert got.names == [("b", "x/1"), ("b", "y")]
    assert got.footprint_bytes == 10
    assert trace("0,7,10,GET").names == []
    assert [prefix_of(*name) for name in got.names] == ["b/x/", "b/"]


@pytest.mark.parametrize("row", ["1,2,3", "x,1,2,GET", "1,1,2,HEAD", "-1,1,2,GET", "nan,1,2,GET", "1,1,-2,GET"])
def test_a_wrong_line_of_a_trace_is_named(row: str) -> None:
    """A trace of a million lines: the number of the bad one is what helps."""
    with pytest.raises(RequestError, match="line 3"):
        trace("0,1,2,GET", row)


def test_a_trace_without_its_header_is_refused() -> None:
    """Another column order would be replayed as nonsense."""
    with pytest.raises(RequestError, match="line 1"):
        parse_csv(["key,time,size,op"])


def test_a_hot_key_is_served_fast_after_the_first_tick() -> None:
    """The replay's own arithmetic: slow until the tick, fast after it, at the stated service times."""
    rows = [f"{t},1,160000000,GET" for t in (1, 2, 11, 12)]
    outcome = replay(trace(*rows), FREE, Fleet({"ssd": 1 << 40}))
    assert outcome.hit_ratio == {"mem": 0.0, "ssd": 0.5, "hdd": 0.5}
    assert outcome.slow_mean_ms == pytest.approx(1008)
    assert outcome.mean_ms == pytest.approx((1008 + 80.1) / 2)
    assert (outcome.promotions, outcome.wasted_promotions, outcome.moved_bytes) == (1, 0, 160_000_000)


def test_the_ram_cache_is_inline() -> None:
    """mem serves the second read at once, without a tick."""
    outcome = replay(trace("1,1,100,GET", "1,1,100,GET"), FREE, Fleet({"ssd": 1 << 30}, mem_bytes=10_000))
    assert outcome.hit_ratio == {"mem": 0.5, "ssd": 0.0, "hdd": 0.5}


def test_who_comes_while_a_read_is_under_way_waits_for_the_same_access_to_the_disk() -> None:
    """A crowd within the 8 ms of one seek finds nothing in RAM yet: a forecast that says so promises what RAM keeps."""
    rows = trace("1,1,100,GET", "1.001,1,100,GET", "1.007,1,100,GET", "1.009,1,100,GET")
    fleet = Fleet({"ssd": 1 << 30}, mem_bytes=10_000)
    assert replay(rows, FREE, replace(fleet, is_timed=True)).tier_of.tolist() == [2, 2, 2, 0]
    assert replay(rows, FREE, fleet).tier_of.tolist() == [2, 0, 0, 0], "times in whole seconds cannot tell"


def test_an_overwrite_takes_the_copies_and_keeps_the_heat() -> None:
    """A new body is on no cache; but it is promoted at its first read, ahead of colder ones."""
    rows = ["1,1,100,GET", "11,1,100,GET", "12,1,100,PUT", "13,1,100,GET", "21,1,100,GET"]
    outcome = replay(trace(*rows), FREE, Fleet({"ssd": 1 << 30}))
    assert outcome.tier_of.tolist() == [2, 1, 255, 2, 1]


def test_rules_hold_in_the_replay() -> None:
    """What-if is about rules first of all."""
    rows = ["1,b/never/a,100,GET", "1,b/land/a,100,PUT", "2,b/land/a,100,GET", "11,b/never/a,100,GET"]
    policy = Policy(
        (Rule("n", Match("b", "never/"), "never"), Rule("l", Match("b", "land/"), "land-fast")), FREE.promoter
    )
    outcome = replay(trace(*rows), policy, Fleet({"ssd": 1 << 30}))
    assert outcome.tier_of.tolist() == [2, 255, 1, 2]
    assert outcome.wear_bytes_per_day > 0 == outcome.moved_bytes
    assert outcome.prefixes == {"b/never/": (2, 0), "b/land/": (1, 1)}


def test_objects_of_a_bucket_that_is_read_soon_are_fast_from_their_write_on() -> None:
    """The service lands such writes on the fast tier by itself: a forecast without it would sell a larger one."""
    rows = []
    for n in range(200):
        rows += [f"{n * 3},logs/{n},1000,PUT", f"{n * 3 + 1},logs/{n},1000,GET", f"{n * 3 + 1},cold/{n},1000,PUT"]
    recorded, fleet = trace(*rows), Fleet({"ssd": 1 << 20})
    outcome = replay(recorded, FREE, fleet)
    reads = outcome.tier_of[recorded.op == GET]
    assert (reads[60:] == 1).all() and (reads[:20] == 2).all(), "as soon as enough of them were seen"
    assert outcome.wear_bytes_per_day > outcome.moved_bytes_per_day
    off = Policy((), PromoterRules(device_bytes_per_second_max=0, read_soon=0.0))
    assert replay(recorded, off, fleet).hit_ratio["ssd"] == 0.0
    home = Policy((Rule("n", Match("logs"), "never"),), FREE.promoter)
    assert replay(recorded, home, fleet).hit_ratio["ssd"] == 0.0


def test_an_empty_trace_is_no_error() -> None:
    """A cluster that was started a minute ago has no history."""
    outcome = replay(trace(), FREE, Fleet({"ssd": 1 << 30}, 1 << 20))
    assert (outcome.requests, outcome.mean_ms, outcome.fast_ratio) == (0, 0.0, 0.0)
    assert compare(trace(), FREE, FREE, Fleet({"ssd": 1 << 30}))["difference"]["hit_ratio"] == 0


def test_what_if_tells_what_a_change_brings_and_who_loses() -> None:
    """An operator who takes a prefix off the fast tier must see it before it is applied."""
    rows = [f"{t},b/{folder}/{k},1000,GET" for t in range(0, 200, 2) for folder in ("x", "y") for k in range(3)]
    proposed = Policy((Rule("x", Match("b", "x/"), "never"),), FREE.promoter)
    answer = compare(trace(*rows), FREE, proposed, Fleet({"ssd": 1 << 20}))
    assert answer["proposed"]["hit_ratio"]["ssd"] == pytest.approx(answer["current"]["hit_ratio"]["ssd"] / 2)
    assert answer["difference"]["hit_ratio"] < 0 < answer["difference"]["mean_ms"]
    assert [row["prefix"] for row in answer["prefixes"]] == ["b/x/"]
    assert answer["prefixes"][0]["gets_gained"] < 0
    curve = answer["current"]["curve"]
    assert curve["error"] == 0  # this small trace is replayed whole
    assert curve["points"][0]["hit_ratio"] <= curve["points"][-1]["hit_ratio"]


def test_the_curve_s_stated_error_is_small_when_sampled() -> None:
    """A curve off by ten points would sell a device that nobody needs."""
    work = generate("steady", seed=3, objects=5000, requests=35_000, span=3600.0)
    footprint = work.trace.footprint_bytes
    fleet = Fleet({"ssd": footprint // 10}, footprint // 100)
    found = curve(work.trace, FREE, fleet, replay(work.trace, FREE, fleet))
    assert 0 < found.sample_share < 1
    assert found.error < 0.08
    ratios = [ratio for _, ratio in found.points]
    assert ratios[0] < ratios[3] < ratios[-1]


def test_the_bars_of_twitter52_hold() -> None:
    """The figures that the policy is chosen for (TIERING's table); all of them: make bench-tiering."""
    real = load("twitter52")
    footprint = real.footprint_bytes
    outcome = replay(real, FREE, Fleet({"ssd": footprint // 10}, footprint // 100))
    assert outcome.requests == 221_398
    assert outcome.fast_ratio >= 0.82
    assert outcome.moved_per_served <= 0.05
    assert outcome.mean_ms / outcome.slow_mean_ms <= 0.18


def test_cutting_keeps_every_byte_and_every_request() -> None:
    """The latency bar of fb2010 is measured on objects cut into chunks: nothing may get lost in the cut."""
    whole = trace("0,1,250,GET", "1,2,100,GET", "2,1,250,GET", "3,3,0,GET")
    chunks, request = cut(whole, 100)
    assert chunks.size.tolist() == [100, 100, 50, 100, 100, 100, 50, 0]
    assert request.tolist() == [0, 0, 0, 1, 2, 2, 2, 3]
    assert chunks.key.tolist()[:3] == chunks.key.tolist()[4:7]
    assert len(set(chunks.key.tolist())) == 5


@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_seed_gives_the_same_workload(preset: str) -> None:
    """A figure that cannot be measured again is no figure."""
    one, two = (generate(preset, seed=5, objects=500, requests=5000) for _ in range(2))
    other = generate(preset, seed=6, objects=500, requests=5000)
    assert csv_text(one) == csv_text(two) != csv_text(other)
    assert len(one.trace) >= 5000
    assert (np.diff(one.trace.time) >= 0).all()
    assert one.trace.size.min() >= 512


def test_the_generator_passes_its_own_checks() -> None:
    """SYNTHETIC.md: alpha fitted within 0.05, 35-60 % one-hit keys in `all`, the mix as said."""
    assert abs(fitted_alpha(generate("steady", seed=1)) - 0.9) <= 0.05
    every = generate("all", seed=1)
    assert 0.35 <= one_hit_share(every) <= 0.60
    gets = float((every.trace.op == GET).mean())
    assert 0.85 <= gets <= 0.91
    assert len(every.crowds) == 3


def test_large_objects_are_cold_when_sizes_are_correlated() -> None:
    """The variant `sizecorr`: what many real stores look like."""
    work = generate("steady", seed=1, objects=2000, requests=2000, is_size_correlated=True)
    plain = generate("steady", seed=1, objects=2000, requests=2000)
    assert work.trace.size.mean() < plain.trace.size.mean()


def test_decisions_on_a_seeded_day_are_the_recorded_ones() -> None:
    """Golden: a change of the policy's behaviour must be seen, and meant (update it with the reason)."""
    work = generate("all", seed=11, objects=1000, requests=10_000)
    footprint = work.trace.footprint_bytes
    fleet = Fleet({"ssd": footprint // 10}, footprint // 100)
    outcome = replay(work.trace, Policy(), fleet)
    assert outcome.document() == replay(work.trace, Policy(), fleet).document()
    digest = hashlib.sha256(outcome.tier_of.tobytes()).hexdigest()[:16]
    assert (outcome.promotions, outcome.demotions, digest) == GOLDEN


GOLDEN = (3519, 2371, "180fb4971d321dfd")


def test_an_object_of_many_chunks_is_replayed_chunk_by_chunk() -> None:
    """As one piece a large object is above the largest chunk that may move: what-if called it slow for ever, while the
    store had it on the fast tier after one tick."""
    rows = trace(*[f"{t},b/big,9000000,GET" for t in range(0, 100, 5)])
    whole, tier = Fleet({"ssd": 100_000_000}), 9_000_000
    assert replay(rows, FREE, whole).fast_ratio == 0.0, "5 % of the tier are less than the object"
    outcome = replay(rows, FREE, replace(whole, chunk_bytes=1 << 20))
    assert outcome.fast_ratio > 0.8 and outcome.requests == 20 == len(outcome.tier_of)
    assert outcome.served_bytes == 20 * tier and outcome.moved_bytes == tier, "its chunks, each once"
    assert outcome.prefixes == {"b/": (20, round(20 * outcome.fast_ratio))}
    assert outcome.slow_mean_ms == pytest.approx(9 * 8 + 9_000_000 / 160e6 * 1e3), "a seek for each chunk"
    small = Fleet({"ssd": 1 << 30}, chunk_bytes=1 << 30)
    assert replay(rows, FREE, small).document() == replay(rows, FREE, Fleet({"ssd": 1 << 30})).document()


def test_rules_see_the_size_of_the_object_and_writes_reach_all_its_chunks() -> None:
    """A rule for large objects must not miss them because they are cut; what is deleted leaves no chunk behind."""
    rows = trace("1,b/big,3000,GET", "11,b/big,3000,GET", "12,b/big,1500,PUT", "13,b/big,1500,GET", "24,b/big,0,DELETE",
                 "25,b/big,500,PUT", "26,b/big,500,GET")  # fmt: skip
    fleet = Fleet({"ssd": 1 << 30}, chunk_bytes=1000)
    assert replay(rows, FREE, fleet).tier_of.tolist() == [2, 1, 255, 2, 255, 255, 2]
    large = Policy((Rule("large", Match(size_min=2500), "never"),), FREE.promoter)
    assert replay(rows, large, fleet).promotions == 0
    half = trace("1,b/o,1500,GET", "1,b/o,500,GET", "11,b/o,1500,GET")
    assert replay(half, FREE, fleet).tier_of.tolist() == [2, 2, 1]


def test_a_trace_that_would_become_too_long_is_cut_into_larger_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay must end: reads of huge objects become as many rows as they have chunks."""
    monkeypatch.setattr("tierstore.policy.chunked.ROWS_MAX", 100)
    rows = trace(*[f"{t},b/big,64000,GET" for t in range(10)])
    fleet = Fleet({"ssd": 1 << 30}, chunk_bytes=1000)
    answer = compare(rows, FREE, FREE, fleet, has_curve=False)
    assert answer["chunk_bytes"] == 8000 and answer["current"]["requests"] == 10
    assert compare(rows, FREE, FREE, Fleet({"ssd": 1 << 30}), has_curve=False)["chunk_bytes"] == 0


def test_a_device_of_the_replay_may_stand_for_several() -> None:
    """Three servers copy three times as fast as one: held to one device's rate, a forecast keeps the tier empty."""
    rows = trace(*[f"{t},{n},1000000,GET" for t in range(0, 100, 10) for n in range(40)])
    capped = Policy((), PromoterRules(device_bytes_per_second_max=400_000))
    one = replay(rows, capped, Fleet({"ssd": 1 << 30}))
    three = replay(rows, capped, Fleet({"ssd": 1 << 30}, rate_scale=3.0))
    assert one.fast_ratio < three.fast_ratio


def test_what_home_copies_take_of_a_fast_tier_is_no_room_and_makes_no_chunk_too_large() -> None:
    """The largest movable chunk is a share of the whole tier: judged by what was left of it, a chunk of 8 MiB never
    moved in a forecast for a tier of 192 MiB of which 40 were taken."""
    rows = trace(*[f"{t},{n},8000000,GET" for t in (1, 12, 23, 34) for n in range(3)])
    rich = Policy((), PromoterRules(device_bytes_per_second_max=0, budget=10.0))
    fleet = Fleet({"ssd": 192_000_000}, taken={"ssd": 40_000_000})
    assert replay(rows, rich, fleet).promotions == 3
    assert replay(rows, rich, Fleet({"ssd": 152_000_000})).promotions == 0
    assert replay(rows, rich, Fleet({"ssd": 192_000_000}, taken={"ssd": 170_000_000})).promotions == 1
    assert compare(rows, rich, rich, fleet)["current"]["promotions"] == 3
