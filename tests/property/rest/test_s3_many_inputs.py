"""S1 for the parsers of the S3 door: a million inputs, good ones that were damaged, and none of them does harm.

Hypothesis looks for the small and the strange (test_s3_fuzz, test_s3_chunks); this is the mass, from a seed: bytes are
changed, doubled, cut out and exchanged between inputs. An exception that no parser documents fails it, as does an input
that holds the parser for a second of processor time. It counts what it did, and fails when that was less than it says.
"""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Callable
from typing import Final

import pytest

from tierstore import ticket
from tierstore.auth import sigv4
from tierstore.auth.policy_language import Policy, PolicyError
from tierstore.auth.sigv4 import SignatureError
from tierstore.errors import TierstoreError
from tierstore.gateway.object_request import parse_range
from tierstore.gateway.s3 import cors, documents, lifecycle, lock_forms, notifications, replication_forms, tagging
from tierstore.gateway.s3.body import ChunkedDecoder
from tierstore.gateway.s3.completion import named_part
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.forms import FormDecoder, FormPolicy
from tierstore.gateway.s3.request import parse_query
from tierstore.names import ChunkId, DeviceId, ServerId

QUICK, MANY = 2_000, 1_000_000
CPU_SECONDS_MAX: Final = 1.0
_XML: Final = (
    b"<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>",
    b"<LifecycleConfiguration><Rule><ID>r</ID><Status>Enabled</Status><Filter><And><Prefix>p/</Prefix><Tag><Key>a</Key>"
    b"<Value>b</Value></Tag><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan></And></Filter><Expiration><Days>3</Days>"
    b"</Expiration><NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration></Rule>"
    b"</LifecycleConfiguration>",
    b"<CORSConfiguration><CORSRule><AllowedMethod>GET</AllowedMethod><AllowedOrigin>http://*.a</AllowedOrigin>"
    b"<MaxAgeSeconds>5</MaxAgeSeconds></CORSRule></CORSConfiguration>",
    b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>GOVERNANCE"
    b"</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>",
    b"<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>2030-01-01T00:00:00Z</RetainUntilDate></Retention>",
    b"<NotificationConfiguration><TopicConfiguration><Topic>arn:tierstore:sns:::h</Topic><Event>s3:ObjectCreated:*"
    b"</Event></TopicConfiguration></NotificationConfiguration>",
    b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>&quot;a&quot;</ETag><ChecksumCRC32>AAAAAA=="
    b"</ChecksumCRC32></Part></CompleteMultipartUpload>",
    b"<ReplicationConfiguration><Role>r</Role><Rule><ID>a</ID><Priority>1</Priority><Status>Enabled</Status><Filter>"
    b"<Prefix>p</Prefix></Filter><DeleteMarkerReplication><Status>Disabled</Status></DeleteMarkerReplication>"
    b"<Destination><Bucket>arn:aws:s3:::b</Bucket></Destination></Rule></ReplicationConfiguration>",
)
_AUTHORIZATION: Final = (
    b"AWS4-HMAC-SHA256 Credential=TSKEY/20260101/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature="
    + b"0" * 64
)
_PRESIGNED: Final = (
    b"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=K%2F20260101%2Fr%2Fs3%2Faws4_request&X-Amz-Date="
    b"20260101T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=" + b"0" * 64
)
_POLICY: Final = json.dumps({"Version": "2012-10-17", "Statement": [{
    "Effect": "Allow", "Principal": {"AWS": "*"}, "Action": ["s3:GetObject", "s3:Put*"],
    "Resource": "arn:aws:s3:::b/${aws:username}/*", "Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}},
}]}).encode()  # fmt: skip
_FORM_POLICY: Final = base64.b64encode(json.dumps({
    "expiration": "2030-01-01T00:00:00Z",
    "conditions": [{"bucket": "b"}, ["starts-with", "$key", ""], ["content-length-range", 0, 9]],
}).encode())  # fmt: skip
_CHUNKED: Final = b"5;chunk-signature=" + b"0" * 64 + b"\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"
_FORM: Final = (
    b'--B\r\nContent-Disposition: form-data; name="key"\r\n\r\nk\r\n--B\r\nContent-Disposition: form-data; '
    b'name="file"; filename="f"\r\nContent-Type: text/plain\r\n\r\nbody\r\n--B--\r\n'
)
_KEYS: Final = {1: b"k" * 32}
_TICKET: Final = ticket.mint_read(
    ticket.ReadTicket(ServerId(1), DeviceId(1), ChunkId(b"c" * 16), 1, 0, 4096, 2**31), key_id=1, key=_KEYS[1]
)


