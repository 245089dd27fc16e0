"""Policies of users at the doors that are not S3's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tierstore.auth.access import (
    JUDGED,
    OF_VERSIONS,
    Principal,
    authorize,
    authorize_all,
    is_allowed,
    is_allowed_somewhere,
    require_by_bucket,
    require_undenied,
)
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


HIDDEN = (
    {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"NotIpAddress": {"aws:SourceIp": "10.0.0.0/8"}},
    {"Bool": {"aws:SecureTransport": "false"}}, {"DateLessThan": {"aws:CurrentTime": "2000-01-01T00:00:00Z"}},
    {"StringEquals": {"s3:ExistingObjectTag/a": "b"}}, {"Null": {"aws:SourceIp": "false"}},
    {"StringLike": {"aws:username": "${aws:SourceIp}"}},
)  # fmt: skip


@pytest.mark.parametrize("condition", HIDDEN, ids=str)
def test_what_a_door_cannot_see_counts_against_the_caller(condition: dict[str, Any]) -> None:
    """Taken for absent, it would turn a Deny into nothing; a gateway that saw it has judged, so there it counts for
    him."""
    document = {"Version": "2012-10-17", "Statement": [{**deny("s3:*", "*"), "Condition": condition}]}
    who = Principal("AK", "bob", {"bbb": "readwrite"}, policies=(json.dumps(document),))
    assert not is_allowed(who, "read", "bbb", "k")
    assert is_allowed(who.sending(JUDGED), "read", "bbb", "k")
    document["Statement"] = [{**allow("s3:*", "*"), "Condition": condition}]
    who = Principal("AK", "bob", policies=(json.dumps(document),))
    assert not is_allowed(who, "read", "bbb", "k")
    assert is_allowed(who.sending(JUDGED), "read", "bbb", "k")


def test_a_bucket_binds_all_but_the_clusters_own() -> None:
    """Servers repair and replicate what nobody may read; whom a gateway has judged is not judged again by less."""
    policy = json.dumps({"Statement": [{**deny("s3:GetObject", "arn:aws:s3:::bbb/a*z/*"), "Principal": "*"}]})
    admin = Principal("AK", "root", {"*": "admin"})
    with pytest.raises(AccessDenied):
        require_by_bucket(admin, "read", "bbb", "abz/1", policy=policy)
    require_by_bucket(admin, "read", "bbb", "b/1", policy=policy)
    for other in (Principal("", "server 1", server=1), Principal("", "lifecycle"), admin.sending(JUDGED)):
        require_by_bucket(other, "read", "bbb", "abz/1", policy=policy)
    with pytest.raises(AccessDenied):
        require_by_bucket(admin, "read", "bbb", "*", policy=policy, of_all=True)
    require_by_bucket(admin, "write", "bbb", "*", policy=policy, of_all=True)


@pytest.mark.parametrize(
    ("resource", "reaches"),
    [
        ("arn:aws:s3:::bbb/*", True), ("*", True), ("arn:aws:s3:::b*", True), ("arn:aws:s3:::b*secret/x", True),
        ("arn:aws:s3:::b?b/k", True), ("arn:aws:s3:::${aws:username}/k", True), ("arn:aws:s3:::bbb", True),
        ("arn:aws:s3:::bb/*", False), ("arn:aws:s3:::bbbb/*", False), ("arn:aws:s3:::c*", False),
    ],
)  # fmt: skip
def test_a_mount_is_closed_by_whatever_reaches_into_its_bucket(resource: str, reaches: bool) -> None:
    """A star may stand for the end of the bucket's name and all that follows."""
    who = somebody(deny("s3:GetObject", resource), bbb="readwrite")
    if not reaches:
        authorize_all(who, "read", "bbb")
        return
    with pytest.raises(AccessDenied):
        authorize_all(who, "read", "bbb")


def test_versions_and_facts_are_denied_by_their_own_names() -> None:
    """Reading on in what one may read is not reading an old version."""
    who = somebody(deny("s3:GetObjectVersion", "arn:aws:s3:::bbb/*"), bbb="readwrite")
    assert is_allowed(who, "read", "bbb", "k")
    with pytest.raises(AccessDenied):
        require_undenied(who, OF_VERSIONS["read"], "bbb", "k", policy="")
    require_undenied(who, OF_VERSIONS["delete"], "bbb", "k", policy="")
    require_undenied(who.sending(JUDGED), OF_VERSIONS["read"], "bbb", "k", policy="")
