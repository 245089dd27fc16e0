"""Who may do what in a bucket, as its owner sets it: policy, public access block, ownership, canned ACL."""

from __future__ import annotations

from typing import Final

import msgspec

from tierstore.auth.policy_language import Policy, PolicyError
from tierstore.gateway.s3 import documents, grants, rights
from tierstore.gateway.s3.acl import Acls, acl_document
from tierstore.gateway.s3.bucket_files import BucketFiles
from tierstore.gateway.s3.documents import document, element
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.policy_review import review
from tierstore.gateway.s3.request import Call
from tierstore.wire.s3 import POLICY, POLICY_BINDS_OWNER

_JSON_LINE: Final = b"content-type: application/json\r\n"
_SWITCHES: Final = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")


class BucketRights:
    """Handlers of a bucket's rights."""

    def __init__(self, files: BucketFiles, acls: Acls) -> None:
        self._files = files
        self._acls = acls

    async def get_policy(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:GetBucketPolicy")
        text = bucket.config.get(POLICY)
        if text is None:
            raise S3Error("NoSuchBucketPolicy", "The bucket policy does not exist")
        call.reply(200, text.encode(), _JSON_LINE)

    async def put_policy(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:PutBucketPolicy")
        try:
            text = (await self._files.body(call)).decode()
            policy = Policy.of(text)
            review(policy, call.bucket)
        except (PolicyError, UnicodeDecodeError) as error:
            raise S3Error("MalformedPolicy", str(error)) from None
        if policy.is_public and rights.block_of(bucket).block_policy:
            raise S3Error("AccessDenied")
        binds_owner = (call.header(b"x-amz-confirm-remove-self-bucket-access") or "").lower() == "true"
        await self._files.set_all(call, {
            POLICY: text, POLICY_BINDS_OWNER: "true" if binds_owner else None,
        })  # fmt: skip
        call.reply(204)

    async def delete_policy(self, call: Call) -> None:
        await self._files.bucket(call, "s3:DeleteBucketPolicy")
        await self._files.set_all(call, {POLICY: None, POLICY_BINDS_OWNER: None})
        call.reply(204)

    async def policy_status(self, call: Call) -> None:
        """Whether strangers get in: by the policy, or by the bucket's list where lists count."""
        bucket = await self._files.bucket(call, "s3:GetBucketPolicyStatus")
        call.reply(200, document("PolicyStatus", element("IsPublic", rights.is_public(bucket))), XML_LINE)

    async def get_public_access(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:GetBucketPublicAccessBlock")
        if rights.PUBLIC_BLOCK not in bucket.config:
            raise S3Error("NoSuchPublicAccessBlockConfiguration", "The public access block configuration was not found")
        block = rights.block_of(bucket)
        values = (block.block_acls, block.ignore_acls, block.block_policy, block.restrict)
        inner = "".join(element(name, value) for name, value in zip(_SWITCHES, values, strict=True))
        call.reply(200, document("PublicAccessBlockConfiguration", inner), XML_LINE)

    async def put_public_access(self, call: Call) -> None:
        await self._files.bucket(call, "s3:PutBucketPublicAccessBlock")
        root = documents.parse(await self._files.body(call), "PublicAccessBlockConfiguration")
        values = [(root.text(name) or "false").lower() == "true" for name in _SWITCHES]
        await self._files.set(call, rights.PUBLIC_BLOCK, msgspec.json.encode(values).decode())
        call.reply(200)

    async def delete_public_access(self, call: Call) -> None:
        await self._files.bucket(call, "s3:PutBucketPublicAccessBlock")
        await self._files.set(call, rights.PUBLIC_BLOCK, None)
        call.reply(204)

    async def get_ownership(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:GetBucketOwnershipControls")
        ownership = bucket.config.get(rights.OWNERSHIP, "BucketOwnerEnforced")
        if ownership == rights.NO_OWNERSHIP:
            raise S3Error("OwnershipControlsNotFoundError", "The bucket ownership controls were not found")
        rule = element("ObjectOwnership", ownership)
        call.reply(200, document("OwnershipControls", f"<Rule>{rule}</Rule>"), XML_LINE)

    async def put_ownership(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:PutBucketOwnershipControls")
        rule = documents.parse(await self._files.body(call), "OwnershipControls").one("Rule")
        value = rule.text("ObjectOwnership") if rule is not None else None
        if value not in ("BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter"):
            raise S3Error("MalformedXML")
        if value == "BucketOwnerEnforced" and grants.is_shared(bucket.config.get(rights.ACL, ""), bucket.owner):
            raise S3Error("InvalidBucketAclWithObjectOwnership",
                          "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting")  # fmt: skip
        await self._files.set(call, rights.OWNERSHIP, value)
        call.reply(200)

    async def delete_ownership(self, call: Call) -> None:
        """As at AWS: what is left is not what new buckets have, but that of old ones, where each writer owns his."""
        await self._files.bucket(call, "s3:PutBucketOwnershipControls")
        await self._files.set(call, rights.OWNERSHIP, rights.NO_OWNERSHIP)
        call.reply(204)

    async def get_acl(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:GetBucketAcl")
        text = bucket.config.get(rights.ACL, "") if rights.has_acls(bucket) else ""
        call.reply(200, acl_document(bucket.owner, text, bucket), XML_LINE)

    async def put_acl(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:PutBucketAcl")
        await self._files.set(call, rights.ACL, await self._acls.of_change(call, bucket, bucket.owner))
        call.reply(200)
