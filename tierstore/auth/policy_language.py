"""AWS's JSON policy language as S3 buckets use it: parse once, then judge a request. Pure.

Owns grammar and evaluation (IAM User Guide, "Policy evaluation logic"): an explicit Deny wins, then an Allow, else
nothing is said. What is not understood is refused when the policy is set, never ignored: a condition that silently did
not apply would let in. Conditions are policy_conditions', wildcards and variables policy_patterns'.

Bounds: a document has at most 20 KiB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from tierstore.auth.policy_conditions import Condition, ConditionError, parse_conditions
from tierstore.auth.policy_patterns import Pattern, PatternError, matches

DOCUMENT_BYTES_MAX: Final = 20 * 1024
ALLOW: Final = "allow"
DENY: Final = "deny"
#: From this version on texts may hold variables; before, `${` is only text.
_WITH_VARIABLES: Final = "2012-10-17"
_ARN: Final = "arn:aws:s3:::"
#: Delivers access logs.
LOG_SERVICE: Final = "logging.s3.amazonaws.com"
#: Services that policies may name: those of this store.
SERVICES: Final = frozenset({LOG_SERVICE})


class PolicyError(ValueError):
    """The document is no policy; the text says where."""


@dataclass(frozen=True, slots=True)
class Question:
    """user and access: of the caller, "" for anonymous. context: condition key (lower case) -> values. hidden:
    beginnings of keys that this door cannot see; they count against the caller, a Deny that asks for one holds, unless
    (is_judged) another door has seen them and judged by the same policy."""

    user: str
    access: str
    action: str
    resource: str
    context: Mapping[str, list[str]]
    hidden: tuple[str, ...] = ()
    is_judged: bool = False


@dataclass(frozen=True, slots=True)
class Statement:
    effect: str
    principals: tuple[str, ...]
    not_principals: tuple[str, ...]
    actions: tuple[Pattern, ...]
    not_actions: tuple[Pattern, ...]
    resources: tuple[Pattern, ...]
    not_resources: tuple[Pattern, ...]
    conditions: tuple[Condition, ...]

    @property
    def is_public(self) -> bool:
        """An Allow for everybody that no condition narrows to known callers or networks."""
        is_for_all = self.effect == "Allow" and ("*" in self.principals or bool(self.not_principals))
        return is_for_all and not any(condition.narrows for condition in self.conditions)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that it looks at, in conditions and by variables."""
        of_resources = [key for pattern in (*self.resources, *self.not_resources) for key in pattern.keys]
        return (*of_resources, *(key for condition in self.conditions for key in condition.keys))


@dataclass(frozen=True, slots=True)
class Policy:
    statements: tuple[Statement, ...]

    @staticmethod
    def of(text: str) -> Policy:
        """A bucket's policy. Raises PolicyError."""
        return _parsed(text, has_principal=True)

    @staticmethod
    def of_user(text: str) -> Policy:
        """A policy attached to a user: who is meant is clear, so no statement names a principal. Raises PolicyError."""
        return _parsed(text, has_principal=False)

    @staticmethod
    def kept(text: str, *, of_user: bool = False) -> Policy:
        """One that was taken when it was set, maybe by a release that understood less: what is not understood now
        denies everything, for to ignore it would let in."""
        try:
            return _parsed(text, has_principal=not of_user)
        except PolicyError:
            return Policy((_AGAINST_ALL,))

    @property
    def is_public(self) -> bool:
        """As AWS means it by "public": one statement that lets everybody in is enough."""
        return any(statement.is_public for statement in self.statements)

    def asks_for(self, key: str) -> bool:
        """Whether anything looks at a key that begins so (lower case), which may be dear to find out."""
        return any(asked.startswith(key) for statement in self.statements for asked in statement.keys)

    def could_deny(self, question: Question, bucket: str) -> bool:
        """Whether a statement denies this, or would for any other object of the bucket."""
        return any(
            statement.effect == "Deny" and _is_meant(statement, question)
            and (not statement.resources or any(_reaches(pattern, bucket) for pattern in statement.resources))
            and _conditions_hold(statement, question)
            for statement in self.statements
        )


_AGAINST_ALL: Final = Statement("Deny", ("*",), (), (Pattern.of("*", has_variables=False),), (), (), (), ())


def _reaches(pattern: Pattern, bucket: str) -> bool:
    """Whether it can name the bucket or anything in it: a star or a variable may stand for all that follows."""
    inside = f"{_ARN}{bucket}/"
    head, wild, _ = pattern.text.replace("${", "*").partition("*")
    if not wild and len(head) < len(inside):
        return matches(head, inside[:-1])
    return all(said in ("?", meant) for said, meant in zip(head, inside, strict=False))


def decide(policy: Policy, question: Question) -> str:
    """ALLOW, DENY or "" (the policy says nothing)."""
    verdict = ""
    for statement in policy.statements:
        if _applies(statement, question):
            if statement.effect == "Deny":
                return DENY
            verdict = ALLOW
    return verdict


