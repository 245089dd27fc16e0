"""Buckets over S3: life, lists, versions, rights."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from tests.integration.s3.conftest import client_of
from tests.kit.cluster import Cluster

Refused = Callable[..., str]


def anonymous(running: Cluster, method: str, target: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(urlsplit(running.gateway).netloc, timeout=180)
    connection.request(method, target, headers={n.replace("_", "-"): v for n, v in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, {name.lower(): value for name, value in answer.getheaders()}


def test_buckets_are_made_listed_and_removed(s3: Any, bucket: str, refused: Refused) -> None:
    """The life of a bucket."""
    assert bucket in [entry["Name"] for entry in s3.list_buckets()["Buckets"]]
    assert ".multipart" not in [entry["Name"] for entry in s3.list_buckets()["Buckets"]]
    s3.head_bucket(Bucket=bucket)
    s3.create_bucket(Bucket=bucket)
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] is None
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    assert refused(s3.delete_bucket, Bucket=bucket) == "BucketNotEmpty"
    s3.delete_object(Bucket=bucket, Key="k")
    s3.delete_bucket(Bucket=bucket)
    assert refused(s3.head_bucket, Bucket=bucket) == "404"
    assert refused(s3.list_objects_v2, Bucket=bucket) == "NoSuchBucket"
    assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"") == "NoSuchBucket"
    for name in ("Not_a_name", "foo..bar", "foo.-bar", "foo-.bar", "foo-", "192.168.5.123", "xn--foo", "foo-s3alias"):
        assert refused(s3.create_bucket, Bucket=name) == "InvalidBucketName", name


def test_a_bucket_keeps_the_location_that_was_named(s3: Any, bucket: str, refused: Refused) -> None:
    """Tools compare what they asked for with what is there; a name that cannot be is refused."""
    def located(name: str, location: str) -> Any:
        return s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": location})

    located(f"{bucket}-west", "eu-west-1")
    assert s3.get_bucket_location(Bucket=f"{bucket}-west")["LocationConstraint"] == "eu-west-1"
    assert s3.head_bucket(Bucket=f"{bucket}-west")["BucketRegion"] == "eu-west-1"
    located(f"{bucket}-east", "us-east-1")
    assert s3.get_bucket_location(Bucket=f"{bucket}-east")["LocationConstraint"] is None
    assert s3.head_bucket(Bucket=bucket)["BucketRegion"] == "us-east-1"
    for again in ("us-east-1", "eu-west-1"):
        assert refused(located, name=f"{bucket}-west", location=again) == "BucketAlreadyOwnedByYou"
    assert refused(located, name=f"{bucket}-no", location="no such place") == "InvalidLocationConstraint"
    assert refused(s3.head_bucket, Bucket=f"{bucket}-no") == "404"


def test_every_answer_has_the_requests_id(s3: Any, bucket: str, running: Cluster) -> None:
    """What support asks for first: by the header that SDKs read, the same as in an error's document."""
    assert s3.put_object(Bucket=bucket, Key="k", Body=b"x")["ResponseMetadata"]["RequestId"]
    for answer in (s3.get_object(Bucket=bucket, Key="k"), s3.list_objects_v2(Bucket=bucket),
                   s3.head_object(Bucket=bucket, Key="k"), s3.delete_object(Bucket=bucket, Key="k")):  # fmt: skip
        assert answer["ResponseMetadata"]["RequestId"]
    for method, target in (("GET", f"/{bucket}/k"), ("GET", "/no-such-bucket"), ("GET", "/%zz"), ("POST", "/")):
        status, body, headers = anonymous(running, method, target)
        assert status >= 400
        if body.startswith(b"<?xml"):
            assert headers["x-amz-request-id"] == body.partition(b"<RequestId>")[2].partition(b"<")[0].decode()


