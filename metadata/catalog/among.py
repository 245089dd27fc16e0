"""Lists of values in a statement: one of a list, in texts of few lengths.

A list makes the statement's text as long as itself. The engines prepare each text anew and keep what they prepared
(SQLite up to 512 texts for each connection, up to 100 KB each; asyncpg 100, for a round trip each), so lists of all
lengths from 1 to 500 would fill those stores for hours and turn everything else out. Lists are filled up to the next
power of two with their last value instead, which changes nothing of what they say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

T = TypeVar("T")


def filled(values: Iterable[T]) -> Sequence[T]:
    """The values, the last of them repeated up to a power of two. None stay none."""
    known = list(values)
    if len(known) > 2:
        known += known[-1:] * ((1 << (len(known) - 1).bit_length()) - len(known))
    return known


def among(column: sa.ColumnElement[Any], values: Iterable[Any]) -> sa.ColumnElement[bool]:
    """That a column has one of these values; of none of them nothing has."""
    return column.in_(filled(values))
