"""One real cluster for all tests of the S3 door, spoken to by boto3."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.kit.cluster import Cluster, cluster
from tests.kit.ports import free_port

#: A day of a lifecycle rule lasts two seconds here.
SHORT_DAYS = {"TIERSTORE_DUTIES__LIFECYCLE_DAY": "2s", "TIERSTORE_DUTIES__LIFECYCLE_INTERVAL": "1s"}
#: A user's key given by configuration.
USERS = (
    '[{name = "configured", access_key = "CONFIGURED1", secret_key = "configured-secret", policy = '
    """'{"Statement": [{"Effect": "Allow", "Action": "s3:CreateBucket", "Resource": "*"}]}'}]"""
)
#: Where the webhook of test_notifications listens.
WEBHOOK_PORT = free_port()
SETTINGS = {
    **SHORT_DAYS, "TIERSTORE_USERS": USERS, "TIERSTORE_S3__CUSTOMER_KEYS_OVER_HTTP": "true",
    "TIERSTORE_S3__ACCESS_LOG_EVERY": "1s",
    "TIERSTORE_WEBHOOKS": f'[{{name = "hook", url = "http://127.0.0.1:{WEBHOOK_PORT}/events"}}]',
}  # fmt: skip
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("s3"), env=SETTINGS) as started:
        yield started


def client_of(running: Cluster, access: str = "", secret: str = "", endpoint: str = "", **config: Any) -> Any:
    settings = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}, **config)
    return boto3.client(
        "s3", endpoint_url=endpoint or running.gateway, region_name="us-east-1", config=settings,
        aws_access_key_id=access or running.ready["access_key"],
        aws_secret_access_key=secret or running.ready["secret_key"],
    )  # fmt: skip


@pytest.fixture(scope="session")
def s3(running: Cluster) -> Any:
    return client_of(running)


@pytest.fixture
def bucket(s3: Any) -> str:
    """A fresh bucket."""
    name = f"bkt-{next(_NUMBERS)}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def refused() -> Callable[..., str]:
    """refused(call, **arguments): the error code of a call that must fail."""
    from botocore.exceptions import ClientError

    def run(call: Callable[..., Any], **arguments: Any) -> str:
        with pytest.raises(ClientError) as caught:
            call(**arguments)
        return str(caught.value.response["Error"]["Code"])

    return run
