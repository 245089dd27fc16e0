"""What the S3 door keeps in the catalog beside objects: buckets as S3 sees them, multipart uploads, lists of versions.

The gateway has judged who may ask (policies, ACLs and owners are its business); this service takes daemons only and
keeps the names' own rules. The bucket of parts is made with the first upload.
"""

from __future__ import annotations

import functools
from typing import Any, Final

from metadata.catalog import accounts, buckets, multipart, schema
from metadata.catalog.buckets import Bucket
from metadata.catalog.database import Database
from metadata.catalog.queries import Connection
from metadata.catalog.session import Session
from metadata.services.names import notify
from metadata.services.names.bucket_names import BucketNames
from metadata.services.names.buckets import DOCUMENT_BYTES_MAX
from metadata.services.names.compose import abort
from metadata.services.names.listing import successor
from metadata.services.names.steps import META_BYTES_MAX
from metadata.services.names.writes import WriteSet
from tierstore.auth.access import Principal
from tierstore.clock import Clock
from tierstore.errors import AccessDenied, ConflictError, NotFound, RequestError
from tierstore.names import check_bucket_name, check_key
from tierstore.policy.notify import DOCUMENT as NOTIFICATIONS
from tierstore.wire import decode, encode
from tierstore.wire.names import BucketView, ObjectMeta
from tierstore.wire.s3 import (
    PARTS_BUCKET,
    UPLOAD_BYTES,
    BucketCall,
    PartsAsk,
    PartsPage,
    PartView,
    UploadCall,
    UploadsAsk,
    UploadsPage,
    UploadView,
    VersionsAsk,
    VersionsPage,
    VersionView,
    part_key,
)
from tierstore.wire.storage_class import packed_class

LIMIT_MAX: Final = 10_000
#: Rows of one step of a list of versions.
_STEP_ROWS: Final = 1000


