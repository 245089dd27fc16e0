"""The same port under TLS: hot routes go through the ASGI adapter, the pooled client verifies the certificate."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.contract.exchange_subjects import QUICK, Handlers, application, run
from tests.kit.waits import until
from tierstore.errors import UnavailableError
from tierstore.serving.run import Serving, listen
from tierstore.transport.pool import PooledTransport


def certificate(folder: Path) -> tuple[str, str]:
    cert, key = str(folder / "c.pem"), str(folder / "k.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def test_every_shape_of_exchange_works_under_tls(tmp_path: Path) -> None:
    """Flow control differs under TLS: a write mark of 0 once paused every answer for ever."""
    cert, key = certificate(tmp_path)

    async def main() -> None:
        handlers = Handlers()
        routes = handlers.routes()
        serving = Serving(
            application(routes, declares=False), routes, sock=listen("127.0.0.1", 0), limits=QUICK,
            tls_certificate=cert, tls_key=key,
        )  # fmt: skip
        task = asyncio.create_task(serving.run())
        await until(lambda: serving.is_started)
        transport = PooledTransport(tls=ssl.create_default_context(cafile=cert))
        stranger = PooledTransport(tls=ssl.create_default_context())
        url = f"https://127.0.0.1:{serving.port}"
        whole = b"prefix" + handlers.content[1000:]
        for _ in range(2):
            assert (await transport.call(url, b"GET", b"/hot/small", seconds=60)).body == b"small"
            assert (await transport.call(url, b"GET", b"/cold", seconds=60)).status == 200
            stream = await transport.open(url, b"GET", b"/hot/file", seconds=60)
            assert await stream.read_all(len(whole)) == whole
            stream.close()
            upload = await transport.upload(url, b"PUT", b"/hot/count/x", length=3_000_000, seconds=60)
            for _ in range(30):
                await upload.write(b"x" * 100_000)
            assert (await upload.finish()).body == b"3000000"
        with pytest.raises(UnavailableError):
            await stranger.call(url, b"GET", b"/hot/small", seconds=60)
        await transport.close()
        await stranger.close()
        serving.stop()
        await task
        handlers.file.close()

    run(main())
