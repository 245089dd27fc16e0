"""The published OpenAPI is true: schemathesis drives every operation in it against real processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.kit.cluster import Cluster, cluster
from tierstore.sdk import SyncStore
from tierstore.wire import MEDIA_TYPE

# Messages between sites are MessagePack: to a client that was made from the description, bytes of a type of their own.
schemathesis.serializer.alias(MEDIA_TYPE, "application/octet-stream")

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
#: Draining real servers is a test of its own.
_LEFT_OUT = "/v1/admin/servers/{name}/"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("openapi")) as started:
        with SyncStore(started.gateway, started.token) as store:
            store.create_bucket("bkt")
            store.put("bkt", "key", b"0123456789")
        yield started


def test_every_operation_answers_as_described(running: Cluster) -> None:
    """No 5xx; statuses, content types and bodies as published, whatever the parameters are."""
    schema = schemathesis.openapi.from_url(running.gateway + "/v1/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    headers = {"authorization": f"Bearer {running.token}"}
    wrong: list[str] = []
    for operation in operations:
        if operation.path.startswith(_LEFT_OUT):
            continue

        @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def drive(case: Any) -> None:
            case.call_and_validate(headers=headers, checks=CHECKS)

        try:
            drive()
        except Exception as error:  # all operations are tried; what went wrong is collected and shown together
            wrong.append(f"{operation.method.upper()} {operation.path}: {error}")
    assert len(operations) > 20
    assert not wrong, "\n\n".join(wrong)
