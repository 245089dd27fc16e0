"""Who gets in by the S3 door: forms of signatures, and everything that must be refused."""

from __future__ import annotations

import hashlib
import http.client
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.integration.s3.conftest import client_of
from tests.kit.cluster import Cluster
from tierstore.auth import sigv4

Refused = Callable[..., str]


def send(running: Cluster, method: str, target: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(running.gateway).netloc, timeout=180)
    connection.request(method, target, body, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def signed(
    running: Cluster, target: str, headers: dict[str, str], body: bytes = b"", *, has_trailer: bool = False
) -> dict[str, str]:
    """Headers of a PUT, signed by botocore."""
    request = AWSRequest("PUT", running.gateway + target, headers, body)
    if has_trailer:
        request.context["checksum"] = {"request_algorithm": {"in": "trailer"}}
    keys = Credentials(running.ready["access_key"], running.ready["secret_key"])
    S3SigV4Auth(keys, "s3", "us-east-1").add_auth(request)
    return dict(request.headers)


def test_presigned_urls(running: Cluster, bucket: str) -> None:
    """Given to a browser: works as it is, for nothing else. (boto3 presigns by SigV2 unless told otherwise.)"""
    s3 = client_of(running, signature_version="s3v4")
    put = s3.generate_presigned_url("put_object", {"Bucket": bucket, "Key": "k"}, ExpiresIn=60)
    target = put.removeprefix(running.gateway)
    assert send(running, "PUT", target, b"data", {})[0] == 200
    get = s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "k"}, ExpiresIn=60)
    target = get.removeprefix(running.gateway)
    assert send(running, "GET", target, b"", {}) == (200, b"data")
    assert send(running, "DELETE", target, b"", {})[0] == 403
    assert send(running, "GET", target.replace("/k?", "/other?"), b"", {})[0] == 403
    assert send(running, "GET", target, b"", {"x-amz-copy-source": "/a/b"})[0] == 403
    changed = target[:-1] + ("0" if target[-1] != "0" else "1")
    assert b"SignatureDoesNotMatch" in send(running, "GET", changed, b"", {})[1]


def test_wrong_keys_are_refused(running: Cluster, bucket: str, refused: Refused) -> None:
    """A guess gets the same answer whatever is wrong about the object."""
    wrong = client_of(running, secret="x" * 40)
    assert refused(wrong.get_object, Bucket=bucket, Key="k") == "SignatureDoesNotMatch"
    assert refused(wrong.put_object, Bucket=bucket, Key="k", Body=b"") == "SignatureDoesNotMatch"
    unknown = client_of(running, access="TSNOBODY")
    assert refused(unknown.list_buckets) == "InvalidAccessKeyId"
    assert send(running, "GET", f"/{bucket}", b"", {"authorization": "AWS a:b"})[0] == 400
    assert send(running, "GET", "/", b"", {})[0] == 403


def test_an_unsigned_header_or_changed_body_is_refused(running: Cluster, bucket: str) -> None:
    """What was signed is what is done."""
    headers = signed(running, f"/{bucket}/k", {}, b"data")
    status, body = send(running, "PUT", f"/{bucket}/k", b"data", {**headers, "x-amz-meta-a": "1"})
    assert (status, b"not signed" in body) == (403, True)
    status, body = send(running, "PUT", f"/{bucket}/k", b"DATA", headers)
    assert (status, b"XAmzContentSHA256Mismatch" in body) == (400, True)
    assert send(running, "PUT", f"/{bucket}/k", b"data", headers)[0] == 200


def chunked(running: Cluster, bucket: str, data: bytes, *, spoil: bool) -> tuple[int, bytes]:
    """A PUT with STREAMING-AWS4-HMAC-SHA256-PAYLOAD, signed here as AWS describes it."""
    at = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    netloc = urlsplit(running.gateway).netloc
    head = {
        "host": netloc, "x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "x-amz-date": at,
        "x-amz-decoded-content-length": str(len(data)),
    }  # fmt: skip
    names = tuple(sorted(head))
    canonical = sigv4.canonical_request(
        "PUT", f"/{bucket}/chunked".encode(), b"", [(n.encode(), v.encode()) for n, v in head.items()], names,
        head["x-amz-content-sha256"],
    )  # fmt: skip
    access, secret = running.ready["access_key"], running.ready["secret_key"]
    scope = f"{at[:8]}/us-east-1/s3/aws4_request"
    key = sigv4.signing_key(secret, at[:8], "us-east-1", "s3")
    previous = sigv4._mac(key, sigv4.string_to_sign(at, scope, canonical)).hex()
    head["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access}/{scope},SignedHeaders={';'.join(names)},Signature={previous}"
    )
    body = b""
    for place in [*range(0, len(data), 70_000), len(data)]:
        piece = data[place : place + 70_000]
        text = f"AWS4-HMAC-SHA256-PAYLOAD\n{at}\n{scope}\n{previous}\n{sigv4.EMPTY_SHA256}\n"
        previous = sigv4._mac(key, (text + hashlib.sha256(piece).hexdigest()).encode()).hex()
        if spoil and place:
            piece = b"\x00" * len(piece)
        body += f"{len(piece):x};chunk-signature={previous}\r\n".encode() + piece + b"\r\n"
    return send(running, "PUT", f"/{bucket}/chunked", body, head)


def test_signed_chunks(s3: Any, running: Cluster, bucket: str, refused: Refused) -> None:
    """Streams that are signed piece by piece; one changed byte and nothing is stored."""
    data = random.Random(1).randbytes(200_000)
    assert chunked(running, bucket, data, spoil=True)[0] == 403
    assert refused(s3.get_object, Bucket=bucket, Key="chunked") == "NoSuchKey"
    assert chunked(running, bucket, data, spoil=False)[0] == 200
    assert s3.get_object(Bucket=bucket, Key="chunked")["Body"].read() == data


@pytest.mark.parametrize("crc, status", [("rfPNew==", 400), ("rfPzYw==", 200)])
def test_unsigned_chunks_with_a_trailing_checksum(running: Cluster, bucket: str, crc: str, status: int) -> None:
    """What SDKs send over TLS: the checksum comes last and is checked all the same."""
    body = b"4\r\ndata\r\n0\r\nx-amz-checksum-crc32:" + crc.encode() + b"\r\n\r\n"
    head = {
        "x-amz-decoded-content-length": "4", "x-amz-trailer": "x-amz-checksum-crc32", "content-encoding": "aws-chunked",
    }  # fmt: skip
    headers = signed(running, f"/{bucket}/k", head, has_trailer=True)
    assert headers["X-Amz-Content-SHA256"] == "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    assert send(running, "PUT", f"/{bucket}/k", body, headers)[0] == status


def test_an_expectation_that_nobody_knows_is_passed_over(running: Cluster, bucket: str) -> None:
    """As at AWS: some clients send Expect with other things than 100-continue, or with nothing."""
    for expectation in ("200", ""):
        headers = signed(running, f"/{bucket}/k", {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
        assert send(running, "PUT", f"/{bucket}/k", b"", headers | {"Expect": expectation})[0] == 200
