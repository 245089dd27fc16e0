"""Conditions of requests: which version is meant, If-Match and its kin on reads and writes."""

from __future__ import annotations

import contextlib
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from tierstore.errors import NotFound, PreconditionFailed, TierstoreError
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.request import Call, etags
from tierstore.names import parse_version
from tierstore.sdk.store import Store
from tierstore.wire.names import Condition

NULL_VERSION: Final = -1
_ON_READS: Final = frozenset({b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"})


_OF_DIRECTORY_BUCKETS: Final = (b"x-amz-if-match-size", b"x-amz-if-match-last-modified-time")
ONLY_DIRECTORY_BUCKETS: Final = "Only directory buckets know this condition; use If-Match."
_NOT_TAKEN: Final = "{} does not take that value here"


def version_of(text: str | None) -> int:
    """0: the latest. Raises S3Error(InvalidArgument)."""
    if text is None:
        return 0
    if text == "null":
        return NULL_VERSION
    try:
        return parse_version(text)
    except TierstoreError:
        raise S3Error("InvalidArgument", "Invalid version id specified", ArgumentName="versionId",
                      ArgumentValue=text[:64]) from None  # fmt: skip


def write_condition(call: Call) -> Condition | None:
    """If-Match and If-None-Match of a write. Raises S3Error(NotImplemented) for what S3 does not take."""
    if_match, if_none = call.header(b"if-match"), call.header(b"if-none-match")
    if if_match is None and if_none is None:
        return None
    if if_match is not None and if_none is not None:
        raise S3Error("NotImplemented", "A write takes one condition, not several.", Header="If-Match")
    # at AWS a write may ask that nothing is there, or that exactly this version is
    if if_none is not None and if_none.strip() != "*":
        raise S3Error("NotImplemented", _NOT_TAKEN.format("If-None-Match"), Header="If-None-Match")
    if if_match is not None and if_match.strip() == "*":
        raise S3Error("NotImplemented", _NOT_TAKEN.format("If-Match"), Header="If-Match")
    return Condition(named_etags(if_match), etags(if_none))


def named_etags(header: str | None) -> list[str]:
    """The ETags one of which must be there; of a header that names none, one that nothing has: it must not pass."""
    return [] if header is None else etags(header) or [""]


def delete_condition(call: Call) -> Condition | None:
    """If-Match of a DeleteObject. Raises S3Error(NotImplemented) for the conditions that only directory buckets know:
    passed over, they would delete what the client wants kept."""
    for name in _OF_DIRECTORY_BUCKETS:
        if call.header(name) is not None:
            raise S3Error("NotImplemented", ONLY_DIRECTORY_BUCKETS, Header=name.decode())
    text = call.header(b"if-match")
    return Condition(if_match=named_etags(text)) if text is not None else None


async def why_refused(store: Store, call: Call, condition: Condition | None, error: PreconditionFailed) -> Exception:
    """What a write hears whose condition did not hold: If-Match on a key that is not there is NoSuchKey, as AWS has
    it. Asked after the commit has refused, so it decides nothing."""
    if condition is not None and condition.if_match:
        try:
            await store.find(call.bucket, call.key, want_chunks=False)
        except NotFound:
            return S3Error("NoSuchKey")
    return error


def has_no_condition(call: Call) -> bool:
    """Whether a read hangs on nothing that is found."""
    return call.header_names.isdisjoint(_ON_READS)


def read_condition(call: Call, etag: str, created_at_ms: int, *, prefix: bytes = b"") -> bool:
    """False: 304. Raises S3Error(PreconditionFailed). RFC 9110, 13.2.2."""
    if not prefix and has_no_condition(call):
        return True
    if_match, if_none = call.header(prefix + b"if-match"), call.header(prefix + b"if-none-match")
    modified = created_at_ms // 1000
    if if_match is not None:
        if etag not in etags(if_match) and if_match.strip() != "*":
            raise S3Error("PreconditionFailed", Condition="If-Match")
    elif (since := _date(call.header(prefix + b"if-unmodified-since"))) is not None and modified > since:
        raise S3Error("PreconditionFailed", Condition="If-Unmodified-Since")
    if if_none is not None:
        return etag not in etags(if_none) and if_none.strip() != "*"
    since = _date(call.header(prefix + b"if-modified-since"))
    return since is None or modified > since


def _date(text: str | None) -> float | None:
    """Seconds; None for no date, which a server ignores."""
    if text is None:
        return None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        found = parsedate_to_datetime(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return None
