"""A segment of the access history: many requests in few bytes, while they are gathered and once they are packed.

Owns both forms. `Requests` gathers: a column per member and all names in one row of bytes, 21 bytes and the name per
request, where an object for each would take some 450. `encode` packs them: a header and zlib-packed columns
(milliseconds since the request before, index of the name, size, operation) with a table of the names, each once: 3-8
bytes a request. A reader takes the columns (`unpack`) or one request after the other (`decode`).

Pure. Names are `bucket/key` in UTF-8; neither holds NUL, which ends each of them in a table.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tierstore.errors import IntegrityError
from tierstore.policy.trace import GET

_UNPACKED_MAX: Final = 256 << 20  # a damaged length must not ask for all memory
_MAGIC: Final = b"TSHIST1\0"
_HEADER: Final = struct.Struct("<8sqqIIdII")  # magic, first ms, last ms, requests, names, share, unpacked, crc32
#: Of a request in the packed columns, without its name: step u32, index of the name u32, size u64, operation u8.
_COLUMN_BYTES: Final = 17

Ints = npt.NDArray[np.int64]


class Access(NamedTuple):
    """One request. at_ms: since 1970; op: trace.GET, PUT or DELETE; size: of the object, bytes."""

    at_ms: int
    op: int
    bucket: str
    key: str
    size: int


class Requests:
    """Requests that are gathered, in order of arrival. Not for several threads at once."""

    __slots__ = ("_at_ms", "_ends", "_names", "_ops", "_sizes")

    def __init__(self) -> None:
        self._at_ms = array("q")
        self._sizes = array("Q")
        self._ops = bytearray()
        self._names = bytearray()
        #: Where the name of each request ends in _names; it begins where that of the one before ended.
        self._ends = array("I")

    @classmethod
    def of(cls, accesses: Iterable[Access]) -> Requests:
        requests = cls()
        for access in accesses:
            requests.add(access.at_ms, access.op, access.bucket, access.key, access.size)
        return requests

    def __len__(self) -> int:
        return len(self._ops)

    @property
    def name_bytes(self) -> int:
        """Of all names; what else is held is 21 bytes a request."""
        return len(self._names)

    def add(self, at_ms: int, op: int, bucket: str, key: str, size: int) -> None:
        self._add(at_ms, op, name_of(bucket, key), size)

    def _add(self, at_ms: int, op: int, name: bytes | bytearray, size: int) -> None:
        self._sizes.append(size)    # the one that can refuse, before a column is longer than another
        self._at_ms.append(at_ms)
        self._ops.append(op)
        self._names += name
        self._ends.append(len(self._names))

    def take(self, other: Requests, begin: int, end: int) -> None:
        """Requests begin to end (exclusive) of another one, behind those that are here."""
        start = other._begins_at(begin)
        moved = len(self._names) - start
        self._at_ms += other._at_ms[begin:end]
        self._sizes += other._sizes[begin:end]
        self._ops += other._ops[begin:end]
        self._names += other._names[start : other._begins_at(end)]
        self._ends.extend(at + moved for at in other._ends[begin:end])

    def sampled(self, share: float) -> Requests:
        """Those whose names belong to a sample of that share; itself when that is all."""
        if share >= 1.0:
            return self
        kept = Requests()
        for number, name in enumerate(self._each_name()):
            if is_name_sampled(name, share):
                kept._add(self._at_ms[number], self._ops[number], name, self._sizes[number])
        return kept

    def columns(self) -> Columns:
        """The same as columns with each name once."""
        names: dict[bytes, int] = {}
        index = np.fromiter((names.setdefault(bytes(name), len(names)) for name in self._each_name()), np.int64)
        return Columns(
            np.maximum.accumulate(np.array(self._at_ms, dtype=np.int64)) if len(self) else np.zeros(0, np.int64),
            index, np.array(self._sizes, dtype=np.int64), np.frombuffer(bytes(self._ops), dtype=np.uint8), list(names),
        )  # fmt: skip

    def reads_of(self, bucket: str, key: str) -> Ints:
        """When one object was read, ms since 1970."""
        name = name_of(bucket, key)
        ends = np.array(self._ends, dtype=np.int64)
        might = (np.diff(ends, prepend=0) == len(name)) & (np.frombuffer(bytes(self._ops), dtype=np.uint8) == GET)
        end_of = self._ends
        return np.array(
            [self._at_ms[n] for n in np.flatnonzero(might).tolist()
             if self._names.startswith(name, end_of[n] - len(name))], dtype=np.int64,
        )  # fmt: skip

    def _begins_at(self, number: int) -> int:
        return self._ends[number - 1] if number else 0

    def _each_name(self) -> Iterator[bytearray]:
        begin = 0
        for end in self._ends:
            yield self._names[begin:end]
            begin = end


@dataclass(frozen=True, slots=True)
class Columns:
    """Requests in order of time. at_ms: since 1970; names[index[i]]: what request i was for."""

    at_ms: Ints
    index: Ints
    sizes: Ints
    ops: npt.NDArray[np.uint8]
    names: list[bytes]

    def __len__(self) -> int:
        return len(self.at_ms)

    def sampled(self, share: float) -> Columns:
        """Those whose names belong to a sample of that share."""
        is_kept = np.array([is_name_sampled(name, share) for name in self.names], dtype=bool)
        renumbered = np.cumsum(is_kept) - 1
        is_in = is_kept[self.index]
        return Columns(
            self.at_ms[is_in], renumbered[self.index[is_in]], self.sizes[is_in], self.ops[is_in],
            [name for name, kept in zip(self.names, is_kept.tolist(), strict=True) if kept],
        )  # fmt: skip

    def accesses(self) -> Iterator[Access]:
        pairs = [pair_of(name) for name in self.names]
        for at_ms, op, number, size in zip(
            self.at_ms.tolist(), self.ops.tolist(), self.index.tolist(), self.sizes.tolist(), strict=True
        ):
            bucket, key = pairs[number]
            yield Access(at_ms, op, bucket, key, size)


@dataclass(frozen=True, slots=True)
class Header:
    """share: of all keys, that the segment was sampled down to. unpacked_bytes, crc32: of the columns and names."""

    first_ms: int
    last_ms: int
    requests: int
    names: int
    share: float
    unpacked_bytes: int
    crc32: int


def name_of(bucket: str, key: str) -> bytes:
    return f"{bucket}/{key}".encode("utf-8", "surrogatepass")


def pair_of(name: bytes) -> tuple[str, str]:
    """(bucket, key) of a name."""
    bucket, _, key = name.decode("utf-8", "surrogatepass").partition("/")
    return bucket, key


def is_name_sampled(name: bytes | bytearray, share: float) -> bool:
    """Whether all requests of this name belong to the sample. A smaller share is a subset of a larger one."""
    return ((zlib.crc32(name) * 0x9E3779B1) & 0xFFFFFFFF) < share * 2.0**32


def encode(columns: Columns, *, share: float = 1.0) -> bytes:
    """A segment of at least one request."""
    at = columns.at_ms
    body = b"".join((
        np.minimum(np.diff(at, prepend=at[0]), 2**32 - 1).astype("<u4").tobytes(),
        columns.index.astype("<u4").tobytes(), columns.sizes.astype("<u8").tobytes(), columns.ops.tobytes(),
        b"\0".join(columns.names),
    ))  # fmt: skip
    header = _HEADER.pack(
        _MAGIC, int(at[0]), int(at[-1]), len(columns), len(columns.names), share, len(body), zlib.crc32(body)
    )
    return header + zlib.compress(body, 1)


def header_of(segment: bytes) -> Header:
    """Raises IntegrityError when it is none of ours."""
    if len(segment) < _HEADER.size or segment[:8] != _MAGIC:
        raise IntegrityError("this is no history segment", code="bad-history")
    return Header(*_HEADER.unpack_from(segment)[1:])


def unpack(segment: bytes) -> Columns:
    """The requests of a segment. Raises IntegrityError when it is damaged."""
    header, body = _body(segment)
    requests = header.requests
    names = body[requests * _COLUMN_BYTES :].split(b"\0")
    index = np.frombuffer(body, dtype="<u4", count=requests, offset=requests * 4).astype(np.int64)
    if len(names) != header.names or (requests and int(index.max()) >= len(names)):
        raise IntegrityError("a history segment names what it does not hold", code="bad-history")
    sizes = np.frombuffer(body, dtype="<u8", count=requests, offset=requests * 8).astype(np.int64)
    return Columns(_times(header, body), index, sizes, _ops(requests, body).copy(), names)


def decode(segment: bytes) -> Iterator[Access]:
    """The requests of a segment, one after the other. Raises IntegrityError at once when it is damaged."""
    return unpack(segment).accesses()


def reads_in(segment: bytes, bucket: str, key: str) -> Ints:
    """When one object was read, ms since 1970, of a segment. Raises IntegrityError when it is damaged."""
    header, body = _body(segment)
    names = body[header.requests * _COLUMN_BYTES :]
    place = (b"\0" + names + b"\0").find(b"\0" + name_of(bucket, key) + b"\0")
    if place < 0:
        return np.zeros(0, dtype=np.int64)
    number = names.count(b"\0", 0, place)
    index = np.frombuffer(body, dtype="<u4", count=header.requests, offset=header.requests * 4)
    is_it = (index == number) & (_ops(header.requests, body) == GET)
    return np.asarray(_times(header, body)[is_it], dtype=np.int64)


def _times(header: Header, body: bytes) -> Ints:
    steps = np.frombuffer(body, dtype="<u4", count=header.requests)
    return np.asarray(header.first_ms + np.cumsum(steps, dtype=np.int64), dtype=np.int64)


def _ops(requests: int, body: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(body, dtype=np.uint8, count=requests, offset=requests * 16)


def _body(segment: bytes) -> tuple[Header, bytes]:
    """The header of a segment that is whole, and its unpacked columns and names. Raises IntegrityError."""
    header = header_of(segment)
    unpacked = header.unpacked_bytes
    if unpacked > _UNPACKED_MAX or unpacked < header.requests * _COLUMN_BYTES:
        raise IntegrityError("a history segment has impossible lengths", code="bad-history")
    unpacker = zlib.decompressobj()
    try:
        body = unpacker.decompress(segment[_HEADER.size :], unpacked + 1)
    except zlib.error:
        body = b""
    if len(body) != unpacked or not unpacker.eof or unpacker.unused_data or zlib.crc32(body) != header.crc32:
        raise IntegrityError("a history segment is cut or damaged", code="bad-history")
    return header, body
