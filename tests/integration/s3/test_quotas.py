"""Quotas: what would pass one is refused by every way in; what goes makes room again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.kit.cluster import Cluster

KIB = 1024
FIVE_MIB = 5 << 20


@pytest.fixture
def http(running: Cluster) -> Any:
    with httpx.Client(base_url=running.gateway, headers={"authorization": f"Bearer {running.token}"}) as client:
        yield client


def set_quota(http: httpx.Client, bucket: str, **quota: int) -> dict[str, Any]:
    answer = http.put(f"/v1/buckets/{bucket}/quota", json=quota, timeout=60)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


def used(http: httpx.Client, bucket: str) -> tuple[int, int]:
    shown = http.get(f"/v1/buckets/{bucket}/quota", timeout=60).json()
    return shown["used_bytes"], shown["used_objects"]


def test_a_bucket_holds_no_more_bytes_than_its_quota(
    s3: Any, bucket: str, http: httpx.Client, refused: Callable[..., str]
) -> None:
    """What is there when the quota comes counts; an overwrite frees what it replaces; a deletion makes room."""
    s3.put_object(Bucket=bucket, Key="before", Body=b"x" * 4 * KIB)
    shown = set_quota(http, bucket, bytes=10 * KIB)
    assert (shown["used_bytes"], shown["used_objects"]) == (4 * KIB, 1)
    s3.put_object(Bucket=bucket, Key="fits", Body=b"x" * 6 * KIB)
    assert refused(s3.put_object, Bucket=bucket, Key="more", Body=b"x") == "QuotaExceeded"
    answer = http.put(f"/v1/objects/{bucket}/more", content=b"x", timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (403, "quota-exceeded")
    assert refused(s3.copy_object, Bucket=bucket, Key="copy", CopySource=f"{bucket}/before") == "QuotaExceeded"
    s3.put_object(Bucket=bucket, Key="fits", Body=b"x" * 5 * KIB)
    assert used(http, bucket) == (9 * KIB, 2)
    s3.delete_object(Bucket=bucket, Key="before")
    s3.copy_object(Bucket=bucket, Key="copy", CopySource=f"{bucket}/fits")
    assert used(http, bucket) == (10 * KIB, 2)
    assert refused(s3.head_object, Bucket=bucket, Key="more") == "404"


def test_a_bucket_holds_no_more_objects_than_its_quota(
    s3: Any, bucket: str, http: httpx.Client, refused: Callable[..., str]
) -> None:
    """A rename within the bucket needs no room; without the quota all is taken again."""
    set_quota(http, bucket, objects=2)
    for key in "ab":
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert refused(s3.put_object, Bucket=bucket, Key="c", Body=b"c") == "QuotaExceeded"
    moved = http.post(f"/v1/objects/{bucket}/a", json={"rename_to": "z"}, timeout=60)
    assert moved.status_code == 200, moved.text
    assert used(http, bucket) == (2, 2)
    set_quota(http, bucket)
    s3.put_object(Bucket=bucket, Key="c", Body=b"c")
    assert used(http, bucket) == (None, None)


def test_old_versions_count_and_markers_do_not(
    s3: Any, bucket: str, http: httpx.Client, refused: Callable[..., str]
) -> None:
    """With versioning an overwrite adds; only a version that goes for good makes room."""
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    set_quota(http, bucket, objects=2)
    first = s3.put_object(Bucket=bucket, Key="k", Body=b"one")["VersionId"]
    s3.put_object(Bucket=bucket, Key="k", Body=b"two")
    s3.delete_object(Bucket=bucket, Key="k")
    assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"three") == "QuotaExceeded"
    s3.delete_object(Bucket=bucket, Key="k", VersionId=first)
    s3.put_object(Bucket=bucket, Key="k", Body=b"three")
    assert used(http, bucket) == (8, 2)


def test_a_multipart_upload_that_would_pass_the_quota_is_not_completed(
    s3: Any, bucket: str, http: httpx.Client, refused: Callable[..., str]
) -> None:
    """Nothing of it becomes visible; after room was made the same completion succeeds."""
    set_quota(http, bucket, bytes=FIVE_MIB + 10)
    s3.put_object(Bucket=bucket, Key="small", Body=b"x" * 20)
    upload = s3.create_multipart_upload(Bucket=bucket, Key="large")["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key="large", UploadId=upload, PartNumber=1, Body=b"x" * FIVE_MIB)
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    whole = {"Bucket": bucket, "Key": "large", "UploadId": upload, "MultipartUpload": parts}
    assert refused(s3.complete_multipart_upload, **whole) == "QuotaExceeded"
    assert refused(s3.head_object, Bucket=bucket, Key="large") == "404"
    s3.delete_object(Bucket=bucket, Key="small")
    s3.complete_multipart_upload(**whole)
    assert used(http, bucket) == (FIVE_MIB, 1)


def test_who_configures_a_bucket_cannot_lift_its_quota(http: httpx.Client, bucket: str) -> None:
    """A quota is the operator's: neither a document of the bucket nor a key without the role sets it."""
    answer = http.patch(f"/v1/buckets/{bucket}", json={"documents": {"quota": None}}, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-document")
    made = http.post("/v1/admin/keys", json={"user": "tenant", "grants": {bucket: "admin"}}, timeout=60)
    assert made.status_code in (200, 201), made.text
    headers = {"authorization": f"Bearer {made.json()['token']}"}
    answer = http.put(f"/v1/buckets/{bucket}/quota", json={"bytes": 1}, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (403, "access-denied")
