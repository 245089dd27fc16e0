"""Which path a file's number has now: what a handle of NFS is made of when the mount that gave it was restarted.

Rules only, in a scan's snapshot. A number is stored with its file, or made from bucket, key and version of an object
that no mount has touched, or from the path of a directory that only keys imply (services/names/posix).

Cost: a pass of the engine over the bucket's rows; numbers that are made, and were not found stored, another one here.
"""

from __future__ import annotations

from typing import Final

from metadata.catalog import numbers as catalog
from metadata.catalog.inodes import DIRECTORY, hidden
from metadata.catalog.numbers import Numbered
from metadata.catalog.queries import Connection
from metadata.services.names import posix

#: Numbers of one question.
NUMBERS_MAX: Final = 64


def paths_of(connection: Connection, bucket_id: int, wanted: list[int]) -> dict[int, str]:
    """Paths by number; those that nothing has (any more) are left out."""
    found: dict[int, str] = {}
    for row in catalog.holding(connection, (bucket_id, hidden(bucket_id)), wanted):
        held = posix.stored(row.meta)
        path = _path(row)
        if held is not None and held.ino in wanted and path is not None:
            found[held.ino] = path
    made = {number for number in wanted if number not in found and posix.is_made(number)}
    if made:
        _find_made(connection, bucket_id, made, found)
    return found


def _path(row: Numbered) -> str | None:
    """None: an open file without a name."""
    if row.bucket_id > 0:
        return row.key
    return row.key[len(DIRECTORY) : -1] if row.key.startswith(DIRECTORY) else None


def _find_made(connection: Connection, bucket_id: int, wanted: set[int], found: dict[int, str]) -> None:
    """Make the numbers of all keys, and of the directories on the way to them, until all are found."""
    above: list[str] = []       # directories of the last key: keys come in order, so each is seen in one stretch
    for page in catalog.pages(connection, bucket_id):
        for row in page:
            names = row.key.split("/")[:-1]
            for depth in range(len(names)):
                if names[: depth + 1] != above[: depth + 1]:
                    path = "/".join(names[: depth + 1])
                    _note(wanted, found, posix.inode_of(bucket_id, path + "/", 0), path)
            above = names
            if posix.stored(row.meta) is None:
                _note(wanted, found, posix.inode_of(bucket_id, row.key, row.version), row.key)
        if not wanted:
            return


def _note(wanted: set[int], found: dict[int, str], number: int, path: str) -> None:
    if number in wanted:
        wanted.discard(number)
        found[number] = path
