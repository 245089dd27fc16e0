"""The handlers of the S3 door: built once, and the table by which an operation's name finds its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tierstore.gateway.s3.acl import Acls
from tierstore.gateway.s3.auth import Authenticator
from tierstore.gateway.s3.bucket_files import BucketFiles
from tierstore.gateway.s3.bucket_rights import BucketRights
from tierstore.gateway.s3.bucket_settings import BucketSettings
from tierstore.gateway.s3.buckets import Buckets
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.copies import Copies
from tierstore.gateway.s3.lifecycle import LifecycleDoor
from tierstore.gateway.s3.listing import Listings
from tierstore.gateway.s3.locks import Locks
from tierstore.gateway.s3.log_delivery import BucketLogging
from tierstore.gateway.s3.multipart import Multipart
from tierstore.gateway.s3.notifications import Notifications
from tierstore.gateway.s3.object_facts import ObjectFacts
from tierstore.gateway.s3.posts import Posts
from tierstore.gateway.s3.reads import Reads
from tierstore.gateway.s3.replication import Replications
from tierstore.gateway.s3.request import Call
from tierstore.gateway.s3.sse_keys import Vault
from tierstore.gateway.s3.upload_lists import UploadLists
from tierstore.gateway.s3.uploads import BodyReader
from tierstore.gateway.s3.writes import Writes
from tierstore.sdk.store import Store

Handler = Callable[[Call], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Doors:
    """One object per noun, each with the handlers of its operations."""

    buckets: Buckets
    files: BucketFiles
    rights: BucketRights
    settings: BucketSettings
    listings: Listings
    reads: Reads
    writes: Writes
    copies: Copies
    facts: ObjectFacts
    multipart: Multipart
    uploads: UploadLists
    locks: Locks
    lifecycle: LifecycleDoor
    replications: Replications
    posts: Posts
    notifications: Notifications
    logging: BucketLogging


def build(store: Store, catalog: S3Catalog, reader: BodyReader, vault: Vault, auth: Authenticator) -> Doors:
    """Everything, put together."""
    files, reads = BucketFiles(catalog, reader), Reads(store, catalog, vault)
    acls = Acls(store, catalog, reader)
    copies = Copies(store, catalog, reads, vault, acls)
    return Doors(
        Buckets(catalog, reader, files, acls), files, BucketRights(files, acls), BucketSettings(files),
        Listings(store, catalog),
        reads, Writes(store, catalog, reader, vault, acls), copies, ObjectFacts(store, catalog, reader, reads, acls),
        Multipart(store, catalog, reader, copies, vault=vault, acls=acls),
        UploadLists(catalog), Locks(store, catalog, reader, files=files, reads=reads),
        LifecycleDoor(files), Replications(catalog, store.client, reader),
        Posts(store, catalog, vault, executor=reader.executor, auth=auth, acls=acls), Notifications(files),
        BucketLogging(files, catalog, acls),
    )  # fmt: skip


def handlers_of(doors: Doors) -> dict[str, Handler]:
    """Operation -> handler. Those of operations.OPERATIONS that are supported in any way, exactly (a test compares)."""
    buckets, files, multipart, listings = doors.buckets, doors.files, doors.multipart, doors.listings
    writes, reads, facts, settings, who = doors.writes, doors.reads, doors.facts, doors.settings, doors.rights
    unset, locks = files.unset, doors.locks
    return {
        "ListBuckets": buckets.list, "CreateBucket": buckets.create, "HeadBucket": buckets.head,
        "DeleteBucket": buckets.delete, "GetBucketLocation": buckets.location,
        "GetBucketVersioning": buckets.get_versioning, "PutBucketVersioning": buckets.put_versioning,
        "GetBucketPolicy": who.get_policy, "PutBucketPolicy": who.put_policy,
        "DeleteBucketPolicy": who.delete_policy, "GetBucketPolicyStatus": who.policy_status,
        "GetPublicAccessBlock": who.get_public_access, "PutPublicAccessBlock": who.put_public_access,
        "DeletePublicAccessBlock": who.delete_public_access,
        "GetBucketOwnershipControls": who.get_ownership, "PutBucketOwnershipControls": who.put_ownership,
        "DeleteBucketOwnershipControls": who.delete_ownership,
        "GetBucketAcl": who.get_acl, "PutBucketAcl": who.put_acl,
        "GetBucketTagging": settings.get_tags, "PutBucketTagging": settings.put_tags,
        "DeleteBucketTagging": settings.delete_tags,
        "GetBucketCors": settings.get_cors, "PutBucketCors": settings.put_cors,
        "DeleteBucketCors": settings.delete_cors,
        "GetBucketLifecycleConfiguration": doors.lifecycle.get, "PutBucketLifecycleConfiguration": doors.lifecycle.put,
        "DeleteBucketLifecycle": doors.lifecycle.delete,
        "GetBucketEncryption": settings.get_encryption, "PutBucketEncryption": settings.put_encryption,
        "DeleteBucketEncryption": settings.delete_encryption,
        "GetObjectLockConfiguration": locks.get_configuration, "PutObjectLockConfiguration": locks.put_configuration,
        "GetObjectRetention": locks.get_retention, "PutObjectRetention": locks.put_retention,
        "GetObjectLegalHold": locks.get_legal_hold, "PutObjectLegalHold": locks.put_legal_hold,
        "GetBucketNotificationConfiguration": doors.notifications.get,
        "PutBucketNotificationConfiguration": doors.notifications.put,
        "GetBucketRequestPayment": settings.get_payer, "PutBucketRequestPayment": settings.put_payer,
        "GetBucketLogging": doors.logging.get, "PutBucketLogging": doors.logging.put,
        "GetBucketWebsite": unset("s3:GetBucketWebsite", "NoSuchWebsiteConfiguration"),
        "GetBucketReplication": doors.replications.get, "PutBucketReplication": doors.replications.put,
        "DeleteBucketReplication": doors.replications.delete,
        "GetBucketAccelerateConfiguration": unset("s3:GetAccelerateConfiguration", "", "AccelerateConfiguration"),
        "ListObjects": listings.objects, "ListObjectsV2": listings.objects_v2, "ListObjectVersions": listings.versions,
        "DeleteObjects": writes.delete_many, "PostObject": doors.posts.post,
        "PutObject": writes.put, "GetObject": reads.get, "HeadObject": reads.get, "DeleteObject": writes.delete,
        "CopyObject": doors.copies.copy, "GetObjectAttributes": reads.attributes,
        "GetObjectAcl": facts.get_acl, "PutObjectAcl": facts.put_acl,
        "GetObjectTagging": facts.get_tags, "PutObjectTagging": facts.put_tags,
        "DeleteObjectTagging": facts.delete_tags,
        "CreateMultipartUpload": multipart.create, "UploadPart": multipart.put_part,
        "UploadPartCopy": multipart.copy_part, "CompleteMultipartUpload": multipart.complete,
        "AbortMultipartUpload": multipart.abort, "ListParts": doors.uploads.list_parts,
        "ListMultipartUploads": doors.uploads.list_uploads,
    }  # fmt: skip
