"""Object lock: what is kept stays, whoever asks and by whichever door."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.integration.s3.conftest import client_of
from tests.kit.cluster import Cluster

Refused = Callable[..., str]
_NUMBERS = itertools.count(1)


@pytest.fixture
def vault(s3: Any) -> str:
    """A fresh bucket with object lock."""
    name = f"vault-{next(_NUMBERS)}"
    s3.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    return name


def later(days: int = 1) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


def test_default_retention(s3: Any, bucket: str, vault: str, refused: Refused) -> None:
    """Every new version gets the bucket's rule; a bucket without lock has none; versioning stays on."""
    assert refused(s3.get_object_lock_configuration, Bucket=bucket) == "ObjectLockConfigurationNotFoundError"
    rule = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 3}}}
    assert refused(s3.put_object_lock_configuration, Bucket=bucket, ObjectLockConfiguration=rule) == (
        "InvalidBucketState"
    )
    assert s3.get_object_lock_configuration(Bucket=vault)["ObjectLockConfiguration"] == {"ObjectLockEnabled": "Enabled"}
    for wrong, code in (
        ({"Mode": "COMPLIANCE", "Days": 0}, "InvalidRetentionPeriod"), ({"Mode": "abc", "Days": 1}, "MalformedXML"),
        ({"Mode": "GOVERNANCE", "Days": 1, "Years": 1}, "MalformedXML"),
    ):  # fmt: skip
        bad = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": wrong}}
        assert refused(s3.put_object_lock_configuration, Bucket=vault, ObjectLockConfiguration=bad) == code
    s3.put_object_lock_configuration(Bucket=vault, ObjectLockConfiguration=rule)
    assert s3.get_object_lock_configuration(Bucket=vault)["ObjectLockConfiguration"] == rule
    version = s3.put_object(Bucket=vault, Key="k", Body=b"x")["VersionId"]
    head = s3.head_object(Bucket=vault, Key="k")
    assert head["ObjectLockMode"] == "COMPLIANCE"
    assert abs((head["ObjectLockRetainUntilDate"] - later(3)).total_seconds()) < 60
    assert refused(s3.delete_object, Bucket=vault, Key="k", VersionId=version) == "AccessDenied"
    assert refused(
        s3.put_bucket_versioning, Bucket=vault, VersioningConfiguration={"Status": "Suspended"}
    ) == "InvalidBucketState"  # fmt: skip
    copied = s3.copy_object(Bucket=vault, Key="copy", CopySource={"Bucket": vault, "Key": "k"})["VersionId"]
    assert refused(s3.delete_object, Bucket=vault, Key="copy", VersionId=copied) == "AccessDenied"


