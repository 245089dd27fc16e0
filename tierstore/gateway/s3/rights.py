"""May this caller do this? The one authorisation function of the S3 door: default deny, explicit Deny wins.

In order: a bucket must be whose the client expects; where requesters pay, strangers must say that they would; an
explicit Deny of the bucket's policy, or of one attached to the user, refuses; then an Allow of the user's policies,
roles (grants of the key), ownership of the bucket, an Allow of the policy, and a canned ACL may let in. Public access
block takes the last two away from strangers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from tierstore.auth.access import Action, Principal, has_role
from tierstore.auth.policy_language import ALLOW, DENY, Policy, Question, decide
from tierstore.gateway.s3 import grants
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.policy_context import EXISTING_TAG, OF_SOURCES, REQUEST_TAG, question_of
from tierstore.gateway.s3.request import Call
from tierstore.wire.names import BucketView
from tierstore.wire.s3 import POLICY, POLICY_BINDS_OWNER

#: Documents of a bucket that this door owns (buckets.config), beside the policy.
ACL: Final = "s3.acl"
PUBLIC_BLOCK: Final = "s3.public-access-block"
OWNERSHIP: Final = "s3.ownership"
#: Kept there when its owner deleted the controls: lists count, and writers own what they write.
NO_OWNERSHIP: Final = "none"
PAYER: Final = "s3.request-payment"

#: S3 action -> what a role must allow. Actions that are not here need `bucket` (admin of it) or ownership.
_ROLE: Final[dict[str, Action]] = {
    "s3:GetObject": "read", "s3:GetObjectVersion": "read", "s3:GetObjectTagging": "read", "s3:GetObjectAcl": "read",
    "s3:GetObjectVersionTagging": "read", "s3:GetObjectAttributes": "read", "s3:GetObjectRetention": "read",
    "s3:GetObjectLegalHold": "read",
    "s3:ListBucket": "list", "s3:ListBucketVersions": "list", "s3:ListBucketMultipartUploads": "list",
    "s3:ListMultipartUploadParts": "list", "s3:GetBucketLocation": "list", "s3:GetBucketVersioning": "list",
    "s3:PutObject": "write", "s3:AbortMultipartUpload": "write", "s3:PutObjectTagging": "write",
    "s3:PutObjectVersionTagging": "write", "s3:DeleteObjectTagging": "write", "s3:DeleteObjectVersionTagging": "write",
    "s3:PutObjectRetention": "write", "s3:PutObjectLegalHold": "write", "s3:PutObjectAcl": "write",
    "s3:DeleteObject": "delete", "s3:DeleteObjectVersion": "delete",
}  # fmt: skip
_OWNER: Final = b"x-amz-expected-bucket-owner"
_OWNER_OF_SOURCE: Final = b"x-amz-source-expected-bucket-owner"
_EXPECTED: Final = frozenset({_OWNER, _OWNER_OF_SOURCE})
_CHARGED: Final = b"x-amz-request-charged: requester\r\n"
#: What a policy does not take from the bucket's owner, or nobody could mend it any more.
_OF_POLICY: Final = frozenset({"s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"})
#: What a policy gives to nobody else: who could change it would give himself the rest, and logs name all who came.
_NOT_GIVEN_AWAY: Final = _OF_POLICY | {"s3:PutBucketLogging"}
#: Who wrote an object may do so much with it, where ownership is the writer's.
_OF_OBJECT_OWNER: Final = frozenset({"s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectAcl", "s3:PutObjectAcl"})
#: Who began an upload may do so much with it, whoever owns the bucket.
_OF_INITIATOR: Final = frozenset({"s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"})


@dataclass(frozen=True, slots=True)
class PublicBlock:
    """The four switches of a public access block."""

    block_acls: bool = False
    ignore_acls: bool = False
    block_policy: bool = False
    restrict: bool = False


def policy_of(bucket: BucketView) -> Policy | None:
    """The bucket's policy. Cached by its text in policy_language."""
    text = bucket.config.get(POLICY)
    return Policy.kept(text) if text else None


def block_of(bucket: BucketView) -> PublicBlock:
    text = bucket.config.get(PUBLIC_BLOCK)
    return PublicBlock(*msgspec.json.decode(text, type=tuple[bool, bool, bool, bool])) if text else PublicBlock()


def is_public(bucket: BucketView) -> bool:
    """Whether anything lets in callers that it does not name."""
    policy = policy_of(bucket)
    if policy is not None and policy.is_public:
        return True
    return has_acls(bucket) and not block_of(bucket).ignore_acls and grants.is_public(bucket.config.get(ACL, ""))


def is_owner(principal: Principal, bucket: BucketView) -> bool:
    return bool(principal.access) and principal.user == bucket.owner


