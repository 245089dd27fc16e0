"""The in-process adapter: a daemon's routes and application without sockets and threads, for simulation and tests.

Drives hot handlers through the ASGI adapter and everything else through the application itself, so a simulated peer
runs the code that a real one runs. Invariant: all waiting is on futures of the running loop; nothing here looks at a
clock, so a loop with virtual time and a seeded order replays exactly.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from tierstore.errors import NotFound
from tierstore.serving import problem
from tierstore.serving.asgi import INLINE_FILES, serve_exchange
from tierstore.serving.table import Route, RouteTable

Message = MutableMapping[str, Any]
Application = Callable[[Any, Any, Any], Awaitable[None]]
#: Body bytes that wait in either direction before the sender has to wait.
BUFFER_BYTES: Final = 256 * 1024


class InProcessCall:
    """One request to an in-process server, seen from the client. Satisfies transport.inprocess.PeerCall."""

    def __init__(self) -> None:
        self._in: deque[Message] = deque()
        self._in_bytes = 0
        self._out: deque[bytes] = deque()
        self._out_bytes = 0
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._is_ended = False          # the answer is complete
        self._is_cut = False            # the answer broke off
        self._is_gone = False           # the client went away
        self._wake = asyncio.Event()

    # -- the client's side ------------------------------------------------------------------------------------
    def feed(self, piece: bytes) -> None:
        """The next bytes of the request body (copied by the caller if it reuses them)."""
        self._in.append({"type": "http.request", "body": piece, "more_body": True})
        self._in_bytes += len(piece)
        self._notify()

    def end(self) -> None:
        self._in.append({"type": "http.request", "body": b"", "more_body": False})
        self._notify()

    async def writable(self) -> None:
        """Until the server has taken enough of the body, or has begun to answer."""
        while self._in_bytes > BUFFER_BYTES and not (self._status or self._is_cut):
            await self._changed()

    @property
    def has_answer(self) -> bool:
        return bool(self._status) or self._is_cut

    def disconnect(self) -> None:
        """The client goes away: the server sees it as a closed connection."""
        self._is_gone = True
        self._notify()

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Status and headers. Raises ConnectionResetError when the server closed without an answer."""
        while not self._status:
            if self._is_cut:
                raise ConnectionResetError("the server closed without an answer")
            await self._changed()
        return self._status, self._headers

    async def read(self) -> bytes:
        """The next bytes of the answer; b"" at its end. Raises ConnectionResetError when it broke off."""
        while not self._out:
            if self._is_cut:
                raise ConnectionResetError("the answer broke off")
            if self._is_ended:
                return b""
            await self._changed()
        piece = self._out.popleft()
        self._out_bytes -= len(piece)
        self._notify()
        return piece

    # -- the server's side ------------------------------------------------------------------------------------
    async def asgi_receive(self) -> Message:
        while not self._in:
            if self._is_gone or self._is_ended:
                return {"type": "http.disconnect"}
            await self._changed()
        if self._is_gone:
            return {"type": "http.disconnect"}
        message = self._in.popleft()
        self._in_bytes -= len(message["body"])
        self._notify()
        return message

    async def asgi_send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._headers = [(name.lower(), value) for name, value in message.get("headers", ())]
            self._status = message["status"]
            self._notify()
            return
        body = message.get("body", b"")
        if body:
            self._out.append(bytes(body))
            self._out_bytes += len(body)
        if not message.get("more_body", False):
            self._is_ended = True
        self._notify()
        while self._out_bytes > BUFFER_BYTES and not self._is_gone and not self._is_ended:
            await self._changed()

    def cut(self) -> None:
        """The server's side is over; an answer that is not complete broke off."""
        if not self._is_ended:
            self._is_cut = True
        self._notify()

    def _notify(self) -> None:
        wake, self._wake = self._wake, asyncio.Event()
        wake.set()

    async def _changed(self) -> None:
        await self._wake.wait()


class InProcessServer:
    """A daemon without sockets: `begin()` a request, `close()` cancels what runs (as a kill would)."""

    def __init__(self, routes: Iterable[Route] = (), app: Application | None = None) -> None:
        self._table = RouteTable(routes)
        self._app = app
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = 0

    def begin(
        self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], *, length: int | None, peer: str
    ) -> InProcessCall:
        """Start a request whose head has arrived; length None: no body. The body follows by feed() and end()."""
        self._number += 1
        path, _, query = target.partition(b"?")
        rows = [(name.lower(), value) for name, value in headers]
        rows.insert(0, (b"host", b"in-process"))
        if length is not None:
            rows.append((b"content-length", b"%d" % length))
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method.decode("ascii"),
            "scheme": "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": rows,
            "client": (peer, 0),
            "server": ("in-process", 80),
            "state": {"request_id": f"in-process-{self._number:x}"},
            "extensions": {INLINE_FILES: {}},
        }
        call = InProcessCall()
        route = self._table.match(method, target)
        task = asyncio.get_running_loop().create_task(self._serve(route, scope, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return call

    async def _serve(self, route: Route | None, scope: dict[str, Any], call: InProcessCall) -> None:
        try:
            if route is not None:
                await serve_exchange(route, scope, call.asgi_receive, call.asgi_send)
            elif self._app is not None:
                await self._app(scope, call.asgi_receive, call.asgi_send)
            else:
                await _not_served(scope, call)
        except Exception as error:  # what a real server does: log a bug, close the connection
            if not isinstance(error, ConnectionError):
                problem.document(error, scope["state"]["request_id"])
        finally:
            call.cut()

    async def close(self) -> None:
        """Kill: everything under way is cancelled, its clients see a broken connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _not_served(scope: dict[str, Any], call: InProcessCall) -> None:
    error = NotFound(f"nothing is served at {scope['path']}", code="no-such-route")
    status, body, lines = problem.render(error, scope["state"]["request_id"])
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", problem.MEDIA_TYPE.encode("ascii"))]
    assert lines
    await call.asgi_send({"type": "http.response.start", "status": status, "headers": headers})
    await call.asgi_send({"type": "http.response.body", "body": body})
