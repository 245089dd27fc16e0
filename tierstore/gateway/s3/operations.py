"""Every operation of S3 and how this door stands to it: the table that requests are matched by, and that
docs/reference/s3.md is made from. Pure data.

Invariants: an operation that is not `yes` or `partly` is answered NotImplemented, with its name; the test of a
supported one exists (tests/docs/test_s3_reference.py compares); a write that names a sub-resource is never taken for
one of the whole: a DELETE of an object's annotation deletes no object (tests/unit/s3/test_operations.py asks AWS's
model).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Scope = Literal["service", "bucket", "object"]


@dataclass(frozen=True, slots=True)
class Operation:
    """query: the parameter that names a sub-resource, "" none. header: one that must be there. state: yes | partly |
    unset (answered as AWS does when it was never configured; cannot be set) | no."""

    name: str
    method: str
    scope: Scope
    query: str = ""
    header: bytes = b""
    state: str = "no"
    note: str = ""
    test: str = ""


def _row(  # noqa: PLR0917 - a table's columns
    name: str, method: str, scope: Scope, query: str = "", state: str = "no", test: str = "", note: str = "",
    header: bytes = b"",
) -> Operation:  # fmt: skip
    return Operation(name, method, scope, query, header, state, note, test)


_COPY: Final = b"x-amz-copy-source"
#: The first row that fits decides, so rows with a query or header stand before those without.
OPERATIONS: Final[tuple[Operation, ...]] = (
    _row("ListBuckets", "GET", "service", "", "yes", "test_buckets_are_made_listed_and_removed"),
    # -- buckets
    _row("GetBucketLocation", "GET", "bucket", "location", "yes", "test_buckets_are_made_listed_and_removed"),
    _row("GetBucketVersioning", "GET", "bucket", "versioning", "yes", "test_versions_markers_and_null_versions"),
    _row("PutBucketVersioning", "PUT", "bucket", "versioning", "partly", "test_versions_markers_and_null_versions",
         "no MFA delete: AccessDenied, as of an owner without a device"),
    _row("GetBucketPolicy", "GET", "bucket", "policy", "yes", "test_a_policy_lets_strangers_read"),
    _row("PutBucketPolicy", "PUT", "bucket", "policy", "yes", "test_a_policy_lets_strangers_read"),
    _row("DeleteBucketPolicy", "DELETE", "bucket", "policy", "yes", "test_a_policy_lets_strangers_read"),
    _row("GetBucketPolicyStatus", "GET", "bucket", "policyStatus", "yes", "test_a_policy_lets_strangers_read"),
    _row("GetPublicAccessBlock", "GET", "bucket", "publicAccessBlock", "yes", "test_public_access_can_be_blocked"),
    _row("PutPublicAccessBlock", "PUT", "bucket", "publicAccessBlock", "yes", "test_public_access_can_be_blocked"),
    _row("DeletePublicAccessBlock", "DELETE", "bucket", "publicAccessBlock", "yes",
         "test_public_access_can_be_blocked"),
    _row("GetBucketOwnershipControls", "GET", "bucket", "ownershipControls", "yes", "test_canned_acls"),
    _row("PutBucketOwnershipControls", "PUT", "bucket", "ownershipControls", "yes", "test_canned_acls"),
    _row("DeleteBucketOwnershipControls", "DELETE", "bucket", "ownershipControls", "yes", "test_canned_acls"),
    _row("GetBucketAcl", "GET", "bucket", "acl", "yes", "test_canned_acls"),
    _row("PutBucketAcl", "PUT", "bucket", "acl", "yes", "test_grants_on_a_bucket"),
    _row("GetBucketTagging", "GET", "bucket", "tagging", "yes", "test_tags_of_buckets_and_objects"),
    _row("PutBucketTagging", "PUT", "bucket", "tagging", "yes", "test_tags_of_buckets_and_objects"),
    _row("DeleteBucketTagging", "DELETE", "bucket", "tagging", "yes", "test_tags_of_buckets_and_objects"),
    _row("GetBucketCors", "GET", "bucket", "cors", "yes", "test_cors_rules_and_preflight"),
    _row("PutBucketCors", "PUT", "bucket", "cors", "yes", "test_cors_rules_and_preflight"),
    _row("DeleteBucketCors", "DELETE", "bucket", "cors", "yes", "test_cors_rules_and_preflight"),
    _row("GetBucketLifecycleConfiguration", "GET", "bucket", "lifecycle", "yes", "test_lifecycle_rules_round_trip"),
    _row("PutBucketLifecycleConfiguration", "PUT", "bucket", "lifecycle", "yes", "test_lifecycle_rules_round_trip"),
    _row("DeleteBucketLifecycle", "DELETE", "bucket", "lifecycle", "yes", "test_lifecycle_rules_round_trip"),
    _row("GetBucketEncryption", "GET", "bucket", "encryption", "yes", "test_default_encryption_of_a_bucket"),
    _row("PutBucketEncryption", "PUT", "bucket", "encryption", "yes", "test_default_encryption_of_a_bucket"),
    _row("DeleteBucketEncryption", "DELETE", "bucket", "encryption", "yes", "test_default_encryption_of_a_bucket"),
    _row("GetObjectLockConfiguration", "GET", "bucket", "object-lock", "yes", "test_default_retention"),
    _row("PutObjectLockConfiguration", "PUT", "bucket", "object-lock", "yes", "test_default_retention"),
    _row("GetBucketNotificationConfiguration", "GET", "bucket", "notification", "yes", "test_webhooks_hear_of_objects"),
    _row("PutBucketNotificationConfiguration", "PUT", "bucket", "notification", "partly",
         "test_webhooks_hear_of_objects", "to webhooks that the operator named"),
    _row("GetBucketRequestPayment", "GET", "bucket", "requestPayment", "yes",
         "test_requesters_say_that_they_would_pay"),
    _row("PutBucketRequestPayment", "PUT", "bucket", "requestPayment", "yes",
         "test_requesters_say_that_they_would_pay", "nobody is charged"),
    _row("GetBucketLogging", "GET", "bucket", "logging", "yes", "test_requests_are_logged_into_another_bucket"),
    _row("PutBucketLogging", "PUT", "bucket", "logging", "yes", "test_requests_are_logged_into_another_bucket",
         "requests by S3; of the service's own deliveries, and of sources of copies, nothing is logged"),
    _row("GetBucketWebsite", "GET", "bucket", "website", "unset", "test_what_is_never_set"),
    _row("PutBucketWebsite", "PUT", "bucket", "website"),
    _row("DeleteBucketWebsite", "DELETE", "bucket", "website"),
    _row("GetBucketReplication", "GET", "bucket", "replication", "yes", "test_replication_rules_by_s3"),
    _row("PutBucketReplication", "PUT", "bucket", "replication", "partly", "test_replication_rules_by_s3",
         "enabled rules by prefix, the highest priority first; the destination is arn:aws:s3:SITE::BUCKET"),
    _row("DeleteBucketReplication", "DELETE", "bucket", "replication", "yes", "test_replication_rules_by_s3"),
    _row("GetBucketAccelerateConfiguration", "GET", "bucket", "accelerate", "unset", "test_what_is_never_set"),
    _row("PutBucketAccelerateConfiguration", "PUT", "bucket", "accelerate"),
    *(_row(f"{verb}Bucket{name}", method, "bucket", query) for name, query in (
        ("AnalyticsConfiguration", "analytics"), ("InventoryConfiguration", "inventory"),
        ("MetricsConfiguration", "metrics"), ("IntelligentTieringConfiguration", "intelligent-tiering"),
    ) for verb, method in (("Put", "PUT"), ("Delete", "DELETE"))),
    *(_row(f"{verb}Bucket{name}", method, "bucket", query) for name, query in (
        ("MetadataConfiguration", "metadataConfiguration"), ("MetadataTableConfiguration", "metadataTable"),
    ) for verb, method in (("Create", "POST"), ("Get", "GET"), ("Delete", "DELETE"))),
    *(_row(f"UpdateBucketMetadata{name}TableConfiguration", "PUT", "bucket", f"metadata{name}Table")
      for name in ("Annotation", "Inventory", "Journal")),
    _row("GetBucketAbac", "GET", "bucket", "abac"),
    _row("PutBucketAbac", "PUT", "bucket", "abac"),
    _row("CreateSession", "GET", "bucket", "session"),
    _row("ListBucketAnalyticsConfigurations", "GET", "bucket", "analytics"),
    _row("ListBucketInventoryConfigurations", "GET", "bucket", "inventory"),
    _row("ListBucketMetricsConfigurations", "GET", "bucket", "metrics"),
    _row("ListBucketIntelligentTieringConfigurations", "GET", "bucket", "intelligent-tiering"),
    _row("ListObjectVersions", "GET", "bucket", "versions", "yes", "test_versions_markers_and_null_versions"),
    _row("ListMultipartUploads", "GET", "bucket", "uploads", "yes", "test_uploads_are_listed_by_prefixes"),
    _row("DeleteObjects", "POST", "bucket", "delete", "yes", "test_many_objects_are_deleted_at_once"),
    _row("ListObjectsV2", "GET", "bucket", "list-type", "yes", "test_listings_page_through_keys_and_prefixes"),
    _row("ListObjects", "GET", "bucket", "", "yes", "test_listings_page_through_keys_and_prefixes"),
    _row("PostObject", "POST", "bucket", "", "yes", "test_forms_upload_files"),
    _row("CreateBucket", "PUT", "bucket", "", "partly", "test_buckets_are_made_listed_and_removed",
         "a location constraint is kept and shown; sites and rules decide where bytes lie"),
    _row("HeadBucket", "HEAD", "bucket", "", "yes", "test_buckets_are_made_listed_and_removed"),
    _row("DeleteBucket", "DELETE", "bucket", "", "yes", "test_buckets_are_made_listed_and_removed"),
    # -- objects
    _row("GetObjectAcl", "GET", "object", "acl", "yes", "test_canned_acls"),
    _row("PutObjectAcl", "PUT", "object", "acl", "yes", "test_grants_to_single_users"),
    _row("GetObjectTagging", "GET", "object", "tagging", "yes", "test_tags_of_buckets_and_objects"),
    _row("PutObjectTagging", "PUT", "object", "tagging", "yes", "test_tags_of_buckets_and_objects"),
    _row("DeleteObjectTagging", "DELETE", "object", "tagging", "yes", "test_tags_of_buckets_and_objects"),
    _row("GetObjectAttributes", "GET", "object", "attributes", "yes", "test_parts_show_their_checksums",
         "checksums of parts are kept up to 8 KiB of them (2,000 parts by CRC32, 250 by SHA-256)"),
    _row("GetObjectRetention", "GET", "object", "retention", "yes", "test_retention_and_who_may_pass_it"),
    _row("PutObjectRetention", "PUT", "object", "retention", "yes", "test_retention_and_who_may_pass_it"),
    _row("GetObjectLegalHold", "GET", "object", "legal-hold", "yes", "test_legal_hold"),
    _row("PutObjectLegalHold", "PUT", "object", "legal-hold", "yes", "test_legal_hold"),
    _row("ListObjectAnnotations", "GET", "object", "annotation"),
    _row("PutObjectAnnotation", "PUT", "object", "annotation"),
    _row("DeleteObjectAnnotation", "DELETE", "object", "annotation"),
    _row("UpdateObjectEncryption", "PUT", "object", "encryption"),
    _row("RenameObject", "PUT", "object", "renameObject"),
    _row("GetObjectTorrent", "GET", "object", "torrent"),
    _row("RestoreObject", "POST", "object", "restore"),
    _row("SelectObjectContent", "POST", "object", "select"),
    _row("CreateMultipartUpload", "POST", "object", "uploads", "yes", "test_a_multipart_upload_of_three_parts"),
    _row("CompleteMultipartUpload", "POST", "object", "uploadId", "yes", "test_a_multipart_upload_of_three_parts"),
    _row("UploadPartCopy", "PUT", "object", "uploadId", "yes", "test_parts_are_copied", header=_COPY),
    _row("UploadPart", "PUT", "object", "uploadId", "yes", "test_a_multipart_upload_of_three_parts"),
    _row("AbortMultipartUpload", "DELETE", "object", "uploadId", "yes", "test_uploads_and_parts_are_listed"),
    _row("ListParts", "GET", "object", "uploadId", "yes", "test_uploads_and_parts_are_listed"),
    _row("CopyObject", "PUT", "object", "", "yes", "test_objects_are_copied", header=_COPY),
    _row("PutObject", "PUT", "object", "", "yes", "test_objects_are_put_got_and_removed"),
    _row("GetObject", "GET", "object", "", "yes", "test_ranges_and_conditions"),
    _row("HeadObject", "HEAD", "object", "", "yes", "test_objects_are_put_got_and_removed"),
    _row("DeleteObject", "DELETE", "object", "", "yes", "test_objects_are_put_got_and_removed"),
)


def _by_target() -> dict[tuple[str, str], tuple[Operation, ...]]:
    found: dict[tuple[str, str], tuple[Operation, ...]] = {}
    for row in OPERATIONS:
        found[row.method, row.scope] = (*found.get((row.method, row.scope), ()), row)
    return found


#: (method, scope) -> its rows, in the table's order.
_BY_TARGET: Final = _by_target()
#: What a write may not name if no row of its own method has it: scope -> sub-resources.
_RESOURCES: Final = {
    scope: frozenset(row.query for row in OPERATIONS if row.scope == scope and row.query) - {"list-type"}
    for scope in ("service", "bucket", "object")
}
_WRITES: Final = frozenset({"PUT", "POST", "DELETE"})
#: (method, scope) -> the parameters that ask for a closer look, and the row of requests with none of them, nor a
#: copy's source: most requests are such.
_PLAIN: Final = {
    (method, scope): (
        frozenset(row.query for row in rows if row.query) | (_RESOURCES[scope] if method in _WRITES else frozenset()),
        next((row for row in rows if not row.query and not row.header), None),
    )
    for (method, scope), rows in _BY_TARGET.items()
}
_NOTHING: Final[tuple[frozenset[str], Operation | None]] = (frozenset(), None)


def find(method: str, scope: Scope, names: frozenset[str], *, is_copy: bool) -> Operation | None:
    """The operation of a request, None when S3 has none. names: of the query's parameters."""
    special, plain = _PLAIN.get((method, scope), _NOTHING)
    if not is_copy and special.isdisjoint(names):
        return plain
    for row in _BY_TARGET.get((method, scope), ()):
        if row.query and row.query not in names:
            continue
        if row.header and not is_copy:
            continue
        if not row.query and method in _WRITES and not _RESOURCES[scope].isdisjoint(names):
            return None
        return row
    return None