def test_retention_and_who_may_pass_it(s3: Any, bucket: str, vault: str, refused: Refused) -> None:
    """Governance yields to those who may and say so, compliance to nobody; neither is shortened by the way."""
    version = s3.put_object(
        Bucket=vault, Key="k", Body=b"x", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=later()
    )["VersionId"]
    got = s3.get_object_retention(Bucket=vault, Key="k")["Retention"]
    assert got["Mode"] == "GOVERNANCE"
    by_version = {"Bucket": vault, "Key": "k", "VersionId": version}
    shorter = {"Mode": "GOVERNANCE", "RetainUntilDate": later() - timedelta(hours=2)}
    assert refused(s3.put_object_retention, **by_version, Retention=shorter) == "AccessDenied"
    s3.put_object_retention(**by_version, Retention={"Mode": "GOVERNANCE", "RetainUntilDate": later(2)})
    s3.put_object_retention(**by_version, Retention=shorter, BypassGovernanceRetention=True)
    assert refused(s3.delete_object, **by_version) == "AccessDenied"
    errors = s3.delete_objects(Bucket=vault, Delete={"Objects": [{"Key": "k", "VersionId": version}]})["Errors"]
    assert errors[0]["Code"] == "AccessDenied"
    # tags and ACLs leave the lock alone
    s3.put_object_tagging(Bucket=vault, Key="k", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    assert refused(s3.delete_object, **by_version) == "AccessDenied"
    # a plain delete hides, it destroys nothing
    marker = s3.delete_object(Bucket=vault, Key="k")
    s3.delete_object(Bucket=vault, Key="k", VersionId=marker["VersionId"])
    stricter = {"Mode": "COMPLIANCE", "RetainUntilDate": later()}
    assert refused(s3.put_object_retention, **by_version, Retention=stricter) == "AccessDenied"
    s3.put_object_retention(**by_version, Retention=stricter, BypassGovernanceRetention=True)
    assert refused(s3.delete_object, **by_version, BypassGovernanceRetention=True) == "AccessDenied"
    for weaker in ({"Mode": "GOVERNANCE", "RetainUntilDate": later(3)}, shorter | {"Mode": "COMPLIANCE"}):
        assert refused(
            s3.put_object_retention, **by_version, Retention=weaker, BypassGovernanceRetention=True
        ) == "AccessDenied"  # fmt: skip
    other = s3.put_object(
        Bucket=vault, Key="g", Body=b"x", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=later()
    )["VersionId"]
    s3.delete_object(Bucket=vault, Key="g", VersionId=other, BypassGovernanceRetention=True)
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert refused(s3.get_object_retention, Bucket=bucket, Key="k") == "InvalidRequest"
    assert refused(
        s3.put_object, Bucket=bucket, Key="k", Body=b"", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=later()
    ) == "InvalidRequest"  # fmt: skip
    assert refused(
        s3.put_object, Bucket=vault, Key="k", Body=b"", ObjectLockMode="GOVERNANCE",
        ObjectLockRetainUntilDate=later(-1),
    ) == "InvalidArgument"  # fmt: skip


def test_governance_is_taken_away_only_by_the_way_that_says_so(s3: Any, vault: str, refused: Refused) -> None:
    """An empty retention takes it away, one version or many; nothing else does; a deletion of many has each its own
    result."""
    locked = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": later()}
    versions = [s3.put_object(Bucket=vault, Key=f"k{i}", Body=b"x", **locked)["VersionId"] for i in range(3)]
    free = s3.put_object(Bucket=vault, Key="free", Body=b"x")["VersionId"]
    first = {"Bucket": vault, "Key": "k0", "VersionId": versions[0]}
    assert refused(s3.put_object_retention, **first, Retention={}) == "AccessDenied"
    s3.put_object_retention(**first, Retention={}, BypassGovernanceRetention=True)
    assert refused(s3.get_object_retention, **first) == "NoSuchObjectLockConfiguration"
    s3.delete_object(**first)
    wanted = {"Objects": [{"Key": f"k{i}", "VersionId": versions[i]} for i in (1, 2)]
              + [{"Key": "free", "VersionId": free}]}  # fmt: skip
    done = s3.delete_objects(Bucket=vault, Delete=wanted)
    assert [entry["Key"] for entry in done["Deleted"]] == ["free"]
    assert {entry["Key"]: entry["Code"] for entry in done["Errors"]} == dict.fromkeys(("k1", "k2"), "AccessDenied")
    done = s3.delete_objects(Bucket=vault, Delete=wanted, BypassGovernanceRetention=True)
    assert "Errors" not in done and len(done["Deleted"]) == 3


def test_locks_of_uploads_in_parts(s3: Any, vault: str, refused: Refused) -> None:
    """What CreateMultipartUpload asks for holds for the object that comes of it; a hold outlives a bypass."""
    upload = s3.create_multipart_upload(
        Bucket=vault, Key="k", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=later(),
        ObjectLockLegalHoldStatus="ON",
    )["UploadId"]  # fmt: skip
    part = s3.upload_part(Bucket=vault, Key="k", UploadId=upload, PartNumber=1, Body=b"x")["ETag"]
    version = s3.complete_multipart_upload(
        Bucket=vault, Key="k", UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part}]}
    )["VersionId"]
    by_version = {"Bucket": vault, "Key": "k", "VersionId": version}
    assert refused(s3.delete_object, **by_version, BypassGovernanceRetention=True) == "AccessDenied"
    s3.put_object_legal_hold(**by_version, LegalHold={"Status": "OFF"})
    assert refused(s3.delete_object, **by_version) == "AccessDenied"
    s3.delete_object(**by_version, BypassGovernanceRetention=True)


