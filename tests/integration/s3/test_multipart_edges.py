"""Multipart uploads, the rare ways: what tools meet when they go on, repeat, mix up or give up."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable
from typing import Any

import pytest

MIB = 1 << 20
Refused = Callable[..., str]


def begin(s3: Any, bucket: str, key: str, **asked: Any) -> dict[str, str]:
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key, **asked)["UploadId"]
    return {"Bucket": bucket, "Key": key, "UploadId": upload}


def finish(s3: Any, names: dict[str, str], etags: dict[int, str], **asked: Any) -> Any:
    parts = [{"PartNumber": n, "ETag": etag} for n, etag in etags.items()]
    return s3.complete_multipart_upload(**names, MultipartUpload={"Parts": parts}, **asked)


def test_uploads_are_listed_by_prefixes(s3: Any, bucket: str) -> None:
    """Every key and common prefix once, in order, whatever the page."""
    for key in ("a", "b/1", "b/2", "b/3", "c", "d/1", "d/2", "e"):
        begin(s3, bucket, key)
    for size in (1, 2, 3, 1000):
        keys, prefixes, markers = [], [], {}
        while True:
            page = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/", MaxUploads=size, **markers)
            shown = page.get("Uploads", []), page.get("CommonPrefixes", [])
            assert len(shown[0]) + len(shown[1]) <= size
            keys += [upload["Key"] for upload in shown[0]]
            prefixes += [one["Prefix"] for one in shown[1]]
            if not page["IsTruncated"]:
                break
            markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}
        assert (keys, prefixes) == (["a", "c", "e"], ["b/", "d/"])
    below = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/", Prefix="b/")
    assert [upload["Key"] for upload in below["Uploads"]] == ["b/1", "b/2", "b/3"]


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA256"])
def test_parts_show_their_checksums(s3: Any, bucket: str, algorithm: str) -> None:
    """GetObjectAttributes gives each part's, so that a range can be checked without the whole; a copy keeps them."""
    names = begin(s3, bucket, "k", ChecksumAlgorithm=algorithm)
    pieces = [b"a" * 5 * MIB, b"b" * 9]
    made = [
        s3.upload_part(**names, PartNumber=n, Body=piece, ChecksumAlgorithm=algorithm)
        for n, piece in enumerate(pieces, 1)
    ]
    sums = f"Checksum{algorithm}"
    parts = [{"PartNumber": n, "ETag": one["ETag"], sums: one[sums]} for n, one in enumerate(made, 1)]
    s3.complete_multipart_upload(**names, MultipartUpload={"Parts": parts})
    s3.copy_object(Bucket=bucket, Key="copy", CopySource=f"{bucket}/k")
    for key in ("k", "copy"):
        found = s3.get_object_attributes(Bucket=bucket, Key=key, ObjectAttributes=["ObjectParts", "Checksum"])
        assert [part[sums] for part in found["ObjectParts"]["Parts"]] == [one[sums] for one in made]
        assert found["Checksum"]["ChecksumType"] == "COMPOSITE"


def test_a_part_that_comes_again_replaces_the_first(s3: Any, bucket: str, refused: Refused) -> None:
    """A retry after a lost answer; the ETag of the part that was replaced is refused."""
    names = begin(s3, bucket, "k")
    first = s3.upload_part(**names, PartNumber=1, Body=b"old")["ETag"]
    second = s3.upload_part(**names, PartNumber=1, Body=b"new!")["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": first}]}
    assert refused(s3.complete_multipart_upload, **names, MultipartUpload=parts) == "InvalidPart"
    finish(s3, names, {1: second})
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"new!"


def test_numbers_of_parts_need_not_be_close(s3: Any, bucket: str, refused: Refused) -> None:
    """1 to 10,000 with gaps; nothing outside; the same number twice is an order that cannot be."""
    names = begin(s3, bucket, "k")
    etags = {n: s3.upload_part(**names, PartNumber=n, Body=b"x" * 5 * MIB)["ETag"] for n in (7, 10_000)}
    for n in (0, 10_001):
        assert refused(s3.upload_part, **names, PartNumber=n, Body=b"x") == "InvalidArgument"
    twice = {"Parts": [{"PartNumber": 7, "ETag": etags[7]}] * 2}
    assert refused(s3.complete_multipart_upload, **names, MultipartUpload=twice) == "InvalidPartOrder"
    missing = {"Parts": [{"PartNumber": 7, "ETag": etags[7]}, {"PartNumber": 8, "ETag": etags[7]}]}
    assert refused(s3.complete_multipart_upload, **names, MultipartUpload=missing) == "InvalidPart"
    finish(s3, names, etags)
    assert s3.head_object(Bucket=bucket, Key="k", PartNumber=2)["PartsCount"] == 2
    assert refused(s3.head_object, Bucket=bucket, Key="k", PartNumber=3) == "416"


