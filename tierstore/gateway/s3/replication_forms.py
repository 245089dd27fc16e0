"""Replication rules as S3 writes them: read from XML, and shown. Pure.

What such a rule cannot do here is refused with NotImplemented: it must not be taken and then not be done. The rules are
given on in the order of their priority, highest first, for the first one that fits decides (mode, bodies). Names and
priorities are the client's; they are kept beside the rules, which are native and know neither.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from tierstore.gateway.s3.documents import Node, element
from tierstore.gateway.s3.errors import S3Error
from tierstore.wire.sites import BucketRule

RULES_MAX: Final = 100
_ARN_PARTS: Final = 6
_ID_CHARACTERS_MAX: Final = 255
#: Parts of a destination that promise what nobody would do here.
_NOT_AT_TARGETS: Final = ("StorageClass", "EncryptionConfiguration", "AccessControlTranslation", "ReplicationTime")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One rule: where to, of what, and what its client calls it."""

    prefix: str
    target: str
    name: str
    priority: int


def parse_rules(root: Node, bucket: str, sites: list[str]) -> list[Wanted]:
    """Highest priority first. Raises S3Error."""
    nodes = root.all("Rule")
    if not 1 <= len(nodes) <= RULES_MAX:
        raise S3Error("MalformedXML")
    rules = [
        Wanted(_prefix(node), _target(node, bucket, sites), _name(node, place), _priority(node, len(nodes) - place))
        for place, node in enumerate(nodes)
    ]
    for what, values in (
        ("priority", [rule.priority for rule in rules]), ("ID", [rule.name for rule in rules]),
        ("prefix and destination", [(rule.prefix, rule.target) for rule in rules]),
    ):
        if len(set(values)) < len(values):
            raise S3Error("InvalidRequest", f"Two rules have the same {what}.")
    return sorted(rules, key=lambda rule: -rule.priority)


def packed(rules: Iterable[Wanted]) -> str:
    """Names and priorities, as the bucket keeps them."""
    return msgspec.json.encode([[rule.prefix, rule.target, rule.name, rule.priority] for rule in rules]).decode()


def named(text: str) -> dict[tuple[str, str], tuple[str, int]]:
    """(prefix, target) -> (ID, priority) of what `packed` made; "": of nothing."""
    kept = msgspec.json.decode(text, type=list[tuple[str, str, str, int]]) if text else []
    return {(prefix, target): (name, priority) for prefix, target, name, priority in kept}


def rules_xml(bucket: str, rules: list[BucketRule], names: Mapping[tuple[str, str], tuple[str, int]]) -> str:
    """Rules that no client of S3 set are numbered with what is free."""
    used = {priority for _, priority in names.values()}
    shown, free = "", (number for number in itertools.count(1) if number not in used)
    for place, rule in enumerate(rules):
        name, priority = names.get((rule.prefix, rule.target)) or (f"rule-{place + 1}", next(free))
        destination = element("Bucket", f"arn:aws:s3:{rule.target}::{bucket}")
        shown += (
            f"<Rule>{element('ID', name)}{element('Priority', priority)}{element('Status', 'Enabled')}"
            f"<Filter>{element('Prefix', rule.prefix)}</Filter><Destination>{destination}</Destination>"
            "<DeleteMarkerReplication><Status>Enabled</Status></DeleteMarkerReplication></Rule>"
        )
    return shown


def _name(node: Node, place: int) -> str:
    name = node.text("ID") or f"rule-{place + 1}"
    if len(name) > _ID_CHARACTERS_MAX:
        raise S3Error("InvalidArgument", f"An ID has at most {_ID_CHARACTERS_MAX} characters.")
    return name


def _priority(node: Node, default: int) -> int:
    """default: of rules without one, as S3's first form had them: in the order in which they stand."""
    said = node.text("Priority")
    if said is None:
        return default
    if not said.isascii() or not said.isdigit() or len(said) > 9:
        raise S3Error("MalformedXML")
    return int(said)


def _prefix(node: Node) -> str:
    """Of a rule that asks for nothing else."""
    if node.text("Status") != "Enabled":
        raise S3Error("NotImplemented", "A rule is enabled, or it is left out.")
    for part, what in (
        ("DeleteMarkerReplication", "Deletes are always replicated."),
        ("ExistingObjectReplication", "What exists is always replicated too."),
    ):
        found = node.one(part)
        if found is not None and found.text("Status") == "Disabled":
            raise S3Error("NotImplemented", what)
    if node.one("SourceSelectionCriteria") is not None:
        raise S3Error("NotImplemented", "Rules choose objects by prefix, not by their encryption or origin.")
    chosen = node.one("Filter")
    if chosen is None:
        return node.text("Prefix") or ""
    if chosen.one("Tag") is not None or chosen.one("And") is not None:
        raise S3Error("NotImplemented", "Rules choose objects by prefix, not by tags.")
    return chosen.text("Prefix") or ""


def _target(node: Node, bucket: str, sites: list[str]) -> str:
    destination = node.one("Destination")
    if destination is None:
        raise S3Error("MalformedXML")
    for part in _NOT_AT_TARGETS:
        if destination.one(part) is not None:
            raise S3Error("NotImplemented", f"A destination has no {part} here: the other site's own rules decide.")
    parts = (destination.text("Bucket") or "").split(":")
    if len(parts) != _ARN_PARTS or parts[:3] != ["arn", "aws", "s3"]:
        raise S3Error("InvalidArgument", "The destination is arn:aws:s3:SITE::BUCKET.")
    if parts[5] != bucket:
        raise S3Error("InvalidArgument", "A bucket is replicated into the bucket of the same name at another site.")
    if not parts[3] and len(sites) != 1:
        raise S3Error("InvalidArgument", f"Name the site, arn:aws:s3:SITE::{bucket}: {', '.join(sites) or 'none'}.")
    return parts[3] or sites[0]
