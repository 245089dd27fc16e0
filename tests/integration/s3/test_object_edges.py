"""Objects, the rare ways: conditions, ranges, copies, tags, versions and deletes as published for S3."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

Refused = Callable[..., str]
LATER = datetime.now(UTC) + timedelta(days=1)
EARLIER = datetime.now(UTC) - timedelta(days=1)
NO_ETAG = '"' + "0" * 32 + '"'


def versioned(s3: Any, bucket: str, status: str = "Enabled") -> None:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": status})


def test_conditions_on_reads(s3: Any, bucket: str, refused: Refused) -> None:
    """304 and 412; an ETag condition wins over its date (RFC 9110, 13.2.2)."""
    name = {"Bucket": bucket, "Key": "k"}
    etag = s3.put_object(**name, Body=b"data")["ETag"]
    for condition, code in (
        ({"IfMatch": etag}, ""), ({"IfMatch": NO_ETAG}, "PreconditionFailed"), ({"IfNoneMatch": etag}, "304"),
        ({"IfNoneMatch": NO_ETAG}, ""), ({"IfModifiedSince": EARLIER}, ""), ({"IfModifiedSince": LATER}, "304"),
        ({"IfUnmodifiedSince": LATER}, ""), ({"IfUnmodifiedSince": EARLIER}, "PreconditionFailed"),
        ({"IfMatch": etag, "IfUnmodifiedSince": EARLIER}, ""),
        ({"IfNoneMatch": etag, "IfModifiedSince": EARLIER}, "304"),
    ):  # fmt: skip
        if code:
            assert refused(s3.get_object, **name, **condition) == code
        else:
            assert s3.get_object(**name, **condition)["Body"].read() == b"data"


@pytest.mark.parametrize(("sent", "status", "body"), [
    ("bytes=4-7", 206, b"4567"), ("bytes=8-", 206, b"89"), ("bytes=-3", 206, b"789"),
    ("bytes=-100", 206, b"0123456789"),
    ("bytes=5-500", 206, b"56789"), ("bytes=0-0", 206, b"0"), ("bytes=7-3", 200, b"0123456789"),
    ("bytes=x-y", 200, b"0123456789"), ("lines=1-2", 200, b"0123456789"), ("bytes=0-1,4-5", 200, b"0123456789"),
])  # fmt: skip
def test_ranges(s3: Any, bucket: str, sent: str, status: int, body: bytes) -> None:
    """What makes no sense as a range is as if it were not there."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"0123456789")
    answer = s3.get_object(Bucket=bucket, Key="k", Range=sent)
    assert (answer["ResponseMetadata"]["HTTPStatusCode"], answer["Body"].read()) == (status, body)


