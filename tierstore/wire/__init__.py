"""Messages between processes: msgspec Structs as MessagePack arrays, one module per conversation.

Pure data: no I/O, no clock. Every message is array_like, so fields are only ever appended (with defaults); a peer of
the release before or after understands what it knows. `encode` and `decode` are the only way in and out; `decode`
turns anything malformed into RequestError(code="bad-message").

    names        lookup, allocate, commit, listing, buckets          clients and gateways -> metadata
    cluster      registration, heartbeat, jobs, cluster map          daemons -> metadata
    admin        what operators ask; also the JSON of /v1/admin
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from tierstore.errors import RequestError

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[object, msgspec.msgpack.Decoder[object]] = {}

#: Content type of these messages.
MEDIA_TYPE = "application/vnd.tierstore.msgpack"


def encode(message: object) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes | bytearray | memoryview, kind: type[T]) -> T:
    """One message of the given type (a Struct or list[Struct]). Raises RequestError(code="bad-message")."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(data)  # type: ignore[return-value]
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise RequestError(f"not a {getattr(kind, '__name__', kind)} message: {error}", code="bad-message") from None
