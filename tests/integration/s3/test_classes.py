"""Storage classes: kept, shown everywhere, changed by copies, and what the tiering policy makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.kit.cluster import Cluster

MIB = 1 << 20
Refused = Callable[..., str]


@pytest.fixture
def http(running: Cluster) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {running.token}"}
    with httpx.Client(base_url=running.gateway, headers=headers, timeout=120) as client:
        yield client


def rule_of(http: httpx.Client, bucket: str, key: str) -> tuple[str, str]:
    shown = http.get(f"/v1/explain/{bucket}/{key}").json()
    return shown["rule"], shown["mode"]


def classes_listed(s3: Any, bucket: str) -> dict[str, dict[str, str]]:
    """Key -> class, by each kind of listing."""
    pages = {
        "v1": s3.list_objects(Bucket=bucket)["Contents"], "v2": s3.list_objects_v2(Bucket=bucket)["Contents"],
        "versions": s3.list_object_versions(Bucket=bucket)["Versions"],
    }  # fmt: skip
    return {name: {entry["Key"]: entry["StorageClass"] for entry in page} for name, page in pages.items()}


def test_classes_are_kept_and_shown(s3: Any, bucket: str, refused: Refused) -> None:
    """HEAD, GET, attributes and all listings say the same; STANDARD goes without saying in headers."""
    s3.put_object(Bucket=bucket, Key="ia", Body=b"x", StorageClass="STANDARD_IA")
    s3.put_object(Bucket=bucket, Key="large", Body=b"x" * MIB, StorageClass="GLACIER_IR", Metadata={"s3.class": "no"})
    s3.put_object(Bucket=bucket, Key="plain", Body=b"x", Metadata={"s3.class": "GLACIER"})
    expected = {"ia": "STANDARD_IA", "large": "GLACIER_IR", "plain": "STANDARD"}
    assert classes_listed(s3, bucket) == dict.fromkeys(("v1", "v2", "versions"), expected)
    for key, name in expected.items():
        shown = None if name == "STANDARD" else name
        assert s3.head_object(Bucket=bucket, Key=key).get("StorageClass") == shown
        assert s3.get_object(Bucket=bucket, Key=key).get("StorageClass") == shown
        found = s3.get_object_attributes(Bucket=bucket, Key=key, ObjectAttributes=["StorageClass"])
        assert found["StorageClass"] == name
    with_prefixes = s3.list_objects_v2(Bucket=bucket, Delimiter="/", Prefix="l")["Contents"]
    assert [entry["StorageClass"] for entry in with_prefixes] == ["GLACIER_IR"]
    assert refused(s3.put_object, Bucket=bucket, Key="bad", Body=b"", StorageClass="FAST") == "InvalidStorageClass"


def test_multipart_uploads_have_a_class(s3: Any, bucket: str) -> None:
    """It is named when the upload begins; its lists show it, and the object has it."""
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k", StorageClass="ONEZONE_IA")["UploadId"]
    name = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    part = s3.upload_part(**name, PartNumber=1, Body=b"data")
    assert s3.list_parts(**name)["StorageClass"] == "ONEZONE_IA"
    assert s3.list_multipart_uploads(Bucket=bucket)["Uploads"][0]["StorageClass"] == "ONEZONE_IA"
    s3.complete_multipart_upload(**name, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    assert s3.head_object(Bucket=bucket, Key="k")["StorageClass"] == "ONEZONE_IA"
    assert s3.list_objects_v2(Bucket=bucket)["Contents"][0]["StorageClass"] == "ONEZONE_IA"


def test_a_copy_onto_itself_changes_the_class(s3: Any, bucket: str, refused: Refused) -> None:
    """The way that clients change a class; what else the object carries stays. A copy that names none is STANDARD."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"data", Metadata={"a": "b"}, Tagging="t=1")
    source = {"Bucket": bucket, "Key": "k"}
    s3.copy_object(**source, CopySource=source, StorageClass="DEEP_ARCHIVE")
    head = s3.head_object(**source)
    assert (head["StorageClass"], head["Metadata"]) == ("DEEP_ARCHIVE", {"a": "b"})
    assert s3.get_object_tagging(**source)["TagSet"] == [{"Key": "t", "Value": "1"}]
    assert s3.get_object(**source)["Body"].read() == b"data"
    s3.copy_object(Bucket=bucket, Key="other", CopySource=source)
    assert "StorageClass" not in s3.head_object(Bucket=bucket, Key="other")
    wrong = {**source, "CopySource": source, "StorageClass": "SLOW"}
    assert refused(s3.copy_object, **wrong) == "InvalidStorageClass"


def test_the_policy_decides_what_a_class_means(s3: Any, bucket: str, http: httpx.Client) -> None:
    """Without a rule, classes for seldom reads get no fast copies; a rule may match a class and say otherwise."""
    s3.put_object(Bucket=bucket, Key="ia", Body=b"x", StorageClass="STANDARD_IA")
    s3.put_object(Bucket=bucket, Key="plain", Body=b"x")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="rows", StorageClass="GLACIER")["UploadId"]
    name = {"Bucket": bucket, "Key": "rows", "UploadId": upload}
    part = s3.upload_part(**name, PartNumber=1, Body=b"data")
    s3.complete_multipart_upload(**name, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    assert rule_of(http, bucket, "ia") == ("class STANDARD_IA", "never")
    assert rule_of(http, bucket, "rows") == ("class GLACIER", "never")
    assert rule_of(http, bucket, "plain") == ("default", "auto")
    before = http.get("/v1/admin/policy").json()
    rule = {"name": "kept near", "match": {"bucket": bucket, "class": "STANDARD_IA"}, "mode": "pin"}
    try:
        answer = http.put("/v1/admin/policy", json={"version": 1, "rules": [rule]})
        assert answer.status_code == 200, answer.text
        assert rule_of(http, bucket, "ia") == ("kept near", "pin")
        assert rule_of(http, bucket, "plain") == ("default", "auto")
        s3.copy_object(Bucket=bucket, Key="plain", CopySource=f"{bucket}/plain", StorageClass="STANDARD_IA")
        assert rule_of(http, bucket, "plain") == ("kept near", "pin")
    finally:
        http.put("/v1/admin/policy", json={name: before[name] for name in ("version", "rules", "promoter")})
