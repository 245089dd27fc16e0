"""Who sent an S3 request: SigV4 in its four forms, keys from metadata by way of a bounded cache.

Owns the cache of secrets. An entry lives for 60 s and goes when metadata's auth revision changes, as the tokens' do.
Invariants: a request with any sign of a signature is either verified or refused, never taken for anonymous; both ways
of signing at once are refused; x-amz-content-sha256 is part of what was signed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tierstore.auth import sigv4
from tierstore.auth.access import ANONYMOUS, Principal
from tierstore.auth.sigv4 import Claim, SigningKeys
from tierstore.clock import Clock
from tierstore.errors import NotAuthenticated, NotFound
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.request import Call
from tierstore.transport.metadata_client import MetadataClient
from tierstore.wire.cluster import Credential

STREAMING: Final = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
STREAMING_TRAILER: Final = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
STREAMING_UNSIGNED: Final = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
STREAMS: Final = frozenset({STREAMING, STREAMING_TRAILER, STREAMING_UNSIGNED})
ENTRIES_MAX: Final = 10_000
FRESH_SECONDS: Final = 60.0
NEGATIVE_SECONDS: Final = 2.0
_QUERY_SIGNS: Final = frozenset({"X-Amz-Signature", "X-Amz-Algorithm", "X-Amz-Credential"})
_HEX64 = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Entry:
    principal: Principal | None
    secret: str
    until: float


class Authenticator:
    """One per gateway process."""

    def __init__(self, client: MetadataClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._keys = SigningKeys()
        self._entries: dict[str, _Entry] = {}
        client.on_auth_change.append(self._entries.clear)

    async def authenticate(self, call: Call) -> None:
        """Fill in principal, claim and payload. Raises SignatureError, S3Error."""
        exchange = call.exchange
        header = exchange.header(b"authorization")
        is_query = bool(call.signature) or not call.names.isdisjoint(_QUERY_SIGNS)
        if header is not None and is_query:
            raise S3Error("InvalidArgument", "Only one auth mechanism allowed; only the X-Amz-Algorithm query "
                          "parameter, Signature query string parameter or the Authorization header should be specified")
        if "Signature" in call.query and "AWSAccessKeyId" in call.query:
            raise S3Error("InvalidRequest", "Signature Version 2 is not supported; please use AWS4-HMAC-SHA256.")
        call.payload = call.header(b"x-amz-content-sha256") or ""
        if header is None and not is_query:
            if call.payload in (STREAMING, STREAMING_TRAILER):
                raise S3Error("AccessDenied")
            return
        if header is not None:
            claim = sigv4.parse_header(header.decode("latin-1"), exchange.headers)
            if not call.payload:
                raise S3Error("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
            _check_payload(call.payload)
            payload = call.payload
        else:
            asked = call.asked
            claim = sigv4.presigned(asked.pairs, call.signature) if call.signature else sigv4.parse_query(asked.pairs)
            payload = call.payload if "x-amz-content-sha256" in claim.signed_headers else sigv4.UNSIGNED_PAYLOAD
            call.payload = payload
            _check_payload(payload)
        principal, secret = await self.key(claim.access)
        sigv4.check_headers(claim, exchange.headers)
        key = self._keys.of(claim, secret)
        canonical = sigv4.canonical_request(
            call.method, call.path, call.asked.canonical, exchange.headers, claim.signed_headers, payload
        )
        sigv4.verify(claim, key, canonical)
        sigv4.check_time(claim, self._clock.now_ms() / 1000)
        call.principal, call.claim, call.signing_key = principal, claim, key

    async def key(self, access: str) -> tuple[Principal, str]:
        """The holder and secret of an access key. Raises S3Error(InvalidAccessKeyId)."""
        now = self._clock.monotonic()
        entry = self._entries.get(access)
        if entry is None or entry.until <= now:
            entry = await self._ask(access)
            while len(self._entries) >= ENTRIES_MAX:
                del self._entries[next(iter(self._entries))]
            self._entries[access] = entry
        if entry.principal is None:
            raise S3Error("InvalidAccessKeyId", AWSAccessKeyId=access[:128])
        return entry.principal, entry.secret

    async def _ask(self, access: str) -> _Entry:
        now = self._clock.monotonic()
        try:
            found = await self._client.credential(access=access)
        except (NotFound, NotAuthenticated):
            return _Entry(None, "", now + NEGATIVE_SECONDS)
        has_expired = 0 < found.expires_at_ms <= self._client.catalog_ms()
        if not found.enabled or has_expired or not found.secret:
            return _Entry(None, "", now + NEGATIVE_SECONDS)
        return _Entry(_principal(found), found.secret, now + FRESH_SECONDS)

    async def form(self, credential: str, policy: str, signature: str) -> Principal:
        """The signer of a POST form's policy. Raises SignatureError, S3Error."""
        principal, secret = await self.key(credential.split("/", 1)[0])
        sigv4.verify_policy(secret, credential, policy, signature)
        return principal


def _principal(found: Credential) -> Principal:
    return Principal(found.access, found.user, found.grants, policies=tuple(found.policies))


def _check_payload(payload: str) -> None:
    if payload not in STREAMS and payload != sigv4.UNSIGNED_PAYLOAD and not _HEX64.fullmatch(payload):
        raise S3Error(
            "InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, a STREAMING form or a sha256 value."
        )


def signed_chunks(call: Call) -> tuple[Claim, bytes] | None:
    """What the chunks of a streaming body are signed with; None when they are not."""
    if call.payload in (STREAMING, STREAMING_TRAILER) and call.claim is not None:
        return call.claim, call.signing_key
    return None


def is_anonymous(principal: Principal) -> bool:
    return principal is ANONYMOUS or not principal.access
