"""How much of an object server's job slots a job takes. Pure; metadata hands out by it and object servers count by it.

A slot is for work that keeps a device busy by itself. Small chunks that move between tiers, and single deletions, are a
record each in the log of one device: dozens of them share a sync, a lease and a report, but only if they are there at
the same moment. So such a job takes a part of a slot. Promotions read slow devices, where each is a seek that clients'
reads would stand behind: an object server reads for no more of them at once than it has slots (objectd/work/copy), the
others wait. All other copies take a whole one, however small.

Invariant: what runs at once in a slot is UNITS records and BUNDLE_BYTES at most, so a client's read waits at a disk of
160 MB/s for 7 ms behind one slot's write.
"""

from __future__ import annotations

from typing import Final

#: Parts of a slot.
UNITS: Final = 32
BUNDLE_BYTES: Final = 1 << 20
#: Reasons of copies between tiers.
_BETWEEN_TIERS: Final = frozenset({"settle", "promote"})
_SINGLE_DELETE: Final = "demote"


def units_of(kind: str, why: str, chunk_bytes: int) -> int:
    """1 to UNITS. chunk_bytes: of a copy."""
    if kind == "copy" and why in _BETWEEN_TIERS:
        return min(UNITS, max(1, -(-chunk_bytes * UNITS // BUNDLE_BYTES)))
    if kind == "delete" and why == _SINGLE_DELETE:
        return 1
    return UNITS
