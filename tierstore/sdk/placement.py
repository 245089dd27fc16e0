"""Which placement class a new body gets: its home tiers, its copies, where it is cut.

Owns the policy as this process last saw it (it comes with the cluster map). Policy is evaluated for each write and
never stamped into objects. metadata's commit checks the number of copies again, so a stale policy here can only cause
a repeat, never too few copies.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from tierstore.clock import Clock
from tierstore.errors import TierstoreError
from tierstore.names import TIERS
from tierstore.policy.parser import parse
from tierstore.policy.rules import DISK_TIERS, Policy, Rule
from tierstore.sdk.allocations import PlacementClass
from tierstore.transport.metadata_client import MetadataClient
from tierstore.units import KIB, MIB
from tierstore.wire.cluster import ClusterMap

_log = logging.getLogger("tierstore.sdk")

CHUNK_BYTES_MIN: Final = 64 * KIB
CHUNK_BYTES_MAX: Final = 64 * MIB


class Placer:
    """Follows the cluster map of one client."""

    def __init__(self, client: MetadataClient, clock: Clock) -> None:
        self._clock = clock
        self._policy = Policy()
        self._document = b""
        self._copies = 2
        self._read_soon: frozenset[str] = frozenset()
        self._chunk_bytes = 8 * MIB
        #: By rule (its identity: the policy keeps it alive) and whether the bucket wants a fast copy.
        self._classes: dict[tuple[int, bool], PlacementClass] = {}
        client.on_map_change.append(self._learn)
        if client.map is not None:
            self._learn(client.map)

    def class_of(self, bucket: str, key: str, size: int | None, storage_class: str = "") -> PlacementClass:
        """Where a body of `size` bytes (None: not known yet) under this name goes now."""
        now = self._clock.now_ms() / 1000
        rule = self._policy.rule_for(bucket, key, self._chunk_bytes if size is None else size, now, storage_class)
        is_read_soon = bucket in self._read_soon
        found = self._classes.get((id(rule), is_read_soon))
        if found is None:
            found = self._classes[id(rule), is_read_soon] = PlacementClass(
                home_tiers(rule), rule.copies or self._copies, self._chunk_bytes,
                extra_tiers(rule) if is_read_soon else (),
            )  # fmt: skip
        return found

    def _learn(self, fresh: ClusterMap) -> None:
        self._classes.clear()
        self._copies = fresh.copies
        self._read_soon = frozenset(fresh.read_soon)
        self._chunk_bytes = min(max(fresh.chunk_bytes, CHUNK_BYTES_MIN), CHUNK_BYTES_MAX)
        if fresh.policy == self._document:
            return
        self._document = fresh.policy
        try:
            self._policy = parse(msgspec.json.decode(fresh.policy)) if fresh.policy else Policy()
        except (TierstoreError, msgspec.DecodeError) as error:
            # metadata checked it; a newer form than this release knows leaves the policy as it was
            _log.warning("the cluster's policy cannot be read here, the one before stays: %s", error)


def home_tiers(rule: Rule) -> tuple[str, ...]:
    """Tiers for the home copies, best first: the rule's, else the slowest; land-fast begins with the fast ones."""
    slow_first = tuple(reversed(DISK_TIERS))
    if rule.mode == "land-fast":
        fast = rule.fast or tuple(tier for tier in TIERS if tier in DISK_TIERS)
        return (*fast, *(tier for tier in slow_first if tier not in fast))
    if rule.home:
        return (rule.home, *(tier for tier in slow_first if tier != rule.home))
    return slow_first


def extra_tiers(rule: Rule) -> tuple[str, ...]:
    """Tiers for one fast copy beside the home ones, of a bucket whose new objects are read soon. Only under `auto`:
    the other modes say themselves what is fast."""
    if rule.mode != "auto":
        return ()
    return rule.fast or tuple(tier for tier in DISK_TIERS if tier != rule.home)
