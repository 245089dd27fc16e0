"""Notification rules of a bucket: which events of which keys go to which webhook. Pure.

A webhook is named by its ARN, `arn:tierstore:sns:::NAME`; the operator configures what address that is (`[[webhooks]]`
of the metadata service), so that no address ever comes from a request.
"""

from __future__ import annotations

from typing import Final

import msgspec

#: Document of a bucket: JSON of its rules.
DOCUMENT: Final = "s3.notification"
ARN: Final = "arn:tierstore:sns:::"
PUT: Final = "s3:ObjectCreated:Put"
DELETE: Final = "s3:ObjectRemoved:Delete"
MARKER: Final = "s3:ObjectRemoved:DeleteMarkerCreated"
#: What may be asked for; events of other names happen here under the first three.
EVENTS: Final = frozenset({
    "s3:ObjectCreated:*", PUT, "s3:ObjectCreated:Post", "s3:ObjectCreated:Copy",
    "s3:ObjectCreated:CompleteMultipartUpload", "s3:ObjectRemoved:*", DELETE, MARKER,
})  # fmt: skip


class NotifyRule(msgspec.Struct, frozen=True):
    """kind: the element it came in (Topic, Queue, CloudFunction), for showing it again."""

    name: str
    kind: str
    arn: str
    events: list[str]
    prefix: str = ""
    suffix: str = ""

    @property
    def webhook(self) -> str:
        return self.arn.rpartition(":")[2]

    def fits(self, event: str, key: str) -> bool:
        group = event.rpartition(":")[0]
        is_asked = any(
            asked in (event, f"{group}:*") or (event == PUT and asked.startswith("s3:ObjectCreated:"))
            for asked in self.events
        )
        return is_asked and key.startswith(self.prefix) and key.endswith(self.suffix)


def rules_of(text: str) -> list[NotifyRule]:
    return msgspec.json.decode(text, type=list[NotifyRule])


def rules_text(rules: list[NotifyRule]) -> str:
    return msgspec.json.encode(rules).decode()
