"""Requests matched to operations: none that AWS knows is taken for another one."""

from __future__ import annotations

from typing import Final

import botocore.session
import pytest

from tierstore.gateway.s3.operations import Scope, find

_MODEL = botocore.session.get_session().get_service_model("s3")
#: Behind another host, or told apart by the host alone.
_ELSEWHERE: Final = frozenset({"WriteGetObjectResponse", "ListDirectoryBuckets"})
#: The model has their parameter in the request's shape only.
_OF_UPLOADS: Final = frozenset({
    "AbortMultipartUpload", "CompleteMultipartUpload", "ListParts", "UploadPart", "UploadPartCopy",
})  # fmt: skip


def target_of(name: str) -> tuple[str, Scope, str]:
    """(method, scope, the parameter that names the sub-resource) of an operation of AWS's model."""
    http = _MODEL.operation_model(name).http
    path, _, query = http["requestUri"].partition("?")
    scope: Scope = "object" if "{Key+}" in path else "bucket" if "{Bucket}" in path else "service"
    if name in _OF_UPLOADS:
        query = "uploadId"
    return http["method"], scope, query.partition("=")[0].partition("&")[0]


@pytest.mark.parametrize("name", sorted(set(_MODEL.operation_names) - _ELSEWHERE))
def test_no_operation_of_aws_is_taken_for_another(name: str) -> None:
    """DeleteObjectAnnotation deleted the object, PutObjectAnnotation and UpdateObjectEncryption replaced it, and
    DeleteBucketMetricsConfiguration removed an empty bucket."""
    method, scope, query = target_of(name)
    found = find(method, scope, frozenset({query} - {""}), is_copy=name in ("CopyObject", "UploadPartCopy"))
    assert found is not None
    assert (found.query if query else found.name) == (query or name)


@pytest.mark.parametrize(
    ("method", "scope", "query"),
    [
        ("DELETE", "bucket", "versioning"), ("DELETE", "bucket", "notification"), ("PUT", "bucket", "versions"),
        ("DELETE", "object", "retention"), ("PUT", "object", "attributes"), ("POST", "bucket", "acl"),
    ],
)  # fmt: skip
def test_writes_on_sub_resources_that_cannot_be_written_are_none(method: str, scope: Scope, query: str) -> None:
    """A DELETE of a bucket's versioning is a method that is not allowed; it must not delete the bucket."""
    assert find(method, scope, frozenset({query}), is_copy=False) is None
    assert find(method, scope, frozenset({query}), is_copy=True) is None


def test_parameters_that_name_nothing_are_passed_over() -> None:
    """SDKs say which operation they mean (x-id), and clients add what they like."""
    for method, name in (("PUT", "PutObject"), ("GET", "GetObject"), ("DELETE", "DeleteObject")):
        found = find(method, "object", frozenset({"x-id", "foo"}), is_copy=False)
        assert found is not None and found.name == name
