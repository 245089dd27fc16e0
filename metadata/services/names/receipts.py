"""Are the receipts of a commit genuine, and do they prove enough copies? Rules 3, 4 and 11 at the commit.

No I/O: the facts (ticket keys, devices, servers) are handed in, read in the commit's own transaction. A chunk is opened
once (signatures, packed form), before the transaction's facts are known; what depends on them is judged afterwards.
Cost: about 1.5 us a receipt, half of it the MAC, and 1 us a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from metadata.catalog.members import REFUSED_STATES
from metadata.catalog.packed import pack_new
from tierstore.errors import ConflictError, RequestError, TicketRefused, UnavailableError
from tierstore.ticket import ROLE_CACHE, ROLE_HOME, receipt_fields
from tierstore.wire.names import CommitChunk

#: Receipts that one chunk may come with (copies and cache copies).
RECEIPTS_MAX = 32


class Opened(NamedTuple):
    """A chunk whose receipts are genuine. packed: with a replica for each of `places` (device, role, segment, offset);
    homes: different servers that hold a home copy; writers: (device, server, incarnation) of each place, to be
    compared with the members; extras_from: the places from there on were sent as cache copies."""

    packed: bytes
    homes: int
    writers: list[tuple[int, int, int]]
    places: list[tuple[int, int, int, int]]
    extras_from: int


@dataclass(slots=True)
class Members:
    """Devices and servers as the transaction sees them: id -> (server, state) and id -> (incarnation, state)."""

    devices: dict[int, tuple[int, str]] = field(default_factory=dict)
    servers: dict[int, tuple[int, str]] = field(default_factory=dict)
    #: Writers that have been compared in this transaction and may take part.
    admitted: set[tuple[int, int, int]] = field(default_factory=set)

    def refusal(self, writer: tuple[int, int, int]) -> ConflictError | None:
        """Why a device may not take part (drained, removed, moved, of another incarnation); None: it may."""
        device, server, incarnation = writer
        server_id, state = self.devices.get(device, (0, "unknown"))
        present, server_state = self.servers.get(server, (0, "unknown"))
        if server_id == server and state not in REFUSED_STATES and server_state not in REFUSED_STATES:
            if present == incarnation:
                self.admitted.add(writer)
                return None
            why = f"server {server} has restarted since (incarnation {present}, was {incarnation})"
        else:
            why = f"device {device} of server {server} is {state}, its server {server_state}"
        return ConflictError(
            f"{why}: write the chunk again elsewhere", code="device-refused", device=device, server=server
        )


def open_all(chunks: Sequence[CommitChunk], keys: Mapping[int, Mapping[int, bytes]]) -> list[Opened]:
    """Each chunk with its receipts opened. Raises TicketRefused unless each was signed by its server for exactly this
    chunk."""
    return [_open(chunk, keys) for chunk in chunks]


def _open(chunk: CommitChunk, keys: Mapping[int, Mapping[int, bytes]]) -> Opened:
    if len(chunk.receipts) + len(chunk.cache_receipts) > RECEIPTS_MAX:
        raise RequestError(f"more than {RECEIPTS_MAX} receipts for one chunk", code="too-many-receipts")
    chunk_id, chunk_bytes, crc = chunk.id, chunk.chunk_bytes, chunk.crc32c
    if len(chunk.receipts) == 2 and not chunk.cache_receipts:
        # Two copies on two servers, which nearly all chunks have.
        first, second = chunk.receipts
        _, _, server, device, its_chunk, segment, its_bytes, offset, its_crc, life = receipt_fields(first, keys)
        _, _, server2, device2, chunk2, segment2, bytes2, offset2, crc2, life2 = receipt_fields(second, keys)
        if (
            its_chunk == chunk_id == chunk2 and its_bytes == chunk_bytes == bytes2 and its_crc == crc == crc2
            and server != server2 and device != device2
        ):  # fmt: skip
            both = [(device, ROLE_HOME, segment, offset), (device2, ROLE_HOME, segment2, offset2)]
            return Opened(
                pack_new(chunk_id, chunk_bytes, crc, both), 2, [(device, server, life), (device2, server2, life2)],
                both, 2,
            )  # fmt: skip
    homes: set[int] = set()
    devices: set[int] = set()
    places: list[tuple[int, int, int, int]] = []
    writers: list[tuple[int, int, int]] = []
    role, extras_from = ROLE_HOME, 0
    for texts in (chunk.receipts, chunk.cache_receipts):
        for text in texts:
            _, _, server, device, its_chunk, segment, its_bytes, offset, its_crc, life = receipt_fields(text, keys)
            if its_chunk != chunk_id or its_bytes != chunk_bytes or its_crc != crc:
                raise TicketRefused(
                    f"a receipt of server {server} is for other data than chunk {chunk_id.hex()}",
                    code="receipt-mismatch",
                )
            if device in devices:
                continue
            devices.add(device)
            writers.append((device, server, life))
            if role == ROLE_HOME and server not in homes:
                homes.add(server)
                places.append((device, ROLE_HOME, segment, offset))
            else:
                # Two home replicas never share a server (rule 4): the second one is extra.
                places.append((device, ROLE_CACHE, segment, offset))
        if role == ROLE_HOME:
            role, extras_from = ROLE_CACHE, len(places)
    # Without a receipt nothing says that the numbers fit the packed form; such a chunk is refused for want of homes.
    packed = pack_new(chunk_id, chunk_bytes, crc, places) if places else b""
    return Opened(packed, len(homes), writers, places, extras_from)


def pack_bodies(
    chunks: Sequence[CommitChunk], opened: Sequence[Opened], members: Members, copies: int
) -> list[bytes]:
    """The packed form of each chunk with its replicas.

    Raises ConflictError(code="device-refused") for a device that may not take part, UnavailableError(
    code="not-enough-servers") when the home copies lie on fewer than `copies` different servers: the writer places the
    chunk elsewhere and comes again."""
    packed = []
    for chunk, of_chunk in zip(chunks, opened, strict=True):
        body = of_chunk.packed
        if not members.admitted.issuperset(of_chunk.writers):
            places = _admitted(of_chunk, members)
            if len(places) < len(of_chunk.places):
                body = pack_new(chunk.id, chunk.chunk_bytes, chunk.crc32c, places)
        if of_chunk.homes < copies:
            raise UnavailableError(
                f"chunk {chunk.id.hex()} is stored on {of_chunk.homes} servers, {copies} are needed",
                code="not-enough-servers", servers=of_chunk.homes, copies=copies,
            )  # fmt: skip
        packed.append(body)
    return packed


def _admitted(of_chunk: Opened, members: Members) -> list[tuple[int, int, int, int]]:
    """The places that may take part. A cache copy that may not is left out: it is extra, and its bytes are found and
    dropped as an orphan's. Raises ConflictError for any other."""
    places = []
    for at, writer in enumerate(of_chunk.writers):
        refusal = None if writer in members.admitted else members.refusal(writer)
        if refusal is None:
            places.append(of_chunk.places[at])
        elif at < of_chunk.extras_from:
            raise refusal
    return places
