"""The object server's metrics, read from plain numbers at scrape time. Owns no number itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from tierstore.telemetry.metrics import Value, Watch

if TYPE_CHECKING:
    from objectd.app import ObjectServer


def _per_tier(values: Iterable[tuple[str, float]]) -> Value:
    sums: dict[tuple[str, ...], float] = {}
    for tier, value in values:
        sums[tier,] = sums.get((tier,), 0.0) + value
    return sums


_SERVER: Final = Watch["ObjectServer"]()
_SERVER.counter("tierstore_chunk_reads_total", "chunks served", lambda s: s.reads.reads_total)
_SERVER.counter(
    "tierstore_chunk_loans_total", "those of them that a reader on the same machine made from the lent file",
    lambda s: s.loans.loans_total,
)  # fmt: skip
_SERVER.counter(
    "tierstore_chunk_handovers_total", "chunks taken from the shared memory of a writer on the same machine",
    lambda s: s.handovers.handovers_total,
)  # fmt: skip
_SERVER.counter("tierstore_chunk_cold_reads_total", "reads that waited for a disk", lambda s: s.reads.cold_total)
_SERVER.counter(
    "tierstore_chunk_joined_reads_total", "those of them that got what another read of the chunk brought",
    lambda s: s.reads.joined_total,
)  # fmt: skip
_SERVER.counter(
    "tierstore_chunk_fresh_copies_total", "copies that took their bytes from a read just made, not from a device",
    lambda s: s.fresh.taken_total,
)  # fmt: skip
_SERVER.counter("tierstore_chunk_read_blocks_total", "blocks of chunks sent to clients", lambda s: s.reads.blocks_total)
_SERVER.counter("tierstore_chunk_read_bytes_total", "bytes of chunks served", lambda s: s.reads.bytes_total)
_SERVER.counter("tierstore_chunk_uploads_total", "chunks stored", lambda s: s.uploads.uploads_total)
_SERVER.counter("tierstore_chunk_upload_bytes_total", "bytes of chunks stored", lambda s: s.uploads.bytes_total)
_SERVER.gauge("tierstore_uploads_held_bytes", "bytes of uploads under way", lambda s: s.uploads.upload_bytes)
_SERVER.gauge("tierstore_cold_reads_waiting_reads", "reads waiting for a disk", lambda s: s.reads.cold_reads)
_SERVER.counter("tierstore_heat_dropped_total", "reads beyond the bound of counted chunks", lambda s: s.heat.dropped)
_SERVER.counter(
    "tierstore_tier_reads_total", "client reads by the tier that served them",
    lambda s: _per_tier((tier, float(reads)) for tier, (reads, _) in s.reads.served.items()), labels=("tier",),
)  # fmt: skip
_SERVER.counter(
    "tierstore_tier_read_bytes_total", "bytes of client reads by tier",
    lambda s: _per_tier((tier, float(size)) for tier, (_, size) in s.reads.served.items()), labels=("tier",),
)  # fmt: skip
_SERVER.gauge("tierstore_mem_used_bytes", "chunks kept in RAM", lambda s: s.memory.used_bytes)
_SERVER.gauge("tierstore_mem_capacity_bytes", "bound of the RAM cache", lambda s: s.memory.capacity_bytes)
_SERVER.counter("tierstore_jobs_done_total", "jobs done by this server", lambda s: s.jobs.done_total)
_SERVER.counter("tierstore_jobs_failed_total", "jobs that failed on this server", lambda s: s.jobs.failed_total)
_SERVER.counter("tierstore_scrub_read_bytes_total", "bytes read by the scrub", lambda s: s.scrub.bytes_total)
_SERVER.counter("tierstore_bad_copies_total", "copies put into quarantine", lambda s: s.verify.bad_total)
_SERVER.counter("tierstore_heartbeats_total", "heartbeats that metadata answered", lambda s: s.agent.heartbeats_total)
_SERVER.counter("tierstore_heartbeat_failures_total", "heartbeats that failed", lambda s: s.agent.failures_total)
_SERVER.gauge(
    "tierstore_device_capacity_bytes", "capacity of the devices",
    lambda s: _per_tier((slot.device.tier, slot.device.usage().capacity_bytes) for slot in s.slots), labels=("tier",),
)  # fmt: skip
_SERVER.gauge(
    "tierstore_device_free_bytes", "what may still be written",
    lambda s: _per_tier((slot.device.tier, slot.device.usage().free_bytes) for slot in s.slots), labels=("tier",),
)  # fmt: skip
_SERVER.gauge(
    "tierstore_device_garbage_bytes", "dead bytes not yet compacted",
    lambda s: _per_tier((slot.device.tier, slot.device.usage().garbage_bytes) for slot in s.slots), labels=("tier",),
)  # fmt: skip
_SERVER.counter(
    "tierstore_device_log_syncs_total", "syncs of the devices' logs of small chunks: each is one sequential write",
    lambda s: _per_tier((slot.device.tier, float(slot.device.usage().log_syncs)) for slot in s.slots),
    labels=("tier",),
)  # fmt: skip
_SERVER.counter(
    "tierstore_device_log_records_total", "records that those syncs made durable",
    lambda s: _per_tier((slot.device.tier, float(slot.device.usage().log_records)) for slot in s.slots),
    labels=("tier",),
)  # fmt: skip
_SERVER.counter(
    "tierstore_device_log_bytes_total", "bytes that those syncs made durable",
    lambda s: _per_tier((slot.device.tier, float(slot.device.usage().log_bytes)) for slot in s.slots),
    labels=("tier",),
)  # fmt: skip
_SERVER.gauge(
    "tierstore_devices_failed_devices", "devices that take no writes",
    lambda s: _per_tier((slot.device.tier, float(slot.device.state != "ok")) for slot in s.slots), labels=("tier",),
)  # fmt: skip


def watch(server: ObjectServer) -> None:
    """Expose a server for as long as it lives."""
    _SERVER.show(server)
