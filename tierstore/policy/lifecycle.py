"""Lifecycle rules of a bucket: what becomes of a version, and when. Pure.

Owns the rules' form (JSON in a bucket's document) and every judgement over them; the S3 door turns XML into it and
back, metadata's lifecycle duty applies it. Semantics are AWS's ("Managing the lifecycle of objects"): an age counts
from creation (noncurrent: from the moment a newer version came), and where a day is a real one the moment is rounded up
to the next midnight UTC. `day_seconds` shortens days for tests.

Invariant: a rule acts only on what all of its filters match; the earliest action that is due wins, expiry over change
of class.
"""

from __future__ import annotations

from typing import Final

import msgspec

#: Document of a bucket with lifecycle rules.
DOCUMENT: Final = "s3.lifecycle"
DAY_SECONDS: Final = 86_400.0
_DAY_MS: Final = 86_400_000


class Move(msgspec.Struct, frozen=True):
    """A change of storage class. days -1: by date. newer_kept: only for noncurrent versions."""

    storage_class: str
    days: int = -1
    at_ms: int = 0
    newer_kept: int = 0


class LifecycleRule(msgspec.Struct, frozen=True):
    """days -1 and at_ms 0: no such action. size bounds are exclusive, -1: none. in_filter: the prefix stood in a Filter
    (how it is shown)."""

    name: str
    enabled: bool
    prefix: str = ""
    tags: dict[str, str] = {}
    size_above: int = -1
    size_below: int = -1
    in_filter: bool = True
    expire_days: int = -1
    expire_at_ms: int = 0
    expire_marker: bool = False
    noncurrent_days: int = -1
    noncurrent_kept: int = 0
    abort_days: int = -1
    moves: list[Move] = []
    noncurrent_moves: list[Move] = []

    def fits(self, key: str, size: int, tags: dict[str, str]) -> bool:
        """Whether the filters match an object (or a noncurrent version of one)."""
        if not self.enabled or not key.startswith(self.prefix):
            return False
        if (self.size_above >= 0 and size <= self.size_above) or (self.size_below >= 0 and size >= self.size_below):
            return False
        return all(tags.get(name) == value for name, value in self.tags.items())

    @property
    def judges_size_or_tags(self) -> bool:
        return bool(self.tags) or self.size_above >= 0 or self.size_below >= 0


class Due(msgspec.Struct, frozen=True):
    """What is to be done with a version: "expire", or "move" to a storage class; with an upload: "abort". rule: by its
    name."""

    action: str
    rule: str
    at_ms: int
    storage_class: str = ""


def rules_of(text: str) -> list[LifecycleRule]:
    return msgspec.json.decode(text, type=list[LifecycleRule])


def rules_text(rules: list[LifecycleRule]) -> str:
    return msgspec.json.encode(rules).decode()


def moment_after(at_ms: int, days: int, day_seconds: float) -> int:
    """When something of that age is due."""
    due = at_ms + int(days * day_seconds * 1000)
    return -(-due // _DAY_MS) * _DAY_MS if day_seconds == DAY_SECONDS else due


def expiry(
    rules: list[LifecycleRule], key: str, size: int, tags: dict[str, str], created_at_ms: int,
    *, day_seconds: float = DAY_SECONDS,
) -> Due | None:  # fmt: skip
    """When the latest version of an object expires: the earliest of all rules; None: never."""
    found: Due | None = None
    for rule in rules:
        if not rule.fits(key, size, tags):
            continue
        if rule.expire_days >= 0:
            at_ms = moment_after(created_at_ms, rule.expire_days, day_seconds)
        elif rule.expire_at_ms:
            at_ms = rule.expire_at_ms
        else:
            continue
        if found is None or at_ms < found.at_ms:
            found = Due("expire", rule.name, at_ms)
    return found


def current_due(  # noqa: PLR0917 - an object's facts
    rules: list[LifecycleRule], key: str, size: int, tags: dict[str, str], created_at_ms: int, storage_class: str,
    now_ms: int, *, day_seconds: float = DAY_SECONDS,
) -> Due | None:  # fmt: skip
    """What is due for the latest version now."""
    end = expiry(rules, key, size, tags, created_at_ms, day_seconds=day_seconds)
    if end is not None and end.at_ms <= now_ms:
        return end
    moves = [(rule, move) for rule in rules if rule.fits(key, size, tags) for move in rule.moves]
    return _latest_move(moves, created_at_ms, storage_class, now_ms, day_seconds)


def noncurrent_due(  # noqa: PLR0917 - a version's facts
    rules: list[LifecycleRule], key: str, size: int, tags: dict[str, str], since_ms: int, newer: int,
    storage_class: str, now_ms: int, *, day_seconds: float = DAY_SECONDS,
) -> Due | None:  # fmt: skip
    """What is due for a version that is not the latest. since_ms: when it was replaced; newer: how many noncurrent
    versions of the key are newer."""
    moves = []
    for rule in rules:
        if not rule.fits(key, size, tags):
            continue
        if rule.noncurrent_days >= 0 and newer >= rule.noncurrent_kept:
            at_ms = moment_after(since_ms, rule.noncurrent_days, day_seconds)
            if at_ms <= now_ms:
                return Due("expire", rule.name, at_ms)
        moves += [(rule, move) for move in rule.noncurrent_moves if newer >= move.newer_kept]
    return _latest_move(moves, since_ms, storage_class, now_ms, day_seconds)


def _latest_move(
    moves: list[tuple[LifecycleRule, Move]], since_ms: int, storage_class: str, now_ms: int, day_seconds: float
) -> Due | None:
    """Of several moves that are due, the one due last says where the object belongs."""
    found: Due | None = None
    for rule, move in moves:
        at_ms = move.at_ms if move.days < 0 else moment_after(since_ms, move.days, day_seconds)
        if at_ms <= now_ms and (found is None or at_ms >= found.at_ms):
            found = Due("move", rule.name, at_ms, move.storage_class)
    return None if found is None or found.storage_class == storage_class else found


def marker_is_due(rules: list[LifecycleRule], key: str, created_at_ms: int, now_ms: int, *, day_seconds: float) -> bool:
    """Whether a delete marker with no versions behind it goes: by ExpiredObjectDeleteMarker, or by an age in days."""
    for rule in rules:
        if rule.judges_size_or_tags or not rule.fits(key, 0, {}):
            continue
        if rule.expire_marker:
            return True
        if rule.expire_days >= 0 and moment_after(created_at_ms, rule.expire_days, day_seconds) <= now_ms:
            return True
    return False


def upload_end(
    rules: list[LifecycleRule], key: str, created_at_ms: int, *, day_seconds: float = DAY_SECONDS
) -> Due | None:
    """When a multipart upload that is never completed is given up: the earliest of all rules; None: never."""
    found: Due | None = None
    for rule in rules:
        if rule.enabled and rule.abort_days >= 0 and key.startswith(rule.prefix):
            at_ms = moment_after(created_at_ms, rule.abort_days, day_seconds)
            if found is None or at_ms < found.at_ms:
                found = Due("abort", rule.name, at_ms)
    return found


def upload_is_due(rules: list[LifecycleRule], key: str, created_at_ms: int, now_ms: int, *, day_seconds: float) -> bool:
    """Whether a multipart upload that was never completed is given up."""
    due = upload_end(rules, key, created_at_ms, day_seconds=day_seconds)
    return due is not None and due.at_ms <= now_ms
