"""The objects of rules that pin: listed in the background and offered to the promoter, read or not.

Owns a cursor through the objects of each such rule. Bound: PAGE objects a tick; a pass over a million objects takes a
few hours of ticks, and begins again when it is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from metadata.catalog import buckets, tiering
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.catalog.leases import Connection
from metadata.services.names.listing import successor
from tierstore.policy.rules import Policy, Rule

PAGE: Final = 500


class Pins:
    """One per process."""

    def __init__(self, database: Database, *, policy: Callable[[], Policy], now: Callable[[], float]) -> None:
        self._database = database
        self._policy = policy
        self._now = now
        self._at: tuple[int, int, str] = (0, 0, "")    # rule, bucket id, key: the last one offered
        self.passes = 0

    async def next_page(self) -> list[Located]:
        """Chunks of the next objects under a rule that pins them now; empty without such rules."""
        policy = self._policy()
        rules = [(n, rule) for n, rule in enumerate(policy.rules) if rule.mode == "pin"]
        if not rules:
            return []
        number, bucket_after, key_after = self._at
        rule = next(((n, r) for n, r in rules if n >= number), None)
        if rule is None:
            self._at, self.passes = (0, 0, ""), self.passes + 1
            rule = rules[0]
            number, bucket_after, key_after = 0, 0, ""
        if rule[0] != number:
            bucket_after, key_after = 0, ""
        found, last = await self._database.scan(lambda c: self._page(c, rule[1], bucket_after, key_after))
        self._at = (rule[0], *last) if last is not None else (rule[0] + 1, 0, "")
        now = self._now()
        return [one for one in found if _rule_of(policy, one, now) == rule[1]]

    def _page(
        self, c: Connection, rule: Rule, bucket_after: int, key_after: str
    ) -> tuple[list[Located], tuple[int, str] | None]:
        """The chunks of a page, and where the next one begins; None: nothing is left of this rule."""
        prefix = rule.match.prefix
        names = buckets.names(c)
        for bucket_id in sorted(b for b, name in names.items() if rule.match.bucket in ("", name)):
            if bucket_id < bucket_after:
                continue
            page = tiering.objects_after(
                c, bucket_id, prefix_low=prefix, high=successor(prefix),
                after=key_after if bucket_id == bucket_after else "", limit=PAGE,
            )  # fmt: skip
            if not page:
                continue
            found = [
                Located((bucket_id, o.key, o.version), chunk, names[bucket_id], o.size, o.storage_class)
                for o in page for chunk in o.chunks
            ]  # fmt: skip
            return found, (bucket_id, page[-1].key)
        return [], None


def _rule_of(policy: Policy, one: Located, now: float) -> Rule | None:
    if one.owner is None:
        return None
    return policy.rule_for(one.bucket, one.owner[1], one.size, now, one.storage_class)
