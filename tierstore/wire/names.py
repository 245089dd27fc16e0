"""Lookup, allocate, commit and listing: what clients and gateways ask of metadata, in batches.

All four are POSTed to metadata as a batch; the answer holds one result per item, in order. `access` says for whom a
daemon asks (the access key it authenticated); a client that comes with its own token leaves it empty.

An item's `code` is "" when it succeeded, else an error code of tierstore.errors with `detail` for people.
"""

from __future__ import annotations

from typing import Final

import msgspec


class ReplicaView(msgspec.Struct, array_like=True, frozen=True):
    """One readable copy, best first. `ticket` is a read ticket (base64url) for `server`, good for 5 minutes."""

    server: int
    device: int
    tier: str
    role: int           # ticket.ROLE_HOME | ROLE_CACHE
    ticket: bytes


class ChunkView(msgspec.Struct, array_like=True, frozen=True):
    """A piece of an object: bytes [chunk_offset, chunk_offset + length) of the chunk stand at `start` in the object."""

    id: bytes
    start: int
    chunk_offset: int
    length: int
    chunk_bytes: int
    crc32c: int         # of the whole chunk
    replicas: list[ReplicaView]


class ObjectMeta(msgspec.Struct, array_like=True, frozen=True):
    """What is kept beside the bytes. `checksums`: algorithm name (lower case, "crc32c") -> S3's base64 form."""

    content_type: str = ""
    user_meta: dict[str, str] = {}
    checksums: dict[str, str] = {}
    headers: dict[str, str] = {}      # cache-control, content-encoding, content-disposition, content-language, expires
    tags: dict[str, str] = {}
    extra: dict[str, bytes] = {}      # S3 and POSIX attributes; names are owned by those doors


class LookupItem(msgspec.Struct, array_like=True, frozen=True):
    """Ask for an object. `first`/`length`: the range of bytes whose chunks are wanted (length -1: to the end);
    want_chunks False: names only (HEAD). At most LOOKUP_CHUNKS_MAX chunks come back per item; ask again with the
    version for the next."""

    bucket: str
    key: str
    access: str = ""
    version: int = 0          # 0: the latest
    first: int = 0
    length: int = -1
    want_chunks: bool = True
    is_own: bool = False      # the system's own read (replication): counts for no heat


LOOKUP_CHUNKS_MAX = 64


class LookupResult(msgspec.Struct, array_like=True, frozen=True):
    code: str = ""
    detail: str = ""
    version: int = 0
    size: int = 0
    etag: str = ""
    created_at_ms: int = 0
    meta: ObjectMeta | None = None    # None: nothing but defaults
    chunks: list[ChunkView] = []
    more: bool = False                # further chunks of the asked range exist
    is_latest: bool = True
    is_remote: bool = False           # bytes may be missing here: another site has them; `chunks` may have gaps
    is_null: bool = False             # S3's "null" version


class LookupBatch(msgspec.Struct, array_like=True, frozen=True):
    items: list[LookupItem]


class LookupReply(msgspec.Struct, array_like=True, frozen=True):
    """map_revision, auth_revision, policy_revision: when they differ from what the caller holds, it fetches anew."""

    results: list[LookupResult]
    map_revision: int = 0
    auth_revision: int = 0
    policy_revision: int = 0


#: Allocations that one item may ask for.
ALLOCATIONS_PER_ITEM_MAX: Final = 256


class AllocateItem(msgspec.Struct, array_like=True, frozen=True):
    """Ask for room for chunks of one placement class. upload empty: `count` new uploads of one chunk each (index 0);
    else: chunks first_index .. first_index + count - 1 of that upload, each with targets of its own."""

    tiers: list[str]              # home tiers in order of preference; [] means any
    copies: int = 2
    count: int = 1
    upload: bytes = b""
    first_index: int = 0
    chunk_bytes_max: int = 8 << 20
    access: str = ""
    exclude_servers: list[int] = []
    extra_tiers: list[str] = []   # one more copy, of role cache, on one of these if it is faster than the homes


class Target(msgspec.Struct, array_like=True, frozen=True):
    server: int
    device: int
    tier: str
    ticket: bytes                 # write ticket


class Allocation(msgspec.Struct, array_like=True, frozen=True):
    """Where one chunk may go: `targets` has exactly `copies` devices of different servers, `spares` further ones."""

    upload: bytes
    index: int
    targets: list[Target]
    spares: list[Target]
    expires_at_ms: int            # catalog time
    extras: list[Target] = []     # at most one: for a cache copy, which may fail


class AllocateResult(msgspec.Struct, array_like=True, frozen=True):
    """returning: with not-enough-servers, how many that are away for a moment (a restart, a metadata service that has
    just begun to listen) would make them enough; 0: waiting is of no use."""

    code: str = ""
    detail: str = ""
    allocations: list[Allocation] = []
    returning: int = 0


class AllocateBatch(msgspec.Struct, array_like=True, frozen=True):
    items: list[AllocateItem]


class AllocateReply(msgspec.Struct, array_like=True, frozen=True):
    results: list[AllocateResult]
    now_ms: int                   # catalog time
    map_revision: int = 0
    auth_revision: int = 0
    policy_revision: int = 0


class CommitChunk(msgspec.Struct, array_like=True, frozen=True):
    """One chunk of the new version with the receipts of at least `copies` servers (home) and of cache copies."""

    id: bytes
    chunk_bytes: int
    crc32c: int
    receipts: list[bytes]
    cache_receipts: list[bytes] = []


