"""Where the rows of chunks are, whose objects' they are, and which rule holds for them.

Owns the names that lookups brought of chunks with rows of their own (those rows do not say whose they are), and the
names of buckets. Reads the catalog, changes nothing.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from metadata.catalog import buckets, tiering
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.services.cluster.membership import Cluster
from tierstore.policy.rules import Policy, Rule

#: Chunks of bodies with rows of their own whose names are remembered from lookups.
NAMES_MAX: Final = 100_000
#: Chunks that were not where they were reported, looked for on every device in one go.
LOST_MAX: Final = 256
#: Bucket, key, size and storage class of what has no name here.
_UNKNOWN: Final = ("", "", 0, "")


class Finder:
    """One per process."""

    def __init__(
        self, database: Database, cluster: Cluster, held: Callable[[bytes], Sequence[int]], *,
        reporter: Callable[[bytes], int], policy: Callable[[], tuple[int, Policy]],
    ) -> None:  # fmt: skip
        """held: fast devices with a cache copy of a chunk; reporter: the server that told of its reads last, or 0."""
        self._database = database
        self._cluster = cluster
        self._view = cluster.view
        self._held = held
        self._reporter = reporter
        self._policy = policy
        self._named: OrderedDict[bytes, tuple[str, str, int, str]] = OrderedDict()
        self._bucket_names: dict[int, str] = {}

    def learn_names(
        self, bucket: str, key: str, size: int, chunks: Iterable[bytes], storage_class: str = ""
    ) -> None:
        """A lookup of a body whose chunks have rows of their own: those rows do not say whose they are."""
        for chunk in chunks:
            self._named[chunk] = (bucket, key, size, storage_class)
            self._named.move_to_end(chunk)
        while len(self._named) > NAMES_MAX:
            self._named.popitem(last=False)

    def name_of(self, located: Located) -> tuple[str, str, int]:
        """(bucket, key, size) of the object that a chunk is of; ("", "", 0) when it is not known."""
        if located.owner is not None:
            return located.bucket, located.owner[1], located.size
        return self._named.get(located.chunk.id, _UNKNOWN)[:3]

    def rule_of(self, located: Located) -> Rule:
        """The rule that holds for a chunk now."""
        if located.owner is not None:
            return self.rule_for(located.bucket, located.owner[1], located.size, located.storage_class)
        return self.rule_for(*self._named.get(located.chunk.id, _UNKNOWN))

    def rule_for(self, bucket: str, key: str, size: int, storage_class: str = "") -> Rule:
        """The rule that holds for an object now; the default one when its name is not known."""
        policy = self._policy()[1]
        if not bucket:
            return policy.default
        return policy.rule_for(bucket, key, size, self._cluster.now_ms() / 1000, storage_class)

    async def find(self, chunks: Collection[bytes]) -> dict[bytes, Located]:
        """The rows of chunks, in one read: by the devices of who reported them, else by all of the site."""
        of_server: dict[int, list[int]] = defaultdict(list)
        for device in self._view.devices.values():
            of_server[device.server].append(device.id)
        wanted: dict[bytes, list[int]] = {}
        for chunk in chunks:
            hinted, held = of_server.get(self._reporter(chunk), []), self._held(chunk)
            wanted[chunk] = [*hinted, *(d for d in held if d not in hinted)] or list(self._view.devices)
        names = await self.bucket_names()
        found = await self._database.scan(lambda c: tiering.find(c, wanted, names))
        lost = [chunk for chunk in chunks if chunk not in found]
        if lost:
            everywhere = {chunk: list(self._view.devices) for chunk in lost[:LOST_MAX]}
            found |= await self._database.scan(lambda c: tiering.find(c, everywhere, names))
        return found

    async def bucket_names(self) -> dict[int, str]:
        """Ids of buckets are never reused and names never change: a name read once stays true."""
        known = len(self._bucket_names)
        fresh = await self._database.read(buckets.names)
        if len(fresh) != known:
            self._bucket_names = fresh
        return self._bucket_names
