"""Requests of every operation with nonsense in them: an error of S3's, never a 5xx, and the door goes on."""

from __future__ import annotations

import http.client
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.kit.cluster import Cluster
from tierstore.gateway.s3.operations import OPERATIONS

QUICK, MANY = 500, 100_000
#: Connections of the long form, each with a seed of its own.
CONNECTIONS = 4
#: Answered 501 on purpose: known and not supported.
_FINE = 501
_VALUES = ("", "0", "-1", "99999999999999999999", "null", "%00", "é", "a" * 300, "1,2", "<x/>", "true", "*", "/..//")
_HEADERS = (
    "content-md5", "if-match", "if-none-match", "if-modified-since", "range", "x-amz-acl", "x-amz-copy-source",
    "x-amz-tagging", "x-amz-storage-class", "x-amz-checksum-crc32", "x-amz-sdk-checksum-algorithm",
    "x-amz-server-side-encryption", "x-amz-server-side-encryption-customer-key", "x-amz-object-lock-mode",
    "x-amz-object-lock-retain-until-date", "x-amz-object-attributes", "x-amz-copy-source-range", "x-amz-trailer",
    "x-amz-decoded-content-length", "x-amz-metadata-directive", "x-amz-bypass-governance-retention", "content-type",
)  # fmt: skip
_QUERIES = (
    "max-keys", "prefix", "delimiter", "marker", "continuation-token", "encoding-type", "partNumber", "uploadId",
    "versionId", "response-content-type", "max-parts", "part-number-marker", "key-marker", "version-id-marker",
    "max-uploads", "upload-id-marker", "x-id",
)  # fmt: skip
_BODIES = (
    b"", b"x", b"<", b"<a/>", b"<Delete/>", b"<Delete><Object/></Delete>", b"\xff" * 50, b'{"Statement": 5}',
    b"<Tagging><TagSet><Tag/></TagSet></Tagging>", b"<CompleteMultipartUpload><Part/></CompleteMultipartUpload>",
    b"<LifecycleConfiguration><Rule/></LifecycleConfiguration>", b"<!DOCTYPE a><a/>", b"<a>" * 50,
)  # fmt: skip


@pytest.mark.parametrize("count", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])
def test_nonsense_is_never_a_server_error(running: Cluster, s3: Any, bucket: str, count: int) -> None:
    """S1 for this door, from seeds; the failing request is in the message."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"kept")
    lanes = 1 if count == QUICK else CONNECTIONS
    with ThreadPoolExecutor(lanes) as pool:
        found = list(pool.map(lambda seed: nonsense(running, bucket, seed, count // lanes), range(7, 7 + lanes)))
    sent, refused = sum(one[0] for one in found), sum(one[1] for one in found)
    print(f"{sent} requests, {refused} refused, the longest {max(one[2] for one in found):.2f} s")
    assert sent == count
    assert refused > count / 3, "nonsense was mostly taken: the test asks nothing"
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"kept"


def nonsense(running: Cluster, bucket: str, seed: int, count: int) -> tuple[int, int, float]:
    """Requests sent, those refused, the longest in seconds. Raises AssertionError for a 5xx."""
    chance = random.Random(seed)
    signer = S3SigV4Auth(Credentials(running.ready["access_key"], running.ready["secret_key"]), "s3", "us-east-1")
    connection = http.client.HTTPConnection(urlsplit(running.gateway).netloc, timeout=180)
    rows = [row for row in OPERATIONS if row.name not in ("DeleteBucket", "CreateBucket")]
    refused, longest = 0, 0.0
    for number in range(count):
        row = rows[number % len(rows)]
        path = {"service": "/", "bucket": f"/{bucket}", "object": f"/{bucket}/fuzz"}[row.scope]
        names = [row.query] if row.query else []
        names += chance.sample(_QUERIES, chance.randrange(3))
        query = "&".join(f"{name}={quote(chance.choice(_VALUES), safe='%')}" for name in dict.fromkeys(names))
        headers = {name: chance.choice(_VALUES) for name in chance.sample(_HEADERS, chance.randrange(3))}
        headers = {name: value for name, value in headers.items() if value.isascii()}
        body = chance.choice(_BODIES) if row.method in ("PUT", "POST") else b""
        url = f"{running.gateway}{path}" + (f"?{query}" if query else "")
        request = AWSRequest(method=row.method, url=url, data=body, headers=headers)
        if chance.random() < 0.9:
            signer.add_auth(request)
        began = time.monotonic()
        connection.request(row.method, url.removeprefix(running.gateway), body=body, headers=dict(request.headers))
        answer = connection.getresponse()
        text = answer.read()
        longest = max(longest, time.monotonic() - began)
        assert answer.status < 500 or answer.status == _FINE, (seed, number, row.name, url, headers, body, text)
        refused += answer.status >= 400
    connection.close()
    return count, refused, longest
