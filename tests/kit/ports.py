"""Ports on loopback that are a test's own for as long as it needs them.

Taken below the range from which the kernel gives ports to outgoing connections, and reserved by locked files in the
temporary directory, so that neither a client of another cluster nor another test process takes a port between the look
and the bind, or while a cluster is down between two starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile

FIRST = 10_000
END = 32_700
#: A site's ports lie within so many of its base; a reservation is so wide.
BLOCK = 100
OFFSETS = (0, *range(11, 21), 80)

_reserved: dict[int, contextlib.ExitStack] = {}


def free_port_base(sites: int = 3) -> int:
    """A base B such that B, B + 11 .. B + 20 and B + 80 can be bound on loopback, and as many 100 further on for each
    site. Reserved until release_port_base(B) or the end of this process."""
    blocks = (END - FIRST) // BLOCK - sites
    for turn in range(blocks):
        base = FIRST + (os.getpid() * 7 + turn) % blocks * BLOCK
        with contextlib.ExitStack() as stack:
            try:
                for site in range(sites):
                    _lock(stack, base + BLOCK * site)
                _look([base + BLOCK * site + offset for site in range(sites) for offset in OFFSETS])
            except OSError:
                continue
            _reserved[base] = stack.pop_all()
            return base
    raise RuntimeError("no free ports on loopback")


def release_port_base(base: int) -> None:
    if base in _reserved:
        _reserved.pop(base).close()


def free_port() -> int:
    """One port, reserved until this process ends."""
    return free_port_base(sites=1)


def _lock(stack: contextlib.ExitStack, base: int) -> None:
    """Raises OSError when another process, or another cluster of this one, has it."""
    directory = os.path.join(tempfile.gettempdir(), f"tierstore-test-ports-{os.getuid()}")
    os.makedirs(directory, exist_ok=True)
    descriptor = os.open(os.path.join(directory, str(base)), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _look(ports: list[int]) -> None:
    with contextlib.ExitStack() as stack:
        for port in ports:
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
