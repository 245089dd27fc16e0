"""Conditions of bucket policies over S3: each key that a policy may look at, as the request fills it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.integration.s3.conftest import client_of
from tests.integration.s3.test_buckets import anonymous
from tests.kit.cluster import Cluster

Refused = Callable[..., str]
SetPolicy = Callable[..., None]
_NUMBERS = itertools.count(1)
HERE, ELSEWHERE = "127.0.0.0/8", "203.0.113.0/24"


def day(offset: int) -> str:
    return (datetime.now(UTC) + timedelta(days=offset)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def allow(s3: Any, bucket: str) -> SetPolicy:
    """allow(actions, condition): a policy of one Allow for everybody."""

    def run(actions: str | list[str], condition: dict[str, Any], effect: str = "Allow") -> None:
        statement = {"Effect": effect, "Principal": "*", "Action": actions, "Condition": condition,
                     "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]}  # fmt: skip
        s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))

    return run


@pytest.fixture
def other(running: Cluster) -> Any:
    """Somebody with a key and no rights but those that policies give."""
    return client_of(running, "CONFIGURED1", "configured-secret")


@pytest.mark.parametrize(
    ("holds", "fails"),
    [
        ({"IpAddress": {"aws:SourceIp": HERE}}, {"IpAddress": {"aws:SourceIp": [ELSEWHERE, "2001:db8::/32"]}}),
        ({"NotIpAddress": {"aws:SourceIp": ELSEWHERE}}, {"NotIpAddress": {"aws:SourceIp": [HERE, ELSEWHERE]}}),
        ({"Bool": {"aws:SecureTransport": "false"}}, {"Bool": {"aws:SecureTransport": "true"}}),
        ({"DateLessThan": {"aws:CurrentTime": day(1)}}, {"DateGreaterThan": {"aws:CurrentTime": day(1)}}),
        ({"DateGreaterThanEquals": {"aws:CurrentTime": day(-1)}}, {"DateLessThan": {"aws:EpochTime": day(-1)}}),
        ({"NumericGreaterThan": {"aws:EpochTime": "1600000000"}}, {"NumericLessThan": {"aws:EpochTime": "1600000000"}}),
        ({"StringLike": {"aws:Referer": "https://*.example.com/*"}}, {"StringLike": {"aws:Referer": "https://b.org/*"}}),
        ({"StringLikeIfExists": {"aws:Referer": "https://a.*"}}, {"StringLikeIfExists": {"aws:Referer": "ftp://*"}}),
        ({"StringNotLike": {"aws:UserAgent": "curl*"}}, {"StringEquals": {"aws:UserAgent": "curl"}}),
        ({"Null": {"s3:x-amz-acl": "true"}}, {"Null": {"s3:x-amz-acl": "false"}}),
        ({"StringEquals": {"aws:PrincipalType": "Anonymous"}}, {"StringLike": {"aws:username": "*"}}),
        ({"ForAllValues:StringEquals": {"s3:RequestObjectTagKeys": ["a"]}},
         {"ForAnyValue:StringNotEquals": {"s3:RequestObjectTagKeys": ["a"]}}),
    ],
    ids=lambda condition: next(iter(condition)),
)  # fmt: skip
def test_conditions_on_who_asks_and_when(
    s3: Any, bucket: str, running: Cluster, allow: SetPolicy, holds: dict[str, Any], fails: dict[str, Any]
) -> None:
    """An Allow lets a stranger in where its condition holds, and nowhere else."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"data")
    asked = {"Referer": "https://a.example.com/page", "User-Agent": "a test"}
    for condition, status in ((holds, 200), (fails, 403)):
        allow("s3:GetObject", condition)
        assert anonymous(running, "GET", f"/{bucket}/k", **asked)[0] == status, condition


