"""Reading a policy document: every fault found, each with its line and its fix.

Owns the checks between a document (TOML text or a JSON tree) and a valid Policy (rules.py). Reads the whole document
and collects problems instead of stopping at the first. Invariant: `parse(policy.document())` equals the policy.
"""

from __future__ import annotations

import difflib
import json
import reprlib
import tomllib
from collections.abc import Callable, Mapping
from datetime import date, time
from typing import Any, Final, TypeVar

from tierstore.errors import ConfigError, RequestError
from tierstore.names import check_bucket_name
from tierstore.policy.document import line_of, time_text
from tierstore.policy.rules import DISK_TIERS, MODES, VERSION, Match, Policy, PromoterRules, Rule, Schedule
from tierstore.units import parse_rate, parse_seconds, parse_size
from tierstore.wire.storage_class import STORAGE_CLASSES

RULES_MAX: Final = 1000
COPIES_MAX: Final = 9
#: Larger than any object or device; keeps numbers in what SQL and JSON can hold.
BYTES_MAX: Final = (1 << 63) - 1
_PROBLEMS_MAX: Final = 20

T = TypeVar("T")


def parse(document: Any, *, text: str = "", servers: int | None = None) -> Policy:
    """The policy of a document tree. Raises RequestError(code="bad-policy", problems=[...]) naming every fault.

    text: the TOML it came from, so that problems name its lines. servers: how many object servers there are to keep
    copies; None: not to be looked at. A member `revision` (GET adds it) is ignored.
    """
    return _Parser(text, servers).policy(document)


def parse_toml(text: str) -> Policy:
    """The policy of a TOML text. Raises as `parse` does; problems name the line."""
    return parse(toml_tree(text), text=text)


def toml_tree(text: str) -> dict[str, Any]:
    """A TOML text as a tree. Raises RequestError(code="bad-policy") with the place where it ceases to be TOML."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise refusal(f"the policy is not TOML: {_reason(error)}") from None


def json_tree(text: bytes) -> Any:
    """A JSON text as a tree, of whatever type. Raises RequestError(code="bad-policy") with the place where it ceases to
    be JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:     # ValueError: not JSON, not UTF-8, or a number of endless digits
        example = '{"version": 1, "rules": [{"name": "logs", "mode": "never"}]}'
        raise refusal(f"the policy is not JSON: {_reason(error)}; it is a document such as {example}") from None


def refusal(*problems: str) -> RequestError:
    """What is raised for a document that may not be."""
    return RequestError("; ".join(problems), code="bad-policy", problems=list(problems))


def _reason(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)


_RULE_KEYS: Final = ("name", "match", "mode", "home", "fast", "copies", "schedule")
_MATCH_KEYS: Final = ("bucket", "prefix", "size_min", "size_max", "class")
_PROMOTER_KEYS: Final = (
    "tick", "half_life", "hysteresis", "beta", "budget", "device_rate_max", "fill", "min_count", "chunk_max", "mem",
    "candidates_max", "read_soon", "paused", "schedule",
)  # fmt: skip

_CLASSES: Final = tuple(sorted(STORAGE_CLASSES))

Path = tuple[str | int, ...]


