"""Settings of an object server. Owns nothing; what all daemons share is tierstore.config.sections'.

Invariant: every bound of the chunk routes and of background work that is this daemon's alone stands in [chunks].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tierstore.config.load import Rate, Seconds, Size, section, setting, tables
from tierstore.config.sections import Auth, Background, Limits, Listen, Log, Membership, Telemetry, Timers
from tierstore.names import Tier
from tierstore.units import KIB, MIB

#: How far the disk may be behind a streamed upload or copy (the devices are opened with it as their writers' bound),
#: and what each holds in the account of all uploads together.
STREAM_WINDOW_BYTES: Final = 16 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """One directory or disk of one tier."""

    path: str = setting(description="directory of the device; formatted when it is empty")
    tier: Tier = setting(description="speed class")
    capacity: Size = setting(0, "bytes the device may hold; 0: what the file system has")
    reserve: Size = setting(256 * MIB, "kept free for compaction and deletes; at most a tenth of the capacity is used")
    read_latency: Seconds = setting(0.0, "declared time of a small read; 0: measured at start")
    read_rate: Rate = setting(0, "declared sequential reading; 0: measured at start")
    simulate_seek: Seconds = setting(0.0, "demonstrations: every access to the device takes at least this long")
    simulate_rate: Rate = setting(0, "demonstrations: the device reads and writes no faster; 0: as it can")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """How chunks are stored and served."""

    segment_chunk_bytes_max: Size = setting(256 * KIB, "larger chunks get a file of their own")
    segment_bytes: Size = setting(256 * MIB, "a segment is closed at this size")
    chunk_bytes_max: Size = setting(64 * MIB, "largest chunk")
    sendfile_bytes_min: Size = setting(64 * KIB, "answers larger than this go by sendfile")
    lend_files: bool = setting(True, "readers on the same machine get large cached chunks as open files, not by TCP")
    take_memory: bool = setting(True, "writers on the same machine hand over large chunks in shared memory, not by TCP")
    direct_bytes_min: Size = setting(1 * MIB, "chunks from this size on are written around the page cache; 0: none")
    upload_bytes_max: Size = setting(256 * MIB, "bytes of uploads in memory or on their way to disk; more get 503")
    uploads_max: int = setting(1024, "uploads under way; further ones get 503")
    cold_reads_max: int = setting(256, "reads waiting for the disk; further ones get 503")
    cold_read_bytes: Size = setting(1 * MIB, "piece in which a chunk that is not in memory is read and sent")
    device_timeout: Seconds = setting(20.0, "for one step of a device, after which the request fails")
    mem_bytes: Size = setting(64 * MIB, "chunks kept in RAM in front of slow devices (the mem tier); 0: none")
    fresh_bytes: Size = setting(16 * MIB, "what clients just read from slow devices, kept for copies of it; 0: none")
    heat_entries_max: int = setting(500_000, "distinct chunks counted between two heartbeats")
    speed_test: bool = setting(True, "measure the devices at start (a fraction of a second each)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """What the server does with its devices by itself."""

    interval: Seconds = setting(10.0, "between two rounds: checks of failed devices, trash, compaction")
    garbage_ratio: float = setting(0.4, "segments with more dead bytes than this share are rewritten")
    compact_bytes_max: Size = setting(64 * MIB, "bytes moved by compaction in one round")
    segment_grace: Seconds = setting(600.0, "an emptied segment stays for readers whose tickets name places in it")
    trash: Seconds = setting(86_400.0, "deleted chunks are kept; the metadata service may say otherwise")
    trash_min: Seconds = setting(900.0, "kept at least, also when space runs short")
    short_of_space: float = setting(0.05, "share of free space below which the trash is emptied early")
    scrub: bool = setting(True, "read all chunks from time to time and check them")
    scrub_after: Seconds = setting(3600.0, "chunks written since are left to a later round of the scrub")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectdConfig:
    """All settings of `python -m objectd`."""

    listen: Listen = section(Listen, port=7411)
    membership: Membership = section(Membership, data="data/objectd")
    devices: tuple[DeviceConfig, ...] = tables(DeviceConfig, "directories or disks of this server")
    chunks: Chunks = section(Chunks)
    upkeep: Upkeep = section(Upkeep)
    background: Background = section(Background)
    auth: Auth = section(Auth)
    limits: Limits = section(Limits)
    timers: Timers = section(Timers)
    log: Log = section(Log)
    telemetry: Telemetry = section(Telemetry)

    def __post_init__(self) -> None:
        paths = [device.path for device in self.devices]
        if len(set(paths)) != len(paths):
            raise ValueError("two [[devices]] have the same path")
        if self.chunks.segment_chunk_bytes_max >= self.chunks.segment_bytes:
            raise ValueError("chunks.segment_bytes must be larger than chunks.segment_chunk_bytes_max")

    @property
    def name(self) -> str:
        """The server's name in the site."""
        return self.membership.name or f"objectd-{self.listen.port}"
