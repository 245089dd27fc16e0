"""A mixed load over the REST door that remembers what was acknowledged, and the judge of what is there afterwards.

Two kinds of keys: write-once keys (their acknowledged set is compared byte for byte at the end) and register keys
(every operation goes into a history for the linearizability checker, at most `register_operations_max` a key).
Bodies are made from a number, so that a wrong, torn or old one is recognised: 16 bytes (number, size) repeated pattern.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import quote

from tests.kit.http import Answer, Broken, Client
from tests.kit.linearizability import Event, check_history

ANSWERED_SECONDS = 300.0
SIZES = (0, 1, 100, 4096, 70_000, 300_000, 1_200_000)


def body_of(number: int, size: int) -> bytes:
    """A body that tells which it is and cannot be mistaken when cut or mixed."""
    if size == 0:
        return b""
    seed = hashlib.sha256(struct.pack("<QQ", number, size)).digest()
    return (struct.pack("<QQ", number, size) + seed * (size // 32 + 1))[:size]


@dataclass
class Outcome:
    """What the load did and what the judge found."""

    acknowledged: dict[str, tuple[int, int]] = field(default_factory=dict)  # write-once key -> number, size
    deleted: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    history: list[Event] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def written_once(self) -> int:
        """Acknowledged write-once keys, whatever became of them since: unlike `acknowledged` it never falls."""
        return len(self.acknowledged) + len(self.unsure | self.deleted)


class Load:
    """`clients` workers until stop() is called. Every wrong byte seen on the way is kept in outcome.wrong."""

    def __init__(
        self, url: str, token: str, *, seed: int, bucket: str = "load", clients: int = 4, registers: int = 50,
        register_operations_max: int = 150, sizes: tuple[int, ...] = SIZES, seconds: float = 240.0,
    ) -> None:  # fmt: skip
        self._url, self._token, self._bucket, self._seconds = url, token, bucket, seconds
        self._random = random.Random(seed)
        self._clients, self._registers, self._sizes = clients, registers, sizes
        self._register_operations_max = register_operations_max
        self._register_counts: Counter[str] = Counter()
        self._etags: dict[str, tuple[str, int]] = {}
        self._numbers = iter(range(seed % 1000 * 10_000_000 + 1, 1 << 62))
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = False
        self._is_cut = False
        self.outcome = Outcome()

    async def prepare(self) -> None:
        client = self._client()
        answer = await client.request("PUT", f"/v1/buckets/{self._bucket}")
        client.close()
        assert answer.status in (201, 409), answer

    def start(self) -> None:
        self._tasks = [asyncio.ensure_future(self._work(i)) for i in range(self._clients)]

    def cut(self) -> None:
        """Call this before the lights go out: what is answered from now on promises nothing.

        A machine without power answers nobody, but one whose file system is shut down does for some milliseconds, and
        in that time Linux lets fsync succeed whose extents are never converted (ext4 6.18: 8 of 50 such answers were
        false in 60 cuts, none of those before the cut).
        """
        self._is_cut = True

    async def stop(self) -> Outcome:
        self._stop = True
        await asyncio.gather(*self._tasks)
        return self.outcome

    def _client(self) -> Client:
        return Client(self._url, token=self._token, seconds=self._seconds)

    def _path(self, key: str) -> str:
        return f"/v1/objects/{self._bucket}/{quote(key)}"

    async def _work(self, number: int) -> None:
        client = self._client()
        try:
            # wait_for may swallow a cancellation: a test that failed must not be kept alive by its load
            task = asyncio.current_task()
            while not self._stop and not (task and task.cancelling()):
                choice = self._random.random()
                if choice < 0.35:
                    await self._put_once(client, f"once/{number}/{next(self._numbers)}")
                elif choice < 0.5 and self.outcome.acknowledged:
                    await self._get_once(client, self._random.choice(list(self.outcome.acknowledged)))
                elif choice < 0.55 and self.outcome.acknowledged:
                    await self._delete_once(client, self._random.choice(list(self.outcome.acknowledged)))
                else:
                    key = f"register/{self._random.randrange(self._registers)}"
                    self._register_counts[key] += 1
                    await self._register(client, f"{key}/{self._register_counts[key] // self._register_operations_max}")
        finally:
            client.close()

    async def _send(
        self, client: Client, kind: str, method: str, key: str, body: bytes | None = None, **headers: str
    ) -> Answer | None:
        """The answer, or None when the outcome is unknown (no answer, or a 5xx)."""
        started = time.monotonic()
        try:
            answer = await client.request(
                method, self._path(key), body, {name.replace("_", "-"): value for name, value in headers.items()}
            )
        except Broken as error:
            self.outcome.counts[f"{kind} broken"] += 1
            await asyncio.sleep(0.02 if error.sent else 0.1)  # a refused connection: do not spin
            return None
        if self._is_cut:
            self.outcome.counts[f"{kind} after the cut"] += 1
            return None
        self.outcome.latencies_ms.append((time.monotonic() - started) * 1e3)
        self.outcome.counts[f"{kind} {answer.status}"] += 1
        if answer.status >= 500:
            await asyncio.sleep(0.02)
            return None
        return answer

    # -- write-once keys -------------------------------------------------------------------------------------------
    async def _put_once(self, client: Client, key: str) -> None:
        number, size = next(self._numbers), self._random.choice(self._sizes)
        answer = await self._send(client, "put", "PUT", key, body_of(number, size))
        if answer is not None and answer.status == 200:
            self.outcome.acknowledged[key] = (number, size)
            if self._random.random() < 0.2:
                await self._list_once(client, key)

    async def _list_once(self, client: Client, key: str) -> None:
        """List-after-write: what was acknowledged before the listing was asked for stands in it."""
        target = f"/v1/objects/{self._bucket}?prefix={quote(key, safe='')}&limit=10"
        try:
            answer = await client.request("GET", target)
        except Broken:
            self.outcome.counts["list broken"] += 1
            return
        self.outcome.counts[f"list {answer.status}"] += 1
        if answer.status == 200 and key in self.outcome.acknowledged:
            listed = {entry["key"] for entry in json.loads(answer.body)["objects"]}
            if key not in listed:
                self.outcome.wrong.append(f"{key} was acknowledged and is not listed")

    async def _get_once(self, client: Client, key: str) -> None:
        number, size = self.outcome.acknowledged[key]
        answer = await self._send(client, "get", "GET", key)
        if answer is None or key not in self.outcome.acknowledged:
            return
        if answer.status != 200 or answer.body != body_of(number, size):
            self.outcome.wrong.append(f"{key}: {answer.status}, {len(answer.body)} bytes, expected {size} of {number}")

    async def _delete_once(self, client: Client, key: str) -> None:
        self.outcome.acknowledged.pop(key)
        self.outcome.unsure.add(key)
        answer = await self._send(client, "delete", "DELETE", key)
        if answer is not None and answer.status in (204, 404):
            self.outcome.unsure.discard(key)
            self.outcome.deleted.add(key)

    # -- register keys ---------------------------------------------------------------------------------------------
    async def _register(self, client: Client, key: str) -> None:
        choice = self._random.random()
        if choice < 0.4:
            await self._register_get(client, key)
        elif choice < 0.75:
            await self._register_put(client, key)
        elif choice < 0.85:
            called = time.monotonic()
            answer = await self._send(client, "delete", "DELETE", key)
            self._note(key, called, "del", None, "?" if answer is None else "ok")
        else:
            await self._register_cas(client, key)

    async def _register_get(self, client: Client, key: str) -> None:
        called = time.monotonic()
        answer = await self._send(client, "get", "GET", key)
        if answer is None:
            return
        if answer.status == 404:
            self._note(key, called, "get", None, None)
            return
        number = self._number_in(key, answer)
        self._etags[key] = (answer.headers.get("etag", ""), number)
        self._note(key, called, "get", None, number)

    async def _register_put(self, client: Client, key: str) -> None:
        number, called = next(self._numbers), time.monotonic()
        answer = await self._send(client, "put", "PUT", key, body_of(number, self._random.choice((100, 5000, 300_000))))
        self._note(key, called, "put", number, "?" if answer is None else "ok" if answer.status == 200 else "fail")
        if answer is not None and answer.status == 200:
            self._etags[key] = (answer.headers.get("etag", ""), number)

    async def _register_cas(self, client: Client, key: str) -> None:
        etag, expected = self._etags.get(key, ("", 0))
        number, called = next(self._numbers), time.monotonic()
        condition = {"if_match": etag} if etag else {"if_none_match": "*"}
        answer = await self._send(client, "cas", "PUT", key, body_of(number, 200), **condition)
        result = "?" if answer is None else {200: "ok", 412: "mismatch", 404: "mismatch"}.get(answer.status, "fail")
        self._note(key, called, "cas", (expected if etag else None, number), result)

    def _number_in(self, key: str, answer: Answer) -> int:
        if answer.status != 200 or len(answer.body) < 16:
            self.outcome.wrong.append(f"{key}: {answer.status} with {len(answer.body)} bytes")
            return -1
        number, size = struct.unpack("<QQ", answer.body[:16])
        if answer.body != body_of(number, size):
            self.outcome.wrong.append(f"{key}: torn or mixed body of {number}")
        return int(number)

    def _note(self, key: str, called: float, kind: str, argument: object, result: object) -> None:
        self.outcome.history.append((key, called, time.monotonic(), kind, argument, result))


async def judge(url: str, token: str, outcome: Outcome, *, bucket: str = "load", clients: int = 8) -> list[str]:
    """Read everything back: acknowledged write-once keys byte for byte, deleted ones gone, listing equal to both,
    histories linearizable. Returns the findings; empty is good."""
    found = list(outcome.wrong)
    queue = list(outcome.acknowledged.items())

    async def read() -> None:
        client = Client(url, token=token)
        while queue:
            key, (number, size) = queue.pop()
            answer = await _answered(client, f"/v1/objects/{bucket}/{quote(key)}")
            if answer.status != 200:
                found.append(f"acknowledged {key} lost: {answer.status}")
            elif answer.body != body_of(number, size):
                found.append(f"acknowledged {key} has wrong bytes")
        client.close()

    await asyncio.gather(*(read() for _ in range(clients)))
    listed = await list_keys(url, token, bucket=bucket, prefix="once/")
    found += [f"acknowledged {key} is not listed" for key in outcome.acknowledged if key not in listed]
    found += [f"deleted {key} is back" for key in outcome.deleted if key in listed]
    verdicts = check_history(outcome.history)
    found += [f"history of {key} is not linearizable ({verdict})" for key, verdict in verdicts.items()]
    return found


async def _answered(client: Client, target: str) -> Answer:
    """The answer to a GET, asked again while it is a 5xx: what a cluster that recovers cannot say yet is not lost. What
    stays unsaid is."""
    deadline = time.monotonic() + ANSWERED_SECONDS
    while (answer := await client.request("GET", target)).status >= 500 and time.monotonic() < deadline:
        await asyncio.sleep(0.1)    # polling with a deadline
    return answer


async def list_keys(url: str, token: str, *, bucket: str = "load", prefix: str = "") -> set[str]:
    """All keys by paging through the listing."""
    client, keys, after = Client(url, token=token), set(), ""
    while True:
        target = f"/v1/objects/{bucket}?prefix={quote(prefix, safe='')}&limit=1000&start_after={quote(after, safe='')}"
        answer = await _answered(client, target)
        assert answer.status == 200, answer
        page = json.loads(answer.body)
        keys |= {entry["key"] for entry in page["objects"]}
        if page["next_start_after"] is None:
            client.close()
            return keys
        after = page["next_start_after"]


async def delete_all(url: str, token: str, *, bucket: str, clients: int = 8) -> int:
    """Delete every object of a bucket; how many there were."""
    keys = sorted(await list_keys(url, token, bucket=bucket))
    queue = list(keys)

    async def delete() -> None:
        client = Client(url, token=token)
        while queue:
            answer = await client.request("DELETE", f"/v1/objects/{bucket}/{quote(queue.pop())}")
            assert answer.status == 204, answer
        client.close()

    await asyncio.gather(*(delete() for _ in range(clients)))
    return len(keys)
