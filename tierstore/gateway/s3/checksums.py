"""S3's checksums: computing them, their headers, and combining those of parts. Pure.

Full-object checksums of parts combine without their bytes (CRCs are linear); composite ones are the checksum of the
parts' checksums, with "-<parts>" behind (AWS, "Checking object integrity").
"""

from __future__ import annotations

import base64
import functools
import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from crc32c import crc32c

from tierstore.gateway.s3.errors import S3Error

#: Algorithm (lower case) -> bytes of its digest.
ALGORITHMS: Final = {"crc32": 4, "crc32c": 4, "crc64nvme": 8, "sha1": 20, "sha256": 32}
Buffer = bytes | bytearray | memoryview
PREFIX: Final = "x-amz-checksum-"


class Sum(Protocol):
    def update(self, data: Buffer, /) -> object: ...

    def digest(self) -> bytes: ...


class _Crc:
    """A CRC with hashlib's manners."""

    def __init__(self, step: Callable[[Buffer, int], int], size: int) -> None:
        self._step = step
        self._size = size
        self.value = 0

    def update(self, data: Buffer) -> None:
        self.value = self._step(data, self.value)

    def digest(self) -> bytes:
        return self.value.to_bytes(self._size, "big")


def new(algorithm: str) -> Sum:
    """A fresh sum of one of ALGORITHMS, or of md5."""
    if algorithm == "crc32":
        return _Crc(zlib.crc32, 4)
    if algorithm == "crc32c":
        return _Crc(crc32c, 4)
    if algorithm == "crc64nvme":
        return _Crc(_crc64nvme(), 8)
    return hashlib.new(algorithm, usedforsecurity=False)


@functools.cache
def _crc64nvme() -> Callable[[Buffer, int], int]:
    from awscrt import checksums  # a large library: loaded by preload(), or by whoever comes first

    return checksums.crc64nvme  # type: ignore[no-any-return]


def preload() -> None:
    """Load what the first upload would wait for. Blocks for tenths of a second: in a thread."""
    new("crc64nvme")


def digests(algorithms: Iterable[str], body: bytes) -> dict[str, bytes]:
    """The sums of a whole body."""
    found = {}
    for name in algorithms:
        total = new(name)
        total.update(body)
        found[name] = total.digest()
    return found


def decode(algorithm: str, value: str) -> bytes:
    """The digest of a header's base64. Raises S3Error(InvalidRequest)."""
    try:
        raw = base64.b64decode(value.encode("ascii"), validate=True)
    except (ValueError, UnicodeEncodeError):
        raw = b""
    if len(raw) != ALGORITHMS[algorithm]:
        raise S3Error("InvalidRequest", f"Value for {PREFIX}{algorithm} header is invalid.")
    return raw


def encode(digest: bytes) -> str:
    return base64.b64encode(digest).decode("ascii")


def algorithm_of(name: str) -> str:
    """CRC32C -> crc32c. Raises S3Error(InvalidRequest)."""
    lower = name.lower()
    if lower not in ALGORITHMS:
        raise S3Error("InvalidRequest", "Checksum algorithm provided is unsupported. Please try again with any of the "
                      "valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]")  # fmt: skip
    return lower


def default_type(algorithm: str) -> str:
    """What multipart uploads get when they do not say."""
    return "FULL_OBJECT" if algorithm == "crc64nvme" else "COMPOSITE"


def composite(algorithm: str, parts: Sequence[str]) -> str:
    total = new(algorithm)
    for value in parts:
        total.update(base64.b64decode(value))
    return f"{encode(total.digest())}-{len(parts)}"


def full_object(algorithm: str, parts: Sequence[tuple[str, int]]) -> str:
    """The checksum of the whole from (checksum, size) of the parts. CRCs only."""
    from awscrt import checksums

    combine = {
        "crc32": checksums.combine_crc32, "crc32c": checksums.combine_crc32c, "crc64nvme": checksums.combine_crc64nvme,
    }[algorithm]  # fmt: skip
    value = 0
    for text, size in parts:
        value = combine(value, int.from_bytes(base64.b64decode(text), "big"), size)
    return encode(value.to_bytes(ALGORITHMS[algorithm], "big"))
