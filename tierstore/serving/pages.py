"""The service pages of every daemon: /-/healthz, /-/readyz, /-/metrics.

healthz: the process answers at all (a hung one still accepts connections, so the answer is the health). readyz: it
takes work now; the reasons stand in the answer when not. metrics: Prometheus text, only with a valid credential
unless the caller opened them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from starlette.responses import JSONResponse, Response

#: Raises NotAuthenticated or AccessDenied unless the request may see metrics. None: open to all.
MetricsGuard = Callable[[Request], Awaitable[None]]


def install(
    app: FastAPI, *, reasons_not_ready: Callable[[], list[str]], guard: MetricsGuard | None,
    registry: CollectorRegistry = REGISTRY,
) -> None:  # fmt: skip
    """Add the pages. reasons_not_ready(): short texts for people; empty means ready."""

    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz() -> Response:
        reasons = reasons_not_ready()
        if reasons:
            return JSONResponse({"status": "not-ready", "reasons": reasons}, status_code=503)
        return JSONResponse({"status": "ready"})

    async def metrics(request: Request) -> Response:
        if guard is not None:
            await guard(request)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    app.add_api_route(
        "/-/healthz", healthz, methods=["GET"], summary="The process answers", operation_id="healthz",
        tags=["service"], response_model=dict[str, str],
    )  # fmt: skip
    app.add_api_route(
        "/-/readyz", readyz, methods=["GET"], summary="The process takes work", operation_id="readyz",
        tags=["service"], response_model=dict[str, object], responses={503: {"description": "Not ready, with reasons"}},
    )  # fmt: skip
    app.add_api_route(
        "/-/metrics", metrics, methods=["GET"], summary="Prometheus metrics", operation_id="metrics",
        tags=["service"], response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, 401: {"description": "A credential is needed"}},
    )  # fmt: skip
