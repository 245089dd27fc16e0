"""Logging of a bucket as a document: AWS's XML to a rule and back. Pure.

A rule says into which bucket, under which prefix and by which form of keys the access logs of a bucket are delivered.
`log_delivery` writes them; may_deliver says whether the target takes them.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from tierstore.auth.policy_language import ALLOW, DENY, LOG_SERVICE, Question, decide, service_user
from tierstore.gateway.s3 import grants, rights
from tierstore.gateway.s3.documents import Node, document, element
from tierstore.gateway.s3.errors import S3Error
from tierstore.wire.names import BucketView

DOCUMENT: Final = "s3.logging"
PREFIX_CHARACTERS_MAX: Final = 800          # so that with the date behind it the key is short enough
_GRANTED: Final = frozenset({"FULL_CONTROL", "READ", "WRITE"})
_XSI: Final = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type='


class LogRule(msgspec.Struct, frozen=True, array_like=True):
    """by_date: which time stands in the keys where they are partitioned, "" where they are plain."""

    target: str
    prefix: str
    by_date: Literal["", "EventTime", "DeliveryTime"] = ""
    grants: tuple[grants.Grant, ...] = ()
    is_simple: bool = False     # that they are plain was said, and is shown

    @staticmethod
    def of(bucket: BucketView) -> LogRule | None:
        """The rule of a bucket, None where nothing is logged."""
        text = bucket.config.get(DOCUMENT)
        return msgspec.json.decode(text, type=LogRule) if text else None

    @property
    def text(self) -> str:
        return msgspec.json.encode(self).decode()


def parse_logging(root: Node) -> tuple[LogRule | None, list[Node]]:
    """The rule of a BucketLoggingStatus, None when it turns logging off, and the grants that it names, which have to be
    looked up. Raises S3Error(MalformedXML, InvalidArgument)."""
    enabled = root.one("LoggingEnabled")
    if enabled is None:
        if root.children:
            raise S3Error("MalformedXML")
        return None, []
    target, prefix = enabled.text("TargetBucket"), enabled.text("TargetPrefix")
    if not target or prefix is None:
        raise S3Error("MalformedXML")
    if len(prefix) > PREFIX_CHARACTERS_MAX:
        raise S3Error("InvalidArgument", f"TargetPrefix has at most {PREFIX_CHARACTERS_MAX} characters",
                      ArgumentName="TargetPrefix")  # fmt: skip
    listed = enabled.one("TargetGrants")
    rule = LogRule(target, prefix, _by_date(enabled), is_simple=_is_simple(enabled))
    return rule, listed.all("Grant") if listed is not None else []


def _by_date(enabled: Node) -> Literal["", "EventTime", "DeliveryTime"]:
    form = enabled.one("TargetObjectKeyFormat")
    if form is None:
        return ""
    plain, parted = form.one("SimplePrefix"), form.one("PartitionedPrefix")
    if (plain is None) == (parted is None):
        raise S3Error("MalformedXML")
    if parted is None:
        return ""
    source = parted.text("PartitionDateSource")
    if source == "EventTime":
        return "EventTime"
    if source == "DeliveryTime":
        return "DeliveryTime"
    raise S3Error("MalformedXML")


def _is_simple(enabled: Node) -> bool:
    form = enabled.one("TargetObjectKeyFormat")
    return form is not None and form.one("SimplePrefix") is not None


def check_permission(permission: str) -> None:
    """Of a grant on delivered logs. Raises S3Error(MalformedXML)."""
    if permission not in _GRANTED:
        raise S3Error("MalformedXML")


def logging_document(rule: LogRule | None) -> bytes:
    """What GetBucketLogging shows."""
    if rule is None:
        return document("BucketLoggingStatus", "")
    inner = element("TargetBucket", rule.target) + element("TargetPrefix", rule.prefix)
    if rule.grants:
        inner += f"<TargetGrants>{''.join(_shown(grant) for grant in rule.grants)}</TargetGrants>"
    if rule.by_date:
        form = f"<PartitionedPrefix>{element('PartitionDateSource', rule.by_date)}</PartitionedPrefix>"
        inner += f"<TargetObjectKeyFormat>{form}</TargetObjectKeyFormat>"
    elif rule.is_simple:
        inner += "<TargetObjectKeyFormat><SimplePrefix/></TargetObjectKeyFormat>"
    return document("BucketLoggingStatus", f"<LoggingEnabled>{inner}</LoggingEnabled>")


def _shown(grant: grants.Grant) -> str:
    who, kind = element("ID", grant.grantee) + element("DisplayName", grant.grantee), "CanonicalUser"
    if grant.is_group:
        who, kind = element("URI", grant.grantee), "Group"
    return f'<Grant><Grantee {_XSI}"{kind}">{who}</Grantee>{element("Permission", grant.permission)}</Grant>'


def may_deliver(source: BucketView, target: BucketView, key: str) -> bool:
    """Whether the target's policy lets the service write this key for that source, or its list lets the group of log
    delivery write where lists count. A Deny holds, whoever it names."""
    policy = rights.policy_of(target)
    verdict = ""
    if policy is not None:
        context = {"aws:sourcearn": [f"arn:aws:s3:::{source.name}"], "aws:sourceaccount": [source.owner],
                   "aws:principaltype": ["Service"], "aws:securetransport": ["true"]}  # fmt: skip
        service, resource = service_user(LOG_SERVICE), f"arn:aws:s3:::{target.name}/{key}"
        verdict = decide(policy, Question(service, service, "s3:PutObject", resource, context))
    if verdict == DENY:
        return False
    return verdict == ALLOW or (rights.has_acls(target) and grants.allows(
        target.config.get(rights.ACL, ""), grants.LOG_DELIVERY, "s3:PutObject", (target.owner, target.owner),
        of_object=False, without_public=True,
    ))  # fmt: skip
