"""Who is asking: bearer tokens to principals, through a bounded cache of what metadata said.

Owns the cache only; the keys are metadata's. An entry lives for `fresh_seconds`, is dropped when metadata's
auth_revision changes (a revoked key is refused from the next answer of metadata on), and misses are remembered for
`negative_seconds` so that guessing costs metadata little. Tokens are kept as SHA-256 only.

Cost of a hit: one SHA-256 of some 60 bytes and a dict look-up, under 2 us.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from tierstore.auth.access import ANONYMOUS, USER_TOKEN, Principal, parse_bearer, token_hash
from tierstore.clock import Clock
from tierstore.errors import NotAuthenticated, NotFound
from tierstore.transport.metadata_client import MetadataClient
from tierstore.wire.cluster import Credential


@dataclass(frozen=True, slots=True)
class CredentialLimits:
    entries_max: int = 10_000
    fresh_seconds: float = 60.0
    negative_seconds: float = 2.0
    lookups_max: int = 64              # credential look-ups under way; more strangers wait their turn

#: Headers whose hash is remembered; a table that is full is emptied.
HEADERS_MAX: Final = 1024


class CredentialCache:
    """One per gateway process."""

    def __init__(self, client: MetadataClient, clock: Clock, limits: CredentialLimits | None = None) -> None:
        self._client = client
        self._clock = clock
        self._limits = limits or CredentialLimits()
        self._entries: dict[bytes, tuple[Principal | None, float]] = {}
        self._asking: dict[bytes, asyncio.Task[Principal | None]] = {}
        #: Headers seen before -> the hash of their token: clients repeat theirs, and parsing and hashing cost 4 us.
        self._digests: dict[bytes, bytes] = {}
        self._generation = 0
        self._turns = asyncio.Semaphore(self._limits.lookups_max)
        client.on_auth_change.append(self.flush)

    def flush(self) -> None:
        """Keys or rights have changed: believe nothing that was heard before."""
        self._generation += 1
        self._entries.clear()
        self._asking.clear()
        self._digests.clear()

    def known(self, header: bytes | None) -> Principal | None:
        """The principal of an Authorization header if it is known at once; None: ask with resolve().

        Raises NotAuthenticated for a header that is no user's token, and for a token refused a moment ago."""
        if header is None:
            return ANONYMOUS
        digest = self._digests.get(header)
        if digest is None:
            digest = _hash_of(header)
            if len(self._digests) >= HEADERS_MAX:
                self._digests.clear()
            self._digests[header] = digest
        return self._fresh(digest)

    def _fresh(self, digest: bytes) -> Principal | None:
        entry = self._entries.get(digest)
        if entry is None:
            return None
        principal, until = entry
        if until <= self._clock.monotonic():
            del self._entries[digest]
            return None
        if principal is None:
            raise NotAuthenticated("the token is not known, was revoked or has expired")
        return principal

    async def resolve(self, header: bytes | None) -> Principal:
        """The principal of an Authorization header. Raises NotAuthenticated, UnavailableError."""
        if header is None:
            return ANONYMOUS
        digest = _hash_of(header)
        principal = self._fresh(digest)
        if principal is not None:
            return principal
        task = self._asking.get(digest)
        if task is None:
            task = self._asking[digest] = asyncio.get_running_loop().create_task(self._ask(digest))
            task.add_done_callback(lambda done: self._forget(digest, done))
        # several requests wait for one answer: one that goes away must not cancel it for the others
        principal = await asyncio.shield(task)
        if principal is None:
            raise NotAuthenticated("the token is not known, was revoked or has expired")
        return principal

    async def _ask(self, digest: bytes) -> Principal | None:
        generation = self._generation
        async with self._turns:
            try:
                credential = await self._client.credential(token_sha256=digest)
                principal = self._principal(credential)
            except (NotAuthenticated, NotFound):
                principal = None
        if generation == self._generation:
            self._remember(digest, principal)
        return principal

    def _principal(self, credential: Credential) -> Principal | None:
        has_expired = 0 < credential.expires_at_ms <= self._client.catalog_ms()
        if not credential.enabled or has_expired:
            return None
        return Principal(
            credential.access, credential.user, credential.grants, policies=tuple(credential.policies)
        )

    def _remember(self, digest: bytes, principal: Principal | None) -> None:
        while len(self._entries) >= self._limits.entries_max:
            del self._entries[next(iter(self._entries))]
        seconds = self._limits.fresh_seconds if principal is not None else self._limits.negative_seconds
        self._entries[digest] = (principal, self._clock.monotonic() + seconds)

    def _forget(self, digest: bytes, task: asyncio.Task[Principal | None]) -> None:
        if self._asking.get(digest) is task:
            del self._asking[digest]
        if not task.cancelled():
            task.exception()        # the waiters raise it; with none left there is nobody to tell


def _hash_of(header: bytes) -> bytes:
    kind, _, token = parse_bearer(header)
    if kind != USER_TOKEN:
        raise NotAuthenticated("a gateway takes users' tokens only")
    return token_hash(token)
