"""Where a request ends: the checks of a head that leave no two readings of it. Pure.

httptools refuses most ambiguous requests by itself (bare LF, folded headers, two lengths); what it accepts and a proxy
in front might read otherwise is refused here: a missing or doubled Host, any coding but chunked, a coding together
with a length, a coding in HTTP/1.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from tierstore.serving.problem import EdgeError

#: A request may have one of each of these; two of them are how requests are smuggled.
_SINGLE: Final = frozenset({b"host", b"content-length", b"transfer-encoding"})

Headers = Sequence[tuple[bytes, bytes]]


class VersionOf(Protocol):
    """The parser, which is asked only when it matters (the answer is a new string each time)."""

    def get_http_version(self) -> str: ...


def check_size(target: bytes, headers: Headers, bytes_max: int) -> None:
    """Raises 431 when request line and headers together are larger than bytes_max."""
    size = len(target) + sum(len(name) + len(value) + 4 for name, value in headers)
    if size > bytes_max:
        raise EdgeError(431, f"the request line and headers have {size} bytes")


def first_values(headers: Headers) -> dict[bytes, bytes]:
    """The first value of each header, for a head in which some are repeated. Raises 400 for those that must not be."""
    index: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in index:
            index[name] = value
        elif name in _SINGLE:
            raise EdgeError(400, f"the header {name.decode('latin-1')} is there twice", code="bad-framing")
    return index


def check_framing(index: dict[bytes, bytes], parser: VersionOf) -> tuple[int | None, bool]:
    """Content-Length and whether the body is chunked. Raises 400 when Host is missing or the framing is ambiguous."""
    if b"host" not in index and parser.get_http_version() != "1.0":
        raise EdgeError(400, "the Host header is missing", code="no-host")
    length = index.get(b"content-length")
    coding = index.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or coding.lower() != b"chunked" or parser.get_http_version() == "1.0":
            raise EdgeError(400, "the body's framing is ambiguous or unknown", code="bad-framing")
        return None, True
    if length is None:
        return None, False
    if not length.isdigit():
        raise EdgeError(400, "Content-Length is not a number", code="bad-framing")
    return int(length), False


def expects_continue(value: bytes) -> bool:
    """Whether an Expect header asks for a 100. Any other expectation is passed over, as S3 does it (RFC 9110, 10.1.1,
    leaves the choice)."""
    return value.lower() == b"100-continue"