def test_what_lock_configurations_must_be(s3: Any, bucket: str, vault: str, refused: Refused) -> None:
    """Nonsense has AWS's codes; a bucket with versions may get a lock later."""
    def put(name: str, configuration: dict[str, Any]) -> Any:
        return s3.put_object_lock_configuration(Bucket=name, ObjectLockConfiguration=configuration)

    def rule(**kept: Any) -> dict[str, Any]:
        return {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": kept}}

    for wrong, code in (
        ({}, "MalformedXML"), (rule(Mode="GOVERNANCE", Years=-1), "InvalidRetentionPeriod"),
        (rule(Mode="governance", Days=1), "MalformedXML"), (rule(Mode="GOVERNANCE"), "MalformedXML"),
        (rule(Days=1), "MalformedXML"), ({**rule(Mode="GOVERNANCE", Days=1), "ObjectLockEnabled": "Disabled"},
                                         "MalformedXML"),
    ):  # fmt: skip
        assert refused(put, name=vault, configuration=wrong) == code, wrong
    s3.put_object(Bucket=vault, Key="k", Body=b"")
    for retention, code in (
        ({"Mode": "governance", "RetainUntilDate": later()}, "MalformedXML"),
        ({"Mode": "GOVERNANCE"}, "MalformedXML"), ({"RetainUntilDate": later()}, "MalformedXML"),
        ({"Mode": "GOVERNANCE", "RetainUntilDate": later(-1)}, "InvalidArgument"),
    ):
        assert refused(s3.put_object_retention, Bucket=vault, Key="k", Retention=retention) == code, retention
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    put(bucket, rule(Mode="GOVERNANCE", Days=2))
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    assert s3.head_object(Bucket=bucket, Key="k")["ObjectLockMode"] == "GOVERNANCE"


def test_bypass_is_a_right_of_its_own(s3: Any, vault: str, running: Cluster, refused: Refused) -> None:
    """Who may delete versions may still not pass governance; a policy gives that right by its own name."""
    other = client_of(running, "CONFIGURED1", "configured-secret")
    version = s3.put_object(
        Bucket=vault, Key="k", Body=b"x", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=later()
    )["VersionId"]
    by_version = {"Bucket": vault, "Key": "k", "VersionId": version}
    statement = {"Effect": "Allow", "Principal": "*", "Resource": f"arn:aws:s3:::{vault}/*"}
    for actions, is_taken in ((["s3:DeleteObjectVersion"], False),
                              (["s3:DeleteObjectVersion", "s3:BypassGovernanceRetention"], True)):  # fmt: skip
        s3.put_bucket_policy(Bucket=vault, Policy=json.dumps({"Statement": [{**statement, "Action": actions}]}))
        if is_taken:
            other.delete_object(**by_version, BypassGovernanceRetention=True)
        else:
            assert refused(other.delete_object, **by_version, BypassGovernanceRetention=True) == "AccessDenied"
    assert refused(s3.head_object, **by_version) == "404"


def test_legal_hold(s3: Any, vault: str, refused: Refused) -> None:
    """On: nobody; off: gone."""
    version = s3.put_object(Bucket=vault, Key="k", Body=b"x", ObjectLockLegalHoldStatus="ON")["VersionId"]
    by_version = {"Bucket": vault, "Key": "k", "VersionId": version}
    assert s3.get_object_legal_hold(**by_version)["LegalHold"]["Status"] == "ON"
    assert s3.head_object(**by_version)["ObjectLockLegalHoldStatus"] == "ON"
    assert refused(s3.delete_object, **by_version, BypassGovernanceRetention=True) == "AccessDenied"
    assert refused(s3.put_object_legal_hold, **by_version, LegalHold={"Status": "abc"}) == "MalformedXML"
    s3.put_object_legal_hold(**by_version, LegalHold={"Status": "OFF"})
    assert s3.get_object_legal_hold(**by_version)["LegalHold"]["Status"] == "OFF"
    s3.delete_object(**by_version)
    plain = s3.put_object(Bucket=vault, Key="plain", Body=b"")["VersionId"]
    assert refused(s3.get_object_legal_hold, Bucket=vault, Key="plain", VersionId=plain) == (
        "NoSuchObjectLockConfiguration"
    )


def test_native_requests_meet_the_same_lock(s3: Any, vault: str, running: Cluster) -> None:
    """The lock is the catalog's, not the door's: native deletes, renames and overwrites destroy nothing."""
    version = s3.put_object(Bucket=vault, Key="k", Body=b"kept", ObjectLockLegalHoldStatus="ON")["VersionId"]
    url = f"{running.gateway}/v1/objects/{vault}/k"
    with httpx.Client(headers={"Authorization": f"Bearer {running.token}"}) as http:
        answer = http.delete(url, params={"version": version})
        assert (answer.status_code, answer.json()["code"]) == (403, "object-locked")
        assert http.post(url, json={"rename_to": "elsewhere"}).status_code == 200
        assert http.put(url, content=b"new").status_code == 200
        assert http.delete(url).status_code == 204
    assert s3.get_object(Bucket=vault, Key="k", VersionId=version)["Body"].read() == b"kept"
    renamed = s3.head_object(Bucket=vault, Key="elsewhere")
    assert "ObjectLockLegalHoldStatus" not in renamed
