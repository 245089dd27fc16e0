"""The metrics of tiering: what docs/howto/tune-tiering.md looks at. Plain numbers, read when somebody scrapes."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from metadata.services.recorder import Recorder
from metadata.services.tiering import Tiering
from metadata.services.tiering_view import TieringView, TierUse
from tierstore.telemetry.metrics import Reading, watched


def watch(tiering: Tiering, view: TieringView, recorder: Recorder) -> None:
    """Show the figures of one process for as long as its parts live."""
    held, seen, recorded = weakref.ref(tiering), weakref.ref(view), weakref.ref(recorder)

    def total(read: Callable[[Tiering], float]) -> Reading:
        return lambda: read(alive) if (alive := held()) is not None else 0.0

    def per_tier(read: Callable[[TierUse], float]) -> Reading:
        return lambda: {(t.tier,): read(t) for t in alive.tiers()} if (alive := seen()) is not None else {}

    def counter(name: str, description: str, read: Callable[[Tiering], float]) -> None:
        watched(name, "counter", description, tiering, total(read))

    def gauge(name: str, description: str, read: Callable[[Tiering], float]) -> None:
        watched(name, "gauge", description, tiering, total(read))

    def of_tier(name: str, description: str, read: Callable[[TierUse], float]) -> None:
        watched(name, "gauge", description, view, per_tier(read), labels=("tier",))

    counter("tierstore_promoter_ticks_total", "ticks of the promoter", lambda t: t.totals.ticks)
    counter("tierstore_promotions_total", "copies made on faster devices", lambda t: t.totals.promotions)
    counter("tierstore_demotions_total", "copies let go on faster devices", lambda t: t.totals.demotions)
    counter("tierstore_promotions_failed_total", "copies that could not be made", lambda t: t.totals.failed)
    counter("tierstore_promotions_wasted_total", "copies let go without one read", lambda t: t.totals.wasted)
    counter("tierstore_promoted_bytes_total", "bytes written to faster devices", lambda t: t.totals.promoted_bytes)
    counter("tierstore_served_bytes_total", "bytes that clients read", lambda t: t.totals.served_bytes)
    gauge("tierstore_promotions_waiting_jobs", "copies queued or under way", lambda t: t.under_way)
    gauge("tierstore_heat_chunks", "chunks whose heat is known exactly", lambda t: len(t.heat.table))
    gauge(
        "tierstore_promoter_budget_bytes", "what the migration budget allows now",
        lambda t: t.planner.budget_bytes if t.planner is not None else 0.0,
    )  # fmt: skip
    of_tier("tierstore_tier_hit_ratio", "share of client reads that the tier served", lambda t: t.hit_ratio)
    of_tier("tierstore_tier_byte_hit_ratio", "share of the bytes read that it served", lambda t: t.byte_hit_ratio)
    of_tier("tierstore_tier_resident_bytes", "cache copies on the tier", lambda t: t.resident_bytes)
    of_tier("tierstore_tier_exposed_bytes", "home copies that landed and are to go home", lambda t: t.exposed_bytes)
    of_tier("tierstore_tier_exposed_seconds", "age of the oldest of them", lambda t: t.exposed_seconds)
    of_tier("tierstore_tier_grey_devices", "devices slower than a slower tier", lambda t: float(len(t.grey_devices)))
    watched(
        "tierstore_history_dropped_total", "counter", "requests that were not recorded", recorder,
        lambda: alive.dropped if (alive := recorded()) is not None else 0,
    )  # fmt: skip
    watched(
        "tierstore_history_bytes", "gauge", "recorded access history", recorder,
        lambda: alive.used_bytes if (alive := recorded()) is not None else 0,
    )  # fmt: skip
