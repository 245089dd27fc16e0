"""Which buckets get a fast copy of what is written: learned from what this process answers, told with the cluster map.

Owns the judgement (policy/rereads.py) and its effect: when the set of buckets changes, clients fetch the map anew, and
new chunks there begin with the heat that their bucket's past promises, so that they compete for the room they took.
With several metadata processes each tells what it saw; clients are spread over them, so they see much the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metadata.catalog import schema
from metadata.catalog.packed import iter_packed
from metadata.services.cluster.view import ClusterView
from metadata.services.names.writes import Committed
from tierstore.clock import Clock
from tierstore.policy.heat import HeatTable
from tierstore.policy.rereads import Rereads
from tierstore.policy.rules import PromoterRules


class ReadSoon:
    """One per process. `read` and `committed`: event loop, nothing is written."""

    def __init__(
        self, view: ClusterView, clock: Clock, *, rules: Callable[[], PromoterRules], table: Callable[[], HeatTable]
    ) -> None:  # fmt: skip
        self._view = view
        self._clock = clock
        self._rules = rules
        self._table = table
        self.rereads = Rereads()

    @property
    def buckets(self) -> frozenset[str]:
        """As judged last."""
        return self.rereads.soon

    def read(self, bucket: str, key: str, size: int) -> None:
        """A body is about to be read."""
        self.rereads.read(bucket, key, self._clock.now_ms() / 1000)

    def committed(self, events: Sequence[Committed]) -> None:
        """Objects were written."""
        now = self._clock.now_ms() / 1000
        for event in events:
            if event.kind != schema.CHANGE_PUT or event.size == 0:
                continue
            self.rereads.written(event.bucket, event.key, now)
            if event.bucket in self.rereads.soon and event.new_body:
                chunks = [chunk.id for chunk in iter_packed(event.new_body)]
                self._table().expect(chunks, self.rereads.share(event.bucket), now)

    def judge(self) -> int:
        """Look at the outcomes again; how many buckets are read soon. Nothing lands while the promoter may not move."""
        rules, now = self._rules(), self._clock.now_ms() / 1000
        before = self.rereads.soon
        if self.rereads.judge(now, rules.read_soon if rules.may_move(now) else 0.0) != before:
            self._view.bump()
        return len(self.rereads.soon)
