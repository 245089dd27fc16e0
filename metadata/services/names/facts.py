"""What the decisions of a batch rest on, read in its transaction, and the checks that need nothing else: lateness,
lapsed and condemned uploads (rules 3 and 12).

Invariant: Facts live as long as the transaction; nothing in them is remembered for the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from metadata.catalog import operations
from metadata.catalog.buckets import Bucket
from metadata.catalog.objects import ObjectRow
from metadata.services.names.receipts import Members, Opened
from metadata.services.names.rights import require_by_policy
from tierstore.auth.access import Principal, authorize
from tierstore.errors import ConflictError, NotFound, RequestError, TierstoreError
from tierstore.names import OPERATION_ID_BYTES
from tierstore.wire.s3 import POLICY


@dataclass(slots=True)
class Facts:
    """now_ms: catalog time. receipts: by operation, opened, or why they cannot be."""

    now_ms: int
    buckets: dict[str, Bucket] = field(default_factory=dict)
    latest: dict[tuple[int, str], ObjectRow] = field(default_factory=dict)
    members: Members = field(default_factory=Members)
    receipts: dict[bytes, list[Opened] | TierstoreError] = field(default_factory=dict)
    condemned: set[bytes] = field(default_factory=set)
    committed: set[bytes] = field(default_factory=set)
    leases: dict[bytes, int] = field(default_factory=dict)
    results: dict[bytes, bytes] = field(default_factory=dict)
    old: set[bytes] = field(default_factory=set)        # uploads that may commit under a lease only
    mounts: dict[int, frozenset[str]] = field(default_factory=dict)     # by bucket: those that live, once asked
    _writable: dict[tuple[int, str], Bucket] = field(default_factory=dict)

    def bucket(self, name: str) -> Bucket:
        found = self.buckets.get(name)
        if found is None:
            raise NotFound(f"there is no bucket {name!r}", code="no-such-bucket", bucket=name)
        return found

    def writable(self, who: Principal, name: str, key: str) -> Bucket:
        """The bucket, for somebody who may write the key to it; judged once for all items of the batch where no
        policy tells keys apart."""
        known = self._writable.get((id(who), name))     # who outlives the batch: the same id is the same principal
        if known is not None:
            return known
        if who.policies:
            authorize(who, "write", name, key)
        known = self.bucket(name)
        require_by_policy(who, "write", known, key)
        authorize(who, "write", name)
        if not who.policies and POLICY not in known.config:
            self._writable[id(who), name] = known
        return known


def check_operation(operation: bytes, deadline_ms: int, now_ms: int) -> None:
    """Raises RequestError for an operation that comes too late, or whose result could not be kept long enough."""
    if len(operation) != OPERATION_ID_BYTES:
        raise RequestError(f"an operation id has {OPERATION_ID_BYTES} bytes", code="bad-operation")
    if deadline_ms < now_ms:
        raise RequestError("the deadline of this operation has passed; nothing was done", code="too-late")
    if deadline_ms > int.from_bytes(operation[:6], "big") + operations.OPERATION_LIFE_MS:
        raise RequestError(
            "the deadline lies more than an hour behind the time in the operation's id", code="bad-deadline"
        )


def check_uploads(facts: Facts, uploads: list[bytes]) -> None:
    """Raises ConflictError for uploads that are condemned, lapsed or committed already (rule 3)."""
    if not (facts.condemned or facts.committed or facts.old):
        return      # nearly always: none of the batch is
    for upload in uploads:
        if upload in facts.condemned:
            raise ConflictError("the upload was given up for dead; upload again", code="upload-condemned")
        if upload in facts.committed:
            raise ConflictError("these chunks belong to an object already", code="upload-committed")
        if upload in facts.old and facts.leases.get(upload, 0) < facts.now_ms:
            age_ms = facts.now_ms - int.from_bytes(upload[:6], "big")
            raise ConflictError(
                f"the upload began {age_ms // 1000} s ago and was not renewed; upload again", code="upload-lapsed"
            )
