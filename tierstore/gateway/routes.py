"""The route table of the gateway: hot rows, FastAPI rows, and what OpenAPI says of both.

Owns no behaviour of its own but rename and copy; the doors and the forwarder have it. Invariant: every path that is
answered under /v1 stands here, so /v1/openapi.json is true (tests drive it with schemathesis).
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from tierstore.auth.access import Action
from tierstore.errors import NotAuthenticated, RequestError
from tierstore.gateway.bodies import Bodies
from tierstore.gateway.credentials import CredentialCache
from tierstore.gateway.forward import Forwarder, read_body
from tierstore.gateway.listing import ListingDoor
from tierstore.gateway.models import (
    Bucket,
    BucketList,
    Explanation,
    ObjectAction,
    ObjectMade,
    ObjectPage,
    Problem,
    Quota,
    QuotaChange,
    Replication,
    Simulation,
    Tree,
)
from tierstore.gateway.models import Route as RouteModel
from tierstore.gateway.object_request import parse_condition, split_object_path
from tierstore.gateway.objects import PREFIX, ObjectDoor
from tierstore.gateway.redirect import Redirects
from tierstore.gateway.rights import NativeRights
from tierstore.gateway.sites import route_of
from tierstore.names import check_bucket_name, check_key, version_text
from tierstore.sdk.store import Store
from tierstore.serving.declared import declare
from tierstore.serving.exchange import Exchange
from tierstore.serving.table import Route

_ACTION_BYTES_MAX: Final = 64 * 1024
_PROBLEM: Final[dict[str, Any]] = {
    "description": "What is wrong and how to mend it",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {"4XX": _PROBLEM, "5XX": _PROBLEM}
_STRING: Final = {"type": "string"}


class _Action(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rename_to: str | None = None
    copy_to: str | None = None


# -- objects, hot -----------------------------------------------------------------------------------------------
def hot_routes(objects: ObjectDoor, listing: ListingDoor, redirects: Redirects) -> list[Route]:
    """The rows of the protocol class's table."""
    near = redirects.native

    def get(exchange: Exchange) -> None:
        if b"/" in exchange.route_arg:
            objects.get(exchange)
        else:
            objects.begin(exchange, listing.list(exchange))

    return [
        Route(b"GET", PREFIX, near(get)),
        Route(b"HEAD", PREFIX, near(objects.get), accepts=_has_key),
        Route(b"PUT", PREFIX, near(objects.put), accepts=_has_key),
        Route(b"DELETE", PREFIX, near(objects.delete), accepts=_has_key),
    ]


def _has_key(rest: bytes) -> bool:
    return b"/" in rest


def _header(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": _STRING, "description": text}


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


def _path(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _STRING}
        for name in re.findall(r"{(\w+)(?::path)?}", path)
    ]


_CONDITIONS: Final = [
    _header("If-Match", "* or quoted ETags: only if the object has one of them"),
    _header("If-None-Match", "* or quoted ETags: only if the object has none of them"),
]
_NEAR: Final = _header("x-tierstore-near", "redirect: answer 307 to a gateway of the site near the client's address")
_VERSION: Final = _query("version", {"type": "string"}, "a version (16 hex digits) in place of the latest")
_BINARY: Final = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


def declare_hot(app: FastAPI, routes: list[Route]) -> None:
    """Put the hot rows into OpenAPI and into FastAPI, which serves them when the protocol class cannot."""
    get, head, put, delete = routes
    path = "/v1/objects/{bucket}/{key:path}"
    page = {"description": "A page", "content": {"application/json": {"schema": _ref(ObjectPage)}}}
    declare(
        app, get, "/v1/objects/{bucket}", summary="List objects", operation_id="listObjects", tags=["objects"],
        responses={200: page, **_PROBLEMS},
        openapi_extra={"parameters": [
            *_path("{bucket}"), _query("prefix", _STRING, "only keys that begin with it"),
            _query("delimiter", _STRING, "keys that share what comes up to it are shown as one prefix"),
            _query("start_after", _STRING, "only keys behind this one"),
            _query("limit", {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 1000}, "keys and prefixes"),
        ]},
    )  # fmt: skip
    declare(
        app, get, path, summary="Read an object", operation_id="getObject", tags=["objects"],
        responses={
            200: {"description": "The bytes", **_BINARY}, 206: {"description": "A range", **_BINARY},
            304: {"description": "If-None-Match holds"}, 307: {"description": "Ask there (x-tierstore-near)"},
            **_PROBLEMS,
        },
        openapi_extra={"parameters": [
            *_path(path), *_CONDITIONS, _NEAR, _header("Range", "bytes=0-99, bytes=100-, bytes=-100"), _VERSION,
        ]},
    )  # fmt: skip
    declare(
        app, head, path, summary="An object's facts", operation_id="headObject", tags=["objects"],
        responses={200: {"description": "In the headers"}, 304: {"description": "If-None-Match holds"}, **_PROBLEMS},
        openapi_extra={"parameters": [*_path(path), *_CONDITIONS, _VERSION]},
    )  # fmt: skip
    declare(
        app, put, path, summary="Store an object", operation_id="putObject", tags=["objects"],
        responses={200: {"description": "Durable; ETag and version in the headers"}, **_PROBLEMS},
        openapi_extra={
            "parameters": [
                *_path(path), *_CONDITIONS,
                _header("x-tierstore-checksum-crc32c", "base64 of the 4 big-endian bytes of the body's CRC32C"),
            ],
            "requestBody": {"required": True, **_BINARY},
        },
    )  # fmt: skip
    declare(
        app, delete, path, summary="Delete an object", operation_id="deleteObject", tags=["objects"],
        responses={204: {"description": "Deleted"}, **_PROBLEMS},
        openapi_extra={"parameters": [*_path(path), *_CONDITIONS, _VERSION]},
    )  # fmt: skip


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


