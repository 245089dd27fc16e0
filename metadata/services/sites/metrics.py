"""Figures of replication for Prometheus: per other site, and of what waits for other sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from metadata.services.sites.fetched import FetchedBodies
from metadata.services.sites.run import Replication
from metadata.services.sites.target import TargetStatus
from metadata.services.sites.tombstones import Tombstones
from tierstore.telemetry.metrics import Value, Watch

WATCH: Final = Watch[Replication]()


def _of_targets(read: Callable[[TargetStatus], float]) -> Callable[[Replication], Value]:
    return lambda replication: {(s.site,): read(s) for s in replication.statuses()}


WATCH.gauge(
    "tierstore_replication_backlog_objects", "changes that a site has not got",
    _of_targets(lambda s: s.backlog.objects), labels=("site",),
)  # fmt: skip
WATCH.gauge(
    "tierstore_replication_backlog_bytes", "bytes of bodies that a site has not got",
    _of_targets(lambda s: s.backlog.bytes), labels=("site",),
)  # fmt: skip
WATCH.gauge(
    "tierstore_replication_rate_bytes", "bytes of bodies a second that travel to a site, of the last ten seconds",
    _of_targets(lambda s: s.bytes_per_second), labels=("site",),
)  # fmt: skip
WATCH.gauge(
    "tierstore_replication_drain_seconds", "until a site has the bytes that wait, at that rate; +Inf: nothing moves",
    _of_targets(lambda s: s.drain_seconds), labels=("site",),
)  # fmt: skip
WATCH.gauge(
    "tierstore_replication_oldest_timestamp_seconds", "when the oldest of them was written; 0: none waits",
    _of_targets(lambda s: s.backlog.oldest_ms / 1000), labels=("site",),
)  # fmt: skip
WATCH.gauge(
    "tierstore_replication_confirmed_timestamp_seconds",
    "when a site was last known to have everything; 0: not yet",
    _of_targets(lambda s: s.confirmed_at_ms / 1000), labels=("site",),
)  # fmt: skip
WATCH.gauge(
    "tierstore_replication_reachable_sites", "1: the site answers", _of_targets(lambda s: float(s.is_reachable)),
    labels=("site",),
)  # fmt: skip
WATCH.gauge(
    "tierstore_replication_latency_seconds", "round trip to a site's metadata",
    _of_targets(lambda s: s.latency_ms / 1000), labels=("site",),
)  # fmt: skip
WATCH.counter(
    "tierstore_replication_sent_bytes_total", "bytes of bodies that travelled to a site",
    _of_targets(lambda s: s.bytes_sent), labels=("site",),
)  # fmt: skip
WATCH.counter(
    "tierstore_replication_failures_total", "messages to a site that failed", _of_targets(lambda s: s.failures),
    labels=("site",),
)  # fmt: skip
WATCH.counter(
    "tierstore_replication_sync_waits_total", "commits under a sync rule: waits", lambda r: float(r.sync.waits)
)
WATCH.counter(
    "tierstore_replication_sync_degraded_total", "answers under a sync rule: degraded", lambda r: float(r.sync.degraded)
)
WATCH.counter(
    "tierstore_replication_sync_failed_total", "answers under a sync rule: failed, of each try of a gateway one",
    lambda r: float(r.sync.failed)
)
WATCH.gauge(
    "tierstore_replication_comparing_sites", "sites whose names this restored one waits for; 0: it takes writes",
    lambda r: float(r.comparing),
)  # fmt: skip
WATCH.counter(
    "tierstore_replication_hot_queued_total", "bodies under a hot rule of which something new became hot, and follows",
    lambda r: float(r.hot_queued),
)  # fmt: skip

TOMBSTONES: Final = Watch[Tombstones]()
TOMBSTONES.counter(
    "tierstore_tombstones_dropped_total", "delete markers forgotten, seen by every site", lambda t: float(t.dropped)
)
TOMBSTONES.gauge(
    "tierstore_tombstones_kept_rows", "delete markers that the walk under way, or the last one, let stand",
    lambda t: float(t.kept),
)  # fmt: skip


FETCHED: Final = Watch[FetchedBodies]()
FETCHED.gauge(
    "tierstore_fetched_kept_bytes", "bodies of other sites kept for readers, each counted once",
    lambda f: float(f.kept_bytes),
)  # fmt: skip
FETCHED.counter(
    "tierstore_fetched_let_go_bytes_total", "bodies of other sites let go of, to be fetched again when they are read",
    lambda f: float(f.let_go_bytes),
)  # fmt: skip
FETCHED.counter(
    "tierstore_fetched_kept_back_total",
    "times that such a body would have gone, but no other site was known to have it for good",
    lambda f: float(f.kept_back),
)  # fmt: skip


def watch(replication: Replication, tombstones: Tombstones, fetched: FetchedBodies) -> None:
    """Show them."""
    FETCHED.show(fetched)
    WATCH.show(replication)
    TOMBSTONES.show(tombstones)
