"""Lifecycle over S3: rules as they were set, and what they do to a bucket whose days are short."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.kit.cluster import wait_until

Refused = Callable[..., str]


def keys_of(s3: Any, bucket: str) -> set[str]:
    return {entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", [])}


def versions_of(s3: Any, bucket: str) -> list[tuple[str, str]]:
    page = s3.list_object_versions(Bucket=bucket)
    return [("version", v["VersionId"]) for v in page.get("Versions", [])] + [
        ("marker", m["VersionId"]) for m in page.get("DeleteMarkers", [])
    ]


def rules(*made: dict[str, Any]) -> dict[str, Any]:
    return {"Rules": [{"ID": f"rule{i}", "Status": "Enabled", **rule} for i, rule in enumerate(made)]}


def move(storage_class: str, **when: Any) -> dict[str, Any]:
    return {"StorageClass": storage_class, **(when or {"Days": 60})}


#: What would do something else than it says: days and dates in one rule, moves behind the end or to where all begin.
RULES_THAT_CANNOT_BE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"Expiration": {"Date": datetime(2040, 1, 1, tzinfo=UTC)}, "Transitions": [move("GLACIER")]}, "InvalidRequest"),
    ({"Expiration": {"Days": 60}, "Transitions": [move("GLACIER")]}, "InvalidArgument"),
    ({"Expiration": {"Date": datetime(2040, 1, 1, tzinfo=UTC)},
      "Transitions": [move("GLACIER", Date=datetime(2041, 1, 1, tzinfo=UTC))]}, "InvalidArgument"),
    ({"Transitions": [move("GLACIER"), move("GLACIER", Days=90)]}, "InvalidRequest"),
    ({"Transitions": [move("STANDARD")]}, "MalformedXML"),
    ({"NoncurrentVersionTransitions": [move("GLACIER", NoncurrentDays=5)],
      "NoncurrentVersionExpiration": {"NoncurrentDays": 5}}, "InvalidArgument"),
    ({"NoncurrentVersionExpiration": {"NoncurrentDays": 1, "NewerNoncurrentVersions": 101}}, "InvalidArgument"),
)  # fmt: skip


def test_an_upload_says_when_it_will_be_given_up(s3: Any, bucket: str) -> None:
    """x-amz-abort-date and -rule-id, of the rule that ends it first; none where no rule does."""
    made = rules(*(
        {"Filter": {"Prefix": prefix}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": days}}
        for prefix, days in (("a", 9), ("ab", 2))
    ))  # fmt: skip
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=made)
    for key, rule in (("a1", "rule0"), ("ab1", "rule1"), ("c", None)):
        begun = s3.create_multipart_upload(Bucket=bucket, Key=key)
        listed = s3.list_parts(Bucket=bucket, Key=key, UploadId=begun["UploadId"])
        assert [shown.get("AbortRuleId") for shown in (begun, listed)] == [rule, rule]
        assert listed.get("AbortDate") == begun.get("AbortDate")


def test_lifecycle_rules_round_trip(s3: Any, bucket: str, refused: Refused) -> None:
    """What is set is what is got, in every form of filter and action; nonsense has AWS's codes."""
    assert refused(s3.get_bucket_lifecycle_configuration, Bucket=bucket) == "NoSuchLifecycleConfiguration"
    tag = {"Key": "a", "Value": "b"}
    wanted = rules(
        {"Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 30},
         "Transitions": [{"Days": 10, "StorageClass": "STANDARD_IA"}]},
        {"Filter": {"Tag": tag}, "Expiration": {"Date": datetime(2040, 1, 1, tzinfo=UTC)}},
        {"Filter": {"And": {"Prefix": "x", "Tags": [tag], "ObjectSizeGreaterThan": 5, "ObjectSizeLessThan": 10}},
         "NoncurrentVersionExpiration": {"NoncurrentDays": 3, "NewerNoncurrentVersions": 2}},
        {"Filter": {"Prefix": ""}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
         "Expiration": {"ExpiredObjectDeleteMarker": True}},
        {"Prefix": "old/", "Expiration": {"Days": 1}, "Status": "Disabled"},
    )  # fmt: skip
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=wanted)
    assert s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"] == wanted["Rules"]
    for wrong, code in (
        ({"Filter": {"Prefix": ""}, "Expiration": {"Days": 0}}, "InvalidArgument"),
        ({"Filter": {"Prefix": ""}, "Expiration": {"Days": 1}, "Status": "enabled"}, "MalformedXML"),
        ({"Filter": {"Prefix": ""}, "Expiration": {"Days": 1}, "ID": "a" * 256}, "InvalidArgument"),
        ({"Filter": {"Prefix": ""}, "Expiration": {"Date": datetime(2040, 1, 1, 5, tzinfo=UTC)}}, "InvalidArgument"),
        ({"Filter": {"Prefix": ""}, "Expiration": {}}, "MalformedXML"),
        ({"Filter": {"And": {"Prefix": "x"}}, "Expiration": {"Days": 1}}, "MalformedXML"),
        ({"Filter": {"Prefix": "x", "And": {"Prefix": "x", "Tags": [tag]}}, "Expiration": {"Days": 1}}, "MalformedXML"),
        ({"Filter": {"Prefix": ""}}, "InvalidRequest"), ({"Expiration": {"Days": 1}}, "MalformedXML"),
    ):  # fmt: skip
        assert refused(
            s3.put_bucket_lifecycle_configuration, Bucket=bucket, LifecycleConfiguration=rules(wrong)
        ) == code, wrong  # fmt: skip
    for wrong, code in RULES_THAT_CANNOT_BE:
        asked = {"Bucket": bucket, "LifecycleConfiguration": rules({"Filter": {"Prefix": ""}, **wrong})}
        assert refused(s3.put_bucket_lifecycle_configuration, **asked) == code, wrong
    same = {"Rules": [{"ID": "a", "Status": "Enabled", "Prefix": p, "Expiration": {"Days": 1}} for p in "xy"]}
    assert refused(s3.put_bucket_lifecycle_configuration, Bucket=bucket, LifecycleConfiguration=same) == (
        "InvalidArgument"
    )
    put = s3.put_object(Bucket=bucket, Key="logs/1", Body=b"")
    assert 'rule-id="rule0"' in put["Expiration"]
    shown = s3.head_object(Bucket=bucket, Key="logs/1")["Expiration"]
    at = datetime.strptime(shown.split('"')[1], "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    assert timedelta(days=29.9) < at - datetime.now(UTC) <= timedelta(days=31)
    s3.delete_bucket_lifecycle(Bucket=bucket)
    assert refused(s3.get_bucket_lifecycle_configuration, Bucket=bucket) == "NoSuchLifecycleConfiguration"
    assert "Expiration" not in s3.head_object(Bucket=bucket, Key="logs/1")


def test_objects_expire_by_prefix_tag_and_size(s3: Any, bucket: str) -> None:
    """Only what all filters of a rule match goes; a disabled rule does nothing; a date in the past is due at once."""
    for key in ("logs/a", "keep/a", "off/a", "past/a"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"12345")
    s3.put_object(Bucket=bucket, Key="t/gone", Body=b"", Tagging="temporary=yes")
    s3.put_object(Bucket=bucket, Key="t/kept", Body=b"", Tagging="temporary=no")
    s3.put_object(Bucket=bucket, Key="s/large", Body=b"x" * 100)
    s3.put_object(Bucket=bucket, Key="s/small", Body=b"x" * 10)
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules(
        {"Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 1}},
        {"Filter": {"Prefix": "keep/"}, "Expiration": {"Days": 1000}},
        {"Filter": {"Prefix": "off/"}, "Expiration": {"Days": 1}, "Status": "Disabled"},
        {"Filter": {"Prefix": "past/"}, "Expiration": {"Date": datetime(2020, 1, 1, tzinfo=UTC)}},
        {"Filter": {"And": {"Prefix": "t/", "Tags": [{"Key": "temporary", "Value": "yes"}]}},
         "Expiration": {"Days": 1}},
        {"Filter": {"And": {"Prefix": "s/", "ObjectSizeGreaterThan": 50}}, "Expiration": {"Days": 1}},
    ))  # fmt: skip
    left = {"keep/a", "off/a", "t/kept", "s/small"}
    wait_until(lambda: keys_of(s3, bucket) == left, seconds=30, what="expiry of what the rules name, and no more")


def test_noncurrent_versions_and_markers(s3: Any, bucket: str) -> None:
    """A current version becomes a marker, old ones go but for those that are kept, a lone marker goes."""
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    made = [s3.put_object(Bucket=bucket, Key="k", Body=b"%d" % i)["VersionId"] for i in range(5)]
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules(
        {"Filter": {"Prefix": ""},
         "NoncurrentVersionExpiration": {"NoncurrentDays": 1, "NewerNoncurrentVersions": 2}},
    ))  # fmt: skip
    kept = [("version", v) for v in (made[4], made[3], made[2])]
    wait_until(lambda: versions_of(s3, bucket) == kept, seconds=30, what="the two oldest versions gone")
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules(
        {"Filter": {"Prefix": ""}, "Expiration": {"Days": 1}, "NoncurrentVersionExpiration": {"NoncurrentDays": 2}},
    ))  # fmt: skip
    wait_until(lambda: not versions_of(s3, bucket), seconds=40, what="all versions and the marker gone")


