"""POST forms: multipart/form-data taken apart as it comes, and the policy that a form must satisfy. Pure.

Owns the framing (fields first, the file last, what follows it is not read) and the judgement of the policy document.
Bounds: fields together FIELDS_BYTES_MAX, their number FIELDS_MAX; of the file never more than a delimiter is held.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from tierstore.gateway.s3.errors import S3Error

FIELDS_BYTES_MAX: Final = 64 * 1024
FIELDS_MAX: Final = 100
_NAME = re.compile(rb'name="([^"]*)"', re.IGNORECASE)
_FILENAME = re.compile(rb'filename="([^"]*)"', re.IGNORECASE)
_EXPIRATION = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z", re.ASCII)
_BOUNDARY = re.compile(r'boundary="?([^";,]{1,70})"?', re.IGNORECASE)
#: Fields that no condition need cover.
_FREE: Final = frozenset({"policy", "x-amz-signature", "file", "x-amz-checksum-algorithm"})


def boundary_of(content_type: str) -> bytes:
    """Raises S3Error for a body that is no form."""
    found = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith("multipart/form-data") or found is None:
        raise _malformed()
    return found[1].strip().encode("latin-1", "replace")


class FormDecoder:
    """Push parser. `fields` is whole when on_file is called, with the file's name; then its bytes go to `take`."""

    def __init__(self, boundary: bytes, on_file: Callable[[], None]) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")      # so that the first boundary looks like every other
        self._on_file = on_file
        self._state = "preamble"
        self.fields: dict[str, str] = {}
        self.filename = ""
        self._field_bytes = 0
        self.take: Callable[[memoryview], None] = lambda _: None

    def feed(self, piece: memoryview) -> None:
        """Raises S3Error."""
        if self._state == "end":
            return
        self._buffer += piece
        while self._step():
            pass
        if self._state in ("preamble", "part") and len(self._buffer) > FIELDS_BYTES_MAX:
            raise S3Error("MaxPostPreDataLengthExceededError", "Your POST request fields preceding the upload file "
                          "were too large.")  # fmt: skip

    def _step(self) -> bool:
        """One thing out of the buffer; False: more bytes are needed."""
        if self._state == "file":
            return self._file()
        if self._state == "end":
            return False
        if self._state == "preamble":
            return self._delimiter_found()
        return self._part()

    def _delimiter_found(self) -> bool:
        at = self._buffer.find(self._delimiter)
        stop = at + len(self._delimiter) + 2
        if at < 0 or len(self._buffer) < stop:
            return False
        if self._buffer[stop - 2 : stop] == b"--":
            raise S3Error("InvalidArgument", "POST requires exactly one file upload per request.")
        del self._buffer[: stop - 2]
        self._state = "part"
        return True

    def _part(self) -> bool:
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return False
        head = bytes(self._buffer[:head_end])
        name = _NAME.search(head)
        if name is None:
            raise _malformed()
        field = name[1].decode("utf-8", "replace").lower()
        if field == "file":
            filename = _FILENAME.search(head)
            self.filename = filename[1].decode("utf-8", "replace").rpartition("/")[2] if filename else ""
            del self._buffer[: head_end + 4]
            self._state = "file"
            self._on_file()
            return True
        end = self._buffer.find(self._delimiter, head_end + 2)
        if end < 0:
            return False
        value = bytes(self._buffer[head_end + 4 : end]) if end >= head_end + 4 else b""
        self._field_bytes += len(value) + len(head)
        if self._field_bytes > FIELDS_BYTES_MAX or len(self.fields) >= FIELDS_MAX:
            raise S3Error("MaxPostPreDataLengthExceededError", "Your POST request fields were too large.")
        self.fields[field] = value.decode("utf-8", "replace")
        del self._buffer[:end]
        self._state = "preamble"
        return True

    def _file(self) -> bool:
        at = self._buffer.find(self._delimiter)
        count = at if at >= 0 else len(self._buffer) - len(self._delimiter) + 1
        if count > 0:
            self.take(memoryview(bytes(self._buffer[:count])))
            del self._buffer[:count]
        if at >= 0:
            self._state = "end"
            self._buffer.clear()
        return False

    def finish(self) -> None:
        """The body has ended. Raises S3Error in the middle of anything."""
        if self._state in ("preamble", "part"):
            raise S3Error("InvalidArgument", "POST requires exactly one file upload per request.")
        if self._state == "file":
            raise S3Error("IncompleteBody")


