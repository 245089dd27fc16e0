"""The frame of a daemon's process: settings, logs, and one line with an exit code when the start fails."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar

from tierstore.config import sections
from tierstore.config.arguments import parse
from tierstore.errors import TierstoreError
from tierstore.serving.heap import share_arenas
from tierstore.telemetry.log import configure


class Config(Protocol):
    """What the settings of every daemon have."""

    @property
    def log(self) -> sections.Log: ...


C = TypeVar("C", bound=Config)

#: Objects made and not freed before the youngest are looked at for cycles; and how many such looks before the older
#: and the oldest are. Requests leave nearly no cycles, so the usual 700 is mostly looking in vain: 3 % of a gateway's
#: CPU. What waits to be freed meanwhile is some MiB.
COLLECT_AFTER: Final = (20_000, 20, 50)


def start(kind: type[C], role: str, about: str, run: Callable[[C], None]) -> None:
    """Read the command line and settings, set up the logs, run; exit with the error's code when it fails."""
    share_arenas()
    config = parse(kind, role, about)
    configure(level=config.log.level, form=config.log.format, role=role)
    try:
        run(config)
    except TierstoreError as error:
        sys.stderr.write(f"{role}: {error.detail or error.code}\n")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


@contextmanager
def loading() -> Iterator[None]:
    """Around the import of a daemon's packages: what they make stays, looking for cycles in it is in vain (a sixth of
    metadata's and of a gateway's start)."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def settle() -> None:
    """What was built at start lives as long as the process: no collection need walk it again (15 ms each). Called once,
    when a daemon is ready to serve."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
