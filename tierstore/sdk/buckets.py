"""Bucket calls of a client: JSON over the published REST of a gateway (or of metadata, which answers the same)."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec

from tierstore.errors import TierstoreError, UnavailableError
from tierstore.transport.metadata_calls import error_of
from tierstore.transport.peer import PeerReply, PeerTransport


class Buckets:
    """For one endpoint and token. Safe to share."""

    def __init__(self, transport: PeerTransport, endpoint: str, token: str, *, seconds: float = 30.0) -> None:
        self._transport = transport
        self._endpoint = endpoint
        self._headers = [
            (b"authorization", b"Bearer " + token.encode("latin-1")),
            (b"content-type", b"application/json"),
            (b"accept", b"application/json"),
        ]
        self._seconds = seconds

    async def create(self, bucket: str) -> None:
        """Make a bucket. Raises ConflictError(bucket-exists)."""
        await self._call(b"PUT", _target(bucket))

    async def delete(self, bucket: str) -> None:
        """Remove an empty bucket. Raises NotFound, ConflictError(bucket-not-empty)."""
        await self._call(b"DELETE", _target(bucket))

    async def get(self, bucket: str) -> dict[str, Any]:
        """A bucket's facts as published. Raises NotFound."""
        return _json(await self._call(b"GET", _target(bucket)))

    async def list(self) -> list[dict[str, Any]]:
        """All buckets that the caller may see, in order of their names."""
        listed = _json(await self._call(b"GET", b"/v1/buckets")).get("buckets", [])
        return list(listed)

    async def _call(self, method: bytes, target: bytes) -> PeerReply:
        reply = await self._transport.call(
            self._endpoint, method, target, headers=self._headers, seconds=self._seconds
        )
        if reply.status >= 300:
            raise error_of(reply)
        return reply


def _target(bucket: str) -> bytes:
    return b"/v1/buckets/" + quote(bucket, safe="").encode("ascii")


def _json(reply: PeerReply) -> dict[str, Any]:
    try:
        return msgspec.json.decode(reply.body, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise broken(error) from None


def broken(error: Exception) -> TierstoreError:
    return UnavailableError(f"the answer is not the published JSON: {error}", code="broken-answer")
