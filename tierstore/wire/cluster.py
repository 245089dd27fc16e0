"""Registration, heartbeat, jobs and the cluster map: what daemons and metadata tell each other.

Direction is always daemon -> metadata; metadata's wishes come back in answers (firewalls stay simple).
Times are catalog time, ms since 1970, unless a name says otherwise.
"""

from __future__ import annotations

from typing import Final

import msgspec

#: A gateway that forwards a request names the user by it, and where he comes from: "<address> <http or https>".
ACCESS_HEADER: Final = "x-tierstore-access"
FROM_HEADER: Final = "x-tierstore-from"


class DeviceReport(msgspec.Struct, array_like=True, frozen=True):
    """A device as its server sees it. uuid: 16 bytes written when it was formatted. seen_sequence: the highest catalog
    commit sequence that is written on it (rule 1)."""

    uuid: bytes
    tier: str
    path: str
    capacity_bytes: int
    used_bytes: int = 0
    trash_bytes: int = 0
    garbage_bytes: int = 0
    state: str = "ok"             # ok | read-only | failed | full
    detail: str = ""
    chunks: int = 0
    seen_sequence: int = 0
    read_ms: float = 0.0          # measured or declared latency of a small read
    read_bytes_per_second: float = 0.0
    queue: float = 0.0            # mean requests waiting since the last heartbeat
    cluster_id: str = ""


class Register(msgspec.Struct, array_like=True, frozen=True):
    """A daemon (role gateway or objectd) joins or comes back. incarnation rises by one with each start and is kept on
    the server's disk. join_token is needed only the first time; later `secret` from the answer is the credential."""

    role: str
    name: str
    url: str                      # the one advertised address
    instance: bytes               # 16 bytes, kept on disk: tells servers of the same name apart
    incarnation: int = 1
    join_token: str = ""
    devices: list[DeviceReport] = []
    failure_domain: str = ""
    software: str = ""


class DeviceGrant(msgspec.Struct, array_like=True, frozen=True):
    uuid: bytes
    device: int                   # DeviceId
    state: str = "ok"             # ok | draining | removed


class TicketKey(msgspec.Struct, array_like=True, frozen=True):
    id: int
    key: bytes


class Registered(msgspec.Struct, array_like=True, frozen=True):
    cluster_id: str
    server: int                   # ServerId
    secret: str                   # bearer credential for later calls
    site: str
    site_id: int
    now_ms: int
    devices: list[DeviceGrant] = []
    ticket_keys: list[TicketKey] = []
    heartbeat_seconds: float = 1.0


class JobReport(msgspec.Struct, array_like=True, frozen=True):
    """Result (done True) or progress of a job under its fencing token."""

    id: int
    token: int
    done: bool
    code: str = ""                # "" = succeeded
    detail: str = ""
    receipt: bytes = b""          # copy jobs: the new copy's receipt
    bytes_moved: int = 0
    progress: float = 0.0         # 0..1


class BadChunk(msgspec.Struct, array_like=True, frozen=True):
    """A copy that failed its checksum or is missing; found by a reader or by the scrub; quarantined if found here."""

    chunk: bytes
    device: int
    why: str                      # bad-block | missing | bad-footer


class Heartbeat(msgspec.Struct, array_like=True, frozen=True):
    """heat: 18 bytes per distinct chunk read since heat_sequence - 1: chunk id, float16 little-endian count of whole
    reads (a ranged read counts its share of the bytes). Resent with the same sequence until acknowledged."""

    server: int
    incarnation: int
    sequence: int
    devices: list[DeviceReport] = []
    heat: bytes = b""
    heat_sequence: int = 0
    heat_seconds: float = 0.0
    reports: list[JobReport] = []
    bad_chunks: list[BadChunk] = []
    job_slots: int = 0            # how many more jobs it would take
    load: float = 0.0             # 0..1, share of the last second its loop was busy
    in_flight: int = 0
    state: str = "up"             # up | draining (announced restart) | stopping
    served: dict[str, tuple[int, int]] = {}   # tier -> client reads and their bytes since this incarnation began
    mem_used_bytes: int = 0       # chunks kept in this server's RAM, and the bound
    mem_capacity_bytes: int = 0


class CopySource(msgspec.Struct, array_like=True, frozen=True):
    url: str
    server: int
    device: int
    ticket: bytes                 # read ticket with NO_HEAT


