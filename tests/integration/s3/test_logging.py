"""Bucket logging: lines in AWS's format reach the target bucket, and only targets that take them may be named."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError

from tests.integration.s3.conftest import client_of
from tests.kit.cluster import Cluster, wait_until

Refused = Callable[..., str]
_LINE = re.compile(r'\[[^\]]*\]|"[^"]*"|\S+')
_FIELDS = 26


def _let_logs_in(s3: Any, source: str, target: str) -> None:
    statement = {
        "Effect": "Allow", "Principal": {"Service": "logging.s3.amazonaws.com"}, "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{target}/logs/*",
        "Condition": {"ArnLike": {"aws:SourceArn": f"arn:aws:s3:::{source}"}},
    }  # fmt: skip
    s3.put_bucket_policy(Bucket=target, Policy=json.dumps({"Statement": [statement]}))


def _turn_on(s3: Any, source: str, target: str, prefix: str = "logs/", **more: Any) -> None:
    enabled = {"TargetBucket": target, "TargetPrefix": prefix, **more}
    s3.put_bucket_logging(Bucket=source, BucketLoggingStatus={"LoggingEnabled": enabled})


def _lines(s3: Any, target: str, prefix: str) -> list[list[str]]:
    found = []
    for entry in s3.list_objects_v2(Bucket=target, Prefix=prefix).get("Contents", ()):
        text = s3.get_object(Bucket=target, Key=entry["Key"])["Body"].read().decode()
        found += [_LINE.findall(line) for line in text.splitlines()]
    return found


#: Operation, key, status.
_Name = tuple[str, str, str]


def _wait_for(s3: Any, target: str, prefix: str, *wanted: _Name) -> dict[_Name, list[str]]:
    """The lines of these, once all of them are there."""
    found: dict[_Name, list[str]] = {}

    def are_there() -> bool:
        found.update(((line[6], line[7], line[9]), line) for line in _lines(s3, target, prefix))
        return all(name in found for name in wanted)

    wait_until(are_there, seconds=120, what=f"lines of {wanted}")
    return found


def test_requests_are_logged_into_another_bucket(s3: Any, bucket: str, running: Cluster) -> None:
    """Who read what: an operator who audits by these lines must find each kind of request, as at AWS."""
    target = f"{bucket}-logs"
    s3.create_bucket(Bucket=target)
    assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket=bucket)
    _let_logs_in(s3, bucket, target)
    _turn_on(s3, bucket, target)
    plain = {"TargetBucket": target, "TargetPrefix": "logs/"}
    assert s3.get_bucket_logging(Bucket=bucket)["LoggingEnabled"] == plain
    _turn_on(s3, bucket, target, TargetObjectKeyFormat={"SimplePrefix": {}})
    assert s3.get_bucket_logging(Bucket=bucket)["LoggingEnabled"] == {
        **plain, "TargetObjectKeyFormat": {"SimplePrefix": {}}
    }  # fmt: skip
    s3.put_object(Bucket=bucket, Key="a key", Body=b"12345")
    s3.get_object(Bucket=bucket, Key="a key")["Body"].read()
    s3.list_objects_v2(Bucket=bucket)
    presigner = client_of(running, signature_version="s3v4")
    url = presigner.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "missing"})
    for asked in (url, f"{running.gateway}/{bucket}/stranger"):
        try:
            urllib.request.urlopen(asked, timeout=60)
        except HTTPError as error:
            error.close()
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "one"}, {"Key": "two", "VersionId": "none"}]})
    put, got = ("REST.PUT.OBJECT", "a%20key", "200"), ("REST.GET.OBJECT", "a%20key", "200")
    both = (("BATCH.DELETE.OBJECT", "one", "204"), ("BATCH.DELETE.OBJECT", "two", "404"))
    missing, stranger = ("REST.GET.OBJECT", "missing", "404"), ("REST.GET.OBJECT", "stranger", "403")
    found = _wait_for(s3, target, "logs/", put, got, missing, stranger, ("REST.GET.BUCKET", "-", "200"), *both,
                      ("REST.POST.MULTI_OBJECT_DELETE", "-", "200"))  # fmt: skip
    assert (found[both[1]][8], found[both[1]][10], found[both[1]][17]) == ('"-"', "NoSuchVersion", "none")
    assert {len(line) for line in found.values()} == {_FIELDS}
    owner = s3.get_bucket_acl(Bucket=bucket)["Owner"]["ID"]
    assert found[got][:2] == [owner, bucket]
    assert found[got][3:5] == ["127.0.0.1", owner]
    assert found[got][10:13] == ["-", "5", "5"]
    assert found[put][11:13] == ["-", "5"]
    assert found[got][19:22] == ["SigV4", "-", "AuthHeader"]
    assert found[missing][10] == "NoSuchKey"
    assert found[missing][21] == "QueryString"
    assert "X-Amz-Signature=REDACTED" in found[missing][8]
    assert (found[stranger][4], found[stranger][10], found[stranger][19]) == ("-", "AccessDenied", "-")
    s3.put_bucket_logging(Bucket=bucket, BucketLoggingStatus={})
    assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket=bucket)


def test_logs_by_lists_grants_and_dates(s3: Any, bucket: str, running: Cluster) -> None:
    """The older way, by the group of log delivery, with keys that queries over days are cut by."""
    target = f"{bucket}-logs"
    s3.create_bucket(Bucket=target, ObjectOwnership="ObjectWriter", ACL="log-delivery-write")
    group = "http://acs.amazonaws.com/groups/s3/LogDelivery"
    acl = s3.get_bucket_acl(Bucket=target)["Grants"]
    listed = {(grant["Grantee"].get("URI"), grant["Permission"]) for grant in acl}
    assert listed >= {(group, "WRITE"), (group, "READ_ACP")}
    grants = [{"Grantee": {"Type": "CanonicalUser", "ID": "configured"}, "Permission": "READ"}]
    parted = {"PartitionedPrefix": {"PartitionDateSource": "EventTime"}}
    _turn_on(s3, bucket, target, "by-day/", TargetGrants=grants, TargetObjectKeyFormat=parted)
    shown = s3.get_bucket_logging(Bucket=bucket)["LoggingEnabled"]
    assert shown["TargetObjectKeyFormat"] == parted
    assert shown["TargetGrants"][0]["Grantee"]["ID"] == "configured"
    s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls={"Rules": [{"ObjectOwnership": "ObjectWriter"}]})
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", ACL="public-read")
    with urllib.request.urlopen(f"{running.gateway}/{bucket}/k", timeout=60) as answer:
        assert answer.read() == b"x"
    put, got = ("REST.PUT.OBJECT", "k", "200"), ("REST.GET.OBJECT", "k", "200")
    found = _wait_for(s3, target, "by-day/", put, got)
    assert (found[put][-1], found[got][-1]) == ("-", "Yes")     # which requests a bucket without lists would refuse
    owner = s3.get_bucket_acl(Bucket=bucket)["Owner"]["ID"]
    key = s3.list_objects_v2(Bucket=target, Prefix="by-day/")["Contents"][0]["Key"]
    unique = r"\d{4}-\d\d-\d\d-00-00-00-[0-9A-F]{16}"
    assert re.fullmatch(rf"by-day/{owner}/us-east-1/{bucket}/\d{{4}}/\d\d/\d\d/{unique}", key)
    other = client_of(running, "CONFIGURED1", "configured-secret")
    assert other.get_object(Bucket=target, Key=key)["Body"].read()


def test_only_buckets_that_take_logs_are_targets(s3: Any, bucket: str, running: Cluster, refused: Refused) -> None:
    """A target that would take nothing must be refused when it is named, not found out when the logs are missed."""
    target = f"{bucket}-logs"

    def code(prefix: str = "logs/", **more: Any) -> str:
        enabled = {"TargetBucket": target, "TargetPrefix": prefix, **more}
        return refused(s3.put_bucket_logging, Bucket=bucket, BucketLoggingStatus={"LoggingEnabled": enabled})

    unfit = "InvalidTargetBucketForLogging"
    assert code() == unfit                      # it is not there
    s3.create_bucket(Bucket=target)
    assert code() == unfit                      # it lets nobody write
    _let_logs_in(s3, bucket, target)
    assert code("elsewhere/") == unfit          # its policy is for another prefix
    parted = {"PartitionedPrefix": {"PartitionDateSource": "Never"}}
    assert code(TargetObjectKeyFormat=parted) == "MalformedXML"
    grants = [{"Grantee": {"Type": "CanonicalUser", "ID": "configured"}, "Permission": "READ"}]
    assert code(TargetGrants=grants) == "InvalidArgument"   # its owner owns all: lists count for nothing
    s3.put_bucket_request_payment(Bucket=target, RequestPaymentConfiguration={"Payer": "Requester"})
    assert code() == unfit
    s3.put_bucket_request_payment(Bucket=target, RequestPaymentConfiguration={"Payer": "BucketOwner"})
    _turn_on(s3, bucket, target)
    other = client_of(running, "CONFIGURED1", "configured-secret")
    assert refused(other.get_bucket_logging, Bucket=bucket) == "AccessDenied"
    assert refused(other.put_bucket_logging, Bucket=bucket, BucketLoggingStatus={}) == "AccessDenied"
    theirs = f"{bucket}-theirs"
    other.create_bucket(Bucket=theirs)
    target = theirs
    assert code() == unfit                      # somebody else's
