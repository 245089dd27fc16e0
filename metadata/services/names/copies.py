"""How many home copies a chunk is to have, by the policy of now. No I/O."""

from __future__ import annotations

from collections.abc import Callable

from metadata.catalog.book import Located
from metadata.catalog.packed import DELETING
from tierstore.policy.rules import Policy
from tierstore.ticket import ROLE_HOME


class Copies:
    """One per process. default: the cluster's number, for all that no rule speaks of; now: s since 1970."""

    def __init__(self, default: int, *, policy: Callable[[], Policy], now: Callable[[], float]) -> None:
        self._default = default
        self._policy = policy
        self._now = now

    def for_object(self, bucket: str, key: str, size: int, storage_class: str = "") -> int:
        """What its rule asks for; the default where it says nothing."""
        return self._policy().rule_for(bucket, key, size, self._now(), storage_class).copies or self._default

    def beyond(self, servers: int) -> list[tuple[str, int]]:
        """(rule, copies) of the rules that ask for more copies than there are servers."""
        return [(rule.name, rule.copies) for rule in self._policy().rules if rule.copies > servers]

    def of_chunk(self, located: Located) -> int:
        """What a chunk is to have now. One with a row of its own, which several versions may share, is judged by no
        single rule: it keeps what it was given, but no more than the rule that asks for most, so that copies made
        while a server was away go again."""
        if located.owner is not None and located.bucket:
            return self.for_object(located.bucket, located.owner[1], located.size, located.storage_class)
        most = max((rule.copies for rule in self._policy().rules), default=0)
        homes = sum(r.role == ROLE_HOME and r.state != DELETING for r in located.chunk.replicas)
        return max(self._default, min(homes, most))
