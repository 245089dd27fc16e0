"""Our canonical request and signature against botocore's own signer: every request that it signs must verify."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote, unquote, urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from tierstore.auth import sigv4

ACCESS, SECRET, REGION = "TSEXAMPLE", "sécret/+key", "us-east-1"
KEYS = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=40)
NAMES = st.text("abcdefghijklmnop-", min_size=1, max_size=12)
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)


def _pairs(query: str) -> list[tuple[str, str]]:
    parts = [pair.partition("=") for pair in query.split("&") if pair]
    return [(unquote(name), unquote(value)) for name, _, value in parts]


@given(KEYS, st.dictionaries(NAMES, VALUES, max_size=4), st.dictionaries(NAMES, VALUES, max_size=4))
def test_a_request_signed_by_botocore_verifies(key: str, query: dict[str, str], extra: dict[str, str]) -> None:
    """A difference in one escape locks out the clients whose keys have it."""
    tail = "&".join(f"{quote(n, safe='-._~')}={quote(v, safe='-._~')}" for n, v in query.items())
    url = f"http://127.0.0.1:9000/bucket/{quote(key, safe='/-._~')}" + (f"?{tail}" if tail else "")
    request = AWSRequest("PUT", url, {f"x-amz-meta-{n}": v for n, v in extra.items()}, b"body")
    S3SigV4Auth(Credentials(ACCESS, SECRET), "s3", REGION).add_auth(request)
    headers = [(n.lower().encode(), v.encode()) for n, v in request.headers.items()]
    headers.append((b"host", b"127.0.0.1:9000"))
    claim = sigv4.parse_header(request.headers["Authorization"], headers)
    sigv4.check_headers(claim, headers)
    split = urlsplit(url)
    payload = request.headers["X-Amz-Content-SHA256"]
    canonical = sigv4.canonical_request(
        "PUT", split.path.encode(), sigv4.canonical_query(_pairs(split.query)), headers, claim.signed_headers, payload
    )
    signing = sigv4.SigningKeys()
    sigv4.verify(claim, signing.of(claim, SECRET), canonical)
    with pytest.raises(sigv4.SignatureError):
        sigv4.verify(claim, signing.of(claim, SECRET + "x"), canonical)
    with pytest.raises(sigv4.SignatureError):
        sigv4.verify(claim, signing.of(claim, SECRET), canonical + b"x")


@given(KEYS)
def test_a_request_dated_by_its_date_header_verifies(key: str) -> None:
    """botocore sends no x-amz-date where its caller set Date, and writes its zone as -0000."""
    request = AWSRequest("GET", f"http://127.0.0.1:9000/bucket/{quote(key, safe='/-._~')}", {"Date": "any"})
    S3SigV4Auth(Credentials(ACCESS, SECRET), "s3", REGION).add_auth(request)
    headers = [(n.lower().encode(), v.encode()) for n, v in request.headers.items()]
    headers.append((b"host", b"127.0.0.1:9000"))
    assert all(name != b"x-amz-date" for name, _ in headers)
    claim = sigv4.parse_header(request.headers["Authorization"], headers)
    assert claim.at == request.context["timestamp"]
    canonical = sigv4.canonical_request(
        "GET", urlsplit(request.url).path.encode(), b"", headers, claim.signed_headers, sigv4.EMPTY_SHA256
    )
    sigv4.verify(claim, sigv4.SigningKeys().of(claim, SECRET), canonical)


@given(KEYS, st.integers(0, sigv4.EXPIRES_SECONDS_MAX))
def test_a_url_presigned_by_botocore_verifies_until_it_expires(key: str, expires: int) -> None:
    """A presigned URL must work for as long as it says, and no second longer."""
    request = AWSRequest("GET", f"http://127.0.0.1:9000/bucket/{quote(key, safe='/-._~')}")
    S3SigV4QueryAuth(Credentials(ACCESS, SECRET), "s3", REGION, expires).add_auth(request)
    split = urlsplit(request.url)
    pairs = _pairs(split.query)
    claim = sigv4.parse_query(pairs)
    rest = [pair for pair in pairs if pair[0] != "X-Amz-Signature"]
    headers = [(b"host", b"127.0.0.1:9000")]
    canonical = sigv4.canonical_request(
        "GET", split.path.encode(), sigv4.canonical_query(rest), headers, claim.signed_headers, sigv4.UNSIGNED_PAYLOAD
    )
    sigv4.verify(claim, sigv4.SigningKeys().of(claim, SECRET), canonical)
    at = datetime.strptime(claim.at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    sigv4.check_time(claim, at + expires)
    with pytest.raises(sigv4.SignatureError, match="expired"):
        sigv4.check_time(claim, at + expires + 1)


def test_an_unsigned_amz_header_is_refused() -> None:
    """Otherwise who sees a signed PUT could turn it into a copy of another object."""
    claim = sigv4.Claim("A", "20260101", "r", "s3", ("host",), "0" * 64, "20260101T000000Z")
    sigv4.check_headers(claim, [(b"host", b"h"), (b"x-amz-content-sha256", b"x")])
    with pytest.raises(sigv4.SignatureError, match="not signed"):
        sigv4.check_headers(claim, [(b"host", b"h"), (b"x-amz-copy-source", b"/b/k")])


@given(st.text(max_size=200))
def test_any_authorization_text_is_read_or_refused(text: str) -> None:
    """A malformed header must be a 4xx, never a crash."""
    try:
        sigv4.parse_header("AWS4-HMAC-SHA256 " + text, [(b"x-amz-date", b"20260101T000000Z")])
    except sigv4.SignatureError as error:
        assert error.status in (400, 403)


@pytest.mark.parametrize("skew, refused", [(0, False), (899, False), (901, True), (-901, True)])
def test_a_request_far_from_now_is_refused(skew: int, refused: bool) -> None:
    """A captured request must not be replayed the next day."""
    claim = sigv4.Claim("A", "20260101", "r", "s3", ("host",), "0" * 64, "20260101T000000Z")
    now = datetime(2026, 1, 1, tzinfo=UTC).timestamp() + skew
    if not refused:
        sigv4.check_time(claim, now)
        return
    with pytest.raises(sigv4.SignatureError) as caught:
        sigv4.check_time(claim, now)
    assert caught.value.code == "RequestTimeTooSkewed"
