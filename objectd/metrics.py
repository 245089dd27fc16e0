"""The object server's metrics, read from plain numbers at scrape time. Owns no number itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from tierstore.telemetry.metrics import Reading, watched

if TYPE_CHECKING:
    from objectd.app import ObjectServer


def watch(server: ObjectServer) -> None:
    """Expose a server for as long as it lives."""
    held = weakref.ref(server)

    def reading(read: Callable[[ObjectServer], float]) -> Reading:
        def value() -> float:
            alive = held()
            return read(alive) if alive is not None else 0.0

        return value

    def per_tier(read: Callable[[ObjectServer], list[tuple[str, float]]]) -> Reading:
        def values() -> dict[tuple[str, ...], float]:
            alive = held()
            sums: dict[tuple[str, ...], float] = {}
            for tier, value in read(alive) if alive is not None else []:
                sums[tier,] = sums.get((tier,), 0.0) + value
            return sums

        return values

    def counter(name: str, description: str, read: Callable[[ObjectServer], float]) -> None:
        watched(name, "counter", description, server, reading(read))

    def gauge(name: str, description: str, read: Callable[[ObjectServer], float]) -> None:
        watched(name, "gauge", description, server, reading(read))

    def tier_gauge(name: str, description: str, read: Callable[[ObjectServer], list[tuple[str, float]]]) -> None:
        watched(name, "gauge", description, server, per_tier(read), labels=("tier",))

    counter("tierstore_chunk_reads_total", "chunks served", lambda s: s.reads.reads_total)
    counter("tierstore_chunk_cold_reads_total", "reads that waited for a disk", lambda s: s.reads.cold_total)
    counter("tierstore_chunk_read_blocks_total", "blocks of chunks sent to clients", lambda s: s.reads.blocks_total)
    counter("tierstore_chunk_read_bytes_total", "bytes of chunks served", lambda s: s.reads.bytes_total)
    counter("tierstore_chunk_uploads_total", "chunks stored", lambda s: s.uploads.uploads_total)
    counter("tierstore_chunk_upload_bytes_total", "bytes of chunks stored", lambda s: s.uploads.bytes_total)
    gauge("tierstore_uploads_held_bytes", "bytes of uploads under way", lambda s: s.uploads.upload_bytes)
    gauge("tierstore_cold_reads_waiting_reads", "reads waiting for a disk", lambda s: s.reads.cold_reads)
    counter("tierstore_heat_dropped_total", "reads beyond the bound of counted chunks", lambda s: s.heat.dropped)
    watched(
        "tierstore_tier_reads_total", "counter", "client reads by the tier that served them", server,
        per_tier(lambda s: [(tier, float(reads)) for tier, (reads, _) in s.reads.served.items()]), labels=("tier",),
    )  # fmt: skip
    watched(
        "tierstore_tier_read_bytes_total", "counter", "bytes of client reads by tier", server,
        per_tier(lambda s: [(tier, float(size)) for tier, (_, size) in s.reads.served.items()]), labels=("tier",),
    )  # fmt: skip
    gauge("tierstore_mem_used_bytes", "chunks kept in RAM", lambda s: s.memory.used_bytes)
    gauge("tierstore_mem_capacity_bytes", "bound of the RAM cache", lambda s: s.memory.capacity_bytes)
    counter("tierstore_jobs_done_total", "jobs done by this server", lambda s: s.jobs.done_total)
    counter("tierstore_jobs_failed_total", "jobs that failed on this server", lambda s: s.jobs.failed_total)
    counter("tierstore_scrub_read_bytes_total", "bytes read by the scrub", lambda s: s.scrub.bytes_total)
    counter("tierstore_bad_copies_total", "copies put into quarantine", lambda s: s.verify.bad_total)
    counter("tierstore_heartbeats_total", "heartbeats that metadata answered", lambda s: s.agent.heartbeats_total)
    counter("tierstore_heartbeat_failures_total", "heartbeats that failed", lambda s: s.agent.failures_total)
    tier_gauge(
        "tierstore_device_capacity_bytes", "capacity of the devices",
        lambda s: [(slot.device.tier, slot.device.usage().capacity_bytes) for slot in s.slots],
    )  # fmt: skip
    tier_gauge(
        "tierstore_device_free_bytes", "what may still be written",
        lambda s: [(slot.device.tier, slot.device.usage().free_bytes) for slot in s.slots],
    )  # fmt: skip
    tier_gauge(
        "tierstore_device_garbage_bytes", "dead bytes not yet compacted",
        lambda s: [(slot.device.tier, slot.device.usage().garbage_bytes) for slot in s.slots],
    )  # fmt: skip
    tier_gauge(
        "tierstore_devices_failed_devices", "devices that take no writes",
        lambda s: [(slot.device.tier, float(slot.device.state != "ok")) for slot in s.slots],
    )  # fmt: skip
