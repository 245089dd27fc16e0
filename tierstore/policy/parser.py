"""Reading a policy document: every fault found, each with its line and its fix.

Owns the checks between a document (TOML text or a JSON tree) and a valid Policy (rules.py). Reads the whole document
and collects problems instead of stopping at the first. Invariant: `parse(policy.document())` equals the policy.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from tierstore.errors import ConfigError, RequestError
from tierstore.names import check_bucket_name
from tierstore.policy.document import line_of, time_text
from tierstore.policy.rules import DISK_TIERS, MODES, VERSION, Match, Policy, PromoterRules, Rule, Schedule
from tierstore.units import parse_rate, parse_seconds, parse_size
from tierstore.wire.storage_class import STORAGE_CLASSES

RULES_MAX: Final = 1000
COPIES_MAX: Final = 9
_PROBLEMS_MAX: Final = 20

T = TypeVar("T")


def parse(document: Any, *, text: str = "") -> Policy:
    """The policy of a document tree. Raises RequestError(code="bad-policy", problems=[...]) naming every fault.

    text: the TOML it came from, so that problems name its lines. A member `revision` (GET adds it) is ignored.
    """
    return _Parser(text).policy(document)


def parse_toml(text: str) -> Policy:
    """The policy of a TOML text. Raises as `parse` does; problems name the line."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RequestError(
            f"the policy is not TOML: {error}", code="bad-policy", problems=[f"the policy is not TOML: {error}"]
        ) from None
    return parse(document, text=text)


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

    def __init__(self, text: str) -> None:
        self._text = text
        self._problems: list[str] = []

    def policy(self, document: Any) -> Policy:
        if not isinstance(document, Mapping):
            what = "a policy is a table with version, rules and promoter"
            raise RequestError(what, code="bad-policy", problems=[what])
        self._keys((), document, ("version", "rules", "promoter", "revision"))
        version = document.get("version")
        if type(version) is not int or version != VERSION:
            said = "is missing" if version is None else f"is {version!r}"
            self._problem(("version",), f"version {said}; this release reads version = {VERSION}")
        rules = self._rules(document.get("rules", []))
        promoter = self._promoter(document.get("promoter", {}))
        if self._problems:
            shown = self._problems[:_PROBLEMS_MAX]
            raise RequestError("; ".join(shown), code="bad-policy", problems=shown)
        return Policy(rules, promoter)

    def _rules(self, rules: Any) -> tuple[Rule, ...]:
        if not isinstance(rules, list):
            self._problem(("rules",), "rules is a list of tables; write each one below [[rules]]")
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
            self._problem(path, "a rule is a table with name, match and mode")
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
        copies = rule.get("copies", 0)
        if "copies" in rule and (type(copies) is not int or not 1 <= copies <= COPIES_MAX):
            self._problem((*path, "copies"), f"copies is a whole number from 1 to {COPIES_MAX}, not {copies!r}")
            copies = 0
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

    def _match(self, path: Path, match: Any) -> Match:
        if not isinstance(match, Mapping):
            self._problem(path, 'match is a table, such as match = {bucket = "b", prefix = "logs/"}')
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
            self._problem(path, "promoter is a table; write its settings below [promoter]")
            return PromoterRules()
        self._keys(path, table, _PROMOTER_KEYS)
        base = PromoterRules()
        paused = table.get("paused", base.is_paused)
        if not isinstance(paused, bool):
            self._problem((*path, "paused"), f"paused is true or false, not {paused!r}")
        candidates = table.get("candidates_max", base.candidates_max)
        if type(candidates) is not int or not 1 <= candidates <= 100_000:
            self._problem((*path, "candidates_max"), "candidates_max is a whole number from 1 to 100000")
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
            mem=self._number(path, table, "mem", base.mem, low=0, high=1),
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
            self._problem((*path, key), f"{key} is text in quotes, not {value!r}")
            return default
        return value

    def _one_of(self, path: Path, table: Mapping[str, Any], key: str, known: tuple[str, ...], default: str) -> str:
        value = table.get(key, default)
        if key in table and value not in known:
            near = difflib.get_close_matches(str(value), known, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"it is one of {', '.join(known)}"
            self._problem((*path, key), f"{key} = {value!r} is not known; {fix}")
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
                return read(value)
            except ConfigError as error:
                self._problem((*path, key), f"{key}: {error.detail}")
                return default
        self._problem((*path, key), f'{key} is a size, such as "8MiB", not {value!r}')
        return default

    def _seconds(self, path: Path, table: Mapping[str, Any], key: str, default: float, *, low: int, high: int) -> float:
        value = table.get(key, default)
        try:
            seconds = parse_seconds(value) if isinstance(value, str | int | float) else -1.0
        except ConfigError as error:
            self._problem((*path, key), f"{key}: {error.detail}")
            return default
        if isinstance(value, bool) or not low <= seconds <= high:
            self._problem((*path, key), f"{key} is a time from {time_text(low)} to {time_text(high)}, not {value!r}")
            return default
        return seconds

    def _number(
        self, path: Path, table: Mapping[str, Any], key: str, default: float, *, low: float, high: float
    ) -> float:
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self._problem((*path, key), f"{key} is a number from {low:g} to {high:g}, not {value!r}")
            return default
        return float(value)

    def _schedule(self, path: Path, value: Any) -> Schedule | None:
        if value is None:
            return None
        minutes = _window(value) if isinstance(value, str) else None
        if minutes is None:
            self._problem(path, f'schedule is a daily window such as "22:00-06:00 UTC", not {value!r}')
            return None
        return Schedule(*minutes)

    def _problem(self, path: Path, what: str) -> None:
        line = line_of(self._text, path) if self._text else 0
        where = f"line {line}" if line else _dotted(path)
        self._problems.append(f"{where}: {what}" if where else what)


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