def test_a_home_for_each_by_variables(s3: Any, bucket: str, other: Any, refused: Refused, running: Cluster) -> None:
    """One policy for all users: keys and lists below their own name; the older version takes the text as it is, and
    strangers have no name."""
    for key in ("home/configured/x", "home/ann/x", "home/${aws:username}/x", "star/*"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"")

    def put(version: str) -> None:
        arn = f"arn:aws:s3:::{bucket}"
        s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": version, "Statement": [
            {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject",
             "Resource": [arn + "/home/${aws:username}/*", arn + "/star/${*}"]},
            {"Effect": "Allow", "Principal": "*", "Action": "s3:ListBucket", "Resource": arn,
             "Condition": {"StringLike": {"s3:prefix": "home/${aws:username}/*"}}},
        ]}))  # fmt: skip

    put("2012-10-17")
    for key in ("home/configured/x", "star/*"):
        other.get_object(Bucket=bucket, Key=key)
    for key in ("home/ann/x", "home/${aws:username}/x", "star/x"):
        assert refused(other.get_object, Bucket=bucket, Key=key) == "AccessDenied", key
    assert other.list_objects_v2(Bucket=bucket, Prefix="home/configured/")["KeyCount"] == 1
    assert refused(other.list_objects_v2, Bucket=bucket, Prefix="home/ann/") == "AccessDenied"
    assert anonymous(running, "GET", f"/{bucket}/home/configured/x")[0] == 403
    put("2008-10-17")
    assert refused(other.get_object, Bucket=bucket, Key="home/configured/x") == "AccessDenied"
    other.get_object(Bucket=bucket, Key="home/${aws:username}/x")
    broken = {"Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/${{aws:x",
    }]}  # fmt: skip
    assert refused(s3.put_bucket_policy, Bucket=bucket, Policy=json.dumps(broken)) == "MalformedPolicy"


def test_conditions_on_lists(s3: Any, bucket: str, allow: SetPolicy, other: Any, refused: Refused) -> None:
    """A home for each: only what lies below a prefix is listed, in pages of a size."""
    s3.put_object(Bucket=bucket, Key="home/ann/x", Body=b"")
    allow("s3:ListBucket", {"StringLike": {"s3:prefix": ["home/ann/*", "home/ann"]},
                            "NumericLessThanEquals": {"s3:max-keys": "10"}})  # fmt: skip
    page = other.list_objects_v2(Bucket=bucket, Prefix="home/ann/", MaxKeys=10)
    assert [entry["Key"] for entry in page["Contents"]] == ["home/ann/x"]
    for arguments in (
        {}, {"MaxKeys": 5}, {"Prefix": "home/", "MaxKeys": 5}, {"Prefix": "home/ann/", "MaxKeys": 11},
        {"Prefix": "home/ann/"},
    ):  # fmt: skip
        assert refused(other.list_objects_v2, Bucket=bucket, **arguments) == "AccessDenied", arguments
    allow("s3:ListBucket", {"StringEquals": {"s3:delimiter": "/"}})
    other.list_objects(Bucket=bucket, Delimiter="/")
    assert refused(other.list_objects, Bucket=bucket) == "AccessDenied"


KEY = hashlib.sha256(b"a customer's").digest()
CUSTOMER = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": KEY}


