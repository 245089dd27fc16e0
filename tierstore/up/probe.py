"""One small HTTP request over a fresh connection: does a daemon answer, and what does it say.

Not the transport package: the supervisor asks a daemon that may be dead, hung or half started, five times a second,
and wants nothing pooled or retried.
"""

from __future__ import annotations

import asyncio
from typing import Final

_ANSWER_BYTES_MAX: Final = 64 * 1024


async def get(host: str, port: int, path: str, *, seconds: float) -> tuple[int, bytes]:
    """Status and body of GET path; (0, b"") when there was no answer in time. Never raises for what the peer does."""
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n".encode())
                answer = await reader.read(_ANSWER_BYTES_MAX)
                while not reader.at_eof() and len(answer) < _ANSWER_BYTES_MAX:
                    answer += await reader.read(_ANSWER_BYTES_MAX)
            finally:
                writer.close()
    except (TimeoutError, OSError):
        return 0, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (int(words[1]), body) if len(words) >= 2 and words[1].isdigit() else (0, b"")
