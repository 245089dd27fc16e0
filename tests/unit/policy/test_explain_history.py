"""Explain says what the promoter would do; history keeps what happened, compact and bounded."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tests.unit.policy.test_decide import HDD, MIB, SSD, Rig, chunk, hdd, ssd
from tierstore.errors import IntegrityError
from tierstore.policy.explain import ReplicaView, explain_chunk, past_heat
from tierstore.policy.heat import HeatTable
from tierstore.policy.history import OPEN_NAME_BYTES_MAX, History
from tierstore.policy.rules import Rule, Schedule
from tierstore.policy.segment import Access, Requests, decode, encode
from tierstore.policy.trace import GET, PUT


def view(*devices: int) -> list[ReplicaView]:
    return [ReplicaView(f"s{d}", d, "hdd" if d == HDD else "ssd", "home" if d == HDD else "cache", "site1")
            for d in devices]  # fmt: skip


def ask(rig: Rig, n: int, *, mode: str = "auto", size: int = MIB, at: float = 10.0) -> dict[str, object]:
    devices = (HDD, *rig.planner.devices_of(chunk(n)))
    rule = Rule("r", mode=mode)  # type: ignore[arg-type]  # a test's shorthand
    answer = explain_chunk(rig.planner, chunk(n), size, replicas=view(*devices), rule=rule, now=at)
    step = answer["next"]
    assert isinstance(step, dict)
    return step


def test_explain_announces_what_the_next_tick_then_does() -> None:
    """An explanation that the promoter does not follow is worse than none."""
    rig = Rig(ssd(2 * MIB), hdd())
    rig.read(1, 5)
    step = ask(rig, 1)
    assert (step["action"], step["to_tier"], step["why"]) == ("promote", "ssd", "ssd has room")
    rig.tick()
    assert "it is on ssd already" in str(ask(rig, 1)["why"])
    rig.read(2, 5)
    rig.tick(20.0)
    rig.read(3, 2)
    step = ask(rig, 3)
    assert step["action"] == "stay"
    assert "times its reads" in str(step["why"])
    rig.read(3, 50)
    step = ask(rig, 3)
    assert step["action"] == "promote"
    assert [p.chunk for p in rig.tick(30.0).promotions] == [chunk(3)]


def test_explain_names_the_bound_that_holds_a_chunk_back() -> None:
    """Each reason in words that say what to change."""
    for rules, size, said in (
        ({"is_paused": True}, MIB, "paused"), ({"schedule": Schedule(60, 61)}, MIB, "outside its schedule"),
        ({"count_min": 9}, MIB, "min_count asks for 9"), ({"chunk_share_max": 0.001}, MIB, "largest chunk"),
        ({}, 200 * MIB, "largest chunk"),
    ):  # fmt: skip
        rig = Rig(**rules)
        rig.read(1, 1, size=size)
        assert said in str(ask(rig, 1, size=size)["why"])
    rig = Rig(budget=0.0)
    for n in (1, 2):
        rig.read(n, 1, size=60 * MIB)
    rig.tick(served=0)
    assert "budget" in str(ask(rig, 2, size=60 * MIB)["why"])
    assert "nobody has read it" in str(ask(Rig(), 1)["why"])
    assert "no faster tier" in str(ask(Rig(hdd()), 1)["why"])


def test_explain_follows_the_rule() -> None:
    """pin and never override heat; the rule is named."""
    rig = Rig()
    rig.read(1, 5)
    assert ask(rig, 1, mode="pin")["why"] == "rule 'r' pins it on ssd"
    assert ask(rig, 1, mode="never") == {"action": "stay", "to_tier": "", "why": "rule 'r' says never"}
    rig.tick()
    assert ask(rig, 1, mode="never")["action"] == "demote"
    assert ask(rig, 1, mode="pin")["action"] == "stay"


def test_a_pin_that_has_to_wait_says_for_what() -> None:
    """Who pinned something asks why it is not fast: "pinned" is no answer then."""
    rig = Rig(budget=0.0)
    for n in (1, 2):
        rig.read(n, 1, size=60 * MIB)
    rig.tick(served=0)
    step = ask(rig, 2, mode="pin", size=60 * MIB)
    assert step["action"] == "stay"
    assert str(step["why"]).startswith("rule 'r' pins it on ssd, which has to wait: the migration budget has")


@pytest.mark.parametrize("mode", ["land-fast", "never"])
def test_what_landed_is_said_to_go_home(mode: str) -> None:
    """A checkpoint whose copies are all on fast devices is exposed: its owner must see that this ends, and how."""
    rig = Rig()
    landed = [ReplicaView("s1", SSD, "ssd", "home", "site1"), ReplicaView("s2", 9, "ssd", "home", "site1")]
    rule = Rule("ckpt", mode=mode)  # type: ignore[arg-type]  # a test's shorthand

    def step(replicas: list[ReplicaView]) -> dict[str, object]:
        answer = explain_chunk(rig.planner, chunk(1), MIB, replicas=replicas, rule=rule, now=10.0, home_tier="hdd")
        found: dict[str, object] = answer["next"]
        return found

    assert (step(landed)["action"], step(landed)["to_tier"]) == ("demote", "hdd")
    assert "2 home copies landed on ssd" in str(step(landed)["why"])
    assert ("one stays on ssd" in str(step(landed)["why"])) == (mode == "land-fast")
    assert step(view(HDD))["to_tier"] != "hdd"


def test_the_answer_has_the_published_members() -> None:
    """GET /v1/explain is a fixed form."""
    rig = Rig()
    rig.read(1, 5)
    plan = rig.tick()
    answer = explain_chunk(rig.planner, chunk(1), MIB, replicas=view(HDD, SSD), rule=Rule(), now=10.0,
                           decisions=plan.decisions)  # fmt: skip
    members = "id bytes heat_per_hour rank lowest_resident_rank replicas next decisions"
    assert list(answer) == members.split()
    assert answer["rank"] == answer["lowest_resident_rank"]
    assert answer["replicas"][1] == {"server": "s1", "device": SSD, "tier": "ssd", "role": "cache", "site": "site1",
                                     "state": "ok"}  # fmt: skip
    assert answer["decisions"][0]["why"] == "promoted" and answer["decisions"][0]["tier"] == "ssd"


def access(n: int, at_ms: int) -> Access:
    return Access(at_ms, n % 3, "bucket", f"folder/key-{n}", n * 1000)


def test_a_segment_holds_every_request_in_few_bytes() -> None:
    """The log is kept for a day of a busy store: bytes a request matter."""
    accesses = [access(n % 500, 1_800_000_000_000 + n * 7) for n in range(20_000)]
    segment = encode(Requests.of(accesses).columns())
    assert list(decode(segment)) == accesses
    assert len(segment) / len(accesses) < 8


def test_odd_names_and_times_survive() -> None:
    """Keys hold slashes, commas and any script; clocks step back."""
    accesses = [Access(5000, 0, "b", "ä/ö,/\n", 0), Access(4000, 1, "b", "x", 1 << 40)]
    assert list(decode(encode(Requests.of(accesses).columns()))) == [accesses[0], accesses[1]._replace(at_ms=5000)]


@pytest.mark.parametrize("cut", [0, 10, 60, -1])
def test_a_damaged_segment_is_refused(cut: int) -> None:
    """A file cut by a power loss must not be replayed as history."""
    segment = encode(Requests.of(access(n, n) for n in range(100)).columns())
    with pytest.raises(IntegrityError):
        decode(segment[:cut])
    flipped = bytearray(segment)
    flipped[-20] ^= 255
    with pytest.raises(IntegrityError):
        decode(bytes(flipped))


def test_the_log_stays_within_its_bound_by_sampling_keys() -> None:
    """Bounded bytes, and still a whole day: fewer keys, but all the requests of each."""
    history = History(bytes_max=20_000, segment_requests=1000)
    for n in range(30_000):
        history.add(access(n % 2000, n * 100))
    assert history.used_bytes <= 20_000
    assert history.share < 1
    recorded = history.recorded()
    assert recorded.trace.time[-1] > 2900
    counts = sorted({int((recorded.trace.key == key).sum()) for key in range(len(recorded.trace.names))})
    assert counts == [15]
    again = History(bytes_max=20_000, segments=history.segments)
    assert (again.share, again.segments) == (history.share, history.segments)


def test_what_waits_to_be_packed_is_small() -> None:
    """Requests as objects took 280 bytes each, 450 with the strings of their messages: 30 MB of metadata's memory."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        history = History()
        for n in range(20_000):
            history.add(access(n % 5_000, n))
        assert not history.segments, "it must still be open"
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held / 20_000 < 80


