"""What a valid policy probably does not mean: told when it is set, and no reason to refuse it.

Owns the words. A cluster may be set up with its policy before its devices and buckets, so none of this is an error; but
a rule that never holds, or names what is not there, does nothing, and nothing else would say so. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from tierstore.policy.rules import DISK_TIERS, Policy, Rule


def doubts(policy: Policy, document: Any, *, tiers: Collection[str], missing_buckets: Collection[str]) -> list[str]:
    """One sentence for each, in the order of the rules. document: the tree that the policy was read from. tiers: those
    of the cluster's devices. missing_buckets: those of the rules that do not exist."""
    found: list[str] = []
    for number, rule in enumerate(policy.rules):
        found += _of_rule(rule, policy.rules[:number], tiers, missing_buckets)
    section = document.get("promoter") if isinstance(document, dict) else None
    if isinstance(section, dict) and "mem" in section:
        found.append("promoter.mem has no effect: chunks.mem_bytes of each object server bounds its RAM cache")
    return found


def _of_rule(
    rule: Rule, before: Sequence[Rule], tiers: Collection[str], missing_buckets: Collection[str]
) -> list[str]:
    found = []
    name = f"rule {rule.name!r}"
    cover = next((other for other in before if _covers(other, rule)), None)
    if cover is not None:
        found.append(f"{name} never holds: rule {cover.name!r} before it matches all that it matches")
    if rule.match.bucket in missing_buckets:
        found.append(f"{name}: there is no bucket {rule.match.bucket!r}")
    if rule.home and rule.home not in tiers:
        found.append(f"{name}: no device is of its home tier {rule.home}; home copies go to the slowest that has room")
    wanted = rule.fast or tuple(tier for tier in DISK_TIERS if tier in tiers)[:-1]
    if rule.mode != "never" and not any(tier in tiers for tier in wanted) and (rule.fast or rule.mode != "auto"):
        names = " or ".join(rule.fast) or "a faster tier"
        found.append(f"{name}: no device is of {names}, so {rule.mode} has no effect yet")
    return found


def _covers(first: Rule, second: Rule) -> bool:
    """Whether the first holds wherever and whenever the second would."""
    a, b = first.match, second.match
    return (
        a.bucket in ("", b.bucket)
        and b.prefix.startswith(a.prefix)
        and a.size_min <= b.size_min
        and (a.size_max is None or (b.size_max is not None and b.size_max <= a.size_max))
        and a.storage_class in ("", b.storage_class)
        and first.schedule in (None, second.schedule)
    )
