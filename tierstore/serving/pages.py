"""The service pages of every daemon: /-/healthz, /-/readyz, /-/metrics.

healthz: the process answers at all (a hung one still accepts connections, so the answer is the health). readyz: it
takes work now; the reasons stand in the answer when not. metrics: Prometheus text; closed by default (`metrics_guard`):
one token opens them on every daemon, so that a scraper needs no key that can do more.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from starlette.responses import JSONResponse, Response

from tierstore.config.sections import Telemetry
from tierstore.errors import NotFound

#: Raises NotAuthenticated or AccessDenied unless the request may see metrics. None: open to all.
MetricsGuard = Callable[[Request], Awaitable[None]]


def metrics_guard(settings: Telemetry, otherwise: MetricsGuard) -> MetricsGuard:
    """Who may see metrics: nobody when they are off, everybody when they are public, the bearer of the metrics token;
    else whom `otherwise` lets in by the daemon's own credentials."""
    expected = f"Bearer {settings.metrics_token}".encode() if settings.metrics_token else b""

    async def guard(request: Request) -> None:
        if not settings.metrics:
            raise NotFound("metrics are switched off here", code="no-such-route")
        if settings.metrics_public:
            return
        shown = request.headers.get("authorization", "").encode("latin-1")
        if not expected or not hmac.compare_digest(shown, expected):
            await otherwise(request)

    return guard


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