@lru_cache(maxsize=512)
def _parsed(text: str, *, has_principal: bool) -> Policy:
    if len(text.encode("utf-8", "surrogatepass")) > DOCUMENT_BYTES_MAX:
        raise PolicyError(f"a policy has at most {DOCUMENT_BYTES_MAX} bytes")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise PolicyError("Policies must be valid JSON and the first byte must be '{'") from None
    if not isinstance(raw, dict) or raw.keys() - {"Version", "Id", "Statement"}:
        raise PolicyError("Unknown field in the policy")
    if raw.get("Version", "2008-10-17") not in ("2012-10-17", "2008-10-17"):
        raise PolicyError("The policy must contain a valid version string")
    statements = raw.get("Statement")
    if isinstance(statements, dict):
        statements = [statements]
    if not isinstance(statements, list) or not statements:
        raise PolicyError("Could not parse the policy: Statement is empty!")
    has_variables = raw.get("Version") == _WITH_VARIABLES
    try:
        return Policy(tuple(
            _statement(entry, has_principal=has_principal, has_variables=has_variables) for entry in statements
        ))  # fmt: skip
    except (ConditionError, PatternError) as error:
        raise PolicyError(str(error)) from None


_FIELDS: Final = frozenset({
    "Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource", "Condition",
})  # fmt: skip


def _statement(raw: Any, *, has_principal: bool, has_variables: bool) -> Statement:
    if not isinstance(raw, dict) or raw.keys() - _FIELDS:
        raise PolicyError("Unknown field in a statement")
    if raw.get("Effect") not in ("Allow", "Deny"):
        raise PolicyError("Invalid effect: Allow or Deny")
    for one, other in (("Principal", "NotPrincipal"), ("Action", "NotAction"), ("Resource", "NotResource")):
        if one == "Principal" and not has_principal:
            if one in raw or other in raw:
                raise PolicyError("A policy of a user names no principal")
        elif (one in raw) == (other in raw):
            raise PolicyError(f"A statement needs {one} or {other}, one of them")
    statement = Statement(
        raw["Effect"], _principals(raw.get("Principal")), _principals(raw.get("NotPrincipal")),
        _actions(raw.get("Action")), _actions(raw.get("NotAction")),
        _resources(raw.get("Resource"), has_variables=has_variables),
        _resources(raw.get("NotResource"), has_variables=has_variables),
        parse_conditions(raw.get("Condition", {}), has_variables=has_variables),
    )  # fmt: skip
    for action in (*statement.actions, *statement.not_actions):
        if action.text != "*" and not action.text.startswith("s3:"):
            raise PolicyError("Policy has invalid action")
    for resource in (*statement.resources, *statement.not_resources):
        if resource.text != "*" and not resource.text.startswith(_ARN):
            raise PolicyError("Policy has invalid resource")
    return statement


def _texts(raw: Any) -> tuple[str, ...]:
    if raw is None:
        return ()
    values = raw if isinstance(raw, list) else [raw]
    if not values or not all(isinstance(value, str) and value for value in values):
        raise PolicyError("Expected a text or a list of texts")
    return tuple(values)


def _actions(raw: Any) -> tuple[Pattern, ...]:
    """In lower case, for actions do not care for case."""
    return tuple(Pattern.of(value.lower(), has_variables=False) for value in _texts(raw))


def _resources(raw: Any, *, has_variables: bool) -> tuple[Pattern, ...]:
    return tuple(Pattern.of(value, has_variables=has_variables) for value in _texts(raw))


def _principals(raw: Any) -> tuple[str, ...]:
    """Users by name: "*", "arn:aws:iam:::user/NAME", "arn:aws:iam::TENANT:user/NAME" or NAME alone; services of this
    store, marked."""
    if raw is None:
        return ()
    if raw == "*":
        return ("*",)
    if not isinstance(raw, dict) or not raw or raw.keys() - {"AWS", "CanonicalUser", "Service"}:
        raise PolicyError("Invalid principal in policy")
    services = _texts(raw["Service"]) if "Service" in raw else ()
    if not SERVICES.issuperset(services):
        raise PolicyError("Invalid principal in policy")
    found = [text for kind, value in raw.items() if kind != "Service" for text in _texts(value)]
    users = [text.rpartition("/")[2] if text.startswith("arn:aws:iam:") else text for text in found]
    return (*users, *(service_user(name) for name in services))


def service_user(name: str) -> str:
    """Who a service is in a Question: no user has such a name."""
    return f"\x00{name}"


def _applies(s: Statement, q: Question) -> bool:
    if not _is_meant(s, q):
        return False
    if s.resources and not any(pattern.matches(q.resource, q.context) for pattern in s.resources):
        return False
    if s.not_resources and any(_is_excepted(s, pattern, q) for pattern in s.not_resources):
        return False
    return _conditions_hold(s, q)


def _is_meant(s: Statement, q: Question) -> bool:
    """Whether caller and action are the statement's."""
    if s.principals and not any(_is_principal(p, q) for p in s.principals):
        return False
    if s.not_principals and any(_is_principal(p, q) for p in s.not_principals):
        return False
    action = q.action.lower()
    if s.actions and not any(pattern.matches(action, q.context) for pattern in s.actions):
        return False
    return not (s.not_actions and any(pattern.matches(action, q.context) for pattern in s.not_actions))


def _is_excepted(s: Statement, pattern: Pattern, q: Question) -> bool:
    """Whether NotResource leaves the resource out. An exception that nobody can name lets nobody in."""
    if pattern.plain(q.context) is None:
        return s.effect == "Allow"
    return pattern.matches(q.resource, q.context)


def _conditions_hold(s: Statement, q: Question) -> bool:
    in_doubt = (s.effect == "Deny") != q.is_judged
    return all(condition.holds(q.context, q.hidden, in_doubt=in_doubt) for condition in s.conditions)


def _is_principal(principal: str, q: Question) -> bool:
    if principal == "*":
        return True
    return bool(q.access) and principal in (q.user, q.access)
