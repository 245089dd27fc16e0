"""What sites say to each other, over their gateways' one port, under a site's key (user "site:<name>").

    POST /v1/sites/hello    Hello       -> HelloAnswer      lives, latency
    POST /v1/sites/names    NameBatch   -> NameAnswer       names, deletes, metadata: small, sent first, in order
    POST /v1/sites/fetch    FetchBatch  -> FetchAnswer      "fetch these bytes from me now": answered when durable there
    POST /v1/sites/compare  Compare     -> CompareAnswer    "I was restored: send me all names we share, deletes too"
    POST /v1/sites/holds    Holds       -> HoldsAnswer      "which of these bodies are yours for good, now?"
    POST /v1/sites/seen     Holds       -> HoldsAnswer      "have you heard of these deletes?"
    POST /v1/sites/push     Push        -> PushAnswer       a name with its bytes (mode sync): one round trip
    GET  /v1/bodies/B/K     frames (tierstore/sdk/frames.py): bytes of one version, each piece with its CRC32C

All bodies are MessagePack. A repeat of any message is harmless. What a number or a word may be stands in its type, so
that `decode` refuses what no catalog could hold: another site may be broken, or of another release.

Sites are upgraded one after another, so two releases that follow each other speak to each other:
- a field is only ever added at the end, with a default that means "the sender is of the release before": that release
  leaves it alone, this one does without it. What must not be left alone is no field but a route of its own, to which
  the release before answers 404: whoever asks takes that for "not yet".
- a field is never moved, taken away or given another meaning; its type is only ever widened, and what only the wider
  type holds is sent a release later.
- in JSON between sites (`POST /v1/admin/sites/join`) the first release refuses a member that it does not know, so none
  is added; what one site must know of the other beforehand it asks (`GET /v1/admin/sites`).
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from tierstore.wire.names import ObjectMeta

#: A count, size, place or time: what a column of the catalog holds.
Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
#: A version id of an object (0 would mean "the latest").
Version = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
Versioning = Annotated[str, Meta(pattern=r"^(enabled|suspended)?\Z")]
Etag = Annotated[str, Meta(max_length=4096, pattern=r"^[^\r\n\x00]*\Z")]
Kind = Annotated[int, Meta(ge=1, le=4)]
#: A token of ours, for a header.
Token = Annotated[str, Meta(min_length=1, max_length=512, pattern=r"^[!-~]+\Z")]

#: `user` of the keys that sites hold: this, then the name of the site that shows it.
SITE_USER: Final = "site:"

#: Kinds of a NameRecord.
NAME_PUT: Final = 1        # that version exists
NAME_MARKER: Final = 2     # that version is a delete marker (in a bucket without versioning: a tombstone)
NAME_GONE: Final = 3       # that version was removed for good
NAME_META: Final = 4       # its metadata was replaced

#: Bytes of one FetchItem at most: a break costs no more than this.
SEGMENT_BYTES: Final = 8 << 20
#: Under a sync rule bodies up to this travel with their name; larger ones are fetched, two round trips later.
PUSH_BYTES_MAX: Final = 8 * SEGMENT_BYTES
NAMES_MAX: Final = 512
FETCHES_MAX: Final = 64
HOLDS_MAX: Final = 64
SEEN_MAX: Final = 1000


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """epoch and sequence: of the sender's catalog, mark: a checksum of its change at that sequence; all 0 until the
    receiver has said what it knows of them and the sender has compared. confirmed_ms_ago: since when the receiver is
    known to have had everything of the sender, -1: not yet."""

    site: str
    at_ms: Number
    cluster_id: str = ""
    epoch: Number = 0
    sequence: Number = 0
    confirmed_ms_ago: Annotated[int, Meta(ge=-1, le=(1 << 63) - 1)] = -1
    mark: Number = 0


class HelloAnswer(msgspec.Struct, array_like=True, frozen=True):
    """seen_epoch, seen_sequence, seen_mark: the newest that the answering site had heard of the sender's catalog before
    this hello."""

    site: str
    at_ms: Number
    cluster_id: str = ""
    seen_epoch: Number = 0
    seen_sequence: Number = 0
    seen_mark: Number = 0


class Compare(msgspec.Struct, array_like=True, frozen=True):
    """The sender's catalog went back in time: send it all names of shared buckets. To be repeated until `left` is 0."""

    site: str
    epoch: Number


