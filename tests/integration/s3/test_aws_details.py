"""What AWS answers in the corners that tools and Ceph's suite look into: ownership, pages of parts, uploads and
versions, kinds of checksums, ranges of copied parts, what strangers may not override."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.integration.s3.conftest import client_of
from tests.integration.s3.test_buckets import anonymous
from tests.kit.cluster import Cluster

Refused = Callable[..., str]
PART_BYTES = 5 << 20
OLD = datetime(2020, 1, 1, tzinfo=UTC)


def owned(kind: str) -> dict[str, Any]:
    return {"Rules": [{"ObjectOwnership": kind}]}


def test_ownership_controls_come_and_go(s3: Any, bucket: str, refused: Refused) -> None:
    """New buckets have them; without, it is as in old buckets; the owner's alone only where nobody else has a grant."""
    shown = s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"]
    assert shown == owned("BucketOwnerEnforced")
    for wrong in ("x", ""):
        asked = {"Bucket": bucket, "OwnershipControls": owned(wrong)}
        assert refused(s3.put_bucket_ownership_controls, **asked) == "MalformedXML"
    s3.delete_bucket_ownership_controls(Bucket=bucket)
    assert refused(s3.get_bucket_ownership_controls, Bucket=bucket) == "OwnershipControlsNotFoundError"
    s3.put_bucket_acl(Bucket=bucket, ACL="public-read")
    enforced = {"Bucket": bucket, "OwnershipControls": owned("BucketOwnerEnforced")}
    assert refused(s3.put_bucket_ownership_controls, **enforced) == "InvalidBucketAclWithObjectOwnership"
    s3.put_bucket_acl(Bucket=bucket, ACL="private")
    s3.put_bucket_ownership_controls(**enforced)
    assert refused(s3.put_bucket_acl, Bucket=bucket, ACL="public-read") == "AccessControlListNotSupported"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"ACL": "public-read"}, "InvalidBucketAclWithObjectOwnership"),
        ({"ACL": "public-read", "ObjectOwnership": "BucketOwnerEnforced"}, "InvalidBucketAclWithObjectOwnership"),
        ({"ACL": "nonsense"}, "InvalidArgument"), ({"ObjectOwnership": "Nobody"}, "InvalidArgument"),
        ({"GrantRead": 'uri="http://acs.amazonaws.com/groups/global/AllUsers"'}, "InvalidBucketAclWithObjectOwnership"),
        ({"ACL": "private", "GrantRead": 'id="x"', "ObjectOwnership": "ObjectWriter"}, "InvalidRequest"),
    ],
)  # fmt: skip
def test_buckets_that_cannot_be_made_so(
    s3: Any, bucket: str, refused: Refused, more: dict[str, Any], code: str
) -> None:
    """Refused as a whole: no bucket is left behind."""
    assert refused(s3.create_bucket, Bucket=f"{bucket}-new", **more) == code
    assert refused(s3.head_bucket, Bucket=f"{bucket}-new") == "404"


@pytest.fixture
def upload(s3: Any, bucket: str) -> dict[str, Any]:
    """An upload with three parts, the last one small; as arguments."""
    named = {"Bucket": bucket, "Key": "m"}
    named["UploadId"] = s3.create_multipart_upload(**named)["UploadId"]
    for number, size in ((1, PART_BYTES), (2, PART_BYTES), (5, 10)):
        s3.upload_part(PartNumber=number, Body=b"%d" % number * size, **named)
    return named


def parts_of(s3: Any, upload: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"PartNumber": p["PartNumber"], "ETag": p["ETag"]} for p in s3.list_parts(**upload)["Parts"]]


def test_pages_of_parts(s3: Any, upload: dict[str, Any], refused: Refused) -> None:
    """By number, from any number on; bounds as those of all lists."""
    page = s3.list_parts(MaxParts=2, **upload)
    assert ([p["PartNumber"] for p in page["Parts"]], page["IsTruncated"], page["NextPartNumberMarker"]) == (
        [1, 2], True, 2
    )  # fmt: skip
    page = s3.list_parts(PartNumberMarker=3, **upload)
    assert ([p["PartNumber"] for p in page["Parts"]], page["IsTruncated"], page["PartNumberMarker"]) == ([5], False, 3)
    assert s3.list_parts(PartNumberMarker=5, **upload).get("Parts") is None
    page = s3.list_parts(MaxParts=0, **upload)
    assert (page.get("Parts"), page["IsTruncated"]) == (None, False)
    assert s3.list_parts(MaxParts=5000, **upload)["MaxParts"] == 1000
    assert refused(s3.list_parts, MaxParts=-1, **upload) == "InvalidArgument"
    assert refused(s3.list_parts, **{**upload, "Key": "other"}) == "NoSuchUpload"
    s3.abort_multipart_upload(**upload)
    assert refused(s3.list_parts, **upload) == "NoSuchUpload"
    assert refused(s3.abort_multipart_upload, **upload) == "NoSuchUpload"


