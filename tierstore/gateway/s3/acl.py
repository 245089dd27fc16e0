"""ACLs in requests and answers: canned ones, grants by header and as XML, and whether they may be set.

Invariants: where ownership is BucketOwnerEnforced (the default) no list is kept, and none counts; a list names only
users that this store knows; a list for everybody is refused where the public access block says so.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tierstore.errors import NotFound
from tierstore.gateway.s3 import documents, rights
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.documents import Node, element
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.grants import GRANTS_MAX, GROUPS, LOG_DELIVERY, PERMISSIONS, Grant, is_public, listed, stored
from tierstore.gateway.s3.object_meta import ACL, OWNER, canned_acl
from tierstore.gateway.s3.request import Call, header_text
from tierstore.gateway.s3.uploads import BodyReader
from tierstore.sdk.store import Store
from tierstore.wire.names import BucketView, ObjectMeta

_GRANT_HEADERS: Final = {
    b"x-amz-grant-read": "READ", b"x-amz-grant-write": "WRITE", b"x-amz-grant-read-acp": "READ_ACP",
    b"x-amz-grant-write-acp": "WRITE_ACP", b"x-amz-grant-full-control": "FULL_CONTROL",
}  # fmt: skip
_ACL_HEADERS: Final = frozenset({b"x-amz-acl", *_GRANT_HEADERS})
_GRANTEE = re.compile(r'\s*(id|uri|emailAddress)\s*=\s*(?:"([^"]*)"|([^",\s]+))\s*')
_USER_CHARACTERS_MAX: Final = 128
_XSI: Final = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type='


class Acls:
    """What a request says of access, checked. One per gateway process."""

    def __init__(self, store: Store, catalog: S3Catalog, reader: BodyReader) -> None:
        self._store = store
        self._catalog = catalog
        self._reader = reader

    async def require_own(self, call: Call, bucket: BucketView, key: str, action: str, *, version: int = 0) -> None:
        """A grant of WRITE lets others make new objects; those that are there are for the bucket's owner and their own
        to replace and remove (Amazon S3 User Guide, "What permissions can I grant?"). Costs a look-up where a list
        alone let the caller in. Raises S3Error(AccessDenied)."""
        if action not in call.by_list:
            return
        try:
            found = await self._store.find(bucket.name, key, version=version, want_chunks=False)
        except NotFound:
            return
        extra = found.meta.extra if found.meta is not None else {}
        if (extra.get(OWNER, b"").decode() or bucket.owner) != call.principal.user:
            raise S3Error("AccessDenied")

    async def of_write(self, call: Call, bucket: BucketView, meta: ObjectMeta) -> ObjectMeta:
        """The metadata of a new object with the list that its request names, for somebody who may replace what is
        there. Raises S3Error."""
        await self.require_own(call, bucket, call.key, "s3:PutObject")
        if call.header_names.isdisjoint(_ACL_HEADERS):
            return meta
        text = await self._of_headers(call)
        if ownership_of(bucket) == "BucketOwnerEnforced":
            if text not in ("bucket-owner-full-control", "private"):  # AWS refuses the second; rclone sends it unasked
                raise S3Error("AccessControlListNotSupported")
            return meta
        _check_block(bucket, text)
        extra = {**meta.extra, ACL: text.encode()} if text != "private" else dict(meta.extra)
        if text == "bucket-owner-full-control" and ownership_of(bucket) == "BucketOwnerPreferred":
            extra = {**meta.extra, OWNER: bucket.owner.encode()}
        return msgspec.structs.replace(meta, extra=extra)

    async def of_change(self, call: Call, bucket: BucketView, owner: str) -> str:
        """The list that PutBucketAcl or PutObjectAcl sets, as it is kept. owner: of what it is set on."""
        if ownership_of(bucket) == "BucketOwnerEnforced":
            raise S3Error("AccessControlListNotSupported")
        body = await self._reader.small(call, documents.BODY_BYTES_MAX)
        has_headers = not call.header_names.isdisjoint(_ACL_HEADERS)
        if has_headers and body:
            raise S3Error("UnexpectedContent", "This request contains unsupported content.")
        if not has_headers and not body:
            raise S3Error("MissingSecurityHeader", "Your request was missing a required header: x-amz-acl")
        text = await self._of_headers(call) if has_headers else await self._of_document(body, owner)
        _check_block(bucket, text)
        return text

    async def of_bucket(self, call: Call, ownership: str) -> str:
        """The list of a bucket that is about to be made, "" for none."""
        if call.header_names.isdisjoint(_ACL_HEADERS):
            return ""
        text = await self._of_headers(call)
        if text in ("", "private"):
            return ""
        if ownership == "BucketOwnerEnforced":
            raise S3Error("InvalidBucketAclWithObjectOwnership",
                          "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting")  # fmt: skip
        return text

    async def _of_headers(self, call: Call) -> str:
        canned = canned_acl(call)
        grants = [
            Grant(_grantee(*found), permission)
            for name, permission in _GRANT_HEADERS.items() if (raw := call.exchange.header(name)) is not None
            for found in _grantees(header_text(raw))
        ]  # fmt: skip
        if canned and grants:
            raise S3Error("InvalidRequest", "Specifying both Canned ACLs and Header Grants is not allowed")
        return stored(await self.checked(grants)) if grants else canned

    async def _of_document(self, body: bytes, owner: str) -> str:
        root = documents.parse(body, "AccessControlPolicy")
        stands, grants = root.one("Owner"), root.one("AccessControlList")
        if stands is None or grants is None:
            raise S3Error("MalformedACLError")
        if stands.text("ID") != owner:
            raise S3Error("AccessDenied")
        return stored(await self.checked([grant_of(node) for node in grants.all("Grant")]))

    async def checked(self, grants: list[Grant]) -> list[Grant]:
        """The grants, if there are not too many and they name users that exist. Raises S3Error."""
        if len(grants) > GRANTS_MAX:
            raise S3Error("MalformedACLError", f"A list has at most {GRANTS_MAX} grants.")
        for user in sorted({grant.grantee for grant in grants if not grant.is_group}):
            try:
                await self._catalog.check_user(user)
            except NotFound:
                raise S3Error("InvalidArgument", "Invalid id", ArgumentName="CanonicalUser/ID",
                              ArgumentValue=user) from None  # fmt: skip
        return grants


def ownership_of(bucket: BucketView) -> str:
    return bucket.config.get(rights.OWNERSHIP, "BucketOwnerEnforced")


def _check_block(bucket: BucketView, text: str) -> None:
    if rights.block_of(bucket).block_acls and is_public(text):
        raise S3Error("AccessDenied")


def _grantees(value: str) -> list[tuple[str, str]]:
    """(kind, value) of each grantee of a header: id="...", uri="...", emailAddress="...", by commas."""
    found, at = [], 0
    while at < len(value):
        match = _GRANTEE.match(value, at)
        if match is None or (match.end() < len(value) and value[match.end()] != ","):
            raise S3Error("InvalidArgument", "Argument format not recognized", ArgumentValue=value[:200])
        found.append((match[1], match[2] if match[2] is not None else match[3]))
        at = match.end() + 1
    return found


def _grantee(kind: str, value: str) -> str:
    if kind == "emailAddress":
        raise S3Error("UnresolvableGrantByEmailAddress", "The email address you provided does not match any account.")
    if kind == "uri" and value not in GROUPS and value != LOG_DELIVERY:
        raise S3Error("InvalidArgument", "Invalid group uri", ArgumentName="uri", ArgumentValue=value[:200])
    is_name = 1 <= len(value) <= _USER_CHARACTERS_MAX and value.isprintable()
    if kind == "id" and (not is_name or value in GROUPS or value == LOG_DELIVERY):
        raise S3Error("InvalidArgument", "Invalid id", ArgumentName="id", ArgumentValue=value[:200])
    return value


def grant_of(node: Node) -> Grant:
    """A grant as documents write it. Raises S3Error(MalformedACLError, InvalidArgument)."""
    grantee, permission = node.one("Grantee"), node.text("Permission")
    if grantee is None or permission not in PERMISSIONS:
        raise S3Error("MalformedACLError")
    kind = {"CanonicalUser": ("id", "ID"), "Group": ("uri", "URI"), "AmazonCustomerByEmail": ("emailAddress",
            "EmailAddress")}.get(grantee.attribute("type") or "")  # fmt: skip
    value = grantee.text(kind[1]) if kind is not None else None
    if kind is None or value is None:
        raise S3Error("MalformedACLError")
    return Grant(_grantee(kind[0], value), permission)


def acl_document(owner: str, text: str, bucket: BucketView) -> bytes:
    """A list as GetBucketAcl and GetObjectAcl show it."""
    shown = element("ID", owner) + element("DisplayName", owner)
    inner = ""
    for grant in listed(text, owner, bucket.owner):
        who = element("ID", grant.grantee) + element("DisplayName", grant.grantee)
        kind = "CanonicalUser"
        if grant.is_group:
            who, kind = element("URI", grant.grantee), "Group"
        inner += f'<Grant><Grantee {_XSI}"{kind}">{who}</Grantee>{element("Permission", grant.permission)}</Grant>'
    return documents.document(
        "AccessControlPolicy", f"<Owner>{shown}</Owner><AccessControlList>{inner}</AccessControlList>"
    )
