"""The supervisor with daemons that do nothing but answer: its own promises, without those of the cluster."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import sys
import time
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.ports import free_port_base
from tierstore.errors import ConfigError, NotFound, UnavailableError
from tierstore.up import control, plan, probe
from tierstore.up.supervisor import Supervisor

#: Serves /-/readyz on the inherited socket; `crash` in the data directory makes it end at once.
DAEMON = """
import http.server, os, signal, socket, sys, threading
from tierstore.serving.run import inherited
from tierstore.serving.turn import wait_for_turn
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if os.path.exists(os.path.join(os.path.dirname(arguments["--config"]), "crash")):
    print("this daemon crashes", flush=True)
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(os.getpid()).encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
wait_for_turn()
server = http.server.HTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket = inherited(int(arguments["--fd"]))
server.socket.setblocking(True)
server.server_activate()
signal.signal(signal.SIGTERM, lambda *a: threading.Thread(target=server.shutdown).start())
server.serve_forever(0.05)
"""


@pytest.fixture
def daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan the real processes, but run the do-nothing daemon in their place."""
    script = tmp_path / "daemon.py"
    script.write_text(DAEMON)
    monkeypatch.setattr(
        plan.PlannedProcess, "argv",
        lambda self, config, fd: [sys.executable, str(script), "--config", str(config), "--fd", str(fd)],
    )  # fmt: skip


class Running:
    def __init__(self, supervisor: Supervisor, data: Path, ready: dict[str, Any], warnings: list[str]) -> None:
        self.supervisor, self.data, self.ready, self.warnings = supervisor, data, ready, warnings

    def pids(self) -> dict[str, int]:
        return {name: child.pid for name, child in self.supervisor._children.items()}

    async def ask(self, **request: Any) -> dict[str, Any]:
        return await asyncio.to_thread(control.ask, self.data, request, seconds=180)


