"""Policies that would do nothing of what they say are refused when they are set; all that S3 knows is taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tierstore.auth.policy_language import Policy, PolicyError
from tierstore.gateway.s3 import rights
from tierstore.gateway.s3.policy_review import review

BUCKET, INSIDE = "arn:aws:s3:::b", "arn:aws:s3:::b/*"


def reviewed(**statement: Any) -> None:
    made = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": INSIDE, **statement}
    made = {name: value for name, value in made.items() if value is not None}
    review(Policy.of(json.dumps({"Version": "2012-10-17", "Statement": [made]})), "b")


@pytest.mark.parametrize(
    "statement",
    [
        {}, {"Action": "*"}, {"Action": "s3:*", "Resource": BUCKET}, {"Action": "S3:getobject"},
        {"Action": ["s3:ListBucket", "s3:GetObject"], "Resource": [BUCKET, INSIDE]},
        {"Action": "s3:ListBucket", "Resource": "arn:aws:s3:::*"}, {"Action": "s3:ListBucket", "Resource": "*"},
        {"Action": ["s3:ListBucket", "s3:PutObject"], "Resource": "arn:aws:s3:::b*"},
        {"Action": "s3:Get*", "Resource": BUCKET}, {"Action": "s3:P?tObject"},
        {"Resource": "arn:aws:s3:::b/${aws:username}/*"}, {"Action": None, "NotAction": "s3:ListBucket"},
        {"Effect": "Deny", "Principal": None, "NotPrincipal": {"AWS": "x"}},
        {"Action": "s3:ListBucket", "Resource": None, "NotResource": INSIDE},
        {"Condition": {"StringLike": {"s3:prefix": "a", "aws:PrincipalTag/team": "b", "S3:ExistingObjectTag/x": "c"}}},
        {"Condition": {"StringEquals": {"s3:x-amz-acl": "a", "s3:RequestObjectTagKeys": "b", "aws:SourceArn": "c"}}},
        *({"Action": action, "Resource": [BUCKET, INSIDE]} for action in rights._ROLE),
    ],
    ids=str,
)  # fmt: skip
def test_what_can_be_done_is_taken(statement: dict[str, Any]) -> None:
    """Each action that this store judges among it: a list that lacked one would refuse honest policies."""
    reviewed(**statement)


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ({"Action": "s3:GetObjekt"}, "invalid action"), ({"Action": "s3:Fetch*"}, "invalid action"),
        ({"Action": None, "NotAction": "s3:GetObjekt"}, "invalid action"),
        ({"Resource": BUCKET}, "does not apply"), ({"Action": "s3:ListBucket"}, "does not apply"),
        ({"Action": ["s3:GetObject", "s3:ListBucket"]}, "does not apply"),
        ({"Resource": "arn:aws:s3:::other/*"}, "invalid resource"),
        ({"Condition": {"StringEquals": {"s3:prefx": "a"}}}, "invalid condition key"),
        ({"Condition": {"StringEquals": {"aws:sourceipp": "a"}}}, "invalid condition key"),
        ({"Condition": {"StringEquals": {"ec2:vpc": "a"}}}, "invalid condition key"),
        ({"Principal": None, "NotPrincipal": {"AWS": "x"}}, "NotPrincipal"),
    ],
    ids=str,
)  # fmt: skip
def test_what_could_never_be_is_refused(statement: dict[str, Any], why: str) -> None:
    """A Deny with a slip in its action would guard nothing, and nobody would hear of it."""
    with pytest.raises(PolicyError, match=why):
        reviewed(**statement)
