"""Canned ACLs: whether one may be set, and the document that it stands for."""

from __future__ import annotations

from tierstore.gateway.s3 import documents, rights
from tierstore.gateway.s3.documents import element
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.request import Call
from tierstore.wire.names import BucketView


def check_acl(call: Call, bucket: BucketView) -> None:
    """ACLs are off where ownership is BucketOwnerEnforced (the default): only the two that change nothing pass."""
    acl = call.header(b"x-amz-acl")
    if any(name.startswith(b"x-amz-grant-") for name, _ in call.exchange.headers):
        raise S3Error("NotImplemented", "Grant headers are not supported; use a bucket policy.")
    if acl is None:
        return
    ownership = bucket.config.get(rights.OWNERSHIP, "BucketOwnerEnforced")
    if ownership == "BucketOwnerEnforced" and acl not in ("bucket-owner-full-control", "private"):
        raise S3Error("AccessControlListNotSupported", "The bucket does not allow ACLs")
    if rights.block_of(bucket).block_acls and acl in ("public-read", "public-read-write", "authenticated-read"):
        raise S3Error("AccessDenied")


def acl_document(owner: str, acl: str) -> bytes:
    """The ACL that a canned one stands for."""
    shown = element("ID", owner) + element("DisplayName", owner)
    head = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type='
    grants = [(f'<Grantee {head}"CanonicalUser">{shown}</Grantee>', "FULL_CONTROL")]
    group = {"public-read": "AllUsers", "public-read-write": "AllUsers", "authenticated-read": "AuthenticatedUsers"}
    if acl in group:
        uri = element("URI", f"http://acs.amazonaws.com/groups/global/{group[acl]}")
        grantee = f'<Grantee {head}"Group">{uri}</Grantee>'
        grants += [(grantee, "READ")] + ([(grantee, "WRITE")] if acl == "public-read-write" else [])
    listed = "".join(f"<Grant>{who}{element('Permission', what)}</Grant>" for who, what in grants)
    return documents.document(
        "AccessControlPolicy", f"<Owner>{shown}</Owner><AccessControlList>{listed}</AccessControlList>"
    )
