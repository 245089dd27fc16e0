"""A real cluster of real processes in a directory, started by `tierstore up`, for integration and fault tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kit.ports import free_port_base, release_port_base

START_SECONDS = 600.0
STOP_SECONDS = 240.0
#: No wait gives up earlier, however short its caller thinks the way is: a wait that succeeds costs nothing, and a
#: machine that others share may stand still for longer than any step of a test should take.
WAIT_SECONDS_MIN = 300.0

#: What every test cluster gets beside its own settings: patience with processes that load their code on a machine that
#: others share. What a test says itself goes first.
PATIENCE = {
    "TIERSTORE_TIMERS__METADATA_RESTART": "120s", "TIERSTORE_TIMERS__NO_PLACEMENT": "10s",
    "TIERSTORE_TIMERS__DEAD": "60s", "TIERSTORE_UPLOADS__PLACEMENT_WAIT": "40s",
}  # fmt: skip


def wait_until(
    condition: Callable[[], Any], *, seconds: float, what: str | Callable[[], str], every: float = 0.05
) -> Any:
    """The first true value of condition(). Fails with `what` after the deadline, which is WAIT_SECONDS_MIN or later;
    a function is called then, so that it can tell how things stand."""
    seconds = max(seconds, WAIT_SECONDS_MIN)
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what if isinstance(what, str) else what()}")
        time.sleep(every)  # polling with a deadline is what this function is for


@dataclass
class Process:
    role: str
    name: str
    url: str
    argv: list[str]
    devices: list[dict[str, Any]]


@dataclass
class Cluster:
    """Use `with cluster(tmp_path) as c`."""

    data: Path
    flags: list[str]
    env: dict[str, str]
    port_base: int
    up: subprocess.Popen[bytes] | None = None
    ready: dict[str, Any] = field(default_factory=dict)

    # -- life ----------------------------------------------------------------------------------------------------
    def start(self) -> Cluster:
        ready_file = self.data / "ready.json"
        ready_file.unlink(missing_ok=True)
        self.data.mkdir(parents=True, exist_ok=True)
        with open(self.data / "up.log", "ab") as log:
            self.up = subprocess.Popen(
                [sys.executable, "-m", "tierstore.cli.main", "up", "--data", str(self.data / "cluster"),
                 "--port-base", str(self.port_base), "--ready-file", str(ready_file), *self.flags],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, **PATIENCE, **self.env},
            )  # fmt: skip

        def is_ready() -> bool:
            assert self.up is not None
            if self.up.poll() is not None:
                raise AssertionError(f"`tierstore up` ended with {self.up.returncode}:\n{self.log_tail()}")
            return ready_file.exists()

        try:
            wait_until(is_ready, seconds=START_SECONDS, what="ready file")
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}\n{self.log_tail()}") from None
        self.ready = json.loads(ready_file.read_text())
        return self

    def stop(self) -> int:
        """Orderly; returns the exit status of `up`. Kills what does not end in STOP_SECONDS."""
        if self.up is None:
            return 0
        up, self.up = self.up, None
        children = _descendants(up.pid)
        up.send_signal(signal.SIGTERM)
        try:
            status = up.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            status = -9
            up.kill()
            up.wait()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return status

    def kill_everything(self) -> None:
        """As a power cut does to processes: all at once, no goodbye."""
        assert self.up is not None
        up = self.up.pid
        os.kill(up, signal.SIGSTOP)     # what it starts after a look at its children would outlive them
        wait_until(lambda: _state(up) in ("T", "Z", ""), seconds=20, what="`tierstore up` stopped")
        pids = [up, *_descendants(up)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.up.wait()
        self.up = None
        wait_until(lambda: not any(_is_running(pid) for pid in pids), seconds=20, what="killed processes gone")

    def log_tail(self, size: int = 6000) -> str:
        texts = []
        for path in [self.data / "up.log", *sorted(self.data.rglob("*.log"))]:
            if path.exists():
                texts.append(f"--- {path.name}\n{path.read_bytes()[-size:].decode(errors='replace')}")
        return "\n".join(texts)

    # -- what is there ---------------------------------------------------------------------------------------------
    @property
    def gateway(self) -> str:
        return str(self.ready["sites"][0]["gateway"])

    @property
    def token(self) -> str:
        return str(self.ready["token"])

    def processes(self, role: str = "") -> list[Process]:
        return [
            Process(p["role"], p["name"], p["url"], p["argv"], p.get("devices", []))
            for p in self.ready["sites"][0]["processes"]
            if role in ("", p["role"])
        ]

    def pid(self, name: str) -> int:
        """The process that runs now under that name (children are restarted, so pids change); 0 if none."""
        assert self.up is not None
        wanted = next(p for p in self.processes() if p.name == name)
        for pid in _descendants(self.up.pid):
            if _argv(pid) == wanted.argv:
                return pid
        return 0

    def site_pid(self, site: str, role: str) -> int:
        """The first process that runs now in that role of a site; 0 if none."""
        assert self.up is not None
        processes = next(s["processes"] for s in self.ready["sites"] if s["name"] == site)
        wanted = next(p["argv"] for p in processes if p["role"] == role)
        return next((pid for pid in _descendants(self.up.pid) if _argv(pid) == wanted), 0)

    def send_signal(self, name: str, number: int) -> int:
        """Send a signal to a process; returns its pid."""
        pid = int(wait_until(lambda: self.pid(name), seconds=20, what=f"{name} running"))
        os.kill(pid, number)
        return pid

    def kill(self, name: str) -> None:
        """kill -9, and wait until it is gone."""
        pid = self.send_signal(name, signal.SIGKILL)
        wait_until(lambda: self.pid(name) != pid, seconds=20, what=f"{name} gone")


@contextlib.contextmanager
def cluster(data: Path, *flags: str, env: dict[str, str] | None = None) -> Iterator[Cluster]:
    """A running cluster; stopped (and its log shown on failure) at the end."""
    sites = int(flags[flags.index("--sites") + 1]) if "--sites" in flags else 1
    base = free_port_base(sites)
    running = Cluster(data, list(flags), env or {}, base)
    try:
        yield running.start()
    except BaseException:
        print(running.log_tail())
        raise
    finally:
        running.stop()
        release_port_base(base)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as children:
                for child in children.read().split():
                    found += [int(child), *_descendants(int(child))]
    except OSError:
        pass  # it ended while we looked
    return found


def _argv(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [part.decode() for part in file.read().split(b"\0")[:-1]]
    except OSError:
        return []


def _state(pid: int) -> str:
    """As ps shows it; "" for none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def _is_running(pid: int) -> bool:
    """False once none of its threads is left: a killed process whose first thread is a zombie still has its files, and
    their locks, while another one is in a system call that must end (a sync)."""
    if _state(pid) not in ("", "Z", "X"):
        return True
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False
