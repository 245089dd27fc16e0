"""The REST surface against a dict: any sequence of requests, with faults of object servers in between.

Whatever order clients find, the answers must be those of a dict of bytes. One gateway, three object servers in memory,
one of which at a time may be gone, full, rotten or broken off: N+1 promises that nothing of it shows.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from tests.unit.gateway.door import GATEWAY_URL, Answer, Door
from tests.unit.sdk.fake_cluster import FakeCluster, full
from tierstore.checksum import crc_of, encode_crc

URL = "/v1/objects/bkt/"
CHUNK_BYTES = 64 * 1024
KEYS = st.one_of(
    st.sampled_from(["a", "a/", "a/b", "a/b/c", "..", "a//b", "ä", "b"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20),
)
SIZES = st.sampled_from([0, 1, 100, 65_535, 65_536, 65_537, 200_000, 262_144, 300_000])


@dataclass
class Known:
    """What the model holds of an object."""

    body: bytes
    etag: str


class RestAgainstDict(RuleBasedStateMachine):
    """Rules are requests; the model is a dict."""

    keys: Bundle[str] = Bundle("keys")

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.rng = random.Random(seed)
        self.model: dict[str, Known] = {}

        async def build() -> Door:
            self.cluster = FakeCluster(chunk_bytes=CHUNK_BYTES, seed=seed)
            door = Door(self.cluster)
            await door.gateway.start(GATEWAY_URL)
            return door

        self.door = self.loop.run_until_complete(build())

    def teardown(self) -> None:
        if not hasattr(self, "door"):
            return

        async def end() -> None:
            await self.door.gateway.stop()
            await self.door.server.close()
            await self.cluster.close()

        self.loop.run_until_complete(end())
        self.loop.close()

    def send(self, method: str, key: str, body: Any = None, **headers: str) -> Answer:
        async def one() -> Answer:
            async with asyncio.timeout(20):
                pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
                return await self.door.send(method, URL + quote(key, safe="/"), body, headers=pairs)

        return self.loop.run_until_complete(one())

    # -- requests -------------------------------------------------------------------------------------------
    @rule(target=keys, key=KEYS)
    def name(self, key: str) -> str:
        return key

    @rule(key=keys, size=SIZES, chunked=st.booleans(), condition=st.sampled_from(["", "new", "same", "other"]))
    def put(self, key: str, size: int, chunked: bool, condition: str) -> None:
        body = self.rng.randbytes(size)
        known = self.model.get(key)
        headers = {"x_tierstore_checksum_crc32c": encode_crc(crc_of(body))}
        succeeds = True
        if condition == "new":
            headers["if_none_match"] = "*"
            succeeds = known is None
        elif condition == "same":
            headers["if_match"] = known.etag if known else '"none"'
            succeeds = known is not None
        elif condition == "other":
            headers["if_match"] = '"other"'
            succeeds = False
        pieces = [body[at : at + 30_000] for at in range(0, size, 30_000)]
        got = self.send("PUT", key, pieces if chunked else body, **headers)
        assert got.status == (200 if succeeds else 412), got
        if succeeds:
            self.model[key] = Known(body, got.headers["etag"])

    @rule(key=keys)
    def get(self, key: str) -> None:
        got, known = self.send("GET", key), self.model.get(key)
        if known is None:
            assert got.status == 404
        else:
            assert (got.status, got.body == known.body, got.headers["etag"]) == (200, True, known.etag)

    @rule(key=keys, first=st.integers(0, 310_000), length=st.integers(1, 310_000), form=st.sampled_from("abc"))
    def get_range(self, key: str, first: int, length: int, form: str) -> None:
        text = {"a": f"bytes={first}-{first + length - 1}", "b": f"bytes={first}-", "c": f"bytes=-{length}"}[form]
        got, known = self.send("GET", key, range=text), self.model.get(key)
        if known is None:
            assert got.status == 404
            return
        size = len(known.body)
        expected = {"a": known.body[first : first + length], "b": known.body[first:], "c": known.body[-length:]}[form]
        if not size or (form != "c" and first >= size):
            assert (got.status, got.headers["content-range"]) == (416, f"bytes */{size}")
        else:
            assert (got.status, got.body == expected) == (206, True)

    @rule(key=keys)
    def head(self, key: str) -> None:
        got, known = self.send("HEAD", key), self.model.get(key)
        assert got.status == (200 if known else 404)
        assert not got.body
        if known:
            assert got.headers["content-length"] == str(len(known.body))
            assert got.headers["x-tierstore-checksum-crc32c"] == encode_crc(crc_of(known.body))

    @rule(key=consumes(keys))
    def delete(self, key: str) -> None:
        got = self.send("DELETE", key)
        assert got.status == (204 if self.model.pop(key, None) else 404)

    @rule(target=keys, key=keys, to=KEYS, rename=st.booleans())
    def copy_or_rename(self, key: str, to: str, rename: bool) -> str:
        import json

        action = {"rename_to": to} if rename else {"copy_to": f"bkt/{to}"}
        got, known = self.send("POST", key, json.dumps(action).encode()), self.model.get(key)
        if rename and key == to:
            assert got.status == 400
        elif known is None:
            assert got.status == 404
        else:
            assert got.status == 200
            self.model[to] = known
            if rename:
                del self.model[key]
        return to

    @rule(limit=st.integers(1, 4), delimiter=st.sampled_from(["", "/"]), prefix=st.sampled_from(["", "a", "a/"]))
    def list_all(self, limit: int, delimiter: str, prefix: str) -> None:
        keys, prefixes, after = [], [], ""
        for _ in range(1000):
            query = f"?limit={limit}&delimiter={quote(delimiter)}&prefix={quote(prefix)}&start_after={quote(after)}"

            async def one(query: str = query) -> Answer:
                return await self.door.send("GET", "/v1/objects/bkt" + query)

            page = self.loop.run_until_complete(one()).json
            keys += [entry["key"] for entry in page["objects"]]
            prefixes += page["prefixes"]
            if page["next_start_after"] is None:
                break
            after = page["next_start_after"]
        wanted = [key for key in self.model if key.startswith(prefix)]
        deep = {key for key in wanted if delimiter and delimiter in key[len(prefix) :]}
        assert sorted(keys) == sorted(set(wanted) - deep)
        assert sorted(prefixes) == sorted({key[: key.index("/", len(prefix)) + 1] for key in deep})

    # -- faults ---------------------------------------------------------------------------------------------
    @rule(number=st.integers(0, 2), fault=st.sampled_from(["gone", "full", "rotten", "cut", "none"]))
    def break_one_server(self, number: int, fault: str) -> None:
        """At most one server has a fault at any time."""
        for server, serving in zip(self.cluster.servers, self.cluster.serving[1:], strict=True):
            server.before_write, server.flip, server.cut_after = None, False, -1
            self.cluster.network.register(server.url, serving)
        broken = self.cluster.servers[number]
        if fault == "gone":
            self.cluster.remove(broken)
        elif fault == "full":
            broken.before_write = full
        elif fault == "rotten":
            broken.flip = True
        elif fault == "cut":
            broken.cut_after = 1000

    @rule(lost=st.integers(1, 2))
    def lose_answers_of_commits(self, lost: int) -> None:
        self.cluster.metadata.lose_answers = lost

    @invariant()
    def memory_is_given_back(self) -> None:
        if hasattr(self, "door"):
            assert self.door.gateway.store.budget.held_bytes == 0
            assert self.door.gateway.objects.in_flight == 0


TestRestAgainstDict = RestAgainstDict.TestCase
TestRestAgainstDict.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
