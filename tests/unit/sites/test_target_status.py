"""What operators see of a target: how long it will take, and how its networks are taken away."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest

from metadata.catalog.backlog import Backlog
from metadata.services.sites import metrics
from metadata.services.sites.target import TargetStatus
from tierstore.cli import sites as cli
from tierstore.telemetry.metrics import declared


@pytest.mark.parametrize(
    ("objects", "size", "rate", "seconds"), [(0, 0, 0.0, 0.0), (2, 100, 50.0, 2.0), (2, 100, 0.0, math.inf)]
)
def test_the_time_to_drain_is_that_of_the_bytes_that_wait(
    objects: int, size: int, rate: float, seconds: float
) -> None:
    """It is in the metrics, too: it was in REST and the command line alone."""
    status = TargetStatus("lyon", backlog=Backlog(objects, size, 0, 0), bytes_per_second=rate)
    assert status.drain_seconds == seconds
    assert metrics.WATCH is not None and "tierstore_replication_drain_seconds" in {m.name for m in declared()}


def test_networks_are_taken_away_by_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service refused "" as a network: what was set could not be taken back by the command line."""
    sent: list[dict[str, Any]] = []

    class Http:
        def call(self, method: str, path: str, *, body: dict[str, Any]) -> dict[str, Any]:
            sent.append(body)
            return {"sites": []}

    @contextlib.contextmanager
    def open_http(_: object) -> Iterator[Http]:
        yield Http()

    monkeypatch.setattr(cli, "open_http", open_http)
    monkeypatch.setattr(cli, "find", lambda *_: None)
    cli.change("lyon", network=[""], as_json=True)
    cli.change("lyon", rate="1MiB/s", as_json=True)
    assert sent == [{"networks": []}, {"rate": "1MiB/s"}]
