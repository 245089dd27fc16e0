"""The planted bugs can be planted: found when a line moves, not months later by `make mutants`."""

from __future__ import annotations

import pytest

from tests.mutants.__main__ import ROOT
from tests.mutants.planted import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_line_that_a_planted_bug_changes_stands_where_it_is_said_to(mutant: Mutant) -> None:
    """A mutant that cannot be planted proves nothing of the tests that should catch it."""
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    for test in mutant.tests:
        assert (ROOT / test.partition("::")[0]).exists(), test
