"""One object server alone, for benches and tests: a process with devices, keys and grants but no metadata service.

Owns the process and its directory. The state file is written as an earlier life would have left it, so the server
serves at once with the keys it kept; tickets are minted here with the same key.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from objectd.agent_state import AgentState, AgentStateFile
from objectd.store.disk import DiskDevice
from objectd.store.settings import StoreSettings
from tierstore.clock import SystemClock
from tierstore.config import toml
from tierstore.names import ChunkId, DeviceId, ServerId, Tier, UploadId
from tierstore.ticket import ReadTicket, Receipt, WriteTicket, mint_read, mint_write, open_receipt
from tierstore.wire.cluster import DeviceGrant, TicketKey

SERVER = ServerId(7)
KEY_ID = 3
START_SECONDS = 120.0     # a busy machine may take long to load the code; one that is ready costs nothing
STOP_SECONDS = 120.0


@dataclass
class StandaloneObjectd:
    """devices: (directory name, tier). settings: sections that replace the defaults below. cpu: pin the process."""

    directory: Path
    devices: tuple[tuple[str, Tier], ...] = (("ssd", "ssd"), ("hdd", "hdd"))
    settings: dict[str, dict[str, object]] = field(default_factory=dict)
    capacity: int = 4 << 30
    cpu: int | None = None
    metadata: str = "http://127.0.0.1:9"        # nobody listens on the discard port
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    process: subprocess.Popen[bytes] | None = None
    port: int = 0

    def prepare(self) -> None:
        """Format the devices and write the state an earlier life would have left."""
        asyncio.run(self._prepare())

    async def _prepare(self) -> None:
        grants = []
        for number, (name, tier) in enumerate(self.devices, 1):
            path = self.directory / name
            path.mkdir(parents=True, exist_ok=True)
            device = await DiskDevice.open(
                str(path), tier=tier, capacity_bytes=self.capacity, clock=SystemClock(), settings=StoreSettings()
            )
            grants.append(DeviceGrant(device.uuid, number))
            await device.close()
        file = AgentStateFile(str(self.directory / "state"))
        state = file.open(name="alone", new_instance=secrets.token_bytes(16))
        file.save(
            AgentState(
                name="alone", instance=state.instance, incarnation=state.incarnation, server=SERVER,
                secret="tsd.7.x", cluster_id="alone", site="site1", site_id=1, devices=grants,
                ticket_keys=[TicketKey(KEY_ID, self.key)],
            )
        )  # fmt: skip
        file.close()

    def start(self) -> None:
        """Start the process and wait until it answers."""
        self.port = self.port or _free_port()
        tree: dict[str, object] = {
            "listen": {"host": "127.0.0.1", "port": self.port},
            "membership": {"metadata": [self.metadata], "name": "alone", "data": str(self.directory / "state")},
            "upkeep": {"scrub": False, **self.settings.get("upkeep", {})},
            "chunks": {"speed_test": False, **self.settings.get("chunks", {})},
            "log": {"level": "error"},
            "devices": [
                {"path": str(self.directory / name), "tier": tier, "capacity": self.capacity}
                | self.settings.get(f"device.{name}", {})
                for name, tier in self.devices
            ],
        }
        config = self.directory / "objectd.toml"
        config.write_text(toml.dumps(tree))
        command = [sys.executable, "-m", "objectd", "--config", str(config)]
        if self.cpu is not None:
            command = ["taskset", "-c", str(self.cpu), *command]
        self.process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/-/healthz", timeout=1):
                    return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    self.stop()
                    raise RuntimeError("the object server did not start") from None
                time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it and wait; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write_ticket(self, upload: UploadId, *, device: int = 1, count: int = 1 << 20, seconds: int = 300) -> bytes:
        ticket = WriteTicket(
            SERVER, DeviceId(device), upload, 0, count, 64 << 20, int(time.time()) + seconds
        )
        return mint_write(ticket, key_id=KEY_ID, key=self.key)

    def read_ticket(
        self, chunk: ChunkId, *, device: int = 1, segment: int = 0, offset: int = 0, size: int, seconds: int = 300
    ) -> bytes:
        ticket = ReadTicket(SERVER, DeviceId(device), chunk, segment, offset, size, int(time.time()) + seconds)
        return mint_read(ticket, key_id=KEY_ID, key=self.key)

    def ticket_of(self, receipt: bytes) -> bytes:
        """A read ticket for what a receipt names."""
        at = self.receipt(receipt)
        return self.read_ticket(
            at.chunk, device=at.device, segment=at.segment, offset=at.offset, size=at.chunk_bytes
        )

    def receipt(self, text: bytes) -> Receipt:
        return open_receipt(text, {KEY_ID: self.key})

    @staticmethod
    def new_upload() -> UploadId:
        return UploadId(int(time.time() * 1000).to_bytes(6, "big") + os.urandom(6))


def _free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
