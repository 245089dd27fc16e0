"""The policy document: what it says, checked, and the rule that holds for an object now.

Owns the meaning of the document (TOML in files, the same tree as JSON over REST); how one is read and checked is
parser.py's, its revision and its history are the catalog's. Policy is data, evaluated when it is needed and never
stamped into objects: a rule that is removed has no effect from then on. The first rule that matches wins; without one,
`default` holds (auto).

Invariant: a Policy that exists is valid.

Cost: rule_for is one dict lookup and a short loop over the rules of that bucket: about 0.5 us for five rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from tierstore.names import TIERS
from tierstore.policy.document import size_text, time_text, toml_text
from tierstore.wire.storage_class import STANDARD

Mode = Literal["auto", "pin", "never", "land-fast"]
MODES: Final[tuple[Mode, ...]] = ("auto", "pin", "never", "land-fast")
DISK_TIERS: Final = tuple(tier for tier in TIERS if tier != "mem")
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Schedule:
    """A daily window in UTC, minutes after midnight; may pass midnight. The start belongs to it, the end does not."""

    start: int
    end: int

    def is_open(self, now: float) -> bool:
        """now: seconds since 1970."""
        minute = int(now % 86_400) // 60
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def text(self) -> str:
        start, end = (f"{m // 60:02d}:{m % 60:02d}" for m in (self.start, self.end))
        return f"{start}-{end} UTC"


@dataclass(frozen=True, slots=True)
class Match:
    """Which objects: bucket "" = any, prefix "" = any, size_min <= size <= size_max (None: no bound), bytes.
    storage_class: of S3, "" = any."""

    bucket: str = ""
    prefix: str = ""
    size_min: int = 0
    size_max: int | None = None
    storage_class: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for the objects that match.

    mode: auto (by heat) | pin (a fast copy always) | never (no fast copy) | land-fast (home copies land on fast devices
    and drain home). home: tier of the home copies, "" = the slowest there is. fast: tiers it may be promoted to,
    () = any. copies: home copies, 0 = the cluster's default. schedule: the rule holds only inside it.
    """

    name: str = "default"
    match: Match = field(default_factory=Match)
    mode: Mode = "auto"
    home: str = ""
    fast: tuple[str, ...] = ()
    copies: int = 0
    schedule: Schedule | None = None


#: What S3's storage classes mean where no rule of the policy matches: those for data that is seldom read get no fast
#: copies. All others are as STANDARD. None is kept in fewer copies, or made slower to read, than the rest.
CLASS_RULES: Final = {
    name: Rule(f"class {name}", Match(storage_class=name), "never")
    for name in ("STANDARD_IA", "ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE")
}


@dataclass(frozen=True, slots=True)
class PromoterRules:
    """The [promoter] section. Shares and ratios are fractions, not percent.

    budget: bytes moved per byte served. device_bytes_per_second_max: 0 = no cap. fill: share of a fast device that
    may be full. count_min: decayed reads that a chunk needs before it may move. chunk_share_max: largest chunk that
    moves, as a share of the fastest tier. read_soon: share of a bucket's new objects
    that must be read soon for new ones to get a fast copy at once; 0 = never.
    """

    tick_seconds: float = 10.0
    half_life_seconds: float = 3600.0
    hysteresis: float = 0.25
    beta: float = 0.5
    budget: float = 0.2
    device_bytes_per_second_max: int = 50 << 20
    fill: float = 0.95
    count_min: float = 0.0
    chunk_share_max: float = 0.05
    candidates_max: int = 4096
    read_soon: float = 0.5
    is_paused: bool = False
    schedule: Schedule | None = None

    def may_move(self, now: float) -> bool:
        """False while paused or outside the schedule. now: seconds since 1970."""
        return not self.is_paused and (self.schedule is None or self.schedule.is_open(now))


