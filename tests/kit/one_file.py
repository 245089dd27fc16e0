"""One file against a model of its bytes, as fsx does: random acts, done to both, compared byte for byte.

    python -m tests.kit.one_file FILE SEED ACTS [BYTES_MAX [STEP]]

prints the number of each act that begins, what it does ("write 1000+500"), and at the end "whole" and the digest of
what the file must hold. With STEP it waits for a line on its standard input before every so many acts. The same seed
makes the same acts, so a failure is replayed by the command that made it. It is a process of its own because a page
that cannot be read ends it by a signal.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

BYTES_MAX = 1_500_000
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2


class OneFile:
    """Bytes in memory and in a file; every act is done to both. tell: hears of each act before it is done."""

    def __init__(
        self, path: Path, seed: int, *, bytes_max: int = BYTES_MAX, tell: Callable[[str], None] | None = None
    ) -> None:
        self.path = path
        self.chance = random.Random(seed)
        self.bytes_max = bytes_max
        self.model = bytearray()
        self.tell = tell or (lambda text: None)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)

    # -- one act each -----------------------------------------------------------------------------------------
    def write(self) -> None:
        first, count = self._extent()
        data = self.chance.randbytes(count)
        self.tell(f"write {first}+{count}")
        self._lay(first, data)
        assert os.pwrite(self.fd, data, first) == count

    def read(self) -> None:
        first, count = self._extent()
        self.tell(f"read {first}+{count}")
        self._same(os.pread(self.fd, count, first), first, count)

    def read_in_pieces(self) -> None:
        """As a program does that reads on: what is fetched ahead must be as new as the rest."""
        size = len(self.model)
        first = self.chance.randrange(size + 1)
        self.tell(f"read on from {first}")
        os.lseek(self.fd, first, os.SEEK_SET)
        for at in range(first, min(size, first + self.bytes_max // 4), 50_000):
            self._same(os.read(self.fd, 50_000), at, 50_000)

    def truncate(self) -> None:
        size = self.chance.choice([0, self.chance.randrange(self.bytes_max), self.chance.randrange(self.bytes_max)])
        self.tell(f"truncate {size}")
        os.ftruncate(self.fd, size)
        self._resize(size)

    def append(self) -> None:
        data = self.chance.randbytes(self.chance.randrange(1, 20_000))
        self.tell(f"append {len(data)}")
        with open(self.path, "ab", buffering=0) as file:
            file.write(data)
        self.model += data

    def sync(self) -> None:
        self.tell("sync")
        os.fsync(self.fd)

    def open_again(self) -> None:
        self.tell("close and open")
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)

    def map_read(self) -> None:
        self.tell("map and read")
        size = os.fstat(self.fd).st_size
        assert size == len(self.model), f"the file has {size} bytes, not {len(self.model)}"
        if size:
            with mmap.mmap(self.fd, size, prot=mmap.PROT_READ) as mapped:
                self._same(mapped[:], 0, size)

    def map_write(self) -> None:
        size = len(self.model)
        if size < 100:
            return
        first = self.chance.randrange(size - 50)
        data = self.chance.randbytes(self.chance.choice([1, 50, min(9000, size - first)]))
        self.tell(f"map and write {first}+{len(data)}")
        with mmap.mmap(self.fd, size) as mapped:
            mapped[first : first + len(data)] = data
            mapped.flush()
        self.model[first : first + len(data)] = data

    def copy_range(self) -> None:
        """Within the file, where the ranges do not touch each other."""
        first, count = self._extent()
        to = self.chance.randrange(self.bytes_max)
        count = min(count, len(self.model) - first, abs(to - first))
        if count <= 0:
            return
        self.tell(f"copy {first}+{count} to {to}")
        data = bytes(self.model[first : first + count])
        done = 0
        while done < count:
            step = os.copy_file_range(self.fd, self.fd, count - done, first + done, to + done)
            assert step, f"{done} of {count} bytes are copied, and no more"
            done += step
        self._lay(to, data)

    def punch(self) -> None:
        """Zeros, or a refusal that changes nothing: where holes are not made the bytes must stay."""
        first, count = self._extent()
        self.tell(f"punch {first}+{count}")
        if punched(self.fd, first, count):
            end = min(first + count, len(self.model))
            self.model[first:end] = bytes(max(0, end - first))

    def reserve(self) -> None:
        """posix_fallocate, which the C library makes of writes where there is no such call."""
        first, count = self._extent()
        self.tell(f"reserve {first}+{count}")
        os.posix_fallocate(self.fd, first, count)
        self._resize(max(len(self.model), first + count))

    # -- all of them ------------------------------------------------------------------------------------------
    def run(self, count: int, before: Callable[[int], None] = lambda number: None) -> str:
        """So many acts, then all of it once more through a new descriptor. Returns the digest of what must be there.
        before: called with the number of each act."""
        seldom = [
            self.read_in_pieces, self.truncate, self.append, self.sync, self.open_again, self.map_read, self.map_write,
            self.copy_range, self.punch, self.reserve,
        ]  # fmt: skip
        acts = [self.write] * 8 + [self.read] * 8 + seldom
        for number in range(count):
            before(number)
            self.chance.choice(acts)()
        self.map_read()
        os.close(self.fd)
        self._same(self.path.read_bytes(), 0, len(self.model) + 1)
        return hashlib.sha256(self.model).hexdigest()

    def _extent(self) -> tuple[int, int]:
        return self.chance.randrange(self.bytes_max), self.chance.randrange(1, self.bytes_max // 15)

    def _resize(self, size: int) -> None:
        self.model = self.model[:size] + bytes(max(0, size - len(self.model)))

    def _lay(self, first: int, data: bytes) -> None:
        self._resize(max(len(self.model), first))
        self.model[first : first + len(data)] = data

    def _same(self, got: bytes, first: int, count: int) -> None:
        right = bytes(self.model[first : first + count])
        if got != right:
            pairs = enumerate(zip(got, right, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(got), len(right)))
            raise AssertionError(
                f"{len(got)} bytes at {first}, of {len(right)} that must be there, differ from byte {first + at} on: "
                f"{got[at : at + 8].hex()!r}, not {right[at : at + 8].hex()!r}"
            )


def punched(fd: int, first: int, count: int) -> bool:
    """Make a hole; False where the file system has none."""
    library = ctypes.CDLL(None, use_errno=True)
    library.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if library.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first, count) == 0:
        return True
    number = ctypes.get_errno()
    if number != errno.EOPNOTSUPP:
        raise OSError(number, os.strerror(number))
    return False


def main() -> None:
    path, seed, count, *more = Path(sys.argv[1]), *(int(text) for text in sys.argv[2:6])
    bytes_max, step = more[0] if more else BYTES_MAX, more[1] if len(more) > 1 else 0

    def before(number: int) -> None:
        if step and number % step == 0:
            sys.stdin.readline()
        print(number, flush=True)

    file = OneFile(path, seed, bytes_max=bytes_max, tell=lambda text: print(text, flush=True))
    print("whole", file.run(count, before), flush=True)


if __name__ == "__main__":
    main()