def test_old_uploads_are_given_up_and_locked_versions_stay(s3: Any, bucket: str) -> None:
    """Uploads that nobody completes go with their parts; object lock is stronger than a rule; classes change."""
    begun = s3.create_multipart_upload(Bucket=bucket, Key="never")["UploadId"]
    s3.upload_part(Bucket=bucket, Key="never", UploadId=begun, PartNumber=1, Body=b"part")
    s3.put_object(Bucket=bucket, Key="cold", Body=b"x")
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules(
        {"Filter": {"Prefix": ""}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
         "Transitions": [{"Days": 1, "StorageClass": "GLACIER_IR"}]},
    ))  # fmt: skip
    vault = f"{bucket}-vault"
    s3.create_bucket(Bucket=vault, ObjectLockEnabledForBucket=True)
    held = s3.put_object(Bucket=vault, Key="k", Body=b"x", ObjectLockLegalHoldStatus="ON")["VersionId"]
    s3.put_object(Bucket=vault, Key="free", Body=b"x")
    s3.put_bucket_lifecycle_configuration(Bucket=vault, LifecycleConfiguration=rules(
        {"Filter": {"Prefix": ""}, "Expiration": {"Days": 1}, "NoncurrentVersionExpiration": {"NoncurrentDays": 1}},
    ))  # fmt: skip
    wait_until(lambda: "Uploads" not in s3.list_multipart_uploads(Bucket=bucket), seconds=30, what="upload given up")
    wait_until(
        lambda: s3.head_object(Bucket=bucket, Key="cold").get("StorageClass") == "GLACIER_IR", seconds=30,
        what="change of class",
    )  # fmt: skip

    def only_the_held_one() -> bool:
        page = s3.list_object_versions(Bucket=vault)
        return {v["Key"] for v in page.get("Versions", [])} == {"k"}

    wait_until(only_the_held_one, seconds=40, what="everything but the held version gone")
    assert s3.get_object(Bucket=vault, Key="k", VersionId=held)["Body"].read() == b"x"