@asynccontextmanager
async def running(data: Path, **options: Any) -> AsyncIterator[Running]:
    options = {"port_base": free_port_base(), "ready_file": data.parent / "ready.json", **options}
    supervisor = Supervisor(plan.Options(data=data, **options))
    reported: asyncio.Future[tuple[dict[str, Any], list[str]]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(supervisor.run(lambda ready, warnings: reported.set_result((ready, warnings))))
    await asyncio.wait([task, reported], return_when=asyncio.FIRST_COMPLETED, timeout=600)
    if task.done():
        task.result()
    try:
        yield Running(supervisor, data, *reported.result())
    finally:
        supervisor.stop()
        await asyncio.wait_for(task, 600)


async def until(condition: Any, what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)  # polling with a deadline


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.usefixtures("daemons")
def test_the_ready_file_has_the_published_form_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    """Scripts and peers read it; it holds the administrator's key."""

    async def scenario() -> None:
        async with running(tmp_path / "data") as cluster:
            ready = json.loads((tmp_path / "ready.json").read_text())
            assert ready == cluster.ready
            assert set(ready) == {"access_key", "secret_key", "region", "token", "sites"}
            (site,) = ready["sites"]
            assert set(site) == {"name", "gateway", "metadata", "processes"} and site["name"] == "site1"
            assert [p["role"] for p in site["processes"]] == ["metadata", *["objectd"] * 3, "gateway"]
            for process in site["processes"]:
                assert set(process) == {"role", "name", "url", "pid", "argv", "devices"}
                argv = Path(f"/proc/{process['pid']}/cmdline").read_bytes().split(b"\0")[:-1]
                assert [part.decode() for part in argv] == process["argv"]
            base = cluster.supervisor._options.port_base
            ports = [int(p["url"].rpartition(":")[2]) - base for p in site["processes"]]
            assert ports == [0, 11, 12, 13, 80]
            for server in site["processes"][1:4]:
                assert [d["tier"] for d in server["devices"]] == ["ssd", "hdd"]
                assert all(d["capacity_bytes"] > 0 and Path(d["path"]).is_dir() for d in server["devices"])
            private = [tmp_path / "ready.json", *(tmp_path / "data").rglob("keys/*"), tmp_path / "data/up.sock"]
            for path in [*private, tmp_path / "data/profile.toml", *(tmp_path / "data/config").iterdir()]:
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path

    asyncio.run(scenario())


@pytest.mark.usefixtures("daemons")
def test_no_secret_stands_in_a_command_line_or_settings_file(tmp_path: Path) -> None:
    """Process lists are public; settings files get copied into tickets."""

    async def scenario() -> None:
        async with running(tmp_path / "data") as cluster:
            secrets = [cluster.ready["secret_key"], cluster.ready["token"], cluster.supervisor._keys.join_token]
            shown = " ".join(" ".join(p["argv"]) for p in cluster.ready["sites"][0]["processes"])
            shown += "".join(path.read_text() for path in (tmp_path / "data/config").iterdir())
            assert not [secret for secret in secrets if secret in shown]

    asyncio.run(scenario())


@pytest.mark.usefixtures("daemons")
def test_a_killed_child_comes_back_and_the_ready_file_follows(tmp_path: Path) -> None:
    """A crashed object server must not wait for a person."""

    async def scenario() -> None:
        async with running(tmp_path / "data") as cluster:
            before = cluster.pids()
            os.kill(before["objectd2"], signal.SIGKILL)
            await until(lambda: cluster.pids()["objectd2"] != before["objectd2"], "objectd2 started again")
            after = cluster.pids()
            assert {n for n in after if after[n] != before[n]} == {"objectd2"}

            def listed() -> int:
                processes = json.loads((tmp_path / "ready.json").read_text())["sites"][0]["processes"]
                return int(next(p["pid"] for p in processes if p["name"] == "objectd2"))

            await until(lambda: listed() == cluster.pids()["objectd2"], "ready file names the new process")
            status = await cluster.ask(command="status")
            assert {p["name"]: p["deaths"] for p in status["processes"]}["objectd2"] == 1

    asyncio.run(scenario())


@pytest.mark.usefixtures("daemons")
def test_without_restart_a_dead_child_stays_dead(tmp_path: Path) -> None:
    """Fault tests count on it."""

    async def scenario() -> None:
        async with running(tmp_path / "data", restart=False) as cluster:
            pid = cluster.pids()["objectd1"]
            os.kill(pid, signal.SIGKILL)
            child = cluster.supervisor._children["objectd1"]
            await until(lambda: child.deaths == 1, "death noticed")
            assert not child._tasks and not child.is_alive

    asyncio.run(scenario())


@pytest.mark.usefixtures("daemons")
def test_a_dead_object_server_refuses_until_its_successor_serves(tmp_path: Path) -> None:
    """Readers have other copies: they must not wait for one who cannot answer, nor lose the address to a stranger."""

    async def scenario() -> None:
        async with running(tmp_path / "data", restart=False) as cluster:
            port = cluster.supervisor._options.port_base + 11
            child = cluster.supervisor._children["objectd1"]
            os.kill(child.pid, signal.SIGKILL)
            await until(lambda: child.deaths == 1, "death noticed")
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            with socket.socket() as stranger:
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with pytest.raises(OSError, match="in use"):
                    stranger.bind(("127.0.0.1", port))
            answer = await cluster.ask(command="restart", name="objectd1")
            assert (await probe.get("127.0.0.1", port, "/", seconds=180)) == (200, str(answer["pid"]).encode())

    asyncio.run(scenario())


@pytest.mark.usefixtures("daemons")
def test_a_planned_restart_refuses_no_connection(tmp_path: Path) -> None:
    """Rolling restarts are routine: clients that connect meanwhile wait, and are answered by the new process."""

    async def scenario() -> None:
        async with running(tmp_path / "data") as cluster:
            port = cluster.supervisor._options.port_base
            before = cluster.pids()
            for name, offset in (("objectd1", 11), ("metadata1", 0), ("gateway1", 80)):
                restart = asyncio.create_task(cluster.ask(command="restart", name=name))
                statuses = []
                while not restart.done():
                    statuses.append((await probe.get("127.0.0.1", port + offset, "/", seconds=180))[0])
                assert statuses and set(statuses) == {200}, name
                answer = restart.result()
                assert answer["name"] == name and answer["pid"] == cluster.pids()[name] != before[name]
            assert all(child.deaths == 0 for child in cluster.supervisor._children.values())
            with pytest.raises(NotFound, match="none of the processes"):
                await cluster.ask(command="restart", name="objectd9")

    asyncio.run(scenario())


@pytest.mark.usefixtures("daemons")
def test_stop_leaves_no_process_and_the_next_start_continues_with_the_same_keys(tmp_path: Path) -> None:
    """Ctrl-C, then `make run` again: same cluster, same exports."""

    async def scenario() -> None:
        async with running(tmp_path / "data", servers=2, copies=1) as first:
            pids = first.pids()
            assert len(first.warnings) == 1 and "one copy" in first.warnings[0]
        assert not [pid for pid in pids.values() if is_running(pid)]
        async with running(tmp_path / "data") as second:
            assert second.ready["token"] == first.ready["token"]
            assert second.ready["secret_key"] == first.ready["secret_key"]
            assert len(second.pids()) == 4, "two servers, as before"
            settings = tomllib.loads((tmp_path / "data/config/metadata1.toml").read_text())
            assert settings["placement"]["copies"] == 1

    asyncio.run(scenario())


@pytest.mark.usefixtures("daemons")
def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    """kill -9 of `up` must not leave daemons that hold the ports and the data."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio, socket, sys\n"
        "from tierstore.up.child import Child\n"
        "from pathlib import Path\n"
        "async def main():\n"
        "    child = Child('c', ['/bin/sleep', '600'], socket.socket(), Path(sys.argv[1]), keep=True)\n"
        "    child.start()\n"
        "    print(child.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )

    async def scenario() -> None:
        parent = await asyncio.create_subprocess_exec(
            sys.executable, str(script), str(tmp_path / "log"), stdout=asyncio.subprocess.PIPE
        )
        assert parent.stdout is not None
        pid = int(await asyncio.wait_for(parent.stdout.readline(), 120))
        assert is_running(pid)
        parent.kill()
        await parent.wait()
        await until(lambda: not is_running(pid), "child gone with its parent")

    asyncio.run(scenario())


@pytest.mark.usefixtures("daemons")
def test_a_daemon_that_cannot_start_ends_up_with_its_log_and_leaves_nothing(tmp_path: Path) -> None:
    """The operator must see why, and must not find half a cluster."""

    async def scenario() -> None:
        (tmp_path / "data/config").mkdir(parents=True)
        (tmp_path / "data/config/crash").touch()
        with pytest.raises(UnavailableError, match="this daemon crashes"):
            async with running(tmp_path / "data", restart=False):
                pass
        assert not (tmp_path / "ready.json").exists()
        assert not (tmp_path / "data/up.sock").exists()

    asyncio.run(scenario())


@pytest.mark.usefixtures("daemons")
def test_what_cannot_work_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """A second supervisor, a port in use, fewer servers than hold data: one clear line each."""

    async def scenario() -> None:
        async with running(tmp_path / "data") as cluster:
            base = cluster.supervisor._options.port_base
            with pytest.raises(ConfigError, match="another `tierstore up` runs"):
                await Supervisor(plan.Options(data=tmp_path / "data")).run(lambda *_: None)
            with pytest.raises(ConfigError, match=f"port {base} cannot be used .* --port-base"):
                await Supervisor(plan.Options(data=tmp_path / "other", port_base=base)).run(lambda *_: None)
        for options, message in (
            ({"servers": 2}, "run with --servers 3"),
            ({"servers": 99}, "must be 1..60"),
            ({"copies": 4}, "raise --servers"),
            ({"port_base": 80}, "--port-base must be"),
        ):
            with pytest.raises(ConfigError, match=message):
                await Supervisor(plan.Options(data=tmp_path / "data", **options)).run(lambda *_: None)

    asyncio.run(scenario())


def test_asking_where_no_supervisor_runs_says_so(tmp_path: Path) -> None:
    """`admin roll` in the wrong directory."""
    with pytest.raises(UnavailableError, match="no `tierstore up` answers"):
        control.ask(tmp_path, {"command": "status"}, seconds=1)
    with pytest.raises(UnavailableError, match="--data"):
        control.ask(tmp_path / "missing", {"command": "status"}, seconds=1)
