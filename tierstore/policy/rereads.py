"""Are new objects read again soon? Judged per bucket, so that such buckets get a fast copy of what is written.

Migration comes too late for data that is written once and read minutes later: it wants a copy on a fast device from
the start. Owns, per bucket, a bounded sample of young objects and how many of the last ones were read within
SOON_SECONDS. Pure: the caller brings names and times. Objects whose time is not up yet count as not read, so that the
first quick reader does not speak for all. Invariant: memory is bounded by BUCKETS_MAX x YOUNG_MAX names.

Cost: a write or a read one or two dictionary look-ups, 0.3 us; `judge` one pass over the young.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

#: How soon a first read must come: about what a promoter with a tick of 10 s and a budget can make up for later.
SOON_SECONDS: Final = 600.0
#: Outcomes that a judgement needs, and at which older ones begin to count half.
OUTCOMES_MIN: Final = 32
OUTCOMES_KEPT: Final = 512
#: A bucket that was judged to be read soon stays so until its share has fallen this far below the asked one.
LEAVES_AT: Final = 0.8
YOUNG_MAX: Final = 256
BUCKETS_MAX: Final = 1000


@dataclass(slots=True)
class _Bucket:
    young: OrderedDict[str, float] = field(default_factory=OrderedDict)   # key -> when it was written
    read: float = 0.0
    unread: float = 0.0


class Rereads:
    """One per process. `written` and `read` come from the event loop, `judge` now and then."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        #: Buckets of which most new objects are read soon, as judged last.
        self.soon: frozenset[str] = frozenset()

    def written(self, bucket: str, key: str, at: float) -> None:
        """A new object or a new body of one. While YOUNG_MAX are watched, further ones are not."""
        found = self._buckets.get(bucket)
        if found is None:
            found = self._buckets[bucket] = _Bucket()
            if len(self._buckets) > BUCKETS_MAX:
                self._buckets.popitem(last=False)
        if key not in found.young and len(found.young) < YOUNG_MAX:
            found.young[key] = at

    def read(self, bucket: str, key: str, at: float) -> None:
        """A body is read. Only the first read of a young object tells."""
        found = self._buckets.get(bucket)
        if found is None:
            return
        written_at = found.young.pop(key, None)
        if written_at is not None:
            if at - written_at <= SOON_SECONDS:
                found.read += 1.0
            else:
                found.unread += 1.0

    def share(self, bucket: str) -> float:
        """Share of the watched new objects of a bucket that were read soon; 0 while too few are known."""
        found = self._buckets.get(bucket)
        if found is None:
            return 0.0
        known = found.read + found.unread + len(found.young)
        return found.read / known if known >= OUTCOMES_MIN else 0.0

    def judge(self, at: float, share_min: float) -> frozenset[str]:
        """Buckets where at least `share_min` of the new objects are read soon (0: none, it is switched off)."""
        for found in self._buckets.values():
            while found.young and next(iter(found.young.values())) < at - SOON_SECONDS:
                found.young.popitem(last=False)
                found.unread += 1.0
            if found.read + found.unread > OUTCOMES_KEPT:
                found.read, found.unread = found.read / 2, found.unread / 2
        self.soon = frozenset(
            name for name in self._buckets
            if share_min > 0 and self.share(name) >= share_min * (LEAVES_AT if name in self.soon else 1.0)
        )  # fmt: skip
        return self.soon
