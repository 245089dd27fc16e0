"""Bytes of one version between sites, verified end to end: frames of up to 64 KiB, each with its CRC32C. The first ones
are shorter (8, 8, 16, 32 KiB): a new TCP connection carries some 14 KiB in its first round trip, and a reader far away
gets its first bytes when the first frame is whole.

    GET /v1/bodies/{bucket}/{key}?version=V&first=N&length=N[&local=1]
    frame: u32 length, u32 CRC32C (little-endian), data; frame_bytes() says how long each but the last is

The sender frames bytes that it has checked against the catalog's sums; the receiver checks each frame before it lets
a byte of it go. local=1 asks for what is there: a site does not fetch for another site.
"""

from __future__ import annotations

import struct
from typing import Final
from urllib.parse import quote

from tierstore.checksum import crc_of
from tierstore.errors import IntegrityError, UnavailableError
from tierstore.names import version_text
from tierstore.transport.metadata_calls import error_of
from tierstore.transport.peer import PeerReply, PeerStream, PeerTransport

FRAME_BYTES: Final = 64 * 1024
FIRST_FRAME_BYTES: Final = 8 * 1024
HEAD: Final = struct.Struct("<II")
BODIES_PATH: Final = "/v1/bodies/"
_ERROR_BYTES_MAX: Final = 64 * 1024


def frame_bytes(at: int) -> int:
    """Length of the frame that begins at byte `at` of an answer, unless the answer ends in it."""
    return min(FRAME_BYTES, max(FIRST_FRAME_BYTES, at))


def framed_length(length: int) -> int:
    """Bytes on the wire of `length` bytes."""
    short, at = 0, 0
    while at < length and at < FRAME_BYTES:
        at += frame_bytes(at)
        short += 1
    return length + HEAD.size * (short + -(-max(0, length - at) // FRAME_BYTES))


class FrameReader:
    """One request's frames. Use: open(), next_frame() until it is empty, close()."""

    def __init__(self, stream: PeerStream, length: int, seconds: float) -> None:
        self._stream = stream
        self._length = self._left = length
        self._buffer = bytearray(HEAD.size + min(FRAME_BYTES, max(length, 1)))
        self.seconds = seconds

    @classmethod
    async def open(
        cls, transport: PeerTransport, url: str, token: str, *, bucket: str, key: str, version: int, first: int,
        length: int, local: bool, seconds: float, relay: bool = False,
    ) -> FrameReader:  # fmt: skip
        """Ask a gateway. local: only for what is at its site; relay: also for what a third site has.

        Raises NotFound (that version is not there), UnavailableError, AccessDenied, ..."""
        path = quote(f"{bucket}/{key}", safe="/")
        target = f"{BODIES_PATH}{path}?version={version_text(version)}&first={first}&length={length}"
        if local:
            target += "&local=1"
        if relay:
            target += "&relay=1"
        stream = await transport.open(
            url, b"GET", target.encode("ascii"), headers=[(b"authorization", b"Bearer " + token.encode("latin-1"))],
            seconds=seconds,
        )
        if stream.status != 200:
            try:
                body = await stream.read_all(_ERROR_BYTES_MAX)
            finally:
                stream.close()
            raise error_of(PeerReply(stream.status, stream.headers, body))
        if stream.content_length != framed_length(length):
            stream.close()
            raise UnavailableError(f"{url} answers with another length than asked for", code="broken-answer")
        return cls(stream, length, seconds)

    async def next_frame(self) -> memoryview:
        """The next verified bytes; valid until the next call; empty at the end. Raises IntegrityError."""
        if not self._left:
            return memoryview(b"")
        size = min(frame_bytes(self._length - self._left), self._left)
        view = memoryview(self._buffer)[: HEAD.size + size]
        await self._stream.read_into(view)
        said, crc = HEAD.unpack_from(view)
        data = view[HEAD.size :]
        if said != size or crc != crc_of(data):
            raise IntegrityError("a frame from another site does not have its checksum", code="bad-block")
        self._left -= size
        return data

    def close(self) -> None:
        self._stream.close()
