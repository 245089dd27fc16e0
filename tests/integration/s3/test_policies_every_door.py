"""What a policy denies is denied at every door: S3, native requests, metadata asked directly, mounts."""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.integration.s3.conftest import client_of
from tests.kit.cluster import Cluster, wait_until
from tierstore.names import operation_id
from tierstore.wire import MEDIA_TYPE, decode, encode
from tierstore.wire.files import FileQuestion, FileQuestions, FileResults, Look
from tierstore.wire.names import (
    CommitBatch,
    CommitItem,
    CommitReply,
    Delete,
    ListItem,
    ListResult,
    LookupBatch,
    LookupItem,
    LookupReply,
    ObjectMeta,
    Put,
    SetMeta,
)

Refused = Callable[..., str]
_NUMBERS = itertools.count(1)
HERE, ELSEWHERE = "127.0.0.0/8", "203.0.113.0/24"
TOMORROW = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Doors:
    """One user at all doors; each way answers whether it let him."""

    def __init__(self, running: Cluster, key: dict[str, Any], bucket: str) -> None:
        self.user, self.bucket = key["user"], bucket
        self.s3 = client_of(running, key["access_key"], key["secret_key"])
        headers = {"Authorization": f"Bearer {key['token']}"}
        self.native = httpx.Client(base_url=running.gateway, headers=headers, timeout=180)
        self.metadata = httpx.Client(base_url=running.processes("metadata")[0].url, headers=headers, timeout=180)

    def close(self) -> None:
        self.native.close()
        self.metadata.close()

    def ask(self, path: str, message: object, kind: Any) -> Any:
        """A message to metadata, as the SDK sends it."""
        answer = self.metadata.post(
            f"/v1/internal/{path}", content=encode(message), headers={"content-type": MEDIA_TYPE}
        )
        return decode(answer.content, kind) if answer.status_code == 200 else answer.status_code

    def reads_by_s3(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        except ClientError as error:
            assert error.response["Error"]["Code"] == "AccessDenied", error
            return False
        return True

    def reads_natively(self, key: str) -> bool:
        return _is_allowed(self.native.get(f"/v1/objects/{self.bucket}/{key}").status_code)

    def reads_directly(self, key: str) -> bool:
        found = self.ask("lookup", LookupBatch([LookupItem(self.bucket, key)]), LookupReply).results[0]
        assert found.code in ("", "access-denied"), found
        return not found.code

    def mounts(self, key: str) -> bool:
        asked = FileQuestions([FileQuestion(Look(self.bucket, key))])
        found = self.ask("files/ask", asked, FileResults).results[0]
        return bool(found.code != "access-denied")

    def reads(self, key: str = "k") -> set[str]:
        """The doors that let him read it."""
        ways = {"s3": self.reads_by_s3, "native": self.reads_natively, "direct": self.reads_directly,
                "mount": self.mounts}  # fmt: skip
        return {name for name, way in ways.items() if way(key)}

    def change(self, mutation: Any) -> str:
        now = int(time.time() * 1000)
        item = CommitItem(operation_id(now, secrets.randbits(80)), now + 60_000, mutation)
        return str(self.ask("commit", CommitBatch([item]), CommitReply).results[0].code)


def _is_allowed(status: int) -> bool:
    assert status < 300 or status == 403, status
    return status < 300


@pytest.fixture
def doors(running: Cluster, bucket: str) -> Any:
    """A user who may read and write the bucket by his role."""
    headers = {"Authorization": f"Bearer {running.token}"}
    with httpx.Client(base_url=running.gateway, headers=headers, timeout=180) as admin:
        made = admin.post("/v1/admin/keys", json={"user": f"doors-{next(_NUMBERS)}", "grants": {bucket: "readwrite"}})
        made.raise_for_status()
        found = Doors(running, made.json(), bucket)
        yield found
        found.close()


@pytest.fixture
def deny(s3: Any, bucket: str, doors: Doors) -> Callable[..., None]:
    """deny(condition): nobody may read there then; believed by the gateway's native door when it returns."""

    def run(condition: dict[str, Any], actions: str | list[str] = "s3:GetObject", **more: Any) -> None:
        statement = {"Effect": "Deny", "Principal": "*", "Action": actions, "Condition": condition,
                     "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"], **more}  # fmt: skip
        text = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        s3.put_bucket_policy(Bucket=bucket, Policy=text)

    return run


