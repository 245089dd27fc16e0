"""The conditions of a policy's statement: operators, values, and whether one holds for a request. Pure.

A door that cannot see what a condition asks for says so (`hidden`); the condition then counts as the caller of
`holds` wants it in doubt. A key that a door would see and the request does not have is missing, as at AWS.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tierstore.auth.policy_patterns import Pattern


class ConditionError(ValueError):
    """No condition; the text says where."""


@dataclass(frozen=True, slots=True)
class Condition:
    """operator: in lower case; key: the same; quantifier: "" | forallvalues | foranyvalue."""

    operator: str
    key: str
    values: tuple[Pattern, ...]
    if_exists: bool
    quantifier: str

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that it looks at, also by variables."""
        return (self.key, *(key for value in self.values for key in value.keys))

    @property
    def narrows(self) -> bool:
        """Whether it leaves a fixed set of callers (AWS, "The meaning of public"): networks that are not half of the
        world, or users by name. What a caller may choose himself, as a header, narrows nothing; nor does a variable,
        which is another with each caller."""
        if self.if_exists or self.quantifier or not self.values:
            return False
        if self.operator == "ipaddress" and self.key == "aws:sourceip":
            return all(_is_narrow(ipaddress.ip_network(value.text, strict=False)) for value in self.values)
        is_fixed = self.operator in ("stringequals", "stringequalsignorecase") or (
            self.operator == "stringlike" and not any("*" in value.text or "?" in value.text for value in self.values)
        )
        return is_fixed and self.key in ("aws:username", "aws:userid") and all(v.is_fixed for v in self.values)

    def holds(self, context: Mapping[str, list[str]], hidden: tuple[str, ...], *, in_doubt: bool) -> bool:
        """hidden: beginnings of keys that nobody looked at. in_doubt: the answer where one of those decides, or where
        a variable has no value and the operator is negated."""
        if hidden and any(key.startswith(hidden) and key not in context for key in self.keys):
            return in_doubt
        values = context.get(self.key, [])
        if self.operator == "null":
            return all((not values) == (wanted.text == "true") for wanted in self.values)
        is_negated = self.operator in _NEGATED
        if not values:
            # a negated operator holds where the key is missing, as in AWS; but no value is not "any value"
            if self.if_exists or self.quantifier == "forallvalues":
                return True
            return is_negated and self.quantifier != "foranyvalue"

        def one(value: str) -> bool:
            results = [self._test(value, wanted, context, in_doubt=in_doubt) for wanted in self.values]
            return all(results) if is_negated else any(results)

        return all(map(one, values)) if self.quantifier == "forallvalues" else any(map(one, values))

    def _test(self, value: str, wanted: Pattern, context: Mapping[str, list[str]], *, in_doubt: bool) -> bool:
        is_negated = self.operator in _NEGATED
        text = wanted.plain(context)
        if text is None:
            return is_negated and in_doubt
        if self.operator in _LIKE:
            return wanted.matches(value, context) != is_negated
        return _OPERATORS[self.operator](value, text)


def parse_conditions(raw: Any, *, has_variables: bool) -> tuple[Condition, ...]:
    """The Condition of a statement. Raises ConditionError, PatternError (of policy_patterns)."""
    if not isinstance(raw, dict):
        raise ConditionError("Condition is an object of operators")
    found = []
    for name, pairs in raw.items():
        quantifier, colon, operator = name.rpartition(":")
        quantifier = quantifier.lower()
        if_exists = operator.endswith("IfExists")
        operator = operator.removesuffix("IfExists").lower()
        is_known = operator in _OPERATORS or operator in _LIKE or (operator == "null" and not if_exists)
        if not is_known or (colon and quantifier not in ("forallvalues", "foranyvalue")):
            raise ConditionError(f"Invalid condition type : {name[:64]}")
        if not isinstance(pairs, dict) or not pairs:
            raise ConditionError("A condition operator needs keys")
        varies = has_variables and operator.startswith(("string", "arn"))
        for key, values in pairs.items():
            listed = values if isinstance(values, list) else [values]
            texts = [_scalar(value) for value in listed]
            for text in texts:
                _check_value(operator, text)
            patterns = tuple(Pattern.of(text, has_variables=varies) for text in texts)
            found.append(Condition(operator, key.lower(), patterns, if_exists, quantifier))
    return tuple(found)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise ConditionError("A condition's value is a text, a number or a boolean")


def _is_narrow(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    return network.prefixlen >= (8 if network.version == 4 else 32)


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
        raise ConditionError(f"Invalid value of a condition: {text[:64]}") from None


_OPERATORS: Final[dict[str, Callable[[str, str], bool]]] = {
    "stringequals": lambda value, wanted: value == wanted,
    "stringnotequals": lambda value, wanted: value != wanted,
    "stringequalsignorecase": lambda value, wanted: value.lower() == wanted.lower(),
    "stringnotequalsignorecase": lambda value, wanted: value.lower() != wanted.lower(),
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
#: By wildcards: the pattern is wanted, not its text.
_LIKE: Final = frozenset({"stringlike", "stringnotlike", "arnequals", "arnlike", "arnnotequals", "arnnotlike"})
_NEGATED: Final = frozenset({
    "stringnotequals", "stringnotequalsignorecase", "stringnotlike", "arnnotequals", "arnnotlike", "numericnotequals",
    "datenotequals", "notipaddress",
})  # fmt: skip
