"""Lifecycle rules judged: ages, dates, filters, several rules at once."""

from __future__ import annotations

from tierstore.policy.lifecycle import (
    LifecycleRule,
    Move,
    current_due,
    expiry,
    marker_is_due,
    moment_after,
    noncurrent_due,
    rules_of,
    rules_text,
    upload_is_due,
)

DAY = 86_400_000


def rule(**wishes: object) -> LifecycleRule:
    return LifecycleRule(**{"name": "r", "enabled": True, **wishes})  # type: ignore[arg-type]


def test_a_real_day_ends_at_midnight_and_a_short_one_at_once() -> None:
    """AWS rounds up to the next midnight UTC; rounding short days would make every test wait for midnight."""
    assert moment_after(5, 1, 86_400) == 2 * DAY
    assert moment_after(0, 1, 86_400) == DAY
    assert moment_after(5, 1, 2.0) == 2005


def test_the_earliest_rule_that_fits_wins() -> None:
    """An object under several rules goes when the first of them says so."""
    rules = [
        rule(name="a", expire_days=10), rule(name="b", expire_days=5, prefix="x"),
        rule(name="c", expire_days=1, enabled=False), rule(name="d", expire_days=1, tags={"t": "1"}),
    ]  # fmt: skip
    assert (due := expiry(rules, "k", 1, {}, 0)) is not None and due.rule == "a"
    assert (due := expiry(rules, "xk", 1, {}, 0)) is not None and due.rule == "b"
    assert (due := expiry(rules, "k", 1, {"t": "1"}, 0)) is not None and due.rule == "d"
    assert expiry(rules[1:3], "k", 1, {}, 0) is None


def test_sizes_are_exclusive() -> None:
    """ObjectSizeGreaterThan 5 leaves an object of 5 bytes alone."""
    sized = rule(size_above=5, size_below=10)
    assert [size for size in range(12) if sized.fits("k", size, {})] == [6, 7, 8, 9]


def test_expiry_goes_before_a_move_and_a_move_happens_once() -> None:
    """An object that already has the class is left alone, else every round would write it anew."""
    rules = [rule(expire_days=10, moves=[Move("STANDARD_IA", 1), Move("GLACIER", 5)])]

    def due(now_ms: int, storage_class: str) -> str | None:
        found = current_due(rules, "k", 1, {}, 0, storage_class, now_ms)
        return None if found is None else found.storage_class or found.action

    assert due(DAY - 1, "STANDARD") is None
    assert due(2 * DAY, "STANDARD") == "STANDARD_IA"
    assert due(2 * DAY, "STANDARD_IA") is None
    assert due(6 * DAY, "STANDARD_IA") == "GLACIER"
    assert due(10 * DAY, "GLACIER") == "expire"


def test_newer_noncurrent_versions_protect_themselves() -> None:
    """The count is of noncurrent versions that are newer; age counts from the moment of replacement."""
    rules = [rule(noncurrent_days=1, noncurrent_kept=2)]
    dues = [noncurrent_due(rules, "k", 1, {}, 0, newer, "STANDARD", 2 * DAY) is not None for newer in range(4)]
    assert dues == [False, False, True, True]
    assert noncurrent_due(rules, "k", 1, {}, 2 * DAY, 3, "STANDARD", 2 * DAY) is None


def test_markers_and_uploads() -> None:
    """Rules with tags or sizes say nothing of markers, which have neither."""
    assert marker_is_due([rule(expire_marker=True)], "k", 0, 1, day_seconds=1)
    assert not marker_is_due([rule(expire_marker=True, prefix="x")], "k", 0, 1, day_seconds=1)
    assert not marker_is_due([rule(expire_days=1, tags={"a": "b"})], "k", 0, DAY, day_seconds=1)
    assert upload_is_due([rule(abort_days=1)], "k", 0, 1000, day_seconds=1)
    assert not upload_is_due([rule(abort_days=1)], "k", 1, 1000, day_seconds=1)


def test_rules_survive_their_document() -> None:
    """The document of the bucket is the only copy."""
    rules = [rule(tags={"a": "b"}, moves=[Move("GLACIER", -1, 5)], expire_at_ms=DAY)]
    assert rules_of(rules_text(rules)) == rules