def test_an_upload_belongs_to_its_key(s3: Any, bucket: str, refused: Refused) -> None:
    """An id with another key, a made-up id, no parts at all, and no bucket."""
    names = begin(s3, bucket, "k")
    other = {**names, "Key": "other"}
    assert refused(s3.upload_part, **other, PartNumber=1, Body=b"x") == "NoSuchUpload"
    assert refused(s3.abort_multipart_upload, **other) == "NoSuchUpload"
    assert refused(s3.abort_multipart_upload, **{**names, "UploadId": "nonsense"}) == "NoSuchUpload"
    assert refused(s3.complete_multipart_upload, **names, MultipartUpload={"Parts": []}) == "MalformedXML"
    assert refused(s3.complete_multipart_upload, **names) in ("InvalidRequest", "MalformedXML")
    assert refused(s3.create_multipart_upload, Bucket="no-such-bucket-here", Key="k") == "NoSuchBucket"
    s3.abort_multipart_upload(**names)
    assert refused(s3.abort_multipart_upload, **names) == "NoSuchUpload"


def test_conditions_on_the_completion(s3: Any, bucket: str, refused: Refused) -> None:
    """Whoever completes first wins; the loser's upload is still there and can be completed or given up."""
    one, two = begin(s3, bucket, "k"), begin(s3, bucket, "k")
    etags = [s3.upload_part(**names, PartNumber=1, Body=body)["ETag"] for names, body in ((one, b"1"), (two, b"2"))]
    whole = finish(s3, one, {1: etags[0]}, IfNoneMatch="*")["ETag"]
    loser = {"Parts": [{"PartNumber": 1, "ETag": etags[1]}]}
    late = {**two, "MultipartUpload": loser}
    assert refused(s3.complete_multipart_upload, **late, IfNoneMatch="*") == "PreconditionFailed"
    assert refused(s3.complete_multipart_upload, **late, IfMatch='"' + "0" * 32 + '"') == "PreconditionFailed"
    finish(s3, two, {1: etags[1]}, IfMatch=whole)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"2"


def test_checksums_of_the_whole_are_compared(s3: Any, bucket: str, refused: Refused) -> None:
    """FULL_OBJECT: the client knows the sum of all bytes beforehand; kinds that do not go together are refused."""
    asked = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}
    names = begin(s3, bucket, "k", **asked)
    pieces = [b"a" * 5 * MIB, b"tail"]
    made = [
        s3.upload_part(**names, PartNumber=n, Body=piece, ChecksumAlgorithm="CRC32")
        for n, piece in enumerate(pieces, 1)
    ]
    parts = [{"PartNumber": n, "ETag": m["ETag"], "ChecksumCRC32": m["ChecksumCRC32"]} for n, m in enumerate(made, 1)]
    whole = base64.b64encode(zlib.crc32(b"".join(pieces)).to_bytes(4, "big")).decode()
    ending = {**names, "MultipartUpload": {"Parts": parts}, "ChecksumType": "FULL_OBJECT"}
    assert refused(s3.complete_multipart_upload, **ending, ChecksumCRC32="AAAAAA==") == "BadDigest"
    done = s3.complete_multipart_upload(**ending, ChecksumCRC32=whole)
    assert (done["ChecksumCRC32"], done["ChecksumType"]) == (whole, "FULL_OBJECT")
    wrong = {"Bucket": bucket, "Key": "w", "ChecksumAlgorithm": "SHA256", "ChecksumType": "FULL_OBJECT"}
    assert refused(s3.create_multipart_upload, **wrong) == "InvalidRequest"
    mixed = begin(s3, bucket, "m", ChecksumAlgorithm="SHA256")
    assert refused(
        s3.upload_part, **mixed, PartNumber=1, Body=b"x", ChecksumAlgorithm="CRC32"
    ) == "InvalidRequest"  # fmt: skip


