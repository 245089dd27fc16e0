"""One window of one row against one target: builds its requests, plays them, checks what came back."""

from __future__ import annotations

import random
import time
from itertools import count

from bench.e2e.load import Played, Replayer, Target
from bench.e2e.rows import SETS, Row

_serial = count(int(time.time()) % 10_000_000)
READ_BACK = 20
#: Of what is written only to be deleted.
EXTRA_BYTES_MAX = 512 << 20


def key_of(set_name: str, number: int) -> str:
    return f"{set_name}/{number:07d}"


class Player:
    """Remembers what it wrote to a target, so that deletes find something."""

    def __init__(
        self, replayer: Replayer, target: Target, *, sets: dict[str, tuple[int, int]] = SETS, extra_max: int = 6_000
    ) -> None:
        """sets: what there is to read; extra_max: most objects that are written at a time only to be deleted."""
        self._sets, self._extra_max = sets, extra_max
        self._replayer = replayer
        self.target = target
        self._deletable: list[str] = []
        self._filled: set[str] = set()
        self._rates: dict[str, float] = {}

    def fill(self, set_name: str) -> None:
        """Write one set of objects to be read, each key until it is in."""
        if set_name in self._filled:
            return
        objects, size = self._sets[set_name]
        left = list(range(objects))
        for _ in range(20):
            requests = self._replayer.requests(self.target)
            for number in left:
                requests.put(key_of(set_name, number), number, size)
            played = self._replayer.play(self.target, requests.close(), connections=8, seconds=60)
            left = [number for number, is_done in zip(left, played.done, strict=False) if not is_done]
            if not left:
                self._filled.add(set_name)
                return
        raise RuntimeError(f"{self.target.name}: {len(left)} objects of {set_name} could not be written")

    def window(self, row: Row, *, seconds: float, seed: int) -> Played:
        """Play one row. Raises RuntimeError when an answer was wrong."""
        if row.operation in ("GET", "HEAD", "LIST", "MIXED"):
            self.fill(row.set_name)
        way = {"PUT": self._put, "GET": self._get, "HEAD": self._head, "LIST": self._list, "DELETE": self._delete,
               "MIXED": self._mixed}[row.operation]  # fmt: skip
        played = way(row, seconds * row.seconds, random.Random(seed))
        if played.wrong or not played.operations:
            raise RuntimeError(
                f"{self.target.name} {row.name}: {played.wrong} of {played.operations} answers were wrong"
            )
        self._rates[row.name] = max(played.rate, self._rates.get(row.name, 0.0))
        return played

    def _count(self, row: Row, seconds: float) -> int:
        """Requests to build: what an earlier window needed and half as many more."""
        rate = self._rates.get(row.name)
        return min(row.count, int(rate * seconds * 1.5) + 200) if rate else row.count

    def _put(self, row: Row, seconds: float, _: random.Random) -> Played:
        serial = next(_serial)
        prefix, salt = f"p-{serial}", serial * 104_729
        total = self._count(row, seconds)
        requests = self._replayer.requests(self.target)
        for number in range(total):
            requests.put(f"{prefix}/{number:07d}", number + salt, row.size)
        played = self._replayer.play(
            self.target, requests.close(), connections=row.connections, seconds=seconds, warmup=0.2
        )
        written = [number for number, is_done in enumerate(played.done) if is_done]
        self._read_back(row, prefix, salt, written)
        if row.size == 4096:
            self._deletable += [f"{prefix}/{number:07d}" for number in written]
        return played

    def _read_back(self, row: Row, prefix: str, salt: int, written: list[int]) -> None:
        requests = self._replayer.requests(self.target)
        sample = random.Random(1).sample(written, min(len(written), READ_BACK if row.size < 1 << 24 else 3))
        for number in sample:
            requests.get(f"{prefix}/{number:07d}", number + salt, row.size)
        played = self._replayer.play(self.target, requests.close(), connections=2, seconds=30, verify=1)
        if played.wrong or sum(played.done) != len(sample):
            raise RuntimeError(f"{self.target.name} {row.name}: what was written reads back wrong")

    def _get(self, row: Row, seconds: float, source: random.Random) -> Played:
        objects = self._sets[row.set_name][0]
        requests = self._replayer.requests(self.target)
        for number in range(objects):
            requests.get(key_of(row.set_name, number), number, row.size)
        order = [source.randrange(objects) for _ in range(40_000)]
        return self._replayer.play(
            self.target, requests.close(), connections=row.connections, seconds=seconds, warmup=0.2, order=order,
            loop=True, verify=100 if row.size < 1 << 20 else 20,
        )  # fmt: skip

    def _head(self, row: Row, seconds: float, source: random.Random) -> Played:
        objects = self._sets[row.set_name][0]
        requests = self._replayer.requests(self.target)
        for number in range(objects):
            requests.head(key_of(row.set_name, number), row.size)
        order = [source.randrange(objects) for _ in range(40_000)]
        return self._replayer.play(
            self.target, requests.close(), connections=row.connections, seconds=seconds, warmup=0.2, order=order,
            loop=True,
        )  # fmt: skip

    def _list(self, row: Row, seconds: float, source: random.Random) -> Played:
        objects = self._sets[row.set_name][0]
        requests = self._replayer.requests(self.target)
        for _ in range(row.count):
            requests.list(row.set_name + "/", key_of(row.set_name, source.randrange(objects - 1001)), 1000)
        played = self._replayer.play(
            self.target, requests.close(), connections=row.connections, seconds=seconds, warmup=0.2, loop=True
        )
        query = self.target.list_query.format(prefix=row.set_name + "/", after=key_of(row.set_name, 99), count=1000)
        _, page = self.target.ask("GET", f"{self.target.base}?{query}")
        place = 0
        for number in range(100, 1100):
            place = page.find(key_of(row.set_name, number).encode(), place)
            if place < 0:
                raise RuntimeError(f"{self.target.name}: a page lacks key number {number}, or has it in another place")
        return played

    def _delete(self, row: Row, seconds: float, _: random.Random) -> Played:
        extra = min(self._extra_max, EXTRA_BYTES_MAX // row.size)
        if len(self._deletable) < extra // 3:
            self._write_extra(row, extra)
        requests = self._replayer.requests(self.target)
        keys, self._deletable = self._deletable[:row.count], self._deletable[row.count :]
        for key in keys:
            requests.delete(key)
        played = self._replayer.play(self.target, requests.close(), connections=row.connections, seconds=seconds)
        self._deletable += [key for key, is_done in zip(keys, played.done, strict=False) if not is_done]
        return played

    def _write_extra(self, row: Row, total: int) -> None:
        serial = next(_serial)
        requests = self._replayer.requests(self.target)
        names = [f"x-{serial}/{number:07d}" for number in range(total)]
        for number, name in enumerate(names):
            requests.put(name, number + serial * 104_729, row.size)
        played = self._replayer.play(self.target, requests.close(), connections=row.connections, seconds=30)
        self._deletable += [name for name, is_done in zip(names, played.done, strict=False) if is_done]

    def _mixed(self, row: Row, seconds: float, source: random.Random) -> Played:
        """70 GET, 20 PUT, 5 HEAD, 5 DELETE."""
        objects = self._sets[row.set_name][0]
        total = self._count(row, seconds)
        if len(self._deletable) < total // 20 + 50:
            self._write_extra(row, 1_500)
        serial = next(_serial)
        requests = self._replayer.requests(self.target)
        for at, kind in enumerate(source.choices("GPHD", (70, 20, 5, 5), k=total)):
            number = source.randrange(objects)
            if kind == "G" or (kind == "D" and not self._deletable):
                requests.get(key_of(row.set_name, number), number, row.size)
            elif kind == "P":
                requests.put(f"m-{serial}/{at:07d}", at + serial * 104_729, row.size)
            elif kind == "H":
                requests.head(key_of(row.set_name, number), row.size)
            else:
                requests.delete(self._deletable.pop())
        return self._replayer.play(
            self.target, requests.close(), connections=row.connections, seconds=seconds, warmup=0.2
        )
