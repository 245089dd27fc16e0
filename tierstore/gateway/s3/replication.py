"""Replication rules of a bucket in S3's form: the same rules as GET and PUT /v1/buckets/{bucket}/replication.

A rule's destination is the ARN of the same bucket at another site: arn:aws:s3:SITE::BUCKET (the region's place holds
the site's name; it may be left out while there is exactly one other site). What S3 has no word for (mode, bodies,
on_failure) keeps the value that the rule for that prefix and site had, else the native default. What native rules have
no word for (ID, priority) stands in a document of the bucket.
"""

from __future__ import annotations

from typing import Final

from tierstore.errors import AccessDenied, RequestError
from tierstore.gateway.s3 import documents, rights
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.documents import document, element
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.replication_forms import named, packed, parse_rules, rules_xml
from tierstore.gateway.s3.request import Call
from tierstore.gateway.s3.uploads import BodyReader
from tierstore.transport.metadata_client import MetadataClient
from tierstore.wire.names import BucketView
from tierstore.wire.sites import BucketRule, RulesAnswer, RulesAsk

RULES_PATH: Final = b"/v1/internal/replication"
#: Document of the bucket: what clients call its rules (replication_forms).
NAMES: Final = "s3.replication-names"
#: GET answers a role because clients expect one; there is none to take on here.
ROLE: Final = "arn:aws:iam:::role/tierstore"


class Replications:
    """Handlers of the three operations."""

    def __init__(self, catalog: S3Catalog, client: MetadataClient, reader: BodyReader) -> None:
        self._catalog = catalog
        self._client = client
        self._reader = reader

    async def get(self, call: Call) -> None:
        bucket = await self._allowed(call, "s3:GetReplicationConfiguration")
        rules = (await self._ask(call, None)).rules
        if not rules:
            raise S3Error("ReplicationConfigurationNotFoundError", "The replication configuration was not found")
        shown = rules_xml(call.bucket, rules, named(bucket.config.get(NAMES, "")))
        call.reply(200, document("ReplicationConfiguration", element("Role", ROLE) + shown), XML_LINE)

    async def put(self, call: Call) -> None:
        """Replaces all rules; what exists is filled in for new ones."""
        await self._allowed(call, "s3:PutReplicationConfiguration")
        body = await self._reader.small(call, documents.BODY_BYTES_MAX)
        before = await self._ask(call, None)
        wanted = parse_rules(documents.parse(body, "ReplicationConfiguration"), call.bucket, before.sites)
        known = {(rule.prefix, rule.target): rule for rule in before.rules}
        await self._ask(call, [
            known.get((rule.prefix, rule.target)) or BucketRule(rule.prefix, rule.target) for rule in wanted
        ])  # fmt: skip
        await self._catalog.configure(call.bucket, call.principal.user, documents={NAMES: packed(wanted)})
        call.reply(200)

    async def delete(self, call: Call) -> None:
        await self._allowed(call, "s3:PutReplicationConfiguration")
        await self._ask(call, [])
        await self._catalog.configure(call.bucket, call.principal.user, documents={NAMES: None})
        call.reply(204)

    async def _allowed(self, call: Call, action: str) -> BucketView:
        bucket = await self._catalog.bucket(call.bucket, fresh=True)
        rights.require(call, action, bucket)
        return bucket

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
