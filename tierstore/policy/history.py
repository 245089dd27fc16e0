"""Recorded access history: a rolling log of requests, compact, bounded in bytes, sampled by key when it grows too fast.

Owns the segment form and what is kept. A segment is a header and zlib-packed columns (milliseconds since the one
before, index of the name, size, operation) with a table of its names: 3-8 bytes a request. When the log passes its
bound and does not yet reach `hours_kept` back, half of the keys are dropped, everywhere (all requests of a key or
none, by a hash of its name: what is left is a smaller store of the same kind); else the oldest segment goes.

Pure: the caller writes `segments` to files and brings them back. Cost: add 0.3 us (a list append; 1 us with the hash
while sampling), encoding a segment of 65,536 requests about 60 ms, off the request's path.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tierstore.errors import IntegrityError
from tierstore.policy.trace import GET, Trace

SEGMENT_REQUESTS: Final = 65_536
SHARE_MIN: Final = 2.0**-20
_UNPACKED_MAX: Final = 256 << 20  # a damaged length must not ask for all memory
_MAGIC: Final = b"TSHIST1\0"
_HEADER: Final = struct.Struct("<8sqqIIdII")  # magic, first ms, last ms, requests, names, share, unpacked, crc32


class Access(NamedTuple):
    """One request. at_ms: since 1970; op: trace.GET, PUT or DELETE; size: of the object, bytes."""

    at_ms: int
    op: int
    bucket: str
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """The history as a trace, and the share of the keys that it holds (scale the tiers by it)."""

    trace: Trace
    share: float


class History:
    """The rolling log. Not for several threads at once."""

    def __init__(self, *, bytes_max: int = 64 << 20, hours_kept: float = 24.0,
                 segment_requests: int = SEGMENT_REQUESTS, segments: Iterable[bytes] = ()) -> None:  # fmt: skip
        self.bytes_max = bytes_max
        self.hours_kept = hours_kept
        self.share = 1.0
        self._segment_requests = segment_requests
        self._open: list[Access] = []
        self._segments: list[bytes] = []
        for segment in segments:
            self.share = min(self.share, _header(segment)[4])
            self._segments.append(segment)
        self._resample()
        self._bound()

    def add(self, access: Access) -> bool:
        """Record a request, in order of time (an earlier time counts as the last one's). True when a segment closed."""
        if self.share < 1.0 and not is_sampled(access.bucket, access.key, self.share):
            return False
        self._open.append(access)
        if len(self._open) < self._segment_requests:
            return False
        self.close_segment()
        return True

    def close_segment(self) -> None:
        """Encode what is open (before a stop), then keep to the bound."""
        if self._open:
            self._segments.append(encode(self._open, share=self.share))
            self._open = []
            self._bound()

    @property
    def segments(self) -> tuple[bytes, ...]:
        """The closed segments, oldest first."""
        return tuple(self._segments)

    @property
    def used_bytes(self) -> int:
        return sum(map(len, self._segments))

    def recorded(self) -> Recorded:
        """All that is kept, the open part included, as a trace that begins at 0 s."""
        accesses = [access for segment in self._segments for access in decode(segment)] + self._open
        numbers: dict[tuple[str, str], int] = {}
        keys = [numbers.setdefault((access.bucket, access.key), len(numbers)) for access in accesses]
        at = np.maximum.accumulate(np.array([access.at_ms for access in accesses], dtype=np.int64)) / 1000.0
        start = float(at[0]) if len(at) else 0.0
        trace = Trace(
            at - start, np.array(keys, dtype=np.int64), np.array([a.size for a in accesses], dtype=np.int64),
            np.array([a.op for a in accesses], dtype=np.uint8), list(numbers), start,
        )  # fmt: skip
        return Recorded(trace, self.share)

    def reads_of(self, bucket: str, key: str, *, since_ms: int, bytes_max: int) -> npt.NDArray[np.int64]:
        """When one object was read since then, ms since 1970, in order, as far as the newest `bytes_max` of the log
        tell. Empty when its key is not sampled."""
        some: list[npt.NDArray[np.int64]] = []
        for segment in reversed(self._segments):
            bytes_max -= len(segment)
            if bytes_max < 0 or _header(segment)[1] < since_ms:
                break
            some.insert(0, reads_in(segment, bucket, key))
        now = [a.at_ms for a in self._open if (a.op, a.bucket, a.key) == (GET, bucket, key)]
        found = np.concatenate([*some, np.array(now, dtype=np.int64)])
        return np.asarray(found[found >= since_ms], dtype=np.int64)

    def _bound(self) -> None:
        while self.used_bytes > self.bytes_max and self._segments:
            first_ms, last_ms = _header(self._segments[0])[0], _header(self._segments[-1])[1]
            if last_ms - first_ms < self.hours_kept * 3_600_000 and self.share / 2 >= SHARE_MIN:
                self.share /= 2
                self._resample()
            else:
                self._segments.pop(0)

    def _resample(self) -> None:
        """Bring every segment down to today's share; empty ones go."""
        kept = []
        for segment in self._segments:
            if _header(segment)[4] > self.share:
                accesses = [a for a in decode(segment) if is_sampled(a.bucket, a.key, self.share)]
                if accesses:
                    kept.append(encode(accesses, share=self.share))
            else:
                kept.append(segment)
        self._segments = kept
        if self.share < 1.0:
            self._open = [a for a in self._open if is_sampled(a.bucket, a.key, self.share)]


def is_sampled(bucket: str, key: str, share: float) -> bool:
    """Whether all requests of this key belong to the sample. A smaller share is a subset of a larger one."""
    crc = zlib.crc32(f"{bucket}/{key}".encode("utf-8", "surrogatepass"))
    return ((crc * 0x9E3779B1) & 0xFFFFFFFF) < share * 2.0**32


def encode(accesses: list[Access], *, share: float = 1.0) -> bytes:
    """A segment of at least one request."""
    names: dict[str, int] = {}
    index = [names.setdefault(f"{a.bucket}/{a.key}", len(names)) for a in accesses]
    at = np.maximum.accumulate(np.array([a.at_ms for a in accesses], dtype=np.int64))
    steps = np.diff(at, prepend=at[0])
    table = "\0".join(names).encode("utf-8", "surrogatepass")  # neither bucket nor key holds NUL
    body = b"".join((
        np.minimum(steps, 2**32 - 1).astype("<u4").tobytes(), np.array(index, dtype="<u4").tobytes(),
        np.array([a.size for a in accesses], dtype="<u8").tobytes(), bytes(a.op for a in accesses), table,
    ))  # fmt: skip
    header = _HEADER.pack(
        _MAGIC, int(at[0]), int(at[-1]), len(accesses), len(names), share, len(body), zlib.crc32(body)
    )
    return header + zlib.compress(body, 1)


def reads_in(segment: bytes, bucket: str, key: str) -> npt.NDArray[np.int64]:
    """When one object was read, ms since 1970, of a segment. Raises IntegrityError when it is damaged."""
    first_ms, requests, body = _body(segment)
    names = body[requests * 17 :]
    name = f"{bucket}/{key}".encode("utf-8", "surrogatepass")
    place = (b"\0" + names + b"\0").find(b"\0" + name + b"\0")
    if place < 0:
        return np.zeros(0, dtype=np.int64)
    number = names.count(b"\0", 0, place)
    index = np.frombuffer(body, dtype="<u4", count=requests, offset=requests * 4)
    ops = np.frombuffer(body, dtype=np.uint8, count=requests, offset=requests * 16)
    at = first_ms + np.cumsum(np.frombuffer(body, dtype="<u4", count=requests).astype(np.int64))
    return np.asarray(at[(index == number) & (ops == GET)], dtype=np.int64)


def _body(segment: bytes) -> tuple[int, int, bytes]:
    """(first ms, requests, unpacked columns and names) of a segment that is whole. Raises IntegrityError."""
    first_ms, _, requests, _, _, unpacked, crc = _header(segment)
    if unpacked > _UNPACKED_MAX or unpacked < requests * 17:
        raise IntegrityError("a history segment has impossible lengths", code="bad-history")
    unpacker = zlib.decompressobj()
    try:
        body = unpacker.decompress(segment[_HEADER.size :], unpacked + 1)
    except zlib.error:
        body = b""
    if len(body) != unpacked or not unpacker.eof or unpacker.unused_data or zlib.crc32(body) != crc:
        raise IntegrityError("a history segment is cut or damaged", code="bad-history")
    return first_ms, requests, body


def decode(segment: bytes) -> list[Access]:
    """The requests of a segment. Raises IntegrityError when it is damaged."""
    first_ms, requests, body = _body(segment)
    names = _header(segment)[3]
    table = body[requests * 17 :].decode("utf-8", "surrogatepass").split("\0")
    index = np.frombuffer(body, dtype="<u4", count=requests, offset=requests * 4)
    if len(table) != names or (requests and int(index.max()) >= names):
        raise IntegrityError("a history segment names what it does not hold", code="bad-history")
    at = first_ms + np.cumsum(np.frombuffer(body, dtype="<u4", count=requests), dtype=np.int64)
    sizes = np.frombuffer(body, dtype="<u8", count=requests, offset=requests * 8)
    pairs = [name.partition("/") for name in table]
    ops = body[requests * 16 : requests * 17]
    return [
        Access(when, op, pairs[name][0], pairs[name][2], size)
        for when, op, name, size in zip(at.tolist(), ops, index.tolist(), sizes.tolist(), strict=True)
    ]


def _header(segment: bytes) -> tuple[int, int, int, int, float, int, int]:
    """first ms, last ms, requests, names, share, unpacked bytes, crc32"""
    if len(segment) < _HEADER.size or segment[:8] != _MAGIC:
        raise IntegrityError("this is no history segment", code="bad-history")
    _, first_ms, last_ms, requests, names, share, unpacked, crc = _HEADER.unpack_from(segment)
    return first_ms, last_ms, requests, names, share, unpacked, crc
