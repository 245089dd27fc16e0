"""docs/internals/sites.md names a test for each thing that it promises: they must exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_table_names_exists() -> None:
    """A table that lies is worse than none."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/internals/sites.md").read_text()))
    written = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 25 and not named - written, named - written
