"""How `tierstore admin roll` asks the supervisor for something: one JSON line over a Unix socket in the data directory.

    {"command": "status"}                    -> {"processes": [{"role", "name", "url", "pid", "deaths"}]}
    {"command": "restart", "name": "..."}    -> {"name", "pid", "seconds"}   when the new process answers
    an error                                 -> {"error": code, "detail": text}

Who may write to the data directory may ask: the socket is mode 0600, there is nothing else to check.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from tierstore.errors import TierstoreError, UnavailableError, from_code

_LINE_BYTES_MAX: Final = 64 * 1024
SOCKET_NAME: Final = "up.sock"

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def _short(directory: Path) -> tuple[int, str]:
    """A descriptor of the directory and a path of the socket through it: socket paths may have only 108 bytes."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    return descriptor, f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"


async def serve(directory: Path, answer: Answer) -> asyncio.Server:
    """Listen in `directory`; the caller closes the server. A socket left behind by a killed supervisor is replaced."""
    (directory / SOCKET_NAME).unlink(missing_ok=True)
    descriptor, path = _short(directory)
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        (directory / SOCKET_NAME).chmod(0o600)
    finally:
        os.close(descriptor)

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await asyncio.wait_for(reader.readline(), 10))
            reply = await answer(request)
        except TierstoreError as error:
            reply = {"error": error.code, "detail": error.detail}
        except (ValueError, KeyError, TypeError, TimeoutError) as error:
            reply = {"error": "bad-request", "detail": f"not a request: {error}"}
        try:
            writer.write(json.dumps(reply).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), 10)
        except (OSError, TimeoutError):
            pass        # who asked is gone; what was asked for is done all the same
        finally:
            writer.close()

    return await asyncio.start_unix_server(one, sock=listener, limit=_LINE_BYTES_MAX)


def ask(directory: Path, request: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    """Send one request to the supervisor of a data directory and return its answer.

    Raises UnavailableError when none runs there, and what the supervisor answered."""
    try:
        descriptor, path = _short(directory)
    except OSError:
        raise UnavailableError(f"{directory} is no data directory of `tierstore up`; name it with --data") from None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(path)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline(_LINE_BYTES_MAX)
    except OSError as error:
        raise UnavailableError(f"no `tierstore up` answers in {directory}: {error.strerror or error}") from None
    finally:
        os.close(descriptor)
    if not line:
        raise UnavailableError(f"`tierstore up` in {directory} ended while it was asked")
    reply: dict[str, Any] = json.loads(line)
    if "error" in reply:
        raise from_code(str(reply["error"]), str(reply.get("detail", "")))
    return reply