def test_pages_of_uploads_with_prefixes(s3: Any, bucket: str, refused: Refused) -> None:
    """A common prefix ends a page and begins none; an upload marker without a key means nothing."""
    for key in ("a/1", "a/2", "b/1", "c"):
        s3.create_multipart_upload(Bucket=bucket, Key=key)

    def page(**more: Any) -> tuple[list[str], list[str], bool, str]:
        found = s3.list_multipart_uploads(Bucket=bucket, **more)
        return (
            [p["Prefix"] for p in found.get("CommonPrefixes", [])], [u["Key"] for u in found.get("Uploads", [])],
            found["IsTruncated"], found.get("NextKeyMarker", ""),
        )  # fmt: skip

    assert page(Delimiter="/") == (["a/", "b/"], ["c"], False, "")
    assert page(Delimiter="/", MaxUploads=1) == (["a/"], [], True, "a/")
    assert page(Delimiter="/", KeyMarker="a/") == (["b/"], ["c"], False, "")
    assert page(Prefix="a/")[:2] == page(Prefix="a/", Delimiter="/")[:2] == ([], ["a/1", "a/2"])
    assert page(UploadIdMarker="zzz")[1] == ["a/1", "a/2", "b/1", "c"]
    assert refused(s3.list_multipart_uploads, Bucket=bucket, KeyMarker="a", UploadIdMarker="zzz") == "NoSuchUpload"
    assert refused(s3.list_multipart_uploads, Bucket=bucket, MaxUploads=-1) == "InvalidArgument"
    assert refused(s3.list_multipart_uploads, Bucket=bucket, EncodingType="x") == "InvalidArgument"


def test_pages_of_versions_with_prefixes(s3: Any, bucket: str, refused: Refused) -> None:
    """All versions below a common prefix are one entry; markers of deletes are entries too."""
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for key in ("a/1", "a/1", "a/2", "b", "c/1"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    s3.delete_object(Bucket=bucket, Key="b")

    def page(**more: Any) -> tuple[list[str], list[str], list[str], bool, str]:
        found = s3.list_object_versions(Bucket=bucket, **more)
        return (
            [p["Prefix"] for p in found.get("CommonPrefixes", [])], [v["Key"] for v in found.get("Versions", [])],
            [m["Key"] for m in found.get("DeleteMarkers", [])], found["IsTruncated"], found.get("NextKeyMarker", ""),
        )  # fmt: skip

    assert page(Delimiter="/") == (["a/", "c/"], ["b"], ["b"], False, "")
    assert page(Delimiter="/", MaxKeys=1) == (["a/"], [], [], True, "a/")
    assert page(Delimiter="/", KeyMarker="a/") == (["c/"], ["b"], ["b"], False, "")
    assert page(Delimiter="/", Prefix="a/")[1] == ["a/1", "a/1", "a/2"]
    assert page(MaxKeys=0)[1:4] == ([], [], False)
    for wrong in ({"EncodingType": "x"}, {"VersionIdMarker": "x"}, {"MaxKeys": -1}):
        assert refused(s3.list_object_versions, Bucket=bucket, **wrong) == "InvalidArgument", wrong


def test_attributes_and_parts_of_what_was_completed(s3: Any, upload: dict[str, Any], refused: Refused) -> None:
    """The parts are numbered from one, as they stand in the object; what has none is one part."""
    named = {"Bucket": upload["Bucket"], "Key": upload["Key"]}
    s3.complete_multipart_upload(MultipartUpload={"Parts": parts_of(s3, upload)}, **upload)
    found = s3.get_object_attributes(ObjectAttributes=["ETag", "ObjectParts", "ObjectSize", "StorageClass"], **named)
    assert (found["ObjectParts"]["TotalPartsCount"], found["ObjectSize"]) == (3, 2 * PART_BYTES + 10)
    assert (found["ETag"][-2:], found["StorageClass"]) == ("-3", "STANDARD")
    second = s3.get_object(PartNumber=2, **named)
    assert (second["ContentLength"], second["PartsCount"], second["ContentRange"]) == (
        PART_BYTES, 3, f"bytes {PART_BYTES}-{2 * PART_BYTES - 1}/{2 * PART_BYTES + 10}",
    )  # fmt: skip
    assert refused(s3.get_object, PartNumber=4, **named) == "InvalidPartNumber"
    assert refused(s3.get_object, PartNumber=1, Range="bytes=0-1", **named) == "InvalidRequest"
    plain = {"Bucket": upload["Bucket"], "Key": "plain"}
    s3.put_object(Body=b"abc", **plain)
    assert s3.get_object(PartNumber=1, **plain)["ContentLength"] == 3
    assert refused(s3.get_object, PartNumber=2, **plain) == "InvalidPartNumber"
    found = s3.get_object_attributes(ObjectAttributes=["ETag", "ObjectParts"], **plain)
    assert (found["ETag"], "ObjectParts" in found) == (hashlib.md5(b"abc").hexdigest(), False)
    assert refused(s3.get_object_attributes, ObjectAttributes=["Nope"], **plain) == "InvalidArgument"
    missing = {**plain, "Key": "missing"}
    assert refused(s3.get_object_attributes, ObjectAttributes=["ETag"], **missing) == "NoSuchKey"


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [("SHA1", "FULL_OBJECT"), ("SHA256", "FULL_OBJECT"), ("CRC64NVME", "COMPOSITE"), (None, "COMPOSITE"),
     (None, "FULL_OBJECT"), ("CRC32", "SOME"), ("CRC99", None)],
)  # fmt: skip
def test_kinds_of_checksums_that_cannot_be(
    s3: Any, bucket: str, refused: Refused, algorithm: str | None, kind: str | None
) -> None:
    """Sums of the whole are those that can be put together from parts; a kind needs an algorithm."""
    asked = {name: v for name, v in (("ChecksumAlgorithm", algorithm), ("ChecksumType", kind)) if v is not None}
    assert refused(s3.create_multipart_upload, Bucket=bucket, Key="k", **asked) == "InvalidRequest"