def _name(value: Any) -> str:
    """The same in every worker: sets have no order, and the conditions hold a date."""
    return str(next(iter(value))) if isinstance(value, dict) else f"{len(value)} doors"


EVERYWHERE = {"s3", "native", "direct", "mount"}


@pytest.mark.parametrize(
    ("condition", "open_at"),
    [
        ({"IpAddress": {"aws:SourceIp": HERE}}, set()),
        ({"IpAddress": {"aws:SourceIp": ELSEWHERE}}, EVERYWHERE),
        ({"NotIpAddress": {"aws:SourceIp": HERE}}, EVERYWHERE),
        ({"NotIpAddress": {"aws:SourceIp": ELSEWHERE}}, set()),
        ({"Bool": {"aws:SecureTransport": "false"}}, set()),
        ({"Bool": {"aws:SecureTransport": "true"}}, EVERYWHERE),
        ({"DateLessThan": {"aws:CurrentTime": TOMORROW}}, set()),
        ({"DateGreaterThan": {"aws:CurrentTime": TOMORROW}}, EVERYWHERE),
        ({"NumericGreaterThan": {"aws:EpochTime": "1600000000"}}, set()),
        ({"StringEquals": {"s3:ExistingObjectTag/secret": "yes"}}, set()),
        # metadata does not look tags up: whoever asks it directly is refused where a policy asks for them
        ({"StringEquals": {"s3:ExistingObjectTag/secret": "no"}}, {"s3", "native"}),
        ({"StringLike": {"aws:username": "doors-*"}}, set()), ({"StringLike": {"aws:username": "x*"}}, EVERYWHERE),
        ({"StringNotLike": {"aws:username": "${aws:username}"}}, EVERYWHERE),
    ],
    ids=_name,
)  # fmt: skip
def test_a_deny_of_a_bucket_holds_at_every_door(
    s3: Any, bucket: str, doors: Doors, deny: Callable[..., None], condition: dict[str, Any], open_at: set[str]
) -> None:
    """Else whoever is shut out at one takes the next, with the same key."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", Tagging="secret=yes")
    assert doors.reads() == EVERYWHERE
    deny(condition)
    assert doors.reads() == open_at


@pytest.mark.parametrize(
    ("condition", "open_at"),
    [
        ({"IpAddress": {"aws:SourceIp": HERE}}, set()), ({"NotIpAddress": {"aws:SourceIp": HERE}}, EVERYWHERE),
        ({"Bool": {"aws:SecureTransport": "false"}}, set()), ({"Bool": {"aws:SecureTransport": "true"}}, EVERYWHERE),
        ({"DateLessThan": {"aws:CurrentTime": TOMORROW}}, set()),
        ({"StringEquals": {"s3:ExistingObjectTag/secret": "yes"}}, set()),
        ({"StringEquals": {"s3:ExistingObjectTag/secret": "no"}}, {"s3", "native"}),
    ],
    ids=_name,
)  # fmt: skip
def test_so_does_a_deny_of_a_user(
    running: Cluster, s3: Any, bucket: str, doors: Doors, condition: dict[str, Any], open_at: set[str]
) -> None:
    """What is attached to him goes with him."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", Tagging="secret=yes")
    statement = {"Effect": "Deny", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*",
                 "Condition": condition}  # fmt: skip
    headers = {"Authorization": f"Bearer {running.token}"}
    with httpx.Client(base_url=running.gateway, headers=headers, timeout=180) as admin:
        path = f"/v1/admin/users/{doors.user}/policies/p"
        admin.put(path, json={"Version": "2012-10-17", "Statement": [statement]}).raise_for_status()
    assert doors.reads() == open_at


