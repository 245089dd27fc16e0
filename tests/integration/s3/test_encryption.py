"""Encryption at rest: what is stored is not what was sent, what is read is; ranges, parts, copies, wrong keys."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit.cluster import Cluster

Refused = Callable[..., str]
MARKER = b"this must never lie on a disk in clear"
PART = 5 << 20


def customer(seed: int = 1) -> dict[str, str]:
    return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": hashlib.sha256(b"%d" % seed).digest()}  # type: ignore[dict-item]


def source_customer(seed: int = 1) -> dict[str, Any]:
    return {f"CopySource{name}": value for name, value in customer(seed).items()}


FORMS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"ServerSideEncryption": "AES256"}, {}), ({"ServerSideEncryption": "aws:kms"}, {}), (customer(), customer()),
)  # fmt: skip


@pytest.mark.parametrize(("form", "to_read"), FORMS, ids=("s3", "kms", "customer"))
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 9 << 20])
def test_bodies_come_back_whole_and_in_ranges(
    s3: Any, bucket: str, form: dict[str, Any], to_read: dict[str, Any], size: int
) -> None:
    """At the edges of segments and chunks too; sizes and listings speak of the plain bytes."""
    body = os.urandom(size)
    s3.put_object(Bucket=bucket, Key="k", Body=body, **form)
    got = s3.get_object(Bucket=bucket, Key="k", **to_read)
    assert got["Body"].read() == body
    assert got.get("ServerSideEncryption") == form.get("ServerSideEncryption")
    head = s3.head_object(Bucket=bucket, Key="k", **to_read)
    assert head["ContentLength"] == size
    entry = s3.list_objects_v2(Bucket=bucket)["Contents"][0]
    assert (entry["Size"], entry["ETag"]) == (size, head["ETag"])
    for first, last in ((0, 0), (65_530, 65_540), (size - 10, size + 5), (size // 2, size - 1)):
        if 0 <= first < size:
            part = s3.get_object(Bucket=bucket, Key="k", Range=f"bytes={first}-{last}", **to_read)
            assert part["Body"].read() == body[first : last + 1]
            assert part["ContentRange"] == f"bytes {first}-{min(last, size - 1)}/{size}"


@pytest.mark.parametrize(("form", "to_read"), FORMS, ids=("s3", "kms", "customer"))
def test_parts_of_encrypted_uploads(s3: Any, bucket: str, form: dict[str, Any], to_read: dict[str, Any]) -> None:
    """Each part is sealed for itself; a read across them, and of one by number, is right."""
    pieces = [os.urandom(PART), os.urandom(PART), os.urandom(70_000)]
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k", **form)["UploadId"]
    parts = []
    for at, piece in enumerate(pieces, 1):
        made = s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=at, Body=piece, **to_read)
        parts.append({"PartNumber": at, "ETag": made["ETag"]})
    listed = s3.list_parts(Bucket=bucket, Key="k", UploadId=upload)["Parts"]
    assert [part["Size"] for part in listed] == [len(piece) for piece in pieces]
    done = s3.complete_multipart_upload(
        Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    again = s3.complete_multipart_upload(
        Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    assert again["ETag"] == done["ETag"]
    whole = b"".join(pieces)
    assert s3.get_object(Bucket=bucket, Key="k", **to_read)["Body"].read() == whole
    across = s3.get_object(Bucket=bucket, Key="k", Range=f"bytes={PART - 7}-{2 * PART + 9}", **to_read)
    assert across["Body"].read() == whole[PART - 7 : 2 * PART + 10]
    assert s3.get_object(Bucket=bucket, Key="k", PartNumber=2, **to_read)["Body"].read() == pieces[1]
    assert s3.head_object(Bucket=bucket, Key="k", **to_read)["ETag"] == done["ETag"]


def test_customers_keys(s3: Any, bucket: str, refused: Refused) -> None:
    """No key, another key, a key for what is in clear: refused, each with AWS's code."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"secret", **customer())
    assert refused(s3.get_object, Bucket=bucket, Key="k") == "InvalidRequest"
    assert refused(s3.head_object, Bucket=bucket, Key="k") == "400"
    assert refused(s3.get_object, Bucket=bucket, Key="k", **customer(2)) == "AccessDenied"
    s3.put_object(Bucket=bucket, Key="clear", Body=b"x")
    assert refused(s3.get_object, Bucket=bucket, Key="clear", **customer()) == "InvalidRequest"
    as_text = {"SSECustomerKey": base64.b64encode(hashlib.sha256(b"1").digest()).decode()}
    wrong_md5 = customer() | as_text | {"SSECustomerKeyMD5": base64.b64encode(b"0" * 16).decode()}
    assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"", **wrong_md5) == "InvalidArgument"
    assert refused(
        s3.put_object, Bucket=bucket, Key="k", Body=b"", ServerSideEncryption="AES256", **customer()
    ) == "InvalidArgument"  # fmt: skip
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m", **customer())["UploadId"]
    part = {"Bucket": bucket, "Key": "m", "UploadId": upload, "PartNumber": 1, "Body": b"x"}
    assert refused(s3.upload_part, **part) == "InvalidRequest"
    assert refused(s3.upload_part, **part, **customer(2)) == "InvalidRequest"


