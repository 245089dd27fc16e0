"""File operations as calls to metadata: batched as they arise, with operation ids, deadlines and retries.

Owns two lanes (questions, changes) on one metadata client. Codes of refusals become the errors of tierstore.errors;
what they mean to a program (errno) is files/errno's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tierstore.errors import from_code
from tierstore.transport.batches import BatchLane, Waiter
from tierstore.transport.metadata_client import MetadataClient
from tierstore.wire.files import (
    MAY_BE_SOON,
    Entry,
    Extents,
    FileChange,
    FileChanges,
    FileMutation,
    FileQuestion,
    FileQuestions,
    FileResult,
    FileResults,
    Find,
    Look,
    ReadDirectory,
    Space,
    Sync,
    Watch,
    Watched,
)

#: A question or change is given up after so long, unless the mount was told otherwise: then the program gets EIO, never
#: a hang.
PATIENCE_SECONDS: Final = 20.0
#: A watch that says nothing for so long beyond the wait that it asked for is lost.
WATCH_GRACE_SECONDS: Final = 3.0
ITEMS_MAX: Final = 128
WAITING_MAX: Final = 4096
#: Numbers that are looked for in one pass over a bucket.
NUMBERS_MAX: Final = 64


class FilesRemote:
    """One per mount. Event loop only."""

    def __init__(
        self, client: MetadataClient, bucket: str, *, seconds: float = PATIENCE_SECONDS, mount: str = ""
    ) -> None:
        """mount: whose changes these are, if it knows of all names that they bring (files/absent)."""
        self._client = client
        self._mount = mount
        self._bucket = bucket
        self.seconds = seconds
        #: Changes of names and attributes need not be durable when they return; synced() sees to it.
        self.is_soon = False
        self._soon = 0          # of these, so many were answered
        self._synced = 0        # and so many are durable
        self._questions: BatchLane[FileQuestion, FileResult] = BatchLane(
            "files", self._send_questions, depth=4, items_max=ITEMS_MAX, waiting_max=WAITING_MAX
        )
        self._changes: BatchLane[FileChange, FileResult] = BatchLane(
            "file changes", self._send_changes, depth=2, items_max=ITEMS_MAX, waiting_max=WAITING_MAX
        )
        self._numbers: BatchLane[int, Entry | None] = BatchLane(
            "file numbers", self._send_numbers, depth=1, items_max=NUMBERS_MAX, waiting_max=WAITING_MAX
        )

    async def find(self, number: int) -> Entry | None:
        """What has that number now, name: its whole path; None: nothing. Slow: a pass over the bucket, which numbers
        that arise meanwhile share the next one of."""
        return await self._numbers.submit(number, self.seconds)

    async def ask(self, question: Look | ReadDirectory | Extents | Space | Find) -> FileResult:
        """Raises NotFound(no-such-file), RequestError, UnavailableError."""
        result = await self._questions.ask(FileQuestion(question), self.seconds)
        if result.code:
            raise from_code(result.code, result.detail)
        return result

    async def change(self, mutation: FileMutation) -> FileResult:
        """Apply one change, once. Durable when it returns, unless is_soon. Raises what metadata refuses,
        UnavailableError."""
        client = self._client
        deadline_ms = client.catalog_ms() + int(self.seconds * 1000)
        is_soon = self.is_soon and isinstance(mutation, MAY_BE_SOON)
        before = self._soon
        item = FileChange(client.new_operation(), deadline_ms, mutation, mount=self._mount, soon=is_soon)
        result = await self._changes.ask(item, self.seconds)
        if result.code:
            raise from_code(result.code, result.detail)
        if is_soon:
            self._soon += 1
        else:
            self._synced = max(self._synced, before)
        return result

    async def synced(self) -> None:
        """Return when every change that was answered until now is durable. Raises UnavailableError."""
        if self._soon > self._synced:
            await self.change(Sync(self._bucket))

    async def watch(self, watch: Watch) -> Watched:
        return await self._client.ask(
            b"/v1/internal/files/watch", watch, Watched, seconds=watch.wait_seconds + WATCH_GRACE_SECONDS
        )

    async def _send_questions(self, batch: Sequence[Waiter[FileQuestion, FileResult]]) -> Sequence[FileResult]:
        message = FileQuestions([waiter.item for waiter in batch])
        reply = await self._client.ask(b"/v1/internal/files/ask", message, FileResults, seconds=self.seconds)
        return reply.results

    async def _send_numbers(self, batch: Sequence[Waiter[int, Entry | None]]) -> Sequence[Entry | None]:
        wanted = {waiter.item for waiter in batch}
        result = await self.ask(Find(self._bucket, sorted(wanted)))
        found = {entry.attributes.ino: entry for entry in result.entries}
        return [found.get(waiter.item) for waiter in batch]

    async def _send_changes(self, batch: Sequence[Waiter[FileChange, FileResult]]) -> Sequence[FileResult]:
        message = FileChanges([waiter.item for waiter in batch])
        reply = await self._client.ask(b"/v1/internal/files/change", message, FileResults, seconds=self.seconds)
        self._client.note_catalog_ms(reply.now_ms)
        return reply.results

    async def close(self) -> None:
        await self._numbers.close()
        await self._questions.close()
        await self._changes.close()
