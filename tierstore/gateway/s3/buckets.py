"""Buckets of the S3 door: made, listed, removed; their versioning."""

from __future__ import annotations

import re
from typing import Final

from tierstore.auth.access import has_role
from tierstore.errors import ConflictError
from tierstore.gateway.s3 import documents, rights
from tierstore.gateway.s3.acl import Acls
from tierstore.gateway.s3.auth import is_anonymous
from tierstore.gateway.s3.bucket_files import BucketFiles
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.documents import Node, document, element, moment, text
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.request import Call, number
from tierstore.gateway.s3.uploads import BodyReader
from tierstore.wire import lock
from tierstore.wire.names import BucketView
from tierstore.wire.s3 import UploadsAsk, VersionsAsk

REGION: Final = "us-east-1"
#: Document of a bucket: the location that its maker named, as it was named.
LOCATION: Final = "s3.location"
_RESERVED_BEGINS: Final = ("xn--", "sthree-", "amzn-s3-demo-")
_RESERVED_ENDS: Final = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")
_LOCATION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)


class Buckets:
    """Handlers of bucket operations."""

    def __init__(self, catalog: S3Catalog, reader: BodyReader, files: BucketFiles, acls: Acls) -> None:
        self._catalog = catalog
        self._reader = reader
        self._files = files
        self._acls = acls

    async def list(self, call: Call) -> None:
        """ListBuckets: the caller's own, and those that his key's grants name."""
        if is_anonymous(call.principal):
            raise S3Error("AccessDenied")
        who, query = call.principal, call.query
        most = number(query.get("max-buckets"), "max-buckets", default=10_000, least=1, most=10_000)
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
        region = query.get("bucket-region", "")
        mine = [
            b for b in await self._catalog.buckets()
            if (b.owner == who.user or has_role(who, "list", b.name)) and b.name.startswith(prefix) and b.name > after
            and region in ("", _region(b))
        ]  # fmt: skip
        listed = "".join(
            f"<Bucket>{element('Name', b.name)}{element('CreationDate', moment(b.created_at_ms))}"
            f"{element('BucketRegion', _region(b))}</Bucket>"
            for b in mine[:most]
        )
        inner = f"<Owner>{element('ID', who.user)}{element('DisplayName', who.user)}</Owner><Buckets>{listed}</Buckets>"
        if len(mine) > most:
            inner += element("ContinuationToken", mine[most - 1].name)
        inner += element("Prefix", prefix or None)
        call.reply(200, document("ListAllMyBucketsResult", inner), XML_LINE)

    async def create(self, call: Call) -> None:
        who = call.principal
        _check_new_name(call.bucket)
        if not rights.allowed_outside(call, "s3:CreateBucket", call.bucket):
            raise S3Error("AccessDenied")
        body = await self._reader.small(call, documents.BODY_BYTES_MAX)
        location = _location(documents.parse(body, "CreateBucketConfiguration")) if body else ""
        ownership = call.header(b"x-amz-object-ownership") or "BucketOwnerEnforced"
        if ownership not in ("BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter"):
            raise S3Error("InvalidArgument", "Invalid x-amz-object-ownership header: " + ownership[:40])
        acl = await self._acls.of_bucket(call, ownership)
        is_locking = (call.header(b"x-amz-bucket-object-lock-enabled") or "").lower() == "true"
        try:
            await self._catalog.create(call.bucket, who.user)
        except ConflictError as error:
            held = await self._catalog.bucket(call.bucket, fresh=True)
            if held.owner != who.user:
                raise S3Error("BucketAlreadyExists") from error
            if location or LOCATION in held.config:
                raise S3Error("BucketAlreadyOwnedByYou") from error
            # as in us-east-1: making one's own bucket again succeeds, and its list is what this request says
            if rights.has_acls(held) and held.config.get(rights.ACL, "") != acl:
                await self._catalog.configure(call.bucket, who.user, documents={rights.ACL: acl or None})
            call.reply(200, b"", f"location: /{call.bucket}\r\n".encode())
            return
        wanted: dict[str, str | None] = {}
        if location:
            wanted[LOCATION] = location
        if acl:
            wanted[rights.ACL] = acl
        if ownership != "BucketOwnerEnforced":
            wanted[rights.OWNERSHIP] = ownership
        if is_locking:
            wanted[lock.DOCUMENT] = lock.rule_text(lock.LockRule())
        if wanted:
            await self._catalog.configure(
                call.bucket, who.user, documents=wanted, versioning="enabled" if is_locking else ""
            )
        call.reply(200, b"", f"location: /{call.bucket}\r\n".encode())

    async def head(self, call: Call) -> None:
        bucket = await self._catalog.bucket(call.bucket)
        rights.require(call, "s3:ListBucket", bucket)
        call.reply(200, b"", f"x-amz-bucket-region: {_region(bucket)}\r\n".encode())

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
        """us-east-1, where buckets are that were made without a word on it, is shown as nothing, as AWS does."""
        bucket = await self._files.bucket(call, "s3:GetBucketLocation")
        call.reply(200, document("LocationConstraint", text(bucket.config.get(LOCATION, ""))), XML_LINE)

    # -- versioning -----------------------------------------------------------------------------------------
    async def get_versioning(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:GetBucketVersioning")
        state = {"enabled": "Enabled", "suspended": "Suspended"}.get(bucket.versioning)
        call.reply(200, document("VersioningConfiguration", element("Status", state)), XML_LINE)

    async def put_versioning(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:PutBucketVersioning")
        root = documents.parse(await self._files.body(call), "VersioningConfiguration")
        status = root.text("Status")
        if status and status not in ("Enabled", "Suspended"):
            raise S3Error("MalformedXML")
        if not status:
            raise S3Error("IllegalVersioningConfigurationException", "The Versioning element must be specified")
        if status == "Suspended" and lock.DOCUMENT in bucket.config:
            raise S3Error("InvalidBucketState", "An Object Lock configuration is present on this bucket, so the "
                          "versioning state cannot be changed.")  # fmt: skip
        mfa = root.text("MfaDelete")
        if mfa not in (None, "Enabled", "Disabled"):
            raise S3Error("MalformedXML")
        if mfa == "Enabled":
            # AWS wants a code of the owner's device with it; users have no such devices here
            raise S3Error("AccessDenied", "Mfa Authentication must be used for this request; users have no devices.")
        await self._catalog.configure(call.bucket, call.principal.user, versioning=status.lower())
        call.reply(200)


def _region(bucket: BucketView) -> str:
    return bucket.config.get(LOCATION, REGION)


def _location(root: Node) -> str:
    """The location that a CreateBucketConfiguration names, "" for none or the one that all buckets have. Raises
    S3Error(InvalidLocationConstraint)."""
    name = root.text("LocationConstraint") or ""
    if name and not _LOCATION_NAME.fullmatch(name):
        raise S3Error("InvalidLocationConstraint", "The specified location-constraint is not valid",
                      LocationConstraint=name[:80])  # fmt: skip
    return "" if name == REGION else name


def _check_new_name(name: str) -> None:
    """Names that AWS gives to nobody: no host has them, or they mean something else. Raises S3Error."""
    if ".-" in name or "-." in name or name.startswith(_RESERVED_BEGINS) or name.endswith(_RESERVED_ENDS):
        raise S3Error("InvalidBucketName", BucketName=name)
