"""The reads of a batch of commits: everything that its decisions rest on, in bulk, the rows of its keys locked.

Where the way to the engine is what costs (PostgreSQL), all of them are made at once, with keys guessed from what
earlier batches saw; what is decided rests on what is then fetched by the true keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from metadata.catalog import buckets, members, objects, operations
from metadata.catalog.objects import ObjectRow
from metadata.catalog.session import Session
from metadata.services.cluster.view import ClusterView
from metadata.services.names.facts import Facts
from metadata.services.names.receipts import Opened, open_all
from tierstore.errors import TierstoreError
from tierstore.names import UPLOAD_ID_BYTES, UploadId, operation_of
from tierstore.wire.names import CommitItem, Copy, Fill, Put

#: Buckets, and devices, that are remembered to guess by.
GUESSES_MAX: Final = 4096
#: Mutations that name chunks with their receipts.
BRINGS_CHUNKS: Final = (Put, Fill)


class FactReads:
    """One per process."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._bucket_ids: dict[str, int] = {}
        self._server_of: dict[int, int] = {}

    def load(
        self, session: Session, items: Sequence[CommitItem], now_ms: int, *, checked: bool,
        opened: dict[bytes, list[Opened] | TierstoreError] | None = None,
    ) -> Facts:  # fmt: skip
        """Everything that the decisions rest on, by bulk reads; rows of keys are locked. opened: receipts that
        have been opened already, by operation."""
        facts = Facts(now_ms=now_ms, receipts=opened or {})
        mutations = [item.mutation for item in items]
        names = {m.bucket for m in mutations}
        names |= {m.from_bucket for m in mutations if isinstance(m, Copy)}
        uploads: set[bytes] = set()
        writers: set[tuple[int, int, int]] = set()
        for item, m in zip(items, mutations, strict=True):
            if isinstance(m, BRINGS_CHUNKS):
                of_item = facts.receipts.get(item.operation)
                if of_item is None:
                    of_item = facts.receipts[item.operation] = self._opened(m)
                if isinstance(of_item, TierstoreError):
                    continue    # told when the item's turn comes
                for chunk, of_chunk in zip(m.chunks, of_item, strict=True):
                    uploads.add(chunk.id[:UPLOAD_ID_BYTES])
                    writers.update(of_chunk.writers)
        devices = {writer[0] for writer in writers}
        if session.is_remote:
            self._ask_ahead(session, items, names, devices, uploads)
        for row in session.fetch(buckets.BY_NAME_HELD, _keys(names)):
            bucket = buckets.Bucket.of(row)
            facts.buckets[bucket.name] = bucket
        ids = {bucket.name: bucket.id for bucket in facts.buckets.values()}
        facts.latest = self._latest(session, _row_keys(items, ids))
        if devices:
            facts.members.devices = {i: (s, w) for i, s, w in session.fetch(members.DEVICES, _keys(devices))}
            servers = {server for server, _ in facts.members.devices.values()}
            facts.members.servers = {i: (n, w) for i, n, w in session.fetch(members.SERVERS, _keys(servers))}
        # looking for each upload costs a hundred times what asking for any does, but there the way is what costs
        if uploads and (session.is_remote or operations.any_condemned(session.connection)):
            facts.condemned = {row[0] for row in session.fetch(operations.CONDEMNED, _keys(uploads))}
        first_young = max(0, now_ms - operations.UPLOAD_LIFE_MS).to_bytes(6, "big")     # ids begin with their time
        if uploads and min(uploads) < first_young:
            facts.old = {upload for upload in uploads if upload < first_young}
            facts.leases = dict(session.fetch(operations.LEASES, _keys(facts.old)))
        if session.is_remote:
            self._remember(ids, facts)
        if checked:
            self._load_done(session, facts, {item.operation for item in items}, uploads)
        return facts

    def _load_done(self, session: Session, facts: Facts, ids: set[bytes], uploads: set[bytes]) -> None:
        """What has been applied of these operations, and which of these uploads have committed."""
        marks = {operation_of(UploadId(upload)): upload for upload in uploads}
        for done, result in session.fetch(operations.RESULTS, _keys(ids | marks.keys())):
            if done in ids and result:
                facts.results[done] = result
            if done in marks:
                facts.committed.add(marks[done])

    def _ask_ahead(
        self, session: Session, items: Sequence[CommitItem], names: set[str], devices: set[int], uploads: set[bytes]
    ) -> None:
        """Have all reads of the batch made at once, whose keys follow from what earlier batches saw: which id a bucket
        has, which server a device. A guess that is wrong costs its read; what is decided rests on what `fetch` says."""
        servers = {self._server_of[device] for device in devices if device in self._server_of}
        session.ask_ahead([
            (buckets.BY_NAME_HELD, _keys(names)), (objects.LATEST_LOCKED, _row_keys(items, self._bucket_ids)),
            (members.DEVICES, _keys(devices)), (members.SERVERS, _keys(servers)),
            (operations.CONDEMNED, _keys(uploads)),
        ])  # fmt: skip

    def _remember(self, ids: dict[str, int], facts: Facts) -> None:
        for known, fresh in (
            (self._bucket_ids, ids), (self._server_of, {d: server for d, (server, _) in facts.members.devices.items()})
        ):  # fmt: skip
            if len(known) > GUESSES_MAX:
                known.clear()
            known.update(fresh)     # type: ignore[arg-type]

    def _latest(self, session: Session, keys: list[tuple[int, str]]) -> dict[tuple[int, str], ObjectRow]:
        rows = session.fetch(objects.LATEST_LOCKED, keys)
        return {(row[0], row[1]): ObjectRow._make(row) for row in rows}

    def receipts_of(self, item: CommitItem) -> list[Opened] | TierstoreError | None:
        """Of what it brings, opened, or why they cannot be; None when it brings nothing."""
        return self._opened(item.mutation) if isinstance(item.mutation, BRINGS_CHUNKS) else None

    def _opened(self, mutation: Put | Fill) -> list[Opened] | TierstoreError:
        try:
            return open_all(mutation.chunks, self._view.ticket_keys)
        except TierstoreError as error:
            return error


def _keys(values: Iterable[object]) -> list[tuple[object]]:
    return [(value,) for value in sorted(values)]  # type: ignore[type-var]


def _row_keys(items: Iterable[CommitItem], ids: Mapping[str, int]) -> list[tuple[int, str]]:
    """The rows that the items name, in buckets of known id, sorted: they are locked in that order."""
    keys = set()
    for item in items:
        m = item.mutation
        # No engine takes a key that is no text; such an item is refused by the check of its name.
        if m.bucket in ids and "\x00" not in (key := m.key) and (key.isascii() or _is_text(key)):
            keys.add((ids[m.bucket], key))
        if isinstance(m, Copy) and m.from_bucket in ids and "\x00" not in m.from_key and _is_text(m.from_key):
            keys.add((ids[m.from_bucket], m.from_key))
    return sorted(keys)


def names_of(item: CommitItem) -> tuple[tuple[str, str], ...]:
    """Bucket and key of what it changes, its own first, and of what it reads."""
    m = item.mutation
    if isinstance(m, Copy):
        return (m.bucket, m.key), (m.from_bucket, m.from_key)
    return ((m.bucket, m.key),)


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True
