"""Which buckets are read soon after they are written: the judgement that gives their new objects a fast copy."""

from __future__ import annotations

from tierstore.policy.rereads import BUCKETS_MAX, OUTCOMES_MIN, SOON_SECONDS, YOUNG_MAX, Rereads


def lived(bucket: str, *, objects: int, read: int, rereads: Rereads, at: float = 0.0) -> None:
    """Write so many objects, read the first `read` of them a minute later."""
    for n in range(objects):
        rereads.written(bucket, f"{at}-{n}", at)
    for n in range(read):
        rereads.read(bucket, f"{at}-{n}", at + 60)


def test_a_bucket_whose_objects_are_read_soon_is_found_and_another_one_is_not() -> None:
    """A fast copy of everything would fill the fast tier with what nobody reads."""
    rereads = Rereads()
    lived("pipeline", objects=100, read=80, rereads=rereads)
    lived("archive", objects=100, read=10, rereads=rereads)
    assert rereads.judge(SOON_SECONDS + 61, 0.5) == {"pipeline"}
    assert rereads.share("pipeline") == 0.8 and rereads.share("archive") == 0.1


def test_the_first_quick_readers_do_not_speak_for_all() -> None:
    """Most outcomes known early are reads: who is not read yet counts as not read."""
    rereads = Rereads()
    lived("b", objects=200, read=40, rereads=rereads)
    assert rereads.judge(61, 0.5) == frozenset() and rereads.share("b") == 0.2


def test_few_objects_say_nothing_and_zero_switches_it_off() -> None:
    """The first object of a bucket must not decide for it; an operator may not want this at all."""
    rereads = Rereads()
    lived("b", objects=OUTCOMES_MIN - 1, read=OUTCOMES_MIN - 1, rereads=rereads)
    assert rereads.judge(100, 0.5) == frozenset()
    lived("b", objects=1, read=1, rereads=rereads, at=50.0)
    assert rereads.judge(120, 0.5) == {"b"} and rereads.judge(120, 0.0) == frozenset()


def test_a_bucket_that_changes_its_ways_is_judged_anew_and_not_to_and_fro() -> None:
    """What was true last week must not cost SSD wear for ever; a share at the border must not flap."""
    rereads = Rereads()
    lived("b", objects=100, read=55, rereads=rereads)
    assert rereads.judge(1000, 0.5) == {"b"}
    lived("b", objects=100, read=35, rereads=rereads, at=1000.0)      # 45 % in all: still in
    assert rereads.judge(2000, 0.5) == {"b"}
    for round_number in range(2, 12):
        lived("b", objects=200, read=0, rereads=rereads, at=round_number * 1000.0)
        rereads.judge(round_number * 1000.0 + 999, 0.5)
    assert rereads.soon == frozenset()


def test_a_late_read_is_no_early_one_and_memory_is_bounded() -> None:
    """A million buckets or objects must not be a million entries."""
    rereads = Rereads()
    lived("b", objects=40, read=0, rereads=rereads)
    for n in range(40):
        rereads.read("b", f"0.0-{n}", SOON_SECONDS + 1)
    assert rereads.share("b") == 0.0
    for n in range(BUCKETS_MAX + 500):
        rereads.written(f"bucket{n}", "k", 0.0)
    for n in range(5 * YOUNG_MAX):
        rereads.written("wide", f"k{n}", 0.0)
    assert len(rereads._buckets) == BUCKETS_MAX
    assert len(rereads._buckets["wide"].young) == YOUNG_MAX
