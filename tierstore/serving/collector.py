"""The sink of Exchange.collect(): gathers a bounded body and hands it over whole."""

from __future__ import annotations

from collections.abc import Callable

from tierstore.errors import TooLarge


class Collector:
    """Holds at most limit_bytes; a chunked body that passes it ends in TooLarge (413)."""

    __slots__ = ("_limit_bytes", "_pieces", "_size", "_then")

    def __init__(self, limit_bytes: int, then: Callable[[bytes], None]) -> None:
        self._limit_bytes = limit_bytes
        self._then = then
        self._pieces: list[bytes] = []
        self._size = 0

    def data(self, piece: memoryview) -> None:
        self._size += len(piece)
        if self._size > self._limit_bytes:
            self._pieces.clear()
            raise TooLarge(f"the body is larger than {self._limit_bytes} bytes")
        # the parser's pieces are bytes already, alone in their view: keep them without a copy
        whole = piece.obj
        self._pieces.append(whole if isinstance(whole, bytes) and len(whole) == len(piece) else bytes(piece))

    def complete(self) -> None:
        self._then(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))

    def aborted(self, error: BaseException) -> None:
        self._pieces.clear()