@pytest.mark.parametrize("kind", ["FULL_OBJECT", "COMPOSITE"])
def test_wrong_words_of_a_completion_are_refused(s3: Any, bucket: str, refused: Refused, kind: str) -> None:
    """Sums, kind, size: each compared; the upload stays and is completed by the right ones."""
    begun = s3.create_multipart_upload(Bucket=bucket, Key="k", ChecksumAlgorithm="CRC32", ChecksumType=kind)
    assert (begun["ChecksumAlgorithm"], begun["ChecksumType"]) == ("CRC32", kind)
    named = {"Bucket": bucket, "Key": "k", "UploadId": begun["UploadId"]}
    part = s3.upload_part(PartNumber=1, Body=b"abc", ChecksumAlgorithm="CRC32", **named)
    assert refused(s3.upload_part, PartNumber=2, Body=b"", ChecksumAlgorithm="SHA256", **named) == "InvalidRequest"
    right = {"PartNumber": 1, "ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]}
    other = "COMPOSITE" if kind == "FULL_OBJECT" else "FULL_OBJECT"
    for wrong, code in (
        ({"MultipartUpload": {"Parts": [{**right, "ChecksumCRC32": "AAAAAA=="}]}}, "InvalidPart"),
        ({"MultipartUpload": {"Parts": [{**right, "ETag": '"0"'}]}}, "InvalidPart"),
        ({"MultipartUpload": {"Parts": []}}, "MalformedXML"), ({"ChecksumCRC32": "AAAAAA=="}, "BadDigest"),
        ({"ChecksumType": other}, "InvalidRequest"), ({"MpuObjectSize": 4}, "InvalidRequest"),
        ({"IfMatch": '"x"'}, "NoSuchKey"),
        *[({"MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}}, "InvalidRequest")]
        * (kind == "COMPOSITE"),
    ):  # fmt: skip
        asked = {"MultipartUpload": {"Parts": [right]}, **wrong}
        assert refused(s3.complete_multipart_upload, **asked, **named) == code, wrong
    s3.complete_multipart_upload(
        MultipartUpload={"Parts": [right]}, ChecksumType=kind, MpuObjectSize=3, IfNoneMatch="*", **named
    )
    assert s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")["ChecksumType"] == kind


def test_ranges_and_conditions_of_copied_parts(s3: Any, bucket: str, refused: Refused) -> None:
    """Only bytes=FIRST-LAST within the source; the source's conditions as for whole copies."""
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"abc")["ETag"]
    asked = {"Bucket": bucket, "Key": "m", "PartNumber": 1, "CopySource": {"Bucket": bucket, "Key": "k"}}
    asked["UploadId"] = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    for wrong in ("0-1", "bytes=0-", "bytes=-1", "bytes=2-1", "bytes=hello", "bytes=0-bar", "bytes=0-1,2-2"):
        assert refused(s3.upload_part_copy, CopySourceRange=wrong, **asked) == "InvalidArgument", wrong
    for behind in ("bytes=0-3", "bytes=3-3"):
        assert refused(s3.upload_part_copy, CopySourceRange=behind, **asked) in ("InvalidRange", "InvalidArgument")
    for failing in ({"CopySourceIfMatch": '"x"'}, {"CopySourceIfNoneMatch": etag},
                    {"CopySourceIfUnmodifiedSince": OLD}):  # fmt: skip
        assert refused(s3.upload_part_copy, **failing, **asked) == "PreconditionFailed", failing
    for number in (0, 10_001):
        assert refused(s3.upload_part_copy, **{**asked, "PartNumber": number}) == "InvalidArgument"
    for holding in ({"CopySourceIfMatch": etag}, {"CopySourceIfModifiedSince": OLD}, {"CopySourceRange": "bytes=0-2"}):
        assert s3.upload_part_copy(**holding, **asked)["CopyPartResult"]["ETag"] == etag


@pytest.mark.parametrize(
    "name", ["type", "language", "expires", "cache-control", "content-disposition", "content-encoding"]
)
def test_strangers_override_no_headers(
    s3: Any, bucket: str, running: Cluster, name: str
) -> None:
    """Else anybody could make a public object a page of script under the store's address."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Statement": [statement]}))
    assert anonymous(running, "GET", f"/{bucket}/k")[0] == 200
    override = f"response-{name if '-' in name or name == 'expires' else 'content-' + name}"
    status, body = anonymous(running, "GET", f"/{bucket}/k?{override}=text")[:2]
    assert (status, b"InvalidRequest" in body) == (400, True)


def test_deletes_on_conditions(s3: Any, bucket: str, refused: Refused) -> None:
    """One by one and of many at once: what fails its condition stays, the others go."""
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"a")["ETag"]
    assert refused(s3.delete_object, Bucket=bucket, Key="k", IfMatch='"x"') == "PreconditionFailed"
    s3.put_object(Bucket=bucket, Key="l", Body=b"a")
    done = s3.delete_objects(Bucket=bucket, Delete={"Objects": [
        {"Key": "k", "ETag": '"x"'}, {"Key": "k", "Size": 1}, {"Key": "l", "ETag": etag}, {"Key": "never"},
    ]})  # fmt: skip
    assert [(e["Key"], e["Code"]) for e in done["Errors"]] == [("k", "PreconditionFailed"), ("k", "NotImplemented")]
    assert {entry["Key"] for entry in done["Deleted"]} == {"l", "never"}
    s3.delete_object(Bucket=bucket, Key="k", IfMatch="*")
    assert refused(s3.head_object, Bucket=bucket, Key="k") == "404"
    assert refused(s3.delete_object, Bucket=bucket, Key="k", IfMatch="*") == "NoSuchKey"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"ContentMD5": "AAAA"}, "InvalidDigest"), ({"ContentMD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, "BadDigest"),
        ({"Metadata": {"a": "x" * 2100}}, "MetadataTooLarge"), ({"Key": "k" * 1025}, "KeyTooLongError"),
        ({"StorageClass": "NOPE"}, "InvalidStorageClass"), ({"ACL": "public-read"}, "AccessControlListNotSupported"),
        ({"IfMatch": '"x"'}, "NoSuchKey"), ({"ServerSideEncryption": "rot13"}, "InvalidArgument"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)  # fmt: skip
def test_objects_that_are_not_taken(
    s3: Any, bucket: str, refused: Refused, more: dict[str, Any], code: str
) -> None:
    """Each with AWS's code; nothing is stored."""
    assert refused(s3.put_object, **{"Bucket": bucket, "Key": "k", "Body": b"x", **more}) == code
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


@pytest.mark.parametrize(("algorithm", "kind"), [("SHA256", "COMPOSITE"), ("CRC64NVME", "FULL_OBJECT")])
def test_a_read_of_one_part_brings_the_checksum_of_the_part(s3: Any, bucket: str, algorithm: str, kind: str) -> None:
    """SDKs check what they read by part number against it; without being asked, nothing of it is said."""
    named = {"Bucket": bucket, "Key": "m"}
    begun = s3.create_multipart_upload(**named, ChecksumAlgorithm=algorithm, ChecksumType=kind)
    named["UploadId"] = begun["UploadId"]
    field = f"Checksum{algorithm}"
    parts = []
    for number, body in ((1, b"1" * PART_BYTES), (2, b"tail")):
        answer = s3.upload_part(PartNumber=number, Body=body, ChecksumAlgorithm=algorithm, **named)
        parts.append({"PartNumber": number, "ETag": answer["ETag"], field: answer[field]})
    s3.complete_multipart_upload(MultipartUpload={"Parts": parts}, **named)
    for part in parts:
        asked = {"Bucket": bucket, "Key": "m", "PartNumber": part["PartNumber"]}
        shown = s3.head_object(ChecksumMode="ENABLED", **asked)
        assert (shown[field], shown["ChecksumType"], shown["PartsCount"]) == (part[field], kind, 2)
        assert field not in s3.head_object(**asked)
        s3.get_object(ChecksumMode="ENABLED", **asked)["Body"].read()


def test_whose_an_upload_is(s3: Any, bucket: str, refused: Refused) -> None:
    """Where the bucket's owner owns all, of uploads too; the list that rclone names unasked changes nothing."""
    owner = s3.list_buckets()["Owner"]["ID"]
    named = {"Bucket": bucket, "Key": "m"}
    upload = s3.create_multipart_upload(**named, ACL="bucket-owner-full-control")["UploadId"]
    shown = s3.list_parts(**named, UploadId=upload)
    assert (shown["Owner"]["ID"], shown["Initiator"]["ID"]) == (owner, owner)
    assert refused(s3.put_object, **named, Body=b"", ACL="public-read") == "AccessControlListNotSupported"
    s3.put_object(**named, Body=b"", ACL="private")
    assert s3.get_object_acl(**named)["Owner"]["ID"] == owner


def test_settings_that_are_not_quite_right(s3: Any, bucket: str, refused: Refused) -> None:
    """Each with the code that AWS gives; nothing of it is kept."""
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    wrong = {"Bucket": bucket, "VersioningConfiguration": {"Status": "disabled"}}
    assert refused(s3.put_bucket_versioning, **wrong) == "MalformedXML"
    wrong["VersioningConfiguration"] = {}
    assert refused(s3.put_bucket_versioning, **wrong) == "IllegalVersioningConfigurationException"
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    plain: dict[str, Any] = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    named = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256", "KMSMasterKeyID": "up"}}
    for rules, code in (([], "MalformedXML"), ([plain, plain], "MalformedXML"), ([named], "InvalidArgument")):
        asked = {"Bucket": bucket, "ServerSideEncryptionConfiguration": {"Rules": rules}}
        assert refused(s3.put_bucket_encryption, **asked) == code, rules
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    gone = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k", "VersionId": "no-such-id"}]})
    assert [error["Code"] for error in gone["Errors"]] == ["NoSuchVersion"]


def test_a_bucket_must_be_whose_the_client_expects(s3: Any, bucket: str, refused: Refused) -> None:
    """x-amz-expected-bucket-owner, for sources of copies too: a name may have come to somebody else meanwhile."""
    owner, other = s3.get_bucket_acl(Bucket=bucket)["Owner"]["ID"], "111122223333"
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", ExpectedBucketOwner=owner)
    assert refused(s3.head_bucket, Bucket=bucket, ExpectedBucketOwner=other) == "403"
    for call, more in ((s3.get_object, {"Key": "k"}), (s3.put_object, {"Key": "k", "Body": b"y"}),
                       (s3.delete_object, {"Key": "k"}), (s3.list_objects_v2, {}), (s3.get_bucket_acl, {}),
                       (s3.create_multipart_upload, {"Key": "k"})):  # fmt: skip
        assert refused(call, Bucket=bucket, ExpectedBucketOwner=other, **more) == "AccessDenied"
    copy = {"Bucket": bucket, "Key": "c", "CopySource": {"Bucket": bucket, "Key": "k"}, "ExpectedBucketOwner": owner}
    assert refused(s3.copy_object, **copy, ExpectedSourceBucketOwner=other) == "AccessDenied"
    s3.copy_object(**copy, ExpectedSourceBucketOwner=owner)
    assert s3.get_object(Bucket=bucket, Key="c")["Body"].read() == b"x"


def test_who_pays_is_told_so(s3: Any, bucket: str, running: Cluster) -> None:
    """x-amz-request-charged for strangers who said that they would, not for the owner."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    statement = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:PutObject"],
                 "Resource": f"arn:aws:s3:::{bucket}/*"}  # fmt: skip
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Statement": [statement]}))
    s3.put_bucket_request_payment(Bucket=bucket, RequestPaymentConfiguration={"Payer": "Requester"})
    stranger = client_of(running, "CONFIGURED1", "configured-secret")
    named = {"Bucket": bucket, "Key": "k", "RequestPayer": "requester"}
    assert stranger.get_object(**named)["RequestCharged"] == "requester"
    assert stranger.put_object(**named, Body=b"y")["RequestCharged"] == "requester"
    assert "RequestCharged" not in s3.get_object(Bucket=bucket, Key="k")


def test_a_copy_of_a_delete_marker_is_no_request(s3: Any, bucket: str, refused: Refused) -> None:
    """A read of it by version is a method that is not allowed; a copy names what cannot be copied."""
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    marker = s3.delete_object(Bucket=bucket, Key="k")["VersionId"]
    source = {"Bucket": bucket, "Key": "k", "VersionId": marker}
    assert refused(s3.copy_object, Bucket=bucket, Key="c", CopySource=source) == "InvalidRequest"


def test_buckets_are_listed_with_their_regions(s3: Any, bucket: str) -> None:
    """And by region: that of a bucket without a location constraint is the default one."""
    named = f"{bucket}-far"
    s3.create_bucket(Bucket=named, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    shown = {b["Name"]: b["BucketRegion"] for b in s3.list_buckets(Prefix=bucket)["Buckets"]}
    assert shown == {bucket: "us-east-1", named: "eu-west-1"}
    far = s3.list_buckets(Prefix=bucket, BucketRegion="eu-west-1")["Buckets"]
    assert [b["Name"] for b in far] == [named]


def _with_query(query: str) -> Callable[..., None]:
    def change(params: dict[str, Any], **_: Any) -> None:
        params["url"] += "?" + query

    return change


def _with_chunks(request: Any, **_: Any) -> None:
    request.headers.add_header("Transfer-Encoding", "chunked")


def test_what_is_not_supported_does_nothing_else(
    s3: Any, bucket: str, running: Cluster, refused: Refused
) -> None:
    """Each was taken for the operation on the whole: objects were deleted, replaced or emptied, the bucket removed."""
    for kind in ("metrics", "inventory", "analytics", "intelligent_tiering"):
        call = getattr(s3, f"delete_bucket_{kind}_configuration")
        assert refused(call, Bucket=bucket, Id="x") == "NotImplemented"
    s3.put_object(Bucket=bucket, Key="k", Body=b"kept")
    assert refused(s3.rename_object, Bucket=bucket, Key="k", RenameSource="other") == "NotImplemented"
    asked = {"Bucket": bucket, "Key": "k", "Body": b"tail"}
    assert refused(s3.put_object, **asked, WriteOffsetBytes=4) == "NotImplemented"
    assert refused(s3.put_object, **asked, ChecksumXXHASH64="AAAAAAAAAAA=") == "NotImplemented"
    assert refused(s3.put_object, **asked, WebsiteRedirectLocation="ftp:x") == "InvalidRedirectLocation"
    for query, code in (("versionId=null", "InvalidArgument"), ("partNumber=1", "InvalidArgument")):
        other = client_of(running)
        other.meta.events.register("before-call.s3.PutObject", _with_query(query))
        assert refused(other.put_object, **asked) == code, query
    other = client_of(running, request_checksum_calculation="when_required")
    other.meta.events.register_first("before-sign.s3.PutObject", _with_chunks)
    assert refused(other.put_object, **asked) == "NotImplemented"
    assert refused(s3.get_object, Bucket=bucket, Key="k", PartNumber=10_001) == "InvalidArgument"
    assert refused(s3.delete_object_annotation, Bucket=bucket, Key="k", AnnotationName="a") == "NotImplemented"
    assert refused(
        s3.put_object_annotation, Bucket=bucket, Key="k", AnnotationName="a", AnnotationPayload=b"x"
    ) == "NotImplemented"  # fmt: skip
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"kept"