def test_ranges_that_cannot_be(s3: Any, bucket: str, refused: Refused) -> None:
    """Behind the end, of an empty object, the last no bytes."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"0123456789")
    s3.put_object(Bucket=bucket, Key="empty", Body=b"")
    for key, sent in (("k", "bytes=40-50"), ("k", "bytes=10-"), ("k", "bytes=-0"), ("empty", "bytes=0-1")):
        assert refused(s3.get_object, Bucket=bucket, Key=key, Range=sent) == "InvalidRange"


def test_conditions_on_writes_and_deletes(s3: Any, bucket: str, refused: Refused) -> None:
    """Judged in the commit; If-Match on nothing is NoSuchKey; a refused write changes nothing."""
    name = {"Bucket": bucket, "Key": "k"}
    assert refused(s3.put_object, **name, Body=b"", IfMatch=NO_ETAG) == "NoSuchKey"
    etag = s3.put_object(**name, Body=b"one", IfNoneMatch="*")["ETag"]
    assert refused(s3.put_object, **name, Body=b"two", IfNoneMatch="*") == "PreconditionFailed"
    assert refused(s3.put_object, **name, Body=b"two", IfMatch=NO_ETAG) == "PreconditionFailed"
    assert s3.get_object(**name)["Body"].read() == b"one"
    newer = s3.put_object(**name, Body=b"two", IfMatch=etag)["ETag"]
    assert refused(s3.delete_object, **name, IfMatch=etag) == "PreconditionFailed"
    for unknown in ({"IfMatch": "*"}, {"IfNoneMatch": etag}, {"IfMatch": newer, "IfNoneMatch": "*"}):
        assert refused(s3.put_object, **name, Body=b"three", **unknown) == "NotImplemented", unknown
    for unknown in ({"IfMatchSize": 3}, {"IfMatchLastModifiedTime": EARLIER}):
        assert refused(s3.delete_object, **name, **unknown) == "NotImplemented", unknown
    for nobodys in ('""', '","'):       # they name no ETag, which is not the same as no condition
        assert refused(s3.put_object, **name, Body=b"three", IfMatch=nobodys) == "PreconditionFailed"
        assert refused(s3.delete_object, **name, IfMatch=nobodys) == "PreconditionFailed"
    assert s3.get_object(**name)["Body"].read() == b"two"
    s3.delete_object(**name, IfMatch=newer)
    assert refused(s3.head_object, **name) == "404"


def test_conditions_on_the_source_of_a_copy(s3: Any, bucket: str, refused: Refused) -> None:
    """All four, and the two pairs in which one wins."""
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"data")["ETag"]
    copy = {"Bucket": bucket, "Key": "copy", "CopySource": f"{bucket}/k"}
    for condition, is_made in (
        ({"CopySourceIfMatch": etag}, True), ({"CopySourceIfMatch": NO_ETAG}, False),
        ({"CopySourceIfNoneMatch": etag}, False), ({"CopySourceIfNoneMatch": NO_ETAG}, True),
        ({"CopySourceIfModifiedSince": EARLIER}, True), ({"CopySourceIfUnmodifiedSince": EARLIER}, False),
        ({"CopySourceIfMatch": etag, "CopySourceIfUnmodifiedSince": EARLIER}, True),
        ({"CopySourceIfNoneMatch": etag, "CopySourceIfModifiedSince": EARLIER}, False),
    ):  # fmt: skip
        if is_made:
            assert s3.copy_object(**copy, **condition)["CopyObjectResult"]["ETag"] == etag
        else:
            assert refused(s3.copy_object, **copy, **condition) == "PreconditionFailed"


def test_copies_of_what_is_not_there(s3: Any, bucket: str, refused: Refused) -> None:
    """No key, no bucket, no version, a delete marker, a source of no sense, itself unchanged."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"data")
    to = {"Bucket": bucket, "Key": "to"}
    assert refused(s3.copy_object, **to, CopySource=f"{bucket}/none") == "NoSuchKey"
    assert refused(s3.copy_object, **to, CopySource="no-such-bucket-here/k") == "NoSuchBucket"
    assert refused(s3.copy_object, **to, CopySource="k") == "InvalidArgument"
    assert refused(s3.copy_object, Bucket=bucket, Key="k", CopySource=f"{bucket}/k") == "InvalidRequest"
    assert refused(s3.copy_object, Bucket="no-such-bucket-here", Key="to", CopySource=f"{bucket}/k") == "NoSuchBucket"
    versioned(s3, bucket)
    marker = s3.delete_object(Bucket=bucket, Key="k")["VersionId"]
    assert refused(s3.copy_object, **to, CopySource=f"{bucket}/k") == "NoSuchKey"
    gone = f"{bucket}/k?versionId={marker}"
    assert refused(s3.copy_object, **to, CopySource=gone) in ("InvalidRequest", "MethodNotAllowed")
    s3.copy_object(**to, CopySource=f"{bucket}/k?versionId=null")
    assert s3.get_object(**to)["Body"].read() == b"data"


def test_an_older_version_is_brought_back_by_a_copy(s3: Any, bucket: str) -> None:
    """The usual way to undo; the copy says from which version it was made."""
    versioned(s3, bucket)
    first = s3.put_object(Bucket=bucket, Key="k", Body=b"one", Metadata={"a": "1"})["VersionId"]
    s3.put_object(Bucket=bucket, Key="k", Body=b"two")
    made = s3.copy_object(Bucket=bucket, Key="k", CopySource=f"{bucket}/k?versionId={first}",
                          MetadataDirective="REPLACE", Metadata={"b": "2"}, ContentType="text/plain")  # fmt: skip
    assert (made["CopySourceVersionId"], made["VersionId"] != first) == (first, True)
    got = s3.get_object(Bucket=bucket, Key="k")
    assert (got["Body"].read(), got["Metadata"], got["ContentType"]) == (b"one", {"b": "2"}, "text/plain")


