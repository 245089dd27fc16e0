"""Users: keys by configuration and by the administrator, policies attached, strangers outside."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.s3.conftest import client_of
from tests.kit.cluster import Cluster

Refused = Callable[..., str]
_NUMBERS = itertools.count(1)
FULL = {"Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


@pytest.fixture
def admin(running: Cluster) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=running.gateway, headers={"Authorization": f"Bearer {running.token}"}, timeout=180
    ) as client:
        yield client


def new_user(running: Cluster, admin: httpx.Client, grants: dict[str, str] | None = None) -> tuple[str, Any]:
    name = f"user-{next(_NUMBERS)}"
    made = admin.post("/v1/admin/keys", json={"user": name, "grants": grants or {}})
    assert made.status_code == 201, made.text
    key = made.json()
    return name, client_of(running, key["access_key"], key["secret_key"])


def attach(admin: httpx.Client, user: str, document: dict[str, Any], name: str = "p") -> None:
    answer = admin.put(f"/v1/admin/users/{user}/policies/{name}", json=document)
    assert answer.status_code == 200, answer.text


def test_a_new_key_may_nothing(running: Cluster, admin: httpx.Client, s3: Any, bucket: str, refused: Refused) -> None:
    """Closed by default: a valid signature is no right."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    _, theirs = new_user(running, admin)
    assert theirs.list_buckets()["Buckets"] == []
    for call, arguments in (
        (theirs.get_object, {"Key": "k"}), (theirs.put_object, {"Key": "k", "Body": b""}), (theirs.list_objects, {}),
        (theirs.delete_object, {"Key": "k"}), (theirs.get_bucket_policy, {}), (theirs.get_object_acl, {"Key": "k"}),
    ):  # fmt: skip
        assert refused(call, Bucket=bucket, **arguments) == "AccessDenied"
    assert refused(theirs.create_bucket, Bucket=f"{bucket}-theirs") == "AccessDenied"
    assert refused(theirs.head_bucket, Bucket=bucket) == "403"


