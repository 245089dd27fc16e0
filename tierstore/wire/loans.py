"""Messages between an object server and a reader on the same machine, which is lent the open file of a chunk.

They pass a Unix socket that keeps message boundaries, one message a question and one an answer; the descriptor travels
beside a granted answer. Owns their form and the socket's name, which follows from the address that the server
advertises: whoever knows the cluster map finds the socket, and where there is none the machine is another one.

Form, little-endian. Question: number u32, first block u32, last block u32, 1 if the reader can wait for the disk u8,
then the read ticket. Answer: the same
number u32, 1 if granted u8, 1 if the file lies in memory u8, length of the tier u8, where the data begins u64; then the
tier and the block sums of the whole chunk (u32 each), both empty when not granted.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, NamedTuple

from tierstore.errors import RequestError

_QUESTION: Final = struct.Struct("<IIIB")
_ANSWER: Final = struct.Struct("<IBBBQ")
#: Longer than any ticket.
_TICKET_BYTES_MAX: Final = 256
QUESTION_BYTES_MAX: Final = _QUESTION.size + _TICKET_BYTES_MAX
#: Head, tier and the sums of a chunk of 64 MiB; a server does not lend what needs more.
ANSWER_BYTES_MAX: Final = 8 * 1024
_TIER_BYTES_MAX: Final = 16
SUMS_BYTES_MAX: Final = ANSWER_BYTES_MAX - _ANSWER.size - _TIER_BYTES_MAX
#: Questions of one reader that are not answered; their answers fit the socket's buffer, so that a server need not wait.
QUESTIONS_MAX: Final = 16


class Question(NamedTuple):
    """May I read blocks first..last of the ticket's chunk? can_wait: also if they are not in the page cache."""

    number: int
    first_block: int
    last_block: int
    ticket: bytes
    can_wait: bool = False


class Answer(NamedTuple):
    """is_memory: the file lies in a memory file system, so that reading it never waits for a disk."""

    number: int
    is_granted: bool
    is_memory: bool = False
    data_offset: int = 0
    tier: str = ""
    sums: bytes = b""


def socket_name(url: str) -> bytes:
    """The abstract address (Linux, unix(7)) of the server that advertises `url`. The number is the form's: processes
    of another form do not find each other, and use the network."""
    return b"\0tierstore-loans2-" + hashlib.blake2b(url.encode(), digest_size=16).hexdigest().encode("ascii")


def pack_question(question: Question) -> bytes:
    head = _QUESTION.pack(question.number, question.first_block, question.last_block, question.can_wait)
    return head + question.ticket


def unpack_question(message: bytes) -> Question:
    """Raises RequestError for another form."""
    if not _QUESTION.size < len(message) < QUESTION_BYTES_MAX:
        raise RequestError(f"a question for a loan of {len(message)} bytes", code="bad-request")
    number, first_block, last_block, can_wait = _QUESTION.unpack_from(message)
    return Question(number, first_block, last_block, message[_QUESTION.size :], bool(can_wait))


def pack_answer(answer: Answer) -> bytes:
    tier = answer.tier.encode("ascii")
    assert len(tier) <= _TIER_BYTES_MAX and len(answer.sums) <= SUMS_BYTES_MAX, "the answer is too long"
    head = _ANSWER.pack(answer.number, answer.is_granted, answer.is_memory, len(tier), answer.data_offset)
    return b"".join((head, tier, answer.sums))


def unpack_answer(message: bytes) -> Answer:
    """Raises RequestError for another form."""
    if len(message) < _ANSWER.size:
        raise RequestError(f"an answer about a loan of {len(message)} bytes", code="bad-request")
    number, is_granted, is_memory, tier_bytes, data_offset = _ANSWER.unpack_from(message)
    end = _ANSWER.size + tier_bytes
    if end > len(message):
        raise RequestError("an answer about a loan ends in its tier", code="bad-request")
    tier = message[_ANSWER.size : end].decode("latin-1")
    return Answer(number, bool(is_granted), bool(is_memory), data_offset, tier, message[end:])
