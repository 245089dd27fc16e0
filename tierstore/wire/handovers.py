"""Messages between an object server and a writer on the same machine, which hands over a chunk in shared memory.

They pass a Unix socket that keeps message boundaries, one message a chunk and one an answer; the descriptor of the
memory travels beside the first. Owns their form and the socket's name, as wire.loans does for readers.

Form, little-endian. Chunk: number u32, index u32, bytes of data u32, length of the ticket u16, length of the name u16;
then the write ticket, the name (UTF-8) and the block sums (u32 each). The data lies at the beginning of the memory.
Answer: the same number u32, status u16 as in HTTP; then the receipt (200), or the problem document.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, NamedTuple

from tierstore.checksum import SUM_BYTES, block_count
from tierstore.errors import RequestError
from tierstore.wire.hints import HINT_BYTES_MAX

_CHUNK: Final = struct.Struct("<IIIHH")
_ANSWER: Final = struct.Struct("<IH")
#: Longer than any ticket.
_TICKET_BYTES_MAX: Final = 256
#: What is larger goes by the network: a message, with its sums, must fit the socket's buffer.
HANDOVER_BYTES_MAX: Final = 16 << 20
MESSAGE_BYTES_MAX: Final = (
    _CHUNK.size + _TICKET_BYTES_MAX + HINT_BYTES_MAX + block_count(HANDOVER_BYTES_MAX) * SUM_BYTES
)
ANSWER_BYTES_MAX: Final = 8 * 1024
#: Chunks of one writer that are not answered; further ones go by the network.
HANDOVERS_MAX: Final = 32


class Chunk(NamedTuple):
    """Store this chunk. place: its index in the upload."""

    number: int
    place: int
    chunk_bytes: int
    ticket: bytes
    name: str
    sums: bytes


class Answer(NamedTuple):
    """body: the receipt (status 200) or a problem document."""

    number: int
    status: int
    body: bytes


def socket_name(url: str) -> bytes:
    """The abstract address (Linux, unix(7)) of the server that advertises `url`. The number is the form's."""
    return b"\0tierstore-handovers1-" + hashlib.blake2b(url.encode(), digest_size=16).hexdigest().encode("ascii")


def packed_bytes(chunk: Chunk) -> int:
    """Length of its message."""
    return _CHUNK.size + len(chunk.ticket) + len(chunk.name.encode()) + len(chunk.sums)


def pack_chunk(chunk: Chunk, number: int) -> bytes:
    """The message, with that number in place of the chunk's own."""
    name = chunk.name.encode()
    head = _CHUNK.pack(number, chunk.place, chunk.chunk_bytes, len(chunk.ticket), len(name))
    return b"".join((head, chunk.ticket, name, chunk.sums))


def unpack_chunk(message: bytes) -> Chunk:
    """Raises RequestError for another form."""
    if not _CHUNK.size < len(message) <= MESSAGE_BYTES_MAX:
        raise RequestError(f"a chunk handed over by a message of {len(message)} bytes", code="bad-request")
    number, place, chunk_bytes, ticket_bytes, name_bytes = _CHUNK.unpack_from(message)
    ticket_end = _CHUNK.size + ticket_bytes
    name_end = ticket_end + name_bytes
    sums = message[name_end:]
    if not 0 < chunk_bytes <= HANDOVER_BYTES_MAX or len(sums) != block_count(chunk_bytes) * SUM_BYTES:
        raise RequestError("a chunk handed over has other sums than its length asks for", code="bad-request")
    name = message[ticket_end:name_end].decode("utf-8", "replace")
    return Chunk(number, place, chunk_bytes, message[_CHUNK.size : ticket_end], name, sums)


def pack_answer(answer: Answer) -> bytes:
    return _ANSWER.pack(answer.number, answer.status) + answer.body


def unpack_answer(message: bytes) -> Answer:
    """Raises RequestError for another form."""
    if len(message) < _ANSWER.size:
        raise RequestError(f"an answer about a chunk of {len(message)} bytes", code="bad-request")
    number, status = _ANSWER.unpack_from(message)
    return Answer(number, status, message[_ANSWER.size :])
