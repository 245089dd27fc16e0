"""The REST surface against a dict: any sequence of requests, with faults of object servers in between.

Whatever order clients find, the answers must be those of a dict of bytes. One gateway, three object servers in memory,
one of which at a time may be gone, full, rotten or broken off: N+1 promises that nothing of it shows.
TIERSTORE_EXAMPLES=200 (a figure run) or 10000 (before a release) plays more than the 25 games of every test run.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, field, replace
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
META = st.text("abc XYZ-_.:/0123456789", min_size=1, max_size=30).map(str.strip).filter(bool)
SIZES = st.sampled_from([0, 1, 100, 65_535, 65_536, 65_537, 200_000, 262_144, 300_000])


@dataclass
class Known:
    """What the model holds of an object."""

    body: bytes
    etag: str
    version: str = ""
    user_meta: dict[str, str] = field(default_factory=dict)
    content_type: str = ""


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
            async with asyncio.timeout(120):
                pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
                return await self.door.send(method, URL + quote(key, safe="/"), body, headers=pairs)

        return self.loop.run_until_complete(one())

    # -- requests -------------------------------------------------------------------------------------------
    @rule(target=keys, key=KEYS)
    def name(self, key: str) -> str:
        return key

    @rule(
        key=keys, size=SIZES, chunked=st.booleans(), condition=st.sampled_from(["", "new", "same", "other"]),
        meta=st.dictionaries(st.sampled_from(["colour", "x-1", "long-name"]), META, max_size=2),
        content_type=st.sampled_from(["", "text/plain", "application/x-thing; v=1"]),
    )  # fmt: skip
    def put(
        self, key: str, size: int, chunked: bool, condition: str, meta: dict[str, str], content_type: str
    ) -> None:
        body = self.rng.randbytes(size)
        known = self.model.get(key)
        headers = {"x_tierstore_checksum_crc32c": encode_crc(crc_of(body))}
        headers |= {f"x-tierstore-meta-{name}": value for name, value in meta.items()}
        if content_type:
            headers["content-type"] = content_type
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
            self.model[key] = Known(body, got.headers["etag"], got.headers["x-tierstore-version"], meta, content_type)

    @rule(key=keys, size=SIZES, chunked=st.booleans())
    def put_with_a_wrong_checksum(self, key: str, size: int, chunked: bool) -> None:
        """Refused, and what stood there stands there still (later reads look)."""
        body = self.rng.randbytes(size)
        got = self.send("PUT", key, [body] if chunked else body, x_tierstore_checksum_crc32c=encode_crc(crc_of(b"!")))
        assert (got.status, got.code) == (400, "checksum-mismatch")

    @rule(key=keys, size=st.sampled_from([100, 70_000, 300_000]), share=st.floats(0, 0.99))
    def put_and_go_away(self, key: str, size: int, share: float) -> None:
        """The client is gone before its body's end: nothing becomes visible."""
        body = self.rng.randbytes(size)

        async def one() -> None:
            async with asyncio.timeout(120):
                await self.door.cut(URL + quote(key, safe="/"), body[: int(size * share)], length=size)

        self.loop.run_until_complete(one())

    @rule(key=keys)
    def get(self, key: str) -> None:
        got, known = self.send("GET", key), self.model.get(key)
        if known is None:
            assert got.status == 404
            return
        assert (got.status, got.body == known.body, got.headers["etag"]) == (200, True, known.etag)
        prefix = "x-tierstore-meta-"
        told = {name.removeprefix(prefix): value for name, value in got.headers.items() if name.startswith(prefix)}
        assert told == known.user_meta
        if known.content_type:
            assert got.headers["content-type"] == known.content_type

    @rule(key=keys, method=st.sampled_from(["GET", "HEAD"]), kind=st.sampled_from(["match", "none"]),
          which=st.sampled_from(["own", "other", "*"]))  # fmt: skip
    def read_if(self, key: str, method: str, kind: str, which: str) -> None:
        known = self.model.get(key)
        etag = {"own": known.etag if known else '"own"', "other": '"other"', "*": "*"}[which]
        got = self.send(method, key, **{f"if_{'match' if kind == 'match' else 'none_match'}": etag})
        is_same = known is not None and which != "other"
        if known is None:
            assert got.status in (404, 412)
        elif kind == "match":
            assert got.status == (200 if is_same else 412)
        else:
            assert got.status == (304 if is_same else 200)
            assert not (is_same and got.body)

    @rule(key=keys)
    def get_version(self, key: str) -> None:
        """The version that an answer named is the one that is read, for as long as it is the latest."""
        known = self.model.get(key)
        if known is None or not known.version:
            return

        async def one() -> Answer:
            return await self.door.send("GET", URL + quote(key, safe="/") + f"?version={known.version}")

        got = self.loop.run_until_complete(one())
        assert (got.status, got.body == known.body) == (200, True)

    @rule(key=keys, which=st.sampled_from(["own", "other"]))
    def delete_if_match(self, key: str, which: str) -> None:
        known = self.model.get(key)
        if known is None:
            return
        got = self.send("DELETE", key, if_match=known.etag if which == "own" else '"other"')
        assert got.status == (204 if which == "own" else 412)
        if which == "own":
            del self.model[key]

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
            # the copy is a version of its own, whose number the answers to reads tell
            self.model[to] = replace(known, version="")
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
    max_examples=int(os.environ.get("TIERSTORE_EXAMPLES", "25")), stateful_step_count=30, deadline=None,
    suppress_health_check=list(HealthCheck),
)
