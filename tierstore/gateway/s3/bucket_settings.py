"""Configurations of a bucket that stand in documents: tags, default encryption, CORS."""

from __future__ import annotations

from typing import Final

import msgspec

from tierstore.gateway.s3 import documents, rights
from tierstore.gateway.s3.bucket_files import BucketFiles
from tierstore.gateway.s3.cors import CORS, parse_rules
from tierstore.gateway.s3.documents import document, element
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.request import Call
from tierstore.gateway.s3.sse_keys import BLOCKED, BLOCKS_CUSTOMER, DEFAULT, KMS, S3, default_of
from tierstore.gateway.s3.tagging import parse_tagging

TAGS: Final = "s3.tagging"


class BucketSettings:
    """Handlers of a bucket's configurations."""

    def __init__(self, files: BucketFiles) -> None:
        self._files = files

    async def get_tags(self, call: Call) -> None:
        await self._files.show(call, "s3:GetBucketTagging", TAGS, "NoSuchTagSet")

    async def put_tags(self, call: Call) -> None:
        await self._files.bucket(call, "s3:PutBucketTagging")
        body = await self._files.body(call)
        parse_tagging(body, most=50)
        await self._files.set(call, TAGS, body.decode())
        call.reply(204)

    async def delete_tags(self, call: Call) -> None:
        await self._files.bucket(call, "s3:PutBucketTagging")
        await self._files.set(call, TAGS, None)
        call.reply(204)

    async def get_payer(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:GetBucketRequestPayment")
        payer = bucket.config.get(rights.PAYER, "BucketOwner")
        call.reply(200, document("RequestPaymentConfiguration", element("Payer", payer)), XML_LINE)

    async def put_payer(self, call: Call) -> None:
        """Who pays. Nobody is charged here; what it changes is that others must say they would pay."""
        await self._files.bucket(call, "s3:PutBucketRequestPayment")
        payer = documents.parse(await self._files.body(call), "RequestPaymentConfiguration").text("Payer")
        if payer not in ("BucketOwner", "Requester"):
            raise S3Error("MalformedXML")
        await self._files.set(call, rights.PAYER, payer if payer == "Requester" else None)
        call.reply(200)

    async def get_encryption(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:GetEncryptionConfiguration")
        wish, blocked = default_of(bucket), bucket.config.get(BLOCKED)
        if not wish.kind and blocked is None:
            raise S3Error("ServerSideEncryptionConfigurationNotFoundError",
                          "The server side encryption configuration was not found")  # fmt: skip
        rule = ""
        if wish.kind:
            inner = element("SSEAlgorithm", wish.kind) + element("KMSMasterKeyID", wish.key_id or None)
            rule = f"<ApplyServerSideEncryptionByDefault>{inner}</ApplyServerSideEncryptionByDefault>"
        rule += element("BucketKeyEnabled", False)
        if blocked is not None:
            rule += f"<BlockedEncryptionTypes>{element('EncryptionType', blocked)}</BlockedEncryptionTypes>"
        call.reply(200, document("ServerSideEncryptionConfiguration", f"<Rule>{rule}</Rule>"), XML_LINE)

    async def put_encryption(self, call: Call) -> None:
        """A default, types that are blocked, or both."""
        await self._files.bucket(call, "s3:PutEncryptionConfiguration")
        root = documents.parse(await self._files.body(call), "ServerSideEncryptionConfiguration")
        rules = root.all("Rule")
        rule = rules[0] if len(rules) == 1 else None
        default, blocked = (rule.one("ApplyServerSideEncryptionByDefault"), _blocked(rule)) if rule else (None, None)
        if default is None and blocked is None:
            raise S3Error("MalformedXML")
        text = _default_text(default) if default is not None else None
        await self._files.set_all(call, {DEFAULT: text, BLOCKED: blocked})
        call.reply(200)

    async def delete_encryption(self, call: Call) -> None:
        await self._files.bucket(call, "s3:PutEncryptionConfiguration")
        await self._files.set_all(call, {DEFAULT: None, BLOCKED: None})
        call.reply(204)

    async def get_cors(self, call: Call) -> None:
        await self._files.show(call, "s3:GetBucketCORS", CORS, "NoSuchCORSConfiguration")

    async def put_cors(self, call: Call) -> None:
        await self._files.bucket(call, "s3:PutBucketCORS")
        rules = parse_rules(documents.parse(await self._files.body(call), "CORSConfiguration"))
        await self._files.set(call, CORS, _cors_text(rules))
        call.reply(200)

    async def delete_cors(self, call: Call) -> None:
        await self._files.bucket(call, "s3:PutBucketCORS")
        await self._files.set(call, CORS, None)
        call.reply(204)


def _default_text(node: documents.Node) -> str:
    """The default encryption as it is kept. Raises S3Error."""
    kind, key_id = node.text("SSEAlgorithm"), node.text("KMSMasterKeyID")
    if kind not in (S3, KMS):
        raise S3Error("MalformedXML")
    if key_id and kind == S3:
        raise S3Error("InvalidArgument", "a KMSMasterKeyID is not applicable if the default sse algorithm is not "
                      "aws:kms or aws:kms:dsse", ArgumentName="ApplyServerSideEncryptionByDefault")  # fmt: skip
    return msgspec.json.encode((kind, key_id or "")).decode()


def _blocked(rule: documents.Node) -> str | None:
    """What the rule blocks, None where it says nothing of that. Raises S3Error(MalformedXML)."""
    node = rule.one("BlockedEncryptionTypes")
    if node is None:
        return None
    types = [each.value.strip() for each in node.all("EncryptionType")]
    if len(types) != 1 or types[0] not in (BLOCKS_CUSTOMER, "NONE"):
        raise S3Error("MalformedXML")
    return types[0]


def _cors_text(rules: list[dict[str, list[str]]]) -> str:
    listed = "".join(
        f"<CORSRule>{''.join(element(name, value) for name, values in rule.items() for value in values)}</CORSRule>"
        for rule in rules
    )
    return document("CORSConfiguration", listed).decode()
