"""SyncStore: the store for programs without an event loop. One thread runs the loop; each method waits for its call.

Owns the thread and the Store in it. Safe to use from several threads. Bytes are the same objects: nothing is copied
between the threads but references.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, BinaryIO, Final, TypeVar

from tierstore.sdk.connect import connect
from tierstore.sdk.limits import StoreLimits
from tierstore.sdk.objects import ObjectInfo, ObjectReader, PutInfo
from tierstore.sdk.put import Buffer
from tierstore.sdk.store import Store
from tierstore.wire.names import CommitResult, Condition, ListEntry, ListResult, ObjectMeta

T = TypeVar("T")
READ_BYTES: Final = 1 << 20
Body = Buffer | BinaryIO | Iterable[Buffer]


class SyncReader:
    """An object being read, in a plain program: iterate, read(), close(); or use with `with`."""

    def __init__(self, owner: SyncStore, reader: ObjectReader) -> None:
        self._owner = owner
        self._reader = reader
        self.info: ObjectInfo = reader.info
        self.length = reader.length

    def read(self) -> bytes:
        """All bytes that are left."""
        return self._owner.wait(self._reader.read())

    def __iter__(self) -> Iterator[bytes]:
        while piece := self._owner.wait(self._next()):
            yield piece

    async def _next(self) -> bytes:
        return bytes(await self._reader.next_piece())

    def close(self) -> None:
        self._owner.wait(self._reader.close())

    def __enter__(self) -> SyncReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.close()


class SyncStore:
    """See Store: the same calls, waited for. `opened` makes the Store inside the loop's thread."""

    def __init__(
        self, endpoint: str = "", token: str = "", *, limits: StoreLimits | None = None,
        opened: Callable[[], Coroutine[Any, Any, Store]] | None = None,
    ) -> None:  # fmt: skip
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tierstore", daemon=True)
        self._thread.start()
        try:
            self.store = self.wait(opened() if opened is not None else connect(endpoint, token, limits=limits))
        except BaseException:
            self._stop()
            raise

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop's thread; cancelled when the caller is interrupted."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Close the Store and end the thread. Harmless to repeat."""
        if self._thread.is_alive():
            self.wait(self.store.close())
            self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> SyncStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.close()

    # -- objects --------------------------------------------------------------------------------------------
    def put(
        self, bucket: str, key: str, body: Body, *, size: int | None = None, content_type: str = "",
        user_meta: dict[str, str] | None = None, condition: Condition | None = None, crc32c: int | None = None,
    ) -> PutInfo:  # fmt: skip
        """body: bytes, an open file, or an iterable of pieces (read in a worker thread)."""
        source = body if isinstance(body, bytes | bytearray | memoryview) else _pieces(body)
        return self.wait(self.store.put(
            bucket, key, source, size=size, content_type=content_type, user_meta=user_meta, condition=condition,
            crc32c=crc32c,
        ))  # fmt: skip

    def get(self, bucket: str, key: str, *, first: int = 0, length: int = -1, version: int = 0) -> bytes:
        """The bytes of an object or a range of it, in memory."""
        with self.open(bucket, key, first=first, length=length, version=version) as reader:
            return reader.read()

    def open(self, bucket: str, key: str, *, first: int = 0, length: int = -1, version: int = 0) -> SyncReader:
        """An object to be read in pieces; close it."""
        return SyncReader(self, self.wait(self.store.get(bucket, key, first=first, length=length, version=version)))

    def head(self, bucket: str, key: str, *, version: int = 0) -> ObjectInfo:
        return self.wait(self.store.head(bucket, key, version=version))

    def delete(self, bucket: str, key: str, *, version: int = 0, condition: Condition | None = None) -> CommitResult:
        return self.wait(self.store.delete(bucket, key, version=version, condition=condition))

    def copy(self, bucket: str, key: str, to_bucket: str, to_key: str) -> CommitResult:
        return self.wait(self.store.copy(bucket, key, to_bucket, to_key))

    def rename(self, bucket: str, key: str, to_key: str) -> CommitResult:
        return self.wait(self.store.rename(bucket, key, to_key))

    def set_meta(self, bucket: str, key: str, meta: ObjectMeta) -> CommitResult:
        return self.wait(self.store.set_meta(bucket, key, meta))

    def list_page(
        self, bucket: str, *, prefix: str = "", delimiter: str = "", start_after: str = "", limit: int = 1000
    ) -> ListResult:
        return self.wait(self.store.list_page(
            bucket, prefix=prefix, delimiter=delimiter, start_after=start_after, limit=limit
        ))  # fmt: skip

    # -- buckets --------------------------------------------------------------------------------------------
    def create_bucket(self, bucket: str) -> None:
        self.wait(self.store.buckets.create(bucket))

    def delete_bucket(self, bucket: str) -> None:
        self.wait(self.store.buckets.delete(bucket))

    def buckets(self) -> list[dict[str, Any]]:
        return self.wait(self.store.buckets.list())

    def list(self, bucket: str, *, prefix: str = "", start_after: str = "") -> Iterator[ListEntry]:
        """All objects in key order; a page is fetched when the one before is used up."""
        after: str | None = start_after
        while after is not None:
            page = self.list_page(bucket, prefix=prefix, start_after=after)
            yield from page.objects
            after = page.next_start_after


async def _pieces(body: BinaryIO | Iterable[Buffer]) -> AsyncIterator[Buffer]:
    """Pieces of a blocking source, taken in a worker thread so that the loop goes on."""
    read = getattr(body, "read", None)
    if read is not None:
        while piece := await asyncio.to_thread(read, READ_BYTES):
            yield piece
        return
    source = iter(body)
    while (piece := await asyncio.to_thread(next, source, None)) is not None:
        yield piece
