"""`tierstore mount BUCKET DIR`: a bucket as a file system, in the foreground, until unmounted or interrupted."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from tierstore.cli.cluster import Endpoint, Profile, Token, find
from tierstore.errors import ConfigError
from tierstore.fuse import NEEDS
from tierstore.units import MIB, parse_seconds, parse_size

#: A chunk has 8 MiB, a request of the kernel 1: with less, one of them would pass the bound.
BUDGET_BYTES_MIN: Final = 16 * MIB
PATIENCE_SECONDS_MIN: Final = 1.0
#: Well below an hour, which an operation's deadline may lie behind its id.
PATIENCE_SECONDS_MAX: Final = 600.0


class Sync(StrEnum):
    """When what was written is durable at the latest."""

    CLOSE = "close"
    INTERVAL = "interval"


def mount(
    bucket: Annotated[str, typer.Argument(help="The bucket.")],
    directory: Annotated[Path, typer.Argument(help="Where; an existing directory.")],
    allow_other: Annotated[
        bool | None, typer.Option(help="Other users may use the mount. [default: when run as root]")
    ] = None,
    memory: Annotated[str, typer.Option(help="Bound of written and read-ahead bytes.")] = "256MiB",
    cache: Annotated[float, typer.Option(help="Seconds that names and attributes are kept while the change feed is "
                                              "healthy (1 without it); 0: off.")] = 60.0,
    sync: Annotated[Sync, typer.Option(help="close: a close returns when the file is durable; interval: within a "
                                            "second after it (fsync waits in both).")] = Sync.CLOSE,
    patience: Annotated[str, typer.Option(help="How long a call waits for a cluster that does not answer before it "
                                               "fails with EIO (reads: half as long again).")] = "20s",
    uid: Annotated[int | None, typer.Option(help="Owner of files that no mount made. [default: the user]")] = None,
    gid: Annotated[int | None, typer.Option(help="Group of files that no mount made. [default: the user's]")] = None,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None,
) -> None:  # fmt: skip
    """Mount a bucket as a file system. Unmount with `fusermount3 -u DIR`, `umount DIR` or Ctrl-C."""
    if importlib.util.find_spec("pyfuse3") is None:
        raise ConfigError(NEEDS)
    if cache < 0:
        raise ConfigError(f"--cache is 0 (off) or more seconds, not {cache:g}")
    address = find(endpoint, token, profile)
    is_root = os.geteuid() == 0
    wish = {
        "endpoint": address.endpoint, "token": address.token, "bucket": bucket, "directory": str(directory.absolute()),
        "allow_other": is_root if allow_other is None else allow_other, "budget_bytes": _budget_bytes(memory),
        "cache_seconds": cache, "patience_seconds": _patience_seconds(patience), "sync": sync.value,
        "uid": os.getuid() if uid is None else uid, "gid": os.getgid() if gid is None else gid,
    }  # fmt: skip
    # A process of its own (see tierstore/fuse/__main__): the token goes through a pipe, where nobody sees it.
    reader, writer = os.pipe()
    os.write(writer, json.dumps(wish).encode())
    os.close(writer)
    os.set_inheritable(reader, True)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "tierstore.fuse", str(reader)])  # noqa: S606 - a module of ours


def _budget_bytes(text: str) -> int:
    """Raises ConfigError when it is no size, or too little for one request of the kernel each way."""
    budget = parse_size(text)
    if budget < BUDGET_BYTES_MIN:
        raise ConfigError(f"--memory is {BUDGET_BYTES_MIN // MIB}MiB at least, not {text}")
    return budget


def _patience_seconds(text: str) -> float:
    """Raises ConfigError when it is no time, or out of bounds."""
    seconds = parse_seconds(text)
    if not PATIENCE_SECONDS_MIN <= seconds <= PATIENCE_SECONDS_MAX:
        raise ConfigError(f"--patience is 1s to 10min, not {text}")
    return seconds
