"""Two sites that speak HTTPS to each other under a CA of their own: one by its gateway's own TLS, one behind a proxy;
who shows a certificate of another CA is not spoken to. Real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.integration.test_sites import Site
from tests.kit.cluster import cluster, wait_until
from tests.kit.tls import Authority, SecureGateway


@contextlib.asynccontextmanager
async def front(site: Site, files: tuple[str, str]) -> AsyncIterator[str]:
    """A proxy that speaks TLS before a site's plain gateway; its URL."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)
    port = int(site.url.rsplit(":", 1)[1])

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65_536):
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def _state(site: Site) -> str:
    return str(site.admin("GET", "replication")["targets"][0]["state"])


@pytest.mark.slow
def test_sites_speak_https_under_their_own_ca_and_to_nobody_else(tmp_path: Path) -> None:
    """Sites are joined over networks that are not theirs: whoever sits between may not pose as a site."""
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    env = {"TIERSTORE_TLS__CA_FILE": str(ours.file)}
    with cluster(tmp_path / "c", "--sites", "2", "--servers", "2", env=env) as c:
        with httpx.Client(headers={"authorization": f"Bearer {c.token}"}, timeout=180) as http:
            a, b = (Site(site["name"], site["gateway"], http) for site in c.ready["sites"])
            certificate, key = ours.issue("gateway")
            secure = SecureGateway(
                c, "gateway", "gateway1", 19, {"tls": {"certificate": certificate, "key": key}}, ca_file=str(ours.file)
            ).start()
            try:
                asyncio.run(_walk(a, b, secure.url, ours.issue("proxy"), theirs.issue("impostor")))
            finally:
                secure.kill()


async def _walk(a: Site, b: Site, secure: str, proxy: tuple[str, str], impostor: tuple[str, str]) -> None:
    def at(here: Site, there: Site, url: str) -> None:
        here.admin("PATCH", f"sites/{there.name}", json={"gateways": [url]})

    async with front(b, proxy) as good, front(b, impostor) as bad:
        await asyncio.to_thread(at, a, b, good)
        await asyncio.to_thread(at, b, a, secure)

        def write() -> None:
            assert a.http.put(f"{a.url}/v1/buckets/bbb").status_code == 201
            a.rules("bbb", b.name, bodies="on-demand")
            assert a.http.put(f"{a.url}/v1/buckets/together").status_code == 201
            a.rules("together", b.name, mode="sync", on_failure="fail")
            body = os.urandom(3 << 20)
            assert a.put("far", body).status_code == 200
            assert a.put("k", body, "together").status_code == 200          # pushed by the proxy
            assert b.get("k", "together").content == body
            a.drained()
            assert b.get("far").content == body                            # fetched from the gateway's own TLS

        await asyncio.to_thread(write)
        await asyncio.to_thread(at, a, b, bad)
        await asyncio.to_thread(
            wait_until, lambda: _state(a) == "unreachable", seconds=60, what="the impostor is not spoken to"
        )
        refused = await asyncio.to_thread(a.put, "secret", b"x", "together")
        assert refused.status_code == 503
        assert (await asyncio.to_thread(b.get, "secret", "together")).status_code == 404
        await asyncio.to_thread(at, a, b, good)
        await asyncio.to_thread(a.drained)
        assert (await asyncio.to_thread(b.get, "secret", "together")).content == b"x"
