"""Names from another site, taken into this catalog: last writer wins by version id.

Each record names one version with the id that its site gave it, so all sites order a key's versions the same way. A
later one replaces what is here (or, with versioning, stands above it); an earlier one is lost, or becomes an older
version. In a bucket without versioning a delete is a marker with an id of its own, a tombstone: what is older than it
never comes back. Records are applied in order; a repeat changes nothing.

A name that changed something here is passed on under this site's own rules, in the same transaction: not to the site
that said it, not to the one that wrote that version, not to those that the sender tells itself. So rings and stars of
one-way rules bring each write everywhere once, and end: whoever has a version already loses it and passes nothing on.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from metadata.catalog import buckets, objects, schema
from metadata.catalog.buckets import HOME, REPLICATED_FROM, Bucket
from metadata.catalog.database import Database
from metadata.catalog.feed import NewChange
from metadata.catalog.objects import ObjectRow
from metadata.catalog.queries import Connection
from metadata.catalog.session import Session, StaleRows
from metadata.services.names.bucket_names import BucketNames
from metadata.services.names.writes import WriteSet
from tierstore.clock import Clock, HybridClock, version_site
from tierstore.errors import ConflictError, RequestError, UnavailableError
from tierstore.names import check_bucket_name, check_key
from tierstore.wire import encode
from tierstore.wire.names import ObjectMeta
from tierstore.wire.sites import NAME_GONE, NAME_MARKER, NAME_META, NAMES_MAX, NameAnswer, NameBatch, NameRecord

#: How often a batch that other processes overtake is tried.
ATTEMPTS_MAX: Final = 5
#: Changes of metadata that were passed on, as far as they are remembered.
PASSED_MAX: Final = 10_000
#: A change of metadata: bucket, key, version, hash of what it says.
_Passed = tuple[str, str, int, int]
_DEFAULT_META: Final = ObjectMeta()


@dataclass(frozen=True, slots=True)
class _Sender:
    """Who sent a batch, whom it tells itself (see NameBatch.told), and the names of the sites by number."""

    site: str
    told: dict[str, list[tuple[str, str]]]
    numbers: dict[int, str]

    def tells(self, target: str, record: NameRecord) -> bool:
        """Whether the target has that record, or gets it from somebody else."""
        if target == self.site:
            return True
        # A version's writer has it; what others changed of it later (metadata, its end) it must hear.
        if record.kind not in (NAME_META, NAME_GONE) and self.numbers.get(version_site(record.version)) == target:
            return True
        rules = self.told.get(record.bucket, ())
        return any(site == target and record.key.startswith(prefix) for prefix, site in rules)


class NameTaker:
    """One per process."""

    def __init__(self, database: Database, names: BucketNames, clock: Clock, versions: HybridClock) -> None:
        self._database = database
        self._names = names
        self._clock = clock
        self._versions = versions
        #: number -> name of the other sites: who wrote a version.
        self.numbers: Callable[[], dict[int, str]] = dict
        #: Called after names were queued for other sites; must not raise or block.
        self.on_replicated: Callable[[], None] | None = None
        self._passed: OrderedDict[_Passed, None] = OrderedDict()
        self.applied = 0
        self.lost = 0
        self.parked = 0

    async def take(self, batch: NameBatch, site: str) -> NameAnswer:
        """Apply the batch of a site. Durable when it returns. Raises RequestError for names that cannot be."""
        if len(batch.names) > NAMES_MAX:
            raise RequestError(f"at most {NAMES_MAX} names in one batch", code="too-many-items")
        for name, versioning in batch.buckets.items():
            check_bucket_name(name)
            await self._ensure_bucket(name, versioning, site, home=batch.homes.get(name, ""))
        parked = []
        taken = []
        for place, record in enumerate(batch.names):
            check_key(record.key)
            if self._versions.is_acceptable(record.version) and _fits_headers(record.meta):
                taken.append(record)
            else:
                parked.append(place)
        applied = 0
        for some in _unique(taken):
            applied += await self._apply(some, _Sender(site, batch.told, self.numbers()))
        self.applied += applied
        self.lost += len(taken) - applied
        self.parked += len(parked)
        return NameAnswer(applied, len(taken) - applied, parked)

    async def _ensure_bucket(self, name: str, versioning: str, site: str, *, home: str) -> None:
        """The bucket with at least this versioning, marked as replicated from that site, with its home site."""
        known = self._names.now(name) if await self._exists(name) else None
        is_told = known is not None and site in sources_of(known) and (not home or known.config.get(HOME) == home)
        if known is not None and is_told and (known.versioning or not versioning):
            return
        at_ms = self._clock.now_ms()

        def work(connection: Connection) -> None:
            try:
                bucket = buckets.create(connection, name, owner=f"site:{site}", at_ms=at_ms)
            except ConflictError:
                bucket = buckets.get(connection, name, lock=True)
            sources = ",".join(sorted({*sources_of(bucket), site}))
            documents: dict[str, str | None] = {REPLICATED_FROM: sources}
            if home:
                documents[HOME] = home
            buckets.configure(
                connection, name, at_ms=at_ms, versioning=bucket.versioning or versioning,
                documents=documents,
            )

        await self._database.write(work)
        self._names.forget()

    async def _exists(self, name: str) -> bool:
        return bool(await self._database.select(buckets.BY_NAME, [(name,)]))

    async def _apply(self, records: Sequence[NameRecord], sender: _Sender) -> int:
        for _ in range(ATTEMPTS_MAX):
            try:
                applied, floor, is_passed_on, passed = await self._database.batch(
                    lambda session: self._transaction(session, records, sender)
                )
            except StaleRows:
                continue
            if floor:
                self._versions.observe(floor)
            self._note_passed(passed)
            if is_passed_on and self.on_replicated is not None:
                self.on_replicated()
            return applied
        raise UnavailableError("other processes keep changing these keys; try again")

    def _transaction(
        self, session: Session, records: Sequence[NameRecord], sender: _Sender
    ) -> tuple[int, int, bool, list[_Passed]]:
        """(names that changed something, largest version id, whether other sites are to hear of some, changes of
        metadata that are passed on). May be rolled back and run again: it notes nothing here."""
        session.guard()
        names = sorted({record.bucket for record in records})
        known = {b.name: b for b in map(Bucket.of, session.fetch(buckets.BY_NAME_HELD, [(n,) for n in names]))}
        wanted = sorted({(known[r.bucket].id, r.key) for r in records if r.bucket in known})
        latest = {
            (row[0], row[1]): ObjectRow._make(row) for row in session.fetch(objects.LATEST_LOCKED, wanted)
        }
        writes = WriteSet(at_ms=self._clock.now_ms())
        applied = 0
        passed: list[_Passed] = []
        for record in records:
            bucket = known.get(record.bucket)
            if bucket is None:      # it was removed a moment ago: its names with it
                continue
            said = len(writes.changes)
            if self._one(session, writes, bucket, record, latest.get((bucket.id, record.key))):
                applied += 1
                targets = self._passed_on(bucket, record, sender, passed)
                writes.changes[said:] = [
                    change._replace(targets=targets, size=record.size) for change in writes.changes[said:]
                ]
        is_passed_on = any(change.targets for change in writes.changes)
        return applied, writes.flush(session), is_passed_on, passed

    def _passed_on(
        self, bucket: Bucket, record: NameRecord, sender: _Sender, passed: list[_Passed]
    ) -> tuple[str, ...]:
        """The sites that hear of it from here. passed: takes what must not be passed on a second time."""
        targets = [target for target in bucket.targets(record.key) if not sender.tells(target, record)]
        if not targets or record.kind != NAME_META:
            return tuple(targets)
        # Metadata has no version of its own: two changes made at once could follow each other round a ring for ever.
        name = (record.bucket, record.key, record.version, hash(_pack(record.meta)))
        if name in self._passed or name in passed:
            return ()
        passed.append(name)
        return tuple(targets)

    def _note_passed(self, passed: Iterable[_Passed]) -> None:
        """Once it is durable that they are queued, and not before: who is asked again would pass them on to nobody."""
        for name in passed:
            self._passed[name] = None
        while len(self._passed) > PASSED_MAX:
            self._passed.popitem(last=False)

    def _one(
        self, session: Session, writes: WriteSet, bucket: Bucket, record: NameRecord, old: ObjectRow | None
    ) -> bool:
        if record.kind == NAME_GONE:
            return _forget(session, writes, bucket, record, old)
        if record.kind == NAME_META:
            done = _set_meta(session, writes, bucket, record, old)
            if done is not None:
                return done
        is_marker = record.kind == NAME_MARKER
        row = ObjectRow(
            bucket.id, record.key, record.version, schema.KIND_MARKER if is_marker else _kind(record.size),
            int(record.is_null), record.size, record.etag, record.created_at_ms, b"" if _is_empty(record) else None,
            _pack(record.meta), None,
        )  # fmt: skip
        if old is not None and old.version >= record.version:
            if old.version == record.version or not bucket.versioning or (record.is_null and old.is_null):
                return False
            if session.fetch(objects.VERSION_LOCKED, [(bucket.id, record.key, record.version)]):
                return False
            if record.is_null and not _is_newest_null(session, writes, row):
                return False
            writes.versions.append(row)
        else:
            if old is not None:
                if bucket.versioning and not (record.is_null and old.is_null):
                    writes.versions.append(old)
                else:
                    writes.discard(session, old)
            writes.put(row, old)
        change = schema.CHANGE_MARKER if is_marker else schema.CHANGE_PUT
        writes.changes.append(NewChange(change, bucket.id, record.key, record.version))
        writes.version_max = max(writes.version_max, record.version)
        return True


def _kind(size: int) -> int:
    return schema.KIND_REMOTE if size else schema.KIND_INLINE


def _fits_headers(meta: ObjectMeta | None) -> bool:
    """Whether no reader's answer could be split by it: as for local writes, which are refused."""
    if meta is None:
        return True
    texts = [meta.content_type, *meta.user_meta, *meta.user_meta.values(), *meta.headers, *meta.headers.values()]
    return not any(c in text for text in texts for c in "\r\n\x00")