class S3Names:
    """One per process."""

    def __init__(self, database: Database, names: BucketNames, clock: Clock) -> None:
        self._database = database
        self._names = names
        self._clock = clock

    # -- buckets --------------------------------------------------------------------------------------------
    async def bucket(self, call: BucketCall, who: Principal) -> list[BucketView]:
        """Raises NotFound, ConflictError(bucket-exists, bucket-not-empty), RequestError."""
        _daemon(who)
        if call.act == "list":
            found = await self._database.read(buckets.everything)
            return [_view(bucket) for bucket in found if not bucket.name.startswith(".")]
        if call.act == "user":
            if not await self._database.read(lambda c: accounts.has_user(c, call.owner)):
                raise NotFound(f"no key belongs to a user {call.owner!r}", code="no-such-user")
            return []
        check_bucket_name(call.name)
        if call.act == "get":
            return [_view(await self._names.get(call.name))]
        at_ms = self._clock.now_ms()

        def work(connection: Connection) -> Bucket | None:
            accounts.note(connection, at_ms=at_ms, who=call.owner, action=f"bucket.{call.act}", target=call.name)
            if call.act == "create":
                return buckets.create(connection, call.name, owner=call.owner, at_ms=at_ms)
            if call.act == "delete":
                bucket_id = buckets.delete(connection, call.name, at_ms=at_ms)
                if self._database.witness is not None:
                    self._database.witness.moved(bucket_id)
                return None
            if call.act == "configure":
                notify.begin(connection, call.documents.get(NOTIFICATIONS))
                return buckets.configure(
                    connection, call.name, at_ms=at_ms, versioning=call.versioning or None,
                    documents=dict(call.documents),
                )  # fmt: skip
            raise RequestError(f"no act {call.act!r}", code="bad-message")

        for document, text in call.documents.items():
            if text is not None and len(text.encode()) > DOCUMENT_BYTES_MAX:
                raise RequestError(f"{document} has more than {DOCUMENT_BYTES_MAX} bytes", code="bad-document")
        changed = await self._database.write(work)
        self._names.forget()
        return [] if changed is None else [_view(changed)]

    # -- uploads --------------------------------------------------------------------------------------------
    async def upload(self, call: UploadCall, who: Principal) -> UploadView:
        """create, get or abort. Raises NotFound(no-such-upload)."""
        _daemon(who)
        check_key(call.key)
        if len(call.id) != UPLOAD_BYTES:
            raise RequestError(f"an upload's id has {UPLOAD_BYTES} bytes", code="bad-message")
        bucket = await self._names.get(call.bucket)
        at_ms = self._clock.now_ms()
        if call.act == "create":
            meta = encode(call.meta) if call.meta is not None else None
            if meta is not None and len(meta) > META_BYTES_MAX:
                raise RequestError("too much metadata", code="bad-meta")
            await self._parts_bucket(make=True)
            await self._database.write(
                lambda c: multipart.insert(c, call.id, bucket.id, call.key, call.owner, at_ms, meta)
            )
            return UploadView(call.id, call.bucket, call.key, call.owner, at_ms, call.meta)
        row = await self._database.read(lambda c: multipart.get(c, call.id))
        if row is None or row.bucket_id != bucket.id or row.key != call.key:
            raise NotFound("the upload is not known, was completed or given up", code="no-such-upload")
        if call.act == "abort":
            await self.give_up(call)
        return _upload(row, call.bucket)

    async def give_up(self, call: UploadCall) -> None:
        """End an upload and its parts. Raises NotFound(no-such-upload)."""
        bucket, parts_bucket = await self._names.get(call.bucket), await self._parts_bucket(make=False)

        def work(session: Session) -> None:
            session.guard()
            writes = WriteSet(at_ms=self._clock.now_ms())
            abort(session, writes, call.id, bucket_id=bucket.id, key=call.key, parts_bucket=parts_bucket.id)
            writes.flush(session)

        await self._database.batch(work)

    async def _parts_bucket(self, *, make: bool) -> Bucket:
        try:
            return await self._names.get(PARTS_BUCKET)
        except NotFound:
            if not make:
                raise
        at_ms = self._clock.now_ms()
        try:
            await self._database.write(lambda c: buckets.create(c, PARTS_BUCKET, owner="", at_ms=at_ms))
        except ConflictError:
            pass        # another process made it in this moment
        self._names.forget()
        return await self._names.get(PARTS_BUCKET)

    async def uploads(self, ask: UploadsAsk, who: Principal) -> UploadsPage:
        _daemon(who)
        bucket = await self._names.get(ask.bucket)
        limit = _limit(ask.limit)
        low, low_id = ask.prefix, b""
        if ask.key_marker >= ask.prefix and ask.key_marker:
            # a key marker alone is behind all uploads of that key
            low, low_id = ask.key_marker, ask.id_marker or b"\xff" * (UPLOAD_BYTES + 1)
        high = successor(ask.prefix) if ask.prefix else None
        rows = await self._database.read(
            lambda c: multipart.page(c, bucket.id, low=low, low_id=low_id, high=high, limit=limit + 1)
        )
        return UploadsPage([_upload(row, ask.bucket) for row in rows[:limit]], len(rows) > limit)

    async def parts(self, ask: PartsAsk, who: Principal) -> PartsPage:
        _daemon(who)
        limit = _limit(ask.limit)
        bucket = await self._parts_bucket(make=False)
        low, high = part_key(ask.upload, ask.after), part_key(ask.upload, 99_999)
        rows = await self._database.read(
            lambda c: multipart.parts(c, bucket.id, low=low, high=high, limit=limit + 1)
        )
        views = []
        for row in rows[:limit]:
            meta = decode(row.meta, ObjectMeta) if row.meta else ObjectMeta()
            number = int(row.key.rpartition("/")[2])
            views.append(PartView(number, row.version, row.size, row.etag, row.created_at_ms, meta.checksums))
        return PartsPage(views, len(rows) > limit)

    # -- versions -------------------------------------------------------------------------------------------
    async def versions(self, ask: VersionsAsk, who: Principal) -> VersionsPage:
        """One page; keys below a common prefix are skipped by a seek."""
        _daemon(who)
        bucket = await self._names.get(ask.bucket)
        limit = _limit(ask.limit)
        high = successor(ask.prefix) if ask.prefix else None
        found: list[VersionView] = []
        prefixes: list[str] = []
        low: str | None = ask.prefix
        inclusive, below = True, 0
        if ask.key_marker >= ask.prefix and ask.key_marker:
            low, below, inclusive = ask.key_marker, ask.version_marker, False
            if ask.delimiter and not below and _common(ask.key_marker, ask) == ask.key_marker:
                low, inclusive = successor(ask.key_marker), True
        last: tuple[str, int] = (ask.key_marker, ask.version_marker)
        while low is not None:
            step = functools.partial(
                multipart.versions, bucket_id=bucket.id, low=low, below=below, high=high,
                limit=min(limit + 1, _STEP_ROWS), inclusive=inclusive,
            )  # fmt: skip
            rows: list[Any] = await self._database.read(step)
            jumped = False
            for is_latest, key, version, kind, is_null, size, etag, at_ms, meta in rows:
                if len(found) + len(prefixes) >= limit:
                    return VersionsPage(found, prefixes, last[0], last[1])
                common = _common(key, ask)
                if common is not None:
                    prefixes.append(common)
                    last = (common, 0)
                    low, below, inclusive, jumped = successor(common), 0, True, True
                    break
                found.append(VersionView(
                    key, version, bool(is_null), is_latest, kind == schema.KIND_MARKER, size, etag, at_ms,
                    packed_class(meta),
                ))  # fmt: skip
                last = (key, version)
                low, below, inclusive = key, version, False
            if not jumped and len(rows) < min(limit + 1, _STEP_ROWS):
                break
        return VersionsPage(found, prefixes)


def _common(key: str, ask: VersionsAsk) -> str | None:
    if not ask.delimiter:
        return None
    at = key.find(ask.delimiter, len(ask.prefix))
    return None if at < 0 else key[: at + len(ask.delimiter)]


def _daemon(who: Principal) -> None:
    if not who.is_daemon:
        raise AccessDenied("only the cluster's own servers may ask this")


def _limit(limit: int) -> int:
    if not 1 <= limit <= LIMIT_MAX:
        raise RequestError(f"limit is 1 to {LIMIT_MAX}, not {limit}", code="bad-limit")
    return limit


def _view(bucket: Bucket) -> BucketView:
    return BucketView(
        bucket.name, bucket.created_at_ms, bucket.owner, bucket.versioning, config=bucket.config
    )


def _upload(row: Any, bucket: str) -> UploadView:
    meta = decode(row.meta, ObjectMeta) if row.meta else None
    return UploadView(bytes(row.id), bucket, row.key, row.owner, row.created_at_ms, meta)
