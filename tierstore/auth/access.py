"""Principals, bearer tokens and the one authorisation function: default deny.

A token is `tst.<access>.<secret part>`; the catalog keeps only its SHA-256. A daemon's credential is
`tsd.<server id>.<secret part>`. Roles nest: readonly < readwrite < admin; a grant is for one bucket or for "*" (all
buckets and, with admin, the cluster). Policies attached to a user come first, at every door (docs/adr/0332): what they
say is final, Deny before Allow; where they say nothing, the roles do. The S3 door judges by them itself, with S3's own
action names, and asks `has_role` for the rest.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Literal

from tierstore.auth.policy_language import ALLOW, DENY, Policy, Question, decide
from tierstore.errors import AccessDenied, ConfigError, NotAuthenticated

Role = Literal["readonly", "readwrite", "admin"]
#: read/list/write/delete act on objects of a bucket; bucket: create, delete or configure it; admin: the cluster.
Action = Literal["read", "list", "write", "delete", "bucket", "admin"]

ROLES: Final[tuple[Role, ...]] = ("readonly", "readwrite", "admin")
_ALLOWED: Final[dict[str, frozenset[str]]] = {
    "readonly": frozenset({"read", "list"}),
    "readwrite": frozenset({"read", "list", "write", "delete"}),
    "admin": frozenset({"read", "list", "write", "delete", "bucket", "admin"}),
}
#: The S3 actions that a native one stands for: all must be allowed, one denied is enough.
_S3_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "read": ("s3:GetObject",), "list": ("s3:ListBucket",), "write": ("s3:PutObject",), "delete": ("s3:DeleteObject",),
    "bucket": ("s3:CreateBucket", "s3:DeleteBucket", "s3:PutBucketVersioning", "s3:PutBucketPolicy"),
}  # fmt: skip
_OF_BUCKET: Final = frozenset({"list", "bucket"})
#: What acting on a version by its id is, and changing what is said of an object.
OF_VERSIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "read": ("s3:GetObjectVersion",), "delete": ("s3:DeleteObjectVersion",),
}  # fmt: skip
OF_FACTS: Final = (
    "s3:PutObjectTagging", "s3:PutObjectAcl", "s3:PutObjectRetention", "s3:PutObjectLegalHold",
)  # fmt: skip
USER_TOKEN: Final = "tst"  # noqa: S105 - a prefix, not a secret
DAEMON_TOKEN: Final = "tsd"  # noqa: S105 - the same


@dataclass(frozen=True, slots=True)
class Seen:
    """What a door saw of a request beside who sends it, for the conditions of policies. address: of the caller, ""
    where the door does not know; at_ms: when it came, 0: not known; more: condition key -> values of what else there
    was; is_judged: another door of the cluster saw all there is, and judged."""

    address: str = ""
    is_secure: bool = False
    at_ms: int = 0
    more: Mapping[str, list[str]] = field(default_factory=dict)
    is_judged: bool = False

    def context(self, principal: Principal) -> dict[str, list[str]]:
        """As conditions see it."""
        context = {"aws:username": [principal.user], "aws:userid": [principal.user], "aws:principaltype": ["User"]}
        if self.address:
            context["aws:sourceip"] = [self.address]
            context["aws:securetransport"] = ["true" if self.is_secure else "false"]
        if self.at_ms:
            seconds = self.at_ms / 1000
            context["aws:currenttime"] = [datetime.fromtimestamp(seconds, UTC).isoformat()]
            context["aws:epochtime"] = [str(int(seconds))]
        context.update(self.more)
        return context

    @property
    def hidden(self) -> tuple[str, ...]:
        """Beginnings of the keys that it says nothing of."""
        of_caller = () if self.address else ("aws:sourceip", "aws:securetransport", "aws:referer", "aws:useragent")
        of_time = () if self.at_ms else ("aws:currenttime", "aws:epochtime")
        return (*of_caller, *of_time, *(() if EXISTING_TAGS_SEEN in self.more else (EXISTING_TAG,)))


#: For conditions on the tags that an object has.
EXISTING_TAG: Final = "s3:existingobjecttag/"
#: In Seen.more: somebody looked the object's tags up, and those that are not there, it has not.
EXISTING_TAGS_SEEN: Final = "s3:existingobjecttags"
NOTHING_SEEN: Final = Seen()
#: What metadata is asked by a gateway for a user: the gateway has judged, by more than it could pass on.
JUDGED: Final = Seen(is_judged=True)


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who showed a valid credential. grants: bucket or "*" -> role. server: a daemon's id, else 0. policies:
    documents attached to the user, which come before the roles. seen: of the request that is judged."""

    access: str
    user: str
    grants: Mapping[str, str] = field(default_factory=dict)
    server: int = 0
    policies: tuple[str, ...] = ()
    seen: Seen = NOTHING_SEEN

    @property
    def is_daemon(self) -> bool:
        return self.server > 0

    def sending(self, seen: Seen) -> Principal:
        """Himself, with a request. The cluster's own servers have none that policies look at."""
        return self if self.is_daemon else replace(self, seen=seen)


