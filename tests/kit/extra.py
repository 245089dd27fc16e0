"""More daemons beside a running cluster: a second metadata process on the same database, a gateway that uses it."""

from __future__ import annotations

import signal
import subprocess
import sys
import tomllib
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kit.cluster import Cluster, wait_until
from tierstore.config import toml

_MODULES = {"metadata": ["metadata", "serve"], "gateway": ["tierstore.gateway"]}
STOP_SECONDS = 120.0


@dataclass
class Extra:
    """One daemon made after another's settings, on a port of its own; `start` again after `kill`."""

    cluster: Cluster
    role: str
    like: str               # the process whose settings it takes
    offset: int             # of the port from the cluster's base
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.cluster.port_base + self.offset}"

    def start(self) -> Extra:
        directory = self.cluster.data / f"extra-{self.role}"
        directory.mkdir(exist_ok=True)
        settings = tomllib.loads((self.cluster.data / "cluster" / "config" / f"{self.like}.toml").read_text())
        port = self.cluster.port_base + self.offset
        settings["listen"] = {"host": "127.0.0.1", "port": port, "advertise": self.url}
        if "membership" in settings:
            settings["membership"] |= {"name": f"extra-{self.role}", "data": str(directory)}
        for section, values in self.changes.items():
            settings[section] = {**settings.get(section, {}), **values}
        config: Path = directory / "settings.toml"
        config.write_text(toml.dumps(settings))
        with open(directory / "extra.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *_MODULES[self.role], "--config", str(config)], stdout=log, stderr=log
            )
        wait_until(self._is_ready, seconds=240, what=f"extra {self.role} ready")
        return self

    def _is_ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, f"extra {self.role} ended"
        try:
            with urllib.request.urlopen(self.url + "/-/readyz", timeout=20) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """kill -9, and wait until it is gone. Safe to repeat."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(STOP_SECONDS)
            self.process = None
