"""The metrics of tiering: what docs/howto/tune-tiering.md looks at. Plain numbers, read when somebody scrapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from metadata.services.tiering.recorder import Recorder
from metadata.services.tiering.service import Tiering
from metadata.services.tiering.view import TieringView, TierUse
from tierstore.telemetry.metrics import Watch

_TIERING: Final = Watch[Tiering]()
_TIERING.counter("tierstore_promoter_ticks_total", "ticks of the promoter", lambda t: t.totals.ticks)
_TIERING.counter("tierstore_promotions_total", "copies made on faster devices", lambda t: t.totals.promotions)
_TIERING.counter("tierstore_demotions_total", "copies let go on faster devices", lambda t: t.totals.demotions)
_TIERING.counter("tierstore_promotions_failed_total", "copies that could not be made", lambda t: t.totals.failed)
_TIERING.counter("tierstore_promotions_wasted_total", "copies let go without one read", lambda t: t.totals.wasted)
_TIERING.counter("tierstore_promoted_bytes_total", "bytes written to faster devices", lambda t: t.totals.promoted_bytes)
_TIERING.counter("tierstore_served_bytes_total", "bytes that clients read", lambda t: t.totals.served_bytes)
_TIERING.gauge("tierstore_promotions_waiting_jobs", "copies queued or under way", lambda t: len(t.copies))
_TIERING.gauge("tierstore_heat_chunks", "chunks whose heat is known exactly", lambda t: len(t.heat.table))
_TIERING.gauge(
    "tierstore_promoter_budget_bytes", "what the migration budget allows now",
    lambda t: t.planner.budget_bytes if t.planner is not None else 0.0,
)  # fmt: skip

_TIERING.gauge(
    "tierstore_promoter_moved_per_served_ratio", "bytes copied to fast devices per byte that clients read",
    lambda t: t.copies.moved_per_served(),
)  # fmt: skip
_TIERING.gauge(
    "tierstore_promoter_written_per_day_bytes", "written to fast devices in a day, at the pace since the start",
    lambda t: t.written_per_day(),
)  # fmt: skip
_TIERING.gauge(
    "tierstore_promotions_wasted_ratio", "share of the copies made that were let go without a read",
    lambda t: t.copies.waste_ratio(),
)  # fmt: skip

_VIEW: Final = Watch[TieringView]()


def _of_tier(name: str, description: str, read: Callable[[TierUse], float]) -> None:
    _VIEW.gauge(name, description, lambda view: {(t.tier,): read(t) for t in view.tiers()}, labels=("tier",))


_of_tier("tierstore_tier_hit_ratio", "share of client reads that the tier served", lambda t: t.hit_ratio)
_of_tier("tierstore_tier_byte_hit_ratio", "share of the bytes read that it served", lambda t: t.byte_hit_ratio)
_of_tier("tierstore_tier_resident_bytes", "bytes of cache copies on the tier", lambda t: t.resident_bytes)
_of_tier("tierstore_tier_resident_chunks", "cache copies on the tier", lambda t: t.resident_chunks)
_of_tier(
    "tierstore_tier_lowest_resident_rank", "rank that a chunk must pass to displace one; NaN without any",
    lambda t: math.nan if t.lowest_rank is None else t.lowest_rank,
)  # fmt: skip
_of_tier("tierstore_tier_exposed_bytes", "home copies that landed and are to go home", lambda t: t.exposed_bytes)
_of_tier("tierstore_tier_exposed_seconds", "age of the oldest of them", lambda t: t.exposed_seconds)
_of_tier("tierstore_tier_grey_devices", "devices slower than a slower tier", lambda t: float(len(t.grey_devices)))

_RECORDER: Final = Watch[Recorder]()
_RECORDER.counter("tierstore_history_dropped_total", "requests that were not recorded", lambda r: r.dropped)
_RECORDER.gauge("tierstore_history_bytes", "recorded access history", lambda r: r.used_bytes)


def watch(tiering: Tiering, view: TieringView, recorder: Recorder) -> None:
    """Show the figures of one process for as long as its parts live."""
    _TIERING.show(tiering)
    _VIEW.show(view)
    _RECORDER.show(recorder)
