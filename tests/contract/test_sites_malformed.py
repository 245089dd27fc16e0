"""What a broken or foreign site may say, on every engine: refused with a 4xx or taken, never an error of ours, and
nothing that a reader could stumble over."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from metadata.catalog import schema
from metadata.services.sites.backfill import Backfills
from metadata.services.sites.compare import Comparison
from metadata.services.sites.courier import Courier
from metadata.services.sites.holds import Holdings
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.contract.test_catalog_sites import version
from tests.kit.names_world import NamesWorld
from tierstore.errors import RequestError
from tierstore.wire import decode, encode
from tierstore.wire.names import ObjectMeta
from tierstore.wire.sites import NAME_PUT, Compare, Hello, Holds, NameBatch, NameRecord, NewKey

__all__ = ["postgres", "run", "url_of"]

#: What stands in for any member of a message.
ODD: list[Any] = [
    None, True, -1, 0, 1, 2, 5, (1 << 31), (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63), 0.5, "", "x", "a\x00b",
    "a\r\nb: c", "\u20ac" * 400, "v1", "x" * 5000, b"\xff", [], [[]], {}, {"bbb": "enabled"}, {"bbb": 5}, {"UPPER": ""},
]  # fmt: skip
ROUNDS = 120


def _mutated(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """The value with one member, somewhere in it, replaced, dropped or doubled."""
    if isinstance(value, list) and value and depth < 6 and rng.random() < 0.9:
        at = rng.randrange(len(value))
        act = rng.random()
        if act < 0.1:
            return value[:at] + value[at + 1 :]
        if act < 0.15:
            return [*value, value[at]]
        return [*value[:at], _mutated(rng, value[at], depth + 1), *value[at + 1 :]]
    if isinstance(value, dict) and value and rng.random() < 0.5:
        return {key: _mutated(rng, one, depth + 1) for key, one in value.items()}
    return rng.choice(ODD)


def _messages(w: NamesWorld) -> list[object]:
    meta = ObjectMeta("text/plain", {"a": "b"}, {"crc32c": "AAAAAA=="}, {"expires": "0"}, {"t": "v"}, {"x": b"y"})
    record = NameRecord("bbb", "k", NAME_PUT, version(w), 100, "e", 5, True, meta)
    batch = NameBatch("site2", [record, record], {"bbb": "", "new": ""}, {"bbb": "site2"}, {"bbb": [("", "site3")]})
    return [Hello("site2", 1, "ab", 1, 2, 3, 4), batch, batch, Compare("site2", 3), Holds([])]


async def _hear(w: NamesWorld, message: object, data: bytes) -> None:
    """As the routes do."""
    if isinstance(message, NameBatch):
        await w.taker.take(decode(data, NameBatch), "site2")
    elif isinstance(message, Hello):
        said = decode(data, Hello)
        comparison = Comparison(w.database, w.clock, Courier(None), keep_ms=1)  # type: ignore[arg-type]
        await comparison.hear("site2", said.epoch, said.sequence, said.confirmed_ms_ago, mark=said.mark)
    elif isinstance(message, Compare):
        await Backfills(w.database, w.clock).answer_compare("site2", decode(data, Compare).epoch)
    else:
        await Holdings(w.database, is_sound=lambda: True).answer(decode(data, Holds).bodies)


@pytest.mark.parametrize("seed", range(3))
def test_odd_messages_of_another_site_are_refused_or_taken(run: Run, seed: int) -> None:
    """One that raised anything else would be a 500 here, and a queue that stands still there."""

    async def check(w: NamesWorld) -> None:
        rng = random.Random(seed)
        refused = 0
        for message in _messages(w):
            plain = msgspec.msgpack.decode(encode(message))
            for _ in range(ROUNDS // 4):
                data = encode(_mutated(rng, plain))
                if rng.random() < 0.1:
                    data = data[: rng.randrange(len(data) + 1)]
                try:
                    await _hear(w, message, data)
                except RequestError as error:
                    refused += 1
                    assert 400 <= error.status < 500, error
        assert refused > ROUNDS // 4
        for row in await w.rows(schema.objects):
            assert 0 < row.version < 1 << 63 and row.size >= 0 and not set("\r\n\x00") & set(row.key + row.etag)
            assert not (await w.look(row.key)).code or row.kind == schema.KIND_MARKER
        for name in {bucket.name for bucket in await w.rows(schema.buckets)}:
            await w.page(bucket=name)

    run(check)


def test_metadata_that_would_split_a_readers_answer_is_parked(run: Run) -> None:
    """The other names of the batch are good, and the queue there goes on."""

    async def check(w: NamesWorld) -> None:
        bad = [ObjectMeta("a\r\nset-cookie: x"), ObjectMeta("", {"a": "b\nc"}), ObjectMeta("", {}, {}, {"x\r\n": "y"})]
        v = version(w)
        records = [NameRecord("bbb", f"k{i}", NAME_PUT, v, 0, "e", 1, True, meta) for i, meta in enumerate(bad)]
        answer = await w.taker.take(
            NameBatch("site2", [*records, NameRecord("bbb", "good", NAME_PUT, version(w))], {"bbb": ""}), "site2"
        )
        assert answer.parked == [0, 1, 2] and answer.applied == 1
        assert [entry.key for entry in (await w.page()).objects] == ["good"]

    run(check)


@pytest.mark.parametrize("token", ["", "a b", "tst.x\r\nx: y", "tst.\u20ac", "t" * 600])
def test_a_key_that_no_header_can_carry_is_refused(token: str) -> None:
    """Kept, it would break every message to that site."""
    with pytest.raises(RequestError, match="NewKey"):
        decode(encode([token]), NewKey)