# -- rename and copy --------------------------------------------------------------------------------------------
def add_actions(app: FastAPI, store: Store, credentials: CredentialCache, rights: NativeRights) -> None:
    """POST /v1/objects/{bucket}/{key}: rename or copy, one atomic step in the catalog."""
    path = "/v1/objects/{bucket}/{key:path}"

    async def act(request: Request) -> Response:
        raw = bytes(request.scope.get("raw_path") or request.scope["path"].encode())
        bucket, key = split_object_path(raw[len(PREFIX) :])
        header = request.headers.get("authorization")
        principal = await credentials.resolve(None if header is None else header.encode("latin-1"))
        address = request.client.host if request.client is not None else ""

        async def require(action: Action, bucket: str, key: str) -> None:
            headers = {name.lower(): value for name, value in request.headers.items()}
            await rights.judge(principal, action, bucket, key, address=address, headers=headers)

        await require("read", bucket, key)
        action = _action_of(await read_body(request, _ACTION_BYTES_MAX))
        condition = parse_condition(_raw(request, "if-match"), _raw(request, "if-none-match"))
        if action.rename_to is not None:
            to_bucket, to_key = bucket, check_key(action.rename_to)
            await require("delete", bucket, key)
        else:
            to_bucket, _, to_key = (action.copy_to or "").partition("/")
            check_bucket_name(to_bucket)
            check_key(to_key)
        await require("write", to_bucket, to_key)
        result = await store.copy(
            bucket, key, to_bucket, to_key, condition=condition, rename=action.rename_to is not None,
            access=principal.access,
        )  # fmt: skip
        made = ObjectMade(
            bucket=to_bucket, key=to_key, version=version_text(result.version), etag=result.etag, size=result.size
        )
        return Response(made.model_dump_json(), media_type="application/json")

    app.add_api_route(
        path, act, methods=["POST"], summary="Rename or copy an object", operation_id="renameOrCopyObject",
        tags=["objects"], response_model=ObjectMade, responses=_responses(),
        openapi_extra={
            "parameters": [*_path(path), *_CONDITIONS],
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(ObjectAction)}}},
        },
    )  # fmt: skip


def _action_of(body: bytes) -> _Action:
    try:
        action = msgspec.json.decode(body, type=_Action)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise RequestError(
            f'send {{"rename_to": "key"}} or {{"copy_to": "bucket/key"}}: {error}', code="bad-json"
        ) from None
    if (action.rename_to is None) == (action.copy_to is None):
        raise RequestError("exactly one of rename_to and copy_to is needed", code="bad-json")
    return action


def _raw(request: Request, name: str) -> bytes | None:
    value = request.headers.get(name)
    return None if value is None else value.encode("latin-1")


def problem_responses() -> dict[int | str, dict[str, Any]]:
    """What every route may answer beside its own."""
    return dict(_PROBLEMS)


def _responses() -> dict[int | str, dict[str, Any]]:
    return dict(_PROBLEMS)


