"""One S3 request as the handlers see it: bucket, key, query, headers. Pure parsing.

Invariant: what is here was decoded once and checked; anything malformed was answered 400 before.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from tierstore.auth import sigv4
from tierstore.auth.access import ANONYMOUS, Principal
from tierstore.auth.sigv4 import Claim
from tierstore.errors import RequestError
from tierstore.gateway.s3.errors import S3Error
from tierstore.names import check_bucket_name, check_key
from tierstore.sdk.early import EarlyRead
from tierstore.serving.exchange import Exchange

QUERY_PAIRS_MAX: Final = 1000
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
#: Queries read before that are kept, and the largest that is: 8 MiB at most in a process.
_KEPT_MAX: Final = 1024
_KEPT_BYTES_MAX: Final = 1024
_KEPT_PAIRS_MAX: Final = 24
_SIGNATURE = re.compile(rb"&X-Amz-Signature=([0-9a-f]{64})(?=&|\Z)")
_NAME: Final = itemgetter(0)


@dataclass(frozen=True, slots=True)
class Query:
    """A query as it was read: shared by requests, never changed. values: of each name the first; canonical: as SigV4
    signs it."""

    pairs: sigv4.Pairs
    values: Mapping[str, str]
    names: frozenset[str]
    canonical: bytes


_NO_QUERY: Final = Query((), {}, frozenset(), b"")


class Deleted(NamedTuple):
    """One key of a DeleteObjects. code: of an error, "" where there was none."""

    key: str
    version: str
    status: int
    code: str


@dataclass(slots=True)
class Answer:
    """What was answered, for access logs. length: of the body; object_bytes: of the object, -1 where there is none;
    code: of an error; by_list: whether a list of grants let the caller in, and nothing else would have; deleted: what
    a DeleteObjects did, where its bucket is logged."""

    status: int = 0
    length: int = 0
    object_bytes: int = -1
    code: str = ""
    by_list: bool = False
    deleted: list[Deleted] = field(default_factory=list)


@dataclass(slots=True)
class Call:
    """A request under way. signature: of a presigned URL, where it was taken out of the query; payload:
    x-amz-content-sha256 as sent; claim and signing_key: of signed requests; at_ms: when it came; tags: those that its
    body brings, None where they stand in a header; early: its read, where that was begun before the look-up."""

    exchange: Exchange
    method: str
    path: bytes
    bucket: str
    key: str
    asked: Query
    signature: str = ""
    principal: Principal = ANONYMOUS
    claim: Claim | None = None
    signing_key: bytes = b""
    payload: str = ""
    has_begun: bool = False
    extra_lines: bytes = b""
    at_ms: int = 0
    is_secure: bool = False
    tags: dict[str, str] | None = None
    early: EarlyRead | None = None
    #: Actions that a list of grants let him do, and nothing else would have.
    by_list: set[str] = field(default_factory=set)
    #: Of what was answered.
    answer: Answer = field(default_factory=Answer)
    #: Values and names of the query.
    query: Mapping[str, str] = field(init=False)
    names: frozenset[str] = field(init=False)
    #: Names of all headers: one look tells that a request has none of a rare group.
    header_names: frozenset[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.query, self.names = self.asked.values, self.asked.names
        self.header_names = frozenset(map(_NAME, self.exchange.headers))

    def header(self, name: bytes) -> str | None:
        """A header's value as text, None when it is not there."""
        raw = self.exchange.header(name)
        return None if raw is None else header_text(raw)

    def reply(self, status: int, body: bytes = b"", lines: bytes = b"") -> None:
        self.has_begun = True
        self.answer.status, self.answer.length = status, len(body)
        self.exchange.reply(status, body, lines + self.extra_lines)

    def add_line(self, line: bytes) -> None:
        """A header line of the answer, once however often it is said."""
        if line not in self.extra_lines:
            self.extra_lines += line

    @property
    def resource(self) -> str:
        return f"/{self.bucket}/{self.key}" if self.key else f"/{self.bucket}"


