"""Recorded access history: a rolling log of requests, compact, bounded in bytes, sampled by key when it grows too fast.

Owns what is kept; the form of a segment is policy/segment.py. When the log passes its bound and does not yet reach
`hours_kept` back, half of the keys are dropped, everywhere (all requests of a key or none, by a hash of its name: what
is left is a smaller store of the same kind); else the oldest segment goes. The open segment is columns as well, closed
at SEGMENT_REQUESTS requests or OPEN_NAME_BYTES_MAX of names, so it takes some MB at most, whatever the keys are.

Pure: the caller writes `segments` to files and brings them back. Cost: 0.05 us a request that is taken (1 us with the
hash while sampling), encoding a segment of 65,536 requests about 40 ms, off the request's path.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tierstore.policy.segment import (
    Access,
    Columns,
    Requests,
    encode,
    header_of,
    is_name_sampled,
    name_of,
    pair_of,
    reads_in,
    unpack,
)
from tierstore.policy.trace import Trace

SEGMENT_REQUESTS: Final = 65_536
OPEN_NAME_BYTES_MAX: Final = 4 << 20
SHARE_MIN: Final = 2.0**-20


@dataclass(frozen=True, slots=True)
class Recorded:
    """The history as a trace, and the share of the keys that it holds (scale the tiers by it)."""

    trace: Trace
    share: float


class History:
    """The rolling log. Not for several threads at once."""

    def __init__(self, *, bytes_max: int = 64 << 20, hours_kept: float = 24.0,
                 segment_requests: int = SEGMENT_REQUESTS, segments: Iterable[bytes] = ()) -> None:  # fmt: skip
        self.bytes_max = bytes_max
        self.hours_kept = hours_kept
        self.share = 1.0
        self._segment_requests = segment_requests
        self._open = Requests()
        self._segments: list[bytes] = []
        for segment in segments:
            self.share = min(self.share, header_of(segment).share)
            self._segments.append(segment)
        self._resample()
        self._bound()

    def add(self, access: Access) -> None:
        """Record a request, in order of time (an earlier time counts as the last one's)."""
        self.take(Requests.of((access,)))

    def take(self, requests: Requests) -> None:
        """Record many requests, in order of time."""
        begin, share = 0, 1.0
        while True:
            if self.share != share:
                # closing a segment may halve the sample: what is still to be taken is sampled as what was
                rest = Requests()
                rest.take(requests, begin, len(requests))
                requests, begin, share = rest.sampled(self.share), 0, self.share
            if begin == len(requests):
                return
            end = min(len(requests), begin + self._segment_requests - len(self._open))
            self._open.take(requests, begin, end)
            begin = end
            if len(self._open) >= self._segment_requests or self._open.name_bytes >= OPEN_NAME_BYTES_MAX:
                self.close_segment()

    def close_segment(self) -> None:
        """Encode what is open (before a stop), then keep to the bound."""
        if self._open:
            self._segments.append(encode(self._open.columns(), share=self.share))
            self._open = Requests()
            self._bound()

    @property
    def segments(self) -> tuple[bytes, ...]:
        """The closed segments, oldest first."""
        return tuple(self._segments)

    @property
    def used_bytes(self) -> int:
        return sum(map(len, self._segments))

    def recorded(self) -> Recorded:
        """All that is kept, the open part included, as a trace that begins at 0 s."""
        numbers: dict[bytes, int] = {}
        parts = [_renumbered(unpack(segment), numbers) for segment in self._segments]
        parts.append(_renumbered(self._open.columns(), numbers))
        at = np.maximum.accumulate(np.concatenate([part.at_ms for part in parts])) / 1000.0
        start = float(at[0]) if len(at) else 0.0
        trace = Trace(
            at - start, np.concatenate([part.index for part in parts]), np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.ops for part in parts]), [pair_of(name) for name in numbers], start,
        )  # fmt: skip
        return Recorded(trace, self.share)

    def reads_of(self, bucket: str, key: str, *, since_ms: int, bytes_max: int) -> npt.NDArray[np.int64]:
        """When one object was read since then, ms since 1970, in order, as far as the newest `bytes_max` of the log
        tell. Empty when its key is not sampled."""
        some = [self._open.reads_of(bucket, key)]
        for segment in reversed(self._segments):
            bytes_max -= len(segment)
            if bytes_max < 0 or header_of(segment).last_ms < since_ms:
                break
            some.insert(0, reads_in(segment, bucket, key))
        found = np.concatenate(some)
        return np.asarray(found[found >= since_ms], dtype=np.int64)

    def _bound(self) -> None:
        while self.used_bytes > self.bytes_max and self._segments:
            first_ms, last_ms = header_of(self._segments[0]).first_ms, header_of(self._segments[-1]).last_ms
            if last_ms - first_ms < self.hours_kept * 3_600_000 and self.share / 2 >= SHARE_MIN:
                self.share /= 2
                self._resample()
            else:
                self._segments.pop(0)

    def _resample(self) -> None:
        """Bring every segment down to today's share; empty ones go."""
        kept = []
        for segment in self._segments:
            if header_of(segment).share > self.share:
                columns = unpack(segment).sampled(self.share)
                if len(columns):
                    kept.append(encode(columns, share=self.share))
            else:
                kept.append(segment)
        self._segments = kept
        self._open = self._open.sampled(self.share)


def _renumbered(columns: Columns, numbers: dict[bytes, int]) -> Columns:
    """The same with the numbers that all parts share; unknown names get the next ones."""
    of = np.array([numbers.setdefault(name, len(numbers)) for name in columns.names], dtype=np.int64)
    return Columns(columns.at_ms, of[columns.index], columns.sizes, columns.ops, columns.names)


def is_sampled(bucket: str, key: str, share: float) -> bool:
    """Whether all requests of this key belong to the sample. A smaller share is a subset of a larger one."""
    return is_name_sampled(name_of(bucket, key), share)
