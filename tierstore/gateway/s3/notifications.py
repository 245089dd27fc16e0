"""Notification configuration: AWS's XML to rules and back. Metadata's notify duty delivers."""

from __future__ import annotations

import secrets
from typing import Final

from tierstore.gateway.s3 import documents
from tierstore.gateway.s3.bucket_files import BucketFiles
from tierstore.gateway.s3.documents import Node, document, element
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.request import Call
from tierstore.policy.notify import ARN, DOCUMENT, EVENTS, NotifyRule, rules_of, rules_text

RULES_MAX: Final = 100
_KINDS: Final = ("Topic", "Queue", "CloudFunction")


class Notifications:
    """Handlers of a bucket's notification configuration."""

    def __init__(self, files: BucketFiles) -> None:
        self._files = files

    async def get(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:GetBucketNotification")
        text = bucket.config.get(DOCUMENT)
        inner = "".join(_shown(rule) for rule in rules_of(text)) if text else ""
        call.reply(200, document("NotificationConfiguration", inner), XML_LINE)

    async def put(self, call: Call) -> None:
        await self._files.bucket(call, "s3:PutBucketNotification")
        rules = parse_rules(documents.parse(await self._files.body(call), "NotificationConfiguration"))
        await self._files.set(call, DOCUMENT, rules_text(rules) if rules else None)
        call.reply(200)


def parse_rules(root: Node) -> list[NotifyRule]:
    """Raises S3Error(InvalidArgument, MalformedXML)."""
    rules = [_rule(node, kind) for kind in _KINDS for node in root.all(f"{kind}Configuration")]
    if len(rules) > RULES_MAX:
        raise S3Error("MalformedXML")
    if len({rule.name for rule in rules}) != len(rules):
        raise S3Error("InvalidArgument", "Configuration Id must be unique.")
    return rules


def _rule(node: Node, kind: str) -> NotifyRule:
    arn, events = node.text(kind) or "", [child.value for child in node.all("Event")]
    if not arn.startswith(ARN) or not arn[len(ARN) :]:
        raise S3Error("InvalidArgument", f"The ARN is not well formed: it names a webhook, {ARN}NAME")
    if not events or not EVENTS.issuperset(events):
        raise S3Error("InvalidArgument", "The event is not supported for notifications")
    bounds = {"prefix": "", "suffix": ""}
    place = node.one("Filter")
    key = place.one("S3Key") if place is not None else None
    for rule in key.all("FilterRule") if key is not None else ():
        name = (rule.text("Name") or "").lower()
        if name not in bounds or bounds[name]:
            raise S3Error("InvalidArgument", "filter rule name must be either prefix or suffix, each once")
        bounds[name] = rule.text("Value") or ""
    return NotifyRule(node.text("Id") or secrets.token_hex(12), kind, arn, events, bounds["prefix"], bounds["suffix"])


def _shown(rule: NotifyRule) -> str:
    inner = element("Id", rule.name) + element(rule.kind, rule.arn)
    inner += "".join(element("Event", event) for event in rule.events)
    bounds = "".join(
        f"<FilterRule>{element('Name', name)}{element('Value', value)}</FilterRule>"
        for name, value in (("prefix", rule.prefix), ("suffix", rule.suffix)) if value
    )  # fmt: skip
    if bounds:
        inner += f"<Filter><S3Key>{bounds}</S3Key></Filter>"
    return f"<{rule.kind}Configuration>{inner}</{rule.kind}Configuration>"