def _is_newest_null(session: Session, writes: WriteSet, row: ObjectRow) -> bool:
    """Of S3's "null" versions of a key there is one, the newest: whether it is this one; then an older one goes."""
    null = objects.null_version(session.connection, row.bucket_id, row.key)
    if null is None:
        return True
    if null.version > row.version:
        return False
    session.write(objects.DELETE_VERSION, [(row.bucket_id, row.key, null.version)])
    writes.discard(session, null)
    return True


def _is_empty(record: NameRecord) -> bool:
    return record.kind != NAME_MARKER and not record.size


def _forget(
    session: Session, writes: WriteSet, bucket: Bucket, record: NameRecord, old: ObjectRow | None
) -> bool:
    """That version is gone for good; the next older one becomes the latest."""
    key = (bucket.id, record.key, record.version)
    if old is not None and old.version == record.version:
        newest = objects.newest_version(session.connection, bucket.id, record.key)
        if newest is None:
            writes.deleted.append((bucket.id, record.key))
        else:
            session.write(objects.DELETE_VERSION, [(bucket.id, record.key, newest.version)])
            writes.put(newest, old)
        row = old
    else:
        rows = session.fetch(objects.VERSION_LOCKED, [key])
        if not rows:
            return False
        session.write(objects.DELETE_VERSION, [key])
        row = ObjectRow._make(rows[0])
    writes.discard(session, row)
    writes.changes.append(NewChange(schema.CHANGE_DELETE, bucket.id, record.key, record.version))
    return True


