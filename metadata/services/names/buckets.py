"""Buckets: made, listed, configured, removed, with the rights that each takes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from metadata.catalog import accounts, buckets, objects
from metadata.catalog.buckets import HOME, OBJECT_LOCK, Bucket
from metadata.catalog.database import Database
from metadata.catalog.queries import Connection
from metadata.services.names import notify
from metadata.services.names.bucket_names import BucketNames
from metadata.services.names.quotas import DOCUMENT as QUOTA
from metadata.services.names.rights import require_by_policy
from tierstore.auth.access import Principal, authorize, is_allowed
from tierstore.clock import Clock
from tierstore.errors import RequestError
from tierstore.names import check_bucket_name
from tierstore.policy.notify import DOCUMENT as NOTIFICATIONS
from tierstore.wire.s3 import POLICY, POLICY_BINDS_OWNER

#: A row, by the name that routes use beside their own models.
BucketRow = Bucket
VERSIONING = ("", "enabled", "suspended")
MODES = ("async", "sync")
BODIES = ("all", "hot", "on-demand")
ON_FAILURE = ("fail", "degrade")
RULES_MAX = 100
DOCUMENT_BYTES_MAX = 256 << 10
#: Documents that a request may not take away like any other of the S3 door, and why; and those that are not the door's.
_KEPT: Final = {
    OBJECT_LOCK: "object lock stays on for good",
    "s3.replication-names": "they belong to the rules of PUT /v1/buckets/{bucket}/replication",
    QUOTA: "a quota is set by PUT /v1/buckets/{bucket}/quota",
    "replication": "PUT /v1/buckets/{bucket}/replication replaces the rules",
    HOME: "PUT /v1/buckets/{bucket}/replication names the home site",
}
_OWN: Final = "it is the cluster's own"


class BucketService:
    """One per process. `sites`: the names of the sites that a replication rule may name, this one left out."""

    def __init__(
        self, database: Database, names: BucketNames, clock: Clock, *, sites: Callable[[], Iterable[str]],
        me: Callable[[], str] = lambda: "",
    ) -> None:  # fmt: skip
        self._database = database
        self._names = names
        self._clock = clock
        self._sites = sites
        self._me = me
        #: Called with the bucket and the (target, prefix) of new rules in the transaction that sets them.
        self.in_rules: Callable[[Connection, Bucket, list[tuple[str, str]]], None] = lambda *_: None
        #: Called after rules of any bucket are durable.
        self.on_rules: Callable[[], Awaitable[None]] | None = None

    async def everything(self, who: Principal) -> list[Bucket]:
        """The buckets that the caller may list, by name."""
        found = await self._database.read(buckets.everything)
        return [b for b in found if is_allowed(who, "list", b.name) and not b.name.startswith(".")]

    async def get(self, name: str, who: Principal) -> Bucket:
        """Raises AccessDenied, NotFound."""
        authorize(who, "list", name)
        bucket = await self._names.get(name)
        require_by_policy(who, "list", bucket)
        return bucket

    async def count(self, bucket: Bucket) -> tuple[int, int]:
        """(objects, bytes): reads every row of the bucket, beside the hot path."""
        return await self._database.scan(lambda connection: objects.count(connection, bucket.id))

    async def create(self, name: str, who: Principal) -> Bucket:
        """Raises RequestError(code="bad-bucket-name"), ConflictError(code="bucket-exists")."""
        check_bucket_name(name)
        authorize(who, "bucket", name)
        at_ms = self._clock.now_ms()

        def work(connection: Connection) -> Bucket:
            accounts.note(connection, at_ms=at_ms, who=who.access, action="bucket.create", target=name)
            return buckets.create(connection, name, owner=who.user, at_ms=at_ms)

        bucket = await self._database.write(work)
        self._names.forget()
        return bucket

    async def delete(self, name: str, who: Principal) -> None:
        """Raises NotFound, ConflictError(code="bucket-not-empty")."""
        authorize(who, "bucket", name)
        require_by_policy(who, "bucket", await self._names.get(name))
        at_ms = self._clock.now_ms()

        def work(connection: Connection) -> None:
            accounts.note(connection, at_ms=at_ms, who=who.access, action="bucket.delete", target=name)
            bucket_id = buckets.delete(connection, name, at_ms=at_ms)
            if self._database.witness is not None:
                self._database.witness.moved(bucket_id)

        await self._database.write(work)
        self._names.forget()

    async def change(
        self, name: str, who: Principal, *, versioning: str | None = None,
        documents: dict[str, str | None] | None = None,
    ) -> Bucket:
        """What a request may change as it likes: versioning, and documents of the S3 door away (None). Their texts are
        judged by the calls that set them; a text that nobody judged would stop duties that read it for all buckets.

        Raises as configure."""
        for document, text in (documents or {}).items():
            if text is not None:
                raise RequestError(
                    f"{document[:64]} is set by the S3 call that it belongs to; here it can only be removed (null)",
                    code="bad-document",
                )
            if (place := _KEPT.get(document, "" if document.startswith("s3.") else _OWN)) != "":
                raise RequestError(f"{document[:64]} cannot be removed here: {place}", code="bad-document")
        return await self.configure(name, who, versioning=versioning, documents=documents)

    async def configure(
        self, name: str, who: Principal, *, versioning: str | None = None,
        documents: dict[str, str | None] | None = None, also: Callable[[Connection, Bucket], None] | None = None,
    ) -> Bucket:  # fmt: skip
        """Set versioning, set or remove (None) documents. also: what else belongs into the transaction; it gets the
        bucket as it was, locked. Raises NotFound, RequestError, ConflictError. A policy that denies everything to
        everybody is for administrators of the cluster to remove."""
        authorize(who, "bucket", name)
        is_mended = versioning is None and documents is not None and documents.keys() <= {POLICY, POLICY_BINDS_OWNER}
        if not (is_mended and is_allowed(who, "admin")):
            require_by_policy(who, "bucket", await self._names.get(name))
        if versioning is not None and versioning not in VERSIONING:
            raise RequestError(f"versioning is enabled or suspended, not {versioning!r}", code="bad-versioning")
        for document, text in (documents or {}).items():
            if text is not None and len(text.encode()) > DOCUMENT_BYTES_MAX:
                raise RequestError(f"{document} has more than {DOCUMENT_BYTES_MAX} bytes", code="bad-document")
        at_ms = self._clock.now_ms()

        def work(connection: Connection) -> Bucket:
            what = ", ".join([*(["versioning"] if versioning is not None else []), *(documents or {})])
            accounts.note(connection, at_ms=at_ms, who=who.access, action="bucket.configure", target=name, detail=what)
            if also is not None:
                also(connection, buckets.get(connection, name, lock=True))
            notify.begin(connection, (documents or {}).get(NOTIFICATIONS))
            return buckets.configure(connection, name, at_ms=at_ms, versioning=versioning, documents=documents)

        bucket = await self._database.write(work)
        self._names.forget()
        return bucket

    async def replication(self, name: str, who: Principal) -> list[dict[str, Any]]:
        """The rules of the bucket, in order."""
        return _rules_of(await self.get(name, who))

    async def home(self, name: str, who: Principal) -> str:
        """The site that judges conditional writes to the bucket; "": each site its own."""
        return (await self.get(name, who)).config.get(HOME, "")

    async def set_replication(
        self, name: str, rules: list[dict[str, Any]], who: Principal, *, home: str | None = None
    ) -> list[dict[str, Any]]:
        """Replace the rules; and the home site, unless it is None. Raises RequestError(code="bad-replication") that
        names the rule and the member."""
        authorize(who, "bucket", name)
        checked = [self._rule(place, rule) for place, rule in enumerate(rules)]
        if len(checked) > RULES_MAX:
            raise RequestError(f"a bucket has at most {RULES_MAX} replication rules", code="bad-replication")
        text = json.dumps({"rules": checked}) if checked else None
        documents: dict[str, str | None] = {"replication": text}
        if home is not None:
            known = sorted({*self._sites(), self._me()})
            if home and home not in known:
                raise RequestError(f"home: no site {home!r} ({', '.join(known)})", code="bad-replication")
            documents[HOME] = home or None

        def fill(connection: Connection, before: Bucket) -> None:
            old = {(rule["target"], rule["prefix"], rule["bodies"]) for rule in _rules_of(before)}
            new = [(rule["target"], rule["prefix"], rule["bodies"]) for rule in checked]
            self.in_rules(connection, before, list(dict.fromkeys(rule[:2] for rule in new if rule not in old)))

        await self.configure(name, who, documents=documents, also=fill)
        if self.on_rules is not None:
            await self.on_rules()
        return checked

    def _rule(self, place: int, rule: dict[str, Any]) -> dict[str, Any]:
        checked = {
            "prefix": rule.get("prefix", ""), "target": rule.get("target", ""), "mode": rule.get("mode", "async"),
            "bodies": rule.get("bodies", "all"), "on_failure": rule.get("on_failure", "degrade"),
        }  # fmt: skip
        sites = sorted(self._sites())
        if checked["target"] not in sites:
            known = ", ".join(sites) if sites else "there is no other site"
            raise RequestError(
                f"rules[{place}].target: no site {checked['target']!r} ({known})", code="bad-replication"
            )
        for member, allowed in (("mode", MODES), ("bodies", BODIES), ("on_failure", ON_FAILURE)):
            if checked[member] not in allowed:
                raise RequestError(
                    f"rules[{place}].{member}: {checked[member]!r} is none of {', '.join(allowed)}",
                    code="bad-replication",
                )
        return checked


def _rules_of(bucket: Bucket) -> list[dict[str, Any]]:
    text = bucket.config.get("replication")
    rules: list[dict[str, Any]] = json.loads(text)["rules"] if text else []
    return rules
