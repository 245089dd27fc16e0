"""Lists in statements: of whatever length, in few texts."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from metadata.catalog import garbage, jobs, operations, placements, schema, workload
from metadata.catalog.among import among, filled
from tests.unit.cluster.cluster_kit import new_database

LENGTHS = range(1, 130)
TEXTS_MAX = 8       # 1, 2, 4, ... 128


def test_filling_up_adds_nothing_and_leaves_nothing_out() -> None:
    assert list(filled([])) == []
    for length in range(1, 70):
        values = [f"v{number}" for number in range(length)]
        made = filled(iter(values))
        assert made[:length] == values and set(made) == set(values)
        assert len(made) & (len(made) - 1) == 0 and len(made) < 2 * length


async def test_what_is_found_is_what_was_asked_for() -> None:
    database = await new_database()
    t = schema.pins.c
    for number in range(40):
        row = {"chunk_id": bytes([number]) * 16, "until_ms": 5}
        await database.write(lambda c, row=row: c.execute(sa.insert(schema.pins), row))  # type: ignore[misc]
    for wanted in ([], [3], [3, 5], [3, 5, 39], [*range(20), 200]):
        ids = [bytes([number]) * 16 for number in wanted]
        query = sa.select(t.chunk_id).where(among(t.chunk_id, ids))
        found = await database.read(lambda c, query=query: set(c.execute(query).scalars()))  # type: ignore[misc]
        assert found == set(ids) - {bytes([200]) * 16}


@pytest.mark.parametrize("name", ["busy", "kinds", "checks", "pinned", "condemn", "garbage", "placed", "forget"])
async def test_lists_of_all_lengths_make_few_texts(name: str) -> None:
    """Each text is prepared anew and kept, 40 KB for a list of 500: metadata grew by megabytes in ten minutes (R19),
    and texts that are used in every commit were turned out."""
    database = await new_database()
    texts: set[str] = set()

    def run(c: sa.Connection, ids: list[bytes], pairs: list[tuple[bytes, int]]) -> object:
        acts: dict[str, Any] = {
            "busy": lambda: jobs.busy_chunks(c, [*pairs, (b"x" * 16, 1)]),
            "kinds": lambda: workload.open_kinds_of(c, ids),
            "checks": lambda: jobs.remove_checks(c, ids),
            "pinned": lambda: operations.pinned(c, ids, now_ms=1),
            "condemn": lambda: operations.condemn(c, [chunk[:12] for chunk in ids], at_ms=1),
            "garbage": lambda: garbage.remove(c, range(len(ids))),
            "placed": lambda: garbage.placed(c, ids, [1, 2, 3]),
            "forget": lambda: placements.forget(c, [(device, chunk) for chunk, device in pairs]),
        }
        return acts[name]()

    def listen(c: sa.Connection) -> None:
        sa.event.listen(c, "before_cursor_execute", lambda *about: texts.add(about[2]))

    await database.write(listen)
    for length in LENGTHS:
        ids = [number.to_bytes(16, "big") for number in range(length)]
        pairs = [(chunk, 1) for chunk in ids]
        await database.write(lambda c, ids=ids, pairs=pairs: run(c, ids, pairs))  # type: ignore[misc]
    lists = [text for text in texts if " IN (" in text]
    assert 0 < len(lists) <= TEXTS_MAX + 1
