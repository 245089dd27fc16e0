"""Object lock: handlers of a bucket's configuration, of retention and legal hold of a version.

Owns rights and answers only; metadata keeps the promise, for every door (docs/adr/0101).
"""

from __future__ import annotations

from tierstore.gateway.s3 import documents, rights
from tierstore.gateway.s3.bucket_files import BucketFiles
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.conditions import version_of
from tierstore.gateway.s3.documents import document, element, moment
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.lock_forms import may_bypass, parse_configuration, parse_retention
from tierstore.gateway.s3.reads import Reads
from tierstore.gateway.s3.request import Call
from tierstore.gateway.s3.uploads import BodyReader
from tierstore.sdk.store import Store
from tierstore.wire.lock import DOCUMENT, Lock, lock_of, rule_of, rule_text, with_lock
from tierstore.wire.names import BucketView, LookupResult, ObjectMeta


class Locks:
    """Handlers of object lock."""

    def __init__(
        self, store: Store, catalog: S3Catalog, reader: BodyReader, *, files: BucketFiles, reads: Reads
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._reader = reader
        self._files = files
        self._reads = reads

    # -- the bucket -----------------------------------------------------------------------------------------
    async def get_configuration(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:GetBucketObjectLockConfiguration")
        text = bucket.config.get(DOCUMENT)
        if text is None:
            raise S3Error("ObjectLockConfigurationNotFoundError")
        rule = rule_of(text)
        inner = element("ObjectLockEnabled", "Enabled")
        if rule.mode:
            kept = element("Days", rule.days or None) + element("Years", rule.years or None)
            inner += f"<Rule><DefaultRetention>{element('Mode', rule.mode)}{kept}</DefaultRetention></Rule>"
        call.reply(200, document("ObjectLockConfiguration", inner), XML_LINE)

    async def put_configuration(self, call: Call) -> None:
        bucket = await self._files.bucket(call, "s3:PutBucketObjectLockConfiguration")
        rule = parse_configuration(documents.parse(await self._files.body(call), "ObjectLockConfiguration"))
        if bucket.versioning != "enabled":
            raise S3Error("InvalidBucketState", "Versioning must be 'Enabled' on the bucket to apply an Object Lock "
                          "configuration")  # fmt: skip
        await self._files.set(call, DOCUMENT, rule_text(rule))
        call.reply(200)

    # -- one version ----------------------------------------------------------------------------------------
    async def get_retention(self, call: Call) -> None:
        _, found = await self._find(call, "s3:GetObjectRetention")
        lock = lock_of(found.meta)
        if not lock.mode:
            raise S3Error("NoSuchObjectLockConfiguration")
        inner = element("Mode", lock.mode) + element("RetainUntilDate", moment(lock.until_ms))
        call.reply(200, document("Retention", inner), XML_LINE)

    async def put_retention(self, call: Call) -> None:
        bucket, found = await self._find(call, "s3:PutObjectRetention")
        root = documents.parse(await self._reader.small(call, documents.BODY_BYTES_MAX), "Retention")
        lock = parse_retention(root, self._catalog.now_ms)
        await self._set(call, found, lock, "retention", bypass=may_bypass(call, bucket))

    async def get_legal_hold(self, call: Call) -> None:
        _, found = await self._find(call, "s3:GetObjectLegalHold")
        hold = lock_of(found.meta).hold
        if not hold:
            raise S3Error("NoSuchObjectLockConfiguration")
        call.reply(200, document("LegalHold", element("Status", hold)), XML_LINE)

    async def put_legal_hold(self, call: Call) -> None:
        _, found = await self._find(call, "s3:PutObjectLegalHold")
        root = documents.parse(await self._reader.small(call, documents.BODY_BYTES_MAX), "LegalHold")
        status = root.text("Status")
        if status not in ("ON", "OFF"):
            raise S3Error("MalformedXML")
        await self._set(call, found, Lock(hold=status), "hold")

    async def _find(self, call: Call, action: str) -> tuple[BucketView, LookupResult]:
        bucket = await self._catalog.bucket(call.bucket)
        rights.require(call, action, bucket, call.key)
        if DOCUMENT not in bucket.config:
            raise S3Error("InvalidRequest", "Bucket is missing Object Lock Configuration")
        return bucket, await self._reads.find(call, bucket, action, version=version_of(call.query.get("versionId")))

    async def _set(
        self, call: Call, found: LookupResult, lock: Lock, part: str, *, bypass: bool = False
    ) -> None:
        meta = with_lock(found.meta or ObjectMeta(), lock)
        await self._store.set_meta(
            call.bucket, call.key, meta, version=found.version, lock=part, bypass_governance=bypass
        )
        call.reply(200)
