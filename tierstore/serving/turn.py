"""A successor's turn: a process that was started to take over from a running one loads its code, then waits here.

Owns nothing. The supervisor passes one end of a socket pair by TURN_VARIABLE; this side says that it is loaded, and
goes on when the other side says so or is closed (the predecessor has ended, or the supervisor gave up waiting). So a
planned restart of a process that must not run twice costs its clients the opening of its files, not the loading of its
code. Without the variable nothing happens.
"""

from __future__ import annotations

import os
import socket
from typing import Final

TURN_VARIABLE: Final = "TIERSTORE_TURN_FD"
#: Longer than any drain: a supervisor that hangs must not keep a successor for ever.
_WAIT_SECONDS_MAX: Final = 300.0


def wait_for_turn() -> None:
    """Blocks until it is this process's turn. Call it when everything is imported and nothing is opened."""
    number = os.environ.pop(TURN_VARIABLE, "")
    if not number.isdigit():
        return
    try:
        with socket.socket(fileno=int(number)) as turn:
            turn.settimeout(_WAIT_SECONDS_MAX)
            turn.sendall(b"loaded")
            turn.recv(1)
    except OSError:
        pass        # nobody waits at the other end: it is our turn