def test_listings_page_through_keys_and_prefixes(s3: Any, bucket: str, refused: Refused) -> None:
    """Every key once, in order, whatever the page; common prefixes count as keys."""
    keys = sorted(["a/1", "a/2", "b", "c/d/1", "c/e", "z z", "é"])
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    for version in ("list_objects", "list_objects_v2"):
        found = [
            entry["Key"] for page in s3.get_paginator(version).paginate(Bucket=bucket, PaginationConfig={"PageSize": 2})
            for entry in page.get("Contents", [])
        ]  # fmt: skip
        assert found == keys
        pages = list(
            s3.get_paginator(version).paginate(Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 1})
        )
        assert [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])] == ["a/", "c/"]
        assert [entry["Key"] for page in pages for entry in page.get("Contents", [])] == ["b", "z z", "é"]
    page = s3.list_objects_v2(Bucket=bucket, Prefix="c/", Delimiter="/", StartAfter="c/d/", FetchOwner=True)
    assert [entry["Key"] for entry in page["Contents"]] == ["c/e"]
    assert "Owner" in page["Contents"][0]
    assert s3.list_objects_v2(Bucket=bucket, MaxKeys=0)["KeyCount"] == 0
    assert refused(s3.list_objects_v2, Bucket=bucket, EncodingType="no") == "InvalidArgument"


