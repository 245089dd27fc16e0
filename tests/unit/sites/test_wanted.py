"""How much of a body another site is to have: by the rules, by what became hot, by what has arrived."""

from __future__ import annotations

import json

import pytest

from metadata.catalog import schema
from metadata.catalog.buckets import Bucket
from metadata.catalog.objects import ObjectRow
from metadata.catalog.sites import QueueRow
from metadata.services.sites import hot
from metadata.services.sites.hot import Body, HotParts
from metadata.services.sites.wanted import items_of, segments_of
from tierstore.wire.sites import SEGMENT_BYTES

SIZE = 4 * SEGMENT_BYTES + 7
FILM = Body("far", 1, "films/one", 9)


def _bucket(**rules: str) -> Bucket:
    """prefix -> bodies."""
    said = [{"prefix": prefix, "target": "far", "mode": "async", "bodies": word} for prefix, word in rules.items()]
    return Bucket(1, "bbb", "", "", 0, {"replication": json.dumps({"rules": said})})


def _wanted(bucket: Bucket, parts: HotParts, *, queued: int, size: int = SIZE) -> frozenset[int] | None:
    row = QueueRow(5, 0, FILM.bucket_id, FILM.key, FILM.version, schema.CHANGE_PUT, queued)
    held = ObjectRow(1, FILM.key, FILM.version, schema.KIND_ROWS, 1, size, "", 0, None, None, 3)
    return segments_of(bucket, row, held, FILM.target, parts)


def test_the_first_rule_that_holds_for_a_key_says_how_much_of_it_goes() -> None:
    """An operator's word is obeyed as it stands now, whatever it was when the row was queued."""
    parts = HotParts()
    for bucket in (_bucket(films="all"), _bucket(other="on-demand"), _bucket(films="all", film="hot")):
        assert _wanted(bucket, parts, queued=SIZE) is None
    assert _wanted(_bucket(films="on-demand"), parts, queued=SIZE) == frozenset()
    parts.add(FILM, {1: b"x"})
    assert _wanted(_bucket(films="on-demand"), parts, queued=SEGMENT_BYTES) == frozenset()
    assert _wanted(_bucket(films="hot"), parts, queued=100, size=100) is None


def test_a_row_stands_for_what_is_hot_and_has_not_arrived() -> None:
    """A segment that the target has would cost a message with each further one that becomes hot."""
    bucket, parts = _bucket(films="hot"), HotParts()
    assert _wanted(bucket, parts, queued=SIZE) == frozenset()
    parts.add(FILM, {0: b"a", 3: b"b"})
    assert _wanted(bucket, parts, queued=2 * SEGMENT_BYTES) == {0, 3}
    parts.arrived(FILM, {0})
    parts.add(FILM, {4: b"c"})
    assert _wanted(bucket, parts, queued=7) == {3, 4}
    assert _wanted(bucket, parts, queued=SIZE) == {0, 3, 4}, "the target began anew: all of it goes again"
    parts.add(FILM, {1: b"d", 2: b"e"})
    assert _wanted(bucket, parts, queued=SEGMENT_BYTES) is None, "all of it is hot"


def test_the_target_is_told_which_bytes_and_whether_they_may_go_again() -> None:
    """What lies beyond the body's end is refused there; a whole body is kept for good."""
    row = QueueRow(5, 0, 1, FILM.key, FILM.version, schema.CHANGE_PUT, SIZE)
    last = items_of("bbb", row, SIZE, {4})
    assert [(item.first, item.length, item.is_cached) for item in last] == [(4 * SEGMENT_BYTES, 7, True)]
    whole = items_of("bbb", row, SIZE, None)
    assert sum(item.length for item in whole) == SIZE and not any(item.is_cached for item in whole)


def test_what_is_remembered_has_a_bound_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of many hot films must not fill metadata's memory."""
    monkeypatch.setattr(hot, "REMEMBERED_MAX", 4)
    parts = HotParts()
    bodies = [FILM._replace(version=number) for number in range(5)]
    for body in bodies:
        parts.add(body, {0: b"a", 1: b"b"})
    assert [parts.knows(body) for body in bodies] == [False, False, False, True, True]
    assert not parts.waiting(bodies[0]) and parts.waiting(bodies[4]) == {0, 1}