def test_an_allow_with_a_condition_opens_where_the_condition_is_seen(running: Cluster, s3: Any, bucket: str) -> None:
    """A user without roles, let in from here only: at each door that sees where he is."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    headers = {"Authorization": f"Bearer {running.token}"}
    with httpx.Client(base_url=running.gateway, headers=headers, timeout=180) as admin:
        key = admin.post("/v1/admin/keys", json={"user": f"doors-{next(_NUMBERS)}", "grants": {}}).json()
        theirs = Doors(running, key, bucket)
        for network, open_at in ((HERE, EVERYWHERE), (ELSEWHERE, set())):
            statement = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*",
                         "Condition": {"IpAddress": {"aws:SourceIp": network}}}  # fmt: skip
            policy = {"Version": "2012-10-17", "Statement": [statement]}
            admin.put(f"/v1/admin/users/{key['user']}/policies/p", json=policy).raise_for_status()
            assert theirs.reads() == open_at, network
        theirs.close()


def test_what_else_a_bucket_denies(
    s3: Any, bucket: str, doors: Doors, deny: Callable[..., None], refused: Refused
) -> None:
    """Writes, deletes, lists, renames, copies and settings, natively and to metadata itself."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    at, native = f"/v1/objects/{bucket}", doors.native
    deny({"IpAddress": {"aws:SourceIp": HERE}}, ["s3:PutObject", "s3:DeleteObject", "s3:ListBucket", "s3:DeleteBucket"])
    for answer in (
        native.put(f"{at}/k", content=b"y"), native.put(f"{at}/big", content=b"y" * 400_000), native.delete(f"{at}/k"),
        native.get(at), native.post(f"{at}/k", json={"rename_to": "l"}),
        native.post(f"{at}/k", json={"copy_to": f"{bucket}/l"}), native.get(f"/v1/buckets/{bucket}"),
        native.get(f"/v1/buckets/{bucket}/documents"), native.get(f"/v1/buckets/{bucket}/quota"),
    ):
        assert answer.status_code == 403, answer.request.url
    assert doors.change(Delete(bucket, "k")) == "access-denied"
    assert doors.change(SetMeta(bucket, "k", ObjectMeta())) == "access-denied"
    assert doors.ask("list", ListItem(bucket), dict) == 403
    assert native.get(f"{at}/k").content == b"x"
    assert refused(doors.s3.put_object, Bucket=bucket, Key="k", Body=b"") == "AccessDenied"


def test_lists_are_judged_by_what_they_ask(doors: Doors, bucket: str, deny: Callable[..., None]) -> None:
    """The conditions of lists mean the same natively."""
    deny({"NumericGreaterThan": {"s3:max-keys": "10"}}, "s3:ListBucket")
    at = f"/v1/objects/{bucket}"
    assert doors.native.get(at, params={"limit": 10}).status_code == 200
    assert doors.native.get(at, params={"limit": 11}).status_code == 403
    deny({"StringNotLike": {"s3:prefix": "home/${aws:username}/*"}}, "s3:ListBucket")
    assert doors.native.get(at, params={"prefix": f"home/{doors.user}/"}).status_code == 200
    assert doors.native.get(at, params={"prefix": "home/"}).status_code == 403


def test_versions_may_be_denied_alone(s3: Any, bucket: str, doors: Doors, deny: Callable[..., None]) -> None:
    """Who may read and delete, but neither old versions nor for good."""
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    at = f"/v1/objects/{bucket}/k"
    old, new = (doors.native.put(at, content=body).headers["x-tierstore-version"] for body in (b"old", b"new"))
    assert doors.native.get(at, params={"version": old}).content == b"old"
    deny({"IpAddress": {"aws:SourceIp": HERE}}, ["s3:GetObjectVersion", "s3:DeleteObjectVersion"])
    for version in (old, new):
        assert doors.native.get(at, params={"version": version}).status_code == 403
        assert doors.native.delete(at, params={"version": version}).status_code == 403
        assert doors.change(Delete(bucket, "k", int(version, 16))) == "access-denied"
    asked = [LookupItem(bucket, "k", version=int(version, 16)) for version in (old, new)]
    # the latest may be named by whoever reads on in it
    found = doors.ask("lookup", LookupBatch(asked), LookupReply).results
    assert [result.code for result in found] == ["access-denied", ""]
    assert doors.native.get(at).content == b"new"
    assert doors.native.delete(at).status_code == 204