def test_versions_markers_and_null_versions(s3: Any, bucket: str, refused: Refused) -> None:
    """What was there before versioning stays readable as "null"; deletes hide, they do not destroy."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"zero")
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    by_device = {"Status": "Enabled", "MFADelete": "Enabled"}
    for more in ({}, {"MFA": "arn:aws:iam::1:mfa/x 123456"}):
        assert refused(s3.put_bucket_versioning, Bucket=bucket, VersioningConfiguration=by_device, **more) == (
            "AccessDenied"
        )
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled", "MFADelete": "Disabled"})
    assert "MFADelete" not in s3.get_bucket_versioning(Bucket=bucket)
    one = s3.put_object(Bucket=bucket, Key="k", Body=b"one")["VersionId"]
    marker = s3.delete_object(Bucket=bucket, Key="k")
    assert marker["DeleteMarker"] is True
    assert refused(s3.get_object, Bucket=bucket, Key="k") == "NoSuchKey"
    by_version = {"Bucket": bucket, "Key": "k", "VersionId": marker["VersionId"]}
    assert refused(s3.get_object, **by_version) == "MethodNotAllowed"
    assert s3.get_object(Bucket=bucket, Key="k", VersionId="null")["Body"].read() == b"zero"
    assert s3.get_object(Bucket=bucket, Key="k", VersionId=one)["Body"].read() == b"one"
    page = s3.list_object_versions(Bucket=bucket)
    assert [entry["VersionId"] for entry in page["Versions"]] == [one, "null"]
    assert [entry["IsLatest"] for entry in page["DeleteMarkers"]] == [True]
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket, PaginationConfig={"PageSize": 1})
    assert sum(len(p.get("Versions", [])) + len(p.get("DeleteMarkers", [])) for p in pages) == 3
    s3.delete_object(**by_version)
    assert s3.get_object(Bucket=bucket, Key="k")["VersionId"] == one
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    assert "VersionId" not in s3.put_object(Bucket=bucket, Key="k", Body=b"two")
    assert s3.head_object(Bucket=bucket, Key="k")["VersionId"] == "null"
    assert len(s3.list_object_versions(Bucket=bucket)["Versions"]) == 2


def test_a_policy_lets_strangers_read(s3: Any, running: Cluster, bucket: str, refused: Refused) -> None:
    """Anonymous access only through a policy, and exactly as far as it says."""
    s3.put_object(Bucket=bucket, Key="pub/k", Body=b"data")
    assert anonymous(running, "GET", f"/{bucket}/pub/k")[0] == 403
    assert refused(s3.get_bucket_policy, Bucket=bucket) == "NoSuchBucketPolicy"
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/pub/*"},
            {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": f"arn:aws:s3:::{bucket}/*"},
        ],
    }
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    assert json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"]) == policy
    assert s3.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"]["IsPublic"] is True
    assert anonymous(running, "GET", f"/{bucket}/pub/k")[:2] == (200, b"data")
    assert anonymous(running, "PUT", f"/{bucket}/pub/k")[0] == 403
    assert anonymous(running, "GET", f"/{bucket}")[0] == 403
    assert refused(s3.delete_object, Bucket=bucket, Key="pub/k") == "AccessDenied"
    assert refused(s3.put_bucket_policy, Bucket=bucket, Policy="{}") == "MalformedPolicy"
    s3.delete_bucket_policy(Bucket=bucket)
    assert anonymous(running, "GET", f"/{bucket}/pub/k")[0] == 403
    s3.delete_object(Bucket=bucket, Key="pub/k")


def test_public_access_can_be_blocked(s3: Any, running: Cluster, bucket: str, refused: Refused) -> None:
    """A switch above all policies."""
    assert refused(s3.get_public_access_block, Bucket=bucket) == "NoSuchPublicAccessBlockConfiguration"
    block = {"BlockPublicAcls": True, "IgnorePublicAcls": True, "BlockPublicPolicy": True,
             "RestrictPublicBuckets": True}  # fmt: skip
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=block)
    assert s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"] == block
    public = {"Version": "2012-10-17", "Statement": {
        "Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{bucket}/*"}}  # fmt: skip
    assert refused(s3.put_bucket_policy, Bucket=bucket, Policy=json.dumps(public)) == "AccessDenied"
    s3.delete_public_access_block(Bucket=bucket)
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(public))


def test_canned_acls(s3: Any, running: Cluster, bucket: str, refused: Refused) -> None:
    """Off by default (BucketOwnerEnforced); where they are on, public-read lets read and no more."""
    public = {"Bucket": bucket, "Key": "k", "Body": b"", "ACL": "public-read"}
    assert refused(s3.put_object, **public) == "AccessControlListNotSupported"
    rules = {"Rules": [{"ObjectOwnership": "ObjectWriter"}]}
    s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=rules)
    assert s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"] == rules
    s3.put_object(Bucket=bucket, Key="k", Body=b"data", ACL="public-read")
    s3.put_object(Bucket=bucket, Key="private", Body=b"data")
    assert anonymous(running, "GET", f"/{bucket}/k")[:2] == (200, b"data")
    assert anonymous(running, "GET", f"/{bucket}/private")[0] == 403
    assert len(s3.get_object_acl(Bucket=bucket, Key="k")["Grants"]) == 2
    s3.put_object_acl(Bucket=bucket, Key="k", ACL="private")
    assert anonymous(running, "GET", f"/{bucket}/k")[0] == 403
    s3.put_bucket_acl(Bucket=bucket, ACL="public-read")
    assert len(s3.get_bucket_acl(Bucket=bucket)["Grants"]) == 2
    assert anonymous(running, "GET", f"/{bucket}")[0] == 200
    s3.create_bucket(Bucket=bucket)     # one's own again: as in us-east-1, with the list that this request names
    assert len(s3.get_bucket_acl(Bucket=bucket)["Grants"]) == 1
    s3.delete_bucket_ownership_controls(Bucket=bucket)


def test_cors_rules_and_preflight(s3: Any, running: Cluster, bucket: str, refused: Refused) -> None:
    """A browser's page of another origin."""
    assert refused(s3.get_bucket_cors, Bucket=bucket) == "NoSuchCORSConfiguration"
    rule = {"AllowedMethods": ["GET", "PUT"], "AllowedOrigins": ["https://*.example.com"], "AllowedHeaders": ["x-*"],
            "ExposeHeaders": ["ETag"], "MaxAgeSeconds": 60}  # fmt: skip
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": [rule]})
    assert s3.get_bucket_cors(Bucket=bucket)["CORSRules"] == [rule]
    origin = {"Origin": "https://a.example.com", "Access_Control_Request_Method": "PUT"}
    status, _, headers = anonymous(running, "OPTIONS", f"/{bucket}/k", **origin, Access_Control_Request_Headers="X-A")
    assert (status, headers["access-control-allow-origin"]) == (200, "https://a.example.com")
    assert anonymous(running, "OPTIONS", f"/{bucket}/k", **{**origin, "Origin": "https://b.org"})[0] == 403
    _, _, headers = anonymous(running, "GET", f"/{bucket}/k", Origin="https://a.example.com")
    assert headers["access-control-expose-headers"] == "ETag"
    s3.delete_bucket_cors(Bucket=bucket)
    assert anonymous(running, "OPTIONS", f"/{bucket}/k", **origin)[0] == 403


