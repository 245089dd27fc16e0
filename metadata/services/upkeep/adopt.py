"""What a rebuild could not find in any copy of the catalog becomes objects again by the headers of its chunks (rule 5).

Runs on a rebuilt catalog that nobody else has open. Each write whose chunks are all there is committed again, in the
order in which the writes began, by the ordinary commit with receipts made of the headers: conditions, versioning, what
an overwrite gives up and the feed are as ever.

Invariants:
- Only whole objects: the chunks' ids count without a gap and add up to the size that the hints name. A part of an
  object or a chunk without a readable hint is reported and kept.
- The catalog beats a header: a write that began before the version that stands there, or before the last deletion of
  its name, is what an overwrite or a delete left behind. Both times are the catalog's.
- An upload that has an owner, now or by this, can never commit again (its writer may still be trying).
- Safe to repeat: what was adopted has an owner and is no candidate any more.

What it cannot know: renames, copies and deletions behind the last journal piece; writes without a body; and whether a
conditional write was refused: its condition is judged again, in order.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from metadata.catalog import buckets, objects, operations, snapshot_load
from metadata.catalog.database import Database
from metadata.catalog.leases import Connection
from metadata.services.cluster.membership import Cluster
from metadata.services.names.commit import CommitService
from tierstore.auth.access import JUDGED, Principal
from tierstore.checksum import combine
from tierstore.clock import version_ms
from tierstore.errors import RequestError
from tierstore.names import UPLOAD_ID_BYTES, ChunkId, DeviceId, ServerId, check_bucket_name, check_key, operation_id
from tierstore.ticket import Receipt, sign_receipt
from tierstore.wire.cluster import ChunkHeader
from tierstore.wire.hints import WriteHint, native_etag, parse_hint
from tierstore.wire.names import CommitChunk, CommitItem, Put

ADOPT_SECONDS: Final = 600.0
DEADLINE_MS: Final = 3_600_000
#: For the uploads that are adopted: long enough for the whole of it.
LEASE_MS: Final = 6 * 3_600_000
COPIES_MAX: Final = 8
_EVERYTHING: Final = Principal(access="rebuild", user="rebuild", grants={"*": "admin"}, seen=JUDGED)


@dataclass(slots=True)
class Copies:
    """One chunk as the devices' headers show it."""

    chunk: bytes
    chunk_bytes: int
    crc32c: int
    name: str = ""
    places: list[tuple[bytes, int, int]] = field(default_factory=list)     # device uuid, segment, offset


@dataclass(slots=True)
class Findings:
    """What a rebuild hands over. tombstones: (bucket id, key) -> catalog ms of the newest deletion that is known.
    bucket_changes: name -> catalog ms of the newest change of a bucket that is known."""

    headers: list[tuple[bytes, ChunkHeader]] = field(default_factory=list)
    tombstones: dict[tuple[int, str], int] = field(default_factory=dict)
    bucket_changes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Write:
    """A whole object, ready to be committed."""

    bucket: str
    key: str
    hint: WriteHint
    size: int
    chunks: list[Copies]

    @property
    def upload(self) -> bytes:
        return self.chunks[0].chunk[:UPLOAD_ID_BYTES]


def gather(headers: Iterable[tuple[bytes, ChunkHeader]]) -> tuple[dict[bytes, list[Copies]], int]:
    """(upload -> its chunks in order, chunks left out because their copies differ)."""
    chunks: dict[bytes, Copies] = {}
    differing: set[bytes] = set()
    for uuid, header in headers:
        known = chunks.setdefault(header.chunk, Copies(header.chunk, header.chunk_bytes, header.crc32c))
        if (known.chunk_bytes, known.crc32c) != (header.chunk_bytes, header.crc32c):
            differing.add(header.chunk)
        known.name = known.name or header.name
        known.places.append((uuid, header.segment, header.offset))
    uploads: dict[bytes, list[Copies]] = defaultdict(list)
    for chunk in sorted(chunks):
        if chunk not in differing:
            uploads[chunk[:UPLOAD_ID_BYTES]].append(chunks[chunk])
    return uploads, len(differing)


def whole(chunks: list[Copies]) -> Write | str:
    """The write that these chunks of one upload are, or why they are none."""
    named = [hint for hint in (parse_hint(copies.name) for copies in chunks) if hint is not None]
    writes = [hint for hint in named if hint.write is not None]
    if not writes:
        return "part of something else" if named else "without a name"
    bucket, key, hint = writes[0]
    assert hint is not None
    if any((h.bucket, h.key) != (bucket, key) or h.write is None or h.write.begun != hint.begun for h in writes):
        return "of several names"
    sizes = {h.write.size for h in writes if h.write is not None and h.write.size >= 0}
    indices = [int.from_bytes(copies.chunk[UPLOAD_ID_BYTES:], "big") for copies in chunks]
    size = sum(copies.chunk_bytes for copies in chunks)
    if indices != list(range(len(chunks))) or sizes != {size}:
        return "incomplete"
    crc = 0
    for copies in chunks:
        crc = combine(crc, copies.crc32c, copies.chunk_bytes)
    if hint.crc32c not in (-1, crc):
        return "refused for its checksum"
    try:
        check_bucket_name(bucket)
        check_key(key)
    except RequestError:
        return "without a name"
    return Write(bucket, key, hint, size, chunks)