class Policy:
    """A valid policy. Immutable; equal when the documents say the same."""

    __slots__ = ("_any", "_by_bucket", "default", "promoter", "rules")

    def __init__(self, rules: tuple[Rule, ...] = (), promoter: PromoterRules | None = None) -> None:
        self.rules = rules
        self.promoter = promoter or PromoterRules()
        self.default = Rule()
        # Rules that can match a bucket, in order, those for any bucket merged in: no test of other buckets' rules.
        self._any = tuple(_compiled(rule) for rule in rules if not rule.match.bucket)
        self._by_bucket = {
            bucket: tuple(_compiled(rule) for rule in rules if rule.match.bucket in ("", bucket))
            for bucket in {rule.match.bucket for rule in rules if rule.match.bucket}
        }

    def rule_for(self, bucket: str, key: str, size: int, now: float, storage_class: str = "") -> Rule:
        """The first rule that matches at `now` (s since 1970), else that of its storage class (CLASS_RULES), else the
        default one. size: the object's, bytes. storage_class: "" is STANDARD."""
        for prefix, size_min, size_max, named, schedule, rule in self._by_bucket.get(bucket, self._any):
            if (
                key.startswith(prefix)
                and size_min <= size <= size_max
                and (not named or named == (storage_class or STANDARD))
                and (schedule is None or schedule.is_open(now))
            ):
                return rule
        return CLASS_RULES.get(storage_class, self.default) if storage_class else self.default

    def document(self) -> dict[str, Any]:
        """The document as a tree for JSON; only what differs from the defaults, but the whole [promoter] section."""
        return {
            "version": VERSION,
            "rules": [_rule_document(rule) for rule in self.rules],
            "promoter": _promoter_document(self.promoter),
        }

    def toml(self) -> str:
        """The document as TOML text; parses to an equal policy."""
        return toml_text(self.document())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and (self.rules, self.promoter) == (other.rules, other.promoter)

    def __hash__(self) -> int:
        return hash((self.rules, self.promoter))

    def __repr__(self) -> str:
        return f"Policy(rules={self.rules!r}, promoter={self.promoter!r})"


def _compiled(rule: Rule) -> tuple[str, int, float, str, Schedule | None, Rule]:
    size_max = float("inf") if rule.match.size_max is None else rule.match.size_max
    return rule.match.prefix, rule.match.size_min, size_max, rule.match.storage_class, rule.schedule, rule


# -- documents


def _rule_document(rule: Rule) -> dict[str, Any]:
    match: dict[str, Any] = {}
    if rule.match.bucket:
        match["bucket"] = rule.match.bucket
    if rule.match.prefix:
        match["prefix"] = rule.match.prefix
    if rule.match.size_min:
        match["size_min"] = size_text(rule.match.size_min)
    if rule.match.size_max is not None:
        match["size_max"] = size_text(rule.match.size_max)
    if rule.match.storage_class:
        match["class"] = rule.match.storage_class
    tree: dict[str, Any] = {"name": rule.name, "match": match, "mode": rule.mode}
    if rule.home:
        tree["home"] = rule.home
    if rule.fast:
        tree["fast"] = list(rule.fast)
    if rule.copies:
        tree["copies"] = rule.copies
    if rule.schedule is not None:
        tree["schedule"] = rule.schedule.text()
    return tree


def _promoter_document(promoter: PromoterRules) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "tick": time_text(promoter.tick_seconds),
        "half_life": time_text(promoter.half_life_seconds),
        "hysteresis": promoter.hysteresis,
        "beta": promoter.beta,
        "budget": promoter.budget,
        "device_rate_max": f"{size_text(promoter.device_bytes_per_second_max)}/s",
        "fill": promoter.fill,
        "min_count": promoter.count_min,
        "chunk_max": promoter.chunk_share_max,
        "candidates_max": promoter.candidates_max,
        "read_soon": promoter.read_soon,
        "paused": promoter.is_paused,
    }
    if promoter.schedule is not None:
        tree["schedule"] = promoter.schedule.text()
    return tree
