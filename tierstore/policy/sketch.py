"""Heat of the chunks that are too many for the exact table: a count-min sketch of decayed sums, in the log2 domain.

Owns 4 rows of 131,072 cells (2 MiB), made when the exact table is full. A chunk adds to one cell of each row and its
estimate is the lowest of them: never below its own sum, above it by what others added to the same cells. Which chunk is
exact and which is only here is heat.py's.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

COLD: Final = -math.inf
SKETCH_ROWS: Final = 4
SKETCH_COLUMNS: Final = 1 << 17  # 4 rows x 131,072 x 4 B = 2 MiB
_MULTIPLIERS: Final = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], dtype=np.uint64
)

Floats = npt.NDArray[np.float64]


class Sketch:
    """Scores of any number of chunks (16-byte ids), as estimates. flat: the cells of a snapshot, all rows."""

    def __init__(self, flat: npt.NDArray[np.float32] | None = None) -> None:
        shape = (SKETCH_ROWS, SKETCH_COLUMNS)
        self.cells = np.full(shape, COLD, dtype=np.float32) if flat is None else flat.reshape(shape).copy()

    def add(self, chunks: list[bytes], added: Floats) -> None:
        """Count reads; added: log2 of each, in terms of the landmark."""
        places = _places(chunks)
        for row in range(SKETCH_ROWS):
            np.logaddexp2.at(self.cells[row], places[row], added.astype(np.float32))

    def floor(self, evicted: list[tuple[bytes, float]]) -> None:
        """Chunks that left the exact table keep their heat: no cell of one is below its score."""
        if not evicted:
            return
        places = _places([chunk for chunk, _ in evicted])
        scores = np.array([score for _, score in evicted], dtype=np.float32)
        for row in range(SKETCH_ROWS):
            np.maximum.at(self.cells[row], places[row], scores)

    def estimate(self, chunks: list[bytes]) -> Floats:
        lowest = self.cells[np.arange(SKETCH_ROWS)[:, None], _places(chunks)].min(axis=0)
        return np.asarray(lowest, dtype=np.float64)

    def shift(self, half_lives: float) -> None:
        """The landmark moved: all scores fall alike."""
        self.cells -= np.float32(half_lives)


def _places(chunks: list[bytes]) -> npt.NDArray[np.int64]:
    """Columns of each chunk in the 4 rows: shape (4, n). Multiply-shift of the folded id."""
    words = np.frombuffer(b"".join(chunks), dtype="<u8").reshape(-1, 2)
    folded = words[:, 0] ^ (words[:, 1] * np.uint64(0xFF51AFD7ED558CCD))
    folded ^= folded >> np.uint64(29)
    return ((folded[None, :] * _MULTIPLIERS[:, None]) >> np.uint64(47)).astype(np.int64)