def test_policies_of_users(running: Cluster, admin: httpx.Client, s3: Any, bucket: str, refused: Refused) -> None:
    """What is attached holds at once for all keys of the user; Deny wins; detached, it is gone."""
    s3.put_object(Bucket=bucket, Key="reports/1", Body=b"x")
    s3.put_object(Bucket=bucket, Key="other", Body=b"x")
    user, theirs = new_user(running, admin)
    attach(admin, user, {"Statement": [
        {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": f"arn:aws:s3:::{bucket}/reports/*"},
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{bucket}",
         "Condition": {"StringLike": {"s3:prefix": "reports/*"}}},
    ]})  # fmt: skip
    assert theirs.get_object(Bucket=bucket, Key="reports/1")["Body"].read() == b"x"
    theirs.put_object(Bucket=bucket, Key="reports/2", Body=b"y")
    assert len(theirs.list_objects_v2(Bucket=bucket, Prefix="reports/")["Contents"]) == 2
    assert refused(theirs.list_objects_v2, Bucket=bucket) == "AccessDenied"
    assert refused(theirs.get_object, Bucket=bucket, Key="other") == "AccessDenied"
    assert refused(theirs.delete_object, Bucket=bucket, Key="reports/1") == "AccessDenied"
    attach(admin, user, {"Statement": [{"Effect": "Deny", "Action": "s3:PutObject", "Resource": "*"}]}, "no-writes")
    assert refused(theirs.put_object, Bucket=bucket, Key="reports/3", Body=b"") == "AccessDenied"
    second = admin.post("/v1/admin/keys", json={"user": user, "grants": {}}).json()
    other_key = client_of(running, second["access_key"], second["secret_key"])
    assert other_key.get_object(Bucket=bucket, Key="reports/1")["Body"].read() == b"x"
    entry = next(u for u in admin.get("/v1/admin/users").json()["users"] if u["user"] == user)
    assert (len(entry["keys"]), sorted(entry["policies"])) == (2, ["no-writes", "p"])
    for name in ("p", "no-writes"):
        assert admin.delete(f"/v1/admin/users/{user}/policies/{name}").status_code == 200
    assert refused(other_key.get_object, Bucket=bucket, Key="reports/1") == "AccessDenied"
    bad = admin.put(f"/v1/admin/users/{user}/policies/p", json={"Statement": [{"Effect": "Allow"}]})
    assert (bad.status_code, bad.json()["code"]) == (400, "bad-policy")
    assert admin.put("/v1/admin/users/nobody/policies/p", json=FULL).status_code == 404


def test_users_own_what_they_make(running: Cluster, admin: httpx.Client, refused: Refused) -> None:
    """Two users with the right to make buckets are closed to each other until one opens."""
    makes = {"Statement": [{"Effect": "Allow", "Action": ["s3:CreateBucket", "s3:ListAllMyBuckets"], "Resource": "*"}]}
    (ann, hers), (bob, his) = new_user(running, admin), new_user(running, admin)
    for user in (ann, bob):
        attach(admin, user, makes)
    name = f"own-{ann}"
    hers.create_bucket(Bucket=name)
    assert refused(his.create_bucket, Bucket=name) == "BucketAlreadyExists"
    hers.put_object(Bucket=name, Key="k", Body=b"hers")
    assert refused(his.get_object, Bucket=name, Key="k") == "AccessDenied"
    assert [b["Name"] for b in hers.list_buckets()["Buckets"]] == [name]
    assert his.list_buckets()["Buckets"] == []
    assert hers.list_buckets()["Owner"]["ID"] == ann
    hers.put_bucket_policy(Bucket=name, Policy=json.dumps({"Statement": [
        {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam:::user/{bob}"}, "Action": "s3:GetObject",
         "Resource": f"arn:aws:s3:::{name}/*"},
    ]}))  # fmt: skip
    assert his.get_object(Bucket=name, Key="k")["Body"].read() == b"hers"
    assert refused(his.delete_object, Bucket=name, Key="k") == "AccessDenied"


def test_keys_of_the_settings(running: Cluster, refused: Refused) -> None:
    """Keys that configuration gives work from the first second; a wrong secret does not."""
    configured = client_of(running, "CONFIGURED1", "configured-secret")
    configured.create_bucket(Bucket="of-the-configured")
    assert configured.list_buckets()["Owner"]["ID"] == "configured"
    wrong = client_of(running, "CONFIGURED1", "another-secret")
    assert refused(wrong.list_buckets) == "SignatureDoesNotMatch"


def test_a_disabled_key_is_refused_at_once(running: Cluster, admin: httpx.Client, refused: Refused) -> None:
    """Whoever loses a key cannot wait for a cache."""
    made = admin.post("/v1/admin/keys", json={"user": "lost", "grants": {"*": "readonly"}}).json()
    theirs = client_of(running, made["access_key"], made["secret_key"])
    theirs.list_buckets()
    change = admin.patch(f"/v1/admin/keys/{made['access_key']}", json={"enabled": False})
    assert change.status_code == 200
    assert refused(theirs.list_objects_v2, Bucket="of-nobody") in ("InvalidAccessKeyId", "NoSuchBucket")
    assert refused(theirs.list_buckets) == "InvalidAccessKeyId"


def test_the_command_line_attaches_policies(running: Cluster, tmp_path: Path) -> None:
    """`admin keys create` without a role and `admin users` are how an operator does the above."""
    from typer.testing import CliRunner

    from tierstore.cli.main import app

    environment = {"TIERSTORE_ENDPOINT": running.gateway, "TIERSTORE_TOKEN": running.token}
    document = tmp_path / "policy.json"
    document.write_text(json.dumps(FULL))

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, ["admin", *arguments, "--json"], env=environment)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    run("keys", "create", "operator")
    run("users", "attach", "operator", "all", str(document))
    entry = next(user for user in run("users", "list")["users"] if user["user"] == "operator")
    assert entry["policies"] == {"all": FULL}
    entry = next(user for user in run("users", "detach", "operator", "all")["users"] if user["user"] == "operator")
    assert entry["policies"] == {}


def test_policies_hold_at_the_native_door_too(
    running: Cluster, admin: httpx.Client, s3: Any, bucket: str, refused: Refused
) -> None:
    """The same key opens both doors: a Deny holds at both, an Allow too, and tells keys apart."""
    for key in ("open/1", "secret/1"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    name = f"user-{next(_NUMBERS)}"
    made = admin.post("/v1/admin/keys", json={"user": name, "grants": {bucket: "readwrite"}}).json()
    attach(admin, name, {"Statement": [
        {"Effect": "Deny", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/secret/*"},
        {"Effect": "Deny", "Action": "s3:DeleteObject", "Resource": "*"},
    ]})  # fmt: skip
    theirs = client_of(running, made["access_key"], made["secret_key"])
    headers = {"Authorization": f"Bearer {made['token']}"}
    at = f"/v1/objects/{bucket}"
    with httpx.Client(base_url=running.gateway, headers=headers, timeout=180) as native:
        assert native.get(f"{at}/open/1").content == b"x"
        assert native.put(f"{at}/secret/2", content=b"y").status_code == 200
        for answer in (
            native.get(f"{at}/secret/1"), native.head(f"{at}/secret/1"), native.delete(f"{at}/open/1"),
            native.post(f"{at}/open/1", json={"rename_to": "open/2"}),
            native.post(f"{at}/secret/1", json={"copy_to": f"{bucket}/open/3"}),
        ):
            assert answer.status_code == 403, answer.request.url
        assert refused(theirs.get_object, Bucket=bucket, Key="secret/1") == "AccessDenied"
        assert theirs.get_object(Bucket=bucket, Key="open/1")["Body"].read() == b"x"
        opened = f"arn:aws:s3:::{bucket}/open/*"
        allowed = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:DeleteObject"], "Resource": opened}
        attach(admin, name, {"Statement": [allowed]})
        assert native.delete(f"{at}/open/1").status_code == 204
        assert native.get(f"{at}/secret/1").content == b"x"
