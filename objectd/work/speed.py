"""How fast a device reads: declared, simulated, or measured once at start in a bounded time.

Owns no state. The figures order replicas and feed the promoter; an error of a factor of two does no harm, so a short
look is enough: up to SAMPLES small reads and one sequential run through a probe file beside the device's directory
content, past the page cache where the file system can. Invariant: never longer than about BUDGET_SECONDS per phase, and
the probe file is gone afterwards.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from dataclasses import dataclass
from typing import Final

from objectd.work.diskread import PIECE_BYTES, DiskReader
from tierstore.errors import TierstoreError
from tierstore.names import Tier

PROBE_BYTES: Final = 4 << 20
SAMPLES: Final = 16
SMALL_READ_BYTES: Final = 4096
BUDGET_SECONDS: Final = 0.15


@dataclass(frozen=True, slots=True)
class Speed:
    read_ms: float
    read_bytes_per_second: float


#: What is assumed of a tier that could not be measured: service times of the policy's model (docs/concepts/tiering.md).
TYPICAL: Final[dict[Tier, Speed]] = {
    "mem": Speed(0.01, 8e9),
    "nvme": Speed(0.1, 3e9),
    "ssd": Speed(0.1, 2e9),
    "hdd": Speed(8.0, 160e6),
}


def measure(directory: str, tier: Tier, rng: random.Random) -> Speed:
    """Measure a directory; TYPICAL when it cannot be. Blocking, about 2 x BUDGET_SECONDS: run it off the loop."""
    path = os.path.join(directory, f".speed-{os.getpid()}")
    typical = TYPICAL[tier]
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return typical
    try:
        os.unlink(path)     # gone whatever happens from here on
        for at in range(0, PROBE_BYTES, PIECE_BYTES):
            os.pwrite(fd, rng.randbytes(4096) * (PIECE_BYTES // 4096), at)
        os.fdatasync(fd)
        with contextlib.closing(DiskReader(fd)) as reader:
            return _measured(reader, rng)
    except (OSError, TierstoreError):
        return typical      # full or sick: the device's own state tells, speed is not the place
    finally:
        os.close(fd)


def _measured(reader: DiskReader, rng: random.Random) -> Speed:
    spent: list[float] = []
    end = time.perf_counter() + BUDGET_SECONDS
    for _ in range(SAMPLES):
        began = time.perf_counter()
        reader.read(rng.randrange(PROBE_BYTES // SMALL_READ_BYTES) * SMALL_READ_BYTES, SMALL_READ_BYTES)
        spent.append(time.perf_counter() - began)
        if time.perf_counter() > end:
            break
    began, count = time.perf_counter(), 0
    for at in range(0, PROBE_BYTES, PIECE_BYTES):
        count += len(reader.read(at, PIECE_BYTES))
        if time.perf_counter() > began + BUDGET_SECONDS:
            break
    middle = sorted(spent)[len(spent) // 2]
    return Speed(middle * 1000, count / max(time.perf_counter() - began, 1e-6))
