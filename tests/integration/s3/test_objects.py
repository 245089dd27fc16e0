"""Objects over S3: what boto3 puts comes back, with its headers, in its ranges, under its conditions."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import pytest

MIB = 1 << 20
Refused = Callable[..., str]


@pytest.mark.parametrize("size", [0, 1, 4096, 100_000, 300_000, 9 * MIB])
def test_objects_are_put_got_and_removed(s3: Any, bucket: str, refused: Refused, size: int) -> None:
    """Each way a body is stored: in one piece, by chunks, empty."""
    data = random.Random(size).randbytes(size)
    put = s3.put_object(Bucket=bucket, Key="a b/ü+?.bin", Body=data, ContentType="text/x", Metadata={"who": "me"})
    assert put["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
    got = s3.get_object(Bucket=bucket, Key="a b/ü+?.bin")
    assert got["Body"].read() == data
    assert (got["ContentType"], got["Metadata"], got["ContentLength"]) == ("text/x", {"who": "me"}, size)
    head = s3.head_object(Bucket=bucket, Key="a b/ü+?.bin")
    assert (head["ContentLength"], head["ETag"]) == (size, put["ETag"])
    s3.delete_object(Bucket=bucket, Key="a b/ü+?.bin")
    s3.delete_object(Bucket=bucket, Key="a b/ü+?.bin")
    assert refused(s3.get_object, Bucket=bucket, Key="a b/ü+?.bin") == "NoSuchKey"
    assert refused(s3.head_object, Bucket=bucket, Key="a b/ü+?.bin") == "404"


def test_ranges_and_conditions(s3: Any, bucket: str, refused: Refused) -> None:
    """Caches and parallel downloads rest on these."""
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"0123456789")["ETag"]
    for asked, wanted in (("bytes=2-4", b"234"), ("bytes=7-", b"789"), ("bytes=-3", b"789"), ("bytes=8-99", b"89")):
        got = s3.get_object(Bucket=bucket, Key="k", Range=asked)
        assert (got["Body"].read(), got["ResponseMetadata"]["HTTPStatusCode"]) == (wanted, 206)
    assert refused(s3.get_object, Bucket=bucket, Key="k", Range="bytes=10-") == "InvalidRange"
    assert refused(s3.get_object, Bucket=bucket, Key="k", IfNoneMatch=etag) == "304"
    assert refused(s3.get_object, Bucket=bucket, Key="k", IfMatch='"x"') == "PreconditionFailed"
    assert s3.get_object(Bucket=bucket, Key="k", IfMatch=etag)["Body"].read() == b"0123456789"
    assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"n", IfNoneMatch="*") == "PreconditionFailed"
    assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"n", IfMatch='"x"') == "PreconditionFailed"
    s3.put_object(Bucket=bucket, Key="k", Body=b"n", IfMatch=etag)
    got = s3.get_object(Bucket=bucket, Key="k", ResponseContentType="a/b", ResponseCacheControl="no-store")
    assert (got["ContentType"], got["CacheControl"]) == ("a/b", "no-store")


def test_many_objects_are_deleted_at_once(s3: Any, bucket: str) -> None:
    """Tools remove trees by it."""
    for name in ("a", "b", "c"):
        s3.put_object(Bucket=bucket, Key=name, Body=b"x")
    done = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": k} for k in ("a", "b", "missing")]})
    assert sorted(entry["Key"] for entry in done["Deleted"]) == ["a", "b", "missing"]
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["c"]


def test_objects_are_copied(s3: Any, bucket: str, refused: Refused) -> None:
    """A copy has the bytes of its source, and the metadata it was told to have."""
    put = s3.put_object(Bucket=bucket, Key="from", Body=b"data", Metadata={"a": "1"}, ContentType="x/y")
    source = {"Bucket": bucket, "Key": "from"}
    assert s3.copy_object(Bucket=bucket, Key="to", CopySource=source)["CopyObjectResult"]["ETag"] == put["ETag"]
    got = s3.get_object(Bucket=bucket, Key="to")
    assert (got["Body"].read(), got["Metadata"], got["ContentType"]) == (b"data", {"a": "1"}, "x/y")
    s3.copy_object(Bucket=bucket, Key="from", CopySource=source, MetadataDirective="REPLACE", Metadata={"b": "2"})
    assert s3.head_object(Bucket=bucket, Key="from")["Metadata"] == {"b": "2"}
    assert refused(s3.copy_object, Bucket=bucket, Key="from", CopySource=source) == "InvalidRequest"
    missing = {"Bucket": bucket, "Key": "missing"}
    assert refused(s3.copy_object, Bucket=bucket, Key="to", CopySource=missing) == "NoSuchKey"
    wrong = {"CopySource": source, "CopySourceIfMatch": '"x"'}
    assert refused(s3.copy_object, Bucket=bucket, Key="to", **wrong) == "PreconditionFailed"


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums_are_checked_kept_and_shown(s3: Any, bucket: str, refused: Refused, algorithm: str) -> None:
    """A body that was changed on its way must not be stored."""
    put = s3.put_object(Bucket=bucket, Key="k", Body=b"data", ChecksumAlgorithm=algorithm)
    name = f"Checksum{algorithm}"
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert head[name] == put[name]
    shown = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["Checksum", "ObjectSize", "ETag"])
    assert (shown["Checksum"][name], shown["ObjectSize"]) == (put[name], 4)
    assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"other", **{name: put[name]}) == "BadDigest"
    assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"x", ContentMD5="AAAA") == "InvalidDigest"
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"data"


def test_tags_of_buckets_and_objects(s3: Any, bucket: str, refused: Refused) -> None:
    """Tags are set, shown and removed apart from the object."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", Tagging="a=1&b=2%20")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [
        {"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2 "}
    ]  # fmt: skip
    assert s3.get_object(Bucket=bucket, Key="k")["TagCount"] == 2
    tags = [{"Key": "c", "Value": "<&>"}]
    s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": tags})
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == tags
    s3.delete_object_tagging(Bucket=bucket, Key="k")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    many = [{"Key": str(n), "Value": ""} for n in range(11)]
    assert refused(s3.put_object_tagging, Bucket=bucket, Key="k", Tagging={"TagSet": many}) == "BadRequest"
    assert refused(s3.get_bucket_tagging, Bucket=bucket) == "NoSuchTagSet"
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": tags})
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == tags
    s3.delete_bucket_tagging(Bucket=bucket)
    assert refused(s3.get_bucket_tagging, Bucket=bucket) == "NoSuchTagSet"
