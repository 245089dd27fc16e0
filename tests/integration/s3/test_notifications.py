"""Notifications: a webhook hears of every change that its rules name, in order, also after it was away."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.integration.s3.conftest import WEBHOOK_PORT, client_of
from tests.kit.cluster import Cluster, wait_until

Refused = Callable[..., str]


class Hook(ThreadingHTTPServer):
    """A webhook on the port that the cluster's settings name. is_away: it answers 503."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.is_away = False
        self.refused = 0
        super().__init__(("127.0.0.1", WEBHOOK_PORT), _Handler)

    def of(self, bucket: str) -> list[tuple[str, str]]:
        return [
            (record["eventName"], record["s3"]["object"]["key"])
            for record in self.records if record["s3"]["bucket"]["name"] == bucket
        ]  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.server.is_away:
            self.server.refused += 1
            self.send_response(503)
        else:
            self.server.records += json.loads(body)["Records"]
            self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        return


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    server = Hook()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_webhooks_hear_of_objects(s3: Any, bucket: str, hook: Hook, refused: Refused) -> None:
    """Created, removed, marked; only what prefix and suffix allow; nothing is lost while the webhook is away."""
    assert "TopicConfigurations" not in s3.get_bucket_notification_configuration(Bucket=bucket)
    wanted = {"TopicConfigurations": [{
        "Id": "n1", "TopicArn": "arn:tierstore:sns:::hook", "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"],
        "Filter": {"Key": {"FilterRules": [{"Name": "prefix", "Value": "in/"}, {"Name": "suffix", "Value": ".jpg"}]}},
    }]}  # fmt: skip
    s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=wanted)
    shown = s3.get_bucket_notification_configuration(Bucket=bucket)
    assert shown["TopicConfigurations"] == wanted["TopicConfigurations"]
    put = s3.put_object(Bucket=bucket, Key="in/a.jpg", Body=b"12345")
    s3.put_object(Bucket=bucket, Key="in/b.txt", Body=b"x")
    s3.put_object(Bucket=bucket, Key="out/c.jpg", Body=b"x")
    s3.delete_object(Bucket=bucket, Key="in/a.jpg")
    expected = [("ObjectCreated:Put", "in/a.jpg"), ("ObjectRemoved:Delete", "in/a.jpg")]
    wait_until(lambda: hook.of(bucket) == expected, seconds=20, what="both events, and no other")
    record = next(r for r in hook.records if r["s3"]["bucket"]["name"] == bucket)
    assert record["s3"]["configurationId"] == "n1"
    hook.is_away = True
    before = hook.refused
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=bucket, Key="in/d.jpg", Body=b"67")
    s3.delete_object(Bucket=bucket, Key="in/d.jpg")
    wait_until(lambda: hook.refused > before, seconds=20, what="a try that the webhook refuses")
    hook.is_away = False
    expected += [("ObjectCreated:Put", "in/d.jpg"), ("ObjectRemoved:DeleteMarkerCreated", "in/d.jpg")]
    wait_until(lambda: hook.of(bucket) == expected, seconds=60, what="what happened meanwhile, once it is back")
    created = hook.records[-2]["s3"]["object"]
    assert (created["size"], "versionId" in created) == (2, True)
    sequences = [int(r["s3"]["object"]["sequencer"], 16) for r in hook.records]
    assert sequences == sorted(sequences)
    assert put["ETag"]
    for wrong in (
        {"TopicArn": "arn:aws:sns:us-east-1:1:x", "Events": ["s3:ObjectCreated:*"]},
        {"TopicArn": "arn:tierstore:sns:::hook", "Events": ["s3:Nothing"]},
    ):
        bad = {"TopicConfigurations": [wrong]}
        assert refused(
            s3.put_bucket_notification_configuration, Bucket=bucket, NotificationConfiguration=bad
        ) == "InvalidArgument"  # fmt: skip
    s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={})
    assert "TopicConfigurations" not in s3.get_bucket_notification_configuration(Bucket=bucket)


def test_each_creation_is_told_by_its_own_name(s3: Any, bucket: str, hook: Hook, running: Cluster) -> None:
    """Put, copied by either door, posted, completed from parts; a rule that asks for one of them hears of it alone."""
    topic = "arn:tierstore:sns:::hook"
    s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={"TopicConfigurations": [
        {"Id": "all", "TopicArn": topic, "Events": ["s3:ObjectCreated:*"]},
        {"Id": "copies", "TopicArn": topic, "Events": ["s3:ObjectCreated:Copy"]},
    ]})  # fmt: skip
    s3.put_object(Bucket=bucket, Key="a", Body=b"12345")
    s3.copy_object(Bucket=bucket, Key="b", CopySource={"Bucket": bucket, "Key": "a"})
    form = client_of(running, signature_version="s3v4").generate_presigned_post(bucket, "c")
    assert httpx.post(form["url"], data=form["fields"], files={"file": b"12"}, timeout=180).status_code == 204
    upload = {"Bucket": bucket, "Key": "d", "UploadId": s3.create_multipart_upload(Bucket=bucket, Key="d")["UploadId"]}
    part = s3.upload_part(PartNumber=1, Body=b"123", **upload)
    s3.complete_multipart_upload(MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}, **upload)
    s3.copy_object(Bucket=bucket, Key="e", CopySource={"Bucket": bucket, "Key": "d"})
    copied = httpx.post(
        f"{running.gateway}/v1/objects/{bucket}/c", json={"copy_to": f"{bucket}/f"}, timeout=180,
        headers={"authorization": f"Bearer {running.token}"},
    )  # fmt: skip
    assert copied.is_success, copied.text
    told = [("Put", "a"), ("Copy", "b"), ("Post", "c"), ("CompleteMultipartUpload", "d"), ("Copy", "e"), ("Copy", "f")]

    def heard(rule: str) -> list[tuple[str, str]]:
        return [
            (record["eventName"].removeprefix("ObjectCreated:"), record["s3"]["object"]["key"])
            for record in list(hook.records)
            if record["s3"]["bucket"]["name"] == bucket and record["s3"]["configurationId"] == rule
        ]  # fmt: skip

    copies = [event for event in told if event[0] == "Copy"]
    wait_until(lambda: (heard("all"), heard("copies")) == (told, copies), seconds=120, what="each by its name")
    s3.put_object(Bucket=bucket, Key="b", Body=b"no copy any more")
    wait_until(lambda: heard("all") == [*told, ("Put", "b")], seconds=120, what="the copy's key is put")