ANONYMOUS: Final = Principal(access="", user="anonymous")


def is_allowed(principal: Principal, action: Action, bucket: str = "", key: str = "") -> bool:
    """Whether the policies of the user, else the roles, allow it. key: of the object; "" where it is about no single
    one. bucket "": the cluster, of which policies say nothing."""
    if principal.policies and bucket:
        verdict = _by_policies(principal, action, bucket, key)
        if verdict:
            return verdict == ALLOW
    return has_role(principal, action, bucket)


def _by_policies(principal: Principal, action: Action, bucket: str, key: str) -> str:
    """ALLOW, DENY or "": what the user's policies say of the S3 actions that a native one stands for."""
    said = set()
    for question in _questions(principal, action, bucket, key):
        verdicts = {decide(Policy.kept(text, of_user=True), question) for text in principal.policies}
        said.add(DENY if DENY in verdicts else ALLOW if ALLOW in verdicts else "")
    return DENY if DENY in said else ALLOW if said == {ALLOW} else ""


def _questions(principal: Principal, action: Action, bucket: str, key: str) -> list[Question]:
    return _questions_of(principal, _S3_NAMES.get(action, ()), bucket, key, of_bucket=action in _OF_BUCKET)


def _questions_of(
    principal: Principal, names: Sequence[str], bucket: str, key: str, *, of_bucket: bool = False
) -> list[Question]:  # fmt: skip
    seen = principal.seen
    resource = f"arn:aws:s3:::{bucket}"
    if not of_bucket:
        resource += f"/{key}"
    context = seen.context(principal)
    if of_bucket:
        context["s3:prefix"] = [key]
    return [
        Question(principal.user, principal.access, name, resource, context, seen.hidden, seen.is_judged)
        for name in names
    ]


def require_by_bucket(
    principal: Principal, action: Action, bucket: str, key: str, *, policy: str, of_all: bool = False
) -> None:
    """Raises AccessDenied where the bucket's policy (its text) denies it; of_all: also where it would for another
    object of the bucket. Servers, and those whom a gateway has judged, pass."""
    if _is_served(principal):
        return
    judge = Policy.kept(policy)
    for question in _questions(principal, action, bucket, key):
        if judge.could_deny(question, bucket) if of_all else decide(judge, question) == DENY:
            raise AccessDenied(f"the policy of bucket {bucket!r} denies {principal.access} to {action}")


def require_undenied(
    principal: Principal, names: Sequence[str], bucket: str, key: str, *, policy: str
) -> None:
    """names: S3 actions that a native one is beside the one that it stands for, as reading an old version. Raises
    AccessDenied where a policy of the user or of the bucket ("": it has none) denies one. Servers pass."""
    if _is_served(principal) or not (principal.policies or policy):
        return
    judges = [Policy.kept(text, of_user=True) for text in principal.policies]
    if policy:
        judges.append(Policy.kept(policy))
    for question in _questions_of(principal, names, bucket, key):
        if any(decide(judge, question) == DENY for judge in judges):
            raise AccessDenied(f"a policy denies {principal.access} {question.action} of this object")