def test_tags_of_copies(s3: Any, bucket: str) -> None:
    """COPY takes the source's along, REPLACE those of the request."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"", Tagging="a=1&b=2")
    s3.copy_object(Bucket=bucket, Key="same", CopySource=f"{bucket}/k")
    s3.copy_object(Bucket=bucket, Key="new", CopySource=f"{bucket}/k", TaggingDirective="REPLACE", Tagging="c=3")
    tags = {key: s3.get_object_tagging(Bucket=bucket, Key=key)["TagSet"] for key in ("same", "new")}
    assert sorted(tag["Key"] for tag in tags["same"]) == ["a", "b"]
    assert tags["new"] == [{"Key": "c", "Value": "3"}]


def test_bounds_of_tags(s3: Any, bucket: str, refused: Refused) -> None:
    """Ten, names of 128, values of 256, no name twice, none of AWS's own."""
    name = {"Bucket": bucket, "Key": "k"}
    s3.put_object(**name, Body=b"")
    many = [{"Key": f"k{n}", "Value": "v"} for n in range(11)]
    longest = [{"Key": "k" * 128, "Value": "v" * 256}]
    for tags, code in (
        (many, "BadRequest"), ([{"Key": "k" * 129, "Value": ""}], "InvalidTag"),
        ([{"Key": "k", "Value": "v" * 257}], "InvalidTag"), ([{"Key": "aws:x", "Value": ""}], "InvalidTag"),
        ([{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}], "InvalidTag"),
    ):
        assert refused(s3.put_object_tagging, **name, Tagging={"TagSet": tags}) == code
        assert s3.get_object_tagging(**name)["TagSet"] == []
    s3.put_object(**name, Body=b"", Tagging="zone=1&area=")
    assert s3.get_object_tagging(**name)["TagSet"] == [{"Key": "area", "Value": ""}, {"Key": "zone", "Value": "1"}]
    s3.put_object_tagging(**name, Tagging={"TagSet": many[:10]})
    assert s3.get_object(**name)["TagCount"] == 10
    s3.put_object_tagging(**name, Tagging={"TagSet": longest})
    assert s3.get_object_tagging(**name)["TagSet"] == longest
    s3.delete_object_tagging(**name)
    assert s3.get_object_tagging(**name)["TagSet"] == []
    assert refused(s3.put_object, **name, Body=b"", Tagging="&".join(f"k{n}=v" for n in range(11))) in (
        "BadRequest", "InvalidTag",
    )  # fmt: skip


def test_null_versions_come_and_go(s3: Any, bucket: str) -> None:
    """Suspended: writes replace the null version and no other; enabled again, the null one stays."""
    name = {"Bucket": bucket, "Key": "k"}
    s3.put_object(**name, Body=b"null 1")
    versioned(s3, bucket)
    kept = s3.put_object(**name, Body=b"kept")["VersionId"]
    versioned(s3, bucket, "Suspended")
    assert "VersionId" not in s3.put_object(**name, Body=b"null 2")  # as at AWS
    assert [v["VersionId"] for v in s3.list_object_versions(Bucket=bucket)["Versions"]] == ["null", kept]
    gone = s3.delete_object(**name)
    assert (gone["DeleteMarker"], gone["VersionId"]) == (True, "null")
    page = s3.list_object_versions(Bucket=bucket)
    assert [v["VersionId"] for v in page["Versions"]] == [kept]
    assert [m["VersionId"] for m in page["DeleteMarkers"]] == ["null"]
    versioned(s3, bucket)
    newest = s3.put_object(**name, Body=b"newest")["VersionId"]
    assert s3.get_object(**name, VersionId=kept)["Body"].read() == b"kept"
    removed = s3.delete_object(**name, VersionId="null")
    assert (removed["DeleteMarker"], removed["VersionId"]) == (True, "null")
    assert [v["VersionId"] for v in s3.list_object_versions(Bucket=bucket)["Versions"]] == [newest, kept]


def test_delete_markers(s3: Any, bucket: str, refused: Refused) -> None:
    """Deleting again makes another; removing a marker shows what is below; deletes of nothing succeed."""
    name = {"Bucket": bucket, "Key": "k"}
    versioned(s3, bucket)
    first = s3.put_object(**name, Body=b"data")["VersionId"]
    markers = [s3.delete_object(**name)["VersionId"] for _ in range(2)]
    assert len(set(markers)) == 2
    assert refused(s3.head_object, **name) == "404"
    assert refused(s3.head_object, **name, VersionId=markers[1]) == "405"
    for marker in markers:
        s3.delete_object(**name, VersionId=marker)
    assert s3.get_object(**name)["VersionId"] == first
    never = s3.delete_object(Bucket=bucket, Key="never")
    assert never["DeleteMarker"] is True
    done = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"},
        {"Key": "never", "VersionId": never["VersionId"]}, {"Key": "k", "VersionId": first}]})  # fmt: skip
    assert [one.get("DeleteMarker") for one in done["Deleted"]] == [True, True, None]
    assert refused(s3.get_object, **name, VersionId="0000000000000001") == "NoSuchVersion"
    assert refused(s3.get_object, **name, VersionId="nonsense") == "InvalidArgument"


def test_many_deletes_at_once(s3: Any, bucket: str, refused: Refused) -> None:
    """Quiet says nothing of what went well; more than a thousand are refused; what is not there is gone."""
    for key in ("a", "b/ü", "c&d"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    quiet = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a"}, {"Key": "none"}], "Quiet": True})
    assert "Deleted" not in quiet
    assert "Errors" not in quiet
    loud = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "b/ü"}, {"Key": "c&d"}]})
    assert sorted(one["Key"] for one in loud["Deleted"]) == ["b/ü", "c&d"]
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    many = {"Objects": [{"Key": f"k{n}"} for n in range(1001)]}
    assert refused(s3.delete_objects, Bucket=bucket, Delete=many) == "MalformedXML"


