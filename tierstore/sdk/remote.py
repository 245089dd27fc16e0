"""Reading an object whose bytes may still be at another site, as a program outside sees it: through a gateway.

`BodyWalk` is what every reader of a body offers (GetWalk, the gateway's own fetch-through, and GatewayWalk here).
`RemoteSource` is the hook by which a Store hands a remote version to whoever can bring it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tierstore.errors import UnavailableError
from tierstore.sdk.frames import FrameReader
from tierstore.transport.peer import PeerTransport
from tierstore.wire.names import LookupResult


class BodyWalk(Protocol):
    """Bytes of one version in order. start() before anything else, close() at the end, always."""

    tier: str
    site: str       # that gave the bytes; "": this one
    whole: memoryview | bytes | None

    async def start(self) -> None: ...

    async def next_piece(self) -> memoryview:
        """The next verified bytes; valid until the next call; empty at the end."""
        ...

    async def close(self) -> None: ...


class RemoteSource(Protocol):
    """Brings bytes that are not here."""

    def walk(
        self, bucket: str, key: str, found: LookupResult, *, first: int, length: int, access: str
    ) -> BodyWalk: ...

    async def bring(self, bucket: str, key: str, *, access: str) -> None:
        """Return when all bytes of the latest version are durable at this site."""
        ...


class GatewayWalk:
    """A range, streamed by a gateway that fetches what is missing."""

    def __init__(self, source: GatewaySource, bucket: str, key: str, version: int, *, first: int, length: int) -> None:
        self._source = source
        self._bucket = bucket
        self._key = key
        self._version = version
        self._first = first
        self._length = length
        self._reader: FrameReader | None = None
        self.tier = ""
        self.site = ""
        self.whole: memoryview | bytes | None = None

    async def start(self) -> None:
        if not self._length:
            self.whole = b""
            return
        self._reader = await self._source.open(
            self._bucket, self._key, self._version, first=self._first, length=self._length
        )

    async def next_piece(self) -> memoryview:
        if self._reader is None:
            return memoryview(b"")
        return await self._reader.next_frame()

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class GatewaySource:
    """Gateways of this site, tried in turn."""

    def __init__(self, transport: PeerTransport, urls: Sequence[str], token: str, *, seconds: float = 30.0) -> None:
        self._transport = transport
        self._urls = list(urls)
        self._token = token
        self._seconds = seconds

    def walk(
        self, bucket: str, key: str, found: LookupResult, *, first: int, length: int, access: str
    ) -> GatewayWalk:
        return GatewayWalk(self, bucket, key, found.version, first=first, length=length)

    async def bring(self, bucket: str, key: str, *, access: str) -> None:
        raise UnavailableError("its bytes are still at another site; read it once, or wait", code="body-unreachable")

    async def open(self, bucket: str, key: str, version: int, *, first: int, length: int) -> FrameReader:
        """Raises what the last gateway said."""
        failure: UnavailableError | None = None
        for url in self._urls:
            try:
                return await FrameReader.open(
                    self._transport, url, self._token, bucket=bucket, key=key, version=version, first=first,
                    length=length, local=False, seconds=self._seconds,
                )  # fmt: skip
            except UnavailableError as error:
                failure = error
        raise failure or UnavailableError("no gateway is known", code="body-unreachable")
