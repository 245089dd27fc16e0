"""May this caller do this? The one authorisation function of the S3 door: default deny, explicit Deny wins.

In order: where requesters pay, strangers must say that they would; an explicit Deny of the bucket's policy, or of one
attached to the user, refuses; then an Allow of the user's policies, roles (grants of the key), ownership of the bucket,
an Allow of the policy, and a canned ACL may let in. Public access block takes the last two away from strangers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from tierstore.auth.access import Action, Principal, has_role
from tierstore.auth.policy_language import ALLOW, DENY, Policy, Question, decide
from tierstore.gateway.s3 import grants
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.request import Call
from tierstore.wire.names import BucketView

#: Documents of a bucket that this door owns (buckets.config).
POLICY: Final = "s3.policy"
ACL: Final = "s3.acl"
PUBLIC_BLOCK: Final = "s3.public-access-block"
OWNERSHIP: Final = "s3.ownership"
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
#: Who wrote an object may do so much with it, where ownership is the writer's.
_OF_OBJECT_OWNER: Final = frozenset({"s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectAcl", "s3:PutObjectAcl"})


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
    return Policy.of(text) if text else None


def block_of(bucket: BucketView) -> PublicBlock:
    text = bucket.config.get(PUBLIC_BLOCK)
    return PublicBlock(*msgspec.json.decode(text, type=tuple[bool, bool, bool, bool])) if text else PublicBlock()


def is_owner(principal: Principal, bucket: BucketView) -> bool:
    return bool(principal.access) and principal.user == bucket.owner


def allowed(
    call: Call, action: str, bucket: BucketView, key: str = "", *, object_acl: str = "", object_owner: str = ""
) -> bool:
    """object_acl and object_owner: of the object, when they are known."""
    who = call.principal
    if PAYER in bucket.config and not is_owner(who, bucket) and not _would_pay(call):
        return False
    verdict = ""
    policy = policy_of(bucket)
    if policy is not None:
        verdict = decide(policy, question_of(call, action, bucket, key))
        if verdict == DENY:
            return False
    if who.policies:
        own = by_user(call, action, question_of(call, action, bucket, key))
        if own:
            return own == ALLOW
    if is_owner(who, bucket) or has_role(who, _ROLE.get(action, "bucket"), bucket.name):
        return True
    block = block_of(bucket)
    if verdict == ALLOW and policy is not None and not (block.restrict and policy.is_public):
        return True
    if not has_acls(bucket):
        return False
    if who.access and object_owner == who.user and action in _OF_OBJECT_OWNER:
        return True
    user = who.user if who.access else ""
    return any(
        grants.allows(text, user, action, of_object=of_object, without_public=block.ignore_acls)
        for text, of_object in ((bucket.config.get(ACL, ""), False), (object_acl, True))
    )


def has_acls(bucket: BucketView) -> bool:
    """Whether lists count at all: not where the bucket's owner owns everything in it, which is the default."""
    return bucket.config.get(OWNERSHIP, "BucketOwnerEnforced") != "BucketOwnerEnforced"


def _would_pay(call: Call) -> bool:
    """In a bucket whose requesters pay, strangers must say so: by header, or in what they presigned. Nobody without a
    name can."""
    said = call.header(b"x-amz-request-payer") or call.query.get("x-amz-request-payer", "")
    return bool(call.principal.access) and said.lower() == "requester"


def by_user(call: Call, action: str, question: Question) -> str:
    """What the policies attached to the caller say: ALLOW, DENY or ""."""
    verdicts = {decide(Policy.of_user(text), question) for text in call.principal.policies}
    return DENY if DENY in verdicts else ALLOW if ALLOW in verdicts else ""


def allowed_outside(call: Call, action: str, name: str) -> bool:
    """For what belongs to no bucket yet: making one, listing all."""
    who = call.principal
    view = BucketView(name, 0)
    own = by_user(call, action, question_of(call, action, view, "")) if who.policies else ""
    if own:
        return own == ALLOW
    return has_role(who, "write", name) or has_role(who, "bucket", name)


def require(call: Call, action: str, bucket: BucketView, key: str = "", *, object_acl: str = "") -> None:
    """Raises S3Error(AccessDenied)."""
    if not allowed(call, action, bucket, key, object_acl=object_acl):
        raise S3Error("AccessDenied")


def question_of(call: Call, action: str, bucket: BucketView, key: str) -> Question:
    """What a policy judges. Condition keys are those that S3 documents and this door knows."""
    exchange = call.exchange
    context: dict[str, list[str]] = {"aws:sourceip": [exchange.peer], "aws:securetransport": ["false"]}
    if call.principal.access:
        context["aws:username"] = [call.principal.user]
    for header, name in _CONTEXT_HEADERS:
        value = exchange.header(header)
        if value is not None:
            context[name] = [value.decode("latin-1")]
    for name in ("prefix", "delimiter", "max-keys"):
        if name in call.query:
            context[f"s3:{name}"] = [call.query[name]]
    if "versionId" in call.query:
        context["s3:versionid"] = [call.query["versionId"]]
    resource = f"arn:aws:s3:::{bucket.name}" + (f"/{key}" if key else "")
    user = call.principal.user if call.principal.access else ""
    return Question(user, call.principal.access, action, resource, context)


_CONTEXT_HEADERS: Final = (
    (b"x-amz-object-lock-mode", "s3:object-lock-mode"), (b"x-amz-object-lock-legal-hold", "s3:object-lock-legal-hold"),
    (b"referer", "aws:referer"), (b"user-agent", "aws:useragent"), (b"x-amz-acl", "s3:x-amz-acl"),
    (b"x-amz-copy-source", "s3:x-amz-copy-source"), (b"x-amz-metadata-directive", "s3:x-amz-metadata-directive"),
    (b"x-amz-server-side-encryption", "s3:x-amz-server-side-encryption"),
    (b"x-amz-storage-class", "s3:x-amz-storage-class"), (b"x-amz-content-sha256", "s3:x-amz-content-sha256"),
)  # fmt: skip
