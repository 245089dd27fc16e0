"""Clients of a simulated cluster: what they do, and what they know to be true because it was acknowledged.

Three kinds of keys. Registers (`r/`) are written, read, deleted and compared-and-set by all clients at once; their
histories are judged for linearizability. Write-once keys (`w/`) and copies (`x/`) have one owner each, who knows after
every acknowledged step what must be there. An outcome that is not known (timeout, 503, cancelled in the middle) is
noted as such: it may have taken effect or not, but only whole.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from tests.kit.linearizability import Event
from tests.kit.simulation import SimCluster
from tierstore.errors import CapacityError, NotFound, PreconditionFailed, TierstoreError, UnavailableError
from tierstore.sdk.store import Store
from tierstore.wire.names import Condition

BUCKET = "bkt"
REGISTERS = 12
#: Operations on one register, at most: the search for a linear order is exponential in their overlap.
REGISTER_OPERATIONS_MAX = 150
#: Failures that certainly had no effect.
NO_EFFECT = frozenset({"not-enough-servers", "cluster-full", "device-full", "no-replica", "precondition-failed"})
SIZES = (40, 40, 700, 5_000, 30_000, 66_000, 150_000)


class Violation(AssertionError):
    """A promise was broken. The text says which, and is all that is needed beside the seed."""


@dataclass(slots=True)
class Owned:
    """A write-once key. value: what must be there, None for nothing; is_sure False: it may also be as it was before."""

    value: int | None = None
    is_sure: bool = True
    other: int | None = None        # when it is not sure


@dataclass
class Facts:
    """What all clients together know."""

    history: list[Event] = field(default_factory=list)
    owned: dict[str, Owned] = field(default_factory=dict)
    bodies: dict[int, bytes] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    last_value: int = 0

    def count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1

    def new_body(self, rng: random.Random) -> tuple[int, bytes]:
        self.last_value += 1
        size = rng.choice(SIZES)
        body = self.last_value.to_bytes(8, "big") + rng.randbytes(size)
        self.bodies[self.last_value] = body
        return self.last_value, body

    def value_of(self, body: bytes, key: str) -> int:
        """Which put these bytes are of. Raises Violation for bytes that nobody wrote."""
        value = int.from_bytes(body[:8], "big")
        if self.bodies.get(value) != body:
            raise Violation(f"{key}: bytes that nobody wrote ({len(body)} of them)")
        return value


class SimClient:
    """One client: does an operation, pauses, does the next, until it is told to stop."""

    def __init__(self, cluster: SimCluster, store: Store, name: str, facts: Facts, rng: random.Random) -> None:
        self.cluster = cluster
        self.store = store
        self.name = name
        self.facts = facts
        self.rng = rng
        self.is_stopping = False
        self.mine: list[str] = []
        self._register_operations = 0
        self._etags: dict[str, tuple[int, str]] = {}        # register -> a value seen there, and its ETag

    async def run(self) -> None:
        while not self.is_stopping:
            await asyncio.sleep(self.rng.expovariate(1 / 1.2))
            pick = self.rng.random()
            if pick < 0.55:
                await self._register()
            elif pick < 0.75:
                await self._put_once()
            elif pick < 0.80:
                await self._copy()
            elif self.mine:
                key = self.rng.choice(self.mine)
                await (self._delete_once(key) if pick < 0.86 else self.read_once(key))
            if self.rng.random() < 0.05:
                await self._list()

    # -- registers --------------------------------------------------------------------------------------------
    async def _register(self) -> None:
        key = f"r/{self.rng.randrange(REGISTERS)}"
        self._register_operations += 1
        if self._register_operations > REGISTER_OPERATIONS_MAX * REGISTERS // 3:
            return
        kind = self.rng.choices(["get", "put", "del", "cas"], [4, 3, 1, 2])[0]
        called = self.cluster.loop.time()
        argument, result = await (
            self._get(key) if kind == "get"
            else self._put(key) if kind == "put"
            else self._delete(key) if kind == "del"
            else self._compare_and_set(key)
        )  # fmt: skip
        self.facts.history.append((key, called, self.cluster.loop.time(), kind, argument, result))
        self.facts.count(f"{kind} {result if isinstance(result, str) else 'ok'}")
        self.cluster.trace.say(self.name, kind, key, argument, "->", result)

    async def _get(self, key: str) -> tuple[None, int | str | None]:
        try:
            async with await self.store.get(BUCKET, key) as reader:
                value = self.facts.value_of(await reader.read(), key)
                self._etags[key] = value, reader.info.etag
                return None, value
        except NotFound:
            self._etags.pop(key, None)
            return None, None
        except TierstoreError as error:
            self._check_expected(error)
            return None, "?"

    async def _put(self, key: str, condition: Condition | None = None) -> tuple[int, str]:
        value, body = self.facts.new_body(self.rng)
        work = self.store.put(BUCKET, key, body, condition=condition)
        try:
            if self.rng.random() < 0.04:        # the client goes away in the middle
                async with asyncio.timeout(self.rng.uniform(0, 0.1)):
                    info = await work
            else:
                info = await work
        except TimeoutError:
            return value, "?"
        except PreconditionFailed:
            return value, "mismatch"
        except TierstoreError as error:
            self._check_expected(error)
            return value, "fail" if error.code in NO_EFFECT else "?"
        self._etags[key] = value, info.etag
        return value, "ok"

    async def _compare_and_set(self, key: str) -> tuple[tuple[int | None, int], str]:
        seen = self._etags.get(key)
        condition = Condition(if_none_match=["*"]) if seen is None else Condition(if_match=[seen[1]])
        value, result = await self._put(key, condition)
        if result == "mismatch":
            self._etags.pop(key, None)
        return (None if seen is None else seen[0], value), result

    async def _delete(self, key: str) -> tuple[None, str]:
        try:
            await self.store.delete(BUCKET, key)
        except TierstoreError as error:
            self._check_expected(error)
            return None, "fail" if error.code in NO_EFFECT else "?"
        return None, "ok"

    # -- keys of one owner ------------------------------------------------------------------------------------
    async def _put_once(self) -> None:
        key = f"w/{self.name}/{self.facts.last_value}"
        value, result = await self._put(key)
        self._note_owned(key, value, result, "put once")

    async def _copy(self) -> None:
        """A copy of a register as it was seen: either exactly that value, or nothing."""
        key, target = f"r/{self.rng.randrange(REGISTERS)}", f"x/{self.name}/{self.facts.last_value}-{len(self.mine)}"
        seen = self._etags.get(key)
        if seen is None or target in self.facts.owned:
            return
        try:
            await self.store.copy(BUCKET, key, BUCKET, target, source_condition=Condition(if_match=[seen[1]]))
            result = "ok"
        except (PreconditionFailed, NotFound):
            result = "fail"
        except TierstoreError as error:
            self._check_expected(error)
            result = "?"
        self._note_owned(target, seen[0], result, "copy")

    def _note_owned(self, key: str, value: int, result: str, what: str) -> None:
        self.facts.count(f"{what} {result}")
        self.cluster.trace.say(self.name, what, key, value, "->", result)
        if result == "fail":
            self.facts.owned[key] = Owned(None)
        else:
            self.facts.owned[key] = Owned(value, is_sure=result == "ok")
            self.mine.append(key)

    async def _delete_once(self, key: str) -> None:
        owned = self.facts.owned[key]
        _, result = await self._delete(key)
        self.facts.count(f"delete once {result}")
        self.cluster.trace.say(self.name, "delete once", key, "->", result)
        if result == "ok":
            # An outcome that was not known before this delete stays not known only for as long as it may come late;
            # its deadline has passed when the run is judged, and a late one would be a violation of rule 12.
            self.facts.owned[key] = Owned(None) if owned.is_sure else Owned(owned.value, is_sure=False)
            self.mine.remove(key)
        elif result == "?":
            self.facts.owned[key] = Owned(owned.value, is_sure=False)

    async def read_once(self, key: str, *, must_answer: bool = False) -> None:
        """Raises Violation when a key does not hold what was acknowledged."""
        owned = self.facts.owned[key]
        _, found = await self._get(key)
        self.cluster.trace.say(self.name, "read", key, "->", found)
        if found == "?":
            self.facts.count("read ?")
            if must_answer:
                raise Violation(f"{key} cannot be read though nothing is broken")
            return
        self.facts.count("read ok")
        allowed = {owned.value} if owned.is_sure else {owned.value, None}
        if found not in allowed:
            raise Violation(f"{key} holds {found}, acknowledged was {sorted(map(str, allowed))}")

    async def _list(self) -> None:
        """List after write: what this client has acknowledged must be in the list, what it deleted must not."""
        prefix = f"w/{self.name}/"
        try:
            listed = {entry.key async for entry in self.store.list(BUCKET, prefix=prefix, page=7)}
        except TierstoreError as error:
            self._check_expected(error)
            return
        self.facts.count("list ok")
        for key, owned in self.facts.owned.items():
            if key.startswith(prefix) and owned.is_sure and (owned.value is not None) != (key in listed):
                raise Violation(f"{key} is {'not ' * (key not in listed)}listed, acknowledged was {owned.value}")

    def _check_expected(self, error: TierstoreError) -> None:
        """Faults may make a cluster unavailable or full; anything else is a bug."""
        self.facts.count(f"error {error.code}")
        if not isinstance(error, UnavailableError | CapacityError):
            raise Violation(f"{self.name} got {error.code}: {error.detail}") from error