def header_text(raw: bytes) -> str:
    """UTF-8 where it is, else Latin-1, which every header is."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def parse_call(exchange: Exchange, domain: str, *, at_ms: int, is_secure: bool) -> Call:
    """Its answer will carry the request's id by the name that S3's clients look for. Raises S3Error(InvalidURI)."""
    path, _, query = exchange.target.partition(b"?")
    bucket_raw, _, key_raw = path[1:].partition(b"/")
    if domain:
        host = (exchange.header(b"host") or b"").decode("latin-1").partition(":")[0].lower()
        if host.endswith("." + domain):
            bucket_raw, key_raw = host[: -len(domain) - 1].encode("latin-1"), path[1:]
    asked, signature = read_query(query) if query else (_NO_QUERY, "")
    method = exchange.method.decode("ascii")
    call = Call(exchange, method, path, decoded(bucket_raw), decoded(key_raw), asked, signature)
    call.at_ms, call.is_secure = at_ms, is_secure
    call.extra_lines = request_id_line(exchange.request_id)
    return call


def request_id_line(request_id: str) -> bytes:
    """Of every answer of this door, errors too."""
    return b"x-amz-request-id: %b\r\n" % request_id.encode("ascii", "replace")


def check_names(call: Call) -> None:
    """Raises S3Error for names that no bucket or object may have."""
    try:
        if call.bucket:
            check_bucket_name(call.bucket)
        if call.key:
            check_key(call.key)
    except RequestError as error:
        if error.code == "bad-bucket-name":
            raise S3Error("InvalidBucketName", BucketName=call.bucket[:80]) from None
        raise


def read_query(query: bytes) -> tuple[Query, str]:
    """The query, and the signature of a presigned URL where that stands out: without it URLs of one key and second are
    the same, and are read once. Raises S3Error(InvalidURI, InvalidArgument)."""
    found = _SIGNATURE.search(query)
    if found is not None:
        rest = query[: found.start()] + query[found.end() :]
        if _is_small(rest) and "X-Amz-Signature" not in (read := _kept(rest)).names:
            return read, found[1].decode("ascii")
    return (_kept(query) if _is_small(query) else _read(query)), ""


def _is_small(query: bytes) -> bool:
    return len(query) <= _KEPT_BYTES_MAX and query.count(b"&") < _KEPT_PAIRS_MAX


def _read(query: bytes) -> Query:
    pairs = tuple(parse_query(query))
    values: dict[str, str] = {}
    for name, value in pairs:
        values.setdefault(name, value)
    canonical = sigv4.canonical_query([pair for pair in pairs if pair[0] != "X-Amz-Signature"])
    return Query(pairs, values, frozenset(values), canonical)


_kept = functools.lru_cache(maxsize=_KEPT_MAX)(_read)


def parse_query(query: bytes) -> list[tuple[str, str]]:
    pairs = []
    for pair in query.split(b"&") if query else ():
        if not pair:
            continue
        name, _, value = pair.partition(b"=")
        pairs.append((decoded(name.replace(b"+", b" ")), decoded(value.replace(b"+", b" "))))
        if len(pairs) > QUERY_PAIRS_MAX:
            raise S3Error("InvalidArgument", "Too many query parameters")
    return pairs


def decoded(raw: bytes) -> str:
    """Percent-decoded UTF-8. Raises S3Error(InvalidURI)."""
    if b"%" in raw:
        if _BAD_ESCAPE.search(raw):
            raise S3Error("InvalidURI", "Could not parse the specified URI.")
        raw = unquote_to_bytes(raw)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", "Could not parse the specified URI: it is not UTF-8.") from None


def number(value: str | None, name: str, *, default: int, least: int, most: int) -> int:
    """A number of the query; more than `most` counts as `most`. Raises S3Error(InvalidArgument)."""
    if value is None or (value == "" and default >= 0):
        return default
    if not value.isascii() or not value.isdigit() or len(value) > 10 or int(value) < least:
        raise S3Error("InvalidArgument", f"Provided {name} not an integer or within integer range",
                      ArgumentName=name, ArgumentValue=value[:40])  # fmt: skip
    return min(int(value), most)


def etags(header: str | None) -> list[str]:
    """The ETags of a condition, without quotes; clients send them bare too."""
    if header is None:
        return []
    found = [part.strip().removeprefix("W/").strip('"') for part in header.split(",")]
    return [etag for etag in found if etag][:64]


def first(pairs: Sequence[tuple[str, str]], name: str) -> str | None:
    return next((value for key, value in pairs if key == name), None)