def allowed(
    call: Call, action: str, bucket: BucketView, key: str = "", *, object_acl: str = "", object_owner: str = "",
    tags: Mapping[str, str] | None = None, prefix: str | None = None,
) -> bool:  # fmt: skip
    """object_acl, object_owner and tags: of the object, when they are known. object_owner: "" where nobody but the
    bucket's owner is one; what another owns opens to the bucket's owner as to everybody: by a policy or a list. Of
    uploads: who began them. prefix: of a list that the request itself is not."""
    who = call.principal
    if not _EXPECTED.isdisjoint(call.header_names) and not _is_as_expected(call, bucket, action):
        return False
    if PAYER in bucket.config and not is_owner(who, bucket):
        if not _would_pay(call):
            return False
        call.add_line(_CHARGED)
    verdict = ""
    policy = policy_of(bucket)
    if policy is not None:
        verdict = decide(policy, question_of(call, action, bucket, key, tags, prefix=prefix))
        if verdict == DENY and not _may_mend(call, action, bucket):
            return False
    if who.policies:
        own = by_user(call, question_of(call, action, bucket, key, tags, prefix=prefix))
        if own:
            return own == ALLOW
    if has_role(who, _ROLE.get(action, "bucket"), bucket.name):
        return True
    if is_owner(who, bucket) and not (object_owner not in ("", who.user) and action in _OF_OBJECT_OWNER):
        return True
    block = block_of(bucket)
    if verdict == ALLOW and policy is not None and action not in _NOT_GIVEN_AWAY \
            and not (block.restrict and policy.is_public):  # fmt: skip
        return True
    if who.access and object_owner == who.user and action in _OF_INITIATOR:
        return True
    if not has_acls(bucket):
        return False
    if who.access and object_owner == who.user and action in _OF_OBJECT_OWNER:
        return True
    user = who.user if who.access else ""
    by_list = any(
        grants.allows(text, user, action, owners, of_object=of_object, without_public=block.ignore_acls)
        for text, of_object, owners in (
            (bucket.config.get(ACL, ""), False, ("", "")),
            (object_acl, True, (object_owner, bucket.owner)),
        )
    )
    if by_list:
        call.answer.by_list = True
        call.by_list.add(action)
    return by_list


def _is_as_expected(call: Call, bucket: BucketView, action: str) -> bool:
    """Whether the bucket is whose the client thinks: a name may have come to somebody else meanwhile."""
    of_source = b"x-amz-copy-source" in call.header_names and action in OF_SOURCES
    expected = call.header(_OWNER_OF_SOURCE if of_source else _OWNER)
    return expected is None or expected == bucket.owner


def _may_mend(call: Call, action: str, bucket: BucketView) -> bool:
    return action in _OF_POLICY and is_owner(call.principal, bucket) and POLICY_BINDS_OWNER not in bucket.config


def asks_existing_tags(call: Call, bucket: BucketView) -> bool:
    """Whether somebody's policy looks at the tags that an object has."""
    return _asks(call, bucket, EXISTING_TAG)


def asks_request_tags(call: Call, bucket: BucketView) -> bool:
    """Whether somebody's policy looks at the tags that a request brings."""
    return _asks(call, bucket, REQUEST_TAG)


def _asks(call: Call, bucket: BucketView, key: str) -> bool:
    policy = policy_of(bucket)
    return (policy is not None and policy.asks_for(key)) or any(
        Policy.kept(text, of_user=True).asks_for(key) for text in call.principal.policies
    )


def has_acls(bucket: BucketView) -> bool:
    """Whether lists count at all: not where the bucket's owner owns everything in it, which is the default."""
    return bucket.config.get(OWNERSHIP, "BucketOwnerEnforced") != "BucketOwnerEnforced"


def _would_pay(call: Call) -> bool:
    """In a bucket whose requesters pay, strangers must say so: by header, or in what they presigned. Nobody without a
    name can."""
    said = call.header(b"x-amz-request-payer") or call.query.get("x-amz-request-payer", "")
    return bool(call.principal.access) and said.lower() == "requester"


def by_user(call: Call, question: Question) -> str:
    """What the policies attached to the caller say: ALLOW, DENY or ""."""
    verdicts = {decide(Policy.kept(text, of_user=True), question) for text in call.principal.policies}
    return DENY if DENY in verdicts else ALLOW if ALLOW in verdicts else ""


def allowed_outside(call: Call, action: str, name: str) -> bool:
    """For what belongs to no bucket yet: making one, listing all."""
    who = call.principal
    view = BucketView(name, 0)
    own = by_user(call, question_of(call, action, view)) if who.policies else ""
    if own:
        return own == ALLOW
    return has_role(who, "write", name) or has_role(who, "bucket", name)


def require(call: Call, action: str, bucket: BucketView, key: str = "", *, object_acl: str = "") -> None:
    """Raises S3Error(AccessDenied)."""
    if not allowed(call, action, bucket, key, object_acl=object_acl):
        raise S3Error("AccessDenied")
