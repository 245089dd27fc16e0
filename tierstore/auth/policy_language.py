"""AWS's JSON policy language as S3 buckets use it: parse once, then judge a request. Pure.

Owns grammar and evaluation (IAM User Guide, "Policy evaluation logic"): an explicit Deny wins, then an Allow, else
nothing is said. What is not understood is refused when the policy is set, never ignored: a condition that silently did
not apply would let in.

Bounds: a document has at most 20 KiB, wildcards match without backtracking beyond one star at a time (linear in
pattern times text).
"""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

DOCUMENT_BYTES_MAX: Final = 20 * 1024
ALLOW: Final = "allow"
DENY: Final = "deny"


class PolicyError(ValueError):
    """The document is no policy; the text says where."""


@dataclass(frozen=True, slots=True)
class Question:
    """user and access: of the caller, "" for anonymous. context: condition key (lower case) -> values."""

    user: str
    access: str
    action: str
    resource: str
    context: Mapping[str, list[str]]


@dataclass(frozen=True, slots=True)
class _Condition:
    operator: str
    key: str
    values: tuple[str, ...]
    if_exists: bool
    quantifier: str         # "" | forallvalues | foranyvalue


@dataclass(frozen=True, slots=True)
class Statement:
    effect: str
    principals: tuple[str, ...]
    not_principals: tuple[str, ...]
    actions: tuple[str, ...]
    not_actions: tuple[str, ...]
    resources: tuple[str, ...]
    not_resources: tuple[str, ...]
    conditions: tuple[_Condition, ...]

    @property
    def is_public(self) -> bool:
        """An Allow for everybody that no condition narrows to known callers or networks."""
        is_for_all = self.effect == "Allow" and ("*" in self.principals or bool(self.not_principals))
        return is_for_all and not any(_narrows(condition) for condition in self.conditions)


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

    @property
    def is_public(self) -> bool:
        """As AWS means it by "public": one statement that lets everybody in is enough."""
        return any(statement.is_public for statement in self.statements)

    def asks_for(self, key: str) -> bool:
        """Whether any condition looks at a key that begins so (lower case), which may be dear to find out."""
        return any(condition.key.startswith(key) for s in self.statements for condition in s.conditions)

    def may_deny(self, action: str, bucket: str) -> bool:
        """Whether any statement denies the action for something in the bucket, whatever the object and condition."""
        name = action.lower()
        return any(
            s.effect == "Deny" and _names_action(s, name)
            and (not s.resources or any(matches(_bucket_of(pattern), bucket) for pattern in s.resources))
            for s in self.statements
        )


def _narrows(c: _Condition) -> bool:
    """Whether a condition leaves a fixed set of callers (AWS, "The meaning of public"): networks that are not half of
    the world, or users by name. What a caller may choose himself, as a header, narrows nothing."""
    if c.if_exists or c.quantifier or not c.values:
        return False
    if c.operator == "ipaddress" and c.key == "aws:sourceip":
        return all(_is_narrow(ipaddress.ip_network(value, strict=False)) for value in c.values)
    is_fixed = c.operator in ("stringequals", "stringequalsignorecase") or (
        c.operator == "stringlike" and not any("*" in value or "?" in value for value in c.values)
    )
    return is_fixed and c.key in ("aws:username", "aws:userid")


def _is_narrow(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    return network.prefixlen >= (8 if network.version == 4 else 32)


def _bucket_of(resource: str) -> str:
    return resource.removeprefix("arn:aws:s3:::").partition("/")[0]


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
    return Policy(tuple(_statement(entry, has_principal=has_principal) for entry in statements))


_FIELDS: Final = frozenset({
    "Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource", "Condition",
})  # fmt: skip


def _statement(raw: Any, *, has_principal: bool) -> Statement:
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
        _lower(raw.get("Action")), _lower(raw.get("NotAction")), _texts(raw.get("Resource")),
        _texts(raw.get("NotResource")), _conditions(raw.get("Condition", {})),
    )  # fmt: skip
    for action in (*statement.actions, *statement.not_actions):
        if action != "*" and not action.startswith("s3:"):
            raise PolicyError("Policy has invalid action")
    for resource in (*statement.resources, *statement.not_resources):
        if resource != "*" and not resource.startswith("arn:aws:s3:::"):
            raise PolicyError("Policy has invalid resource")
    return statement


