"""Buckets of the S3 door: made, listed, removed, and their configuration documents.

A document is kept as the XML (or JSON) that was set, after it was checked, and given back as it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from tierstore.auth.access import is_allowed
from tierstore.auth.policy_language import Policy, PolicyError
from tierstore.errors import ConflictError
from tierstore.gateway.s3 import documents, rights
from tierstore.gateway.s3.auth import is_anonymous
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.cors import CORS, parse_rules
from tierstore.gateway.s3.documents import HEAD, NAMESPACE, document, element, moment
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.object_meta import canned_acl
from tierstore.gateway.s3.objects import acl_document, parse_tagging
from tierstore.gateway.s3.request import Call, number
from tierstore.gateway.s3.uploads import BodyReader
from tierstore.wire.names import BucketView
from tierstore.wire.s3 import UploadsAsk, VersionsAsk

TAGS: Final = "s3.tagging"
REGION: Final = "us-east-1"
_JSON_LINE: Final = b"content-type: application/json\r\n"


class Buckets:
    """Handlers of bucket operations."""

    def __init__(self, catalog: S3Catalog, reader: BodyReader) -> None:
        self._catalog = catalog
        self._reader = reader

    async def list(self, call: Call) -> None:
        """ListBuckets: the caller's own, and those that his key's grants name."""
        if is_anonymous(call.principal):
            raise S3Error("AccessDenied")
        who, query = call.principal, call.query
        most = number(query.get("max-buckets"), "max-buckets", default=10_000, least=1, most=10_000)
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
        mine = [
            b for b in await self._catalog.buckets()
            if (b.owner == who.user or is_allowed(who, "list", b.name)) and b.name.startswith(prefix) and b.name > after
        ]  # fmt: skip
        listed = "".join(
            f"<Bucket>{element('Name', b.name)}{element('CreationDate', moment(b.created_at_ms))}</Bucket>"
            for b in mine[:most]
        )
        inner = f"<Owner>{element('ID', who.user)}{element('DisplayName', who.user)}</Owner><Buckets>{listed}</Buckets>"
        if len(mine) > most:
            inner += element("ContinuationToken", mine[most - 1].name)
        inner += element("Prefix", prefix or None)
        call.reply(200, document("ListAllMyBucketsResult", inner), XML_LINE)

    async def create(self, call: Call) -> None:
        who = call.principal
        if not (is_allowed(who, "write", call.bucket) or is_allowed(who, "bucket", call.bucket)):
            raise S3Error("AccessDenied")
        body = await self._reader.small(call, documents.BODY_BYTES_MAX)
        if body:
            documents.parse(body, "CreateBucketConfiguration")
        acl = canned_acl(call)
        ownership = call.header(b"x-amz-object-ownership") or "BucketOwnerEnforced"
        if ownership not in ("BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter"):
            raise S3Error("InvalidArgument", "Invalid x-amz-object-ownership header: " + ownership[:40])
        if acl not in ("", "private") and ownership == "BucketOwnerEnforced":
            raise S3Error("InvalidBucketAclWithObjectOwnership",
                          "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting")  # fmt: skip
        if (call.header(b"x-amz-bucket-object-lock-enabled") or "").lower() == "true":
            raise S3Error("NotImplemented", "Object lock is not supported.")
        try:
            await self._catalog.create(call.bucket, who.user)
        except ConflictError as error:
            held = await self._catalog.bucket(call.bucket, fresh=True)
            if held.owner != who.user:
                raise S3Error("BucketAlreadyExists") from error
            # as in us-east-1: making one's own bucket again succeeds and changes nothing
            call.reply(200, b"", f"location: /{call.bucket}\r\n".encode())
            return
        wanted: dict[str, str | None] = {}
        if acl not in ("", "private"):
            wanted[rights.ACL] = acl
        if ownership != "BucketOwnerEnforced":
            wanted[rights.OWNERSHIP] = ownership
        if wanted:
            await self._catalog.configure(call.bucket, who.user, documents=wanted)
        call.reply(200, b"", f"location: /{call.bucket}\r\n".encode())

    async def head(self, call: Call) -> None:
        bucket = await self._catalog.bucket(call.bucket)
        rights.require(call, "s3:ListBucket", bucket)
        call.reply(200, b"", f"x-amz-bucket-region: {REGION}\r\n".encode())

    async def delete(self, call: Call) -> None:
        """Uploads that were never completed do not keep a bucket; objects, versions and markers do."""
        bucket = await self._catalog.bucket(call.bucket, fresh=True)
        rights.require(call, "s3:DeleteBucket", bucket)
        if not (await self._catalog.versions(VersionsAsk(call.bucket, limit=1))).versions:
            while (page := await self._catalog.uploads(UploadsAsk(call.bucket))).uploads:
                for upload in page.uploads:
                    await self._catalog.abort(call.bucket, upload.key, upload.id)
        await self._catalog.delete(call.bucket, call.principal.user)
        call.reply(204)

    async def location(self, call: Call) -> None:
        await self._allowed(call, "s3:GetBucketLocation")
        # us-east-1 is shown as nothing, as AWS does
        call.reply(200, f'{HEAD}<LocationConstraint xmlns="{NAMESPACE}"/>'.encode(), XML_LINE)

    # -- versioning -----------------------------------------------------------------------------------------
    async def get_versioning(self, call: Call) -> None:
        bucket = await self._allowed(call, "s3:GetBucketVersioning")
        state = {"enabled": "Enabled", "suspended": "Suspended"}.get(bucket.versioning)
        call.reply(200, document("VersioningConfiguration", element("Status", state)), XML_LINE)

    async def put_versioning(self, call: Call) -> None:
        await self._allowed(call, "s3:PutBucketVersioning")
        root = documents.parse(await self._body(call), "VersioningConfiguration")
        status = root.text("Status")
        if status not in ("Enabled", "Suspended"):
            raise S3Error("IllegalVersioningConfigurationException", "The Versioning element must be specified")
        if root.text("MfaDelete") == "Enabled":
            raise S3Error("NotImplemented", "MFA delete is not supported.")
        await self._catalog.configure(call.bucket, call.principal.user, versioning=status.lower())
        call.reply(200)

    # -- policy, public access, ownership, ACL --------------------------------------------------------------
    async def get_policy(self, call: Call) -> None:
        bucket = await self._allowed(call, "s3:GetBucketPolicy")
        text = bucket.config.get(rights.POLICY)
        if text is None:
            raise S3Error("NoSuchBucketPolicy", "The bucket policy does not exist")
        call.reply(200, text.encode(), _JSON_LINE)

    async def put_policy(self, call: Call) -> None:
        bucket = await self._allowed(call, "s3:PutBucketPolicy")
        try:
            text = (await self._body(call)).decode()
            policy = Policy.of(text)
        except (PolicyError, UnicodeDecodeError) as error:
            raise S3Error("MalformedPolicy", str(error)) from None
        arn = f"arn:aws:s3:::{call.bucket}"
        for statement in policy.statements:
            for resource in (*statement.resources, *statement.not_resources):
                if resource not in ("*", arn) and not resource.startswith((f"{arn}/", f"{arn}*")):
                    raise S3Error("MalformedPolicy", "Policy has invalid resource")
        if policy.is_public and rights.block_of(bucket).block_policy:
            raise S3Error("AccessDenied")
        await self._set(call, rights.POLICY, text)
        call.reply(204)

    async def delete_policy(self, call: Call) -> None:
        await self._allowed(call, "s3:DeleteBucketPolicy")
        await self._set(call, rights.POLICY, None)
        call.reply(204)

    async def policy_status(self, call: Call) -> None:
        bucket = await self._allowed(call, "s3:GetBucketPolicyStatus")
        policy = rights.policy_of(bucket)
        if policy is None:
            raise S3Error("NoSuchBucketPolicy", "The bucket policy does not exist")
        call.reply(200, document("PolicyStatus", element("IsPublic", policy.is_public)), XML_LINE)

    async def get_public_access(self, call: Call) -> None:
        bucket = await self._allowed(call, "s3:GetBucketPublicAccessBlock")
        if rights.PUBLIC_BLOCK not in bucket.config:
            raise S3Error("NoSuchPublicAccessBlockConfiguration", "The public access block configuration was not found")
        block = rights.block_of(bucket)
        values = (block.block_acls, block.ignore_acls, block.block_policy, block.restrict)
        inner = "".join(element(name, value) for name, value in zip(_SWITCHES, values, strict=True))
        call.reply(200, document("PublicAccessBlockConfiguration", inner), XML_LINE)

    async def put_public_access(self, call: Call) -> None:
        await self._allowed(call, "s3:PutBucketPublicAccessBlock")
        root = documents.parse(await self._body(call), "PublicAccessBlockConfiguration")
        values = [(root.text(name) or "false").lower() == "true" for name in _SWITCHES]
        await self._set(call, rights.PUBLIC_BLOCK, msgspec.json.encode(values).decode())
        call.reply(200)

    async def delete_public_access(self, call: Call) -> None:
        await self._allowed(call, "s3:PutBucketPublicAccessBlock")
        await self._set(call, rights.PUBLIC_BLOCK, None)
        call.reply(204)

    async def get_ownership(self, call: Call) -> None:
        bucket = await self._allowed(call, "s3:GetBucketOwnershipControls")
        rule = element("ObjectOwnership", bucket.config.get(rights.OWNERSHIP, "BucketOwnerEnforced"))
        call.reply(200, document("OwnershipControls", f"<Rule>{rule}</Rule>"), XML_LINE)

    async def put_ownership(self, call: Call) -> None:
        await self._allowed(call, "s3:PutBucketOwnershipControls")
        rule = documents.parse(await self._body(call), "OwnershipControls").one("Rule")
        value = rule.text("ObjectOwnership") if rule is not None else None
        if value not in ("BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter"):
            raise S3Error("MalformedXML")
        await self._set(call, rights.OWNERSHIP, value)
        call.reply(200)

    async def delete_ownership(self, call: Call) -> None:
        await self._allowed(call, "s3:PutBucketOwnershipControls")
        await self._set(call, rights.OWNERSHIP, None)
        call.reply(204)

    async def get_acl(self, call: Call) -> None:
        bucket = await self._allowed(call, "s3:GetBucketAcl")
        call.reply(200, acl_document(bucket.owner, bucket.config.get(rights.ACL, "")), XML_LINE)

    async def put_acl(self, call: Call) -> None:
        bucket = await self._allowed(call, "s3:PutBucketAcl")
        acl = canned_acl(call)
        if not acl:
            raise S3Error("NotImplemented", "Only canned ACLs (x-amz-acl) can be set.")
        if bucket.config.get(rights.OWNERSHIP, "BucketOwnerEnforced") == "BucketOwnerEnforced" and acl != "private":
            raise S3Error("AccessControlListNotSupported", "The bucket does not allow ACLs")
        if rights.block_of(bucket).block_acls and acl.startswith("public"):
            raise S3Error("AccessDenied")
        await self._set(call, rights.ACL, acl)
        call.reply(200)

    # -- tags and CORS --------------------------------------------------------------------------------------
    async def get_tags(self, call: Call) -> None:
        await self._show(call, "s3:GetBucketTagging", TAGS, "NoSuchTagSet")

    async def put_tags(self, call: Call) -> None:
        await self._allowed(call, "s3:PutBucketTagging")
        body = await self._body(call)
        parse_tagging(body, most=50)
        await self._set(call, TAGS, body.decode())
        call.reply(204)

    async def delete_tags(self, call: Call) -> None:
        await self._allowed(call, "s3:PutBucketTagging")
        await self._set(call, TAGS, None)
        call.reply(204)

    async def get_cors(self, call: Call) -> None:
        await self._show(call, "s3:GetBucketCORS", CORS, "NoSuchCORSConfiguration")

    async def put_cors(self, call: Call) -> None:
        await self._allowed(call, "s3:PutBucketCORS")
        rules = parse_rules(documents.parse(await self._body(call), "CORSConfiguration"))
        await self._set(call, CORS, _cors_text(rules))
        call.reply(200)

    async def delete_cors(self, call: Call) -> None:
        await self._allowed(call, "s3:PutBucketCORS")
        await self._set(call, CORS, None)
        call.reply(204)

    # -- what is never set here -----------------------------------------------------------------------------
    def unset(self, action: str, code: str, root: str = "", inner: str = "") -> Callable[[Call], Awaitable[None]]:
        """A handler that answers as AWS does for a configuration that was never set: a document, or an error."""

        async def handle(call: Call) -> None:
            await self._allowed(call, action)
            if code:
                raise S3Error(code)
            call.reply(200, document(root, inner), XML_LINE)

        return handle

    # -- shared steps ---------------------------------------------------------------------------------------
    async def _allowed(self, call: Call, action: str) -> BucketView:
        bucket = await self._catalog.bucket(call.bucket, fresh=True)
        rights.require(call, action, bucket)
        return bucket

    async def _body(self, call: Call) -> bytes:
        return await self._reader.small(call, documents.BODY_BYTES_MAX)

    async def _set(self, call: Call, name: str, text: str | None) -> None:
        await self._catalog.configure(call.bucket, call.principal.user, documents={name: text})

    async def _show(self, call: Call, action: str, name: str, code: str) -> None:
        bucket = await self._allowed(call, action)
        text = bucket.config.get(name)
        if text is None:
            raise S3Error(code)
        call.reply(200, text.encode(), XML_LINE)


_SWITCHES: Final = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")


def _cors_text(rules: list[dict[str, list[str]]]) -> str:
    listed = "".join(
        f"<CORSRule>{''.join(element(name, value) for name, values in rule.items() for value in values)}</CORSRule>"
        for rule in rules
    )
    return document("CORSConfiguration", listed).decode()