def test_long_names_close_a_segment_early() -> None:
    """Keys of a kilobyte each must not make the open segment as large as 65,536 of them."""
    history = History()
    for n in range(OPEN_NAME_BYTES_MAX // 1000 + 1):
        history.add(Access(n, GET, "b", f"{n:01000}", 1))
    assert len(history.segments) == 1
    assert len(history.recorded().trace) == OPEN_NAME_BYTES_MAX // 1000 + 1


@pytest.mark.parametrize("at_once", [7, 1000, 30_000])
def test_many_requests_at_once_are_recorded_as_one_by_one(at_once: int) -> None:
    """They come by the thousand, across the ends of segments and while the sample halves: the log is the same."""
    accesses = [access(n % 2000, n * 100) for n in range(30_000)]
    single = History(bytes_max=20_000, segment_requests=1000)
    for each in accesses:
        single.add(each)
    together = History(bytes_max=20_000, segment_requests=1000)
    for begin in range(0, len(accesses), at_once):
        together.take(Requests.of(accesses[begin : begin + at_once]))
    assert single.share < 1
    assert (together.share, together.segments) == (single.share, single.segments)
    assert together.recorded().trace.key.tolist() == single.recorded().trace.key.tolist()


def test_past_the_hours_kept_the_oldest_goes() -> None:
    """A day is asked for: older segments make room before any key is dropped."""
    history = History(bytes_max=20_000, segment_requests=1000, hours_kept=0.1)
    for n in range(30_000):
        history.add(access(n % 2000, n * 1000))
    assert history.share == 1.0
    assert history.used_bytes <= 20_000
    assert history.recorded().trace.start_at > 0


def test_a_new_log_is_an_empty_trace() -> None:
    """Simulate on a fresh cluster answers with zeros, not with an error."""
    recorded = History().recorded()
    assert (len(recorded.trace), recorded.share) == (0, 1.0)
    history = History()
    history.add(access(1, 1000))
    assert recorded.trace.footprint_bytes == 0
    assert len(history.recorded().trace) == 1
    history.close_segment()
    assert len(history.segments) == 1


def test_the_past_of_one_object_is_found_among_many() -> None:
    """explain shows when an object was hot: its own reads only, also when its name is the end of another one."""
    accesses = [Access(1000 * n, GET, "b", ("key", "a/key", "keys")[n % 3], 5) for n in range(90)]
    accesses[30] = Access(30_000, PUT, "b", "key", 5)
    history = History(segment_requests=40)
    for access in accesses:
        history.add(access)
    found = history.reads_of("b", "key", since_ms=9_000, bytes_max=1 << 20)
    assert found.tolist() == [n * 1000 for n in range(9, 90, 3) if n != 30]
    assert history.reads_of("b", "gone", since_ms=0, bytes_max=1 << 20).tolist() == []
    assert history.reads_of("b", "key", since_ms=0, bytes_max=10).tolist() == [n * 1000 for n in range(81, 90, 3)]


def test_past_heat_is_what_the_table_would_have_said() -> None:
    """The curve that people see and the number that decides are one formula."""
    table, chunk = HeatTable(half_life_seconds=1800.0), bytes(16)
    times = [100.0, 2000.0, 3599.0, 7000.0]
    for at in times:
        table.add([chunk], np.array([1.0]), at)
    hours = past_heat(np.array(times), 7200.0, 1800.0, 2)
    assert [(hour.until, hour.reads) for hour in hours] == [(3600.0, 3), (7200.0, 1)]
    assert hours[-1].heat_per_hour == pytest.approx(table.heat_per_hour(chunk, 7200.0), abs=1e-5)
