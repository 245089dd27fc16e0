"""Multipart uploads over S3: parts become one object, once, in order, whatever is repeated."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import pytest

MIB = 1 << 20
Refused = Callable[..., str]


@pytest.mark.parametrize("algorithm", ["", "CRC32", "CRC64NVME", "SHA256"])
def test_a_multipart_upload_of_three_parts(s3: Any, bucket: str, refused: Refused, algorithm: str) -> None:
    """The way every tool stores large files; its ETag and checksum are AWS's."""
    pieces = [random.Random(n).randbytes(size) for n, size in enumerate((9 * MIB, 5 * MIB, 17))]
    extra = {"ChecksumAlgorithm": algorithm} if algorithm else {}
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k", Metadata={"a": "1"}, **extra)["UploadId"]
    names = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    parts = []
    for n, piece in enumerate(pieces, 1):
        made = s3.upload_part(**names, PartNumber=n, Body=piece, **extra)
        sums = {k: v for k, v in made.items() if k == f"Checksum{algorithm}" and algorithm}
        parts.append({"PartNumber": n, "ETag": made["ETag"], **sums})
    assert refused(s3.complete_multipart_upload, **names, MultipartUpload={"Parts": parts[::-1]}) == "InvalidPartOrder"
    wrong = [{**parts[0], "ETag": '"' + "0" * 32 + '"'}]
    assert refused(s3.complete_multipart_upload, **names, MultipartUpload={"Parts": wrong}) == "InvalidPart"
    done = s3.complete_multipart_upload(**names, MultipartUpload={"Parts": parts})
    digests = b"".join(hashlib.md5(piece).digest() for piece in pieces)
    assert done["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-3"'
    assert s3.complete_multipart_upload(**names, MultipartUpload={"Parts": parts})["ETag"] == done["ETag"]
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == b"".join(pieces)
    assert got["Metadata"] == {"a": "1"}
    second = s3.get_object(Bucket=bucket, Key="k", PartNumber=2)
    assert (second["Body"].read() == pieces[1], second["PartsCount"]) == (True, 3)
    if algorithm:
        assert s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")[f"Checksum{algorithm}"]
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_small_parts_are_refused(s3: Any, bucket: str, refused: Refused) -> None:
    """Parts below 5 MiB, but for the last."""
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    names = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    parts = [{"PartNumber": n, "ETag": s3.upload_part(**names, PartNumber=n, Body=b"x")["ETag"]} for n in (1, 2)]
    assert refused(s3.complete_multipart_upload, **names, MultipartUpload={"Parts": parts}) == "EntityTooSmall"
    s3.complete_multipart_upload(**names, MultipartUpload={"Parts": parts[1:]})
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"


def test_uploads_and_parts_are_listed(s3: Any, bucket: str, refused: Refused) -> None:
    """Tools find what an interrupted upload left, go on, or clean up."""
    ids = [s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"] for key in ("a", "b/c", "b/d")]
    listed = s3.list_multipart_uploads(Bucket=bucket)
    assert [(u["Key"], u["UploadId"]) for u in listed["Uploads"]] == list(zip(("a", "b/c", "b/d"), ids, strict=True))
    pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, PaginationConfig={"PageSize": 1})
    assert [u["Key"] for page in pages for u in page["Uploads"]] == ["a", "b/c", "b/d"]
    grouped = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    assert [p["Prefix"] for p in grouped["CommonPrefixes"]] == ["b/"]
    names = {"Bucket": bucket, "Key": "a", "UploadId": ids[0]}
    for n in (3, 1, 2, 2):
        s3.upload_part(**names, PartNumber=n, Body=b"x" * n)
    pages = s3.get_paginator("list_parts").paginate(**names, PaginationConfig={"PageSize": 2})
    assert [(p["PartNumber"], p["Size"]) for page in pages for p in page["Parts"]] == [(1, 1), (2, 2), (3, 3)]
    s3.abort_multipart_upload(**names)
    assert refused(s3.list_parts, **names) == "NoSuchUpload"
    assert refused(s3.upload_part, **names, PartNumber=1, Body=b"") == "NoSuchUpload"
    s3.delete_bucket(Bucket=bucket)


def test_parts_are_copied(s3: Any, bucket: str, refused: Refused) -> None:
    """A large object is put together of others."""
    data = random.Random(1).randbytes(6 * MIB)
    s3.put_object(Bucket=bucket, Key="from", Body=data)
    upload = s3.create_multipart_upload(Bucket=bucket, Key="to")["UploadId"]
    names = {"Bucket": bucket, "Key": "to", "UploadId": upload}
    source = {"Bucket": bucket, "Key": "from"}
    one = s3.upload_part_copy(**names, PartNumber=1, CopySource=source)["CopyPartResult"]["ETag"]
    two = s3.upload_part_copy(**names, PartNumber=2, CopySource=source, CopySourceRange="bytes=100-199")
    parts = [{"PartNumber": 1, "ETag": one}, {"PartNumber": 2, "ETag": two["CopyPartResult"]["ETag"]}]
    s3.complete_multipart_upload(**names, MultipartUpload={"Parts": parts})
    assert s3.get_object(Bucket=bucket, Key="to")["Body"].read() == data + data[100:200]
    s3.delete_object(Bucket=bucket, Key="from")
    assert s3.get_object(Bucket=bucket, Key="to")["Body"].read() == data + data[100:200]


def test_the_parts_of_an_object_are_listed(s3: Any, bucket: str) -> None:
    """GetObjectAttributes pages through them, in order."""
    size_of_part = 5 << 20
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k", StorageClass="STANDARD_IA")["UploadId"]
    parts = []
    for at, size in enumerate((size_of_part, size_of_part, 7), 1):
        made = s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=at, Body=bytes(size))
        parts.append({"PartNumber": at, "ETag": made["ETag"]})
    s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": parts})
    wanted = ["ObjectParts", "StorageClass", "ObjectSize"]
    ask = {"Bucket": bucket, "Key": "k", "ObjectAttributes": wanted, "MaxParts": 2}
    first = s3.get_object_attributes(**ask)
    assert (first["ObjectSize"], first["StorageClass"]) == (2 * size_of_part + 7, "STANDARD_IA")
    page = first["ObjectParts"]
    assert [part["Size"] for part in page["Parts"]] == [size_of_part, size_of_part]
    assert (page["TotalPartsCount"], page["IsTruncated"]) == (3, True)
    rest = s3.get_object_attributes(**ask, PartNumberMarker=page["NextPartNumberMarker"])["ObjectParts"]
    assert [part["Size"] for part in rest["Parts"]] == [7]
    assert rest["IsTruncated"] is False
