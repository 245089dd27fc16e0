"""Large bodies go through: the gateway's memory does not grow with them."""

from __future__ import annotations

import http.client
import random
import zlib
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.integration.s3.test_auth import signed
from tests.kit.cluster import Cluster

MIB = 1 << 20
RSS_MAX = 300 * MIB


def peak_bytes(running: Cluster) -> int:
    """Highest RSS that the gateway has had in its life."""
    pid = running.pid(running.processes("gateway")[0].name)
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def put_with_trailer(running: Cluster, path: str, piece: bytes, times: int) -> int:
    """`times` chunks of an aws-chunked body and its CRC32 behind them; the status."""
    whole = 0
    for _ in range(times):
        whole = zlib.crc32(piece, whole)
    head = f"{len(piece):x}\r\n".encode()
    end = b"0\r\nx-amz-checksum-crc32:" + b64encode(whole.to_bytes(4, "big")) + b"\r\n\r\n"
    headers = signed(
        running, path,
        {"x-amz-decoded-content-length": str(len(piece) * times), "x-amz-trailer": "x-amz-checksum-crc32",
         "content-encoding": "aws-chunked"},
        has_trailer=True,
    )  # fmt: skip
    at = urlsplit(running.gateway)
    assert at.hostname is not None
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=300)
    connection.putrequest("PUT", path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        if name.lower() not in ("content-length", "host"):
            connection.putheader(name, value)
    connection.putheader("host", at.netloc)
    connection.putheader("content-length", str((len(head) + len(piece) + 2) * times + len(end)))
    connection.endheaders()
    for _ in range(times):
        connection.send(head + piece + b"\r\n")
    connection.send(end)
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_large_body_with_its_checksum_at_the_end_goes_through(s3: Any, running: Cluster, bucket: str) -> None:
    """64 MiB in aws-chunked pieces: hashed and stored while they come, never held as a whole."""
    piece = random.Random(1).randbytes(MIB)
    assert put_with_trailer(running, f"/{bucket}/large", piece, 64) == 200
    body = s3.get_object(Bucket=bucket, Key="large")["Body"]
    for _ in range(64):
        assert body.read(MIB) == piece
    assert body.read(1) == b""
    assert peak_bytes(running) < RSS_MAX


@pytest.mark.slow
def test_a_multipart_upload_of_five_gib_goes_through(s3: Any, running: Cluster, bucket: str) -> None:
    """80 parts of 64 MiB, four at a time; the whole comes back."""
    part, parts = random.Random(2).randbytes(64 * MIB), 80
    upload = s3.create_multipart_upload(Bucket=bucket, Key="huge")["UploadId"]

    def put(number: int) -> dict[str, Any]:
        done = s3.upload_part(Bucket=bucket, Key="huge", UploadId=upload, PartNumber=number, Body=part)
        return {"PartNumber": number, "ETag": done["ETag"]}

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(put, range(1, parts + 1)))
    s3.complete_multipart_upload(Bucket=bucket, Key="huge", UploadId=upload, MultipartUpload={"Parts": done})
    body = s3.get_object(Bucket=bucket, Key="huge")["Body"]
    for _ in range(parts):
        assert body.read(len(part)) == part
    assert body.read(1) == b""
    assert peak_bytes(running) < RSS_MAX
    s3.delete_object(Bucket=bucket, Key="huge")
