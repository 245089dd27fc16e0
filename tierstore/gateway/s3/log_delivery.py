"""Bucket logging: its handlers, and how a batch of lines becomes an object of the target bucket.

Invariants: a rule is set only where the target would take its logs now; whether it does is judged again, on the
target's view of that moment, for every object that is delivered; what is delivered is encrypted as the target's default
wants it, and is its owner's.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime
from typing import Final

import msgspec

from tierstore.clock import Clock
from tierstore.errors import NotFound
from tierstore.gateway.s3 import checksums, documents, grants, rights
from tierstore.gateway.s3.access_log import AccessLog, Batch, Refused
from tierstore.gateway.s3.acl import Acls, grant_of, ownership_of
from tierstore.gateway.s3.bucket_files import BucketFiles
from tierstore.gateway.s3.buckets import LOCATION, REGION
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.documents import Node
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.log_lines import line_of
from tierstore.gateway.s3.log_rules import (
    DOCUMENT,
    LogRule,
    check_permission,
    logging_document,
    may_deliver,
    parse_logging,
)
from tierstore.gateway.s3.object_meta import ACL, OWNER
from tierstore.gateway.s3.request import Call
from tierstore.gateway.s3.sse import cover_of
from tierstore.gateway.s3.sse_keys import Vault, default_of
from tierstore.sdk.store import Store
from tierstore.wire.lock import DOCUMENT as LOCK
from tierstore.wire.lock import LockRule
from tierstore.wire.names import BucketView, ObjectMeta

_DAY_SECONDS: Final = 86_400


class BucketLogging:
    """Handlers of a bucket's logging."""

    def __init__(self, files: BucketFiles, catalog: S3Catalog, acls: Acls) -> None:
        self._files = files
        self._catalog = catalog
        self._acls = acls

    async def get(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:GetBucketLogging")
        call.reply(200, logging_document(LogRule.of(bucket)), XML_LINE)

    async def put(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:PutBucketLogging")
        rule, nodes = parse_logging(documents.parse(await self._files.body(call), "BucketLoggingStatus"))
        if rule is not None:
            rule = msgspec.structs.replace(rule, grants=await self._grants(nodes))
            await self._check_target(bucket, rule)
        await self._files.set(call, DOCUMENT, rule.text if rule is not None else None)
        call.reply(200)

    async def _grants(self, nodes: list[Node]) -> tuple[grants.Grant, ...]:
        found = [grant_of(node) for node in nodes]
        for grant in found:
            check_permission(grant.permission)
        return tuple(await self._acls.checked(found))

    async def _check_target(self, bucket: BucketView, rule: LogRule) -> None:
        """Raises S3Error(InvalidTargetBucketForLogging, InvalidArgument) for a target that takes no logs."""
        try:
            target = await self._catalog.bucket(rule.target, fresh=True)
        except NotFound:
            raise _refusal("The target bucket for logging does not exist", rule) from None
        if target.owner != bucket.owner:
            raise _refusal("The owner for the bucket to be logged and the target bucket must be the same.", rule)
        if rule.grants and ownership_of(target) == "BucketOwnerEnforced":
            raise S3Error("InvalidArgument", "Target grants are not supported where its owner owns all.")
        if why := _why_unfit(target):
            raise _refusal(why, rule)
        if not may_deliver(bucket, target, rule.prefix + "probe"):
            raise _refusal("You must give the log-delivery group WRITE and READ_ACP permissions to the target bucket, "
                           "or let logging.s3.amazonaws.com put objects by its policy", rule)  # fmt: skip


def _why_unfit(target: BucketView) -> str:
    """"" for a bucket that may hold logs."""
    lock = target.config.get(LOCK)
    if lock and msgspec.json.decode(lock, type=LockRule).mode:
        return "The target bucket must not have a default retention"
    if rights.PAYER in target.config:
        return "The target bucket must not be one whose requesters pay"
    return ""


def _refusal(message: str, rule: LogRule) -> S3Error:
    return S3Error("InvalidTargetBucketForLogging", message, TargetBucket=rule.target[:80])


class LogDelivery:
    """Notes what was answered, and writes batches. One per gateway process."""

    def __init__(
        self, store: Store, catalog: S3Catalog, vault: Vault, clock: Clock, *, every_seconds: float, is_paused: bool
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._vault = vault
        self._clock = clock
        self.log = AccessLog(self._deliver, clock, every_seconds=every_seconds, is_paused=is_paused)

    def note(self, call: Call) -> None:
        """A call has ended. Costs one look at a dict where its bucket logs nothing, or is not known here."""
        bucket = self._catalog.held(call.bucket)
        if bucket is None or DOCUMENT not in bucket.config:
            return
        rule = LogRule.of(bucket)
        if rule is not None and call.answer.status:
            for of in (None, *call.answer.deleted):
                line = line_of(call, bucket, ended_at_ms=self._clock.now_ms(), of=of)
                self.log.add(bucket.name, rule, line, at_ms=call.at_ms)

    async def _deliver(self, batch: Batch) -> None:
        rule = batch.name.rule
        try:
            source = await self._catalog.bucket(batch.name.source, fresh=True)
            target = await self._catalog.bucket(rule.target, fresh=True)
        except NotFound as error:
            raise Refused("one of the buckets is gone") from error
        key = key_of(source, rule, now_ms=self._clock.now_ms(), day=batch.name.day)
        if target.owner != source.owner or _why_unfit(target) or not may_deliver(source, target, key):
            raise Refused("it does not let the delivery of logs write")
        try:
            await self._write(target, key, rule, b"".join(batch.lines))
        except S3Error as error:        # a master key that is not here
            raise Refused(error.message) from error

    async def _write(self, target: BucketView, key: str, rule: LogRule, body: bytes) -> None:
        cover = cover_of(self._vault, default_of(target))
        md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
        extra = {OWNER: target.owner.encode()}
        if rule.grants and rights.has_acls(target):
            own = grants.Grant(target.owner, "FULL_CONTROL")
            extra[ACL] = grants.stored([own, *rule.grants]).encode()
        sums = {"crc64nvme": checksums.encode(checksums.digests({"crc64nvme"}, body)["crc64nvme"])}
        meta = cover.meta(ObjectMeta(content_type="text/plain", extra=extra, checksums=sums))
        walk = self._store.put_walk(target.name, key, size=cover.stored_bytes(len(body)))
        try:
            sink = cover.target(walk, len(body))
            sink.push(memoryview(body))
            await sink.has_room()
            await walk.finish(meta=meta, etag=cover.stored_etag(cover.etag(md5), len(body)))
        finally:
            await walk.abort()


def key_of(source: BucketView, rule: LogRule, *, now_ms: int, day: int) -> str:
    """The key of one delivered object: AWS's two forms. day: of the lines, since 1970."""
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    unique = secrets.token_hex(8).upper()
    if not rule.by_date:
        return f"{rule.prefix}{now:%Y-%m-%d-%H-%M-%S}-{unique}"
    shown = now
    if rule.by_date == "EventTime":
        shown = datetime.fromtimestamp(day * _DAY_SECONDS, UTC)
    region = source.config.get(LOCATION, REGION)
    return f"{rule.prefix}{source.owner}/{region}/{source.name}/{shown:%Y/%m/%d}/{shown:%Y-%m-%d-%H-%M-%S}-{unique}"
