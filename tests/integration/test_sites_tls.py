"""Two sites that speak HTTPS to each other under a CA of their own: one by its gateway's own TLS, one behind a proxy;
who shows a certificate of another CA is not spoken to. Real processes."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import os
import ssl
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.integration.test_sites import Site
from tests.kit.cluster import cluster, wait_until
from tests.kit.extra import Extra


@dataclass
class Authority:
    """A CA and its file; `issue` makes a certificate for 127.0.0.1."""

    folder: Path
    name: str

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        made = self._builder(self._subject, self._key.public_key())
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        made = made.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
        )
        made = made.add_extension(
            x509.KeyUsage(
                digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
                key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                decipher_only=False,
            ), critical=True,
        )  # fmt: skip
        self.file = self.folder / f"{self.name}.pem"
        self.file.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject).issuer_name(self._subject).public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=2))
        )  # fmt: skip

    def issue(self, name: str) -> tuple[str, str]:
        """(certificate, key), as files."""
        key = ec.generate_private_key(ec.SECP256R1())
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(subject, key.public_key())
        made = made.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        made = made.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
        )
        files = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        files[0].write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return str(files[0]), str(files[1])


class SecureGateway(Extra):
    """One more gateway of the first site, with [tls]."""

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")

    def _is_ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, "the gateway ended"
        context = ssl.create_default_context(cafile=self.cluster.env["TIERSTORE_TLS__CA_FILE"])
        try:
            with urllib.request.urlopen(self.url + "/-/readyz", timeout=20, context=context) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


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
                c, "gateway", "gateway1", 19, {"tls": {"certificate": certificate, "key": key}}
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
