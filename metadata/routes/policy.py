"""/v1/admin/policy: HTTP of services/access/policies. What a document may say is tierstore/policy/parser's matter.

A document comes as JSON, or as TOML when its Content-Type says so: then what is wrong with it is named with its line.
Invariant: whatever a body holds, the answer is the policy or a `bad-policy` that says what was expected where.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from metadata.routes.buckets import moment
from metadata.routes.callers import Callers
from metadata.services.access.policies import Current, Policies
from metadata.services.tiering.doubts import PolicyDoubts
from tierstore.errors import TooLarge
from tierstore.policy.parser import json_tree, refusal, toml_tree

#: What is kept has at most half of it; people indent and comment.
BODY_BYTES_MAX: Final = 2 << 20
TOML_TYPE: Final = "application/toml"
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object"}}, TOML_TYPE: {"schema": {"type": "string"}}},
    }
}

Force = Annotated[bool, Query(description="set it also when a rule asks for more copies than there are servers")]


class PolicyVersion(BaseModel):
    revision: int
    at: str
    who: str
    note: str
    policy: dict[str, Any]


class PolicyHistory(BaseModel):
    revisions: list[PolicyVersion]


class Rollback(BaseModel):
    model_config = ConfigDict(extra="forbid")

    revision: int = Field(ge=0, description="Of the history; 0: the built-in policy.")


def build(policies: Policies[Any], doubts: PolicyDoubts, callers: Callers) -> APIRouter:
    """The router."""
    router = APIRouter(tags=["admin"])

    @router.get(
        "/v1/admin/policy", response_model=dict[str, Any], summary="The policy, with its revision",
        operation_id="get_policy",
    )  # fmt: skip
    async def show(request: Request) -> dict[str, Any]:
        await callers.who(request)
        return _policy(policies.current)

    @router.put(
        "/v1/admin/policy", response_model=dict[str, Any], summary="Replace the policy", operation_id="put_policy",
        description="`revision`, when given, must be the one that is replaced; `note` goes into the history. The "
        "answer's `warnings` name rules that are valid and have no effect here.",
        openapi_extra=_BODY,
    )  # fmt: skip
    async def put(request: Request, note: Annotated[str, Query()] = "", force: Force = False) -> dict[str, Any]:
        who = await callers.admin(request)
        document, text = await _document(request)
        expected = _taken_revision(document)
        taken = await policies.set(
            document, text=text, who=who.access, note=note[:500], expected=expected, is_forced=force
        )
        return {**_policy(taken), "warnings": await doubts.of(document)}

    @router.post(
        "/v1/admin/policy/check", response_model=dict[str, Any], summary="Check a policy without setting it",
        operation_id="check_policy", openapi_extra=_BODY,
    )  # fmt: skip
    async def check(request: Request, force: Force = False) -> dict[str, Any]:
        await callers.admin(request)
        document, text = await _document(request)
        _taken_revision(document)
        kept = policies.check(document, text=text, is_forced=force)
        return {**kept, "warnings": await doubts.of(document)}

    @router.get(
        "/v1/admin/policy/history", response_model=PolicyHistory, summary="Earlier policies, the newest first",
        operation_id="policy_history",
    )  # fmt: skip
    async def history(request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        await callers.admin(request)
        rows = await policies.history(limit)
        return {
            "revisions": [
                {"revision": r.revision, "at": moment(r.at_ms), "who": r.who, "note": r.note,
                 "policy": json.loads(r.document)}
                for r in rows
            ]
        }  # fmt: skip

    @router.post(
        "/v1/admin/policy/rollback", response_model=dict[str, Any], summary="Make an old policy the newest",
        operation_id="rollback_policy",
    )  # fmt: skip
    async def rollback(request: Request, wish: Rollback, force: Force = False) -> dict[str, Any]:
        who = await callers.admin(request)
        answer = _policy(await policies.rollback(wish.revision, who=who.access, is_forced=force))
        return {**answer, "warnings": await doubts.of({k: v for k, v in answer.items() if k != "revision"})}

    return router


def _policy(current: Current[Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(current.document)
    return {**document, "revision": current.revision}


async def _document(request: Request) -> tuple[Any, str]:
    """The tree of a body, and its text where that is TOML. Raises RequestError(bad-policy), TooLarge."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            raise TooLarge(f"a policy comes in at most {BODY_BYTES_MAX} bytes")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != TOML_TYPE:
        return json_tree(bytes(body)), ""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise refusal(f"the policy is not TOML: {error}") from None
    return toml_tree(text), text


def _taken_revision(document: Any) -> int | None:
    """The revision that is to be replaced, taken out of the document; None: whichever there is. An answer to PUT may be
    sent again: its warnings go, too."""
    if isinstance(document, dict):
        document.pop("warnings", None)
    expected = document.pop("revision", None) if isinstance(document, dict) else None
    if expected is not None and type(expected) is not int:
        raise refusal("revision: revision is the number that GET showed, or left out: the document replaces any")
    return expected