def _is_served(principal: Principal) -> bool:
    """A server of the cluster, or somebody whom one has judged already."""
    return principal.is_daemon or not principal.access or principal.seen.is_judged


def has_role(principal: Principal, action: Action, bucket: str = "") -> bool:
    """Whether the roles allow it. bucket "" means the cluster (or all buckets), for which only "*" grants count."""
    role = principal.grants.get("*", "")
    if role and action in _ALLOWED.get(role, ()):
        return True
    if not bucket or action == "admin":
        return False
    return action in _ALLOWED.get(principal.grants.get(bucket, ""), ())


def is_allowed_somewhere(principal: Principal, action: Action) -> bool:
    """Whether it may be allowed on any bucket: for what belongs to none yet (tickets, leases)."""
    if principal.policies or has_role(principal, action):
        return True
    return any(has_role(principal, action, bucket) for bucket in principal.grants)


def authorize_all(principal: Principal, action: Action, bucket: str) -> None:
    """For doors that see a bucket as a whole (mounts): also refuses somebody to whom a policy denies the action for any
    object. Raises as authorize does."""
    if not principal.policies:
        authorize(principal, action, bucket, "*")
        return
    questions = _questions(principal, action, bucket, "*")
    if any(Policy.kept(text, of_user=True).could_deny(q, bucket) for text in principal.policies for q in questions):
        raise AccessDenied(f"a policy of {principal.user!r} denies to {action} some objects: not through this door")
    authorize(principal, action, bucket, "*")


def authorize(principal: Principal, action: Action, bucket: str = "", key: str = "") -> None:
    """Raises NotAuthenticated for nobody, AccessDenied for somebody whom is_allowed() refuses."""
    if is_allowed(principal, action, bucket, key):
        return
    if not principal.access and not principal.is_daemon:
        raise NotAuthenticated("send a token: Authorization: Bearer tst.<access>.<secret>")
    where = f"bucket {bucket!r}" if bucket else "the cluster"
    raise AccessDenied(f"{principal.access or 'server ' + str(principal.server)} may not {action} in {where}")


def user_token(access: str, secret_bytes: bytes) -> str:
    """The bearer token of an access key; secret_bytes: at least 24 random bytes."""
    return f"{USER_TOKEN}.{access}.{_text(secret_bytes)}"


def daemon_token(server: int, secret_bytes: bytes) -> str:
    return f"{DAEMON_TOKEN}.{server}.{_text(secret_bytes)}"


def _text(secret_bytes: bytes) -> str:
    return base64.urlsafe_b64encode(secret_bytes).rstrip(b"=").decode("ascii")


def token_hash(token: str | bytes) -> bytes:
    """What is stored of a token: its SHA-256 (the token is long and random, so no slow hash is needed)."""
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).digest()


def sendable_token(token: str) -> str:
    """The token as a client sends it, without white space around it. Raises ConfigError for a text that no header may
    hold, such as one copied with a line break in it."""
    text = token.strip()
    if not all("!" <= letter <= "~" for letter in text):
        raise ConfigError("the token has white space or other characters in it that no token has; copy it again")
    return text


def parse_bearer(header: bytes | str | None) -> tuple[str, str, str]:
    """("tst" | "tsd", access or server id, whole token) of an Authorization header.

    Raises NotAuthenticated on anything else, without saying which part was wrong."""
    text = header.decode("latin-1") if isinstance(header, bytes) else (header or "")
    scheme, _, token = text.partition(" ")
    parts = token.strip().split(".")
    if scheme.lower() != "bearer" or len(parts) != 3 or parts[0] not in (USER_TOKEN, DAEMON_TOKEN) or not all(parts):
        raise NotAuthenticated("send a token: Authorization: Bearer tst.<access>.<secret>")
    return parts[0], parts[1], token.strip()
