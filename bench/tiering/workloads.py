"""The real traces beside the bench, and the same requests cut into chunks as the store cuts objects."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from tierstore.policy.trace import Trace, parse_csv

FOLDER: Final = Path(__file__).resolve().parent.parent / "traces"


def load(name: str) -> Trace:
    """twitter52 or fb2010."""
    with gzip.open(FOLDER / f"{name}.csv.gz", "rt", encoding="ascii") as lines:
        return parse_csv(lines)


def cut(trace: Trace, chunk_bytes: int) -> tuple[Trace, npt.NDArray[np.int64]]:
    """The same reads, chunk by chunk; and for each chunk read the number of the request that it belongs to."""
    counts = np.maximum(-(-trace.size // chunk_bytes), 1)
    request = np.repeat(np.arange(len(trace)), counts)
    index = np.arange(len(request)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_last = index == counts[request] - 1
    size = np.where(is_last, trace.size[request] - (counts[request] - 1) * chunk_bytes, chunk_bytes)
    _, key = np.unique(trace.key[request] * (int(counts.max()) + 1) + index, return_inverse=True)
    return replace(trace, time=trace.time[request], key=key.astype(np.int64), size=size, op=trace.op[request]), request
