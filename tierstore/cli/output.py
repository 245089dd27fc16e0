"""What commands print: tables for people, JSON for programs. The one place that writes to standard output.

With --json a command prints exactly one JSON document (one per line where it streams), and nothing else on standard
output; what people should know goes to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

#: People read it; progress bars and notes go there, so that output can be piped.
notes = Console(stderr=True, highlight=False, soft_wrap=True)
#: Lines of a table are not broken for a width that a pipe does not have.
_PIPE_WIDTH: Final = 250
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[str] = ()) -> None:
    """A plain table; `right` names the columns that are aligned to the right (numbers)."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    aligned = set(right)
    for column in columns:
        table.add_column(column, justify="right" if column in aligned else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    console.print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """name: value lines, aligned."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        console.print(f"{name:<{width}}  {_text(value)}", markup=False)


def say(text: str = "") -> None:
    console.print(text, markup=False)


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:,.2f}" if isinstance(cell, float) else str(cell)
