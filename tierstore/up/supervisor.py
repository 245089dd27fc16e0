"""The supervisor: sockets, settings files, children, readiness, ready file, signals.

One data directory, one supervisor.

Steps of a start: lock the data directory -> shape and keys (made or found) -> bind every port -> settings files ->
start all children at once -> wait until each answers /-/readyz -> ready file -> watch until SIGTERM or SIGINT -> stop
the gateway first, then the object servers, then metadata, so that nobody loses the one it depends on while it drains.

Invariant: a ready file is there only while every process had answered, and no child is left when `run` returns.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, Final

from tierstore import statefile
from tierstore.config import toml
from tierstore.errors import ConfigError, NotFound, UnavailableError
from tierstore.telemetry.log import get_logger
from tierstore.up import control, links, plan, probe
from tierstore.up.child import Child
from tierstore.up.keys import REGION, Keys, load_or_create, write_private

log = get_logger("up")

START_SECONDS_MAX: Final = 180.0
RESTART_SECONDS_MAX: Final = 180.0
PROBE_SECONDS: Final = 5.0
PROBE_INTERVAL_SECONDS: Final = 0.05
#: A child that ends that often before the cluster was ever ready will not come: stop and show its log.
START_DEATHS_MAX: Final = 5
_BACKLOG: Final = 1024


class Supervisor:
    """One cluster under one data directory. Create it, then `await run(say)`."""

    def __init__(self, options: plan.Options) -> None:
        self._options = options
        self._data = options.data.absolute()
        self._planned: list[plan.PlannedProcess] = []
        self._children: dict[str, Child] = {}
        self._keys: Keys
        self._shape: plan.Shape
        self._stop = asyncio.Event()
        self._is_ready = False
        self._rolling = asyncio.Lock()

    async def run(self, say: Callable[[dict[str, Any], list[str]], None]) -> None:
        """Start, report through `say(ready, warnings)`, and serve until a signal or `stop()`.

        Raises ConfigError (bad options, ports in use, directory in use) and UnavailableError (a child does not come
        up); in either case nothing is left running."""
        with ExitStack() as stack:
            await self._prepare(stack)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
                stack.callback(loop.remove_signal_handler, number)
            server = await control.serve(self._data, self._answer)
            stack.callback(server.close)
            try:
                for child in self._children.values():
                    child.start()
                if await self._wait_ready():
                    await links.join_all(self._gateways(), self._keys.token)
                    self._is_ready = True
                    ready = self._write_ready()
                    say(ready, self._warnings())
                    await self._watch()
            finally:
                await self._stop_children()

    def stop(self) -> None:
        """Ask for an orderly end; `run` returns when all children are gone."""
        self._stop.set()

    # -- start ---------------------------------------------------------------------------------------------------
    async def _prepare(self, stack: ExitStack) -> None:
        data = self._data
        try:
            statefile.make_directory(str(data))
            self._lock(stack)
        except OSError as error:
            raise ConfigError(f"--data {data}: {error.strerror}") from None
        if self._options.ready_file:
            self._options.ready_file.unlink(missing_ok=True)
        self._shape = self._load_shape()
        self._keys = load_or_create(data / "keys")
        options = plan.Options(**{**_fields(self._options), "data": data})
        self._planned = plan.processes(options, self._shape, self._keys)
        for directory in ("config", "logs"):
            statefile.make_directory(str(data / directory))
        for process in self._planned:
            listener = stack.enter_context(_listen(process.port))
            config = data / "config" / f"{process.name}.toml"
            write_private(config, toml.dumps(process.settings))
            for device in process.devices:
                statefile.make_directory(device.path)
            self._children[process.name] = Child(
                process.name, process.argv(config, listener.fileno()), listener,
                data / "logs" / f"{process.name}.log", keep=self._options.restart, overlaps=process.overlaps,
                refuses=process.refuses,
            )  # fmt: skip
        write_private(data / "cluster.json", json.dumps(_fields(self._shape), indent=1) + "\n")

    def _lock(self, stack: ExitStack) -> None:
        lock = stack.enter_context((self._data / "up.lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another `tierstore up` runs on {self._data}; stop it, or use another --data") from None

    def _load_shape(self) -> plan.Shape:
        before = None
        path = self._data / "cluster.json"
        if path.exists():
            try:
                before = plan.Shape(**json.loads(path.read_text()))
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{path} is damaged ({error}); it tells how many servers there are") from None
        space = os.statvfs(self._data)
        return plan.shape(self._options, before, space.f_bavail * space.f_frsize)

    async def _wait_ready(self) -> bool:
        """True when every process answers; False when asked to stop meanwhile. Raises UnavailableError."""
        waits = [asyncio.create_task(self._wait_one(process, START_SECONDS_MAX)) for process in self._planned]
        stopped = asyncio.create_task(self._stop.wait())
        pending: set[asyncio.Task[Any]] = {*waits, stopped}
        try:
            while not self._stop.is_set() and not all(wait.done() for wait in waits):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()       # the first that fails ends the start
            return not self._stop.is_set()
        finally:
            for task in (*waits, stopped):
                task.cancel()
            await asyncio.gather(*waits, stopped, return_exceptions=True)

    async def _wait_one(self, process: plan.PlannedProcess, seconds: float) -> None:
        child = self._children[process.name]
        deadline = time.monotonic() + seconds
        answer = b""
        while time.monotonic() < deadline:
            if child.is_alive:
                status, answer = await probe.get(plan.HOST, process.port, "/-/readyz", seconds=PROBE_SECONDS)
                if status == 200:
                    return
            has_given_up = child.deaths >= (START_DEATHS_MAX if self._options.restart else 1)
            if not self._is_ready and has_given_up:
                break
            await asyncio.sleep(PROBE_INTERVAL_SECONDS)
        said = answer.decode(errors="replace").strip() or "no answer"
        raise UnavailableError(f"{process.name} does not become ready ({said}); its log ends:\n{child.log_tail()}")

    def _gateways(self) -> dict[str, str]:
        return {process.site: process.url for process in self._planned if process.role == "gateway"}

    # -- ready ---------------------------------------------------------------------------------------------------
    def _write_ready(self) -> dict[str, Any]:
        gateway = next(process for process in self._planned if process.role == "gateway")
        ready = {
            "access_key": self._keys.access_key,
            "secret_key": self._keys.secret_key,
            "region": REGION,
            "token": self._keys.token,
            "sites": [self._site_view(name) for name in dict.fromkeys(process.site for process in self._planned)],
        }
        text = json.dumps(ready, indent=1) + "\n"
        if self._options.ready_file:
            write_private(self._options.ready_file.absolute(), text)
        profile = {"cluster": {"endpoint": gateway.url, "token": self._keys.token, "data": str(self._data)}}
        write_private(self._data / "profile.toml", toml.dumps(profile))
        return ready

    def _site_view(self, site: str) -> dict[str, Any]:
        of_site = [process for process in self._planned if process.site == site]
        return {
            "name": site,
            "gateway": next(process.url for process in of_site if process.role == "gateway"),
            "metadata": next(process.url for process in of_site if process.role == "metadata"),
            "processes": [self._view(process) for process in of_site],
        }

    def _view(self, process: plan.PlannedProcess) -> dict[str, Any]:
        child = self._children[process.name]
        return {
            "role": process.role,
            "name": process.name,
            "url": process.url,
            "pid": child.pid,
            "argv": child.argv,
            "devices": [asdict(device) for device in process.devices],
        }

    def _warnings(self) -> list[str]:
        servers, copies = self._shape.servers, self._shape.copies
        warnings = []
        if servers < copies + 1:
            warnings.append(
                f"{servers} object servers with {copies} copies: when one is gone, writes are refused "
                f"(run --servers {copies + 1} or more)"
            )
        if copies < 2:
            warnings.append("one copy: the loss of a server loses objects")
        return warnings

    # -- while it runs -------------------------------------------------------------------------------------------
    async def _watch(self) -> None:
        """Until stop: keep the ready file's process ids true when children were started again."""
        known = {name: child.pid for name, child in self._children.items()}
        while not self._stop.is_set():
            try:
                await asyncio.wait_for(self._stop.wait(), 1.0)
            except TimeoutError:
                now = {name: child.pid for name, child in self._children.items()}
                if now != known:
                    known = now
                    self._write_ready()

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        command = request["command"]
        if command == "status":
            return {
                "processes": [
                    {**self._view(process), "deaths": self._children[process.name].deaths,
                     "is_alive": self._children[process.name].is_alive}
                    for process in self._planned
                ]
            }  # fmt: skip
        if command == "restart":
            return await self._restart(str(request["name"]))
        raise NotFound(f"{command!r} is not a command of the supervisor", code="bad-request")

    async def _restart(self, name: str) -> dict[str, Any]:
        process = next((process for process in self._planned if process.name == name), None)
        if process is None:
            known = ", ".join(self._children)
            raise NotFound(f"{name!r} is none of the processes: {known}", code="no-such-server")
        if self._stop.is_set():
            raise UnavailableError("the cluster is being stopped", code="draining")
        async with self._rolling:       # one at a time: two at once could take both copies of a chunk
            began = time.monotonic()
            await self._children[name].restart()
            await self._wait_one(process, RESTART_SECONDS_MAX)
        seconds = time.monotonic() - began
        log.info("restarted as asked", name=name, pid=self._children[name].pid, seconds=seconds)
        return {"name": name, "pid": self._children[name].pid, "seconds": round(seconds, 3)}

    # -- stop ----------------------------------------------------------------------------------------------------
    async def _stop_children(self) -> None:
        self._stop.set()
        (self._data / control.SOCKET_NAME).unlink(missing_ok=True)
        for role in ("gateway", "objectd", "metadata"):
            names = [process.name for process in self._planned if process.role == role]
            await asyncio.gather(*(self._children[name].stop() for name in names))


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((plan.HOST, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"port {port} cannot be used ({error.strerror}); choose others with --port-base") from None
    return listener


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def run(options: plan.Options, say: Callable[[dict[str, Any], list[str]], None]) -> int:
    """Run a cluster until it is told to stop; the exit code of `tierstore up`."""
    if sys.platform != "linux":
        raise ConfigError("tierstore up needs Linux (process descriptors, parent-death signals)")
    asyncio.run(_run(options, say))
    return 0


async def _run(options: plan.Options, say: Callable[[dict[str, Any], list[str]], None]) -> None:
    await Supervisor(options).run(say)
