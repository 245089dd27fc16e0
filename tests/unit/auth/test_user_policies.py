"""Policies of users at the doors that are not S3's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tierstore.auth.access import Principal, authorize, authorize_all, is_allowed, is_allowed_somewhere
from tierstore.errors import AccessDenied


def somebody(*statements: dict[str, Any], **grants: str) -> Principal:
    return Principal("AK", "bob", grants, policies=(json.dumps({"Statement": list(statements)}),))


def deny(action: str, resource: str) -> dict[str, Any]:
    return {"Effect": "Deny", "Action": action, "Resource": resource}


def allow(action: str, resource: str, **condition: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource, **condition}


def test_a_deny_wins_over_roles_key_by_key() -> None:
    """What an operator took away from a user must not stay open at another door."""
    who = somebody(deny("s3:GetObject", "arn:aws:s3:::bbb/secret/*"), bbb="readwrite")
    assert is_allowed(who, "read", "bbb", "open/1")
    assert not is_allowed(who, "read", "bbb", "secret/1")
    assert is_allowed(who, "write", "bbb", "secret/1")
    with pytest.raises(AccessDenied):
        authorize(who, "read", "bbb", "secret/1")


def test_an_allow_needs_no_role_and_gives_no_more_than_it_says() -> None:
    """Prefixes hold for keys and for lists; configuring a bucket needs all that it stands for; admin is no policy's."""
    who = somebody(
        allow("s3:PutObject", "arn:aws:s3:::bbb/in/*"),
        allow("s3:ListBucket", "arn:aws:s3:::bbb", Condition={"StringLike": {"s3:prefix": "in/*"}}),
    )
    assert is_allowed(who, "write", "bbb", "in/1")
    assert not is_allowed(who, "write", "bbb", "out/1")
    assert is_allowed(who, "list", "bbb", "in/")
    assert not is_allowed(who, "list", "bbb")
    assert is_allowed_somewhere(who, "write")
    part = somebody(allow("s3:CreateBucket", "*"))
    assert not is_allowed(part, "bucket", "bbb")
    everything = somebody(allow("s3:*", "*"))
    assert is_allowed(everything, "bucket", "bbb")
    assert not is_allowed(everything, "admin")


def test_doors_that_see_a_whole_bucket_are_strict() -> None:
    """A mount cannot tell keys apart: any Deny in the bucket closes it, an Allow must hold for all."""
    who = somebody(deny("s3:GetObject", "arn:aws:s3:::bbb/secret/*"), bbb="readwrite", ccc="readwrite")
    authorize_all(who, "write", "bbb")
    authorize_all(who, "read", "ccc")
    with pytest.raises(AccessDenied):
        authorize_all(who, "read", "bbb")
    narrow = somebody(allow("s3:GetObject", "arn:aws:s3:::bbb/in/*"))
    with pytest.raises(AccessDenied):
        authorize_all(narrow, "read", "bbb")
    authorize_all(somebody(allow("s3:GetObject", "arn:aws:s3:::bbb/*")), "read", "bbb")
