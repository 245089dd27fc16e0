"""What a cluster that is at rest has left over: asked for until there is nothing, or for long enough."""

from __future__ import annotations

from tests.kit.admin import wait_settled
from tests.kit.cluster import Cluster
from tests.kit.inventory import Comparison, compare

#: Starts in which everything that nobody names must be gone.
ROUNDS_MAX = 10


def compare_when_clean(c: Cluster) -> Comparison:
    """Start the stopped cluster with the waits of collection shortened, let it come to rest, stop and compare it; again
    while something is left over, for what an inventory could not judge yet ("later") is no open job, and the next start
    asks for all again. The cluster is stopped when this returns."""
    c.env.update(TIERSTORE_DUTIES__COLLECT_AFTER="1s", TIERSTORE_DUTIES__ORPHAN_AFTER="1s")
    for _ in range(ROUNDS_MAX):
        c.start()
        wait_settled(c, seconds=600)
        assert c.stop() == 0
        found = compare(c)
        if not (found.orphans or found.garbage):
            break
    return found