class Adoption:
    """One run, after a rebuild. copies_for of `commits` must be 1: fewer copies than promised are mended later."""

    def __init__(self, database: Database, cluster: Cluster, commits: CommitService, rng: random.Random) -> None:
        self._database = database
        self._cluster = cluster
        self._commits = commits
        self._rng = rng
        self._left: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        #: Versions made here: their times say nothing of when the write was.
        self._mine: set[int] = set()
        self._devices = {device.uuid: device for device in cluster.view.devices.values()}

    async def run(self, found: Findings) -> list[str]:
        """Commit what can be; the lines of the report. Raises UnavailableError when the catalog does not answer."""
        named = await self._database.scan(
            lambda c: snapshot_load.named_chunks(c, {header.chunk for _, header in found.headers}),
            seconds=ADOPT_SECONDS,
        )
        unknown = [(uuid, header) for uuid, header in found.headers if header.chunk not in named]
        uploads, differing = gather(unknown)
        self._left["of copies that differ"] += differing
        owned = {chunk[:UPLOAD_ID_BYTES] for chunk in named}
        writes: dict[bytes, Write] = {}
        for upload, chunks in uploads.items():
            made: Write | str = "part of something else" if upload in owned else whole(chunks)
            if isinstance(made, str):
                self._leave(made, chunks[0].name)
            elif made.hint.begun in writes:
                self._leave("stored twice", made.key)   # its first commit was refused and it was stored again
            else:
                writes[made.hint.begun] = made
        ordered = sorted(writes.values(), key=lambda write: write.hint.begun)
        await self._prepare(ordered, owned, found)
        adopted = bytes_all = 0
        for write in ordered:
            if await self._adopt(write, found):
                adopted += 1
                bytes_all += write.size
        return self._report(adopted, bytes_all)

    def _leave(self, why: str, example: str) -> None:
        self._left[why] += 1
        self._examples.setdefault(why, example.partition("\0")[0])

    async def _prepare(self, writes: list[Write], owned: set[bytes], found: Findings) -> None:
        """Buckets that were made behind the journal; leases, since uploads may have lapsed meanwhile; owners' marks."""
        now_ms = self._cluster.now_ms()

        def work(c: Connection) -> None:
            known = {bucket.name for bucket in buckets.everything(c)}
            for write in writes:
                if write.bucket not in known and write.hint.begun_ms > found.bucket_changes.get(write.bucket, -1):
                    buckets.create(c, write.bucket, owner="", at_ms=now_ms)
                    known.add(write.bucket)
            operations.lease(c, {write.upload for write in writes}, until_ms=now_ms + LEASE_MS)
            operations.mark_committed(c, owned)

        await self._database.write(work, seconds=ADOPT_SECONDS)

    async def _adopt(self, write: Write, found: Findings) -> bool:
        """Commit one write, unless the catalog knows better."""

        def standing(c: Connection) -> tuple[int, int]:
            """(bucket id or 0, time of the version that stands there)."""
            ids = {bucket.name: bucket.id for bucket in buckets.everything(c)}
            bucket_id = ids.get(write.bucket, 0)
            row = objects.latest(c, bucket_id, write.key)
            return bucket_id, version_ms(row.version) if row is not None and row.version not in self._mine else -1

        bucket_id, at_ms = await self._database.read(standing)
        gone_ms = found.tombstones.get((bucket_id, write.key), -1)
        if not bucket_id or write.hint.begun_ms <= max(at_ms, gone_ms):
            self._leave("deleted or overwritten", write.key)
            return False
        result = (await self._commits.commit([(self._item(write), _EVERYTHING)]))[0]
        if result.code:
            self._leave(f"refused: {result.code}", write.key)
            return False
        self._mine.add(result.version)
        return True

    def _item(self, write: Write) -> CommitItem:
        now_ms = self._cluster.now_ms()
        crc = 0
        for copies in write.chunks:
            crc = combine(crc, copies.crc32c, copies.chunk_bytes)
        put = Put(
            write.bucket, write.key, write.size,
            write.hint.etag or native_etag(crc, write.size, write.hint.begun),
            [CommitChunk(c.chunk, c.chunk_bytes, c.crc32c, self._receipts(c)) for c in write.chunks],
            write.hint.meta, write.hint.condition,
        )  # fmt: skip
        return CommitItem(operation_id(now_ms, self._rng.getrandbits(80)), now_ms + DEADLINE_MS, put)

    def _receipts(self, copies: Copies) -> list[bytes]:
        """What the servers would sign for these copies, with the keys that the catalog has of them."""
        view = self._cluster.view
        made: list[bytes] = []
        for uuid, segment, offset in copies.places:
            device = self._devices.get(uuid)
            server = view.servers.get(device.server) if device is not None else None
            key = view.signing_key(server.id) if server is not None else None
            if device is None or server is None or key is None or len(made) >= COPIES_MAX:
                continue    # a device that this catalog does not know: its inventory will show a stray copy
            receipt = Receipt(
                ServerId(server.id), DeviceId(device.id), ChunkId(copies.chunk), segment, offset, copies.chunk_bytes,
                copies.crc32c, server.incarnation,
            )  # fmt: skip
            made.append(sign_receipt(receipt, key_id=key[0], key=key[1]))
        return made

    def _report(self, adopted: int, bytes_all: int) -> list[str]:
        lines = [f"{adopted} objects ({bytes_all} bytes) behind the journal were adopted by their chunks' headers"]
        kept = "kept, not made into objects; `tierstore admin collect --agree` lets what is left be collected"
        for why, count in sorted(self._left.items()):
            if count:
                example = f" (for example {self._examples[why]!r})" if self._examples.get(why) else ""
                lines.append(f"{count} uploads {why}{example}: {kept}")
        return lines
