"""Are the receipts of a commit genuine, and do they prove enough copies? Rules 3, 4 and 11 at the commit.

No I/O: the facts (ticket keys, devices, servers) are handed in, read in the commit's own transaction.
Cost: about 4 us a receipt, nearly all of it the MAC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from metadata.catalog.members import REFUSED_STATES
from metadata.catalog.packed import pack_new
from tierstore.errors import ConflictError, RequestError, TicketRefused, UnavailableError
from tierstore.ticket import ROLE_CACHE, ROLE_HOME, Receipt, open_receipt_of
from tierstore.wire.names import CommitChunk

#: Receipts that one chunk may come with (copies and cache copies).
RECEIPTS_MAX = 32


@dataclass(slots=True)
class Members:
    """Devices and servers as the transaction sees them: id -> (server, state) and id -> (incarnation, state)."""

    devices: dict[int, tuple[int, str]] = field(default_factory=dict)
    servers: dict[int, tuple[int, str]] = field(default_factory=dict)


def open_all(chunks: Sequence[CommitChunk], keys: Mapping[int, Mapping[int, bytes]]) -> list[list[tuple[Receipt, int]]]:
    """(receipt, role) of each chunk's receipts. Raises TicketRefused unless each was signed by its server for exactly
    this chunk."""
    opened = []
    for chunk in chunks:
        if len(chunk.receipts) + len(chunk.cache_receipts) > RECEIPTS_MAX:
            raise RequestError(f"more than {RECEIPTS_MAX} receipts for one chunk", code="too-many-receipts")
        of_chunk = []
        for role, texts in ((ROLE_HOME, chunk.receipts), (ROLE_CACHE, chunk.cache_receipts)):
            for text in texts:
                receipt = open_receipt_of(text, keys)
                if (
                    receipt.chunk != chunk.id
                    or receipt.chunk_bytes != chunk.chunk_bytes
                    or receipt.crc32c != chunk.crc32c
                ):
                    raise TicketRefused(
                        f"a receipt of server {receipt.server} is for other data than chunk {chunk.id.hex()}",
                        code="receipt-mismatch",
                    )
                of_chunk.append((receipt, role))
        opened.append(of_chunk)
    return opened


def pack_bodies(
    chunks: Sequence[CommitChunk], opened: Sequence[Sequence[tuple[Receipt, int]]], members: Members, copies: int
) -> list[bytes]:
    """The packed form of each chunk with its replicas.

    Raises ConflictError(code="device-refused") for a device that may not take part (drained, removed, moved, of
    another incarnation), UnavailableError(code="not-enough-servers") when the home copies lie on fewer than `copies`
    different servers: the writer places the chunk elsewhere and comes again."""
    packed = []
    for chunk, of_chunk in zip(chunks, opened, strict=True):
        homes: set[int] = set()
        devices: set[int] = set()
        places: list[tuple[int, int, int, int]] = []
        for receipt, role in of_chunk:
            refusal = _refusal(receipt, members)
            if refusal is not None:
                if role == ROLE_CACHE:
                    continue    # it is extra: left out, its bytes are found and dropped as an orphan's
                raise refusal
            if receipt.device in devices:
                continue
            devices.add(receipt.device)
            if role == ROLE_HOME:
                if receipt.server in homes:
                    # Two home replicas never share a server (rule 4): the second one is extra.
                    role = ROLE_CACHE
                homes.add(receipt.server)
            places.append((receipt.device, role, receipt.segment, receipt.offset))
        if len(homes) < copies:
            raise UnavailableError(
                f"chunk {chunk.id.hex()} is stored on {len(homes)} servers, {copies} are needed",
                code="not-enough-servers", servers=len(homes), copies=copies,
            )  # fmt: skip
        packed.append(pack_new(chunk.id, chunk.chunk_bytes, chunk.crc32c, places))
    return packed


def _refusal(receipt: Receipt, members: Members) -> ConflictError | None:
    """Why a device may not take part; None: it may."""
    server_id, state = members.devices.get(receipt.device, (0, "unknown"))
    incarnation, server_state = members.servers.get(receipt.server, (0, "unknown"))
    if server_id == receipt.server and state not in REFUSED_STATES and server_state not in REFUSED_STATES:
        if incarnation == receipt.incarnation:
            return None
        why = f"server {receipt.server} has restarted since (incarnation {incarnation}, was {receipt.incarnation})"
    else:
        why = f"device {receipt.device} of server {receipt.server} is {state}, its server {server_state}"
    return ConflictError(
        f"{why}: write the chunk again elsewhere", code="device-refused", device=receipt.device, server=receipt.server
    )
