"""`tierstore admin sites` without a cluster: what it shows of the way to each site."""

from __future__ import annotations

from typing import Any

import pytest

from tierstore.cli import sites

THERE: dict[str, Any] = {
    "name": "lyon", "number": 2, "is_local": False, "gateways": ["http://lyon:7480"], "networks": [], "paused": False,
    "rate": "", "schedule": [], "share": 0.5, "latency_ms": 12.34, "reachable": True,
}  # fmt: skip
HERE: dict[str, Any] = {**THERE, "name": "paris", "number": 1, "is_local": True, "latency_ms": None, "reachable": None}
SPANS = [{"from": "22:00", "to": "06:00", "rate": "100MiB/s"}, {"from": "06:00", "to": "07:00", "rate": ""}]


def _lines(answer: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> list[str]:
    sites._show_sites({"sites": answer}, as_json=False)
    return capsys.readouterr().out.splitlines()


def test_all_that_is_set_of_a_site_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """What `sites set` took and nothing shows is set again, or forgotten, when the line is slow at night."""
    _, *rows = _lines([HERE, {**THERE, "rate": "25MiB/s", "schedule": SPANS, "share": 0.3}], capsys)
    (lyon,) = (row for row in rows if row.startswith("lyon"))
    assert "25MiB/s  22:00-06:00=100MiB/s 06:00-07:00=no limit  0.3" in lyon


def test_a_site_of_which_nothing_is_set_shows_what_holds_then(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty column could be a limit of nothing."""
    head, *rows = _lines([HERE, THERE], capsys)
    paris, lyon = (next(row for row in rows if row.startswith(name)) for name in ("paris", "lyon"))
    assert lyon[head.index("rate") :].split() == ["no", "limit", "0.5"]
    assert not paris[head.index("rate") :].strip()
