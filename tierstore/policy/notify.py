"""Notification rules of a bucket: which events of which keys go to which webhook. Pure.

A webhook is named by its ARN, `arn:tierstore:sns:::NAME`; the operator configures what address that is (`[[webhooks]]`
of the metadata service), so that no address ever comes from a request.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tierstore.wire.names import ObjectMeta
from tierstore.wire.s3 import BY_COPY, MADE_BY, PARTS

#: Document of a bucket: JSON of its rules.
DOCUMENT: Final = "s3.notification"
ARN: Final = "arn:tierstore:sns:::"
PUT: Final = "s3:ObjectCreated:Put"
POST: Final = "s3:ObjectCreated:Post"
COPY: Final = "s3:ObjectCreated:Copy"
COMPLETE: Final = "s3:ObjectCreated:CompleteMultipartUpload"
DELETE: Final = "s3:ObjectRemoved:Delete"
MARKER: Final = "s3:ObjectRemoved:DeleteMarkerCreated"
#: What may be asked for.
EVENTS: Final = frozenset({
    "s3:ObjectCreated:*", PUT, POST, COPY, COMPLETE, "s3:ObjectRemoved:*", DELETE, MARKER,
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

    def asks(self, event: str) -> bool:
        return event in self.events or event[: event.rindex(":")] + ":*" in self.events

    def names(self, key: str) -> bool:
        return key.startswith(self.prefix) and key.endswith(self.suffix)


def created(meta: ObjectMeta | None) -> str:
    """The event of an object that came to be with this metadata."""
    if meta is None:
        return PUT
    by = meta.extra.get(MADE_BY)
    if by is not None:
        return COPY if by == BY_COPY else POST
    return COMPLETE if PARTS in meta.extra else PUT


def rules_of(text: str) -> list[NotifyRule]:
    return msgspec.json.decode(text, type=list[NotifyRule])


def rules_text(rules: list[NotifyRule]) -> str:
    return msgspec.json.encode(rules).decode()
