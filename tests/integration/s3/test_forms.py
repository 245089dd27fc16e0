"""POST forms: what a browser sends, what the policy allows, what it must refuse."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.integration.s3.conftest import client_of
from tests.kit.cluster import Cluster
from tierstore.auth.sigv4 import signing_key

_HASHES = {"x-amz-checksum-sha256": "sha256", "content-md5": "md5"}


@pytest.fixture
def s3(running: Cluster) -> Any:
    """Without saying so boto3 signs forms in the old way, which is refused."""
    return client_of(running, signature_version="s3v4")


@pytest.fixture
def http(running: Cluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.gateway, timeout=180) as client:
        yield client


def post(http: httpx.Client, bucket: str, fields: dict[str, str], body: bytes, name: str = "up.bin") -> httpx.Response:
    # the file last, after every field
    return http.post(f"/{bucket}", data=fields, files={"file": (name, body, "application/octet-stream")})


def code_of(answer: httpx.Response) -> str:
    return answer.text.partition("<Code>")[2].partition("</Code>")[0]


def b64(digest: Any) -> str:
    return base64.b64encode(digest.digest()).decode()


def signed(running: Cluster, policy: dict[str, Any]) -> dict[str, str]:
    """The fields of a form for `k`, its policy as it is, signed."""
    at = datetime.now(UTC)
    day = at.strftime("%Y%m%d")
    named = {"x-amz-algorithm": "AWS4-HMAC-SHA256", "x-amz-date": at.strftime("%Y%m%dT%H%M%SZ"),
             "x-amz-credential": f"{running.ready['access_key']}/{day}/us-east-1/s3/aws4_request"}  # fmt: skip
    if "conditions" in policy:
        policy = {**policy, "conditions": [*policy["conditions"], *({name: value} for name, value in named.items())]}
    text = base64.b64encode(json.dumps(policy).encode()).decode()
    made = hmac.digest(signing_key(running.ready["secret_key"], day, "us-east-1", "s3"), text.encode(), "sha256").hex()
    return {"key": "k", **named, "policy": text, "x-amz-signature": made}


def form(s3: Any, bucket: str, key: str, fields: dict[str, str], *conditions: Any) -> dict[str, str]:
    covered = [{name: value} for name, value in fields.items()]
    made: dict[str, str] = s3.generate_presigned_post(
        bucket, key, Fields=dict(fields), Conditions=[*covered, *conditions]
    )["fields"]
    return made


@pytest.mark.parametrize("size", [0, 5, 300_000, 10 << 20])
def test_forms_upload_files(s3: Any, bucket: str, http: httpx.Client, size: int) -> None:
    """Of any size, also with the boundary's own characters in it; metadata and tags come along."""
    body = os.urandom(size) + b"\r\n--not the boundary\r\n"
    fields = form(s3, bucket, "up/${filename}", {"Content-Type": "text/x", "x-amz-meta-colour": "blue"},
                  ["starts-with", "$key", "up/"])  # fmt: skip
    answer = post(http, bucket, fields, body, "name.bin")
    assert answer.status_code == 204, answer.text
    got = s3.get_object(Bucket=bucket, Key="up/name.bin")
    assert got["Body"].read() == body
    assert (got["ContentType"], got["Metadata"]) == ("text/x", {"colour": "blue"})
    assert got["ETag"] == answer.headers["etag"]


def test_forms_answer_as_they_are_asked(s3: Any, bucket: str, http: httpx.Client) -> None:
    """200, 201 with XML, a redirect; encryption and its default hold for forms too."""
    fields = form(s3, bucket, "a", {"success_action_status": "201"})
    answer = post(http, bucket, fields, b"x")
    assert (answer.status_code, "<PostResponse><Location>" in answer.text) == (201, True)
    assert "<Key>a</Key>" in answer.text
    fields = form(s3, bucket, "b", {"success_action_redirect": "http://example.com/done?a=1"})
    answer = post(http, bucket, fields, b"x")
    assert answer.status_code == 303
    assert answer.headers["location"].startswith(f"http://example.com/done?a=1&bucket={bucket}&key=b&etag=")
    body = os.urandom(200_000)
    fields = form(s3, bucket, "c", {"x-amz-server-side-encryption": "AES256"})
    assert post(http, bucket, fields, body).headers["x-amz-server-side-encryption"] == "AES256"
    assert s3.get_object(Bucket=bucket, Key="c")["Body"].read() == body


