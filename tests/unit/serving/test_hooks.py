"""What serving relies on inside uvicorn and httptools. A new version that moves one of these fails here first."""

from __future__ import annotations

import inspect
import json

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tests.contract.exchange_subjects import Handlers, application, run, subject
from tierstore.serving.edge import EdgeProtocol
from tierstore.serving.order import OrderedProtocol
from tierstore.serving.protocol import HotProtocol

OURS = (HotProtocol, OrderedProtocol, EdgeProtocol)


def test_uvicorn_has_the_hooks_that_the_protocol_class_overrides() -> None:
    """They are not documented as stable; the version is pinned to a minor."""
    assert uvicorn.__version__.startswith("0.54.")
    for name in (
        "connection_made", "connection_lost", "data_received", "eof_received", "on_message_begin", "on_url",
        "on_header", "on_headers_complete", "on_body", "on_message_complete", "_start_asgi_task",
        "on_response_complete", "shutdown", "resume_writing", "pause_writing",
    ):  # fmt: skip
        assert callable(getattr(HttpToolsProtocol, name)), name
        assert any(name in vars(kind) for kind in OURS) or name == "pause_writing", name
    assert list(inspect.signature(HttpToolsProtocol._start_asgi_task).parameters) == ["self", "cycle", "app"]
    source = inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert "self.pipeline.appendleft((self.cycle, app))" in source and "self._start_asgi_task(" in source
    fields = inspect.getsource(RequestResponseCycle.__init__)
    for name in ("keep_alive", "disconnected", "response_complete", "more_body", "default_headers", "message_event"):
        assert f"self.{name} = " in fields, name
    assert callable(httptools.HttpRequestParser(object()).should_upgrade)


def test_hot_routes_stand_in_the_openapi_and_work_there() -> None:
    """The published document is true: what it names can be called, through FastAPI too."""
    handlers = Handlers()
    app = application(handlers.routes(), declares=True)
    document = app.openapi()
    assert set(document["paths"]["/hot/small"]) == {"get", "head"}
    assert document["paths"]["/hot/echo/{rest}"]["get"]["operationId"].startswith("test")
    handlers.file.close()

    async def main() -> None:
        async with subject("asgi") as s:
            reply = await s.transport.call(s.url, b"GET", b"/openapi.json", seconds=60)
            assert "/hot/small" in json.loads(reply.body)["paths"]

    run(main())
