"""Replication rules over S3, on two real sites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.s3.conftest import client_of
from tests.kit.cluster import cluster, wait_until

Refused = Callable[..., str]


def _configuration(destination: str, **rule: Any) -> dict[str, Any]:
    made = {
        "ID": "all", "Priority": 1, "Status": "Enabled", "Filter": {"Prefix": "logs/"},
        "DeleteMarkerReplication": {"Status": "Enabled"}, "Destination": {"Bucket": destination}, **rule,
    }  # fmt: skip
    return {"Role": "arn:aws:iam::1:role/any", "Rules": [made]}


def test_replication_rules_by_s3(tmp_path: Path, refused: Refused) -> None:
    """A tool that only speaks S3 can set up replication, and hears what cannot be had."""
    with cluster(tmp_path, "--sites", "2", "--servers", "2") as running:
        s3 = client_of(running)
        s3.create_bucket(Bucket="bkt")
        assert refused(s3.get_bucket_replication, Bucket="bkt") == "ReplicationConfigurationNotFoundError"

        def put(configuration: dict[str, Any]) -> Any:
            return s3.put_bucket_replication(Bucket="bkt", ReplicationConfiguration=configuration)

        for wrong, code in (
            (_configuration("arn:aws:s3:::other-bucket"), "InvalidArgument"),
            (_configuration("arn:aws:s3:nowhere::bkt"), "InvalidRequest"),
            (_configuration("arn:aws:s3:::bkt", Status="Disabled"), "NotImplemented"),
            (_configuration("arn:aws:s3:::bkt", Filter={"Tag": {"Key": "a", "Value": "b"}}), "NotImplemented"),
        ):
            assert refused(put, configuration=wrong) == code
        put(_configuration("arn:aws:s3:::bkt"))
        rule = s3.get_bucket_replication(Bucket="bkt")["ReplicationConfiguration"]["Rules"][0]
        assert rule["Destination"]["Bucket"] == "arn:aws:s3:site2::bkt" and rule["Filter"] == {"Prefix": "logs/"}
        assert (rule["ID"], rule["Priority"]) == ("all", 1)
        both = _configuration("arn:aws:s3:site2::bkt")
        both["Rules"].append({**both["Rules"][0], "ID": "first", "Priority": 8, "Filter": {"Prefix": "logs/new/"}})
        put(both)
        rules = s3.get_bucket_replication(Bucket="bkt")["ReplicationConfiguration"]["Rules"]
        assert [(rule["ID"], rule["Priority"]) for rule in rules] == [("first", 8), ("all", 1)]
        put(_configuration("arn:aws:s3:site2::bkt"))
        s3.put_object(Bucket="bkt", Key="logs/a", Body=b"everywhere")
        there = client_of(running, endpoint=running.ready["sites"][1]["gateway"])

        def arrived() -> bool:
            return "logs/a" in [o["Key"] for o in there.list_objects_v2(Bucket="bkt").get("Contents", [])]

        wait_until(lambda: "bkt" in [b["Name"] for b in there.list_buckets()["Buckets"]], seconds=30, what="the bucket")
        wait_until(arrived, seconds=30, what="the object")
        assert there.get_object(Bucket="bkt", Key="logs/a")["Body"].read() == b"everywhere"
        s3.delete_bucket_replication(Bucket="bkt")
        assert refused(s3.get_bucket_replication, Bucket="bkt") == "ReplicationConfigurationNotFoundError"
