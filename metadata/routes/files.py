"""Routes of mounts: questions and changes of files in batches, and the watch. HTTP only, no rules.

As in routes/hot: a message of a known caller is answered in the call that brought its body (questions, on SQLite), or
queued there (changes), without a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from metadata.services.access.credentials import Credentials
from metadata.services.files.service import FilesService
from tierstore.auth.access import NOTHING_SEEN, Principal
from tierstore.clock import Clock
from tierstore.errors import RequestError, TierstoreError
from tierstore.serving.exchange import Exchange
from tierstore.serving.table import Route
from tierstore.wire import MEDIA_TYPE, decode, encode
from tierstore.wire.files import (
    FileChange,
    FileChanges,
    FileQuestion,
    FileQuestions,
    FileResult,
    FileResults,
    Watch,
)

T = TypeVar("T")

BODY_BYTES_MAX: Final = 16 << 20
ITEMS_MAX: Final = 1024
_LINES: Final = b"content-type: " + MEDIA_TYPE.encode() + b"\r\n"
SUMMARIES: Final = {
    "ask": ("Look at files", "FileQuestions", "FileResults"),
    "change": ("Change files", "FileChanges", "FileResults"),
    "watch": ("Wait for changes in a bucket", "Watch", "Watched"),
}


class FileRoutes:
    """Handlers on the Exchange seam. One per process."""

    def __init__(self, credentials: Credentials, files: FilesService, clock: Clock) -> None:
        self._credentials = credentials
        self._files = files
        self._clock = clock

    def routes(self) -> list[Route]:
        return [
            Route(b"POST", b"/v1/internal/files/ask", self.ask),
            Route(b"POST", b"/v1/internal/files/change", self.change),
            Route(b"POST", b"/v1/internal/files/watch", self.watch),
        ]

    def ask(self, exchange: Exchange) -> None:
        header = exchange.header(b"authorization")
        known = self._credentials.caller_now(header)

        def then(body: bytes) -> None:
            items = _bounded(decode(body, FileQuestions).items)
            results = None if known is None else self._ask_now(items, self._credentials.sending(known, exchange.peer))
            if results is None:
                exchange.spawn(work(items))
            else:
                self._reply(exchange, FileResults(results, self._clock.now_ms()))

        async def work(items: list[FileQuestion]) -> None:
            caller = await self._caller(exchange, header)
            results = []
            for item in items:
                try:
                    who = await self._behind(caller, item.access)
                    results.append(await self._files.ask(item, who))
                except TierstoreError as error:
                    if error.status >= 500:
                        raise
                    results.append(FileResult(code=error.code, detail=error.detail))
            self._reply(exchange, FileResults(results, self._clock.now_ms()))

        exchange.collect(BODY_BYTES_MAX, then)

    def _ask_now(self, items: list[FileQuestion], caller: Principal) -> list[FileResult] | None:
        """None: one of them takes longer; then all are asked again."""
        results = []
        for item in items:
            if item.access and item.access != caller.access:
                return None
            result = self._files.ask_now(item, caller)
            if result is None:
                return None
            results.append(result)
        return results

    def change(self, exchange: Exchange) -> None:
        header = exchange.header(b"authorization")
        known = self._credentials.caller_now(header)

        def then(body: bytes) -> None:
            items = _bounded(decode(body, FileChanges).items)
            caller = None if known is None else self._credentials.sending(known, exchange.peer)
            if caller is None or not self._change_now(exchange, items, caller):
                exchange.spawn(work(items))

        async def work(items: list[FileChange]) -> None:
            caller = await self._caller(exchange, header)
            pairs = [(item, await self._behind(caller, item.access)) for item in items]
            # Shielded: a mount that goes away must not leave half of its message undone.
            results = await asyncio.shield(self._files.change(pairs))
            self._reply(exchange, FileResults(results, self._clock.now_ms()))

        exchange.collect(BODY_BYTES_MAX, then)

    def _change_now(self, exchange: Exchange, items: list[FileChange], caller: Principal) -> bool:
        """Queue a message of a known caller for itself; its answer follows without a task. False: nothing was done."""
        if any(item.access and item.access != caller.access for item in items):
            return False

        def answer(results: list[FileResult]) -> None:
            try:
                self._reply(exchange, FileResults(results, self._clock.now_ms()))
            except Exception as error:  # the change is made: whatever is wrong with the answer is this exchange's
                exchange.fail(error)

        async def confirm(results: Callable[[], Awaitable[list[FileResult]]]) -> None:
            answer(await results())

        return self._files.submit(
            [(item, caller) for item in items], answer, lambda results: exchange.spawn(confirm(results))
        )

    def watch(self, exchange: Exchange) -> None:
        header = exchange.header(b"authorization")

        async def work(item: Watch) -> None:
            caller = await self._caller(exchange, header)
            who = await self._behind(caller, item.access)
            self._reply(exchange, await self._files.watch(item, who))

        self._with_body(exchange, Watch, work)

    async def _caller(self, exchange: Exchange, header: bytes | None) -> Principal:
        return self._credentials.sending(await self._credentials.caller(header), exchange.peer)

    async def _behind(self, caller: Principal, access: str) -> Principal:
        """Whom the caller acts for. No gateway judges what mounts ask, so nothing was seen of somebody behind one."""
        found = await self._credentials.behind(caller, access)
        return found if found is caller else found.sending(NOTHING_SEEN)

    def _with_body(self, exchange: Exchange, kind: type[T], work: Callable[[T], Any]) -> None:
        exchange.collect(BODY_BYTES_MAX, lambda body: exchange.spawn(work(decode(body, kind))))

    @staticmethod
    def _reply(exchange: Exchange, message: object) -> None:
        exchange.reply(200, encode(message), _LINES)


def _bounded(items: list[T]) -> list[T]:
    if len(items) > ITEMS_MAX:
        raise RequestError(f"{len(items)} items in one message, at most {ITEMS_MAX} are taken", code="too-many-items")
    return items
