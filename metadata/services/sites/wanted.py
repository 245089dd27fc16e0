"""How much of a body another site is to have, by its bucket's rules of now and by heat. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from metadata.catalog.buckets import Bucket
from metadata.catalog.objects import ObjectRow
from metadata.catalog.sites import QueueRow
from metadata.services.sites.apply import rules_of
from metadata.services.sites.hot import Body, HotParts
from tierstore.wire.sites import SEGMENT_BYTES, FetchItem

ALL: Final = "all"
HOT: Final = "hot"


def bodies_rule(bucket: Bucket, key: str, target: str) -> str:
    """The word `bodies` of the rule that holds for a key; "all" without a rule: a backfill by hand."""
    for rule in rules_of(bucket):
        if rule["target"] == target and key.startswith(rule["prefix"]):
            return rule["bodies"]
    return ALL


def body_of(target: str, row: QueueRow) -> Body:
    return Body(target, row.bucket_id, row.key, row.version)


def may_be_less(bucket: Bucket, target: str) -> bool:
    """Whether some rule of the bucket gives the target less than whole bodies."""
    return any(rule["target"] == target and rule["bodies"] != ALL for rule in rules_of(bucket))


def segments_of(
    bucket: Bucket, row: QueueRow, held: ObjectRow, target: str, hot: HotParts
) -> frozenset[int] | None:
    """The segments of a body that a row of the queue stands for; None: the whole body. A row that is shorter than the
    body stands for what became hot and has not arrived yet; one of the whole size for all that became hot."""
    rule = bodies_rule(bucket, row.key, target)
    if rule == ALL:
        return None
    if rule != HOT:
        return frozenset()
    if held.size <= SEGMENT_BYTES:
        return None         # judged by its heat when its name went
    body = body_of(target, row)
    every = hot.segments(body)
    if len(every) == -(-held.size // SEGMENT_BYTES):
        return None
    return hot.waiting(body) if row.size < held.size else every


def items_of(bucket: str, row: QueueRow, size: int, segments: Collection[int] | None) -> list[FetchItem]:
    """What the target is to fetch of a body of that size. Segments that are not all of it may go again there."""
    chosen = range(-(-size // SEGMENT_BYTES)) if segments is None else sorted(segments)
    return [
        FetchItem(
            bucket, row.key, row.version, segment * SEGMENT_BYTES,
            min(SEGMENT_BYTES, size - segment * SEGMENT_BYTES), segments is not None,
        )
        for segment in chosen
    ]  # fmt: skip
