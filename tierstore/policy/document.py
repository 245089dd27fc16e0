"""The text form of a policy document: lines of a TOML text, values with units, and a TOML writer for this one tree.

Knows nothing of what a setting means (rules.py does). Invariant: what is written here reads back as the same values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from tierstore.units import GIB, KIB, MIB, TIB

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?")
_UNITS: Final = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))


def line_of(text: str, path: tuple[str | int, ...]) -> int:
    """The line (from 1) on which the setting at `path` stands, else that of its table, else 0.

    path: as in the tree, ("rules", 2, "match", "prefix"). Reads the layout that people write (headers, `key = value`,
    inline tables); no full parser: the text was parsed already, this only finds a place in it.
    """
    names = [part for part in path if isinstance(part, str)]
    number = next((part for part in path if isinstance(part, int)), None)
    table: list[str] = []
    seen: dict[str, int] = {}
    index: int | None = None
    best, best_depth = 0, 0
    for at, line in enumerate(text.splitlines(), 1):
        header = _HEADER.fullmatch(line)
        if header:
            table = [part.strip().strip('"') for part in header[2].split(".")]
            if header[1] == "[[":
                seen[table[0]] = seen.get(table[0], -1) + 1
            index = seen.get(table[0])
        if table and (table != names[: len(table)] or (number is not None and index != number)):
            continue
        depth = len(table) + (0 if header else _depth(line, names[len(table) :]))
        if depth > best_depth:
            best, best_depth = at, depth
    return best


def with_line(text: str, problem: str) -> str:
    """What was found wrong with a tree ("rules[0].copies: ..."), with the line of the TOML text where that stands, when
    it can be told."""
    place, colon, what = problem.partition(": ")
    path = tuple(int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]]+", place))
    line = line_of(text, path) if colon and not place.startswith("line ") and " " not in place else 0
    return f"line {line}: {what}" if line else problem


def _depth(line: str, names: list[str]) -> int:
    """How many of `names`, one inside the other, the line assigns to: match = {prefix = ...} is two."""
    depth = 0
    for n, name in enumerate(names):
        start = r"^\s*" if n == 0 else r"[{,.]\s*"
        found = re.search(rf'{start}"?{re.escape(name)}"?\s*(?=[=.])', line)
        if not found:
            break
        line = line[found.end() :]
        depth += 1
    return depth


def size_text(size: int) -> str:
    """1048576 -> "1MiB"; the largest unit that divides it, so that nothing is rounded."""
    for unit, name in _UNITS:
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return f"{size}B"


def time_text(seconds: float) -> str:
    """3600.0 -> "1h", 10 -> "10s", 0.5 -> "0.5s"; to the microsecond."""
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds and seconds % unit == 0:
            return f"{int(seconds // unit)}{name}"
    if seconds == int(seconds):
        return f"{int(seconds)}s"
    return f"{seconds:.6f}".rstrip("0") + "s"  # a tick or half-life is at least 1 s: microseconds are exact enough


def toml_text(document: Mapping[str, Any]) -> str:
    """The policy tree as TOML."""
    lines = [f"version = {document['version']}"]
    for rule in document["rules"]:
        lines += ["", "[[rules]]", *(f"{key} = {_value(value)}" for key, value in rule.items())]
    lines += ["", "[promoter]", *(f"{key} = {_value(value)}" for key, value in document["promoter"].items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, str):
        # A basic string of TOML is one of JSON, but must not hold DEL as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
