"""Metrics of the gateway: plain ints on the hot path, read when somebody scrapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tierstore.telemetry.metrics import Watch

if TYPE_CHECKING:
    from tierstore.gateway.app import Gateway

_GATEWAY: Final = Watch["Gateway"]()
_GATEWAY.counter(
    "tierstore_read_failures_total", "reads of a chunk's copy that failed and went to another copy",
    lambda g: g.store.servers.read_failures_total,
)  # fmt: skip
_GATEWAY.counter(
    "tierstore_write_failures_total", "servers that failed to store a chunk, which another one then got",
    lambda g: g.store.servers.write_failures_total,
)  # fmt: skip
_GATEWAY.counter(
    "tierstore_extra_copies_failed_total", "fast copies beside the home ones that were not there in time and left out",
    lambda g: g.store.servers.extra_copies_failed_total,
)  # fmt: skip
_GATEWAY.counter(
    "tierstore_hedges_total", "slow first bytes for which a second replica was asked",
    lambda g: g.store.servers.hedges_total,
)  # fmt: skip
_GATEWAY.counter(
    "tierstore_early_reads_total", "reads of fast copies that were begun before metadata had answered",
    lambda g: g.store.early.begun_total,
)  # fmt: skip
_GATEWAY.counter(
    "tierstore_early_reads_used_total", "those of them whose bytes were the answer", lambda g: g.store.early.used_total
)
_GATEWAY.counter(
    "tierstore_object_reads_total", "bodies answered, by the tier that served the first byte",
    lambda g: {(tier,): float(count) for tier, count in g.store.servers.served.items()}, labels=("tier",),
)  # fmt: skip
_GATEWAY.counter(
    "tierstore_blocks_verified_total", "blocks read from object servers whose sum was right",
    lambda g: g.object_client.blocks_verified,
)  # fmt: skip
_GATEWAY.counter(
    "tierstore_borrowed_chunks_total", "chunks (or ranges) read from the file that an object server here lent",
    lambda g: g.object_client.loans_total,
)  # fmt: skip
_GATEWAY.counter(
    "tierstore_handed_over_chunks_total", "chunks that object servers here took from shared memory, not by TCP",
    lambda g: g.object_client.handovers_total,
)  # fmt: skip
_GATEWAY.gauge("tierstore_gateway_requests", "object requests under way", lambda g: g.objects.in_flight)
_GATEWAY.counter(
    "tierstore_gateway_answers_total", "object requests that their handlers have ended",
    lambda g: g.objects.answered_total,
)  # fmt: skip
_GATEWAY.gauge(
    "tierstore_gateway_upload_buffer_bytes", "bodies of uploads held in memory", lambda g: g.store.budget.held_bytes
)
_GATEWAY.counter(
    "tierstore_access_log_lines_total", "lines of buckets' access logs, by what became of them (dropped: no room, or "
    "too late; refused: the target does not take them)",
    lambda g: {(result,): float(count) for result, count in g.s3.access_log.lines_total.items()}, labels=("result",),
)  # fmt: skip
_GATEWAY.gauge(
    "tierstore_access_log_waiting_bytes", "lines of access logs that wait for their delivery",
    lambda g: g.s3.access_log.waiting_bytes,
)  # fmt: skip
_GATEWAY.gauge(
    "tierstore_access_log_oldest_seconds", "age of the oldest of them", lambda g: g.s3.access_log.oldest_seconds
)


def watch(gateway: Gateway) -> None:
    """Show one gateway's figures for as long as it lives."""
    _GATEWAY.show(gateway)