class Job(msgspec.Struct, array_like=True, frozen=True):
    """One unit of background work, leased to an object server until lease_ms.

    kind: copy (fetch `chunk` from sources, which may be an own device, to `device`, verify, sync, report the receipt)
    · delete (`batch` to the trash, under this token only) · verify (read `chunk` on `device`, check every block)
    · undelete (take `batch` back from the trash) · inventory (send the list of chunks, see Inventory).
    `batch`: chunk ids, 16 bytes each, back to back.
    """

    id: int
    token: int                    # fencing: rises with every lease of this job
    kind: str
    device: int
    chunk: bytes = b""
    chunk_bytes: int = 0
    crc32c: int = 0
    generation: int = 0
    segment: int = 0
    offset: int = 0
    sources: list[CopySource] = []
    lease_ms: int = 0
    rate_bytes_per_second: int = 0    # 0: no limit
    why: str = ""                 # repair | drain | promote | demote | collect | scrub | reconcile
    batch: bytes = b""
    discard: bool = False         # delete: cache copies, which are extra: freed at once, not kept in the trash
    since_ms: int = 0             # inventory: > 0: headers of the chunks stored since, and only those


class HeartbeatAnswer(msgspec.Struct, array_like=True, frozen=True):
    now_ms: int
    sequence: int                 # the catalog's commit sequence, to be noted on the devices
    map_revision: int
    heat_acknowledged: int = 0
    heat_url: str = ""            # who holds the promoter's lease, when it is another process
    jobs: list[Job] = []
    cancelled: list[int] = []     # job ids to give up
    ticket_keys: list[TicketKey] = []
    reregister: bool = False      # this incarnation is not known: register again
    scrub_bytes_per_second: int = 0
    trash_seconds: int = 86_400
    paused: bool = False
    auth_revision: int = -1       # when it differs, what was heard of keys and rights is stale; -1: not told
    policy_revision: int = -1     # when this or map_revision differs, the map held is stale; -1: not told


class ChunkHeader(msgspec.Struct, array_like=True, frozen=True):
    """What an object server knows of a chunk from its header or footer. stored_at_ms: by the server's own clock.
    name: the hint of tierstore.wire.hints."""

    chunk: bytes
    chunk_bytes: int
    crc32c: int
    stored_at_ms: int
    segment: int = 0
    offset: int = 0
    name: str = ""


class Inventory(msgspec.Struct, array_like=True, frozen=True):
    """A page of a device's chunks in id order: 16-byte ids, back to back, with sizes. after: the last id of the page
    before. The answer says which are unknown (orphans: to the trash) and which are missing here.

    since_ms > 0: the page answers a job that asked for headers: `ids` is empty, nothing is judged."""

    server: int
    incarnation: int
    device: int
    after: bytes
    ids: bytes
    sizes: list[int]
    is_last: bool
    since_ms: int = 0
    headers: list[ChunkHeader] = []


class InventoryAnswer(msgspec.Struct, array_like=True, frozen=True):
    """orphans: may go to the trash now (condemned before this answer was sent). later: cannot be judged yet."""

    orphans: list[bytes] = []
    later: int = 0


class ServerView(msgspec.Struct, array_like=True, frozen=True):
    id: int
    name: str
    role: str
    url: str
    site: str
    state: str                    # up | suspect | dead | draining | drained | stopping


class SiteView(msgspec.Struct, array_like=True, frozen=True):
    id: int
    name: str
    gateways: list[str] = []
    metadata: list[str] = []
    networks: list[str] = []


class ClusterMap(msgspec.Struct, array_like=True, frozen=True):
    """What clients need to talk to the servers directly."""

    cluster_id: str
    revision: int
    site: str
    servers: list[ServerView] = []
    sites: list[SiteView] = []
    policy_revision: int = 0
    policy: bytes = b""           # JSON of the policy document
    chunk_bytes: int = 8 << 20
    auth_revision: int = 0
    copies: int = 2
    read_soon: list[str] = []     # buckets whose new objects get a fast copy at once


class Credential(msgspec.Struct, array_like=True, frozen=True):
    """A key of a user or program. token_sha256: of its bearer token. secret: S3's secret key. grants: bucket name or
    "*" -> role (admin, readwrite, readonly)."""

    access: str
    user: str
    grants: dict[str, str]
    token_sha256: bytes = b""
    secret: str = ""
    enabled: bool = True
    policies: list[str] = []
    expires_at_ms: int = 0        # 0: never
