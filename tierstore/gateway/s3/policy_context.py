"""What a policy judges: the question that a request puts, with every condition key that this door knows. Pure.

A key that is not here is missing from each question, so an Allow that asks for it never lets in; a negated Deny on it
always refuses. Keys are those that AWS documents for S3, in lower case, for they do not care for case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl

from tierstore.auth.policy_language import Question
from tierstore.gateway.s3.request import Call
from tierstore.wire.names import BucketView

EXISTING_TAG: Final = "s3:existingobjecttag/"
#: Begins both the key of one tag (.../NAME) and that of all their names (...keys).
REQUEST_TAG: Final = "s3:requestobjecttag"
_TAGS_MAX: Final = 50
_DAY_SECONDS: Final = 86_400

_HEADERS: Final = (
    (b"referer", "aws:referer"), (b"user-agent", "aws:useragent"),
    *((f"x-amz-{name}".encode(), f"s3:x-amz-{name}") for name in (
        "acl", "grant-read", "grant-write", "grant-read-acp", "grant-write-acp", "grant-full-control", "copy-source",
        "metadata-directive", "storage-class", "content-sha256", "website-redirect-location",
        "server-side-encryption", "server-side-encryption-aws-kms-key-id",
        "server-side-encryption-customer-algorithm",
    )),
    *((f"x-amz-object-lock-{name}".encode(), f"s3:object-lock-{name}") for name in (
        "mode", "legal-hold", "retain-until-date",
    )),
    (b"if-match", "s3:if-match"), (b"if-none-match", "s3:if-none-match"),
)  # fmt: skip
#: What a copy asks for is about what it makes; its source is read under these.
OF_SOURCES: Final = frozenset({"s3:GetObject", "s3:GetObjectVersion"})
_SOURCE_HEADERS: Final = (
    (b"referer", "aws:referer"), (b"user-agent", "aws:useragent"),
    (b"x-amz-copy-source-server-side-encryption-customer-algorithm",
     "s3:x-amz-server-side-encryption-customer-algorithm"),
)  # fmt: skip
_QUERY: Final = (
    ("prefix", "s3:prefix"), ("delimiter", "s3:delimiter"), ("max-keys", "s3:max-keys"),
    ("versionId", "s3:versionid"),
)  # fmt: skip


def question_of(
    call: Call, action: str, bucket: BucketView, key: str = "", tags: Mapping[str, str] | None = None,
    *, prefix: str | None = None,
) -> Question:  # fmt: skip
    """tags: of the object that is there, None when nobody looked. prefix: of the list that is meant, where it is not
    the request's own."""
    who = call.principal
    now = call.at_ms / 1000
    context: dict[str, list[str]] = {
        "aws:sourceip": [call.exchange.peer], "aws:securetransport": ["true" if call.is_secure else "false"],
        "aws:currenttime": [datetime.fromtimestamp(now, UTC).isoformat()], "aws:epochtime": [str(int(now))],
        "aws:principaltype": ["User" if who.access else "Anonymous"],
    }  # fmt: skip
    if who.access:
        context["aws:username"] = context["aws:userid"] = [who.user]
        context["s3:signatureversion"] = ["AWS4-HMAC-SHA256"]
        context["s3:authtype"] = [_way_of_signing(call)]
    reads_source = action in OF_SOURCES and b"x-amz-copy-source" in call.header_names
    for header, name in _SOURCE_HEADERS if reads_source else _HEADERS:
        if header in call.header_names and (value := call.header(header)) is not None:
            context[name] = [value]
    for name, said in _QUERY:
        if name in call.query:
            context[said] = [call.query[name]]
    if prefix is not None:
        context["s3:prefix"] = [prefix]
    if reads_source:
        _add_existing(context, tags)
    else:
        _add_retention(context, now)
        _add_tags(context, call, tags)
    resource = f"arn:aws:s3:::{bucket.name}" + (f"/{key}" if key else "")
    return Question(who.user if who.access else "", who.access, action, resource, context)


def _way_of_signing(call: Call) -> str:
    if call.claim is None:
        return "POST"
    return "REST-QUERY-STRING" if call.claim.is_presigned else "REST-HEADER"


def _add_retention(context: dict[str, list[str]], now: float) -> None:
    """How long the request wants an object kept, in days."""
    until = context.get("s3:object-lock-retain-until-date")
    if until is None:
        return
    with contextlib.suppress(ValueError):
        at = datetime.fromisoformat(until[0])
        left = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now
        context["s3:object-lock-remaining-retention-days"] = [str(int(-(-left // _DAY_SECONDS)))]


def _add_tags(context: dict[str, list[str]], call: Call, existing: Mapping[str, str] | None) -> None:
    said = call.tags
    if said is None:
        with contextlib.suppress(ValueError):       # malformed ones are refused where they are kept
            said = dict(parse_qsl(
                call.header(b"x-amz-tagging") or "", keep_blank_values=True, max_num_fields=_TAGS_MAX
            ))  # fmt: skip
    if said:
        context["s3:requestobjecttagkeys"] = list(said)
        for name, value in said.items():
            context[f"s3:requestobjecttag/{name.lower()}"] = [value]
    _add_existing(context, existing)


def _add_existing(context: dict[str, list[str]], tags: Mapping[str, str] | None) -> None:
    for name, value in (tags or {}).items():
        context[EXISTING_TAG + name.lower()] = [value]
