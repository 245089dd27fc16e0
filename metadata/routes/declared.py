"""Hot rows of the protocol class's table, declared in FastAPI too: OpenAPI is true, and odd requests find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fastapi import FastAPI

from tierstore.serving.declared import declare
from tierstore.serving.table import Route
from tierstore.wire import MEDIA_TYPE

#: Last segment of the path -> (what it does, message asked with, message answered with).
Summaries = Mapping[str, tuple[str, str, str]]

_BINARY: Final = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_PROBLEM: Final = {
    "description": "What is wrong and how to mend it",
    "content": {"application/problem+json": {"schema": {"type": "object"}}},
}


def declare_routes(app: FastAPI, table: Sequence[Route], summaries: Summaries, *, family: str = "") -> None:
    """Add each row of the table to the application's OpenAPI; its operation is called `family` + its last segment.

    KeyError: a row that `summaries` does not know.
    """
    for route in table:
        name = route.prefix.rsplit(b"/", 1)[1].decode()
        summary, question, answer = summaries[name]
        declare(
            app, route, route.prefix.decode(), summary=summary, operation_id=family + name.replace("-", "_"),
            tags=["internal"],
            openapi_extra={"requestBody": {"required": True, "content": _BINARY, "description": f"wire {question}"}},
            responses={200: {"description": f"wire {answer}", "content": _BINARY}, "4XX": _PROBLEM, "5XX": _PROBLEM},
        )  # fmt: skip
