"""How an answer of the service is shown: a list becomes a table, its fields the columns; values get their units."""

from __future__ import annotations

import json
from typing import Any, Final

from tierstore.cli.output import print_fields, print_json, print_table, say
from tierstore.units import format_seconds, format_size

_CELL_MAX: Final = 60
#: Shown as 16 hex digits and the like elsewhere; too long for a table.
_HIDDEN: Final = frozenset({"detail_json", "uuid"})


def rows_of(answer: Any) -> list[dict[str, Any]]:
    """The list in an answer: the answer itself, or its only list of objects."""
    if isinstance(answer, dict):
        lists = [value for value in answer.values() if isinstance(value, list)]
        answer = lists[0] if len(lists) == 1 else [answer]
    return [row for row in answer if isinstance(row, dict)]


def show(answer: Any, as_json: bool, *, empty: str = "nothing") -> None:
    """An answer of the service: JSON as it is, or a table (fields, when it is one object without lists)."""
    if as_json:
        print_json(answer)
    elif isinstance(answer, dict) and not any(isinstance(value, list) for value in answer.values()):
        print_fields({name: cell(name, value) for name, value in answer.items()})
    elif rows := rows_of(answer):
        columns = [name for name in rows[0] if name not in _HIDDEN]
        numbers = [name for name in columns if isinstance(rows[0][name], int | float) and rows[0][name] is not True]
        print_table(columns, [[cell(name, row.get(name)) for name in columns] for row in rows], right=numbers)
    else:
        say(empty)


def cell(name: str, value: Any) -> str:
    """A value as people read it; the unit is the last word of its name."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if name == "bytes" or name.endswith(("_bytes", "bytes_moved", "bytes_per_day")):
            return format_size(value)
        if name.endswith("bytes_per_second"):
            return f"{format_size(value)}/s"
        if name.endswith("seconds"):
            return format_seconds(value)
        return f"{value:,.3g}" if isinstance(value, float) else str(value)
    if isinstance(value, list):
        inner = [str(part.get("name", part)) if isinstance(part, dict) else str(part) for part in value]
        return ", ".join(inner)[:_CELL_MAX] or "-"
    return json.dumps(value)[:_CELL_MAX] if isinstance(value, dict) else str(value)
