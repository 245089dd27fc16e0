"""Named failpoints: places in the code where a test may kill the process, raise an error or wait.

Owns the table of armed failpoints, read once from the environment:
    TIERSTORE_FAILPOINTS="store.segment.before_sync=kill;store.file.before_write=error:EIO@3;x=sleep:0.2"
or from a file that is looked at when the process starts, so that one process of a cluster can be given others than
its neighbours: TIERSTORE_FAILPOINTS="file:/path" (a file that is not there arms nothing). With "watch:/path" it is
looked at again while the process runs (at most WATCH_SECONDS late): a device becomes slow, errs, and recovers.
Actions: `kill` (SIGKILL to itself), `error:ERRNO` (raise that OSError), `sleep:SECONDS`. `@N` acts only at the N-th
time the place is passed (from 1); without it, each time. Invariant: with the variable unset, hit() does nothing and
costs one look at an empty dict. A name that no code has does no harm; a malformed entry is an error at once.

Threads may pass the same failpoint at the same time: counting is guarded.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import Final

from tierstore.errors import ConfigError

VARIABLE: Final = "TIERSTORE_FAILPOINTS"
_FILE: Final = "file:"
_WATCH: Final = "watch:"
WATCH_SECONDS: Final = 0.1


@dataclass(slots=True)
class _Armed:
    action: str
    argument: str
    at_pass: int        # 0: every pass
    passes: int = 0


_lock = threading.Lock()
_armed: dict[str, _Armed] = {}


@dataclass(slots=True)
class _Watched:
    """The file that is looked at again, what it said, and when to look next (monotonic)."""

    path: str
    said: str = ""
    due: float = 0.0


_watched: list[_Watched] = []


def hit(name: str) -> None:
    """Pass the failpoint. Raises the OSError it is armed with, if any."""
    if _armed or _watched:
        if _watched:
            _look(_watched[0])
        _act(name)


def watch(path: str) -> None:
    """From now on arm what that file says ("" : what is armed stays, no file is watched)."""
    _watched[:] = [_Watched(path)] if path else []


def _look(watched: _Watched) -> None:
    now = time.monotonic()
    if now < watched.due:
        return
    watched.due = now + WATCH_SECONDS
    text = _read(watched.path)
    if text != watched.said:
        watched.said = text
        arm(text)


def arm(text: str) -> None:
    """Replace the table by the one that text describes ("" disarms all). Raises ConfigError."""
    table: dict[str, _Armed] = {}
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, separator, what = entry.partition("=")
        what, _, at_pass = what.partition("@")
        action, _, argument = what.partition(":")
        if not separator or not _is_known(action, argument) or (at_pass and not at_pass.isdigit()):
            raise ConfigError(f"{VARIABLE}: {entry!r} is not NAME=kill, NAME=error:ERRNO or NAME=sleep:SECONDS, each "
                              "with @N if only the N-th pass is meant")
        table[name] = _Armed(action, argument, int(at_pass or 0))
    with _lock:
        _armed.clear()
        _armed.update(table)


def _is_known(action: str, argument: str) -> bool:
    if action == "kill":
        return not argument
    if action == "error":
        return isinstance(getattr(errno, argument, None), int)
    if action == "sleep":
        return argument.replace(".", "", 1).isdigit()
    return False


def _act(name: str) -> None:
    with _lock:
        armed = _armed.get(name)
        if armed is None:
            return
        armed.passes += 1
        if armed.at_pass and armed.passes != armed.at_pass:
            return
    if armed.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif armed.action == "error":
        number = getattr(errno, armed.argument)
        raise OSError(number, f"{os.strerror(number)} (failpoint {name})")
    else:
        time.sleep(float(armed.argument))


def _configured() -> str:
    text = os.environ.get(VARIABLE, "")
    if text.startswith(_WATCH):
        watch(text.removeprefix(_WATCH))
        return ""
    return _read(text.removeprefix(_FILE)) if text.startswith(_FILE) else text


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


arm(_configured())