def test_checksums_of_checksums_are_compared(s3: Any, bucket: str, refused: Refused) -> None:
    """COMPOSITE: the sum of the parts' sums, with their number behind it, as clients send it. It was refused with it.
    Lists say for which checksums an upload was created."""
    names = begin(s3, bucket, "k", ChecksumAlgorithm="SHA256")
    for page in (s3.list_parts(**names), s3.list_multipart_uploads(Bucket=bucket)["Uploads"][0]):
        assert (page["ChecksumAlgorithm"], page["ChecksumType"]) == ("SHA256", "COMPOSITE")
    made = s3.upload_part(**names, PartNumber=1, Body=b"x", ChecksumAlgorithm="SHA256")
    s3.put_object(Bucket=bucket, Key="from", Body=b"x")
    copied = s3.upload_part_copy(**names, PartNumber=2, CopySource=f"{bucket}/from")["CopyPartResult"]
    assert copied["ChecksumSHA256"] == made["ChecksumSHA256"]
    part = {"PartNumber": 1, "ETag": made["ETag"], "ChecksumSHA256": made["ChecksumSHA256"]}
    ending = {**names, "MultipartUpload": {"Parts": [part]}}
    digest = hashlib.sha256(base64.b64decode(made["ChecksumSHA256"])).digest()
    right = base64.b64encode(digest).decode()
    for wrong, code in ((f"{right}-2", "BadDigest"), (f"{made['ChecksumSHA256']}-1", "BadDigest"),
                        (f"{right}-x", "InvalidRequest"), ("bad", "InvalidRequest")):  # fmt: skip
        assert refused(s3.complete_multipart_upload, **ending, ChecksumSHA256=wrong) == code, wrong
    assert s3.complete_multipart_upload(**ending, ChecksumSHA256=f"{right}-1")["ChecksumSHA256"] == f"{right}-1"


def test_parts_copied_by_ranges(s3: Any, bucket: str, refused: Refused) -> None:
    """A range past the end, one of no sense, a source that is not there, conditions on the source."""
    body = bytes(range(256)) * 40
    etag = s3.put_object(Bucket=bucket, Key="from/ä b", Body=body)["ETag"]
    names = begin(s3, bucket, "to")
    copy = {**names, "PartNumber": 1, "CopySource": {"Bucket": bucket, "Key": "from/ä b"}}
    assert refused(s3.upload_part_copy, **copy, CopySourceRange="bytes=0-99999") == "InvalidArgument"
    assert refused(s3.complete_multipart_upload, **names) == "InvalidRequest"       # nothing is named at all
    for wrong in ("bytes=a-b", "0-1", "bytes=5-", "bytes=-5"):
        assert refused(s3.upload_part_copy, **copy, CopySourceRange=wrong) == "InvalidArgument"
    assert refused(s3.upload_part_copy, **{**copy, "CopySource": f"{bucket}/none"}) == "NoSuchKey"
    assert refused(s3.upload_part_copy, **copy, CopySourceIfNoneMatch=etag) == "PreconditionFailed"
    made = s3.upload_part_copy(**copy, CopySourceIfMatch=etag, CopySourceRange="bytes=1000-1999")
    piece = made["CopyPartResult"]["ETag"]
    assert piece == f'"{hashlib.md5(body[1000:2000]).hexdigest()}"'
    finish(s3, names, {1: piece})
    assert s3.get_object(Bucket=bucket, Key="to")["Body"].read() == body[1000:2000]


def test_uploads_of_a_versioned_bucket_make_versions(s3: Any, bucket: str) -> None:
    """The version is made by the completion; what stood there before stays."""
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    before = s3.put_object(Bucket=bucket, Key="k", Body=b"before")["VersionId"]
    names = begin(s3, bucket, "k", Metadata={"m": "u"}, ContentType="text/x", Tagging="a=b")
    etag = s3.upload_part(**names, PartNumber=1, Body=b"whole")["ETag"]
    made = finish(s3, names, {1: etag})["VersionId"]
    listed = s3.list_object_versions(Bucket=bucket)["Versions"]
    assert [version["VersionId"] for version in listed] == [made, before]
    head = s3.head_object(Bucket=bucket, Key="k")
    assert (head["ContentType"], head["VersionId"]) == ("text/x", made)
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [{"Key": "a", "Value": "b"}]
    assert s3.get_object(Bucket=bucket, Key="k", VersionId=before)["Body"].read() == b"before"
