"""The rows of "end to end, against peers": what is played, and the CPU per operation it must and should take."""

from __future__ import annotations

from dataclasses import dataclass

from bench.e2e.load import K, M


@dataclass(frozen=True)
class Row:
    """must, aim: milliseconds of CPU of all server processes per operation. count: most requests built."""

    name: str
    operation: str          # PUT GET HEAD DELETE LIST MIXED
    size: int
    connections: int
    must: float
    aim: float
    count: int = 20_000
    seconds: float = 1.0    # times the option --seconds

    @property
    def set_name(self) -> str:
        return next(name for name, (_, size) in SETS.items() if size == self.size)


#: Objects that are written once and then only read: name -> (how many, bytes).
SETS = {"g4k": (8_000, 4 * K), "g64k": (1_500, 64 * K), "g1m": (64, M), "g64m": (3, 64 * M)}

ROWS = [
    Row("put4k", "PUT", 4 * K, 16, 0.58, 0.25),
    Row("put1m", "PUT", M, 8, 5.5, 3.4, count=1_500),
    Row("put64m", "PUT", 64 * M, 4, 250, 160, count=24, seconds=3),
    Row("get4k", "GET", 4 * K, 16, 0.45, 0.13),
    Row("get1m", "GET", M, 8, 0.95, 0.4),
    Row("get64m", "GET", 64 * M, 4, 31, 24, seconds=2),
    Row("head4k", "HEAD", 4 * K, 16, 0.24, 0.09),
    Row("list1000", "LIST", 4 * K, 4, 8.5, 3.8, count=500),
    Row("mixed", "MIXED", 4 * K, 16, 0.6, 0.2),
    Row("del4k", "DELETE", 4 * K, 16, 0.39, 0.2),
]
