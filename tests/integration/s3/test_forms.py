"""POST forms: what a browser sends, what the policy allows, what it must refuse."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.s3.conftest import client_of
from tests.kit.cluster import Cluster


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
    assert (answer.status_code, "<Key>a</Key>" in answer.text) == (201, True)
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


def test_strangers_post_only_where_strangers_may_write(s3: Any, bucket: str, http: httpx.Client) -> None:
    """Without a policy a form is an anonymous PUT."""
    s3.put_bucket_policy(Bucket=bucket, Policy=(
        '{"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:PutObject", '
        f'"Resource": "arn:aws:s3:::{bucket}/open/*"}}]}}'
    ))  # fmt: skip
    assert post(http, bucket, {"key": "open/1"}, b"x").status_code == 204
    assert code_of(post(http, bucket, {"key": "closed/1"}, b"x")) == "AccessDenied"
