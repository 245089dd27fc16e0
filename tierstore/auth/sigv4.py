"""AWS Signature Version 4: what a request claims, and whether it was signed with the key's secret. Pure.

Owns the forms (Authorization header, presigned query, chunk and trailer signatures, POST policies) and the canonical
request (AWS General Reference, "Create a canonical request"; S3 never normalises the path). The time is passed in.

Invariants: every comparison takes constant time; every `x-amz-*` header of a request must be in SignedHeaders, else it
is refused (an unsigned one could change what a signed request does); a claim is only believed after `verify`.

Cost: 10 us a request in all: clients repeat credential, signed names and second, so what was read of them before is
kept (bounded), and so is the signing key of a day (`SigningKeys`); what has no byte to encode is not encoded. A
signature itself is computed and compared for every request: none is remembered as good.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, unquote_to_bytes

import msgspec

ALGORITHM: Final = "AWS4-HMAC-SHA256"
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"
#: How far the client's clock may be from ours.
SKEW_SECONDS: Final = 15 * 60
EXPIRES_SECONDS_MAX: Final = 7 * 24 * 3600
#: Signing keys kept; one per access key, day and region.
_KEYS_MAX: Final = 4096
_SIGNED_HEADERS_MAX: Final = 256
_DATE = re.compile(r"\d{8}T\d{6}Z", re.ASCII)
_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_UNRESERVED: Final = "-._~"
_SPACES = re.compile(rb"  +")
#: What canonical paths and values are when nothing has to be encoded.
_PLAIN_PATH = re.compile(rb"[A-Za-z0-9/._~-]+")
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9._~-]*", re.ASCII)
#: Lists of signed names, seconds and encoded texts that were read before and are kept; longer texts are not.
_READ_MAX: Final = 1024
_SHORT_CHARS: Final = 256
_LONG_CHARS: Final = 1024
_SIGNATURE_CHARS: Final = 64
#: Stands for a signature where what is beside it is read.
_NO_SIGNATURE: Final = "0" * _SIGNATURE_CHARS


class SignatureError(Exception):
    """A request whose signature cannot be believed. `code`: S3's error code, `status` its HTTP status."""

    def __init__(self, code: str, message: str, status: int = 403, **fields: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.fields = fields


class Claim(msgspec.Struct, frozen=True, gc=False):
    """What a request says about its signature. expires_seconds: of a presigned URL, else 0. (A Struct: one is made for
    every request, in a fifth of the time that a dataclass takes.)"""

    access: str
    date: str                   # 20260131
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str
    at: str                     # 20260131T120000Z
    is_presigned: bool = False
    expires_seconds: int = 0
    token: str = ""

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


Headers = Sequence[tuple[bytes, bytes]]


def parse_header(value: str, headers: Headers) -> Claim:
    """The claim of an Authorization header. Raises SignatureError."""
    at = _header(headers, b"x-amz-date") or _http_date(_header(headers, b"date"))
    head, signature = value[:-_SIGNATURE_CHARS], value[-_SIGNATURE_CHARS:]
    if len(head) <= _LONG_CHARS and head.endswith("Signature=") and _HEX64.fullmatch(signature):
        return _with_signature(_known_header(head + _NO_SIGNATURE, at), signature)
    return _parse_header(value, at)


def _parse_header(value: str, at: str) -> Claim:
    if value.startswith("AWS "):
        raise SignatureError(
            "InvalidRequest", "Signature Version 2 is not supported; please use AWS4-HMAC-SHA256.", 400
        )
    scheme, _, rest = value.partition(" ")
    if scheme != ALGORITHM:
        raise SignatureError("InvalidArgument", "Unsupported Authorization Type", 400)
    parts: dict[str, str] = {}
    for part in rest.split(","):
        name, equals, text = part.strip().partition("=")
        if not equals or name in parts:
            raise _malformed("The authorization header is malformed; a part is not NAME=VALUE.")
        parts[name] = text
    if parts.keys() != {"Credential", "SignedHeaders", "Signature"}:
        raise _malformed("The authorization header needs Credential, SignedHeaders and Signature.")
    if not _DATE.fullmatch(at):
        raise SignatureError("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header")
    return _claim(parts["Credential"], parts["SignedHeaders"], parts["Signature"], at)


#: A client's header is the same but for its signature, for as long as its second lasts.
_known_header = functools.lru_cache(maxsize=_READ_MAX)(_parse_header)


def _with_signature(claim: Claim, signature: str) -> Claim:
    return Claim(claim.access, claim.date, claim.region, claim.service, claim.signed_headers, signature, claim.at,
                 claim.is_presigned, claim.expires_seconds, claim.token)  # fmt: skip


Pairs = tuple[tuple[str, str], ...]


def presigned(pairs: Pairs, signature: str) -> Claim:
    """The claim of a presigned URL whose signature (64 hex digits) was taken out of its query. What stands beside it is
    the same for all URLs of one key and second. pairs: of a query that is short. Raises SignatureError."""
    return _with_signature(_presigned(pairs), signature)


@functools.lru_cache(maxsize=_READ_MAX)
def _presigned(pairs: Pairs) -> Claim:
    return parse_query([*pairs, ("X-Amz-Signature", _NO_SIGNATURE)])


def parse_query(pairs: Sequence[tuple[str, str]]) -> Claim:
    """The claim of a presigned URL. Raises SignatureError."""
    query = dict(pairs)
    if query.get("X-Amz-Algorithm") != ALGORITHM:
        raise _query("X-Amz-Algorithm only supports AWS4-HMAC-SHA256")
    for name in ("X-Amz-Credential", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Expires", "X-Amz-Signature"):
        if sum(1 for key, _ in pairs if key == name) != 1:
            raise _query(f"Query-string authentication requires {name}, once")
    expires = query["X-Amz-Expires"]
    if not expires.isascii() or not expires.isdigit() or len(expires) > 9:
        raise _query("X-Amz-Expires must be non-negative")
    if int(expires) > EXPIRES_SECONDS_MAX:
        raise _query("X-Amz-Expires must be less than a week (in seconds); that is 604800")
    if not _DATE.fullmatch(query["X-Amz-Date"]):
        raise _query('X-Amz-Date must be in the ISO8601 Long Format "yyyyMMdd\'T\'HHmmss\'Z\'"')
    return _claim(
        query["X-Amz-Credential"], query["X-Amz-SignedHeaders"], query["X-Amz-Signature"], query["X-Amz-Date"],
        is_presigned=True, expires_seconds=int(expires), token=query.get("X-Amz-Security-Token", ""),
    )  # fmt: skip


def _claim(
    credential: str, signed: str, signature: str, at: str, *, is_presigned: bool = False, expires_seconds: int = 0,
    token: str = "",
) -> Claim:  # fmt: skip
    refuse = _query if is_presigned else _malformed
    access, date, region, service, end = _scope_of(credential, refuse)
    if end != "aws4_request" or not date.isdigit() or len(date) != 8:
        raise refuse("The Credential is malformed; expecting ACCESS/YYYYMMDD/REGION/SERVICE/aws4_request.")
    if service != "s3":
        raise refuse(f"Error parsing the Credential; incorrect service {service[:32]!r}; this endpoint belongs to s3.")
    if date != at[:8]:
        raise refuse("The date of the Credential is not the same as X-Amz-Date.")
    names = _signed_names(signed)
    if not names:
        raise refuse("SignedHeaders must be lower-case names in order, separated by ';'.")
    if not _HEX64.fullmatch(signature):
        raise SignatureError("SignatureDoesNotMatch", _MISMATCH)
    return Claim(access, date, region, service, names, signature, at, is_presigned, expires_seconds, token)


@functools.lru_cache(maxsize=_READ_MAX)
def _signed_names(text: str) -> tuple[str, ...]:
    """The names of SignedHeaders; () when they are not as they must be."""
    names = tuple(text.split(";"))
    if not text or len(names) > _SIGNED_HEADERS_MAX or list(names) != sorted({name.lower() for name in names}):
        return ()
    return names


def _scope_of(credential: str, refuse: Callable[[str], SignatureError]) -> tuple[str, str, str, str, str]:
    parts = credential.rsplit("/", 4)
    if len(parts) != 5 or not parts[0]:
        raise refuse("The Credential is malformed; expecting ACCESS/YYYYMMDD/REGION/SERVICE/aws4_request.")
    return parts[0], parts[1], parts[2], parts[3], parts[4]


def check_headers(claim: Claim, headers: Headers) -> None:
    """Raises SignatureError unless host and every x-amz-* header were signed (x-amz-content-sha256 is covered by the
    canonical request itself)."""
    signed = claim.signed_headers
    if "host" not in signed:
        raise SignatureError("AccessDenied", "There were headers present in the request which were not signed: host")
    for name, _ in headers:
        if name.startswith(b"x-amz-") and name != b"x-amz-content-sha256" and name.decode("latin-1") not in signed:
            raise SignatureError(
                "AccessDenied", "There were headers present in the request which were not signed",
                HeadersNotSigned=name.decode("latin-1"),
            )  # fmt: skip


def check_time(claim: Claim, now: float) -> None:
    """Raises SignatureError for a request too far from now (seconds since 1970), or a presigned URL past its end."""
    at = _seconds(claim.at)
    if at < 0:
        raise SignatureError("AccessDenied", "The date of the request is no date")
    if claim.is_presigned:
        if at > now + SKEW_SECONDS:
            raise SignatureError("AccessDenied", "Request is not valid yet")
        if now > at + claim.expires_seconds:
            raise SignatureError("AccessDenied", "Request has expired")
        return
    if abs(now - at) > SKEW_SECONDS:
        raise SignatureError(
            "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."
        )


@functools.lru_cache(maxsize=_READ_MAX)
def _seconds(at: str) -> float:
    """Seconds since 1970 of 20260131T120000Z; -1 for no date. Many requests share a second."""
    try:
        return datetime.strptime(at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return -1.0


def canonical_request(  # noqa: PLR0917 - the six lines of AWS's definition, in its order
    method: str, path: bytes, query: bytes, headers: Headers, signed: tuple[str, ...], payload: str
) -> bytes:
    """AWS's canonical request. path: raw, as sent; query: canonical_query() of all but X-Amz-Signature."""
    joined, names = _signed_bytes(signed)
    values: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in names:
            continue
        text = value.strip()
        if b"  " in text:
            text = _SPACES.sub(b" ", text)
        values[name] = values[name] + b"," + text if name in values else text
    lines = b"".join([b"%b:%b\n" % (name, values.get(name, b"")) for name in names])
    return b"%b\n%b\n%b\n%b\n%b\n%b" % (
        method.encode("ascii"), canonical_path(path), query, lines, joined, payload.encode("latin-1")
    )


@functools.lru_cache(maxsize=_READ_MAX)
def _signed_bytes(signed: tuple[str, ...]) -> tuple[bytes, dict[bytes, None]]:
    """The signed names as they stand in a canonical request: joined, and one by one in their order (a name that stands
    there twice was refused)."""
    return ";".join(signed).encode("latin-1"), {name.encode("latin-1"): None for name in signed}


def canonical_path(path: bytes) -> bytes:
    """Each segment encoded once, whatever encoding it came with."""
    if _PLAIN_PATH.fullmatch(path):
        return path
    return quote(unquote_to_bytes(path), safe="/" + _UNRESERVED).encode("ascii") or b"/"


def canonical_query(pairs: Iterable[tuple[str, str]]) -> bytes:
    encoded = sorted([(_uri(name), _uri(value)) for name, value in pairs])
    return "&".join(f"{name}={value}" for name, value in encoded).encode("ascii")


def _uri(text: str) -> str:
    if _PLAIN_TEXT.fullmatch(text):
        return text
    return _short_uri(text) if len(text) <= _SHORT_CHARS else _encoded(text)


def _encoded(text: str) -> str:
    return quote(text.encode("utf-8", "surrogateescape"), safe=_UNRESERVED)


#: Credentials and lists of signed names of presigned URLs, which come again and again.
_short_uri = functools.lru_cache(maxsize=_READ_MAX)(_encoded)


def string_to_sign(at: str, scope: str, canonical: bytes) -> bytes:
    return f"{ALGORITHM}\n{at}\n{scope}\n{hashlib.sha256(canonical).hexdigest()}".encode()


def signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    """The key of one day, region and service."""
    key = b"AWS4" + secret.encode()
    for part in (date, region, service, "aws4_request"):
        key = _mac(key, part.encode())
    return key


class SigningKeys:
    """Signing keys of the last days, by (access, secret, date, region): four HMACs saved per request."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str, str, str], bytes] = {}

    def of(self, claim: Claim, secret: str) -> bytes:
        which = (claim.access, secret, claim.date, claim.region)
        key = self._keys.get(which)
        if key is None:
            if len(self._keys) >= _KEYS_MAX:
                self._keys.clear()
            key = self._keys[which] = signing_key(secret, claim.date, claim.region, claim.service)
        return key


def verify(claim: Claim, key: bytes, canonical: bytes) -> None:
    """Raises SignatureError(SignatureDoesNotMatch) unless the claim's signature is that of the canonical request."""
    expected = _mac(key, string_to_sign(claim.at, claim.scope, canonical)).hex()
    if not hmac.compare_digest(expected, claim.signature):
        raise SignatureError("SignatureDoesNotMatch", _MISMATCH)


def verify_policy(secret: str, credential: str, policy: str, signature: str) -> str:
    """Check the signature of a POST form's policy (base64 text); the access key. Raises SignatureError."""
    access, date, region, service, end = _scope_of(credential, _malformed)
    if end != "aws4_request" or service != "s3":
        raise _malformed("The x-amz-credential is malformed.")
    expected = _mac(signing_key(secret, date, region, service), policy.encode()).hex()
    if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
        raise SignatureError("SignatureDoesNotMatch", _MISMATCH)
    return access


class ChunkSigner:
    """The chain of signatures in a STREAMING-AWS4-HMAC-SHA256-PAYLOAD body: each names the one before it."""

    def __init__(self, key: bytes, claim: Claim) -> None:
        self._key = key
        self._at = claim.at
        self._scope = claim.scope
        self._previous = claim.signature

    def check_chunk(self, sha256_hex: str, signature: str) -> None:
        """The next chunk, whose data has this hash. Raises SignatureError."""
        self._check("AWS4-HMAC-SHA256-PAYLOAD", f"{EMPTY_SHA256}\n{sha256_hex}", signature)

    def check_trailer(self, trailer: bytes, signature: str) -> None:
        """The trailer lines `name:value\\n` as AWS joins them. Raises SignatureError."""
        self._check("AWS4-HMAC-SHA256-TRAILER", hashlib.sha256(trailer).hexdigest(), signature)

    def _check(self, kind: str, tail: str, signature: str) -> None:
        text = f"{kind}\n{self._at}\n{self._scope}\n{self._previous}\n{tail}"
        expected = _mac(self._key, text.encode()).hex()
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
            raise SignatureError("SignatureDoesNotMatch", _MISMATCH)
        self._previous = expected


_MISMATCH: Final = (
    "The request signature we calculated does not match the signature you provided. Check your key and signing method."
)


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _malformed(message: str) -> SignatureError:
    return SignatureError("AuthorizationHeaderMalformed", message, 400)


def _query(message: str) -> SignatureError:
    return SignatureError("AuthorizationQueryParametersError", message, 400)


def _header(headers: Headers, name: bytes) -> str:
    return next((value.decode("latin-1").strip() for key, value in headers if key == name), "")


def _http_date(text: str) -> str:
    """An RFC 9110 date, in UTC however that is written, in the form of x-amz-date; "" for anything else."""
    moment = text
    for zone in (" GMT", " -0000", " +0000"):  # the second is what botocore sends
        moment = moment.removesuffix(zone)
    try:
        at = datetime.strptime(moment, "%a, %d %b %Y %H:%M:%S") if moment != text else None
    except ValueError:
        at = None
    return at.strftime("%Y%m%dT%H%M%SZ") if at is not None else text if _DATE.fullmatch(text) else ""