def test_sums_are_checked(s3: Any, bucket: str, refused: Refused) -> None:
    """A wrong one, one of no sense, two kinds at once; nothing is stored."""
    name = {"Bucket": bucket, "Key": "k", "Body": b"data"}
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    right = base64.b64encode(hashlib.sha256(b"data").digest()).decode()
    assert refused(s3.put_object, **name, ChecksumSHA256=wrong) == "BadDigest"
    assert refused(s3.put_object, **name, ChecksumSHA256="nonsense") == "InvalidRequest"
    assert refused(s3.put_object, **name, ContentMD5=base64.b64encode(b"0" * 16).decode()) == "BadDigest"
    assert refused(s3.put_object, **name, ContentMD5="nonsense") == "InvalidDigest"
    assert refused(s3.put_object, **name, ChecksumSHA256=right, ChecksumSHA1="AAAAAAAAAAAAAAAAAAAAAAAAAAA=") \
        == "InvalidRequest"  # fmt: skip
    assert refused(s3.head_object, Bucket=bucket, Key="k") == "404"
    assert s3.put_object(**name, ChecksumSHA256=right)["ChecksumSHA256"] == right


def test_headers_come_back(s3: Any, bucket: str) -> None:
    """What a browser needs, as it was sent; overrides for one answer."""
    sent = {"CacheControl": "max-age=60", "ContentDisposition": 'attachment; filename="a b.txt"',
            "ContentEncoding": "gzip", "ContentLanguage": "de", "ContentType": "text/html; charset=utf-8",
            "Metadata": {"one": "1", "two-three": "a b"}}  # fmt: skip
    s3.put_object(Bucket=bucket, Key="k", Body=b"data", Expires=LATER, **sent)
    head = s3.head_object(Bucket=bucket, Key="k")
    assert {name: head[name] for name in sent} == sent
    assert head["ExpiresString"]
    got = s3.get_object(Bucket=bucket, Key="k", ResponseContentType="x/y", ResponseCacheControl="no-cache",
                        ResponseContentDisposition="inline", ResponseContentEncoding="aaa")  # fmt: skip
    shown = [got[name] for name in ("ContentType", "CacheControl", "ContentDisposition", "ContentEncoding")]
    assert shown == ["x/y", "no-cache", "inline", "aaa"]
    assert s3.put_object(Bucket=bucket, Key="plain", Body=b"")["ETag"] == f'"{hashlib.md5(b"").hexdigest()}"'


def test_a_copy_may_get_another_checksum(s3: Any, bucket: str) -> None:
    """Asked for, it is computed over the bytes, also of an upload in parts; the source's encryption stays."""
    body = b"x" * (5 << 20)
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k", ServerSideEncryption="AES256")["UploadId"]
    parts = [
        {"PartNumber": at, "ETag": s3.upload_part(
            Bucket=bucket, Key="k", UploadId=upload, PartNumber=at, Body=piece)["ETag"]}
        for at, piece in ((1, body), (2, b"end"))
    ]  # fmt: skip
    s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": parts})
    wanted = base64.b64encode(hashlib.sha256(body + b"end").digest()).decode()
    copied = s3.copy_object(
        Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "k"}, ChecksumAlgorithm="SHA256"
    )
    assert copied["CopyObjectResult"]["ChecksumSHA256"] == wanted
    head = s3.head_object(Bucket=bucket, Key="copy", ChecksumMode="ENABLED")
    assert (head["ChecksumSHA256"], head["ServerSideEncryption"]) == (wanted, "AES256")
    assert head["ETag"] == copied["CopyObjectResult"]["ETag"]
    assert s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == body + b"end"


def test_a_conditional_delete_of_nothing_is_no_such_key(s3: Any, bucket: str, refused: Refused) -> None:
    """412 says that it is another one; 404 that there is none. Of many, each hears its own."""
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"x")["ETag"]
    assert refused(s3.delete_object, Bucket=bucket, Key="k", IfMatch='"other"') == "PreconditionFailed"
    done = s3.delete_objects(Bucket=bucket, Delete={"Objects": [
        {"Key": "k", "ETag": '"other"'}, {"Key": "k", "ETag": etag},
    ]})  # fmt: skip
    assert [(entry["Key"], entry["Code"]) for entry in done["Errors"]] == [("k", "PreconditionFailed")]
    assert [entry["Key"] for entry in done["Deleted"]] == ["k"]
    assert refused(s3.delete_object, Bucket=bucket, Key="k", IfMatch="*") == "NoSuchKey"
    s3.delete_object(Bucket=bucket, Key="k")
