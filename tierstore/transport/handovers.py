"""Handing a chunk over in shared memory to an object server on the same machine, in place of sending it by TCP.

Owns a connection (transport.machine) to each object server of this machine. Invariants: it is a shortcut and never a
condition: None says "by the network", at once; what was handed over and not answered may be stored or not, as with a
broken connection (chunk ids are write-once, so sending it again is no harm); the memory may be used again when the
call has ended, whichever way: the server copies before it sums, and the sums went with the message.

Cost: one message each way. TCP costs a copy into a socket and one out of it, and five to ten wake-ups for each MiB.
"""

from __future__ import annotations

from tierstore.errors import RequestError, UnavailableError
from tierstore.transport.machine import RETRY_SECONDS, MachineLink
from tierstore.transport.shared_memory import SharedMemory
from tierstore.wire.handovers import (
    ANSWER_BYTES_MAX,
    HANDOVER_BYTES_MAX,
    HANDOVERS_MAX,
    MESSAGE_BYTES_MAX,
    Answer,
    Chunk,
    pack_chunk,
    packed_bytes,
    socket_name,
    unpack_answer,
)


class Handovers:
    """One per process that writes chunks. Event loop only; close() it."""

    def __init__(self, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._retry_seconds = retry_seconds
        self._takers: dict[str, _Taker] = {}
        self._is_closed = False
        #: Chunks that were handed over and answered, for metrics.
        self.handovers_total = 0

    async def hand_over(
        self, url: str, ticket: bytes, memory: SharedMemory, *, chunk_bytes: int, index: int, name: str, sums: bytes,
        seconds: float,
    ) -> Answer | None:  # fmt: skip
        """The server's answer; None when it is not on this machine, takes no more now, or went away: send the chunk by
        the network. The chunk is the first `chunk_bytes` of the memory. Raises UnavailableError(deadline)."""
        taker = self._takers.get(url)
        if taker is None:
            taker = self._takers[url] = _Taker(url, self._retry_seconds)
        if self._is_closed or chunk_bytes > HANDOVER_BYTES_MAX or not taker.is_found():
            return None
        chunk = Chunk(0, index, chunk_bytes, ticket, name, sums)
        if packed_bytes(chunk) > MESSAGE_BYTES_MAX:
            return None
        try:
            answer = await taker.question(
                lambda number: pack_chunk(chunk, number), seconds, descriptors=(memory.fd,)
            )
        except TimeoutError:
            raise UnavailableError(f"{url} did not answer in time", code="deadline", url=url) from None
        if answer is not None:
            self.handovers_total += 1
        return answer

    def close(self) -> None:
        """End the connections; who waits gets None."""
        self._is_closed = True
        for taker in self._takers.values():
            taker.leave()


class _Taker(MachineLink[Answer]):
    """The connection to one object server, while there is one."""

    def __init__(self, url: str, retry_seconds: float) -> None:
        super().__init__(
            socket_name(url), retry_seconds=retry_seconds, questions_max=HANDOVERS_MAX,
            answer_bytes_max=ANSWER_BYTES_MAX,
        )  # fmt: skip

    def read(self, message: bytes, descriptors: list[int]) -> tuple[int, Answer | None]:
        if descriptors:
            raise RequestError("an answer with a descriptor", code="bad-request")
        answer = unpack_answer(message)
        return answer.number, answer