class FormPolicy:
    """A form's policy, opened. Raises S3Error(InvalidPolicyDocument, AccessDenied)."""

    def __init__(self, text: str, now_ms: int) -> None:
        try:
            raw = json.loads(base64.b64decode(text, validate=True))
        except (ValueError, RecursionError):
            raise _bad_policy("Invalid Policy: Invalid JSON.") from None
        if not isinstance(raw, dict) or not isinstance(raw.get("conditions"), list):
            raise _bad_policy("Invalid Policy: missing or invalid conditions.")
        if _moment_ms(raw.get("expiration")) <= now_ms:
            raise S3Error("AccessDenied", "Invalid according to Policy: Policy expired.")
        self.least_bytes, self.most_bytes = 0, -1
        self._conditions = [self._condition(condition) for condition in raw["conditions"]]

    def _condition(self, raw: Any) -> tuple[str, str, str]:
        """(eq | starts-with | range, field, value)."""
        if isinstance(raw, dict) and len(raw) == 1:
            ((field, value),) = raw.items()
            if isinstance(value, str):
                return "eq", field.lower(), value
        if isinstance(raw, list) and len(raw) == 3 and isinstance(raw[0], str):
            kind = raw[0].lower()
            if kind == "content-length-range":
                self.least_bytes, self.most_bytes = _whole(raw[1]), _whole(raw[2])
                return "range", "", ""
            if kind in ("eq", "starts-with") and isinstance(raw[1], str) and isinstance(raw[2], str) \
                    and raw[1].startswith("$"):  # fmt: skip
                return kind, raw[1][1:].lower(), raw[2]
        raise _bad_policy("Invalid Policy: Invalid Simple-Condition.")

    def check(self, fields: Mapping[str, str]) -> None:
        """Raises S3Error(AccessDenied) for a condition that does not hold, or a field that none covers. fields: those
        of the form, with the bucket."""
        covered = {field for _, field, _ in self._conditions}
        for kind, field, value in self._conditions:
            held = fields.get(field, "")
            if (kind == "eq" and held != value) or (kind == "starts-with" and not held.startswith(value)):
                raise S3Error("AccessDenied", f'Invalid according to Policy: Policy Condition failed: ["{kind}", '
                              f'"${field}", "{value[:100]}"]')  # fmt: skip
        extra = sorted(field for field in fields if field not in covered | _FREE and not field.startswith("x-ignore-"))
        if extra:
            raise S3Error("AccessDenied", f"Invalid according to Policy: Extra input fields: {extra[0][:100]}")


def _moment_ms(raw: Any) -> float:
    """An expiration: ISO 8601 in UTC, with T and Z, and nothing else. Raises S3Error(InvalidPolicyDocument)."""
    if isinstance(raw, str) and _EXPIRATION.fullmatch(raw):
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(raw).timestamp() * 1000
    raise _bad_policy("Invalid Policy: Invalid 'expiration' value.")


def _whole(raw: Any) -> int:
    text = str(raw)
    if isinstance(raw, bool) or not text.isascii() or not text.isdigit() or len(text) > 15:
        raise _bad_policy("Invalid Policy: content-length-range takes two numbers.")
    return int(text)


def _bad_policy(message: str) -> S3Error:
    return S3Error("InvalidPolicyDocument", message)


def _malformed() -> S3Error:
    return S3Error(
        "MalformedPOSTRequest", "The body of your POST request is not well-formed multipart/form-data."
    )
