"""The S3 door's parsers under anything at all: a documented error, never another exception, whatever the bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierstore.auth import sigv4
from tierstore.auth.policy_language import Policy, PolicyError
from tierstore.auth.sigv4 import SignatureError
from tierstore.errors import TierstoreError
from tierstore.gateway.s3 import cors, documents, lifecycle, lock_forms, notifications, tagging
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.forms import FormDecoder, FormPolicy, boundary_of
from tierstore.gateway.s3.request import parse_query

NAMES = (
    "LifecycleConfiguration", "Rule", "ID", "Status", "Filter", "And", "Prefix", "Tag", "Key", "Value", "Expiration",
    "Days", "Date", "Transition", "StorageClass", "NoncurrentDays", "CORSConfiguration", "CORSRule", "AllowedMethod",
    "AllowedOrigin", "Tagging", "TagSet", "ObjectLockConfiguration", "ObjectLockEnabled", "DefaultRetention", "Mode",
    "Years", "Retention", "RetainUntilDate", "NotificationConfiguration", "TopicConfiguration", "Topic", "Event",
    "S3Key", "FilterRule", "Name", "ObjectSizeGreaterThan", "AbortIncompleteMultipartUpload", "DaysAfterInitiation",
)  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(["Enabled", "1", "-1", "0", "99999999999999999999", "1e3", "2030-01-01T00:00:00Z", "0001-01-01",
                     "GOVERNANCE", "GET", "*", "", "GLACIER", "s3:ObjectCreated:*", "arn:tierstore:sns:::x", "٣"]),
    st.text(max_size=20),
)  # fmt: skip
TREES = st.recursive(
    st.builds(lambda name, value: documents.element(name, value), st.sampled_from(NAMES), TEXTS),
    lambda inner: st.builds(
        lambda name, parts: f"<{name}>{''.join(parts)}</{name}>", st.sampled_from(NAMES), st.lists(inner, max_size=5)
    ),
    max_leaves=20,
)
PARSERS: dict[str, Callable[[documents.Node], Any]] = {
    "lifecycle": lifecycle.parse_rules, "cors": cors.parse_rules, "notifications": notifications.parse_rules,
    "lock": lock_forms.parse_configuration, "retention": lambda node: lock_forms.parse_retention(node, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=150, deadline=None)
@given(tree=TREES)
def test_any_document_is_taken_or_refused(name: str, tree: str) -> None:
    """An exception that is no S3Error would be a 500."""
    with contextlib.suppress(S3Error):
        PARSERS[name](documents.parse(tree.encode("utf-8", "surrogatepass")))


@settings(max_examples=200, deadline=None)
@given(body=st.one_of(st.binary(max_size=300), TREES.map(str.encode)))
def test_any_bytes_are_xml_or_malformed(body: bytes) -> None:
    """Entities, broken encodings, half documents."""
    with contextlib.suppress(S3Error):
        documents.parse(body)
    with contextlib.suppress(S3Error):
        tagging.parse_tagging(body)


def test_entities_depth_and_encodings_are_refused() -> None:
    """The old tricks."""
    laughs = b'<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><a>&d;</a>'
    for body in (laughs, b"<a>" * 100 + b"</a>" * 100, b'<?xml version="1.0" encoding="utf-42"?><a/>', b"\xff\xfe<a/>"):
        with pytest.raises(S3Error):
            documents.parse(body)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200), headers=st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=40))))
def test_any_authorization_header_is_refused_politely(text: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Random text, and text that begins as it should."""
    for value in (text, f"AWS4-HMAC-SHA256 {text}", f"AWS4-HMAC-SHA256 Credential={text}, SignedHeaders={text}, "
                  f"Signature={text}"):  # fmt: skip
        with contextlib.suppress(SignatureError):
            sigv4.parse_header(value, headers)
    pairs = [(name, text) for name in ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires",
                                       "X-Amz-SignedHeaders", "X-Amz-Signature")]  # fmt: skip
    with contextlib.suppress(SignatureError):
        sigv4.parse_query(pairs)


@settings(max_examples=200, deadline=None)
@given(query=st.binary(max_size=200))
def test_any_query_is_read_or_refused(query: bytes) -> None:
    with contextlib.suppress(S3Error):
        parse_query(query)


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(max_size=100), st.binary(max_size=100).map(lambda raw: raw.decode("latin-1"))))
def test_any_policy_is_read_or_refused(text: str) -> None:
    for opened in (Policy.of, Policy.of_user):
        with contextlib.suppress(PolicyError):
            opened(text)
    with contextlib.suppress(S3Error):
        FormPolicy(text, 0)


def fed(body: bytes, cuts: list[int]) -> tuple[dict[str, str], bytes]:
    """What a decoder makes of a body that comes in these pieces."""
    out = bytearray()
    decoder = FormDecoder(b"BOUND", lambda: None)
    decoder.take = lambda piece: out.extend(piece)
    at = 0
    for cut in [*cuts, len(body)]:
        decoder.feed(memoryview(body)[at : at + cut])
        at += cut
    decoder.finish()
    return decoder.fields, bytes(out)


@settings(max_examples=150, deadline=None)
@given(
    fields=st.dictionaries(st.sampled_from(["key", "acl", "policy", "x-amz-meta-a"]), st.text("ab\r\n-é", max_size=30)),
    file=st.binary(max_size=500), cuts=st.lists(st.integers(1, 60), max_size=30),
)  # fmt: skip
def test_a_form_is_the_same_in_any_pieces(fields: dict[str, str], file: bytes, cuts: list[int]) -> None:
    """The network cuts where it likes, also through a boundary; look-alikes stay in the file."""
    file = file + b"\r\n--BOUN" + file
    body = b"".join(
        b'--BOUND\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value.encode())
        for name, value in fields.items()
    )
    body += b'--BOUND\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    body += file + b"\r\n--BOUND--\r\n"
    assert fed(body, cuts) == (fields, file)


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=400), cuts=st.lists(st.integers(1, 60), max_size=10))
def test_any_bytes_are_a_form_or_refused(body: bytes, cuts: list[int]) -> None:
    for raw in (body, b"--BOUND\r\n" + body, b'--BOUND\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + body):
        with contextlib.suppress(S3Error, TierstoreError):
            fed(raw, cuts)
    with contextlib.suppress(S3Error):
        boundary_of(body.decode("latin-1"))