def _texts(raw: Any) -> tuple[str, ...]:
    if raw is None:
        return ()
    values = raw if isinstance(raw, list) else [raw]
    if not values or not all(isinstance(value, str) and value for value in values):
        raise PolicyError("Expected a text or a list of texts")
    return tuple(values)


def _lower(raw: Any) -> tuple[str, ...]:
    return tuple(value.lower() for value in _texts(raw))


def _principals(raw: Any) -> tuple[str, ...]:
    """Users by name: "*", "arn:aws:iam:::user/NAME", "arn:aws:iam::TENANT:user/NAME" or NAME alone."""
    if raw is None:
        return ()
    if raw == "*":
        return ("*",)
    if not isinstance(raw, dict) or not raw or raw.keys() - {"AWS", "CanonicalUser"}:
        raise PolicyError("Invalid principal in policy")
    found = [text for value in raw.values() for text in _texts(value)]
    return tuple(text.rpartition("/")[2] if text.startswith("arn:aws:iam:") else text for text in found)


def _conditions(raw: Any) -> tuple[_Condition, ...]:
    if not isinstance(raw, dict):
        raise PolicyError("Condition is an object of operators")
    found = []
    for name, pairs in raw.items():
        quantifier, colon, operator = name.rpartition(":")
        quantifier = quantifier.lower()
        if colon and quantifier not in ("forallvalues", "foranyvalue"):
            raise PolicyError(f"Invalid condition type : {name[:64]}")
        if_exists = operator.endswith("IfExists")
        if operator == "NullIfExists":
            raise PolicyError(f"Invalid condition type : {name[:64]}")
        operator = operator.removesuffix("IfExists").lower()
        if operator not in _OPERATORS and operator != "null":
            raise PolicyError(f"Invalid condition type : {name[:64]}")
        if not isinstance(pairs, dict) or not pairs:
            raise PolicyError("A condition operator needs keys")
        for key, values in pairs.items():
            listed = values if isinstance(values, list) else [values]
            texts = tuple(_scalar(value) for value in listed)
            for text in texts:
                _check_value(operator, text)
            found.append(_Condition(operator, key.lower(), texts, if_exists, quantifier))
    return tuple(found)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise PolicyError("A condition's value is a text, a number or a boolean")


def _applies(s: Statement, q: Question) -> bool:
    if s.principals and not any(_is_principal(p, q) for p in s.principals):
        return False
    if s.not_principals and any(_is_principal(p, q) for p in s.not_principals):
        return False
    if not _names_action(s, q.action.lower()):
        return False
    if s.resources and not any(matches(pattern, q.resource) for pattern in s.resources):
        return False
    if s.not_resources and any(matches(pattern, q.resource) for pattern in s.not_resources):
        return False
    return all(_holds(condition, q.context) for condition in s.conditions)


def _names_action(s: Statement, action: str) -> bool:
    if s.actions and not any(matches(pattern, action) for pattern in s.actions):
        return False
    return not (s.not_actions and any(matches(pattern, action) for pattern in s.not_actions))


def _is_principal(principal: str, q: Question) -> bool:
    if principal == "*":
        return True
    return bool(q.access) and principal in (q.user, q.access)


def _holds(c: _Condition, context: Mapping[str, list[str]]) -> bool:
    values = context.get(c.key, [])
    if c.operator == "null":
        return all((not values) == (wanted == "true") for wanted in c.values)
    if not values:
        # a negated operator holds where the key is missing, as in AWS; but no value is not "any value"
        if c.if_exists or c.quantifier == "forallvalues":
            return True
        return c.operator in _NEGATED and c.quantifier != "foranyvalue"
    test = _OPERATORS[c.operator]
    negated = c.operator in _NEGATED

    def one(value: str) -> bool:
        results = [test(value, wanted) for wanted in c.values]
        return all(results) if negated else any(results)

    return any(map(one, values)) if c.quantifier == "foranyvalue" or not c.quantifier else all(map(one, values))