def test_cors_origins_methods_and_headers(s3: Any, running: Cluster, bucket: str) -> None:
    """Which rule speaks, as browsers and AWS have it: the first that fits origin, method and every header; a request
    that names a method is judged by that one. Errors carry the lines too, or a page could not tell why."""
    rules = [
        {"AllowedMethods": ["GET"], "AllowedOrigins": ["*suffix"]},
        {"AllowedMethods": ["GET"], "AllowedOrigins": ["start*end"]},
        {"AllowedMethods": ["PUT"], "AllowedOrigins": ["*.put"]},
        {"AllowedMethods": ["DELETE"], "AllowedOrigins": ["*"], "AllowedHeaders": ["x-amz-meta-*"], "MaxAgeSeconds": 5},
    ]
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": rules})

    def seen(method: str, origin: str, asked: str = "", headers: str = "") -> tuple[int, str | None, str | None]:
        more = {"Origin": origin, "Content-Length": "0"}
        more |= {"Access-Control-Request-Method": asked} if asked else {}
        more |= {"Access-Control-Request-Headers": headers} if headers else {}
        status, _, got = anonymous(running, method, f"/{bucket}/k", **more)
        return status, got.get("access-control-allow-origin"), got.get("access-control-allow-methods")

    assert seen("GET", "foo.suffix") == (403, "foo.suffix", "GET")
    assert seen("GET", "foo.bar") == (403, None, None)
    assert seen("GET", "foo.suffix.get") == (403, None, None)
    assert seen("GET", "startend") == (403, "startend", "GET")
    assert seen("GET", "start1end") == (403, "start1end", "GET")
    assert seen("GET", "0start12end") == (403, None, None)
    assert seen("PUT", "foo.suffix") == (403, None, None)
    assert seen("PUT", "foo.suffix", "GET") == (403, "foo.suffix", "GET")
    assert seen("PUT", "foo.put") == (403, "foo.put", "PUT")
    assert seen("PUT", "foo.put", "DELETE") == (403, "*", "DELETE")
    assert seen("OPTIONS", "foo.put", "PUT") == (200, "foo.put", "PUT")
    assert seen("OPTIONS", "foo.put") == (400, None, None)
    assert seen("OPTIONS", "foo.put", "GET")[0] == 403
    assert seen("OPTIONS", "foo.put", "PATCH")[0] == 400
    assert seen("OPTIONS", "any", "DELETE", "x-amz-meta-A, X-Amz-Meta-b") == (200, "*", "DELETE")
    assert seen("OPTIONS", "any", "DELETE", "x-amz-meta-a, x-other")[0] == 403
    forged = {"Origin": "foo.suffix", "Authorization": "AWS4-HMAC-SHA256 nonsense"}
    status, _, got = anonymous(running, "GET", f"/{bucket}/k", **forged)
    assert (status, got["access-control-allow-origin"]) == (400, "foo.suffix")


def test_what_is_never_set(s3: Any, bucket: str, refused: Refused) -> None:
    """Clients ask for these and must hear "not set", not an error of ours; setting them is refused aloud."""
    for call, code in (
        (s3.get_bucket_website, "NoSuchWebsiteConfiguration"),
        (s3.get_bucket_replication, "ReplicationConfigurationNotFoundError"),
    ):
        assert refused(call, Bucket=bucket) == code
    s3.get_bucket_notification_configuration(Bucket=bucket)
    s3.get_bucket_accelerate_configuration(Bucket=bucket)
    assert refused(
        s3.put_bucket_accelerate_configuration, Bucket=bucket, AccelerateConfiguration={"Status": "Enabled"}
    ) == "NotImplemented"  # fmt: skip


def test_requesters_say_that_they_would_pay(s3: Any, bucket: str, running: Cluster, refused: Refused) -> None:
    """As at AWS: the owner as ever, others only with the header, nobody without a name."""
    assert s3.get_bucket_request_payment(Bucket=bucket)["Payer"] == "BucketOwner"
    s3.put_object(Bucket=bucket, Key="k", Body=b"data")
    other = client_of(running, "CONFIGURED1", "configured-secret")
    policy = {"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject",
                             "Resource": f"arn:aws:s3:::{bucket}/*"}]}  # fmt: skip
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    assert other.get_object(Bucket=bucket, Key="k")["Body"].read() == b"data"
    s3.put_bucket_request_payment(Bucket=bucket, RequestPaymentConfiguration={"Payer": "Requester"})
    assert s3.get_bucket_request_payment(Bucket=bucket)["Payer"] == "Requester"
    assert anonymous(running, "GET", f"/{bucket}/k")[0] == 403
    assert refused(other.get_object, Bucket=bucket, Key="k") == "AccessDenied"
    assert other.get_object(Bucket=bucket, Key="k", RequestPayer="requester")["Body"].read() == b"data"
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"data"
    s3.put_bucket_request_payment(Bucket=bucket, RequestPaymentConfiguration={"Payer": "BucketOwner"})
    assert anonymous(running, "GET", f"/{bucket}/k")[0] == 200