def test_what_the_policy_does_not_allow_is_refused(s3: Any, bucket: str, http: httpx.Client) -> None:
    """Wrong signature, other key, extra field, size out of range, no policy: nothing is stored."""
    good = form(s3, bucket, "k", {}, ["content-length-range", 2, 10])
    assert post(http, bucket, good, b"12345").status_code == 204
    s3.delete_object(Bucket=bucket, Key="k")
    for changes, body, code in (
        ({"x-amz-signature": "0" * 64}, b"123", "SignatureDoesNotMatch"), ({"key": "other"}, b"123", "AccessDenied"),
        ({"x-amz-meta-more": "1"}, b"123", "AccessDenied"), ({}, b"1", "EntityTooSmall"),
        ({}, b"12345678901", "EntityTooLarge"), ({}, os.urandom(1 << 20), "EntityTooLarge"),
        ({"policy": "bm8="}, b"123", "SignatureDoesNotMatch"), ({"key": ""}, b"123", "InvalidArgument"),
        ({"x-amz-credential": "nobody/20260101/us-east-1/s3/aws4_request"}, b"123", "InvalidAccessKeyId"),
    ):  # fmt: skip
        answer = post(http, bucket, {**good, **changes}, body)
        assert (400 <= answer.status_code < 500, code_of(answer)) == (True, code), changes
    expired = s3.generate_presigned_post(bucket, "k", ExpiresIn=-5)["fields"]
    assert code_of(post(http, bucket, expired, b"123")) == "AccessDenied"
    assert code_of(post(http, bucket, {"key": "k"}, b"123")) == "AccessDenied"
    assert code_of(http.post(f"/{bucket}", content=b"x", headers={"content-type": "text/plain"})) == (
        "MalformedPOSTRequest"
    )
    assert code_of(http.post(f"/{bucket}", data=good, files={"other": b"x"})) == "InvalidArgument"
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


