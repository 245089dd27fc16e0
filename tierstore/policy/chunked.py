"""A trace of objects as requests for their chunks: the unit that the store counts, moves and serves.

Owns how a request becomes rows: a read of an object has one row for each of its chunks, all at the request's time; a
write or a deletion one for each chunk that the object ever had (what the new body has not is a deletion). Invariant:
the rows of a request add up to its bytes. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from tierstore.policy.trace import DELETE, GET, Ints, Trace

#: Rows that a trace may become, unless it has more requests: a replay takes 15 us a row. Beyond, chunks are taken to be
#: larger than they are.
ROWS_MAX: Final = 1_500_000


@dataclass(frozen=True, slots=True)
class ChunkTrace:
    """rows: the trace of chunks, named as their objects; request[i]: the number of the request that row i is of;
    object_bytes[key]: of the object that a chunk is of, at its largest."""

    rows: Trace
    request: Ints
    object_bytes: Ints


def chunk_bytes_for(trace: Trace, chunk_bytes: int) -> int:
    """The chunk size at which the trace has at most ROWS_MAX rows: what the store has, or a power of two times it. 0:
    objects are taken as one piece."""
    while chunk_bytes and int(_counts(trace, chunk_bytes).sum()) > max(ROWS_MAX, len(trace)):
        chunk_bytes *= 2
    return chunk_bytes


def in_chunks(trace: Trace, chunk_bytes: int) -> ChunkTrace | None:
    """The rows; None when every object is one chunk."""
    if not chunk_bytes or not len(trace) or int(trace.size.max()) <= chunk_bytes:
        return None
    counts, largest = _counts(trace, chunk_bytes), _largest(trace)
    request = np.repeat(np.arange(len(trace)), counts)
    index = np.arange(len(request)) - np.repeat(np.cumsum(counts) - counts, counts)
    size = np.clip(trace.size[request] - index * chunk_bytes, 0, chunk_bytes)
    op = trace.op[request]
    op = np.where((op != GET) & (size == 0) & (index > 0), DELETE, op).astype(np.uint8)
    wide = int(counts.max())
    found, key = np.unique(trace.key[request] * wide + index, return_inverse=True)
    owner = found // wide
    names = [trace.names[number] for number in owner.tolist()] if trace.names else ()
    rows = replace(trace, time=trace.time[request], key=key.astype(np.int64), size=size, op=op, names=names)
    return ChunkTrace(rows, request, largest[owner])


def _largest(trace: Trace) -> Ints:
    """Bytes of each key at its largest."""
    largest = np.zeros(int(trace.key.max()) + 1 if len(trace) else 0, dtype=np.int64)
    np.maximum.at(largest, trace.key, trace.size)
    return largest


def _counts(trace: Trace, chunk_bytes: int) -> Ints:
    """Rows of each request."""
    bytes_of = np.where(trace.op == GET, trace.size, _largest(trace)[trace.key])
    return np.asarray(np.maximum(-(-bytes_of // chunk_bytes), 1), dtype=np.int64)
