"""The quarantine: bad bytes put aside for people, each with a JSON that says where they were and why.

Invariant: what lies here is never served and never counted; nothing here is removed by the program.
"""

from __future__ import annotations

import json
import os
from typing import Final

from objectd.store.layout import replace_file
from tierstore.failpoints import hit

COPY_BYTES_MAX: Final = 256 * 1024 * 1024   # of one bad range; the JSON tells its whole length
_PIECE: Final = 1024 * 1024


def keep_range(directory: str, *, name: str, fd: int, offset: int, count: int, wall_ms: int, why: str,
               chunk: bytes = b"") -> None:
    """Copy a bad range of a segment aside; durable when it returns. Unreadable parts are left out. Blocking."""
    path = os.path.join(directory, name)
    copied = 0
    with open(path, "wb") as file:
        while copied < min(count, COPY_BYTES_MAX):
            try:
                piece = os.pread(fd, min(_PIECE, count - copied), offset + copied)
            except OSError:
                break   # the JSON's `copied` tells; the range is bad anyway
            if not piece:
                break
            file.write(piece)
            copied += len(piece)
        file.flush()
        hit("store.quarantine.before_sync")
        os.fsync(file.fileno())
    describe(directory, name=name, wall_ms=wall_ms, why=why, chunk=chunk, offset=offset, count=count, copied=copied)


def describe(directory: str, *, name: str, wall_ms: int, why: str, chunk: bytes = b"", offset: int = 0,
             count: int = 0, copied: int = 0) -> None:
    """Write NAME.json beside what was put aside; durable when it returns. Blocking."""
    about = {"chunk": chunk.hex(), "offset": offset, "bytes": count, "copied": copied, "at_ms": wall_ms, "why": why}
    replace_file(os.path.join(directory, name + ".json"), json.dumps(about, indent=1).encode() + b"\n")