class CompareAnswer(msgspec.Struct, array_like=True, frozen=True):
    left: Number


class BodyName(msgspec.Struct, array_like=True, frozen=True):
    """One version, whose body is meant."""

    bucket: str
    key: str
    version: Version


class Holds(msgspec.Struct, array_like=True, frozen=True):
    """The sender would let go of its copies of these bodies; or (seen) of these tombstones."""

    bodies: list[BodyName]


class HoldsAnswer(msgspec.Struct, array_like=True, frozen=True):
    """held: one for each that was asked about, in order: whether the answering site has the body for good; or (seen)
    whether it has nothing older than the tombstone, and nobody who writes to it can send it that."""

    held: list[bool]


class NameRecord(msgspec.Struct, array_like=True, frozen=True):
    """One version as the sender has it."""

    bucket: str
    key: str
    kind: Kind
    version: Version
    size: Number = 0
    etag: Etag = ""
    created_at_ms: Number = 0
    is_null: bool = True
    meta: ObjectMeta | None = None


class NameBatch(msgspec.Struct, array_like=True, frozen=True):
    """buckets: name -> versioning, of the buckets that are named; homes: name -> home site, of those that have one;
    told: name -> (prefix, site) that hear the same from the sender itself, so that the receiver does not pass it on to
    them."""

    site: str
    names: list[NameRecord]
    buckets: dict[str, Versioning] = {}
    homes: dict[str, str] = {}
    told: dict[str, list[tuple[str, str]]] = {}


class NameAnswer(msgspec.Struct, array_like=True, frozen=True):
    """applied: changed something here; lost: an equal or later version was here already; parked: places in the batch
    that were not taken, to be sent again: their version lies more than a day ahead of this site's clock, or their
    metadata could not be sent in headers."""

    applied: Number
    lost: Number
    parked: list[Number] = []


class FetchItem(msgspec.Struct, array_like=True, frozen=True):
    """is_cached: it is a part that follows because it is hot; the receiver may let go of it again."""

    bucket: str
    key: str
    version: Version
    first: Number
    length: Number
    is_cached: bool = False


class FetchBatch(msgspec.Struct, array_like=True, frozen=True):
    items: list[FetchItem]


class FetchResult(msgspec.Struct, array_like=True, frozen=True):
    """bytes: how many travelled (0: they were here). code "" when they are durable here."""

    code: str = ""
    detail: str = ""
    bytes: Number = 0


class FetchAnswer(msgspec.Struct, array_like=True, frozen=True):
    results: list[FetchResult]


class Push(msgspec.Struct, array_like=True, frozen=True):
    """A name and bytes [first, first + len(data)) of its body; crc32c: of `data`."""

    site: str
    name: NameRecord
    versioning: Versioning
    first: Number
    crc32c: Number
    data: bytes


class PushAnswer(msgspec.Struct, array_like=True, frozen=True):
    """code "": name and bytes are durable here, or a later version stands here. bytes: how many were stored."""

    code: str = ""
    detail: str = ""
    bytes: Number = 0


class Peer(msgspec.Struct, array_like=True, frozen=True):
    """Another site, as metadata tells its gateways. token: ours for it. latency_ms: 0 when not measured."""

    name: str
    number: int
    gateways: list[str]
    token: str
    networks: list[str] = []
    latency_ms: float = 0.0


class Peers(msgspec.Struct, array_like=True, frozen=True):
    """networks: of this site."""

    site: str
    peers: list[Peer] = []
    networks: list[str] = []


class BucketRule(msgspec.Struct, array_like=True, frozen=True):
    """A replication rule of a bucket; see services/names/buckets for the words."""

    prefix: str
    target: str
    mode: str = "async"
    bodies: str = "all"
    on_failure: str = "degrade"


class RulesAsk(msgspec.Struct, array_like=True, frozen=True):
    """rules None: only say which there are."""

    bucket: str
    rules: list[BucketRule] | None = None


class RulesAnswer(msgspec.Struct, array_like=True, frozen=True):
    """sites: those that a rule may name."""

    rules: list[BucketRule]
    sites: list[str]


class NewKey(msgspec.Struct, array_like=True, frozen=True):
    """A new token for the receiver's site to show here; its old one ends when the answer has come."""

    token: Token
