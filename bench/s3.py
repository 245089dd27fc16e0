"""S3 GET and PUT beside the native REST of the same gateway, in turns; a PUT of 1 MiB beside its MD5.

`python -m bench.s3 [--rows get4k,put1m] [--rounds N] [--seconds S]`. S3's requests are presigned (SigV4 in the query),
so that one load client serves both sides; every one is verified. Bodies of PUTs carry UNSIGNED-PAYLOAD: MD5 and
CRC64NVME of S3 are in the figure, SHA-256 of the payload, which few clients of plain HTTP send, is not.

The row put1m is judged by the processor: that of all servers (two copies, in memory where `--directory` is a tmpfs, as
/dev/shm) for one PUT, over that of hashlib.md5 alone for the same bytes, taken around the windows on the same core.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from pathlib import Path

import boto3
from botocore.config import Config

from bench import ratio
from bench.cluster import BUCKET, Running, running
from bench.options import bench_main
from bench.processes import pinned
from bench.result import Result

#: row -> (method, bytes, objects, must, aim)
ROWS = {
    "get4k": ("GET", 4 << 10, 256, 0.75, 0.9),
    "get1m": ("GET", 1 << 20, 32, 0.9, 0.95),
    "put4k": ("PUT", 4 << 10, 256, 0.75, 0.9),
    "put1m": ("PUT", 1 << 20, 32, 3.5, 2.5),
}
_MD5_TIMES = 200
_OPERATIONS = {"GET": "get_object", "PUT": "put_object"}


def run(root: Path, options: argparse.Namespace) -> list[Result]:
    httpload = ratio.build_httpload(root)
    with running(root / "cluster", cpu=ratio.SERVER_CPU) as cluster:
        return [_row(root, httpload, cluster, name, options) for name in options.rows]


def _row(root: Path, httpload: Path, cluster: Running, name: str, options: argparse.Namespace) -> Result:
    method, size, count, must, aim = ROWS[name]
    body = root / f"body-{name}"
    body.write_bytes(os.urandom(size))
    keys = [f"{name}-{number}" for number in range(count)]
    for key in keys:
        cluster.request("PUT", f"/v1/objects/{BUCKET}/{key}", body.read_bytes())
    signed, plain = root / f"signed-{name}", root / f"plain-{name}"
    signed.write_text("\n".join(_presigned(cluster, method, keys)))
    plain.write_text("\n".join(f"/v1/objects/{BUCKET}/{key}" for key in keys))
    sends = ["-m", "PUT", "-f", str(body)] if method == "PUT" else ["-t"] if size >= 1 << 20 else []
    port = ["-p", str(cluster.gateway_port)]
    token = ["-H", f"Authorization: {cluster.authorization}"]
    ours = ratio.Side("S3", cluster.up, lambda: [*port, *sends, "-T", str(signed)])
    native = ratio.Side("native", cluster.up, lambda: [*port, *sends, *token, "-T", str(plain)])
    before = _md5_us(body.read_bytes())
    found = ratio.compare(httpload, ours, native, rounds=options.rounds, seconds=options.seconds)
    if name != "put1m":
        return found.result(f"S3 {method} {name[3:]} : native", must=must, aim=aim)
    md5_us = (before + _md5_us(body.read_bytes())) / 2
    detail = (f"MD5 alone {md5_us:,.0f} us; {found.ours_rate:,.0f}/s; native {found.reference_rate:,.0f}/s "
              f"{found.reference_cpu_us:,.0f} us; by rate {found.ratio:.2f}, by CPU {found.cpu_ratio:.2f}")  # fmt: skip
    return Result("S3 PUT 1m CPU : MD5 alone", found.ours_cpu_us / md5_us, must=must, aim=aim, is_less_better=True,
                  cpu_us=found.ours_cpu_us, detail=detail)  # fmt: skip


def _md5_us(body: bytes) -> float:
    """Processor time of one MD5 of it, on the servers' core."""
    with pinned(ratio.SERVER_CPU):
        began = time.thread_time()
        for _ in range(_MD5_TIMES):
            hashlib.md5(body, usedforsecurity=False)
        return (time.thread_time() - began) / _MD5_TIMES * 1e6


def _presigned(cluster: Running, method: str, keys: list[str]) -> list[str]:
    """Targets with a signature for the host name that the load client sends."""
    client = boto3.client(
        "s3", endpoint_url="http://x", region_name="us-east-1",
        aws_access_key_id=cluster.cluster.ready["access_key"],
        aws_secret_access_key=cluster.cluster.ready["secret_key"],
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )  # fmt: skip
    urls = [client.generate_presigned_url(_OPERATIONS[method], {"Bucket": BUCKET, "Key": key}) for key in keys]
    return [url.removeprefix("http://x") for url in urls]


if __name__ == "__main__":
    bench_main("S3 beside the native REST of the same gateway", list(ROWS), run, rounds=5, seconds=0.6)
