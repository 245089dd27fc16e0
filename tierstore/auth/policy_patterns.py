"""Texts of policies that stand for others: `*` and `?`, and from Version 2012-10-17 on variables. Pure.

A variable is `${key}`, or `${key, 'what else'}` for requests without such a key; `${*}`, `${?}` and `${$}` are these
three characters themselves (IAM User Guide, "Policy variables and tags"). What a variable brings is taken letter by
letter: a user who is called `*` matches nothing but himself.

Bounds: a match takes time linear in pattern times text, for it goes back to the last star only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

#: Two characters each, so that no character of a text equals them.
_ANY: Final = "**"
_ONE: Final = "??"
_WILD: Final = {"*": _ANY, "?": _ONE}
_ESCAPED: Final = frozenset("*?$")


class PatternError(ValueError):
    """The text is no pattern; the error says why."""


@dataclass(frozen=True, slots=True)
class Variable:
    """key: of a condition, in lower case. default: None where there is none."""

    key: str
    default: str | None


@dataclass(frozen=True, slots=True)
class Pattern:
    """text: as written. tokens: characters and wildcards, of texts without variables; parts: the same between
    variables, of texts that have any. is_literal: it matches its own text and nothing else."""

    text: str
    tokens: tuple[str, ...]
    parts: tuple[tuple[str, ...] | Variable, ...] = ()
    is_literal: bool = False

    @staticmethod
    def of(text: str, *, has_variables: bool) -> Pattern:
        """Raises PatternError for a variable that does not end or has no name."""
        if not has_variables or "${" not in text:
            return Pattern(text, _tokens(text), is_literal="*" not in text and "?" not in text)
        parts: list[tuple[str, ...] | Variable] = []
        said: list[str] = []
        rest = text
        while True:
            before, found, rest = rest.partition("${")
            said += _tokens(before)
            if not found:
                break
            inner, closed, rest = rest.partition("}")
            if not closed:
                raise PatternError(f"a policy variable does not end: {text[:64]}")
            if inner in _ESCAPED:
                said.append(inner)
                continue
            parts += [tuple(said), _variable(inner)]
            said = []
        if not parts:
            return Pattern(text, tuple(said))
        return Pattern(text, (), (*parts, tuple(said)))

    @property
    def is_fixed(self) -> bool:
        """Whether it says the same whoever asks."""
        return not self.parts

    @property
    def keys(self) -> tuple[str, ...]:
        """Condition keys that it looks at."""
        return tuple(part.key for part in self.parts if isinstance(part, Variable))

    def matches(self, value: str, context: Mapping[str, list[str]]) -> bool:
        """By wildcards. A variable that the request has no single value for matches nothing."""
        if self.is_literal:
            return self.text == value
        tokens = self._filled(context)
        return tokens is not None and _match(tokens, value)

    def plain(self, context: Mapping[str, list[str]]) -> str | None:
        """The text that it stands for, where `*` and `?` are only characters; None: a variable has no value."""
        tokens = self._filled(context)
        return None if tokens is None else "".join([token[0] for token in tokens])

    def _filled(self, context: Mapping[str, list[str]]) -> Sequence[str] | None:
        if not self.parts:
            return self.tokens
        tokens: list[str] = []
        for part in self.parts:
            if not isinstance(part, Variable):
                tokens += part
                continue
            values = context.get(part.key, ())
            value = values[0] if len(values) == 1 else part.default if not values else None
            if value is None:
                return None
            tokens += value
        return tokens


def matches(pattern: str, value: str) -> bool:
    """`*` any text, `?` any character; no variables."""
    return _match(_tokens(pattern), value)


def _tokens(text: str) -> tuple[str, ...]:
    return tuple([_WILD.get(character, character) for character in text])


def _variable(inner: str) -> Variable:
    key, comma, rest = inner.partition(",")
    key, rest = key.strip().lower(), rest.strip()
    if not key or not all(character.isprintable() and character not in "{$'" for character in key):
        raise PatternError(f"a policy variable has no such name: {inner[:64]}")
    if not comma:
        return Variable(key, None)
    if len(rest) < 2 or rest[0] != "'" or rest[-1] != "'":
        raise PatternError(f"what a policy variable is by default stands in '': {inner[:64]}")
    return Variable(key, rest[1:-1])


def _match(pattern: Sequence[str], value: str) -> bool:
    """Greedy with one point of return: never exponential."""
    p = v = 0
    star, mark = -1, 0
    while v < len(value):
        if p < len(pattern) and pattern[p] == _ANY:
            star, mark = p, v
            p += 1
        elif p < len(pattern) and (pattern[p] == _ONE or pattern[p] == value[v]):
            p += 1
            v += 1
        elif star >= 0:
            mark += 1
            p, v = star + 1, mark
        else:
            return False
    return all(token == _ANY for token in pattern[p:])
