"""The S3 door: every request below neither /v1/ nor /-/ comes here, by one handler on the exchange seam.

Owns the way of a request: parse -> who -> which operation -> handler -> answer or error as XML. Nothing of S3 goes
through FastAPI (docs/adr/0100): operations are told apart by query and headers, which it does not route by.

Invariants: no handler runs before the caller is known; a handler that raises before it answered gets the error's XML,
one that raises later has its connection closed; requests under way are bounded with the native ones.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tierstore.clock import Clock
from tierstore.errors import NotFound, TierstoreError
from tierstore.gateway.objects import ObjectDoor
from tierstore.gateway.redirect import Redirects, location_line
from tierstore.gateway.s3 import cors, operations
from tierstore.gateway.s3.auth import Authenticator
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.errors import XML_LINE, S3Error, error_body, s3_error
from tierstore.gateway.s3.handlers import build, handlers_of
from tierstore.gateway.s3.log_delivery import LogDelivery
from tierstore.gateway.s3.request import Call, check_names, parse_call, request_id_line
from tierstore.gateway.s3.sse_keys import Vault
from tierstore.gateway.s3.uploads import BodyReader
from tierstore.sdk.store import Store
from tierstore.serving.exchange import Exchange
from tierstore.serving.table import Route

METHODS: Final = (b"GET", b"HEAD", b"PUT", b"POST", b"DELETE", b"OPTIONS")
#: Threads for MD5 and other sums.
HASH_THREADS: Final = 2


class S3Door:
    """One per gateway process. native: the door whose bound of requests it shares; is_secure: its port speaks TLS."""

    def __init__(
        self, store: Store, catalog: S3Catalog, clock: Clock, native: ObjectDoor, *, vault: Vault, domain: str = "",
        redirects: Redirects | None = None, is_secure: bool = False, access_log_seconds: float = 300.0,
        access_log_paused: bool = False,
    ) -> None:  # fmt: skip
        self._native = native
        self._clock = clock
        self._is_secure = is_secure
        self._domain = domain.lower()
        self._redirects = redirects
        self._catalog = catalog
        self._auth = Authenticator(store.client, clock)
        self._executor = ThreadPoolExecutor(HASH_THREADS, thread_name_prefix="s3-sums")
        self._reader = BodyReader(self._executor)
        self._has_served = False
        doors = build(store, self._catalog, self._reader, vault, self._auth)
        self._handlers = handlers_of(doors)
        self._logs = LogDelivery(
            store, catalog, vault, clock, every_seconds=access_log_seconds, is_paused=access_log_paused
        )
        self.access_log = self._logs.log
        native.sealed = doors.reads.open_sealed

    def routes(self) -> list[Route]:
        """The rows of the protocol class's table: everything that is not native."""
        return [Route(method, b"/", self.handle, accepts=_is_s3) for method in METHODS]

    def handle(self, exchange: Exchange) -> None:
        """One request. What is native and has no route comes here by way of FastAPI: it gets a native answer."""
        if not _is_s3(exchange.target.partition(b"?")[0][1:]):
            exchange.fail(NotFound("nothing is served at this path", code="no-such-route"))
            return
        if self._redirects is not None and (location := self._redirects.location(exchange)):
            self._redirects.sent += 1
            lines = location_line(location) + request_id_line(exchange.request_id)
            moved = S3Error("TemporaryRedirect", "Ask there; sign for that host.", lines=lines)
            _answer(exchange, moved, "/")
            return
        if not self._has_served:
            self._has_served = True
            self._reader.load()
        try:
            self._native.begin(exchange, self._run(exchange))
        except TierstoreError as error:
            shown = s3_error(error, exchange.request_id)
            shown.lines += request_id_line(exchange.request_id)
            _answer(exchange, shown, "/")

    async def _run(self, exchange: Exchange) -> None:
        call: Call | None = None
        try:
            call = parse_call(exchange, self._domain, at_ms=self._clock.now_ms(), is_secure=self._is_secure)
            await self._serve(call)
        except Exception as error:  # whatever it is: the client gets S3's XML, or a closed connection
            if call is not None and call.has_begun:
                self._logs.note(call)
                raise
            shown = s3_error(error, exchange.request_id)
            shown.lines += call.extra_lines if call is not None else request_id_line(exchange.request_id)
            sent = _answer(exchange, shown, call.resource if call is not None else "/")
            if call is not None:
                call.answer.status, call.answer.code, call.answer.length = shown.status, shown.code, sent
        if call is not None:
            self._logs.note(call)

    async def _serve(self, call: Call) -> None:
        if call.method == "OPTIONS":
            check_names(call)
            cors.preflight(call, await self._catalog.bucket(call.bucket))
            return
        await self._add_cors(call)
        await self._auth.authenticate(call)
        check_names(call)
        scope: operations.Scope = "object" if call.key else "bucket" if call.bucket else "service"
        is_copy = call.exchange.header(b"x-amz-copy-source") is not None
        operation = operations.find(call.method, scope, call.names, is_copy=is_copy)
        if operation is None:
            raise S3Error("MethodNotAllowed")
        handler = self._handlers.get(operation.name)
        if handler is None:
            raise S3Error("NotImplemented", f"{operation.name} is not supported.")
        await handler(call)

    async def _add_cors(self, call: Call) -> None:
        """What a browser must see with every answer, also where the signature does not hold: without it the page's
        script learns nothing of why."""
        if call.exchange.header(b"origin") is None or not call.bucket:
            return
        with contextlib.suppress(S3Error, TierstoreError):      # whatever it is, the request itself hears it
            check_names(call)
            call.extra_lines += cors.lines_of(call, await self._catalog.bucket(call.bucket)) or b""

    async def close(self) -> None:
        """Deliver the access logs that wait, and end. The store must still be open."""
        await self.access_log.close()
        self._executor.shutdown(wait=False)


def _is_s3(rest: bytes) -> bool:
    first = rest.partition(b"/")[0]
    return first not in (b"v1", b"-")


def _answer(exchange: Exchange, error: S3Error, resource: str) -> int:
    """Send an error; how long its body is."""
    if error.status == 304:
        exchange.reply(304, b"", error.lines)
        return 0
    body = error_body(error, resource=resource, request_id=exchange.request_id)
    if exchange.method == b"HEAD":
        body = b""
    exchange.reply(error.status, body, XML_LINE + error.lines)
    return len(body)
