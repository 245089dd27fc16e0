"""TOML out: the standard library reads it but does not write it.

Only what settings files need: tables of plain values and lists of tables. tomllib.loads(dumps(tree)) == tree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def dumps(tree: Mapping[str, Any]) -> str:
    """TOML text of {section: {name: value}} and {name: [table, ...]}. Raises TypeError on what TOML has no form for."""
    lines: list[str] = []
    for name, part in tree.items():
        if isinstance(part, Mapping):
            lines += [f"[{name}]", *_members(part), ""]
        elif isinstance(part, list | tuple) and all(isinstance(row, Mapping) for row in part):
            for row in part:
                lines += [f"[[{name}]]", *_members(row), ""]
        else:
            lines.insert(0, f"{name} = {_value(part)}")
    return "\n".join(lines).rstrip("\n") + "\n"


def _members(part: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_value(value)}" for name, value in part.items()]


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # A JSON string is a TOML basic string, except for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    raise TypeError(f"TOML has no form for {type(value).__name__}")