def test_old_versions_change_their_class(s3: Any, bucket: str) -> None:
    """Noncurrent versions move by rules of their own, but for the newest of them that the rule keeps; the current one
    stays as it is, whatever class it was put with, and no byte changes."""
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    made = [s3.put_object(Bucket=bucket, Key="k", Body=b"%d" % i, Tagging=f"n={i}")["VersionId"] for i in range(4)]
    other = [s3.put_object(Bucket=bucket, Key="other", Body=b"x")["VersionId"] for _ in range(2)]
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules(
        {"Filter": {"Prefix": "k"}, "NoncurrentVersionTransitions": [
            {"NoncurrentDays": 1, "StorageClass": "GLACIER_IR", "NewerNoncurrentVersions": 1}]},
    ))  # fmt: skip

    def classes() -> dict[str, str]:
        return {v["VersionId"]: v["StorageClass"] for v in s3.list_object_versions(Bucket=bucket)["Versions"]}

    cold = dict.fromkeys(made[:2], "GLACIER_IR")
    wanted = {**dict.fromkeys([*made[2:], *other], "STANDARD"), **cold}
    wait_until(lambda: classes() == wanted, seconds=60, what=lambda: f"{wanted}, not {classes()}")
    for place, version in enumerate(made):
        found = s3.get_object(Bucket=bucket, Key="k", VersionId=version)
        assert (found["Body"].read(), found.get("StorageClass")) == (b"%d" % place, cold.get(version))
        tags = s3.get_object_tagging(Bucket=bucket, Key="k", VersionId=version)["TagSet"]
        assert tags == [{"Key": "n", "Value": str(place)}]
    assert s3.head_object(Bucket=bucket, Key="k")["VersionId"] == made[-1]


def test_filters_hold_for_old_versions_and_markers_alone(s3: Any, bucket: str) -> None:
    """Prefix, tags and both sizes of an And must all match, for noncurrent versions too; a rule for markers takes those
    that hide nothing, and no others."""
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    made = {}
    for key, size, tags in (
        ("p/fits", 60, "a=1&b=2"), ("p/small", 50, "a=1&b=2"), ("p/large", 70, "a=1&b=2"), ("p/tag", 60, "a=1"),
        ("q/prefix", 60, "a=1&b=2"),
    ):  # fmt: skip
        made[key] = s3.put_object(Bucket=bucket, Key=key, Body=b"x" * size, Tagging=tags)["VersionId"]
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    hidden = s3.put_object(Bucket=bucket, Key="p/hidden", Body=b"")["VersionId"]
    s3.delete_object(Bucket=bucket, Key="p/hidden")
    s3.delete_object(Bucket=bucket, Key="p/lone")
    tagged = [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules(
        {"Filter": {"And": {"Prefix": "p/", "Tags": tagged, "ObjectSizeGreaterThan": 50, "ObjectSizeLessThan": 70}},
         "NoncurrentVersionExpiration": {"NoncurrentDays": 1}},
        {"Filter": {"Prefix": "p/"}, "Expiration": {"ExpiredObjectDeleteMarker": True}},
    ))  # fmt: skip

    def left() -> tuple[set[str], set[str]]:
        page = s3.list_object_versions(Bucket=bucket)
        old = {v["VersionId"] for v in page["Versions"] if not v["IsLatest"]}
        return old, {marker["Key"] for marker in page.get("DeleteMarkers", [])}

    kept = {version for key, version in made.items() if key != "p/fits"} | {hidden}
    wait_until(lambda: left() == (kept, {"p/hidden"}), seconds=40, what=lambda: f"only {kept}: {left()}")
    assert len([v for v in s3.list_object_versions(Bucket=bucket)["Versions"] if v["IsLatest"]]) == len(made)
