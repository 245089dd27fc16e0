"""Notifications: what the feed says of objects goes to webhooks, at least once, in the feed's order.

The feed is the durable intent: it is written in the commit, so nothing that was acknowledged is forgotten, also not by
a crash. Each webhook has a mark in the catalog up to which it was told; the mark moves after the webhook answered 2xx.
A webhook that is away is tried again at every round; what is older than the feed keeps (7 days) is lost and counted.

Bounds: BATCH changes a webhook and round, one message of at most BATCH records, POST_SECONDS for its answer.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from metadata.catalog import buckets, feed, leases, objects, schema
from metadata.catalog.buckets import Bucket
from metadata.catalog.database import Database
from metadata.catalog.feed import Change
from metadata.catalog.objects import ObjectRow
from metadata.catalog.queries import Connection
from metadata.services.cluster.duties import PROMOTER
from tierstore.names import version_text
from tierstore.policy.notify import DELETE, DOCUMENT, MARKER, PUT, NotifyRule, created, rules_of
from tierstore.wire import decode
from tierstore.wire.names import ObjectMeta
from tierstore.wire.s3 import shown_etag

BATCH: Final = 200
POST_SECONDS: Final = 5.0
_MARK: Final = "notified:"
_EVENTS: Final = {schema.CHANGE_PUT: PUT, schema.CHANGE_DELETE: DELETE, schema.CHANGE_MARKER: MARKER}

#: (url, JSON) -> whether it was taken. Must not raise.
Post = Callable[[str, bytes], Awaitable[bool]]


class Notify:
    """One per process. webhooks: name -> URL, as configured."""

    def __init__(self, database: Database, webhooks: Mapping[str, str], post: Post, *, region: str) -> None:
        self._database = database
        self._webhooks = webhooks
        self._post = post
        self._region = region
        self.delivered = 0
        self.lost = 0
        self.behind: dict[str, int] = {}

    @property
    def progress(self) -> str:
        """For people."""
        late = ", ".join(f"{name} is {count} changes behind" for name, count in self.behind.items() if count)
        return f"{self.delivered} events delivered, {self.lost} changes lost; {late or 'nobody waits'}"

    async def step(self, epoch: int) -> tuple[int, bool]:
        """(events delivered, more waits)."""
        done, more = 0, False
        for name, url in self._webhooks.items():
            count, has_more = await self._serve(name, url, epoch)
            done, more = done + count, more or has_more
        self.delivered += done
        return done, more

    async def _serve(self, name: str, url: str, epoch: int) -> tuple[int, bool]:
        after, changes, records, head, lost = await self._database.read(lambda c: self._due(c, name))
        self.behind[name] = head - max(after, 0)
        if not changes and after >= 0:
            return 0, False
        if records and not await self._post(url, json.dumps({"Records": records}).encode()):
            return 0, False
        # one without a mark has no rule that was made since this code is there: it begins at the head
        last = changes[-1].sequence if changes else head

        def advance(connection: Connection) -> None:
            leases.require_epoch(connection, PROMOTER, epoch)
            leases.set_setting(connection, _MARK + name, str(last))

        await self._database.write(advance)
        self.lost += lost
        self.behind[name] = head - last
        return len(records), len(changes) == BATCH

    def _due(self, connection: Connection, name: str) -> tuple[int, list[Change], list[dict[str, Any]], int, int]:
        """(mark, next changes, what the webhook hears of them, head of the feed, changes that the feed has forgotten
        unheard). mark -1: none yet."""
        head = feed.head(connection)[0]
        text = leases.setting(connection, _MARK + name)
        if not text:
            return -1, [], [], head, 0
        after, oldest = int(text), feed.oldest(connection)
        lost = max(0, oldest - 1 - after) if oldest else 0
        after += lost
        changes = feed.read(connection, after, BATCH)
        if not changes:
            return after, [], [], head, lost
        known = {bucket.id: bucket for bucket in buckets.everything(connection) if DOCUMENT in bucket.config}
        rules = {number: rules_of(bucket.config[DOCUMENT]) for number, bucket in known.items()}
        records = []
        for change in changes:
            event = _EVENTS.get(change.kind)
            mine = [r for r in rules.get(change.bucket_id, ()) if r.webhook == name and r.names(change.key)]
            if event is None or not mine:
                continue
            bucket = known[change.bucket_id]
            row = _row_of(connection, bucket, change) if event == PUT else None
            if row is not None and row.meta is not None:
                event = created(decode(row.meta, ObjectMeta))
            records += [self._record(bucket, rule, change, event, row) for rule in mine if rule.asks(event)]
        return after, changes, records, head, lost

    def _record(
        self, bucket: Bucket, rule: NotifyRule, change: Change, event: str, row: ObjectRow | None
    ) -> dict[str, Any]:
        """One entry of AWS's event message, version 2.1. sequencer: rises with every change of the catalog."""
        about: dict[str, Any] = {"key": change.key, "sequencer": f"{change.sequence:016X}"}
        if bucket.versioning:
            about["versionId"] = version_text(change.version)
        if row is not None:
            about["eTag"], about["size"] = shown_etag(row.etag, row.size)
        at = datetime.fromtimestamp(change.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
        return {
            "eventVersion": "2.1", "eventSource": "tierstore:s3", "awsRegion": self._region,
            "eventTime": at.replace("+00:00", "Z"), "eventName": event.removeprefix("s3:"),
            "s3": {
                "s3SchemaVersion": "1.0", "configurationId": rule.name, "object": about,
                "bucket": {"name": bucket.name, "ownerIdentity": {"principalId": bucket.owner},
                           "arn": f"arn:aws:s3:::{bucket.name}"},
            },
        }  # fmt: skip


def _row_of(connection: Connection, bucket: Bucket, change: Change) -> ObjectRow | None:
    """The version that a change made; None when it has gone since: then it is told as put, without its size."""
    row = objects.latest(connection, bucket.id, change.key)
    if row is None or row.version != change.version:
        row = objects.version(connection, bucket.id, change.key, change.version)
    return row


def begin(connection: Connection, rules: str | None) -> None:
    """In the transaction that gives a bucket these rules: webhooks that nobody has named so far hear of what comes
    after it, however late the duty looks."""
    head = feed.head(connection)[0]
    names = {rule.webhook for rule in rules_of(rules)} if rules else set()
    marks: list[dict[str, object]] = [{"name": _MARK + name, "value": str(head)} for name in sorted(names)]
    leases.insert_new(connection, schema.settings, marks)
