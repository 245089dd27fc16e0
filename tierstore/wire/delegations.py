"""Where a mount sees that a delegation of metadata still holds: a page of memory that both have mapped.

A delegation is metadata's word to one mount that nobody else has brought a name to one directory since it was read
whole. It is a number; it holds as long as it stands in its slot of the page. Metadata takes it out, for good, before
what another brings there can be seen by anybody. The page comes as a descriptor over a Unix socket, whose name only
callers of metadata are told; the connection says no more than that the process lives, by staying open.

Form of the page: SLOTS words of 64 bits, in the machine's order (it never leaves the machine); 0: nothing.
"""

from __future__ import annotations

from typing import Final

#: Delegations that hold at once, of all mounts together; a new one takes the place of the oldest.
SLOTS: Final = 1024
WORD_BYTES: Final = 8
PAGE_BYTES: Final = SLOTS * WORD_BYTES
#: The only message, beside which the descriptor travels.
GREETING: Final = b"\x01"


def slot_of(number: int) -> int:
    """The slot of a delegation."""
    return number % SLOTS


def socket_name(place: str) -> bytes:
    """The abstract address (Linux, unix(7)) of the process that says it is at `place`."""
    return b"\0tierstore-delegations1-" + place.encode("ascii")
