"""A trace: recorded requests in order of time, as arrays; its CSV form; sampling by a hash of the key.

Owns the form `time,key,size,op` (time = seconds from the start, key = any text without a comma, size = bytes, op = GET,
PUT or DELETE) in which traces are published and exported. Keys of the form bucket/key give names, integers do not.
Pure: text in, arrays out; files and gzip are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from tierstore.errors import RequestError

GET: Final = 0
PUT: Final = 1
DELETE: Final = 2
OPERATIONS: Final = ("GET", "PUT", "DELETE")
COLUMNS: Final = "time,key,size,op"

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of time. key: small integers; size: bytes, one value per key is usual; op: GET, PUT, DELETE.

    names[key] is (bucket, object key), empty when unknown: then rules that match names do not apply and no prefixes are
    reported. start_at: seconds since 1970 of time 0 (schedules).
    """

    time: Floats
    key: Ints
    size: Ints
    op: npt.NDArray[np.uint8]
    names: Sequence[tuple[str, str]] = ()
    start_at: float = 0.0

    def __len__(self) -> int:
        return len(self.time)

    @property
    def footprint_bytes(self) -> int:
        """Bytes of all keys that are read, each once at its largest size."""
        is_read = self.op == GET
        if not is_read.any():
            return 0
        largest = np.zeros(int(self.key.max()) + 1, dtype=np.int64)
        np.maximum.at(largest, self.key[is_read], self.size[is_read])
        return int(largest.sum())

    def sampled(self, share: float) -> Trace:
        """The requests of about `share` of the keys, chosen by a hash of the key (spatial sampling, SHARDS)."""
        hashed = (self.key.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
        is_in = hashed < int(share * (1 << 24))
        return replace(self, time=self.time[is_in], key=self.key[is_in], size=self.size[is_in], op=self.op[is_in])

    def latest(self, hours: float) -> Trace:
        """The last `hours` of it."""
        is_in = self.time >= (float(self.time[-1]) - hours * 3600.0 if len(self) else 0.0)
        return replace(self, time=self.time[is_in], key=self.key[is_in], size=self.size[is_in], op=self.op[is_in])


def parse_csv(lines: Iterable[str]) -> Trace:
    """The trace of CSV lines (with or without line ends). Raises RequestError(code="bad-trace") naming the line.

    Requests must be in order of time, from 0 on; sizes below 0 are refused.
    """
    times: list[float] = []
    keys: list[int] = []
    sizes: list[int] = []
    ops: list[int] = []
    numbers: dict[str, int] = {}
    of = {name: n for n, name in enumerate(OPERATIONS)}
    rows = iter(lines)
    header = next(rows, "").strip()
    if header != COLUMNS:
        raise RequestError(f"line 1: a trace begins with {COLUMNS}, this one with {header[:60]!r}", code="bad-trace")
    last = 0.0
    for n, row in enumerate(rows, 2):
        try:
            time, key, size, op = row.rstrip("\r\n").split(",")
            at, length, kind = float(time), int(size), of[op]
        except (ValueError, KeyError):
            raise RequestError(
                f"line {n}: {row.strip()[:80]!r} is not {COLUMNS} with op one of {', '.join(OPERATIONS)}",
                code="bad-trace",
            ) from None
        if not last <= at < float("inf") or length < 0:
            raise RequestError(f"line {n}: times must not go back and sizes not be negative", code="bad-trace")
        last = at
        times.append(at)
        keys.append(numbers.setdefault(key, len(numbers)))
        sizes.append(length)
        ops.append(kind)
    is_named = bool(numbers) and all("/" in key for key in numbers)
    names = [(key.partition("/")[0], key.partition("/")[2]) for key in numbers] if is_named else []
    return Trace(np.array(times), np.array(keys, dtype=np.int64), np.array(sizes, dtype=np.int64),
                 np.array(ops, dtype=np.uint8), names)  # fmt: skip


def prefix_of(bucket: str, key: str) -> str:
    """What prefixes are reported by: the bucket and the key's first folder."""
    folder, slash, _ = key.partition("/")
    return f"{bucket}/{folder}/" if slash else f"{bucket}/"
