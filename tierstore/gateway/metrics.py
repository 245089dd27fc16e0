"""Metrics of the gateway: plain ints on the hot path, read when somebody scrapes."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from tierstore.telemetry.metrics import watched

if TYPE_CHECKING:
    from tierstore.gateway.app import Gateway


def watch(gateway: Gateway) -> None:
    """Show one gateway's figures for as long as its parts live."""
    objects, budget = weakref.ref(gateway.objects), weakref.ref(gateway.store.budget)
    watched(
        "tierstore_gateway_requests", "gauge", "object requests under way", gateway.objects,
        lambda: door.in_flight if (door := objects()) else 0,
    )  # fmt: skip
    watched(
        "tierstore_gateway_answers_total", "counter", "object requests that their handlers have ended", gateway.objects,
        lambda: door.answered_total if (door := objects()) else 0,
    )  # fmt: skip
    watched(
        "tierstore_gateway_upload_buffer_bytes", "gauge", "bodies of uploads held in memory", gateway.store.budget,
        lambda: held.held_bytes if (held := budget()) else 0,
    )  # fmt: skip
