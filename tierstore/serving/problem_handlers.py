"""FastAPI's error handlers: whatever leaves one of its routes becomes a problem answer (serving.problem)."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tierstore.errors import TierstoreError
from tierstore.serving import problem


def response(error: BaseException, request_id: str, instance: str = "") -> Response:
    """The same as a Starlette response, for routes and gateways that answer through FastAPI."""
    status, members = problem.document(error, request_id, instance)
    if status == 304:
        return Response(status_code=304)
    headers = dict(problem.extra_headers(error))
    return Response(problem.encoder.encode(members), status_code=status, headers=headers, media_type=problem.MEDIA_TYPE)


def request_id_of(request: Request) -> str:
    """The id given by the protocol class (or the adapter); "-" in a bare ASGI test client."""
    return str(getattr(request.state, "request_id", "-"))


def _validation_detail(error: RequestValidationError) -> str:
    parts = []
    for item in error.errors()[:5]:
        where = ".".join(str(step) for step in item.get("loc", ()))
        if item.get("type") == "json_invalid":      # its place is the character, and its message says only that much
            why = item.get("ctx", {}).get("error", "wrong")
            parts.append(f"the body is not JSON: {why} (at character {where.removeprefix('body.')})")
            continue
        parts.append(f"{where}: {item.get('msg', 'wrong')}")
    return "; ".join(parts)


def install(app: FastAPI) -> None:
    """Make every error that leaves a FastAPI route a problem answer."""

    async def on_ours(request: Request, error: Exception) -> Response:
        return response(error, request_id_of(request))

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        edge = problem.EdgeError(422, _validation_detail(error), code="bad-request")
        return response(edge, request_id_of(request))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = {
            404: f"nothing is served at {request.url.path}",
            405: f"{request.method} is not allowed at {request.url.path}",
        }.get(error.status_code, str(error.detail))
        answer = response(problem.EdgeError(error.status_code, detail), request_id_of(request))
        for name, value in (error.headers or {}).items():
            answer.headers[name] = value
        return answer

    app.add_exception_handler(TierstoreError, on_ours)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_ours)
