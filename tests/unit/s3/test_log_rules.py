"""Who lets access logs in: the service by its name and nobody who calls himself so, and a Deny that holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tierstore.auth.policy_language import ALLOW, LOG_SERVICE, Policy, PolicyError, Question, decide
from tierstore.gateway.s3.log_rules import may_deliver
from tierstore.wire.names import BucketView
from tierstore.wire.s3 import POLICY

_SOURCE = BucketView("source", 1, owner="owner")


def _target(*statements: dict[str, Any]) -> BucketView:
    return BucketView("target", 2, owner="owner", config={POLICY: json.dumps({"Statement": statements})})


def _statement(effect: str = "Allow", **more: Any) -> dict[str, Any]:
    return {"Effect": effect, "Principal": {"Service": LOG_SERVICE}, "Action": "s3:PutObject",
            "Resource": "arn:aws:s3:::target/logs/*", **more}  # fmt: skip


def test_a_policy_lets_the_service_deliver() -> None:
    """The key, the source and its owner count, as at AWS."""
    ours = {"ArnLike": {"aws:SourceArn": "arn:aws:s3:::source"}, "StringEquals": {"aws:SourceAccount": "owner"}}
    theirs = {"ArnLike": {"aws:SourceArn": "arn:aws:s3:::other"}}
    assert may_deliver(_SOURCE, _target(_statement(Condition=ours)), "logs/1")
    assert not may_deliver(_SOURCE, _target(_statement(Condition=ours)), "elsewhere/1")
    assert not may_deliver(_SOURCE, _target(_statement(Condition=theirs)), "logs/1")
    assert not may_deliver(_SOURCE, _target(_statement(), _statement("Deny", Principal="*")), "logs/1")
    assert not may_deliver(_SOURCE, BucketView("target", 2, owner="owner"), "logs/1")


def test_a_user_of_the_services_name_is_not_the_service() -> None:
    """Whoever may make users could else write into every bucket that takes logs."""
    policy = Policy.of(json.dumps({"Statement": [_statement()]}))
    asked = Question(LOG_SERVICE, LOG_SERVICE, "s3:PutObject", "arn:aws:s3:::target/logs/1", {})
    assert decide(policy, asked) != ALLOW
    assert not policy.is_public


def test_services_that_are_not_ours_are_refused() -> None:
    """A policy for a service that nobody here is would promise what never happens."""
    with pytest.raises(PolicyError, match="principal"):
        Policy.of(json.dumps({"Statement": [_statement(Principal={"Service": "ec2.amazonaws.com"})]}))
