"""Variables of policies: what they stand for, and what they never let in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tierstore.auth.policy_language import ALLOW, DENY, Policy, PolicyError, Question, decide

NEW, OLD = "2012-10-17", "2008-10-17"


def policy(version: str = NEW, **changes: Any) -> Policy:
    made = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::b/*", **changes}
    statement = {name: value for name, value in made.items() if value is not None}
    return Policy.of(json.dumps({"Version": version, "Statement": [statement]}))


def ask(p: Policy, key: str = "k", user: str = "ann", **context: str | list[str]) -> str:
    named = {name.replace("__", ":"): v if isinstance(v, list) else [v] for name, v in context.items()}
    if user:
        named["aws:username"] = [user]
    return decide(p, Question(user, "AK" if user else "", "s3:GetObject", f"arn:aws:s3:::b/{key}", named))


def test_a_home_for_each_user() -> None:
    """One policy for many: each reaches what bears his name, whatever the case of the variable; strangers nothing."""
    for name in ("${aws:username}", "${AWS:UserName}", "${ aws:username }"):
        p = policy(Resource=f"arn:aws:s3:::b/home/{name}/*")
        assert ask(p, "home/ann/x") == ALLOW
        assert ask(p, "home/bob/x") == ""
        assert ask(p, "home/ann") == ""
        assert ask(p, "home//x", user="") == ""
        assert ask(p, "home/${aws:username}/x", user="") == ""


def test_a_name_is_no_pattern() -> None:
    """Somebody called `*` would else reach everybody's."""
    p = policy(Resource="arn:aws:s3:::b/${aws:username}/*")
    assert ask(p, "*/x", user="*") == ALLOW
    assert ask(p, "ann/x", user="*") == ask(p, "ann/x", user="?nn") == ""
    like = policy(Condition={"StringLike": {"s3:prefix": "${aws:username}/*"}})
    assert ask(like, user="*", s3__prefix="ann/") == ""
    assert ask(like, user="*", s3__prefix="*/x") == ALLOW


def test_the_older_version_knows_none() -> None:
    """There the text is only text, as at AWS, with its own wildcards."""
    p = policy(OLD, Resource="arn:aws:s3:::b/${aws:username}/*")
    assert ask(p, "ann/x") == ""
    assert ask(p, "${aws:username}/x") == ALLOW
    assert ask(Policy.of(json.dumps({"Statement": [
        {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::b/${aws:username}/*"},
    ]})), "ann/x") == ""  # fmt: skip


def test_escapes_are_the_characters_themselves() -> None:
    """For keys that hold a star, a question mark or a dollar."""
    p = policy(Resource="arn:aws:s3:::b/a${*}b${?}c${$}{x}*")
    assert ask(p, "a*b?c${x}tail") == ALLOW
    assert ask(p, "aXXb?c${x}") == ask(p, "a*bYc${x}") == ""
    assert ask(policy(Condition={"StringEquals": {"s3:prefix": "a${*}"}}), s3__prefix="a*") == ALLOW
    assert ask(policy(Condition={"StringLike": {"s3:prefix": "${*}*"}}), s3__prefix="ab") == ""


def test_a_default_stands_in_where_nothing_is_known() -> None:
    """`${key, 'text'}`; many values are none that could stand there."""
    p = policy(Resource="arn:aws:s3:::b/${aws:PrincipalTag/team, 'all of us'}/*")
    assert ask(p, "all of us/x") == ALLOW
    assert ask(p, "red/x", **{"aws:principaltag/team": "red"}) == ALLOW
    assert ask(p, "all of us/x", **{"aws:principaltag/team": "red"}) == ""
    assert ask(p, "all of us/x", **{"aws:principaltag/team": ["red", "blue"]}) == ""
    assert ask(policy(Resource="arn:aws:s3:::b/${aws:x, ''}end"), "end") == ALLOW


def test_conditions_of_texts_take_variables_and_others_do_not() -> None:
    """Also ARNs; a number or an address with one is refused when it is set."""
    held = {"s3__prefix": "ann/"}
    for operator in ("StringEquals", "StringEqualsIgnoreCase", "StringLike", "ForAnyValue:StringEquals", "ArnLike"):
        p = policy(Condition={operator: {"s3:prefix": "${aws:username}/"}})
        assert ask(p, **held) == ALLOW, operator
        assert ask(p, user="bob", **held) == "", operator
    p = policy(Condition={"StringNotEquals": {"s3:prefix": "${aws:username}/"}})
    assert (ask(p, **held), ask(p, user="bob", **held)) == ("", ALLOW)
    for operator in ("NumericEquals", "IpAddress", "DateLessThan", "Bool"):
        with pytest.raises(PolicyError):
            policy(Condition={operator: {"aws:x": "${aws:username}"}})


def test_in_doubt_a_deny_holds_and_an_allow_does_not() -> None:
    """A variable without a value must not turn a negated Deny into nothing, nor an Allow into one for all."""
    for effect, verdict in (("Allow", ""), ("Deny", DENY)):
        negated = policy(Effect=effect, Condition={"StringNotLike": {"s3:prefix": "${aws:username}/*"}})
        assert ask(negated, user="", s3__prefix="x/") == verdict
        excepted = policy(Effect=effect, Resource=None, NotResource="arn:aws:s3:::b/${aws:username}/*")
        assert ask(excepted, user="") == verdict
        named = policy(Effect=effect, Resource="arn:aws:s3:::b/${aws:username}/*")
        assert ask(named, user="") == ""


def test_a_variable_narrows_nothing_and_is_asked_for() -> None:
    """A public policy stays one whatever name it compares with itself; what a variable needs is looked up."""
    assert policy(Condition={"StringEquals": {"aws:username": "${aws:username}"}}).is_public
    assert not policy(OLD, Condition={"StringEquals": {"aws:username": "${aws:username}"}}).is_public
    assert policy(Resource="arn:aws:s3:::b/${s3:ExistingObjectTag/a}").asks_for("s3:existingobjecttag/")
    assert policy(Condition={"StringEquals": {"s3:prefix": "${aws:X}"}}).asks_for("aws:x")


@pytest.mark.parametrize("text", ["${", "${}", "${aws:username", "${a, b}", "${a, 'b}", "${a,}", "${a{b}", "${, 'x'}"])
def test_broken_variables_are_refused(text: str) -> None:
    """Taken as text they would silently match nothing. One that an older release took denies everything."""
    with pytest.raises(PolicyError):
        policy(Resource=f"arn:aws:s3:::b/{text}")
    with pytest.raises(PolicyError):
        policy(Condition={"StringLike": {"s3:prefix": text}})
    policy(OLD, Resource=f"arn:aws:s3:::b/{text}")
    statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::b/{text}"}
    kept = json.dumps({"Version": NEW, "Statement": [statement]})
    assert ask(Policy.kept(kept)) == ask(Policy.kept(kept), user="") == DENY
    assert ask(Policy.kept("{}", of_user=True)) == DENY and not Policy.kept(kept).is_public
