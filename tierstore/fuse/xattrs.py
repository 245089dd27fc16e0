"""Which extended attributes a mount keeps, by their names."""

from __future__ import annotations

import errno
from typing import Final

from pyfuse3 import FUSEError

#: Not kept here. "Not supported" rather than "no data": then `ls` asks once for each file system, not for each file.
_REFUSED: Final = ("system.posix_acl_access", "system.posix_acl_default", "security.selinux")
_CLASSES: Final = ("user.", "trusted.", "security.", "system.")


def attribute_name(name: bytes) -> str:
    """The name as it is stored. Raises FUSEError(EOPNOTSUPP, EINVAL, EILSEQ)."""
    text = name.decode(errors="surrogateescape")
    if text in _REFUSED or not text.startswith(_CLASSES):
        raise FUSEError(errno.EOPNOTSUPP)
    if text in _CLASSES:
        raise FUSEError(errno.EINVAL)       # a class, and no name in it
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FUSEError(errno.EILSEQ) from None
    return text
