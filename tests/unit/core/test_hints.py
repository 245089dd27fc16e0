"""What stands beside a chunk so that a rebuild can make its object again."""

from __future__ import annotations

import pytest

from tierstore.wire.hints import HINT_BYTES_MAX, WriteHint, hint_of, name_of, parse_hint
from tierstore.wire.names import Condition, ObjectMeta

BEGUN = (1_800_000_000_000).to_bytes(6, "big") + bytes(range(10))


@pytest.mark.parametrize("key", ["k", "a/b//c", "\r\n é日本", "x" * 1024])
def test_a_hint_reads_back_exactly(key: str) -> None:
    """An object under another name, or with another type, would not be the one that was acknowledged."""
    write = WriteHint(BEGUN, 7, 9, "e", ObjectMeta("text/plain", {"a": "b"}), Condition(if_none_match=["*"]))
    named = parse_hint(hint_of("bkt", key, write))
    assert named == ("bkt", key, write) and write.begun_ms == 1_800_000_000_000


def test_metadata_that_is_too_long_is_left_out_and_the_rest_stays() -> None:
    """An object server cuts longer hints, and a cut one would say nothing at all."""
    text = hint_of("bkt", "k" * 1000, WriteHint(BEGUN, 7, meta=ObjectMeta("t", {"a": "b" * 2000})))
    named = parse_hint(text)
    assert len(text.encode()) <= HINT_BYTES_MAX
    assert named is not None and named.write is not None
    assert named.write.is_cut and named.write.meta is None and named.write.size == 7


@pytest.mark.parametrize("text", ["", "nothing", "/key", "bkt/", "\0AAAA"])
def test_what_names_nothing_is_nothing(text: str) -> None:
    """Chunks of older releases and of repair have no name; they must not become objects under a made-up one."""
    assert parse_hint(text) is None


@pytest.mark.parametrize("tail", ["", "\0", "\0!", "\0AAAA", "\0" + "gA" * 20])
def test_a_damaged_second_part_counts_as_missing(tail: str) -> None:
    """A part of an object, or a torn hint, names its owner and is never adopted."""
    assert parse_hint(name_of("bkt", "k") + tail) == ("bkt", "k", None)
