"""Names that are known not to be there: only in directories that are delegated, never one that may have come."""

from __future__ import annotations

from typing import Any

from tierstore.files import absent
from tierstore.files.absent import DIRECTORIES_MAX, FIRST_MISSES, MISSES_MAX, NAMES_MAX, Absent


class Page:
    """A page on which everything holds that was not taken back."""

    def __init__(self) -> None:
        self.back: set[int] = set()
        self.is_open = True

    def holds(self, number: int) -> bool:
        assert self.is_open, "a closed page is not asked"
        return number not in self.back

    def close(self) -> None:
        self.is_open = False


def attached() -> tuple[Absent, Page]:
    names, page = Absent(), Page()
    names.place, names._page = "here", page  # type: ignore[assignment]
    return names, page


def test_only_names_of_delegated_directories_are_known_to_be_absent() -> None:
    names, page = attached()
    assert not names.is_known(5, "a")
    names.take(5, 70, ["a", "b"])
    assert names.is_known(5, "c") and not names.is_known(5, "a") and not names.is_known(6, "c")
    names.note(5, "c")
    assert not names.is_known(5, "c")
    page.back.add(70)
    assert not names.is_known(5, "d")
    page.back.clear()
    assert not names.is_known(5, "d"), "what was lost once is read anew"
    assert names.answered == 1


def test_what_was_brought_before_the_directory_was_read_is_never_absent() -> None:
    """Its commit may come after the reading, or nobody may know whether it came."""
    names, _ = attached()
    names.note(5, "mine")
    names.take(5, 70, [])
    assert not names.is_known(5, "mine")
    for number in range(NAMES_MAX * 11 // 10):      # some share their bits
        names.note(9, f"{number}")
    assert not names.is_known(5, "other"), "delegations end with their names"
    names.take(5, 71, [])
    assert not names.is_known(5, "mine"), "which outlive them by a generation"


def test_most_names_that_are_absent_are_known_to_be() -> None:
    names, _ = attached()
    names.take(5, 70, [f"file{number}" for number in range(1000)])
    assert sum(names.is_known(5, f"other{number}") for number in range(10_000)) > 9_500
    assert not any(names.is_known(5, f"file{number}") for number in range(1000))


def test_a_directory_is_read_after_some_looks_in_vain_and_ever_later_when_that_is_of_no_use() -> None:
    names, _ = attached()
    due = [number for number in range(1, 8 * MISSES_MAX) if names.is_worth_reading(5)]
    assert due[:3] == [FIRST_MISSES, 3 * FIRST_MISSES, 7 * FIRST_MISSES]
    assert due[-1] - due[-2] == MISSES_MAX
    names.take(5, 70, [])
    assert not any(names.is_worth_reading(5) for _ in range(2 * MISSES_MAX)), "it is delegated"
    assert not any(Absent().is_worth_reading(5) for _ in range(2 * MISSES_MAX)), "nobody delegates"


def test_directories_are_bounded() -> None:
    names, _ = attached()
    for number in range(2 * DIRECTORIES_MAX):
        names.take(number, 1 + number, [])
        names.is_worth_reading(10_000 + number)
    assert not names.is_known(0, "a") and names.is_known(2 * DIRECTORIES_MAX - 1, "a")
    assert len(names._misses) <= DIRECTORIES_MAX


async def _none(place: str) -> None:
    return None


def test_another_process_of_metadata_has_delegated_nothing(monkeypatch: Any) -> None:
    import asyncio

    names, page = attached()
    names.take(5, 70, [])
    monkeypatch.setattr(absent.DelegationPage, "open", _none)
    asyncio.run(names.attach("here"))
    assert names.is_known(5, "a")
    asyncio.run(names.attach("there"))
    assert not names.is_known(5, "a") and not page.is_open
