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
    servers = weakref.ref(gateway.store.servers)
    watched(
        "tierstore_read_failures_total", "counter", "reads of a chunk's copy that failed and went to another copy",
        gateway.store.servers, lambda: book.read_failures_total if (book := servers()) else 0,
    )  # fmt: skip
    watched(
        "tierstore_write_failures_total", "counter", "servers that failed to store a chunk, which another one then got",
        gateway.store.servers, lambda: book.write_failures_total if (book := servers()) else 0,
    )  # fmt: skip
    watched(
        "tierstore_hedges_total", "counter", "slow first bytes for which a second replica was asked",
        gateway.store.servers, lambda: book.hedges_total if (book := servers()) else 0,
    )  # fmt: skip
    watched(
        "tierstore_object_reads_total", "counter", "bodies answered, by the tier that served the first byte",
        gateway.store.servers,
        lambda: {(tier,): float(count) for tier, count in book.served.items()} if (book := servers()) else {},
        labels=("tier",),
    )  # fmt: skip
    verifier = weakref.ref(gateway.object_client)
    watched(
        "tierstore_blocks_verified_total", "counter", "blocks read from object servers whose sum was right",
        gateway.object_client, lambda: client.blocks_verified if (client := verifier()) else 0,
    )  # fmt: skip
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
