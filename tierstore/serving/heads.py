"""Bytes of answer heads: status lines and the rules about which answers have a body. Pure."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final
from urllib.parse import unquote_to_bytes

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE_LINE: Final = b"connection: close\r\n"
NO_BODY: Final = frozenset({204, 304})


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Status"
    return f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii")


STATUS_LINES: Final = {status: _status_line(status) for status in range(100, 600)}


def query_value(target: bytes, name: bytes) -> bytes | None:
    """The first value of a query parameter of a raw target, percent-decoded ("+" is a space), or None."""
    at = target.find(b"?")
    if at < 0:
        return None
    for pair in target[at + 1 :].split(b"&"):
        key, _, value = pair.partition(b"=")
        if key == name:
            if b"%" in value or b"+" in value:
                return unquote_to_bytes(value.replace(b"+", b" "))
            return value
    return None


def rest_of_path(target: bytes, prefix: bytes) -> bytes:
    """What stands behind the route's prefix, without the query."""
    end = target.find(b"?")
    return target[len(prefix) :] if end < 0 else target[len(prefix) : end]


def header_lines(lines: bytes) -> list[tuple[bytes, bytes]]:
    """b"name: value\\r\\n" lines as pairs, for adapters that speak in pairs."""
    pairs = []
    for line in lines.split(b"\r\n"):
        if line:
            name, _, value = line.partition(b":")
            pairs.append((name.strip().lower(), value.strip()))
    return pairs