def test_policies_of_forms_are_read_strictly(s3: Any, bucket: str, http: httpx.Client, running: Cluster) -> None:
    """Each way to write a policy wrong has AWS's answer, and none of them stores anything; case matters not in the
    names of fields, and much in those of the policy."""
    soon = (datetime.now(UTC) + timedelta(minutes=30)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    covered: list[Any] = [{"bucket": bucket}, ["starts-with", "$key", "k"]]
    good = {"expiration": soon, "conditions": covered}
    for policy, status, code in (
        (good, 204, ""), ({**good, "conditions": [{"BuCkEt": bucket}, ["StArTs-WiTh", "$KeY", "k"]]}, 204, ""),
        ({**good, "conditions": [*covered, ["content-length-range", 0, 3]]}, 204, ""),
        ({"conditions": covered}, 400, "InvalidPolicyDocument"), ({"expiration": soon}, 400, "InvalidPolicyDocument"),
        ({"EXPIRATION": soon, "conditions": covered}, 400, "InvalidPolicyDocument"),
        ({"expiration": soon, "CONDITIONS": covered}, 400, "InvalidPolicyDocument"),
        ({**good, "expiration": str(datetime.now(UTC) + timedelta(days=1))}, 400, "InvalidPolicyDocument"),
        ({**good, "expiration": 4102444800}, 400, "InvalidPolicyDocument"),
        ({**good, "expiration": "2040-13-45T00:00:00Z"}, 400, "InvalidPolicyDocument"),
        ({**good, "conditions": [{}, *covered]}, 400, "InvalidPolicyDocument"),
        ({**good, "conditions": [*covered, ["content-length-range", 0]]}, 400, "InvalidPolicyDocument"),
        ({**good, "conditions": [*covered, ["content-length-range", -1, 3]]}, 400, "InvalidPolicyDocument"),
        ({**good, "conditions": [*covered, ["ends-with", "$key", "k"]]}, 400, "InvalidPolicyDocument"),
        ({**good, "conditions": [["starts-with", "$key", "k"]]}, 403, "AccessDenied"),
        ({**good, "conditions": [*covered, ["starts-with", "$x-amz-meta-must", "be"]]}, 403, "AccessDenied"),
        ({**good, "conditions": [*covered, {"acl": "private"}]}, 403, "AccessDenied"),
    ):  # fmt: skip
        answer = post(http, bucket, signed(running, policy), b"123")
        assert (answer.status_code, code_of(answer)) == (status, code), policy


def test_sums_of_files_in_forms(s3: Any, bucket: str, http: httpx.Client, running: Cluster) -> None:
    """A form may say what its file must be: what comes is compared, and the sum is kept and shown."""
    soon = (datetime.now(UTC) + timedelta(minutes=30)).strftime("%Y-%m-%dT%H:%M:%SZ")
    any_sum = ["starts-with", "$x-amz-checksum-sha256", ""]
    policy = {"expiration": soon, "conditions": [{"bucket": bucket}, {"key": "k"}, any_sum,
                                                 ["starts-with", "$content-md5", ""]]}  # fmt: skip
    right = {"x-amz-checksum-sha256": b64(hashlib.sha256(b"data")), "content-md5": b64(hashlib.md5(b"data"))}
    form_of = signed(running, policy)
    for name in right:
        wrong = post(http, bucket, {**form_of, **right, name: b64(hashlib.new(_HASHES[name], b"other"))}, b"data")
        assert (wrong.status_code, code_of(wrong)) == (400, "BadDigest")
        assert post(http, bucket, {**form_of, **right, name: "nonsense"}, b"data").status_code == 400
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    answer = post(http, bucket, {**form_of, **right}, b"data")
    assert (answer.status_code, answer.headers["x-amz-checksum-sha256"]) == (204, right["x-amz-checksum-sha256"])
    held = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert held["ChecksumSHA256"] == right["x-amz-checksum-sha256"]


def test_customers_keys_and_tags_in_forms(s3: Any, bucket: str, http: httpx.Client) -> None:
    """What a header can ask for, a field can: SSE-C, tags; the object is as if it had been PUT."""
    key = hashlib.sha256(b"customer").digest()
    prefix = "x-amz-server-side-encryption-customer-"
    fields = form(s3, bucket, "k", {
        f"{prefix}algorithm": "AES256", f"{prefix}key": base64.b64encode(key).decode(),
        f"{prefix}key-MD5": b64(hashlib.md5(key)),
        "tagging": "<Tagging><TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet></Tagging>",
    })  # fmt: skip
    answer = post(http, bucket, fields, b"secret")
    assert answer.status_code == 204, answer.text
    got = s3.get_object(Bucket=bucket, Key="k", SSECustomerAlgorithm="AES256", SSECustomerKey=key)
    assert (got["Body"].read(), got["TagCount"]) == (b"secret", 1)
    for wrong, code in (({"tagging": "<Tagging/>"}, "MalformedXML"), ({f"{prefix}key": "no"}, "InvalidArgument")):
        bad = form(s3, bucket, "bad", {**{n: v for n, v in fields.items() if n in wrong}, **wrong})
        assert code_of(post(http, bucket, bad, b"x")) == code


def test_strangers_post_only_where_strangers_may_write(s3: Any, bucket: str, http: httpx.Client) -> None:
    """Without a policy a form is an anonymous PUT."""
    s3.put_bucket_policy(Bucket=bucket, Policy=(
        '{"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:PutObject", '
        f'"Resource": "arn:aws:s3:::{bucket}/open/*"}}]}}'
    ))  # fmt: skip
    assert post(http, bucket, {"key": "open/1"}, b"x").status_code == 204
    assert code_of(post(http, bucket, {"key": "closed/1"}, b"x")) == "AccessDenied"
