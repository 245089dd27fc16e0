"""Warnings about valid policies: what they name that is not there, and what can have no effect."""

from __future__ import annotations

from typing import Any

import pytest

from tierstore.policy.doubts import doubts
from tierstore.policy.parser import parse


def warned(*rules: dict[str, Any], tiers: tuple[str, ...] = ("ssd", "hdd"), **sections: Any) -> list[str]:
    document = {"version": 1, "rules": [{"name": f"r{n}", **rule} for n, rule in enumerate(rules)], **sections}
    return doubts(parse(document), document, tiers=tiers, missing_buckets={"gone"})


def test_a_policy_that_means_what_it_says_has_no_warning() -> None:
    """Who is warned of everything reads no warning."""
    assert warned() == []
    assert warned(
        {"match": {"bucket": "bkt", "prefix": "x/y/"}, "mode": "pin"}, {"match": {"bucket": "bkt", "prefix": "x/"}},
        {"match": {"bucket": "bkt"}, "mode": "land-fast", "fast": ["nvme", "ssd"]}, {"home": "ssd"},
    ) == []  # fmt: skip
    assert warned({"mode": "never"}, {"home": "hdd"}, tiers=("hdd",)) == ["rule 'r1' never holds: rule 'r0' before it "
                                                                         "matches all that it matches"]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "is_covered"),
    [
        ({}, {"match": {"bucket": "bkt", "prefix": "x"}}, True),
        ({"match": {"prefix": "x/"}}, {"match": {"bucket": "bkt", "prefix": "x/y"}}, True),
        ({"match": {"bucket": "bkt"}}, {}, False),
        ({"match": {"size_min": "1MiB"}}, {"match": {"size_min": "2MiB"}}, True),
        ({"match": {"size_max": "1MiB"}}, {"match": {"size_min": "512KiB"}}, False),
        ({"schedule": "22:00-06:00 UTC"}, {}, False),
        ({"schedule": "22:00-06:00 UTC"}, {"schedule": "22:00-06:00 UTC"}, True),
        ({"match": {"class": "GLACIER"}}, {}, False),
    ],
)
def test_a_rule_behind_one_that_matches_all_of_it_is_named(
    first: dict[str, Any], second: dict[str, Any], is_covered: bool
) -> None:
    """The first rule that matches wins: the second is dead text, and its author believes in it."""
    found = warned(first, second)
    assert found == (["rule 'r1' never holds: rule 'r0' before it matches all that it matches"] if is_covered else [])


def test_tiers_and_buckets_that_are_not_there_are_named() -> None:
    """`land-fast` onto a tier that no device has lands home, in silence."""
    assert warned({"mode": "land-fast", "fast": ["nvme"]}) == [
        "rule 'r0': no device is of nvme, so land-fast has no effect yet"
    ]
    assert warned({"mode": "pin"}, tiers=("hdd",)) == [
        "rule 'r0': no device is of a faster tier, so pin has no effect yet"
    ]
    assert warned({"home": "nvme"}) == [
        "rule 'r0': no device is of its home tier nvme; home copies go to the slowest that has room"
    ]
    assert warned({"match": {"bucket": "gone"}}) == ["rule 'r0': there is no bucket 'gone'"]


def test_a_setting_of_earlier_releases_without_effect_is_taken_and_named() -> None:
    """`mem` stood in every document that was ever shown, and bounded nothing."""
    assert warned(promoter={"mem": 0.5}) == [
        "promoter.mem has no effect: chunks.mem_bytes of each object server bounds its RAM cache"
    ]
    assert "mem" not in parse({"version": 1, "promoter": {"mem": 0.5}}).document()["promoter"]
