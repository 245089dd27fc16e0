"""Grants: to users of this store and to the two groups; kept, shown and enforced where ownership lets them count."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.integration.s3.test_buckets import anonymous
from tests.integration.s3.test_users import attach, new_user
from tests.kit.cluster import Cluster

Refused = Callable[..., str]
ALL = "http://acs.amazonaws.com/groups/global/AllUsers"
KNOWN = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"


@pytest.fixture
def admin(running: Cluster) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {running.token}"}
    with httpx.Client(base_url=running.gateway, headers=headers, timeout=180) as client:
        yield client


@pytest.fixture
def open_bucket(s3: Any, bucket: str) -> str:
    """One whose lists count."""
    rules = {"Rules": [{"ObjectOwnership": "ObjectWriter"}]}
    s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=rules)
    return bucket


def user(name: str) -> dict[str, str]:
    return {"Type": "CanonicalUser", "ID": name}


def policy(owner: str, *grants: tuple[dict[str, str], str]) -> dict[str, Any]:
    return {"Owner": {"ID": owner}, "Grants": [{"Grantee": who, "Permission": what} for who, what in grants]}


def shown(answer: dict[str, Any]) -> set[tuple[str, str]]:
    return {(g["Grantee"].get("ID") or g["Grantee"]["URI"], g["Permission"]) for g in answer["Grants"]}


def test_lists_are_refused_where_the_owner_owns_all(s3: Any, bucket: str, refused: Refused) -> None:
    """The default, as at AWS since 2023: every way to set a list fails with the code that tools know."""
    owner = s3.get_bucket_acl(Bucket=bucket)["Owner"]["ID"]
    whole = policy(owner, (user(owner), "FULL_CONTROL"))
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", ACL="bucket-owner-full-control")
    name = {"Bucket": bucket, "Key": "k"}
    for call, arguments in (
        (s3.put_object, {**name, "Body": b"", "GrantRead": f'id="{owner}"'}),
        (s3.put_object, {**name, "Body": b"", "ACL": "authenticated-read"}),
        (s3.put_object_acl, {**name, "ACL": "public-read"}),
        (s3.put_object_acl, {**name, "AccessControlPolicy": whole}),
        (s3.put_bucket_acl, {"Bucket": bucket, "ACL": "public-read"}),
        (s3.put_bucket_acl, {"Bucket": bucket, "AccessControlPolicy": whole}),
        (s3.put_bucket_acl, {"Bucket": bucket, "GrantWrite": f"uri={ALL}"}),
        (s3.create_multipart_upload, {**name, "ACL": "public-read"}),
        (s3.copy_object, {"Bucket": bucket, "Key": "c", "CopySource": name, "ACL": "public-read"}),
    ):  # fmt: skip
        assert refused(call, **arguments) == "AccessControlListNotSupported"
    assert refused(s3.create_bucket, Bucket=f"{bucket}-x", ACL="public-read") == "InvalidBucketAclWithObjectOwnership"
    assert shown(s3.get_object_acl(**name)) == shown(s3.get_bucket_acl(Bucket=bucket)) == {(owner, "FULL_CONTROL")}


def test_grants_to_single_users(
    running: Cluster, admin: httpx.Client, s3: Any, open_bucket: str, refused: Refused
) -> None:
    """By XML: who is named may do what was granted, and nobody else."""
    friend, theirs = new_user(running, admin)
    _, strangers = new_user(running, admin)
    name = {"Bucket": open_bucket, "Key": "k"}
    s3.put_object(**name, Body=b"data")
    owner = s3.get_object_acl(**name)["Owner"]["ID"]
    assert refused(theirs.get_object, **name) == "AccessDenied"
    grants = ((user(owner), "FULL_CONTROL"), (user(friend), "READ"), (user(friend), "READ_ACP"))
    s3.put_object_acl(**name, AccessControlPolicy=policy(owner, *grants))
    assert shown(s3.get_object_acl(**name)) == {(who["ID"], what) for who, what in grants}
    assert theirs.get_object(**name)["Body"].read() == b"data"
    assert shown(theirs.get_object_acl(**name)) == {(who["ID"], what) for who, what in grants}
    assert refused(strangers.get_object, **name) == "AccessDenied"
    assert anonymous(running, "GET", f"/{open_bucket}/k")[0] == 403
    for call, arguments in (
        (theirs.put_object, {"Body": b""}), (theirs.delete_object, {}), (theirs.put_object_acl, {"ACL": "public-read"}),
    ):  # fmt: skip
        assert refused(call, **name, **arguments) == "AccessDenied"
    s3.put_object_acl(**name, AccessControlPolicy=policy(owner, (user(friend), "WRITE_ACP")))
    assert refused(theirs.get_object, **name) == "AccessDenied"
    theirs.put_object_acl(**name, GrantRead=f'id="{friend}", uri="{KNOWN}"')
    assert strangers.get_object(**name)["Body"].read() == b"data"
    assert anonymous(running, "GET", f"/{open_bucket}/k")[0] == 403
    rules = {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    s3.put_bucket_ownership_controls(Bucket=open_bucket, OwnershipControls=rules)
    assert refused(strangers.get_object, **name) == "AccessDenied"


def test_grants_come_with_a_write(running: Cluster, admin: httpx.Client, s3: Any, open_bucket: str) -> None:
    """By headers of PutObject, CreateMultipartUpload and CopyObject; a copy does not take the source's along."""
    friend, theirs = new_user(running, admin)
    read = {"GrantRead": f'id="{friend}"'}
    s3.put_object(Bucket=open_bucket, Key="put", Body=b"1", **read)
    s3.copy_object(Bucket=open_bucket, Key="copy", CopySource=f"{open_bucket}/put", **read)
    s3.copy_object(Bucket=open_bucket, Key="bare", CopySource=f"{open_bucket}/put")
    upload = s3.create_multipart_upload(Bucket=open_bucket, Key="parts", **read)["UploadId"]
    names = {"Bucket": open_bucket, "Key": "parts", "UploadId": upload}
    etag = s3.upload_part(**names, PartNumber=1, Body=b"1")["ETag"]
    s3.complete_multipart_upload(**names, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
    for key in ("put", "copy", "parts"):
        assert theirs.get_object(Bucket=open_bucket, Key=key)["Body"].read() == b"1"
        assert (friend, "READ") in shown(s3.get_object_acl(Bucket=open_bucket, Key=key))
    assert len(s3.get_object_acl(Bucket=open_bucket, Key="bare")["Grants"]) == 1


def test_grants_on_a_bucket(
    running: Cluster, admin: httpx.Client, s3: Any, open_bucket: str, refused: Refused
) -> None:
    """READ lists, WRITE makes new objects; who wrote an object owns it where ownership is the writer's, and what
    others own, he neither replaces nor removes."""
    friend, theirs = new_user(running, admin)
    s3.put_bucket_acl(Bucket=open_bucket, GrantRead=f"id={friend}")
    assert theirs.list_objects_v2(Bucket=open_bucket)["KeyCount"] == 0
    theirs.head_bucket(Bucket=open_bucket)
    assert refused(theirs.put_object, Bucket=open_bucket, Key="k", Body=b"") == "AccessDenied"
    assert refused(theirs.get_bucket_acl, Bucket=open_bucket) == "AccessDenied"
    s3.put_bucket_acl(Bucket=open_bucket, GrantFullControl=f"id={friend}")
    assert (friend, "FULL_CONTROL") in shown(theirs.get_bucket_acl(Bucket=open_bucket))
    theirs.put_object(Bucket=open_bucket, Key="k", Body=b"mine")
    assert theirs.get_object_acl(Bucket=open_bucket, Key="k")["Owner"]["ID"] == friend
    assert theirs.get_object(Bucket=open_bucket, Key="k")["Body"].read() == b"mine"
    theirs.put_object(Bucket=open_bucket, Key="k", Body=b"still mine")
    s3.put_object(Bucket=open_bucket, Key="owners", Body=b"kept")
    others = {"Bucket": open_bucket, "Key": "owners"}
    source = {"CopySource": {"Bucket": open_bucket, "Key": "k"}}
    for call, more in (
        (theirs.put_object, {"Body": b"x"}), (theirs.copy_object, source), (theirs.create_multipart_upload, {}),
        (theirs.delete_object, {}),
    ):  # fmt: skip
        assert refused(call, **others, **more) == "AccessDenied"
    gone = theirs.delete_objects(Bucket=open_bucket, Delete={"Objects": [{"Key": "owners"}, {"Key": "k"}]})
    assert [e["Code"] for e in gone["Errors"]] == ["AccessDenied"] and [d["Key"] for d in gone["Deleted"]] == ["k"]
    assert s3.get_object(**others)["Body"].read() == b"kept"
    assert refused(theirs.put_bucket_policy, Bucket=open_bucket, Policy="{}") == "AccessDenied"
    rules = {"Rules": [{"ObjectOwnership": "BucketOwnerPreferred"}]}
    s3.put_bucket_ownership_controls(Bucket=open_bucket, OwnershipControls=rules)
    theirs.put_object(Bucket=open_bucket, Key="given", Body=b"", ACL="bucket-owner-full-control")
    owner = s3.get_bucket_acl(Bucket=open_bucket)["Owner"]["ID"]
    assert s3.get_object_acl(Bucket=open_bucket, Key="given")["Owner"]["ID"] == owner


def test_public_grants_and_the_block_on_them(s3: Any, running: Cluster, open_bucket: str, refused: Refused) -> None:
    """The switches take public lists only: IgnorePublicAcls makes them count for nothing, BlockPublicAcls refuses."""
    name = {"Bucket": open_bucket, "Key": "k"}
    s3.put_object(**name, Body=b"data", GrantRead=f'uri="{ALL}"')
    assert anonymous(running, "GET", f"/{open_bucket}/k")[:2] == (200, b"data")
    block = {"BlockPublicAcls": True, "IgnorePublicAcls": True, "BlockPublicPolicy": False,
             "RestrictPublicBuckets": False}  # fmt: skip
    s3.put_public_access_block(Bucket=open_bucket, PublicAccessBlockConfiguration=block)
    assert anonymous(running, "GET", f"/{open_bucket}/k")[0] == 403
    assert refused(s3.put_object_acl, **name, GrantRead=f'uri="{KNOWN}"') == "AccessDenied"
    assert refused(s3.put_object, **name, Body=b"", ACL="public-read") == "AccessDenied"
    owner = s3.get_bucket_acl(Bucket=open_bucket)["Owner"]["ID"]
    s3.put_object_acl(**name, GrantRead=f"id={owner}")


def test_grants_that_make_no_sense(s3: Any, running: Cluster, open_bucket: str, refused: Refused) -> None:
    """Each with the code that AWS gives; nothing of it is kept."""
    name = {"Bucket": open_bucket, "Key": "k"}
    s3.put_object(**name, Body=b"")
    owner = s3.get_object_acl(**name)["Owner"]["ID"]
    for arguments, code in (
        ({"GrantRead": "id=nobody-of-that-name"}, "InvalidArgument"),
        ({"GrantRead": 'uri="http://acs.amazonaws.com/groups/global/Nobody"'}, "InvalidArgument"),
        ({"GrantRead": "emailAddress=a@b.c"}, "UnresolvableGrantByEmailAddress"),
        ({"GrantRead": "somebody"}, "InvalidArgument"),
        ({"GrantRead": f"id={owner}", "ACL": "public-read"}, "InvalidRequest"),
        ({"ACL": "public"}, "InvalidArgument"),
        ({"AccessControlPolicy": policy(owner, (user(owner), "EVERYTHING"))}, "MalformedACLError"),
        ({"AccessControlPolicy": policy(owner, (user("nobody-of-that-name"), "READ"))}, "InvalidArgument"),
        ({"AccessControlPolicy": policy("another", (user(owner), "READ"))}, "AccessDenied"),
    ):
        assert refused(s3.put_object_acl, **name, **arguments) == code, arguments
    assert shown(s3.get_object_acl(**name)) == {(owner, "FULL_CONTROL")}


def test_what_another_owns_in_ones_own_bucket(
    running: Cluster, admin: httpx.Client, bucket: str, refused: Refused
) -> None:
    """Where writers own what they write, the bucket's owner removes it but reads it by a grant or a policy only."""
    name, owns = new_user(running, admin)
    attach(admin, name, {"Statement": [{"Effect": "Allow", "Action": "s3:CreateBucket", "Resource": "*"}]})
    writer, theirs = new_user(running, admin)
    shared = {"Bucket": f"{bucket}-shared"}
    owns.create_bucket(**shared, ObjectOwnership="ObjectWriter")
    owns.put_bucket_acl(**shared, GrantFullControl=f"id={writer},id={name}")
    theirs.put_object(**shared, Key="kept", Body=b"data")
    theirs.put_object(**shared, Key="given", Body=b"data", ACL="bucket-owner-full-control")
    theirs.put_object(**shared, Key="read", Body=b"data", GrantRead=f"id={name}")
    for call in (owns.get_object, owns.get_object_acl, owns.head_object):
        assert refused(call, **shared, Key="kept") in ("AccessDenied", "403")
    for key in ("given", "read"):
        assert owns.get_object(**shared, Key=key)["Body"].read() == b"data"
    assert owns.get_object_acl(**shared, Key="given")["Owner"]["ID"] == writer
    assert refused(owns.get_object_acl, **shared, Key="read") == "AccessDenied"
    assert theirs.get_object(**shared, Key="kept")["Body"].read() == b"data"
    owns.put_bucket_acl(**shared, ACL="private")
    rules = {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    owns.put_bucket_ownership_controls(**shared, OwnershipControls=rules)
    assert owns.get_object(**shared, Key="kept")["Body"].read() == b"data"
    owns.delete_object(**shared, Key="kept")


def test_who_began_an_upload_may_end_it(
    running: Cluster, admin: httpx.Client, s3: Any, bucket: str, refused: Refused
) -> None:
    """Let in to write alone: he lists the parts of his own uploads and aborts them; those of others are not his."""
    _, theirs = new_user(running, admin)
    _, strangers = new_user(running, admin)
    statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Statement": [statement]}))
    named = {"Bucket": bucket, "Key": "m"}
    mine = {**named, "UploadId": theirs.create_multipart_upload(**named)["UploadId"]}
    other = {**named, "UploadId": s3.create_multipart_upload(**named)["UploadId"]}
    theirs.upload_part(**mine, PartNumber=1, Body=b"part")
    assert len(theirs.list_parts(**mine)["Parts"]) == 1
    gone = {**named, "UploadId": "0" * 32}
    for client, upload in ((theirs, other), (strangers, mine), (theirs, gone)):
        assert refused(client.list_parts, **upload) == "AccessDenied"
        assert refused(client.abort_multipart_upload, **upload) == "AccessDenied"
    theirs.abort_multipart_upload(**mine)
    assert refused(s3.list_parts, **mine) == refused(s3.list_parts, **gone) == "NoSuchUpload"
    s3.abort_multipart_upload(**other)
