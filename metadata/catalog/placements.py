"""The reverse table (device -> chunks), written lazily from the feed and the garbage, in batches.

It carries the feed's sequence up to which it is complete (setting `placements_sequence`), written in the same
transaction as the rows, so a question about (chunk, device) can be answered once that mark has passed the moment of
the question (rule 2). Rows of chunks that became garbage go as soon as the garbage row is seen; the garbage itself
says from then on that the chunk is spoken for.

Invariants: with the mark at the head, every replica of every referenced chunk has its row; a row may outlive its
replica for a moment, never the other way round. A row says what was true when it was written: who moves a row under
another name moves its placements in the same transaction (`move`).

Cost: about 10 us per change on SQLite, in pieces of PIECE_CHANGES so that the loop is not held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import bodies, feed, schema
from metadata.catalog.objects import LATEST, VERSION, ObjectRow
from metadata.catalog.packed import PackedChunk, placed, places, unpack
from metadata.catalog.session import BulkWrite, Session
from metadata.catalog.statement import Statement

MARKdef _setting(connection: sa.Connection, name: str, *, lock: bool) -> int:
    row = (_VALUE_LOCKED if lock else _VALUE).first(connection, setting=name)
    return int(row[0]) if row is not None else 0


def _set(connection: sa.Connection, name: str, value: int) -> None:
    s = schema.settings
    if not connection.execute(sa.update(s).where(s.c.name == name).values(value=str(value))).rowcount:
        connection.execute(sa.insert(s).values(name=name, value=str(value)))


def mark(connection: sa.Connection) -> int:
    """The feed's sequence up to which the reverse table is complete."""
    return _setting(connection, MARK_SETTING, lock=False)