def matches(pattern: str, value: str) -> bool:
    """`*` any text, `?` any character. Greedy with one point of return: never exponential."""
    p = v = 0
    star, mark = -1, 0
    while v < len(value):
        if p < len(pattern) and pattern[p] == "*":
            star, mark = p, v
            p += 1
        elif p < len(pattern) and (pattern[p] == "?" or pattern[p] == value[v]):
            p += 1
            v += 1
        elif star >= 0:
            mark += 1
            p, v = star + 1, mark
        else:
            return False
    return all(c == "*" for c in pattern[p:])


def _number(test: Callable[[float, float], bool]) -> Callable[[str, str], bool]:
    def compare(value: str, wanted: str) -> bool:
        try:
            return test(float(value), float(wanted))
        except ValueError:
            return False

    return compare


def _date(test: Callable[[float, float], bool]) -> Callable[[str, str], bool]:
    def compare(value: str, wanted: str) -> bool:
        try:
            return test(_seconds(value), _seconds(wanted))
        except ValueError:
            return False

    return compare


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _in_network(value: str, wanted: str) -> bool:
    try:
        return ipaddress.ip_address(value) in ipaddress.ip_network(wanted, strict=False)
    except ValueError:
        return False


def _check_value(operator: str, text: str) -> None:
    try:
        if operator.endswith("ipaddress"):
            ipaddress.ip_network(text, strict=False)
        elif operator.startswith("numeric"):
            float(text)
        elif operator.startswith("date"):
            _seconds(text)
        elif operator == "binaryequals":
            base64.b64decode(text, validate=True)
        elif operator in ("bool", "null") and text not in ("true", "false"):
            raise ValueError(text)
    except ValueError:
        raise PolicyError(f"Invalid value of a condition: {text[:64]}") from None


_OPERATORS: Final[dict[str, Callable[[str, str], bool]]] = {
    "stringequals": lambda value, wanted: value == wanted,
    "stringnotequals": lambda value, wanted: value != wanted,
    "stringequalsignorecase": lambda value, wanted: value.lower() == wanted.lower(),
    "stringnotequalsignorecase": lambda value, wanted: value.lower() != wanted.lower(),
    "stringlike": lambda value, wanted: matches(wanted, value),
    "stringnotlike": lambda value, wanted: not matches(wanted, value),
    "arnequals": lambda value, wanted: matches(wanted, value),
    "arnlike": lambda value, wanted: matches(wanted, value),
    "arnnotequals": lambda value, wanted: not matches(wanted, value),
    "arnnotlike": lambda value, wanted: not matches(wanted, value),
    "numericequals": _number(lambda a, b: a == b), "numericnotequals": _number(lambda a, b: a != b),
    "numericlessthan": _number(lambda a, b: a < b), "numericlessthanequals": _number(lambda a, b: a <= b),
    "numericgreaterthan": _number(lambda a, b: a > b), "numericgreaterthanequals": _number(lambda a, b: a >= b),
    "dateequals": _date(lambda a, b: a == b), "datenotequals": _date(lambda a, b: a != b),
    "datelessthan": _date(lambda a, b: a < b), "datelessthanequals": _date(lambda a, b: a <= b),
    "dategreaterthan": _date(lambda a, b: a > b), "dategreaterthanequals": _date(lambda a, b: a >= b),
    "bool": lambda value, wanted: value.lower() == wanted,
    "binaryequals": lambda value, wanted: value == wanted,
    "ipaddress": _in_network,
    "notipaddress": lambda value, wanted: not _in_network(value, wanted),
}  # fmt: skip
_NEGATED: Final = frozenset({
    "stringnotequals", "stringnotequalsignorecase", "stringnotlike", "arnnotequals", "arnnotlike", "numericnotequals",
    "datenotequals", "notipaddress",
})  # fmt: skip