def test_copies_change_encryption(s3: Any, bucket: str, refused: Refused) -> None:
    """From clear to sealed, from one customer's key to another, to a range of a part: the bytes stay the same."""
    body = os.urandom(200_000)
    source = {"Bucket": bucket, "Key": "clear"}
    s3.put_object(Body=body, **source)
    s3.copy_object(Bucket=bucket, Key="sealed", CopySource=source, **customer())
    assert s3.get_object(Bucket=bucket, Key="sealed", **customer())["Body"].read() == body
    sealed = {"Bucket": bucket, "Key": "sealed"}
    assert refused(s3.copy_object, Bucket=bucket, Key="x", CopySource=sealed) == "InvalidRequest"
    s3.copy_object(Bucket=bucket, Key="other", CopySource=sealed, **source_customer(), **customer(2))
    assert s3.get_object(Bucket=bucket, Key="other", **customer(2))["Body"].read() == body
    s3.copy_object(Bucket=bucket, Key="open", CopySource=sealed, **source_customer())
    assert s3.get_object(Bucket=bucket, Key="open")["Body"].read() == body
    s3.copy_object(Bucket=bucket, Key="kms", CopySource=source, ServerSideEncryption="aws:kms")
    s3.copy_object(Bucket=bucket, Key="kms2", CopySource={"Bucket": bucket, "Key": "kms"})
    assert s3.get_object(Bucket=bucket, Key="kms2")["Body"].read() == body
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m", ServerSideEncryption="AES256")["UploadId"]
    part = s3.upload_part_copy(
        Bucket=bucket, Key="m", UploadId=upload, PartNumber=1, CopySource=sealed, CopySourceRange="bytes=10-150000",
        **source_customer(),
    )["CopyPartResult"]  # fmt: skip
    s3.complete_multipart_upload(
        Bucket=bucket, Key="m", UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )  # fmt: skip
    assert s3.get_object(Bucket=bucket, Key="m")["Body"].read() == body[10:150_001]


def test_default_encryption_of_a_bucket(s3: Any, bucket: str, refused: Refused) -> None:
    """What asks for nothing gets the bucket's default; conditions and versions speak of the ETag that clients see."""
    assert refused(s3.get_bucket_encryption, Bucket=bucket) == "ServerSideEncryptionConfigurationNotFoundError"
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms"}, "BucketKeyEnabled": False}
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
    assert s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"] == [rule]
    put = s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert put["ServerSideEncryption"] == "aws:kms"
    assert s3.head_object(Bucket=bucket, Key="k")["ServerSideEncryption"] == "aws:kms"
    s3.put_object(Bucket=bucket, Key="k", Body=b"y", IfMatch=put["ETag"])
    assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"z", IfMatch=put["ETag"]) == "PreconditionFailed"
    assert refused(
        s3.put_object, Bucket=bucket, Key="k", Body=b"", SSEKMSKeyId="unknown", ServerSideEncryption="aws:kms"
    ) == "KMS.NotFoundException"  # fmt: skip
    s3.delete_bucket_encryption(Bucket=bucket)
    assert "ServerSideEncryption" not in s3.put_object(Bucket=bucket, Key="plain", Body=b"x")


