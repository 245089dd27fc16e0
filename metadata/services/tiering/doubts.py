"""Warnings about a policy that is valid: what it names that the cluster has not, and what in it can have no effect.

Owns the facts (tiers of devices, buckets); the sentences are tierstore/policy/doubts'.
"""

from __future__ import annotations

from typing import Any

from metadata.services.cluster.view import ClusterView
from metadata.services.names.bucket_names import BucketNames
from tierstore.errors import NotFound
from tierstore.policy.doubts import doubts
from tierstore.policy.parser import parse


class PolicyDoubts:
    """One per process."""

    def __init__(self, names: BucketNames, view: ClusterView) -> None:
        self._names = names
        self._view = view

    async def of(self, document: Any) -> list[str]:
        """What is doubtful about a valid document. Raises RequestError when it is not valid."""
        policy = parse(document)
        tiers = {device.tier for device in self._view.devices.values() if device.state != "removed"}
        missing = []
        for bucket in sorted({rule.match.bucket for rule in policy.rules if rule.match.bucket}):
            try:
                await self._names.get(bucket)
            except NotFound:
                missing.append(bucket)
        return doubts(policy, document, tiers=tiers, missing_buckets=missing)