@pytest.mark.parametrize(
    ("condition", "taken", "refused_ones"),
    [
        ({"StringNotEquals": {"s3:x-amz-server-side-encryption": "AES256"}},
         {"ServerSideEncryption": "AES256"}, [{}, {"ServerSideEncryption": "aws:kms"}]),
        ({"Null": {"s3:x-amz-server-side-encryption": "true"}}, {"ServerSideEncryption": "aws:kms"}, [{}, CUSTOMER]),
        ({"Null": {"s3:x-amz-server-side-encryption-customer-algorithm": "true"}},
         CUSTOMER, [{}, {"ServerSideEncryption": "AES256"}]),
        ({"StringNotLike": {"s3:x-amz-server-side-encryption-aws-kms-key-id": "up"}},
         {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "up"}, [{}, {"ServerSideEncryption": "aws:kms"}]),
        ({"StringNotEquals": {"s3:x-amz-storage-class": ["STANDARD_IA", "GLACIER_IR"]}},
         {"StorageClass": "GLACIER_IR"}, [{}, {"StorageClass": "ONEZONE_IA"}]),
        ({"StringNotEquals": {"s3:RequestObjectTag/project": ["blue", "red"]}},
         {"Tagging": "project=red"}, [{}, {"Tagging": "project=green"}, {"Tagging": "colour=red"}]),
        ({"ForAnyValue:StringNotEquals": {"s3:RequestObjectTagKeys": ["a", "b"]}},
         {"Tagging": "a=1&b=2"}, [{"Tagging": "a=1&c=2"}]),
        ({"StringNotEqualsIfExists": {"s3:x-amz-acl": "bucket-owner-full-control"}},
         {"ACL": "bucket-owner-full-control"}, [{"ACL": "private"}]),
        ({"Null": {"s3:if-none-match": "true"}}, {"IfNoneMatch": "*"}, [{}]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)  # fmt: skip
def test_conditions_on_what_a_put_asks_for(
    s3: Any, bucket: str, allow: SetPolicy, refused: Refused, condition: dict[str, Any], taken: dict[str, Any],
    refused_ones: list[dict[str, Any]],
) -> None:  # fmt: skip
    """A Deny holds for the owner too: encryption, classes, tags as the bucket's rules want them, else nothing."""
    allow("s3:PutObject", condition, "Deny")
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", **taken)
    for arguments in refused_ones:
        assert refused(s3.put_object, Bucket=bucket, Key="no", Body=b"x", **arguments) == "AccessDenied", arguments
        if "IfNoneMatch" not in taken:
            assert refused(s3.create_multipart_upload, Bucket=bucket, Key="no", **arguments) == "AccessDenied"
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["k"]


def test_customers_keys_in_conditions_of_copies(
    s3: Any, bucket: str, allow: SetPolicy, refused: Refused
) -> None:
    """The key of the source counts for reading it, that of what is made for writing it, in copies and in parts."""
    named = "s3:x-amz-server-side-encryption-customer-algorithm"
    s3.put_object(Bucket=bucket, Key="clear", Body=b"data")
    s3.put_object(Bucket=bucket, Key="sealed", Body=b"data", **CUSTOMER)
    of_source = {"CopySourceSSECustomerAlgorithm": "AES256", "CopySourceSSECustomerKey": KEY}
    clear, sealed = ({"Bucket": bucket, "Key": key} for key in ("clear", "sealed"))

    allow("s3:GetObject", {"Null": {named: "true"}}, "Deny")     # only what is read with a customer's key
    s3.copy_object(Bucket=bucket, Key="x", CopySource=sealed, **of_source)
    assert refused(s3.copy_object, Bucket=bucket, Key="x", CopySource=clear, **CUSTOMER) == "AccessDenied"
    assert refused(s3.get_object, Bucket=bucket, Key="clear") == "AccessDenied"
    assert s3.get_object(Bucket=bucket, Key="sealed", **CUSTOMER)["Body"].read() == b"data"

    allow("s3:PutObject", {"Null": {named: "true"}}, "Deny")     # only what is written with one
    s3.copy_object(Bucket=bucket, Key="y", CopySource=clear, **CUSTOMER)
    s3.copy_object(Bucket=bucket, Key="y", CopySource=sealed, **of_source, **CUSTOMER)
    assert refused(s3.copy_object, Bucket=bucket, Key="y", CopySource=sealed, **of_source) == "AccessDenied"
    part = {"Bucket": bucket, "Key": "m", "PartNumber": 1, "CopySource": clear}
    assert refused(s3.create_multipart_upload, Bucket=bucket, Key="m") == "AccessDenied"
    part["UploadId"] = s3.create_multipart_upload(Bucket=bucket, Key="m", **CUSTOMER)["UploadId"]
    assert refused(s3.upload_part_copy, **part) in ("AccessDenied", "InvalidRequest")
    s3.upload_part_copy(**part, **CUSTOMER)
    allow("s3:PutObject", {"StringEquals": {"s3:x-amz-copy-source": f"{bucket}/clear"}}, "Deny")
    assert refused(s3.copy_object, Bucket=bucket, Key="z", CopySource=clear) == "AccessDenied"
    s3.copy_object(Bucket=bucket, Key="z", CopySource=sealed, **of_source)


def test_grants_in_conditions(s3: Any, bucket: str, allow: SetPolicy, other: Any, refused: Refused) -> None:
    """Who writes into somebody's bucket must give its owner full control; the header that says so is judged."""
    rules = {"Rules": [{"ObjectOwnership": "ObjectWriter"}]}
    s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=rules)
    owner = s3.list_buckets()["Owner"]["ID"]
    allow("s3:PutObject", {"StringEquals": {"s3:x-amz-grant-full-control": f"id={owner}"}})
    other.put_object(Bucket=bucket, Key="given", Body=b"x", GrantFullControl=f"id={owner}")
    assert refused(other.put_object, Bucket=bucket, Key="kept", Body=b"x") == "AccessDenied"
    allow("s3:PutObject", {"StringEquals": {"s3:x-amz-acl": "public-read"}})
    other.put_object(Bucket=bucket, Key="public", Body=b"x", ACL="public-read")
    assert refused(other.put_object, Bucket=bucket, Key="kept", Body=b"x", ACL="private") == "AccessDenied"


def test_conditions_on_tags_of_objects(s3: Any, bucket: str, allow: SetPolicy, other: Any, refused: Refused) -> None:
    """What may be read hangs on how it is tagged now, by version too, and for copies as well."""
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    old = s3.put_object(Bucket=bucket, Key="k", Body=b"x", Tagging="security=secret&other=1")["VersionId"]
    new = s3.put_object(Bucket=bucket, Key="k", Body=b"y", Tagging="Security=public")["VersionId"]
    s3.put_object(Bucket=bucket, Key="bare", Body=b"z")
    actions = ["s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectTagging", "s3:PutObjectTagging", "s3:PutObject"]
    allow(actions[:4], {"StringEquals": {"s3:ExistingObjectTag/security": "public"}})
    assert other.get_object(Bucket=bucket, Key="k")["Body"].read() == b"y"
    assert other.head_object(Bucket=bucket, Key="k", VersionId=new)["ContentLength"] == 1
    assert refused(other.get_object, Bucket=bucket, Key="k", VersionId=old) == "AccessDenied"
    assert refused(other.get_object, Bucket=bucket, Key="bare") == "AccessDenied"
    assert refused(other.get_object, Bucket=bucket, Key="missing") == "AccessDenied"
    assert other.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [{"Key": "Security", "Value": "public"}]
    closed = {"TagSet": [{"Key": "security", "Value": "secret"}]}
    other.put_object_tagging(Bucket=bucket, Key="k", Tagging=closed)
    assert refused(other.put_object_tagging, Bucket=bucket, Key="k", Tagging=closed) == "AccessDenied"
    assert refused(other.get_object, Bucket=bucket, Key="k") == "AccessDenied"
    assert refused(s3.get_object, Bucket=bucket, Key="k", IfMatch="no") == "PreconditionFailed"


def test_conditions_on_tags_that_are_put(s3: Any, bucket: str, allow: SetPolicy, other: Any, refused: Refused) -> None:
    """PutObjectTagging brings its tags in the body: they are judged all the same."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    allow("s3:PutObjectTagging", {"ForAllValues:StringLike": {"s3:RequestObjectTagKeys": ["a*"]},
                                  "StringEquals": {"s3:RequestObjectTag/a": ["1", "2"]}})  # fmt: skip

    def tags(**pairs: str) -> dict[str, Any]:
        return {"Bucket": bucket, "Key": "k", "Tagging": {"TagSet": [{"Key": k, "Value": v} for k, v in pairs.items()]}}

    other.put_object_tagging(**tags(a="1", ab="3"))
    for wrong in ({"a": "3"}, {"b": "1"}, {"a": "1", "b": "1"}, {}):
        assert refused(other.put_object_tagging, **tags(**wrong)) == "AccessDenied", wrong
    assert len(s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"]) == 2


def test_forms_are_judged_by_their_fields(s3: Any, bucket: str, allow: SetPolicy, running: Cluster) -> None:
    """A Deny on a header must not be passed by sending the same as a field of a form."""
    client = client_of(running, signature_version="s3v4")
    allow("s3:PutObject", {"StringEquals": {"s3:x-amz-storage-class": "GLACIER"}}, "Deny")
    with httpx.Client(base_url=running.gateway, timeout=180) as http:
        for storage, status in (("GLACIER", 403), ("STANDARD_IA", 204)):
            named = {"x-amz-storage-class": storage}
            fields = client.generate_presigned_post(bucket, "k", Fields=dict(named), Conditions=[named])["fields"]
            assert http.post(f"/{bucket}", data=fields, files={"file": b"x"}).status_code == status
        tagging = {"tagging": "<Tagging><TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet></Tagging>"}
        fields = client.generate_presigned_post(bucket, "t", Fields=dict(tagging), Conditions=[tagging])["fields"]
        allow("s3:PutObject", {"StringEquals": {"s3:RequestObjectTag/a": "1"}}, "Deny")
        assert http.post(f"/{bucket}", data=fields, files={"file": b"x"}).status_code == 403
        allow("s3:PutObject", {"StringNotEquals": {"s3:authType": "POST"}}, "Deny")
        assert http.post(f"/{bucket}", data=fields, files={"file": b"x"}).status_code == 204


def test_ways_of_signing_in_conditions(s3: Any, bucket: str, allow: SetPolicy, running: Cluster) -> None:
    """Presigned URLs can be shut off for a bucket."""
    client = client_of(running, signature_version="s3v4")
    client.put_object(Bucket=bucket, Key="k", Body=b"data")
    url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
    target = url[len(running.gateway):]
    assert anonymous(running, "GET", target)[0] == 200
    allow("s3:*", {"StringNotEquals": {"s3:authType": "REST-HEADER"}}, "Deny")
    assert anonymous(running, "GET", target)[0] == 403
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"data"


def test_object_lock_in_conditions(s3: Any, allow: SetPolicy, refused: Refused) -> None:
    """Retention only as long, and of the mode, that the bucket's policy allows."""
    name = f"policy-vault-{next(_NUMBERS)}"
    s3.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{name}/*"}
    conditions = ({"NumericGreaterThan": {"s3:object-lock-remaining-retention-days": "10"}},
                  {"StringEquals": {"s3:object-lock-mode": "COMPLIANCE"}},
                  {"StringEquals": {"s3:object-lock-legal-hold": "ON"}})  # fmt: skip
    policy = {"Statement": [{**statement, "Condition": condition} for condition in conditions]}
    s3.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
    until = {days: datetime.now(UTC) + timedelta(days=days) for days in (9, 11)}
    put = {"Bucket": name, "Key": "k", "Body": b"x"}
    s3.put_object(**put, ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=until[9])
    for mode, days in (("GOVERNANCE", 11), ("COMPLIANCE", 9)):
        assert refused(s3.put_object, **put, ObjectLockMode=mode, ObjectLockRetainUntilDate=until[days]) == (
            "AccessDenied"
        )
    assert refused(s3.put_object, **put, ObjectLockLegalHoldStatus="ON") == "AccessDenied"


def test_an_owner_cannot_lock_himself_out_unawares(s3: Any, bucket: str, refused: Refused) -> None:
    """A Deny of everything leaves the owner the policy itself, but where he said that it shall not."""
    policy = json.dumps({"Statement": [{
        "Effect": "Deny", "Principal": "*", "Action": "s3:*",
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }]})  # fmt: skip
    s3.put_bucket_policy(Bucket=bucket, Policy=policy)
    assert refused(s3.list_objects_v2, Bucket=bucket) == "AccessDenied"
    assert json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"]) == json.loads(policy)
    s3.delete_bucket_policy(Bucket=bucket)
    s3.put_bucket_policy(Bucket=bucket, Policy=policy, ConfirmRemoveSelfBucketAccess=True)
    assert refused(s3.get_bucket_policy, Bucket=bucket) == "AccessDenied"
    assert refused(s3.delete_bucket_policy, Bucket=bucket) == "AccessDenied"
    assert refused(s3.put_bucket_policy, Bucket=bucket, Policy=policy) == "AccessDenied"


def test_what_counts_as_public(s3: Any, bucket: str, allow: SetPolicy, refused: Refused) -> None:
    """A condition that anybody can meet narrows nothing; a network or a name does. Lists count where they are on."""
    def is_public() -> bool:
        return bool(s3.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"]["IsPublic"])

    assert not is_public()
    for condition, public in (
        ({"IpAddress": {"aws:SourceIp": ELSEWHERE}}, False), ({"IpAddress": {"aws:SourceIp": "0.0.0.0/1"}}, True),
        ({"StringLike": {"aws:UserAgent": "*"}}, True), ({"StringEquals": {"aws:username": "ann"}}, False),
        ({"NotIpAddress": {"aws:SourceIp": ELSEWHERE}}, True), ({"StringLike": {"aws:username": "*"}}, True),
    ):  # fmt: skip
        allow("s3:GetObject", condition)
        assert is_public() is public, condition
    s3.delete_bucket_policy(Bucket=bucket)
    s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls={"Rules": [{"ObjectOwnership": "ObjectWriter"}]})
    s3.put_bucket_acl(Bucket=bucket, ACL="authenticated-read")
    assert is_public()
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration={"BlockPublicPolicy": True})
    statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    for condition, code in (({"StringLike": {"aws:UserAgent": "*"}}, "AccessDenied"), (None, "AccessDenied")):
        text = json.dumps({"Statement": [{**statement, **({"Condition": condition} if condition else {})}]})
        assert refused(s3.put_bucket_policy, Bucket=bucket, Policy=text) == code
    allow("s3:GetObject", {"IpAddress": {"aws:SourceIp": HERE}})


def test_public_access_block_switch_by_switch(
    s3: Any, bucket: str, running: Cluster, allow: SetPolicy, refused: Refused
) -> None:
    """Each of the four does its own part: what is set before stays, works or not, and what comes after is refused."""
    s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls={"Rules": [{"ObjectOwnership": "ObjectWriter"}]})
    s3.put_object(Bucket=bucket, Key="acl", Body=b"", ACL="public-read")
    s3.put_object(Bucket=bucket, Key="policy", Body=b"")
    statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject",
                 "Resource": f"arn:aws:s3:::{bucket}/policy"}  # fmt: skip
    policy = json.dumps({"Statement": [statement]})
    s3.put_bucket_policy(Bucket=bucket, Policy=policy)

    def seen() -> tuple[int, int]:
        return anonymous(running, "GET", f"/{bucket}/acl")[0], anonymous(running, "GET", f"/{bucket}/policy")[0]

    def block(*switches: str) -> None:
        s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(switches, True))

    assert seen() == (200, 200)
    block("BlockPublicAcls")
    assert seen() == (200, 200)
    assert refused(s3.put_object, Bucket=bucket, Key="new", Body=b"", ACL="public-read") == "AccessDenied"
    assert refused(s3.put_object_acl, Bucket=bucket, Key="acl", ACL="public-read-write") == "AccessDenied"
    assert refused(s3.put_bucket_acl, Bucket=bucket, ACL="authenticated-read") == "AccessDenied"
    s3.put_object(Bucket=bucket, Key="new", Body=b"", ACL="private")
    block("IgnorePublicAcls")
    assert seen() == (403, 200)
    block("BlockPublicPolicy")
    assert seen() == (200, 200)
    assert refused(s3.put_bucket_policy, Bucket=bucket, Policy=policy) == "AccessDenied"
    block("RestrictPublicBuckets")
    assert seen() == (200, 403)
    s3.delete_public_access_block(Bucket=bucket)
    assert seen() == (200, 200)


def test_strangers_and_what_they_may_not_even_with_rights(s3: Any, bucket: str, running: Cluster) -> None:
    """A policy that lets everybody do everything still gives no stranger another's listing of buckets, nor headers
    of his own in the answer."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"data")
    statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:*",
                 "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]}  # fmt: skip
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Statement": [statement]}))
    assert anonymous(running, "GET", "/")[0] == 403
    assert anonymous(running, "PUT", f"/{bucket}-strangers")[0] == 403
    assert anonymous(running, "GET", f"/{bucket}/k?response-content-type=text/html")[0] == 400
    assert anonymous(running, "GET", f"/{bucket}/k")[0] == 200
    assert anonymous(running, "GET", f"/{bucket}/none")[0] == 404
    for method, query in (("GET", "policy"), ("PUT", "policy"), ("DELETE", "policy"), ("PUT", "logging")):
        assert anonymous(running, method, f"/{bucket}?{query}", **{"Content-Length": "0"})[0] == 403, query
    assert json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"] == [statement]
    md5 = base64.b64encode(hashlib.md5(b"").digest()).decode()
    assert anonymous(running, "PUT", f"/{bucket}/new", **{"Content-MD5": md5, "Content-Length": "0"})[0] == 200
    assert anonymous(running, "DELETE", f"/{bucket}/new")[0] == 204


def test_strangers_in_a_bucket_that_all_may_write(s3: Any, bucket: str, running: Cluster, refused: Refused) -> None:
    """public-read-write: strangers list, write and remove; what is missing is 404 where they may list, and 403 where
    not; uploads in parts need a name, and what they wrote they cannot read without a grant."""
    rules = {"Rules": [{"ObjectOwnership": "ObjectWriter"}]}
    s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=rules)
    s3.put_object(Bucket=bucket, Key="open", Body=b"x", ACL="public-read")
    assert anonymous(running, "GET", f"/{bucket}/missing")[0] == 403
    s3.put_bucket_acl(Bucket=bucket, ACL="public-read-write")
    assert anonymous(running, "GET", f"/{bucket}/missing")[0] == 404
    assert anonymous(running, "GET", f"/{bucket}/open")[:2] == (200, b"x")
    assert anonymous(running, "GET", f"/{bucket}/open?acl")[0] == 403
    assert anonymous(running, "PUT", f"/{bucket}/theirs", **{"Content-Length": "0"})[0] == 200
    assert b"<Key>theirs</Key>" in anonymous(running, "GET", f"/{bucket}")[1]
    assert anonymous(running, "GET", f"/{bucket}/theirs")[0] == 403
    assert anonymous(running, "POST", f"/{bucket}/parts?uploads")[0] == 403
    assert anonymous(running, "DELETE", f"/{bucket}/theirs")[0] == 204
    assert refused(s3.head_object, Bucket=bucket, Key="theirs") == "404"


def test_resources_by_wildcards(s3: Any, bucket: str, other: Any, refused: Refused) -> None:
    """One policy put on many buckets names them by a pattern; one that cannot mean this bucket is a mistake."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"data")
    for resource in ("arn:aws:s3:::*/*", f"arn:aws:s3:::{bucket[:2]}*/k", "*"):
        statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": resource}
        s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Statement": [statement]}))
        assert other.get_object(Bucket=bucket, Key="k")["Body"].read() == b"data"
    for resource in ("arn:aws:s3:::another/*", f"arn:aws:s3:::{bucket}x*", f"arn:aws:s3:::{bucket}?/*"):
        statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": resource}
        policy = json.dumps({"Statement": [statement]})
        assert refused(s3.put_bucket_policy, Bucket=bucket, Policy=policy) == "MalformedPolicy", resource


def test_who_may_list_a_prefix_hears_what_is_missing_below_it(
    s3: Any, bucket: str, allow: SetPolicy, other: Any, refused: Refused
) -> None:
    """404 where a list would say as much, 403 elsewhere, and for what is there; reads have no prefix of their own."""
    s3.put_object(Bucket=bucket, Key="public/there", Body=b"x")
    allow("s3:ListBucket", {"StringLike": {"s3:prefix": "public/*"}})
    assert refused(other.head_object, Bucket=bucket, Key="public/gone") == "404"
    assert refused(other.get_object, Bucket=bucket, Key="public/gone") == "NoSuchKey"
    assert refused(other.head_object, Bucket=bucket, Key="private/gone") == "403"
    assert refused(other.get_object, Bucket=bucket, Key="public/there") == "AccessDenied"


def test_policies_that_could_do_nothing_are_refused(s3: Any, bucket: str, refused: Refused) -> None:
    """A slip in an action, or an action that is not about what the statement names."""
    for action, resource in (("s3:PutObjekt", "/*"), ("s3:PutObject", ""), ("s3:ListBucket", "/*")):
        policy = {"Statement": [{"Effect": "Deny", "Principal": "*", "Action": action,
                                 "Resource": f"arn:aws:s3:::{bucket}{resource}"}]}  # fmt: skip
        assert refused(s3.put_bucket_policy, Bucket=bucket, Policy=json.dumps(policy)) == "MalformedPolicy", action
