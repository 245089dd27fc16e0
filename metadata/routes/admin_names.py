"""/v1/admin/{keys,users,audit} and /v1/internal/credential: HTTP of services/access."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from metadata.routes.buckets import moment
from metadata.routes.callers import Callers
from metadata.services.access.audit import AuditService
from metadata.services.access.credentials import AccountRow, Credentials
from metadata.services.access.users import policies_of
from tierstore.errors import RequestError, TooLarge
from tierstore.wire import MEDIA_TYPE, decode, encode

QUESTION_BYTES_MAX = 4096


class Key(BaseModel):
    """An access key; its secrets are shown only when it is made."""

    access_key: str
    user: str
    grants: dict[str, str] = Field(description='bucket or "*" -> admin, readwrite or readonly')
    enabled: bool
    created_at: str
    expires_at: str | None


class NewKey(Key):
    token: str = Field(description="bearer token, shown only now")
    secret_key: str = Field(description="for signed S3 requests, shown only now")


class KeyList(BaseModel):
    keys: list[Key]


class User(BaseModel):
    """A user: the name that keys share, and the policies attached to him."""

    user: str
    keys: list[str]
    policies: dict[str, dict[str, Any]]


class UserList(BaseModel):
    users: list[User]


class KeyWish(BaseModel):
    model_config = ConfigDict(extra="forbid")

    user: str = ""
    access_key: str = Field("", description="left out: one is made")
    grants: dict[str, str]
    expires_at_ms: int = Field(0, ge=0, description="ms since 1970; 0: never")


class KeyChange(BaseModel):
    model_config = ConfigDict(extra="forbid")

    enabled: bool | None = None
    grants: dict[str, str] | None = None


class AuditEntry(BaseModel):
    id: int
    at: str
    who: str
    action: str
    target: str
    detail: str


class AuditPage(BaseModel):
    entries: list[AuditEntry]


def _key(account: AccountRow) -> dict[str, Any]:
    return {
        "access_key": account.access, "user": account.user, "grants": account.grants, "enabled": account.enabled,
        "created_at": moment(account.created_at_ms),
        "expires_at": moment(account.expires_at_ms) if account.expires_at_ms else None,
    }  # fmt: skip


def build(credentials: Credentials, audit: AuditService, callers: Callers) -> APIRouter:
    """The router."""
    router = APIRouter(tags=["admin"])
    _keys(router, credentials, callers)
    _users(router, credentials, callers)

    @router.get("/v1/admin/audit", response_model=AuditPage, summary="What operators did", operation_id="audit")
    async def audit_page(
        request: Request, before: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> dict[str, Any]:
        await callers.admin(request)
        rows = await audit.page(before=before, limit=limit)
        return {
            "entries": [
                {"id": r.id, "at": moment(r.at_ms), "who": r.who, "action": r.action, "target": r.target,
                 "detail": r.detail}
                for r in rows
            ]
        }  # fmt: skip

    return router


def _keys(router: APIRouter, credentials: Credentials, callers: Callers) -> None:
    @router.post(
        "/v1/internal/credential", response_class=Response, tags=["internal"], operation_id="credential",
        summary="A key by its name or by the hash of its token",
        openapi_extra={"requestBody": {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}},
        responses={200: {"content": {MEDIA_TYPE: {}}, "description": "wire.cluster.Credential"}},
    )  # fmt: skip
    async def credential(request: Request) -> Response:
        await callers.daemon(request)
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > QUESTION_BYTES_MAX:
                raise TooLarge(f"the question has more than {QUESTION_BYTES_MAX} bytes")
        question = decode(bytes(body), dict)
        access, digest = question.get("access", ""), question.get("token_sha256", b"")
        if not isinstance(access, str) or not isinstance(digest, bytes) or bool(access) == bool(digest):
            raise RequestError("ask by access or by token_sha256", code="bad-message")
        found = await credentials.for_gateway(access=access, token_sha256=digest)
        return Response(encode(found), media_type=MEDIA_TYPE)

    @router.get("/v1/admin/keys", response_model=KeyList, summary="All access keys", operation_id="list_keys")
    async def everyone(request: Request) -> dict[str, Any]:
        await callers.admin(request)
        return {"keys": [_key(account) for account in await credentials.everyone()]}

    @router.post(
        "/v1/admin/keys", response_model=NewKey, status_code=201, summary="Make an access key",
        operation_id="create_key",
    )  # fmt: skip
    async def create(request: Request, wish: KeyWish) -> dict[str, Any]:
        who = await callers.admin(request)
        account, token = await credentials.create(
            user=wish.user, grants=wish.grants, access=wish.access_key, expires_at_ms=wish.expires_at_ms,
            who=who.access,
        )  # fmt: skip
        return {**_key(account), "token": token, "secret_key": account.secret}

    @router.patch("/v1/admin/keys/{access_key}", response_model=Key, summary="Change a key", operation_id="change_key")
    async def change(request: Request, access_key: str, wish: KeyChange) -> dict[str, Any]:
        who = await callers.admin(request)
        if (wish.enabled is None) == (wish.grants is None):
            raise RequestError("exactly one of enabled and grants is needed", code="bad-json")
        if wish.grants is not None:
            return _key(await credentials.set_grants(access_key, wish.grants, who=who.access))
        return _key(await credentials.set_enabled(access_key, enabled=bool(wish.enabled), who=who.access))

    @router.delete(
        "/v1/admin/keys/{access_key}", status_code=204, response_class=Response, summary="Revoke a key for good",
        operation_id="revoke_key",
    )  # fmt: skip
    async def revoke(request: Request, access_key: str) -> Response:
        who = await callers.admin(request)
        await credentials.revoke(access_key, who=who.access)
        return Response(status_code=204)


def _users(router: APIRouter, credentials: Credentials, callers: Callers) -> None:
    @router.get("/v1/admin/users", response_model=UserList, summary="Users and their policies", operation_id="users")
    async def everyone(request: Request) -> dict[str, Any]:
        await callers.admin(request)
        return {"users": _grouped(await credentials.everyone())}

    @router.put(
        "/v1/admin/users/{user}/policies/{name}", response_model=UserList, operation_id="attach_policy",
        summary="Attach a policy to a user: what his signed S3 requests may do",
    )  # fmt: skip
    async def attach(request: Request, user: str, name: str, document: dict[str, Any]) -> dict[str, Any]:
        who = await callers.admin(request)
        return {"users": _grouped(await credentials.attach(user, name, json.dumps(document), who=who.access))}

    @router.delete(
        "/v1/admin/users/{user}/policies/{name}", response_model=UserList, operation_id="detach_policy",
        summary="Take a policy from a user",
    )  # fmt: skip
    async def detach(request: Request, user: str, name: str) -> dict[str, Any]:
        who = await callers.admin(request)
        return {"users": _grouped(await credentials.attach(user, name, None, who=who.access))}


def _grouped(accounts: list[AccountRow]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for account in accounts:
        entry = found.setdefault(account.user, {"user": account.user, "keys": [], "policies": {}})
        entry["keys"].append(account.access)
        entry["policies"] |= {name: json.loads(document) for name, document in policies_of(account)}
    return [found[user] for user in sorted(found)]
