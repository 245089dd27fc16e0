"""The bounds of the walks: every queue, buffer and wait of the SDK has its number here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from tierstore.units import KIB, MIB

#: A chunk of up to this many bytes is read and written in one piece (it lies in a segment, not in a file of its own).
SMALL_BYTES: Final = 256 * KIB

#: Largest object, unless a door says less.
OBJECT_BYTES_MAX: Final = 5 << 40


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Seconds are per step unless the name says otherwise.

    buffer_bytes_max: bodies of uploads held in memory, of all uploads of this Store together; an upload waits for its
    share. chunks_in_flight_max: whole chunks of one upload that are on their way to servers while the next one fills.
    """

    buffer_bytes_max: int = 256 * MIB
    chunks_in_flight_max: int = 2
    chunks_allocated_ahead: int = 8
    allocations_ahead_min: int = 16
    allocations_ahead_max: int = 512
    chunk_attempts_max: int = 6            # times other servers are asked for, for one chunk
    chunk_again_seconds: float = 0.2       # before servers that failed are tried again with it; doubles each time
    placement_wait_seconds: float = 10.0   # for servers that restart, while without them there are too few
    placement_poll_seconds: float = 0.1
    commit_attempts_max: int = 3           # whole small PUTs repeated because a server left between store and commit
    receipt_renewals_at_once: int = 16     # after a server that stored chunks of an upload restarted before its commit
    receipt_renew_seconds: float = 10.0    # one such question
    chunk_store_seconds: float = 10.0      # plus one second for each chunk_store_bytes_per_second
    chunk_store_bytes_per_second: int = 4 * MIB
    straggler_seconds: float = 1.5         # after the others finished, before a spare is given the chunk too
    extra_copy_seconds: float = 0.02       # that a fast copy beside the home ones may be later than they
    request_seconds: float = 15.0          # lookup, allocate, commit, list: all attempts together
    metadata_hold_seconds: float = 10.0    # of them, for metadata that cannot be reached or restarts
    lookup_chunks_ahead: int = 2048        # of one read; some 1.5 KB each
    whole_body_seconds: float = 2.0        # that a read of more chunks than one lookup gives waits to know them all
    first_byte_seconds: float = 10.0       # all replicas and hedges together
    stall_seconds: float = 3.0             # silence after which a read moves to the next replica
    hedge_seconds_min: float = 0.05
    hedge_seconds_max: float = 0.5
    read_rounds_max: int = 3               # times all replicas of a chunk are tried, with fresh tickets
    suspect_seconds: float = 2.0           # a server that failed is asked last for so long
    gateway_step_seconds: float = 30.0     # one request or piece of a body of a store that goes through a gateway
    renew_seconds: float = 120.0           # how often a long upload renews its lease
    pin_seconds: float = 240.0             # how often a long read renews its pins and tickets, which live 5 minutes
    pins_at_once: int = 512                # chunks in one such message

    def waiting(self, factor: float) -> StoreLimits:
        """The same, but so many times as long for servers that do not answer at all (docs/adr/0620)."""
        return replace(
            self, request_seconds=self.request_seconds * factor, first_byte_seconds=self.first_byte_seconds * factor,
            placement_wait_seconds=self.placement_wait_seconds * factor,
            metadata_hold_seconds=self.metadata_hold_seconds * factor,
        )  # fmt: skip
