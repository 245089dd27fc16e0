"""How much a client may take of a serving process. One frozen value, given to the protocol at start.

Invariant: every wait for a client has one of these as its bound; the sweep of serving.state enforces them with a
grain of one second, so no request pays for a timer.
"""

from __future__ import annotations

from dataclasses import dataclass

from tierstore.config import sections


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the HTTP edge. Seconds are counted in whole sweeps (1 s)."""

    header_bytes_max: int = 16 * 1024       # request line and headers together; beyond: 431
    header_seconds: int = 10                # from the first byte of a request to the end of its head; beyond: 408
    idle_seconds: int = 60                  # keep-alive without a request; then closed
    body_seconds: int = 30                  # without one byte of a body that we are ready to take; then closed
    send_seconds: int = 60                  # without one byte of an answer that we have ready; then closed
    linger_seconds: int = 2                 # after an early answer: how long the rest of the body is discarded
    linger_bytes_max: int = 4 * 1024 * 1024
    discard_bytes_max: int = 64 * 1024      # unread body up to this is read away and the connection kept
    connections_max: int = 16_384
    connections_per_address: int = 12_288   # beyond it the longest idle one of that address makes room, else 503
    pipelined_max: int = 32                 # requests waiting behind the one under way; beyond: closed
    drain_seconds: int = 120                # how long requests under way may go on after a stop was asked
    drain_idle_seconds: int = 2             # how long idle connections get to send one more request while draining


def limits_of(bounds: sections.Limits, timers: sections.Timers, *, connections_per_address: int = 0) -> Limits:
    """The edge's bounds from the settings that all daemons share. connections_per_address 0: as many as in all, for
    daemons whose callers are peers: few, and trusted with many connections each."""
    return Limits(
        header_bytes_max=bounds.header_bytes_max,
        header_seconds=int(timers.header),
        idle_seconds=int(timers.idle),
        body_seconds=int(timers.body_stall),
        connections_max=bounds.connections_max,
        connections_per_address=connections_per_address or bounds.connections_max,
        drain_seconds=int(timers.drain),
    )