def test_governance_is_not_passed_by_asking_metadata(running: Cluster, s3: Any, refused: Refused) -> None:
    """A writer who sends the flag himself destroys nothing that is locked; who may configure the bucket may."""
    name = f"doors-lock-{next(_NUMBERS)}"
    s3.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    until = datetime.now(UTC) + timedelta(days=1)
    made = s3.put_object(
        Bucket=name, Key="k", Body=b"x", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=until
    )
    version = int(made["VersionId"], 16)
    headers = {"Authorization": f"Bearer {running.token}"}
    with httpx.Client(base_url=running.gateway, headers=headers, timeout=180) as admin:
        for role, code in (("readwrite", "access-denied"), ("admin", "")):
            key = admin.post("/v1/admin/keys", json={"user": f"lock-{role}", "grants": {name: role}}).json()
            theirs = Doors(running, key, name)
            assert theirs.change(Delete(name, "k", version, bypass_governance=True)) == code, role
            theirs.close()


def test_a_policy_against_everybody_can_be_removed(
    running: Cluster, s3: Any, bucket: str, doors: Doors, deny: Callable[..., None]
) -> None:
    """By administrators of the cluster, natively: its documents and nothing else of the bucket."""
    deny({}, "s3:*")
    assert not doors.reads("k")
    headers = {"Authorization": f"Bearer {running.token}"}
    with httpx.Client(base_url=running.gateway, headers=headers, timeout=180) as admin:
        at = f"/v1/buckets/{bucket}"
        assert admin.delete(at).status_code == 403
        assert admin.patch(at, json={"documents": {"s3.cors": None}}).status_code == 403
        assert admin.patch(at, json={"documents": {"s3.policy": None}}).status_code == 200

        def is_open() -> bool:
            return doors.native.put(f"/v1/objects/{bucket}/k", content=b"x").status_code == 200

        wait_until(is_open, seconds=60, what="the gateway believes a bucket's view for a second")
        assert doors.reads() == EVERYWHERE


def test_what_a_writer_says_himself_reaches_no_reader(running: Cluster, s3: Any) -> None:
    """By the SDK's own messages: an ETag that split answers, a mark that stopped whoever listed the bucket, the sealed
    key of a version under retention taken away, parts of others' uploads listed and replaced."""
    name = f"doors-lock-{next(_NUMBERS)}"
    s3.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    until = datetime.now(UTC) + timedelta(days=1)
    s3.put_object(
        Bucket=name, Key="k", Body=b"sealed", ServerSideEncryption="AES256", ObjectLockMode="COMPLIANCE",
        ObjectLockRetainUntilDate=until, Tagging="a=b",
    )  # fmt: skip
    upload = s3.create_multipart_upload(Bucket=name, Key="other")
    part = {"Bucket": name, "Key": "other", "UploadId": upload["UploadId"]}
    s3.upload_part(**part, PartNumber=1, Body=b"part")
    headers = {"Authorization": f"Bearer {running.token}"}
    with httpx.Client(base_url=running.gateway, headers=headers, timeout=180) as admin:
        key = admin.post("/v1/admin/keys", json={"user": "forger", "grants": {"*": "readwrite"}}).json()
    theirs = Doors(running, key, name)
    for etag in ('x"\r\nSet-Cookie: a=b', "a;zz"):
        assert theirs.change(Put(name, "f", 0, etag, [])) == "bad-meta"
    for meta in (ObjectMeta(extra={"s3.parts": b"x"}), ObjectMeta("a\r\nb: c"), ObjectMeta(headers={"x": "y"})):
        assert theirs.change(Put(name, "f", 0, "", [], meta)) == "bad-meta"
    assert not theirs.change(SetMeta(name, "k", ObjectMeta("text/plain", tags={"a": "c"})))
    assert theirs.ask("list", ListItem(".multipart"), ListResult) == 404
    of_part = f"{upload['UploadId']}/00001"
    assert theirs.change(Put(".multipart", of_part, 0, "e", [])) == "no-such-bucket"
    assert theirs.change(Delete(".multipart", of_part)) == "no-such-bucket"
    theirs.close()
    read = s3.get_object(Bucket=name, Key="k")
    assert (read["Body"].read(), read["ContentType"], read["ObjectLockMode"]) == (b"sealed", "text/plain", "COMPLIANCE")
    assert [found["Size"] for found in s3.list_parts(**part)["Parts"]] == [4]
