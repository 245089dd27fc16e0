"""Log lines and metrics: searchable, bounded, and without secrets."""

from __future__ import annotations

import gc
import io
import json

import pytest

from tierstore.telemetry import metrics
from tierstore.telemetry.log import configure, get_logger


def lines(form: str, write: object) -> list[str]:
    stream = io.StringIO()
    configure(level="info", form=form, role="objectd", stream=stream)
    try:
        write(get_logger("store.segments"))  # type: ignore[operator]
    finally:
        configure()
    return stream.getvalue().splitlines()


def test_an_event_is_one_line_of_names_and_values() -> None:
    """Operators search and count them."""
    (line,) = lines(
        "keyvalue", lambda log: log.bind(server=3).info("device failed", path="/d 1", errno=5, seconds=0.25)
    )
    assert (
        line.split(" ", 1)[1] == 'info objectd store.segments device failed server=3 path="/d 1" errno=5 seconds=0.25'
    )
    (document,) = lines("json", lambda log: log.warning("device failed", chunk=b"\x01\xff"))
    assert json.loads(document) | {"at": ""} == {
        "at": "",
        "level": "warning",
        "role": "objectd",
        "part": "store.segments",
        "event": "device failed",
        "chunk": "01ff",
    }


@pytest.mark.parametrize("form", ["keyvalue", "json"])
def test_secrets_are_masked_wherever_they_stand(form: str) -> None:
    """A log that is mailed to somebody must not open the store."""

    def write(log: object) -> None:
        log.info("joined", join_token="jt-123", secret_key="sk-456")  # type: ignore[attr-defined]
        log.info("refused", header="Bearer tst.AKEY.verysecret", note="a\nb")  # type: ignore[attr-defined]
        try:
            raise RuntimeError("bad tsd.7.alsosecret")
        except RuntimeError:
            log.exception("failed")  # type: ignore[attr-defined]

    text = "\n".join(found := lines(form, write))
    assert len(found) == 3, "one line per event, also with newlines and tracebacks in it"
    assert not [s for s in ("jt-123", "sk-456", "verysecret", "alsosecret") if s in text]
    assert "tst.AKEY.***" in text and "RuntimeError" in text


def test_lines_below_the_level_are_not_written() -> None:
    """Debug is dear."""
    assert lines("keyvalue", lambda log: log.debug("detail")) == []


def test_metric_names_and_labels_are_checked_when_they_are_declared() -> None:
    """A key as a label would make a million series."""
    for name in ("requests_total", "tierstore_x", "tierstore_Requests_total"):
        with pytest.raises(ValueError, match="metric name"):
            metrics.counter(name, "d")
    with pytest.raises(ValueError, match="counters"):
        metrics.gauge("tierstore_test_things_total", "d")
    with pytest.raises(ValueError, match="labels"):
        metrics.counter("tierstore_test_keys_total", "d", ["key"])
    metrics.counter("tierstore_test_a_total", "one meaning")
    assert metrics.counter("tierstore_test_a_total", "one meaning") is not None
    with pytest.raises(ValueError, match="twice"):
        metrics.counter("tierstore_test_a_total", "another meaning")


class Holder:
    def __init__(self, depth: float) -> None:
        self.depth = depth


_HOLDER = metrics.Watch[Holder]()
_HOLDER.gauge("tierstore_test_depth_items", "waiting", lambda holder: {("ssd",): holder.depth}, labels=["tier"])


def test_watched_values_are_added_up_and_end_with_their_owners() -> None:
    """Several devices in a process are one figure; a removed one no longer counts."""

    def value() -> str | None:
        text = metrics.exposition()[0].decode()
        return next(
            (s.split()[-1] for s in text.splitlines() if s.startswith('tierstore_test_depth_items{tier="ssd"}')), None
        )

    assert value() is None
    first, second = Holder(2.0), Holder(3.0)
    _HOLDER.show(first)
    _HOLDER.show(second)
    assert value() == "5.0"
    broken = metrics.Watch[Holder]()
    broken.gauge("tierstore_test_broken_items", "waiting", lambda holder: 1 / 0)
    broken.show(first)
    assert value() == "5.0"  # and the scrape goes on past the one that fails
    del second
    gc.collect()
    assert value() == "2.0"
    assert "tierstore_test_depth_items" in {metric.name for metric in metrics.declared()}
    with pytest.raises(ValueError, match="watched"):
        metrics.gauge("tierstore_test_depth_items", "waiting", ["tier"])