def _set_meta(
    session: Session, writes: WriteSet, bucket: Bucket, record: NameRecord, old: ObjectRow | None
) -> bool | None:
    """Whether the metadata changed; None: that version is not here, the record makes it."""
    row = old
    if row is None or row.version != record.version:
        rows = session.fetch(objects.VERSION_LOCKED, [(bucket.id, record.key, record.version)])
        if not rows:
            return None
        row = ObjectRow._make(rows[0])
    new = row._replace(meta=_pack(record.meta))
    if new == row:
        return False
    session.write(objects.REPLACE_LATEST if row is old else objects.REPLACE_VERSION, [new])
    writes.changes.append(NewChange(schema.CHANGE_META, bucket.id, record.key, record.version))
    return True


def _pack(meta: ObjectMeta | None) -> bytes | None:
    return None if meta is None or meta == _DEFAULT_META else encode(meta)


def sources_of(bucket: Bucket) -> list[str]:
    """The sites that write to a bucket here."""
    return [name for name in bucket.config.get(REPLICATED_FROM, "").split(",") if name]


def _unique(records: Sequence[NameRecord]) -> list[list[NameRecord]]:
    """The records in order, in as few pieces as have no key twice (a write set holds a key once)."""
    pieces: list[list[NameRecord]] = []
    seen: set[tuple[str, str]] = set()
    for record in records:
        name = (record.bucket, record.key)
        if not pieces or name in seen:
            pieces.append([])
            seen = set()
        seen.add(name)
        pieces[-1].append(record)
    return pieces


def rules_of(bucket: Bucket) -> list[dict[str, str]]:
    """The replication rules of a bucket. The list is the caller's own, the rules are not to be changed."""
    return list(_rules(bucket.config.get("replication") or ""))


@lru_cache(maxsize=256)
def _rules(document: str) -> tuple[dict[str, str], ...]:
    """Read once for the many names of a bucket that travel together."""
    return tuple(json.loads(document)["rules"]) if document else ()
