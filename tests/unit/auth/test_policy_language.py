"""The policy language, rule by rule of AWS's evaluation logic."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tierstore.auth.policy_language import ALLOW, DENY, Policy, PolicyError, Question, decide, matches


def policy(*statements: dict[str, Any]) -> Policy:
    return Policy.of(json.dumps({"Version": "2012-10-17", "Statement": list(statements)}))


def statement(**changes: Any) -> dict[str, Any]:
    made = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::b/*", **changes}
    return {name: value for name, value in made.items() if value is not None}


def ask(p: Policy, action: str = "s3:GetObject", resource: str = "arn:aws:s3:::b/k", user: str = "ann",
        **context: str) -> str:  # fmt: skip
    named = {name.replace("__", ":").replace("_", "-"): [value] for name, value in context.items()}
    return decide(p, Question(user, "AK" if user else "", action, resource, named))


def test_deny_wins_over_allow_wherever_it_stands() -> None:
    """The order of statements must not matter."""
    deny = statement(Effect="Deny", Action="s3:DeleteObject")
    for order in ((statement(), deny), (deny, statement())):
        assert ask(policy(*order)) == ALLOW
        assert ask(policy(*order), "s3:DeleteObject") == DENY
    assert ask(policy(deny)) == ""


def test_principals_are_users_keys_or_everybody() -> None:
    """An ARN names a user by its last part; nobody signed in is only `*`."""
    for principal in ("arn:aws:iam:::user/ann", "arn:aws:iam::tenant:user/ann", "ann", "AK"):
        p = policy(statement(Principal={"AWS": principal}))
        assert ask(p) == ALLOW
        assert ask(p, user="") == ""
    assert ask(policy(statement(Principal={"AWS": ["bob", "eve"]}))) == ""
    assert ask(policy(statement(Principal={"AWS": "*"})), user="") == ALLOW
    assert ask(policy(statement(Principal=None, NotPrincipal={"AWS": "ann"}))) == ""


def test_actions_and_resources_by_wildcard_and_by_exception() -> None:
    """Actions do not care for case, resources do."""
    p = policy(statement(Action=["S3:Get*"], Resource="arn:aws:s3:::b/a?c/*"))
    assert ask(p, "s3:GetObjectTagging", "arn:aws:s3:::b/abc/x") == ALLOW
    assert ask(p, "s3:PutObject", "arn:aws:s3:::b/abc/x") == ""
    assert ask(p, "s3:GetObject", "arn:aws:s3:::b/ABC/x") == ""
    p = policy(statement(Action=None, NotAction="s3:Delete*"))
    assert (ask(p), ask(p, "s3:DeleteObject")) == (ALLOW, "")
    p = policy(statement(Resource=None, NotResource="arn:aws:s3:::b/secret/*"))
    assert (ask(p), ask(p, resource="arn:aws:s3:::b/secret/x")) == (ALLOW, "")


@pytest.mark.parametrize(
    ("operator", "value", "holds", "fails"),
    [
        ("StringEquals", "a", "a", "A"), ("StringNotEquals", "a", "b", "a"), ("StringEqualsIgnoreCase", "a", "A", "b"),
        ("StringLike", "a*", "ab", "ba"), ("StringNotLike", "a*", "ba", "ab"), ("NumericLessThan", "10", "9", "10"),
        ("NumericGreaterThanEquals", "10", "10", "9"), ("NumericNotEquals", "1", "2", "1"),
        ("DateLessThan", "2026-01-01T00:00:00Z", "2025-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("IpAddress", "10.0.0.0/8", "10.1.2.3", "11.1.2.3"), ("NotIpAddress", "10.0.0.0/8", "11.1.2.3", "10.1.2.3"),
        ("IpAddress", "2001:db8::/32", "2001:db8::1", "10.0.0.1"), ("Bool", "true", "true", "false"),
        ("ArnLike", "arn:aws:s3:::*", "arn:aws:s3:::x", "arn:x"),
    ],
)  # fmt: skip
def test_condition_operators(operator: str, value: str, holds: str, fails: str) -> None:
    """Each operator, held and not; a missing key fails the positive ones, IfExists lets it pass."""
    p = policy(statement(Condition={operator: {"aws:x": value}}))
    assert ask(p, aws__x=holds) == ALLOW
    assert ask(p, aws__x=fails) == ""
    is_negated = "Not" in operator
    assert ask(p) == (ALLOW if is_negated else "")
    assert ask(policy(statement(Condition={operator + "IfExists": {"aws:x": value}}))) == ALLOW


def test_null_and_sets() -> None:
    """Null asks for the key itself; ForAllValues of nothing holds, ForAnyValue does not."""
    p = policy(statement(Condition={"Null": {"s3:x-amz-acl": "true"}}))
    assert (ask(p), ask(p, s3__x_amz_acl="private")) == (ALLOW, "")
    every = policy(statement(Condition={"ForAllValues:StringEquals": {"s3:k": ["a", "b"]}}))
    some = policy(statement(Condition={"ForAnyValue:StringEquals": {"s3:k": ["a", "b"]}}))
    for values, of_every, of_some in ((["a", "b"], ALLOW, ALLOW), (["a", "c"], "", ALLOW), ([], ALLOW, "")):
        question = Question("ann", "AK", "s3:GetObject", "arn:aws:s3:::b/k", {"s3:k": values} if values else {})
        assert (decide(every, question), decide(some, question)) == (of_every, of_some)


def test_public_is_an_allow_for_everybody_without_a_condition() -> None:
    """The public access block rests on it."""
    assert policy(statement()).is_public
    assert not policy(statement(Principal={"AWS": "ann"})).is_public
    assert not policy(statement(Effect="Deny")).is_public


@pytest.mark.parametrize(
    ("condition", "public"),
    [
        ({"IpAddress": {"aws:SourceIp": ["10.0.0.0/8", "2001:db8::/32"]}}, False),
        ({"IpAddress": {"aws:SourceIp": ["10.0.0.0/8", "0.0.0.0/0"]}}, True),
        ({"IpAddressIfExists": {"aws:SourceIp": "10.0.0.1"}}, True), ({"IpAddress": {"aws:SourceIp": "::/1"}}, True),
        ({"StringEquals": {"aws:username": ["ann", "bob"]}}, False), ({"StringLike": {"aws:username": "a*"}}, True),
        ({"StringNotEquals": {"aws:username": "ann"}}, True), ({"StringEquals": {"aws:Referer": "secret"}}, True),
        ({"StringEquals": {"aws:Referer": "x"}, "StringLike": {"aws:userid": "ann"}}, False),
    ],
)  # fmt: skip
def test_what_a_caller_may_choose_himself_narrows_nothing(condition: dict[str, Any], public: bool) -> None:
    """A block of public access that a condition on a header could pass would be none."""
    assert policy(statement(Condition=condition)).is_public is public


def test_any_value_is_never_no_value() -> None:
    """ForAnyValue needs one value at least, also where the operator is negated; only the negated one alone holds for a
    key that is missing."""
    for name, verdict in (("ForAnyValue:StringNotEquals", ""), ("StringNotEquals", ALLOW),
                          ("ForAllValues:StringNotEquals", ALLOW)):  # fmt: skip
        assert ask(policy(statement(Condition={name: {"s3:RequestObjectTagKeys": "a"}}))) == verdict, name
    with pytest.raises(PolicyError):
        policy(statement(Condition={"NullIfExists": {"aws:Referer": "true"}}))


def test_a_policy_says_which_keys_it_looks_at() -> None:
    """Looking up what a condition needs costs: only where one asks."""
    p = policy(statement(), statement(Condition={"StringEquals": {"s3:ExistingObjectTag/Colour": "red"}}))
    assert p.asks_for("s3:existingobjecttag/") and not p.asks_for("s3:requestobjecttag")


def test_a_policy_of_a_user_names_no_principal_and_is_for_its_holder() -> None:
    """The two kinds are not interchangeable: a principal in a user's policy would be silently ignored."""
    text = json.dumps({"Statement": [statement(Principal=None)]})
    assert ask(Policy.of_user(text)) == ALLOW
    with pytest.raises(PolicyError):
        Policy.of(text)
    with pytest.raises(PolicyError):
        Policy.of_user(json.dumps({"Statement": [statement()]}))


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"Statement": []}', '{"Statement": [1]}', '{"Statement": [], "More": 1}', "[" * 5000,
        *(json.dumps({"Statement": [statement(**wrong)]}) for wrong in (
            {"Effect": "Maybe"}, {"Action": []}, {"Action": "iam:CreateUser"}, {"Resource": "arn:aws:sqs:::x"},
            {"Principal": 5}, {"Principal": {"Service": "x"}}, {"Condition": {"Sounds": {"a": "b"}}},
            {"Condition": {"IpAddress": {"a": "no"}}}, {"Condition": {"NumericEquals": {"a": "x"}}},
            {"Condition": {"Bool": {"a": "maybe"}}}, {"Condition": {"StringEquals": []}}, {"NotAction": "s3:*"},
            {"Unknown": 1}, {"Condition": {"StringEquals": {"a": {"b": "c"}}}},
        )),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(text: str) -> None:
    """A condition that was silently dropped would let in."""
    with pytest.raises(PolicyError):
        Policy.of(text)


def test_wildcards_take_linear_time() -> None:
    """A pattern of stars must not stop the gateway."""
    assert not matches("*a" * 200 + "b", "a" * 5000)
    assert matches("*a" * 200, "a" * 5000)