def test_nothing_lies_on_disk_in_clear(s3: Any, bucket: str, running: Cluster) -> None:
    """S7: neither on a device nor in the catalog, its log or a file of the moment."""
    body = MARKER * 3000
    for at, (form, to_read) in enumerate(FORMS):
        s3.put_object(Bucket=bucket, Key=f"k{at}", Body=body, **form)
        assert s3.get_object(Bucket=bucket, Key=f"k{at}", **to_read)["Body"].read() == body
    s3.put_object(Bucket=bucket, Key="clear", Body=b"found: " + MARKER[::-1])
    assert any(MARKER[::-1] in text for text in files_of(running.data)), "the search itself must work"
    assert not any(MARKER in text for text in files_of(running.data))


def test_native_requests_read_what_the_master_key_opens(s3: Any, bucket: str, running: Cluster) -> None:
    """Both doors show the same object: its bytes, size and ETag; a customer's key travels by S3 only."""
    body = os.urandom(9 << 20)
    for at, (form, _) in enumerate(FORMS):
        s3.put_object(Bucket=bucket, Key=f"k{at}", Body=body, **form)
    token = {"authorization": f"Bearer {running.token}"}
    with httpx.Client(base_url=running.gateway, headers=token, timeout=60) as http:
        for key in ("k0", "k1"):
            path = f"/v1/objects/{bucket}/{key}"
            answer = http.get(path)
            assert (answer.status_code, answer.content == body) == (200, True)
            assert answer.headers["etag"] == s3.head_object(Bucket=bucket, Key=key)["ETag"]
            assert http.head(path).headers["content-length"] == str(len(body))
            part = http.get(path, headers={"range": "bytes=8388600-8388700", "if-range": answer.headers["etag"]})
            assert (part.status_code, part.content == body[8388600:8388701]) == (206, True)
            assert part.headers["content-range"] == f"bytes 8388600-8388700/{len(body)}"
            assert http.get(path, headers={"if-none-match": answer.headers["etag"]}).status_code == 304
        answer = http.get(f"/v1/objects/{bucket}/k2")
        assert (answer.status_code, answer.json()["code"]) == (403, "encrypted-object")


def files_of(root: Path) -> Iterator[bytes]:
    for path in root.rglob("*"):
        if path.is_file():
            yield path.read_bytes()


def test_another_customers_key_ends_no_upload(s3: Any, bucket: str, refused: Refused) -> None:
    """A completion needs no key, but one that it brings has to be the upload's."""
    named = {"Bucket": bucket, "Key": "k"}
    named["UploadId"] = s3.create_multipart_upload(**named, **customer())["UploadId"]
    etag = s3.upload_part(PartNumber=1, Body=b"x", **named, **customer())["ETag"]
    ended = {**named, "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": etag}]}}
    assert refused(s3.complete_multipart_upload, **ended, **customer(2)) == "InvalidRequest"
    s3.complete_multipart_upload(**ended)
    assert s3.get_object(Bucket=bucket, Key="k", **customer())["Body"].read() == b"x"


def test_a_bucket_that_blocks_customers_keys(s3: Any, bucket: str, refused: Refused) -> None:
    """AWS's BlockedEncryptionTypes, with a default and without: nothing new comes under a key that its owner lacks."""
    s3.put_object(Bucket=bucket, Key="old", Body=b"x", **customer())
    for rule in ({"BlockedEncryptionTypes": {"EncryptionType": ["SSE-C"]}},
                 {"BlockedEncryptionTypes": {"EncryptionType": ["SSE-C"]},
                  "ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}):  # fmt: skip
        s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
        shown = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
        assert shown == [{**rule, "BucketKeyEnabled": False}]
        assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"x", **customer()) == "AccessDenied"
        assert refused(s3.create_multipart_upload, Bucket=bucket, Key="k", **customer()) == "AccessDenied"
        assert refused(
            s3.copy_object, Bucket=bucket, Key="k", CopySource={"Bucket": bucket, "Key": "old"}, **source_customer(),
            **customer(),
        ) == "AccessDenied"  # fmt: skip
    assert s3.get_object(Bucket=bucket, Key="old", **customer())["Body"].read() == b"x"
    open_again = {"Rules": [{"BlockedEncryptionTypes": {"EncryptionType": ["NONE"]}}]}
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration=open_again)
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", **customer())
    for wrong in ({"BlockedEncryptionTypes": {"EncryptionType": ["SSE-D"]}}, {}):
        asked = {"Bucket": bucket, "ServerSideEncryptionConfiguration": {"Rules": [wrong]}}
        assert refused(s3.put_bucket_encryption, **asked) == "MalformedXML"
