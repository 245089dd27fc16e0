"""Which errno a program gets for which error. Pure. What is not listed is EIO: the log says more."""

from __future__ import annotations

import errno
from typing import Final

from tierstore.errors import AccessDenied, CapacityError, NotAuthenticated, TierstoreError

OF_CODE: Final[dict[str, int]] = {
    "no-such-file": errno.ENOENT,
    "no-such-directory": errno.ENOENT,
    "no-such-bucket": errno.ENOENT,
    "file-exists": errno.EEXIST,
    "is-directory": errno.EISDIR,
    "not-directory": errno.ENOTDIR,
    "directory-not-empty": errno.ENOTEMPTY,
    "directory-busy": errno.EBUSY,
    "directory-too-large": errno.EXDEV,      # `mv` then copies file by file
    "directory-not-here": errno.EXDEV,
    "bad-rename": errno.EINVAL,
    "bad-path": errno.EILSEQ,
    "name-too-long": errno.ENAMETOOLONG,
    "too-many-links": errno.EMLINK,
    "stale-file": errno.ESTALE,
    "xattr-exists": errno.EEXIST,
    "no-such-xattr": errno.ENODATA,
    "xattrs-full": errno.ENOSPC,
    "too-large": errno.EFBIG,
    "quota-exceeded": errno.EDQUOT,
}


def errno_of(error: TierstoreError) -> int:
    known = OF_CODE.get(error.code)
    if known is not None:
        return known
    if isinstance(error, AccessDenied | NotAuthenticated):
        return errno.EACCES
    if isinstance(error, CapacityError):
        return errno.ENOSPC
    return errno.EIO


class FileError(Exception):
    """An operation ends with this errno; raised where no other process is asked."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.number = number
