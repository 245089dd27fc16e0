"""Problem answers: the one place that builds application/problem+json (RFC 9457). serving.problem_handlers puts FastAPI
onto it.

Members: type, title, status, detail, code, request_id, then the error's own fields. `code` is stable; `detail` is
for people. Invariant: what is not one of our errors becomes `internal` without a word about its insides, and is
logged once, here.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Final

import msgspec

from tierstore.errors import NotAuthenticated, TierstoreError

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:tierstore:error:"
_CONTENT_TYPE: Final = b"content-type: application/problem+json\r\n"
_RESERVED: Final = frozenset({"type", "title", "status", "detail", "instance", "code", "request_id"})
encoder = msgspec.json.Encoder(enc_hook=repr)
_log = logging.getLogger(__name__)

TITLES: Final = {status.value: status.phrase for status in HTTPStatus}
#: Codes of answers that the framework makes by itself.
_CODE_OF_STATUS: Final = {
    400: "bad-request", 401: "not-authenticated", 403: "access-denied", 404: "no-such-route",
    405: "method-not-allowed", 408: "request-timeout", 413: "too-large", 414: "target-too-long",
    415: "unsupported-media-type", 431: "headers-too-large", 503: "unavailable",
}  # fmt: skip


class EdgeError(TierstoreError):
    """A request refused before it reached a handler: any 4xx or 503 of the HTTP edge."""

    def __init__(self, status: int, detail: str, *, code: str = "") -> None:
        super().__init__(detail, code=code or _CODE_OF_STATUS.get(status, "bad-request"))
        self.status = status


def document(error: BaseException, request_id: str, instance: str = "") -> tuple[int, dict[str, object]]:
    """Status and members of the problem for an error. Foreign errors are logged and become 500 `internal`."""
    if not isinstance(error, TierstoreError):
        _log.error("request %s failed unexpectedly", request_id, exc_info=error)
        error = TierstoreError("the server met an unexpected condition; its log has the request id")
    members: dict[str, object] = {
        "type": TYPE_PREFIX + error.code,
        "title": TITLES.get(error.status, "Error"),
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
    }
    if instance:
        members["instance"] = instance
    for name, value in error.fields.items():
        if name not in _RESERVED:
            members[name] = value
    return error.status, members


def extra_headers(error: BaseException) -> list[tuple[str, str]]:
    """Headers that the answer to an error carries besides its content type."""
    extra: list[tuple[str, str]] = []
    if isinstance(error, TierstoreError) and error.retry_after_seconds is not None:
        extra.append(("retry-after", str(error.retry_after_seconds)))
    if isinstance(error, NotAuthenticated):
        extra.append(("www-authenticate", "Bearer"))
    return extra


def render(error: BaseException, request_id: str, instance: str = "") -> tuple[int, bytes, bytes]:
    """Status, body and header lines of the problem answer. 304 has neither body nor content type."""
    status, members = document(error, request_id, instance)
    if status == 304:
        return status, b"", b""
    lines = _CONTENT_TYPE
    for name, value in extra_headers(error):
        lines += f"{name}: {value}\r\n".encode("ascii")
    return status, encoder.encode(members), lines
