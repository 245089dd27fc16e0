"""The S3 door by TLS: what policies and customers' keys make of it, beside the plain door of the same cluster."""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.integration.s3.conftest import client_of
from tests.kit.cluster import Cluster
from tests.kit.tls import Authority, SecureGateway

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def secure(running: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureGateway]:
    authority = Authority(tmp_path_factory.mktemp("tls"), "ours")
    certificate, key = authority.issue("gateway")
    changes = {"tls": {"certificate": certificate, "key": key}, "s3": {"customer_keys_over_http": False}}
    door = SecureGateway(running, "gateway", "gateway1", 19, changes, ca_file=str(authority.file))
    try:
        door.start()
        yield door
    finally:
        door.kill()


@pytest.fixture(scope="module")
def by_tls(running: Cluster, secure: SecureGateway) -> Any:
    """boto3 by TLS."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3", endpoint_url=secure.url, region_name="us-east-1", verify=secure.ca_file,
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
        aws_access_key_id=running.ready["access_key"], aws_secret_access_key=running.ready["secret_key"],
    )  # fmt: skip


def statuses(running: Cluster, secure: SecureGateway, path: str) -> tuple[int, int]:
    """Of a native GET without and with TLS."""
    headers = {"Authorization": f"Bearer {running.token}"}
    context = ssl.create_default_context(cafile=secure.ca_file)
    with httpx.Client(headers=headers, timeout=180, verify=context) as client:
        return client.get(running.gateway + path).status_code, client.get(secure.url + path).status_code


@pytest.mark.parametrize("refused_one", ["false", "true"])
def test_a_bucket_by_tls_only_or_never(
    running: Cluster, secure: SecureGateway, by_tls: Any, s3: Any, bucket: str, refused: Refused, refused_one: str
) -> None:
    """aws:SecureTransport is what the connection is, at both doors, for objects, lists and settings."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    arn = f"arn:aws:s3:::{bucket}"
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Statement": [
        {"Effect": "Deny", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": [arn, arn + "/*"],
         "Condition": {"Bool": {"aws:SecureTransport": refused_one}}},
    ]}))  # fmt: skip
    shut, free = (s3, by_tls) if refused_one == "false" else (by_tls, s3)
    assert free.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"
    assert free.list_objects_v2(Bucket=bucket)["KeyCount"] == 1
    assert refused(shut.get_object, Bucket=bucket, Key="k") == "AccessDenied"
    assert refused(shut.list_objects_v2, Bucket=bucket) == "AccessDenied"
    wanted = (403, 200) if refused_one == "false" else (200, 403)
    for path in (f"/v1/objects/{bucket}/k", f"/v1/objects/{bucket}", f"/v1/buckets/{bucket}",
                 f"/v1/explain/{bucket}/k"):  # fmt: skip
        assert statuses(running, secure, path) == wanted, path


def test_customers_keys_travel_by_tls(by_tls: Any, s3: Any, bucket: str, refused: Refused) -> None:
    """There no setting is needed; what was put so is read at the plain door of a cluster that allows it."""
    key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": hashlib.sha256(b"a customer's").digest()}
    by_tls.put_object(Bucket=bucket, Key="k", Body=b"sealed", **key)
    assert by_tls.get_object(Bucket=bucket, Key="k", **key)["Body"].read() == b"sealed"
    assert s3.get_object(Bucket=bucket, Key="k", **key)["Body"].read() == b"sealed"
    assert refused(by_tls.get_object, Bucket=bucket, Key="k") == "InvalidRequest"


def test_bodies_of_both_framings_by_tls(by_tls: Any, bucket: str) -> None:
    """By TLS, boto3 sends its checksum behind the body and signs no chunk; parts and streams as well."""
    for size in (0, 10, 300_000, 9 << 20):
        body = bytes(range(256)) * (size // 256) + b"t" * (size % 256)
        by_tls.put_object(Bucket=bucket, Key="k", Body=body, ChecksumAlgorithm="CRC32C")
        assert by_tls.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")["Body"].read() == body


def test_a_plain_client_at_the_tls_port_is_no_request(running: Cluster, secure: SecureGateway) -> None:
    """Nothing is answered in clear where a certificate is."""
    client = client_of(running, endpoint=secure.url.replace("https", "http"))
    from botocore.exceptions import BotoCoreError, ClientError

    with pytest.raises((BotoCoreError, ClientError)):
        client.list_buckets()