# -- what metadata answers --------------------------------------------------------------------------------------
#: method, path, operation id, summary, status when it succeeds, model of the answer, model of the question.
_FORWARDED: Final[tuple[tuple[str, str, str, str, int, type[BaseModel] | None, type[BaseModel] | None], ...]] = (
    ("GET", "/v1/buckets", "listBuckets", "All buckets the caller may see", 200, BucketList, None),
    ("GET", "/v1/buckets/{bucket}", "getBucket", "A bucket's facts", 200, Bucket, None),
    ("PUT", "/v1/buckets/{bucket}", "createBucket", "Make a bucket", 201, Bucket, None),
    ("DELETE", "/v1/buckets/{bucket}", "deleteBucket", "Remove an empty bucket", 204, None, None),
    ("GET", "/v1/buckets/{bucket}/replication", "getReplication", "Replication rules", 200, Replication, None),
    ("PUT", "/v1/buckets/{bucket}/replication", "putReplication", "Set replication", 200, Replication, Replication),
    ("GET", "/v1/buckets/{bucket}/quota", "getQuota", "The quota and what is used of it", 200, Quota, None),
    ("PUT", "/v1/buckets/{bucket}/quota", "putQuota", "Set the quota; zeros remove it", 200, Quota, QuotaChange),
    ("GET", "/v1/explain/{bucket}/{key:path}", "explainObject", "Why an object is where it is", 200, Explanation, None),
    ("GET", "/v1/cluster", "clusterMap", "The map of servers and sites", 200, Tree, None),
    ("GET", "/v1/admin/heat", "adminHeat", "What is hot", 200, Tree, None),
    ("GET", "/v1/admin/servers", "adminServers", "Servers and their devices", 200, Tree, None),
    ("POST", "/v1/admin/servers/{name}/drain", "drainServer", "Empty a server while it serves", 200, Tree, None),
    ("POST", "/v1/admin/servers/{name}/undrain", "undrainServer", "Take a server back", 200, Tree, None),
    ("GET", "/v1/admin/tiers", "adminTiers", "Tiers: space and speed", 200, Tree, None),
    ("GET", "/v1/admin/sites", "adminSites", "Sites", 200, Tree, None),
    ("GET", "/v1/admin/jobs", "adminJobs", "Background work", 200, Tree, None),
    ("GET", "/v1/admin/replication", "adminReplication", "How far each target site is behind", 200, Tree, None),
    ("GET", "/v1/admin/policy", "getPolicy", "The policy in force", 200, Tree, None),
    ("PUT", "/v1/admin/policy", "putPolicy", "Apply a policy", 200, Tree, Tree),
    ("POST", "/v1/admin/policy/simulate", "simulatePolicy", "What a policy would have done", 200, Tree, Simulation),
)


def add_forwarded(app: FastAPI, forwarder: Forwarder) -> None:
    """Names and admin: answered by metadata."""

    async def forward(request: Request) -> Response:
        return await forwarder.forward(request)

    for method, path, operation, summary, status, answer, question in _FORWARDED:
        extra: dict[str, Any] = {"parameters": [*_path(path), *([_VERSION] if operation == "explainObject" else [])]}
        if question is not None:
            extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(question)}}}
        app.add_api_route(
            path, forward, methods=[method], operation_id=operation, summary=summary, status_code=status,
            response_model=None, tags=["admin" if "/admin/" in path else "names"], openapi_extra=extra,
            responses={status: _described(answer, summary), **_PROBLEMS},
        )  # fmt: skip
    # routes that a newer metadata has under these trees: served, not described
    for path in ("/v1/admin/{rest:path}", "/v1/buckets/{rest:path}"):
        app.add_api_route(
            path, forward, methods=["GET", "PUT", "POST", "DELETE", "PATCH"], include_in_schema=False,
            response_model=None,
        )  # fmt: skip


def _described(answer: type[BaseModel] | None, summary: str) -> dict[str, Any]:
    if answer is None:
        return {"description": summary}
    return {"description": summary, "content": {"application/json": {"schema": _ref(answer)}}}


def add_route_page(app: FastAPI, store: Store, credentials: CredentialCache, bodies: Bodies) -> None:
    """GET /v1/route: where a client should go."""

    async def route(request: Request) -> RouteModel:
        principal = await credentials.resolve(_raw(request, "authorization"))
        if not principal.access:
            raise NotAuthenticated("send a token: Authorization: Bearer tst.<access>.<secret>")
        view = await store.client.cluster_map()
        site = next((site for site in view.sites if site.name == view.site), None)
        address = request.client.host if request.client is not None else ""
        return route_of(address, site.gateways if site is not None else [], await bodies.peers())

    app.add_api_route(
        "/v1/route", route, methods=["GET"], operation_id="route", summary="The site and gateways near the caller",
        response_model=RouteModel, responses=_responses(), tags=["names"],
    )  # fmt: skip


def add_schemas(app: FastAPI) -> None:
    """Make the models that are only named in the table part of the document, once."""
    models: tuple[type[BaseModel], ...] = (
        Problem, ObjectPage, ObjectAction, ObjectMade, BucketList, Bucket, Replication, Explanation, Tree, Simulation,
        Quota, QuotaChange,
    )  # fmt: skip
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = build()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in models:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"bearer": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
