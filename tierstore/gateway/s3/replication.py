"""Replication rules of a bucket in S3's form: the same rules as GET and PUT /v1/buckets/{bucket}/replication.

A rule's destination is the ARN of the same bucket at another site: arn:aws:s3:SITE::BUCKET (the region's place holds
the site's name; it may be left out while there is exactly one other site). What S3 has no word for (mode, bodies,
on_failure) keeps the value that the rule for that prefix and site had, else the native default.
"""

from __future__ import annotations

from typing import Final

from tierstore.errors import AccessDenied, RequestError
from tierstore.gateway.s3 import documents, rights
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.documents import Node, document, element
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.request import Call
from tierstore.gateway.s3.uploads import BodyReader
from tierstore.transport.metadata_client import MetadataClient
from tierstore.wire.sites import BucketRule, RulesAnswer, RulesAsk

RULES_PATH: Final = b"/v1/internal/replication"
#: GET answers a role because clients expect one; there is none to take on here.
ROLE: Final = "arn:aws:iam:::role/tierstore"
_ARN_PARTS: Final = 6


class Replications:
    """Handlers of the three operations."""

    def __init__(self, catalog: S3Catalog, client: MetadataClient, reader: BodyReader) -> None:
        self._catalog = catalog
        self._client = client
        self._reader = reader

    async def get(self, call: Call) -> None:
        await self._allowed(call, "s3:GetReplicationConfiguration")
        rules = (await self._ask(call, None)).rules
        if not rules:
            raise S3Error("ReplicationConfigurationNotFoundError", "The replication configuration was not found")
        shown = "".join(_rule_xml(call.bucket, place, rule) for place, rule in enumerate(rules))
        call.reply(200, document("ReplicationConfiguration", element("Role", ROLE) + shown), XML_LINE)

    async def put(self, call: Call) -> None:
        """Replaces all rules; what exists is filled in for new ones."""
        await self._allowed(call, "s3:PutReplicationConfiguration")
        body = await self._reader.small(call, documents.BODY_BYTES_MAX)
        nodes = documents.parse(body, "ReplicationConfiguration").all("Rule")
        if not nodes:
            raise S3Error("MalformedXML")
        before = await self._ask(call, None)
        known = {(rule.prefix, rule.target): rule for rule in before.rules}
        wanted = []
        for node in nodes:
            prefix, target = _prefix(node), _target(node, call.bucket, before.sites)
            wanted.append(known.get((prefix, target)) or BucketRule(prefix, target))
        await self._ask(call, wanted)
        call.reply(200)

    async def delete(self, call: Call) -> None:
        await self._allowed(call, "s3:PutReplicationConfiguration")
        await self._ask(call, [])
        call.reply(204)

    async def _allowed(self, call: Call, action: str) -> None:
        rights.require(call, action, await self._catalog.bucket(call.bucket, fresh=True))

    async def _ask(self, call: Call, rules: list[BucketRule] | None) -> RulesAnswer:
        """Shown to whom this door lets see them; set only by who may configure the bucket natively too, for it makes
        bytes leave the site."""
        access = call.principal.access if rules is not None else ""
        try:
            return await self._client.ask(RULES_PATH, RulesAsk(call.bucket, rules), RulesAnswer, access=access)
        except AccessDenied:
            raise
        except RequestError as error:
            raise S3Error("InvalidRequest", error.detail) from error


def _rule_xml(bucket: str, place: int, rule: BucketRule) -> str:
    destination = element("Bucket", f"arn:aws:s3:{rule.target}::{bucket}")
    return (
        f"<Rule>{element('ID', f'rule-{place + 1}')}{element('Priority', place + 1)}{element('Status', 'Enabled')}"
        f"<Filter>{element('Prefix', rule.prefix)}</Filter><Destination>{destination}</Destination>"
        "<DeleteMarkerReplication><Status>Enabled</Status></DeleteMarkerReplication></Rule>"
    )


def _prefix(node: Node) -> str:
    """Of a rule. Raises S3Error for what such a rule cannot do here: it must not be taken and then not be done."""
    if node.text("Status") != "Enabled":
        raise S3Error("NotImplemented", "A rule is enabled, or it is left out.")
    kept = node.one("DeleteMarkerReplication")
    if kept is not None and kept.text("Status") == "Disabled":
        raise S3Error("NotImplemented", "Deletes are always replicated.")
    chosen = node.one("Filter")
    if chosen is None:
        return node.text("Prefix") or ""
    if chosen.one("Tag") is not None or chosen.one("And") is not None:
        raise S3Error("NotImplemented", "Rules choose objects by prefix, not by tags.")
    return chosen.text("Prefix") or ""


def _target(node: Node, bucket: str, sites: list[str]) -> str:
    destination = node.one("Destination")
    arn = (destination.text("Bucket") if destination is not None else None) or ""
    parts = arn.split(":")
    if len(parts) != _ARN_PARTS or parts[:3] != ["arn", "aws", "s3"]:
        raise S3Error("InvalidArgument", "The destination is arn:aws:s3:SITE::BUCKET.")
    if parts[5] != bucket:
        raise S3Error("InvalidArgument", "A bucket is replicated into the bucket of the same name at another site.")
    if not parts[3] and len(sites) != 1:
        raise S3Error("InvalidArgument", f"Name the site, arn:aws:s3:SITE::{bucket}: {', '.join(sites) or 'none'}.")
    return parts[3] or sites[0]
