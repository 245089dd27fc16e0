"""Access control lists as data: grants, what a canned ACL stands for, and what a list lets somebody do. Pure.

A list is kept as text: the name of a canned ACL ("" is private), or JSON of its grants. Grantees are users of this
store, by name, and the groups that AWS has for everybody, for everybody with a key, and for the delivery of logs.

Invariant: a text that is neither grants nothing to anybody but the owner.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import msgspec

ALL: Final = "http://acs.amazonaws.com/groups/global/AllUsers"
KNOWN: Final = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
GROUPS: Final = frozenset({ALL, KNOWN})
#: Who delivers access logs: nobody with a key is in it.
LOG_DELIVERY: Final = "http://acs.amazonaws.com/groups/s3/LogDelivery"
PERMISSIONS: Final = frozenset({"READ", "WRITE", "READ_ACP", "WRITE_ACP", "FULL_CONTROL"})
#: As at AWS.
GRANTS_MAX: Final = 100
_ON_BUCKET: Final = {
    "s3:ListBucket": "READ", "s3:ListBucketVersions": "READ", "s3:ListBucketMultipartUploads": "READ",
    "s3:PutObject": "WRITE", "s3:DeleteObject": "WRITE", "s3:GetBucketAcl": "READ_ACP", "s3:PutBucketAcl": "WRITE_ACP",
}  # fmt: skip
_ON_OBJECT: Final = {
    "s3:GetObject": "READ", "s3:GetObjectVersion": "READ", "s3:GetObjectAcl": "READ_ACP",
    "s3:PutObjectAcl": "WRITE_ACP",
}  # fmt: skip


class Grant(msgspec.Struct, array_like=True, frozen=True):
    """grantee: a user's name, or the URI of one of GROUPS or of LOG_DELIVERY."""

    grantee: str
    permission: str

    @property
    def is_public(self) -> bool:
        return self.grantee in GROUPS

    @property
    def is_group(self) -> bool:
        return self.is_public or self.grantee == LOG_DELIVERY


def stored(grants: list[Grant]) -> str:
    return msgspec.json.encode(grants).decode()


def is_public(text: str) -> bool:
    """Whether a list lets in people that it does not name."""
    return any(grant.is_public for grant in listed(text, "", ""))


def is_shared(text: str, owner: str) -> bool:
    """Whether a bucket's list gives anything to others than its owner."""
    return any(grant.grantee != owner for grant in listed(text, owner, owner))


def listed(text: str, owner: str, bucket_owner: str) -> list[Grant]:
    """The grants of a list as it is kept. owner: of what it is the list of."""
    if text.startswith("["):
        return _opened(text)
    own = [Grant(owner, "FULL_CONTROL")]
    if text in ("public-read", "public-read-write"):
        own.append(Grant(ALL, "READ"))
    if text == "public-read-write":
        own.append(Grant(ALL, "WRITE"))
    if text == "log-delivery-write":
        own += [Grant(LOG_DELIVERY, "WRITE"), Grant(LOG_DELIVERY, "READ_ACP")]
    if text == "authenticated-read":
        own.append(Grant(KNOWN, "READ"))
    if text == "bucket-owner-read" and bucket_owner != owner:
        own.append(Grant(bucket_owner, "READ"))
    if text == "bucket-owner-full-control" and bucket_owner != owner:
        own.append(Grant(bucket_owner, "FULL_CONTROL"))
    return own


@lru_cache(maxsize=512)
def _opened(text: str) -> list[Grant]:
    try:
        return msgspec.json.decode(text, type=list[Grant])
    except msgspec.DecodeError:
        return []


def allows(
    text: str, user: str, action: str, owners: tuple[str, str], *, of_object: bool, without_public: bool
) -> bool:
    """Whether a list lets a user (\"\": somebody without a key) do an action on what it is the list of. owners: of
    that, and of its bucket, for canned lists name them. without_public: grants to groups count for nothing."""
    wanted = (_ON_OBJECT if of_object else _ON_BUCKET).get(action)
    if wanted is None or not text:
        return False
    return any(
        grant.permission in (wanted, "FULL_CONTROL")
        and (grant.grantee == user != "" if not grant.is_public else not without_public and (
            grant.grantee == ALL or bool(user)
        ))
        for grant in listed(text, *owners)
    )  # fmt: skip
