"""Replication rules in S3's form: what is taken, in which order, and what is refused rather than not done."""

from __future__ import annotations

import pytest

from tierstore.gateway.s3 import documents
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.replication_forms import Wanted, named, packed, parse_rules, rules_xml
from tierstore.wire.sites import BucketRule

SITES = ["site2", "site3"]
FILTER = "<Filter><Prefix>a/</Prefix></Filter>"


def rule(inner: str = FILTER, *, site: str = "site2", status: str = "Enabled", destination: str = "") -> str:
    return (
        f"<Rule>{inner}<Status>{status}</Status>"
        f"<Destination><Bucket>arn:aws:s3:{site}::bkt</Bucket>{destination}</Destination></Rule>"
    )


def parsed(*rules: str) -> list[Wanted]:
    text = f"<ReplicationConfiguration><Role>r</Role>{''.join(rules)}</ReplicationConfiguration>"
    return parse_rules(documents.parse(text.encode(), "ReplicationConfiguration"), "bkt", SITES)


def test_the_highest_priority_comes_first() -> None:
    """The first native rule that fits decides, as the highest priority does at AWS."""
    made = parsed(
        rule(f"<ID>low</ID><Priority>1</Priority>{FILTER}"),
        rule("<ID>high</ID><Priority>9</Priority><Filter><Prefix>a/b/</Prefix></Filter>"),
        rule(f"<ID>other</ID><Priority>5</Priority>{FILTER}", site="site3"),
    )  # fmt: skip
    assert [(w.name, w.priority, w.prefix, w.target) for w in made] == [
        ("high", 9, "a/b/", "site2"), ("other", 5, "a/", "site3"), ("low", 1, "a/", "site2"),
    ]  # fmt: skip


def test_rules_of_the_first_form_keep_their_order() -> None:
    """They have neither filters nor priorities."""
    made = parsed(rule("<Prefix>b/</Prefix>"), rule("<Prefix>a/</Prefix>"), rule("", site="site3"))
    assert [(w.prefix, w.name) for w in made] == [("b/", "rule-1"), ("a/", "rule-2"), ("", "rule-3")]


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ((rule("<Priority>1</Priority>"), rule("<Priority>1</Priority><Prefix>b</Prefix>")), "InvalidRequest"),
        ((rule("<ID>x</ID>"), rule("<ID>x</ID><Prefix>b</Prefix>")), "InvalidRequest"),
        ((rule(), rule()), "InvalidRequest"), ((), "MalformedXML"), ((rule(),) * 101, "MalformedXML"),
        ((rule("<Priority>-1</Priority>"),), "MalformedXML"), ((rule("<Priority>x</Priority>"),), "MalformedXML"),
        ((rule(f"<ID>{'x' * 256}</ID>"),), "InvalidArgument"), ((rule(status="Disabled"),), "NotImplemented"),
        ((rule("<Filter><Tag><Key>a</Key><Value>b</Value></Tag></Filter>"),), "NotImplemented"),
        ((rule("<Filter><And><Prefix>a</Prefix></And></Filter>"),), "NotImplemented"),
        ((rule("<SourceSelectionCriteria/>"),), "NotImplemented"),
        ((rule("<ExistingObjectReplication><Status>Disabled</Status></ExistingObjectReplication>"),), "NotImplemented"),
        ((rule("<DeleteMarkerReplication><Status>Disabled</Status></DeleteMarkerReplication>"),), "NotImplemented"),
        ((rule(destination="<StorageClass>GLACIER</StorageClass>"),), "NotImplemented"),
        ((rule(destination="<EncryptionConfiguration/>"),), "NotImplemented"),
        ((rule(destination="<ReplicationTime/>"),), "NotImplemented"),
        ((rule(site=""),), "InvalidArgument"), (("<Rule><Status>Enabled</Status></Rule>",), "MalformedXML"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(rules: tuple[str, ...], code: str) -> None:
    """A rule that was taken and not done would lose what its owner thinks is safe elsewhere."""
    with pytest.raises(S3Error) as caught:
        parsed(*rules)
    assert caught.value.code == code


def test_names_and_priorities_come_back() -> None:
    """Tools that compare what they set with what is there would else set it again and again."""
    made = parsed(rule(f"<ID>mine &amp; yours</ID><Priority>7</Priority>{FILTER}"))
    shown = rules_xml("bkt", [BucketRule("x/", "site3"), BucketRule("a/", "site2")], named(packed(made)))
    root = documents.parse(f"<Rules>{shown}</Rules>".encode(), "Rules")
    assert [(node.text("ID"), node.text("Priority")) for node in root.all("Rule")] == [
        ("rule-1", "1"), ("mine & yours", "7"),
    ]  # fmt: skip
    assert named("") == {}
