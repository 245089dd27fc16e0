"""Sizes, rates and times with units, as people write them in settings and as programs use them.

Bytes are ints, seconds are floats, rates are bytes per second. Binary and decimal units are both understood
("8MiB", "8MB"); output is binary.
"""

from __future__ import annotations

import re
from typing import Final

from tierstore.errors import ConfigError

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

_SIZES: Final[dict[str, int]] = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "kb": 10**3,
    "m": MIB, "mib": MIB, "mb": 10**6,
    "g": GIB, "gib": GIB, "gb": 10**9,
    "t": TIB, "tib": TIB, "tb": 10**12,
    "p": 1 << 50, "pib": 1 << 50, "pb": 10**15,
}  # fmt: skip
_TIMES: Final[dict[str, float]] = {
    "us": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0,
}  # fmt: skip
#: Numbers may come with thousands of digits, which no float holds.
_BYTES_MAX: Final = 1 << 63
_SECONDS_MAX: Final = 1e12
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)")


def parse_size(text: str | int) -> int:
    """Bytes of "8MiB", "1.5G", "4096" or 4096. Raises ConfigError."""
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise ConfigError(f"a size cannot be negative: {text}")
        return text
    match = _NUMBER.fullmatch(str(text).strip())
    if not match or match[2].lower() not in _SIZES:
        raise ConfigError(f'{text!r} is not a size; write it like "8MiB", "1GB" or 4096')
    size = float(match[1]) * _SIZES[match[2].lower()]
    if size > _BYTES_MAX:
        raise ConfigError("a size is at most 8 EiB")
    return round(size)


def parse_seconds(text: str | int | float) -> float:
    """Seconds of "10s", "250ms", "1h", "7d" or 10. Raises ConfigError."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        if text < 0:
            raise ConfigError("a time cannot be negative")
        if text > _SECONDS_MAX:
            raise ConfigError("a time is at most 30,000 years")
        return float(text)
    match = _NUMBER.fullmatch(str(text).strip())
    if not match or match[2].lower() not in _TIMES:
        raise ConfigError(f'{text!r} is not a time; write it like "10s", "250ms" or "1h"')
    return float(match[1]) * _TIMES[match[2].lower()]


def parse_rate(text: str | int) -> int:
    """Bytes per second of "50MiB/s" (the "/s" may be left out). Raises ConfigError."""
    return parse_size(text[:-2] if isinstance(text, str) and text.endswith("/s") else text)


def format_size(size: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"


def format_seconds(seconds: float) -> str:
    """0.0123 -> "12 ms", 75 -> "1 min 15 s"."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