class _Parser:
    """Collects problems instead of stopping at the first, each with its line and its fix."""

    def __init__(self, text: str, servers: int | None) -> None:
        self._text = text
        self._servers = servers
        self._problems: list[str] = []

    def policy(self, document: Any) -> Policy:
        if not isinstance(document, Mapping):
            example = '{"version": 1, "rules": [...], "promoter": {...}}'
            raise refusal(f"the policy is {_kind(document)}; it must be an object such as {example}")
        self._keys((), document, ("version", "rules", "promoter", "revision"))
        version = document.get("version")
        if type(version) is not int or version != VERSION:
            said = "is missing" if version is None else f"is {_shown(version)}"
            self._problem(("version",), f"version {said}; this release reads version = {VERSION}")
        rules = self._rules(document.get("rules", []))
        promoter = self._promoter(document.get("promoter", {}))
        if self._problems:
            raise refusal(*self._problems[:_PROBLEMS_MAX])
        return Policy(rules, promoter)

    def _rules(self, rules: Any) -> tuple[Rule, ...]:
        if not isinstance(rules, list):
            what = f"rules is a list of tables, not {_kind(rules)}; write each one below [[rules]]"
            self._problem(("rules",), what)
            return ()
        if len(rules) > RULES_MAX:
            self._problem(("rules",), f"a policy has at most {RULES_MAX} rules, this one has {len(rules)}")
            return ()
        parsed = [self._rule(("rules", n), rule, n) for n, rule in enumerate(rules)]
        seen: dict[str, int] = {}
        for n, rule in enumerate(parsed):
            if rule.name in seen:
                what = f"the name {rule.name!r} is also that of rule {seen[rule.name] + 1}; give each rule its own"
                self._problem(("rules", n, "name"), what)
            seen.setdefault(rule.name, n)
        return tuple(parsed)

    def _rule(self, path: Path, rule: Any, n: int) -> Rule:
        if not isinstance(rule, Mapping):
            self._problem(path, f"a rule is a table with name, match and mode, not {_kind(rule)}")
            return Rule(name=f"rule-{n + 1}")
        self._keys(path, rule, _RULE_KEYS)
        name = self._text_of(path, rule, "name", "")
        if not name or len(name) > 64:
            self._problem((*path, "name"), 'a rule needs a name of 1 to 64 characters, such as name = "logs"')
            name = f"rule-{n + 1}"
        elif name == "default":
            self._problem((*path, "name"), "the name 'default' stands for no rule at all; take another")
        fast = rule.get("fast", [])
        if not isinstance(fast, list):
            self._problem((*path, "fast"), 'fast is a list of tiers, such as fast = ["ssd"]')
            fast = []
        copies = self._copies(path, rule)
        home = self._one_of(path, rule, "home", DISK_TIERS, "")
        fast = tuple(self._tier((*path, "fast"), tier) for tier in fast)
        if home and home in fast:
            self._problem((*path, "fast"), f"{home!r} is the home tier already; leave it out of fast")
        mode = self._one_of(path, rule, "mode", MODES, "auto")
        return Rule(
            name=name,
            match=self._match((*path, "match"), rule.get("match", {})),
            mode=mode,  # type: ignore[arg-type]  # checked to be one of MODES
            home=home,
            fast=fast,
            copies=copies,
            schedule=self._schedule((*path, "schedule"), rule.get("schedule")),
        )

    def _copies(self, path: Path, rule: Mapping[str, Any]) -> int:
        copies = rule.get("copies", 0)
        if "copies" not in rule:
            return 0
        if type(copies) is not int or not 1 <= copies <= COPIES_MAX:
            self._problem((*path, "copies"), f"copies is a whole number from 1 to {COPIES_MAX}, not {_shown(copies)}")
            return 0
        if self._servers is not None and copies > self._servers:
            what = (
                f"{copies} copies need {copies} object servers, and there are {self._servers}: every write under this "
                "rule would be refused; add servers first, or lower it (force sets it all the same)"
            )
            self._problem((*path, "copies"), what)
        return copies

    def _match(self, path: Path, match: Any) -> Match:
        if not isinstance(match, Mapping):
            what = f'match is a table, such as match = {{bucket = "b", prefix = "logs/"}}, not {_kind(match)}'
            self._problem(path, what)
            return Match()
        self._keys(path, match, _MATCH_KEYS)
        bucket = self._text_of(path, match, "bucket", "")
        if bucket:
            try:
                check_bucket_name(bucket)
            except RequestError as error:
                self._problem((*path, "bucket"), error.detail)
        size_min = self._value(path, match, "size_min", parse_size, 0)
        size_max = self._value(path, match, "size_max", parse_size, None)
        if size_max is not None and size_max < size_min:
            self._problem((*path, "size_max"), "size_max is below size_min: the rule would match nothing")
        storage_class = self._one_of(path, match, "class", _CLASSES, "")
        return Match(bucket, self._text_of(path, match, "prefix", ""), size_min, size_max, storage_class)

    def _promoter(self, table: Any) -> PromoterRules:
        path: Path = ("promoter",)
        if not isinstance(table, Mapping):
            self._problem(path, f"promoter is a table, not {_kind(table)}; write its settings below [promoter]")
            return PromoterRules()
        self._keys(path, table, _PROMOTER_KEYS)
        base = PromoterRules()
        paused = table.get("paused", base.is_paused)
        if not isinstance(paused, bool):
            self._problem((*path, "paused"), f"paused is true or false, not {_shown(paused)}")
        candidates = table.get("candidates_max", base.candidates_max)
        if type(candidates) is not int or not 1 <= candidates <= 100_000:
            what = f"candidates_max is a whole number from 1 to 100000, not {_shown(candidates)}"
            self._problem((*path, "candidates_max"), what)
        # Documents of earlier releases have it. It never did anything: doubts.py says so.
        self._number(path, table, "mem", 0.01, low=0, high=1)
        return PromoterRules(
            tick_seconds=self._seconds(path, table, "tick", base.tick_seconds, low=1, high=600),
            half_life_seconds=self._seconds(path, table, "half_life", base.half_life_seconds, low=60, high=30 * 86_400),
            hysteresis=self._number(path, table, "hysteresis", base.hysteresis, low=0, high=10),
            beta=self._number(path, table, "beta", base.beta, low=0, high=1),
            budget=self._number(path, table, "budget", base.budget, low=0, high=10),
            device_bytes_per_second_max=self._value(
                path, table, "device_rate_max", parse_rate, base.device_bytes_per_second_max
            ),
            fill=self._number(path, table, "fill", base.fill, low=0, high=1),
            count_min=self._number(path, table, "min_count", base.count_min, low=0, high=1e6),
            chunk_share_max=self._number(path, table, "chunk_max", base.chunk_share_max, low=0, high=1),
            candidates_max=candidates if type(candidates) is int else base.candidates_max,
            read_soon=self._number(path, table, "read_soon", base.read_soon, low=0, high=1),
            is_paused=paused is True,
            schedule=self._schedule((*path, "schedule"), table.get("schedule")),
        )

    # -- values

    def _keys(self, path: Path, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                fix = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                self._problem((*path, key), f"{_dotted((*path, key))} is not a setting; {fix}")

    def _text_of(self, path: Path, table: Mapping[str, Any], key: str, default: str) -> str:
        value = table.get(key, default)
        if not isinstance(value, str):
            self._problem((*path, key), f"{key} is text in quotes, not {_shown(value)}")
            return default
        return value

    def _one_of(self, path: Path, table: Mapping[str, Any], key: str, known: tuple[str, ...], default: str) -> str:
        value = table.get(key, default)
        if key in table and value not in known:
            near = difflib.get_close_matches(value, known, n=1) if isinstance(value, str) else []
            fix = f"did you mean {near[0]!r}?" if near else f"it is one of {', '.join(known)}"
            self._problem((*path, key), f"{key} = {_shown(value)} is not known; {fix}")
            return default
        return str(value)

    def _tier(self, path: Path, tier: Any) -> str:
        return self._one_of(path[:-1], {str(path[-1]): tier}, str(path[-1]), DISK_TIERS, "ssd")

    def _value(self, path: Path, table: Mapping[str, Any], key: str, read: Callable[[Any], int], default: T) -> int | T:
        if key not in table:
            return default
        value = table[key]
        if isinstance(value, str | int) and not isinstance(value, bool):
            try:
                found = read(value)
            except ConfigError as error:
                self._problem((*path, key), f"{key}: {error.detail}")
                return default
            if found <= BYTES_MAX:
                return found
        self._problem((*path, key), f'{key} is a size, such as "8MiB", not {_shown(value)}')
        return default

    def _seconds(self, path: Path, table: Mapping[str, Any], key: str, default: float, *, low: int, high: int) -> float:
        value = table.get(key, default)
        try:
            seconds = parse_seconds(value) if isinstance(value, str | int | float) else -1.0
        except ConfigError as error:
            self._problem((*path, key), f"{key}: {error.detail}")
            return default
        if isinstance(value, bool) or not low <= seconds <= high:
            what = f"{key} is a time from {time_text(low)} to {time_text(high)}, not {_shown(value)}"
            self._problem((*path, key), what)
            return default
        return seconds

    def _number(
        self, path: Path, table: Mapping[str, Any], key: str, default: float, *, low: float, high: float
    ) -> float:
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self._problem((*path, key), f"{key} is a number from {low:g} to {high:g}, not {_shown(value)}")
            return default
        return float(value)

    def _schedule(self, path: Path, value: Any) -> Schedule | None:
        if value is None:
            return None
        minutes = _window(value) if isinstance(value, str) else None
        if minutes is None:
            self._problem(path, f'schedule is a daily window such as "22:00-06:00 UTC", not {_shown(value)}')
            return None
        return Schedule(*minutes)

    def _problem(self, path: Path, what: str) -> None:
        line = line_of(self._text, path) if self._text else 0
        where = f"line {line}" if line else _dotted(path)
        self._problems.append(f"{where}: {what}" if where else what)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlong = 40


def _shown(value: Any) -> str:
    """A value as its writer knows it, cut short: what is refused may be a megabyte, or lists in lists in lists."""
    if isinstance(value, date | time):      # TOML has them; a window without quotes becomes one
        return value.isoformat()
    try:
        return _short.repr(value)
    except ValueError:                      # 0x and thousands of digits: Python does not write them in decimal
        return "a number of endless digits"


def _kind(value: Any) -> str:
    """The type of a JSON value, for people."""
    if isinstance(value, str):
        return f"the text {_shown(value)}"
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"the number {_shown(value)}"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, Mapping) else _shown(value)


def _window(text: str) -> tuple[int, int] | None:
    times, _, zone = text.strip().partition(" ")
    start, dash, end = times.partition("-")
    minutes = [_minute(start), _minute(end)]
    if not dash or zone.strip() not in {"UTC", "Z"} or None in minutes or minutes[0] == minutes[1]:
        return None
    return int(minutes[0] or 0), int(minutes[1] or 0) % 1440


def _minute(text: str) -> int | None:
    hours, _, minutes = text.partition(":")
    if len(hours) != 2 or len(minutes) != 2 or not (hours + minutes).isdecimal():
        return None
    value = int(hours) * 60 + int(minutes)
    return value if int(minutes) < 60 and value <= 1440 else None


def _dotted(path: Path) -> str:
    """("rules", 0, "match", "prefix") -> rules[0].match.prefix"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
