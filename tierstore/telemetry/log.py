"""Structured logging: one line per event, `event key=value ...` or JSON, on standard error.

An event is a short fixed sentence; what varies goes into fields, so that lines can be searched and counted.
Invariant: no secret is written. Fields whose name says secret, token, password or authorization are masked, and so is
anything that looks like one of our bearer tokens, wherever it stands.

    log = get_logger("metadata.promoter")
    log.info("chunk promoted", chunk=chunk.hex(), to_tier="ssd", seconds=0.2)
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from typing import Any, Final, TextIO

ROOT: Final = "tierstore"
#: Modules may also use logging.getLogger(__name__): the three packages have the same level and form.
_OURS: Final = (ROOT, "metadata", "objectd")
_MASK: Final = "***"
_SECRET_NAME = re.compile(r"secret|token|password|authorization|credential", re.IGNORECASE)
_TOKEN = re.compile(r"\bts[td]\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,-]+")


class Logger:
    """Writes events of one part of the program. Cheap when the level is off: fields are not formatted."""

    __slots__ = ("_bound", "_logger")

    def __init__(self, logger: logging.Logger, bound: dict[str, Any] | None = None) -> None:
        self._logger = logger
        self._bound = bound or {}

    def bind(self, **fields: Any) -> Logger:
        """The same logger with fields that stand in each of its lines (server, device, ...)."""
        return Logger(self._logger, {**self._bound, **fields})

    def is_debug(self) -> bool:
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, event: str, **fields: Any) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        if self._logger.isEnabledFor(logging.ERROR):
            self._logger.error(event, extra={"fields": {**self._bound, **fields}}, exc_info=True)

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"fields": {**self._bound, **fields}})


def get_logger(name: str) -> Logger:
    """The logger of a part, "metadata.promoter" say. May be called at import; `configure` decides what is written."""
    return Logger(logging.getLogger(name if name.startswith(ROOT) else f"{ROOT}.{name}"))


def configure(*, level: str = "info", form: str = "keyvalue", role: str = "", stream: TextIO | None = None) -> None:
    """Set up the process: our lines in our form, warnings and worse of libraries in the same form.

    level: debug | info | warning | error. role stands in each line when given. May be called again."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonLines(role) if form == "json" else KeyValueLines(role))
    top = logging.getLogger()
    for old in list(top.handlers):
        if isinstance(old.formatter, JsonLines | KeyValueLines):
            top.removeHandler(old)
    top.addHandler(handler)
    top.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    return {name: _MASK if _SECRET_NAME.search(name) and value else value for name, value in (fields or {}).items()}


def scrub(text: str) -> str:
    """text with the secret part of every bearer token masked."""
    return _TOKEN.sub(lambda match: f"{match[0][:4]}{match[1]}.{_MASK}", text) if "ts" in text else text


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _part(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{ROOT}.")


class KeyValueLines(logging.Formatter):
    """`2026-01-02T03:04:05.678Z info objectd.store device failed device=3 errno=5`."""

    def __init__(self, role: str = "") -> None:
        super().__init__()
        self._role = f" {role}" if role else ""

    def format(self, record: logging.LogRecord) -> str:
        pairs = "".join(f" {name}={_quoted(value)}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname.lower()}{self._role} {_part(record)} {record.getMessage()}{pairs}"
        if record.exc_info and record.exc_info[0] is not None:
            line += f" traceback={json.dumps(''.join(traceback.format_exception(*record.exc_info)))}"
        return scrub(line.replace("\n", "\\n").replace("\r", "\\r"))


def _quoted(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


class JsonLines(logging.Formatter):
    """One JSON object per line: at, level, role, part, event, then the fields."""

    def __init__(self, role: str = "") -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"at": _time(record), "level": record.levelname.lower()}
        if self._role:
            line["role"] = self._role
        line |= {"part": _part(record), "event": record.getMessage(), **_fields(record)}
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return scrub(json.dumps(line, default=_jsonable, ensure_ascii=False))


def _jsonable(value: object) -> object:
    return value.hex() if isinstance(value, bytes | bytearray | memoryview) else str(value)