def _xml(body: bytes) -> None:
    root = documents.parse(body)
    for read in (
        lifecycle.parse_rules, cors.parse_rules, notifications.parse_rules, lock_forms.parse_configuration, named_part,
        lambda node: lock_forms.parse_retention(node, 0), lambda node: replication_forms.parse_rules(node, "b", ["b"]),
    ):  # fmt: skip
        try:
            read(root)
        except S3Error:
            continue


def _chunked(body: bytes) -> None:
    decoder = ChunkedDecoder(None, lambda piece: None, has_trailer=True)
    decoder.feed(memoryview(body[:7]))
    decoder.feed(memoryview(body[7:]))
    decoder.finish()


def _form(body: bytes) -> None:
    decoder = FormDecoder(b"B", lambda: None)
    decoder.take = lambda piece: None
    decoder.feed(memoryview(body[:50]))
    decoder.feed(memoryview(body[50:]))
    decoder.finish()


def _presigned(body: bytes) -> None:
    sigv4.parse_query(parse_query(body))


#: What reads, and what it is given undamaged.
SUBJECTS: Final[tuple[tuple[Callable[[bytes], object], tuple[bytes, ...]], ...]] = (
    (_xml, _XML), (tagging.parse_tagging, _XML[:1]), (_chunked, (_CHUNKED,)), (_form, (_FORM,)),
    (lambda raw: sigv4.parse_header(raw.decode("latin-1"), [(b"x-amz-date", b"20260101T000000Z")]), (_AUTHORIZATION,)),
    (_presigned, (_PRESIGNED,)), (lambda raw: Policy.of(raw.decode("latin-1")), (_POLICY,)),
    (lambda raw: FormPolicy(raw.decode("latin-1"), 0), (_FORM_POLICY,)),
    (parse_range, (b"bytes=0-99", b"bytes=-5", b"bytes=3-")),
    (lambda raw: ticket.open_read(raw, _KEYS, server=ServerId(1), now_seconds=0), (_TICKET,)),
)  # fmt: skip
_ODD: Final = (b"\x00", b"\r\n", b"9" * 30, b"-1", b"<", b"&#0;", b"%", b"\xff\xfe", b"${", b"*")
_DOCUMENTED: Final = (S3Error, SignatureError, PolicyError, TierstoreError)


def damaged(good: bytes, chance: random.Random) -> bytes:
    """One to four changes: a byte, a piece gone, doubled or taken from elsewhere, digits that are too many."""
    body = bytearray(good)
    for _ in range(chance.randrange(1, 5)):
        at, length = chance.randrange(len(body) + 1), chance.randrange(1, 24)
        kind = chance.randrange(6)
        if kind == 0 and at < len(body):
            body[at] = chance.randrange(256)
        elif kind == 1:
            del body[at : at + length]
        elif kind == 2:
            body[at:at] = body[at : at + length] * chance.choice((1, 2, 40))
        elif kind == 3:
            body[at:at] = good[(there := chance.randrange(len(good))) : there + length]
        elif kind == 4:
            body[at:at] = chance.choice(_ODD)
        else:
            del body[at:]
    return bytes(body)


def read_many(count: int, seed: int) -> dict[str, int]:
    """Feed damaged inputs to every parser in turn; how many were taken and how many refused."""
    chance = random.Random(seed)
    done = {"taken": 0, "refused": 0}
    for number in range(count):
        read, inputs = SUBJECTS[number % len(SUBJECTS)]
        body = damaged(chance.choice(inputs), chance)
        began = time.thread_time()
        try:
            read(body)
            done["taken"] += 1
        except _DOCUMENTED:
            done["refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, input {number}: {body!r}") from error
        assert time.thread_time() - began < CPU_SECONDS_MAX, f"seed {seed}, input {number}: {body[:2000]!r}"
    return done


@pytest.mark.parametrize("count", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])
def test_damaged_inputs_are_taken_or_refused(count: int) -> None:
    """One exception of another kind would be a 500, one slow input a door that stands still."""
    done = read_many(count, seed=count)
    print(f"{count} inputs: {done}")
    assert done["taken"] + done["refused"] == count
    assert min(done.values()) > count / 20, "the damage was so heavy, or so light, that the test asks nothing"
