"""docs/reference/s3.md must not promise what no test holds, nor the door serve what the page does not say."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

from tierstore.gateway.s3 import handlers
from tierstore.gateway.s3.operations import OPERATIONS, find

TESTS = Path(__file__).parents[1] / "integration" / "s3"


def test_every_supported_operation_names_a_test_that_exists() -> None:
    """A page that lies costs a user's evening."""
    texts = [path.read_text() for path in TESTS.glob("test_*.py")]
    written = {name for text in texts for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    assert {row.test for row in OPERATIONS if row.state != "no"} <= written
    assert not any(row.test for row in OPERATIONS if row.state == "no")


def test_the_door_serves_exactly_what_the_table_says() -> None:
    """A handler without a row would be reachable under no name, a row without one would be a lie."""
    doors = mock.MagicMock()
    served = set(handlers.handlers_of(doors))
    assert served == {row.name for row in OPERATIONS if row.state != "no"}


def test_every_operation_is_found_by_its_own_request() -> None:
    """An earlier row of the table must not hide a later one."""
    for row in OPERATIONS:
        names = frozenset({row.query} - {""})
        assert find(row.method, row.scope, names, is_copy=bool(row.header)) == row