class Condition(msgspec.Struct, array_like=True, frozen=True):
    """if_match / if_none_match as in HTTP: "*" or ETags without quotes; version: the latest must be this one."""

    if_match: list[str] = []
    if_none_match: list[str] = []
    version: int = 0


class Put(msgspec.Struct, array_like=True, frozen=True, tag="put"):
    """Make a version of these chunks, in order. etag: without quotes; empty = metadata makes one."""

    bucket: str
    key: str
    size: int
    etag: str
    chunks: list[CommitChunk]
    meta: ObjectMeta | None = None
    condition: Condition | None = None


class Delete(msgspec.Struct, array_like=True, frozen=True, tag="delete"):
    """Delete the latest (version 0: a delete marker if the bucket is versioned) or one version for good.
    bypass_governance: also one under retention of that mode (the door has judged that the caller may)."""

    bucket: str
    key: str
    version: int = 0
    condition: Condition | None = None
    bypass_governance: bool = False


class Copy(msgspec.Struct, array_like=True, frozen=True, tag="copy"):
    """A new object that shares the chunks of another (reference-counted); no byte moves. meta None: as the source."""

    bucket: str
    key: str
    from_bucket: str
    from_key: str
    from_version: int = 0
    meta: ObjectMeta | None = None
    condition: Condition | None = None            # on the target
    source_condition: Condition | None = None
    rename: bool = False                          # remove the source in the same transaction


class Compose(msgspec.Struct, array_like=True, frozen=True, tag="compose"):
    """Complete a multipart upload: the object is these parts, (number, version of each), in order. No byte moves."""

    bucket: str
    key: str
    upload: bytes
    parts: list[tuple[int, int]]
    etag: str
    meta: ObjectMeta | None = None
    condition: Condition | None = None


class SetMeta(msgspec.Struct, array_like=True, frozen=True, tag="meta"):
    """Replace the metadata of a version in place (tags, attributes); the body and the version id stay. Its object lock
    stays too, but for the part that `lock` names: "" | "retention" | "hold"."""

    bucket: str
    key: str
    meta: ObjectMeta
    version: int = 0
    condition: Condition | None = None
    lock: str = ""
    bypass_governance: bool = False


class Fill(msgspec.Struct, array_like=True, frozen=True, tag="fill"):
    """Give a version whose name came from another site the bytes from `start` on. Refused as `already-here` when some
    of them are here. is_cached: for a reader; the site may let go of them again. No chunks: what was kept so is the
    site's own from now on."""

    bucket: str
    key: str
    version: int
    start: int
    chunks: list[CommitChunk]
    is_cached: bool = False


Mutation = Put | Delete | Compose | Copy | SetMeta | Fill


class CommitItem(msgspec.Struct, array_like=True, frozen=True):
    """One mutation. operation: names.OperationId; a repeat of it gets the first one's result for as long as the
    deadline allows; after deadline_ms (catalog time) the mutation is refused with code "too-late"."""

    operation: bytes
    deadline_ms: int
    mutation: Mutation
    access: str = ""


#: CommitResult.waits: it waited for another site, as a sync rule wants it.
WAITED: Final = 1
#: The same, and it still does: ask again under the same operation.
UNDER_WAY: Final = 2


class CommitResult(msgspec.Struct, array_like=True, frozen=True):
    code: str = ""
    detail: str = ""
    version: int = 0
    etag: str = ""
    created_at_ms: int = 0
    size: int = 0
    is_delete_marker: bool = False
    existed: bool = False         # delete: there was something to delete
    waits: int = 0                # 0, WAITED or UNDER_WAY


class CommitBatch(msgspec.Struct, array_like=True, frozen=True):
    items: list[CommitItem]


class CommitReply(msgspec.Struct, array_like=True, frozen=True):
    results: list[CommitResult]
    map_revision: int = 0
    auth_revision: int = 0
    policy_revision: int = 0


class ListItem(msgspec.Struct, array_like=True, frozen=True):
    """One page in key order, one index range. start_after: first key or common prefix that is not wanted."""

    bucket: str
    prefix: str = ""
    delimiter: str = ""
    start_after: str = ""
    limit: int = 1000             # 1..10000, keys and common prefixes together
    access: str = ""
    want_placement: bool = True   # tier and heat of each object
    want_class: bool = False      # its storage class


class ListEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """gc=False: it holds nothing that could hold it, and a page is a thousand of them."""

    key: str
    size: int
    etag: str
    version: int
    created_at_ms: int
    tier: str = ""
    heat_per_hour: float = 0.0
    storage_class: str = ""       # "": STANDARD, or not asked for


class ListResult(msgspec.Struct, array_like=True, frozen=True):
    code: str = ""
    detail: str = ""
    objects: list[ListEntry] = []
    prefixes: list[str] = []
    next_start_after: str | None = None


class BucketView(msgspec.Struct, array_like=True, frozen=True):
    name: str
    created_at_ms: int
    owner: str = ""
    versioning: str = ""          # "" | "enabled" | "suspended"
    objects: int = -1             # -1: not counted
    bytes: int = -1
    config: dict[str, str] = {}   # documents of the S3 door by name; replication rules under "replication"


class Renew(msgspec.Struct, array_like=True, frozen=True):
    """Keep uploads (longer than 10 minutes) or pins of versions being read (longer than 15) alive. tickets: read
    tickets of the same reads, whose right is to go on."""

    uploads: list[bytes] = []
    pins: list[bytes] = []        # chunk ids
    tickets: list[bytes] = []


class Renewed(msgspec.Struct, frozen=True):
    """A map, as the answer always was. tickets: in the order of the message's; b"" for one that is not renewed."""

    tickets: list[bytes] = []
