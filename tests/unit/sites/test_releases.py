"""Two releases that follow each other: what sites say to each other stays readable on both sides."""

from __future__ import annotations

import inspect
from typing import Any, Final

import msgspec
import pytest

from metadata.routes.sites_models import JoinWish
from tierstore.wire import decode, encode, sites

#: The messages of the first release, as it writes and reads them. Never changed: a field that a later release adds
#: stands behind these, with a default.
FIRST: Final[dict[str, tuple[str, ...]]] = {
    "BodyName": ("bucket", "key", "version"),
    "Compare": ("site", "epoch"),
    "CompareAnswer": ("left",),
    "FetchAnswer": ("results",),
    "FetchBatch": ("items",),
    "FetchItem": ("bucket", "key", "version", "first", "length"),
    "FetchResult": ("code", "detail", "bytes"),
    "Hello": ("site", "at_ms", "cluster_id", "epoch", "sequence", "confirmed_ms_ago", "mark"),
    "HelloAnswer": ("site", "at_ms", "cluster_id", "seen_epoch", "seen_sequence", "seen_mark"),
    "Holds": ("bodies",),
    "HoldsAnswer": ("held",),
    "NameAnswer": ("applied", "lost", "parked"),
    "NameBatch": ("site", "names", "buckets", "homes", "told"),
    "NameRecord": ("bucket", "key", "kind", "version", "size", "etag", "created_at_ms", "is_null", "meta"),
    "NewKey": ("token",),
    "Push": ("site", "name", "versioning", "first", "crc32c", "data"),
    "PushAnswer": ("code", "detail", "bytes"),
}
RECORD: Final = sites.NameRecord("bbb", "k", sites.NAME_PUT, 7, 5, "e", 3)
SAMPLES: Final[list[Any]] = [
    sites.BodyName("b", "k", 1), sites.Compare("s", 1), sites.CompareAnswer(0),
    sites.FetchAnswer([sites.FetchResult("", "", 4)]), sites.FetchBatch([sites.FetchItem("b", "k", 1, 0, 5)]),
    sites.FetchItem("b", "k", 1, 0, 5), sites.FetchResult("c", "d", 4), sites.Hello("s", 1, "id", 2, 3, 4, 5),
    sites.HelloAnswer("s", 1, "id", 2, 3, 4), sites.Holds([sites.BodyName("b", "k", 1)]),
    sites.HoldsAnswer([True, False]), sites.NameAnswer(1, 2, [0]), sites.NameBatch("s", [RECORD], {"bbb": ""}), RECORD,
    sites.NewKey("tst.x"), sites.Push("s", RECORD, "", 0, 1, b"x"), sites.PushAnswer("", "", 1),
]  # fmt: skip


def _between_sites() -> dict[str, type[Any]]:
    """All messages of the module but those that a site says to its own gateways."""
    own = {"Peer", "Peers", "BucketRule", "RulesAsk", "RulesAnswer"}
    kinds = dict(inspect.getmembers(sites, lambda value: isinstance(value, type(msgspec.Struct))))
    return {name: kind for name, kind in kinds.items() if kind.__module__ == sites.__name__ and name not in own}


def test_fields_are_only_added_behind_those_of_the_first_release() -> None:
    """The other release finds a field by its place: one that moved is read as something else."""
    kinds = _between_sites()
    assert FIRST.keys() <= kinds.keys()
    for name, fields in FIRST.items():
        info = msgspec.structs.fields(kinds[name])
        assert tuple(field.name for field in info[: len(fields)]) == fields, name
        assert all(not field.required for field in info[len(fields) :]), f"{name}: what was added needs a default"


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_what_the_next_release_adds_is_left_alone(message: Any) -> None:
    """A message that is refused stops the queue to that site until both are of one release."""
    kind = type(message)
    more = [*msgspec.msgpack.decode(encode(message)), {"added": ["later", 1]}]
    assert decode(encode(more), kind) == message
    assert {type(sample).__name__ for sample in SAMPLES} == _between_sites().keys()


def test_what_the_next_release_says_when_it_joins_is_left_alone() -> None:
    wish = {"name": "lyon", "number": 3, "gateways": ["http://x"], "token": "tst.x", "replace": False}
    read = JoinWish.model_validate({**wish, "of_the_next_release": {"x": 1}})
    assert {name: getattr(read, name) for name in wish} == wish
