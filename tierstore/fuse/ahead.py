"""How far the kernel reads ahead in a mount: larger requests, fewer of them. Only root may set it; others keep 128 KiB.

Measured (a stream of 256 MiB): 20 to 30 % less CPU in the mount than with 128 KiB.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from tierstore.telemetry.log import get_logger

log = get_logger("mount")

READ_AHEAD_KIB: Final = 1024
#: How spaces and the like stand in mountinfo.
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


def device_of(directory: str, mounts: bytes) -> str | None:
    """The device ("0:57") of the newest mount on a directory, from the text of /proc/self/mountinfo. A stat would be a
    request to the mount itself, which is not serving yet."""
    found = None
    for line in mounts.splitlines():
        fields = line.split(b" ")
        if len(fields) > 4 and _OCTAL.sub(lambda code: bytes([int(code[1], 8)]), fields[4]) == os.fsencode(directory):
            found = fields[2].decode()
    return found


def read_far_ahead(directory: str) -> None:
    """Have the kernel read READ_AHEAD_KIB ahead on the mount. Without the right to say so: as it is."""
    where = os.path.join(os.path.realpath(os.path.dirname(directory)), os.path.basename(directory))
    try:
        device = device_of(where, Path("/proc/self/mountinfo").read_bytes())
        if device is None:
            return
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(READ_AHEAD_KIB))
    except OSError as error:
        log.debug("the kernel reads ahead as far as it does by itself", error=str(error))
