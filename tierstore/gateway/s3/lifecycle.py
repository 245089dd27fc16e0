"""Lifecycle configuration: AWS's XML to rules and back, the three handlers, and the x-amz-expiration line.

The rules' meaning is tierstore.policy.lifecycle's; metadata's lifecycle duty carries them out.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final
from urllib.parse import quote

import msgspec

from tierstore.gateway.s3 import documents
from tierstore.gateway.s3.answers import http_moment
from tierstore.gateway.s3.bucket_files import BucketFiles
from tierstore.gateway.s3.documents import Node, document, element, moment
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.request import Call
from tierstore.policy.lifecycle import DOCUMENT, LifecycleRule, Move, expiry, rules_of, rules_text, upload_end
from tierstore.wire.names import BucketView

RULES_MAX: Final = 1000
NEWER_KEPT_MAX: Final = 100
#: AWS's TransitionStorageClass: where objects begin, none goes to.
_MOVED_TO: Final = frozenset({
    "GLACIER", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "DEEP_ARCHIVE", "GLACIER_IR",
})  # fmt: skip
_NAME_MAX: Final = 255
_DAY_MS: Final = 86_400_000
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_ACTIONS: Final = (
    "Expiration", "NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload", "Transition",
    "NoncurrentVersionTransition",
)  # fmt: skip


class LifecycleDoor:
    """Handlers of a bucket's lifecycle configuration."""

    def __init__(self, files: BucketFiles) -> None:
        self._files = files

    async def get(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:GetLifecycleConfiguration")
        text = bucket.config.get(DOCUMENT)
        if text is None:
            raise S3Error("NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist")
        call.reply(200, rules_document(rules_of(text)), XML_LINE)

    async def put(self, call: Call) -> None:
        await self._files.bucket(call, "s3:PutLifecycleConfiguration")
        rules = parse_rules(documents.parse(await self._files.body(call)))
        await self._files.set(call, DOCUMENT, rules_text(rules))
        call.reply(200)

    async def delete(self, call: Call) -> None:
        await self._files.bucket(call, "s3:PutLifecycleConfiguration")
        await self._files.set(call, DOCUMENT, None)
        call.reply(204)


@lru_cache(maxsize=512)
def _known(text: str) -> list[LifecycleRule]:
    return rules_of(text)


def expiration_line(bucket: BucketView, key: str, size: int, tags: dict[str, str], created_at_ms: int) -> str:
    """x-amz-expiration of an object that a rule will expire; "" else."""
    text = bucket.config.get(DOCUMENT)
    due = expiry(_known(text), key, size, tags, created_at_ms) if text is not None else None
    if due is None:
        return ""
    return f'x-amz-expiration: expiry-date="{http_moment(due.at_ms)}", rule-id="{quote(due.rule)}"\r\n'


def abort_lines(bucket: BucketView, key: str, created_at_ms: int) -> str:
    """x-amz-abort-date and -rule-id of an upload that a rule will end; "" else."""
    text = bucket.config.get(DOCUMENT)
    due = upload_end(_known(text), key, created_at_ms) if text is not None else None
    if due is None:
        return ""
    return f"x-amz-abort-date: {http_moment(due.at_ms)}\r\nx-amz-abort-rule-id: {quote(due.rule)}\r\n"


# -- reading ----------------------------------------------------------------------------------------------------
def parse_rules(root: Node) -> list[LifecycleRule]:
    """Raises S3Error(MalformedXML, InvalidArgument, InvalidRequest)."""
    if root.name not in ("LifecycleConfiguration", "BucketLifecycleConfiguration"):
        raise S3Error("MalformedXML")
    rules = [_rule(node) for node in root.all("Rule")]
    if not 1 <= len(rules) <= RULES_MAX:
        raise S3Error("MalformedXML")
    names = [rule.name for rule in rules]
    if len(set(names)) != len(names):
        raise S3Error("InvalidArgument", "Rule ID must be unique. Found same ID for more than one rule")
    return rules


def _rule(node: Node) -> LifecycleRule:
    name = node.text("ID") or secrets.token_hex(12)
    if len(name) > _NAME_MAX:
        raise S3Error("InvalidArgument", f"ID length should not exceed allowed limit of {_NAME_MAX}")
    status = node.text("Status")
    place, legacy = node.one("Filter"), node.text("Prefix")
    if status not in ("Enabled", "Disabled") or (place is None) == (legacy is None):
        raise S3Error("MalformedXML")
    if not any(node.one(action) is not None for action in _ACTIONS):
        raise S3Error("InvalidRequest", "At least one action needs to be specified in a rule")
    rule = LifecycleRule(name, status == "Enabled", legacy or "", in_filter=place is not None)
    if place is not None:
        rule = _with_filter(rule, place)
    for action, change in _CHANGES.items():
        part = node.one(action)
        if part is not None:
            rule = change(rule, part)
    moves = [_move(part, "Days") for part in node.all("Transition")]
    noncurrent = [_move(part, "NoncurrentDays") for part in node.all("NoncurrentVersionTransition")]
    _check_times(rule, moves)
    if any(0 <= rule.noncurrent_days <= move.days for move in noncurrent):
        raise S3Error("InvalidArgument", "'NoncurrentDays' in the NoncurrentVersionExpiration action must be greater "
                      "than 'NoncurrentDays' in the NoncurrentVersionTransition action")  # fmt: skip
    for listed in (moves, noncurrent):
        if len({move.storage_class for move in listed}) < len(listed):
            raise S3Error("InvalidRequest", "'StorageClass' must be different for 'Transition' actions in one 'Rule'")
    return msgspec.structs.replace(rule, moves=moves, noncurrent_moves=noncurrent)


def _check_times(rule: LifecycleRule, moves: list[Move]) -> None:
    """A rule counts in days or names dates, not both; what expires has moved before. Raises S3Error."""
    by_days = [move.days >= 0 for move in moves] + [True] * (rule.expire_days >= 0) + [False] * bool(rule.expire_at_ms)
    if len(set(by_days)) > 1:
        raise S3Error("InvalidRequest", "Found mixed 'Date' and 'Days' based Expiration and Transition actions in "
                      "lifecycle rule")  # fmt: skip
    for move in moves:
        if 0 <= rule.expire_days <= move.days:
            raise S3Error("InvalidArgument", "'Days' in the Expiration action must be greater than 'Days' in the "
                          "Transition action")  # fmt: skip
        if 0 < rule.expire_at_ms <= move.at_ms:
            raise S3Error("InvalidArgument", "'Date' in the Expiration action must be later than 'Date' in the "
                          "Transition action")  # fmt: skip


def _with_filter(rule: LifecycleRule, node: Node) -> LifecycleRule:
    group = node.one("And")
    place = group if group is not None else node
    tags: dict[str, str] = {}
    for tag in place.all("Tag"):
        key, value = tag.text("Key"), tag.text("Value")
        if not key or value is None or key in tags:
            raise S3Error("InvalidArgument", "Tag keys must be given, once each")
        tags[key] = value
    above, below = _number(place, "ObjectSizeGreaterThan", 0), _number(place, "ObjectSizeLessThan", 0)
    prefix = place.text("Prefix")
    count = (prefix is not None) + len(tags) + (above >= 0) + (below >= 0)
    if (count > 1) != (group is not None) or (group is not None and len(node.children) > 1):
        raise S3Error("MalformedXML")
    if 0 <= below <= above:
        raise S3Error("InvalidRequest", "ObjectSizeGreaterThan must be less than ObjectSizeLessThan")
    return msgspec.structs.replace(rule, prefix=prefix or "", tags=tags, size_above=above, size_below=below)


def _with_expiration(rule: LifecycleRule, node: Node) -> LifecycleRule:
    days, date, marker = node.text("Days"), node.text("Date"), node.text("ExpiredObjectDeleteMarker")
    if sum(value is not None for value in (days, date, marker)) != 1:
        raise S3Error("MalformedXML")
    if marker is not None and rule.judges_size_or_tags:
        raise S3Error("InvalidRequest", "ExpiredObjectDeleteMarker cannot be specified with tags or sizes")
    return msgspec.structs.replace(
        rule, expire_days=_number(node, "Days", 1), expire_at_ms=_date(date) if date is not None else 0,
        expire_marker=(marker or "").lower() == "true",
    )  # fmt: skip


def _with_noncurrent(rule: LifecycleRule, node: Node) -> LifecycleRule:
    days = _number(node, "NoncurrentDays", 1)
    if days < 0:
        raise S3Error("MalformedXML")
    return msgspec.structs.replace(rule, noncurrent_days=days, noncurrent_kept=_newer_kept(node))


def _with_abort(rule: LifecycleRule, node: Node) -> LifecycleRule:
    days = _number(node, "DaysAfterInitiation", 1)
    if days < 0:
        raise S3Error("MalformedXML")
    if rule.judges_size_or_tags:
        raise S3Error("InvalidRequest", "AbortIncompleteMultipartUpload cannot be specified with tags or sizes")
    return msgspec.structs.replace(rule, abort_days=days)


_CHANGES: Final[dict[str, Callable[[LifecycleRule, Node], LifecycleRule]]] = {
    "Expiration": _with_expiration, "NoncurrentVersionExpiration": _with_noncurrent,
    "AbortIncompleteMultipartUpload": _with_abort,
}  # fmt: skip


def _move(node: Node, days_name: str) -> Move:
    storage_class, date = node.text("StorageClass"), node.text("Date")
    days = _number(node, days_name, 0)
    if storage_class not in _MOVED_TO or (days < 0) == (date is None):
        raise S3Error("MalformedXML")
    return Move(storage_class, days, _date(date) if date is not None else 0, _newer_kept(node))


def _newer_kept(node: Node) -> int:
    kept = _number(node, "NewerNoncurrentVersions", 1)
    if kept > NEWER_KEPT_MAX:
        raise S3Error("InvalidArgument", f"'NewerNoncurrentVersions' must be at most {NEWER_KEPT_MAX}")
    return max(0, kept)


def _number(node: Node, name: str, least: int) -> int:
    """-1: it is not there. Raises S3Error."""
    text = node.text(name)
    if text is None:
        return -1
    digits = text.strip().removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 15:
        raise S3Error("MalformedXML")
    value = int(text.strip())
    if value < least:
        raise S3Error("InvalidArgument", f"'{name}' must be at least {least}")
    return value


def _date(text: str) -> int:
    """A date with hyphens, as XML has it: Python alone would read 20300101 too."""
    try:
        at = datetime.fromisoformat(text.strip() if _DATE.match(text.strip()) else "")
    except ValueError:
        raise S3Error("MalformedXML") from None
    at_ms = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    if at_ms % _DAY_MS:
        raise S3Error("InvalidArgument", "'Date' must be at midnight GMT")
    return at_ms


# -- writing ----------------------------------------------------------------------------------------------------
def rules_document(rules: list[LifecycleRule]) -> bytes:
    return document("LifecycleConfiguration", "".join(f"<Rule>{_shown(rule)}</Rule>" for rule in rules))


def _shown(rule: LifecycleRule) -> str:
    inner = element("ID", rule.name)
    inner += f"<Filter>{_filter(rule)}</Filter>" if rule.in_filter else element("Prefix", rule.prefix)
    inner += element("Status", "Enabled" if rule.enabled else "Disabled")
    if rule.expire_days >= 0 or rule.expire_at_ms or rule.expire_marker:
        part = element("Days", _some(rule.expire_days))
        part += element("Date", moment(rule.expire_at_ms) if rule.expire_at_ms else None)
        inner += f"<Expiration>{part}{element('ExpiredObjectDeleteMarker', rule.expire_marker or None)}</Expiration>"
    if rule.noncurrent_days >= 0:
        part = element("NoncurrentDays", rule.noncurrent_days)
        part += element("NewerNoncurrentVersions", rule.noncurrent_kept or None)
        inner += f"<NoncurrentVersionExpiration>{part}</NoncurrentVersionExpiration>"
    if rule.abort_days >= 0:
        part = element("DaysAfterInitiation", rule.abort_days)
        inner += f"<AbortIncompleteMultipartUpload>{part}</AbortIncompleteMultipartUpload>"
    inner += "".join(f"<Transition>{_shown_move(move, 'Days')}</Transition>" for move in rule.moves)
    return inner + "".join(
        f"<NoncurrentVersionTransition>{_shown_move(move, 'NoncurrentDays')}</NoncurrentVersionTransition>"
        for move in rule.noncurrent_moves
    )


def _shown_move(move: Move, days_name: str) -> str:
    inner = element(days_name, _some(move.days)) + element("Date", moment(move.at_ms) if move.at_ms else None)
    return inner + element("StorageClass", move.storage_class) + element(
        "NewerNoncurrentVersions", move.newer_kept or None
    )


def _filter(rule: LifecycleRule) -> str:
    parts = [element("Prefix", rule.prefix)] if rule.prefix else []
    parts += [f"<Tag>{element('Key', key)}{element('Value', value)}</Tag>" for key, value in rule.tags.items()]
    parts += [element("ObjectSizeGreaterThan", rule.size_above)] if rule.size_above >= 0 else []
    parts += [element("ObjectSizeLessThan", rule.size_below)] if rule.size_below >= 0 else []
    if not parts:
        return element("Prefix", "")
    return parts[0] if len(parts) == 1 else f"<And>{''.join(parts)}</And>"


def _some(value: int) -> int | None:
    return value if value >= 0 else None
