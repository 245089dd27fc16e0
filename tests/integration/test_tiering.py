"""Tiering on real processes whose hdd devices are really slower: promotion, steering, rules, explain, heat, what-if."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.kit.cluster import Cluster, cluster, wait_until

KIB, MIB = 1 << 10, 1 << 20
PROMOTER = {"tick": "1s", "half_life": "10min", "budget": 2.0, "chunk_max": 0.2}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    flags = ("--device", "ssd=8MiB", "--device", "hdd=512MiB,8ms,160MB/s", "--mem", "0")
    with cluster(tmp_path_factory.mktemp("tiering"), *flags) as started:
        yield started


@pytest.fixture
def rest(running: Cluster) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {running.token}"}
    with httpx.Client(base_url=running.gateway, headers=headers, timeout=180) as client:
        client.put("/v1/buckets/bkt")
        set_policy(client, [])
        yield client


def set_policy(rest: httpx.Client, rules: list[dict[str, Any]], **promoter: Any) -> int:
    answer = rest.put("/v1/admin/policy", json={"version": 1, "rules": rules, "promoter": PROMOTER | promoter})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["revision"])


def put(rest: httpx.Client, key: str, size: int) -> bytes:
    body = random.Random(key).randbytes(size)
    answer = rest.put(f"/v1/objects/bkt/{key}", content=body)
    assert answer.status_code == 200, answer.text
    return body


def get(rest: httpx.Client, key: str, body: bytes) -> str:
    """Read an object, every byte of it checked; the tier that served it."""
    answer = rest.get(f"/v1/objects/bkt/{key}")
    assert answer.status_code == 200, answer.text
    assert answer.content == body
    return answer.headers["x-tierstore-tier"]


def explain(rest: httpx.Client, key: str) -> dict[str, Any]:
    answer = rest.get(f"/v1/explain/bkt/{key}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def tiers_of(rest: httpx.Client, key: str, *, role: str) -> list[str]:
    replicas = [r for chunk in explain(rest, key)["chunks"] for r in chunk["replicas"]]
    return sorted(r["tier"] for r in replicas if r["role"] == role and r["state"] == "ok")


def read_until(rest: httpx.Client, key: str, body: bytes, tier: str) -> float:
    """Read at up to 200 a second until that tier serves; seconds it took. One read says little: on a busy machine the
    fast copy may be late, and the other one asked as well is first."""
    began = time.monotonic()
    try:
        wait_until(lambda: get(rest, key, body) == tier, seconds=120, what=f"{key} on {tier}", every=0.005)
    except AssertionError:
        print(explain(rest, key))
        raise
    return time.monotonic() - began


def test_a_crowd_brings_a_cold_object_to_the_fast_tier(rest: httpx.Client) -> None:
    """Else everybody who comes in the first minutes of a crowd waits for the disk."""
    body = put(rest, "crowd", 100 * KIB)
    assert tiers_of(rest, "crowd", role="home") == ["hdd", "hdd"]
    slow = [_seconds(lambda: get(rest, "crowd", body)) for _ in range(5)]
    read_until(rest, "crowd", body, "ssd")
    for _ in range(50):
        get(rest, "crowd", body)
    # no read of the disk is quicker than its seek, however busy or idle the machine is
    wait_until(
        lambda: _seconds(lambda: get(rest, "crowd", body)) < min(slow), seconds=120, what=f"less than {min(slow)} s"
    )
    answer = explain(rest, "crowd")
    past = answer["heat_history"]
    reads = [hour["reads"] for hour in past["hours"]]
    assert past["is_recorded"] and sum(reads[-2:]) > 50 and reads[0] == 0, past     # the hour may just have struck
    assert tiers_of(rest, "crowd", role="cache") == ["ssd"]
    chunk = answer["chunks"][0]
    assert chunk["heat_per_hour"] > 100 and chunk["rank"] is not None
    assert {"action", "to_tier", "why"} <= set(chunk["next"])
    assert any(d["action"] == "promote" for d in chunk["decisions"])
    assert answer["rule"] == "default" and answer["key"] == "crowd"
    hot = rest.get("/v1/admin/heat", params={"by": "object", "limit": 5}).json()["items"]
    assert hot[0]["name"] == "bkt/crowd" and hot[0]["tier"] == "ssd" and hot[0]["bytes"] == 100 * KIB
    listed = rest.get("/v1/objects/bkt", params={"prefix": "crowd"}).json()["objects"][0]
    assert listed["tier"] == "ssd"
    assert listed["heat_per_hour"] == pytest.approx(hot[0]["heat_per_hour"], rel=0.5)
    csv = rest.get("/v1/admin/heat", params={"by": "bucket", "format": "csv"}).text.splitlines()
    assert csv[0] == "name,heat_per_hour,bytes,tier" and csv[1].startswith("bkt,")


def test_explain_answers_for_objects_of_all_kinds(rest: httpx.Client) -> None:
    """The odd ones are what people ask about: nobody read it, it is large, it is empty, it is gone, it cannot move."""
    put(rest, "odd/unread", 10 * KIB)
    assert explain(rest, "odd/unread")["chunks"][0]["next"] == {
        "action": "stay", "to_tier": "", "why": "nobody has read it"
    }  # fmt: skip
    body = put(rest, "odd/large", 20 * MIB)
    get(rest, "odd/large", body)
    large = explain(rest, "odd/large")
    assert large["chunks_total"] == len(large["chunks"]) == 3 and large["remote"] is None
    assert sum(chunk["bytes"] for chunk in large["chunks"]) == 20 * MIB
    assert "above the largest chunk that may move to ssd" in large["chunks"][0]["next"]["why"]
    put(rest, "odd/empty", 0)
    empty = explain(rest, "odd/empty")
    assert (empty["chunks"], empty["chunks_total"], empty["heat_per_hour"]) == ([], 0, 0)
    assert rest.delete("/v1/objects/bkt/odd/unread").status_code == 204
    version = explain(rest, "odd/large")["version"]
    assert rest.get("/v1/explain/bkt/odd/large", params={"version": version}).json()["chunks_total"] == 3
    assert rest.get("/v1/explain/bkt/odd/large", params={"version": "0" * 15 + "1"}).status_code == 404
    assert rest.get("/v1/explain/bkt/odd/large", params={"version": "newest"}).json()["code"] == "bad-version"
    gone = rest.get("/v1/explain/bkt/odd/unread")
    assert gone.status_code == 404 and gone.json()["code"], gone.text


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_a_full_fast_tier_takes_what_is_hotter_and_a_scan_pushes_nothing_out(rest: httpx.Client) -> None:
    """A backup that reads everything once must not cool the store down."""
    hot = {f"hot/{n}": put(rest, f"hot/{n}", 256 * KIB) for n in range(8)}
    for _ in range(12):
        for key, body in hot.items():
            get(rest, key, body)
    for key, body in hot.items():
        read_until(rest, key, body, "ssd")
    cold = {f"cold/{n}": put(rest, f"cold/{n}", 256 * KIB) for n in range(100)}   # 25 MiB beside 24 MiB of ssd
    for key, body in cold.items():
        get(rest, key, body)
    ticks = rest.get("/v1/admin/tiering").json()["ticks"]
    wait_until(lambda: rest.get("/v1/admin/tiering").json()["ticks"] > ticks + 2, seconds=15, what="two more ticks")
    assert [tiers_of(rest, key, role="cache") for key in hot] == [["ssd"]] * len(hot)


def test_never_drops_copies_pin_makes_them_and_a_removed_rule_has_no_effect(rest: httpx.Client) -> None:
    """Policy is evaluated when it is needed: nothing stays behind of a rule that is gone."""
    body = put(rest, "ruled/a", 64 * KIB)
    pinned = put(rest, "pinned/a", 64 * KIB)
    read_until(rest, "ruled/a", body, "ssd")
    set_policy(rest, [
        {"name": "no", "match": {"bucket": "bkt", "prefix": "ruled/"}, "mode": "never"},
        {"name": "yes", "match": {"bucket": "bkt", "prefix": "pinned/"}, "mode": "pin"},
    ])  # fmt: skip
    wait_until(lambda: tiers_of(rest, "ruled/a", role="cache") == [], seconds=10, what="the never rule")
    wait_until(lambda: tiers_of(rest, "pinned/a", role="cache") == ["ssd"], seconds=10, what="the pin rule")
    read_until(rest, "pinned/a", pinned, "ssd")
    assert explain(rest, "ruled/a")["rule"] == "no"
    assert "never" in explain(rest, "ruled/a")["chunks"][0]["next"]["why"]
    set_policy(rest, [])
    assert explain(rest, "ruled/a")["rule"] == "default"
    read_until(rest, "ruled/a", body, "ssd")


def test_a_rule_has_a_schedule_and_a_rollback_brings_an_old_policy_back(rest: httpx.Client) -> None:
    """Night rules must not hold by day; a policy that did harm is taken back without looking for the old file."""
    body, hour = put(rest, "dated/a", 64 * KIB), time.gmtime().tm_hour

    def never(first: int, last: int) -> list[dict[str, Any]]:
        window = f"{(hour + first) % 24:02d}:00-{(hour + last) % 24:02d}:00 UTC"
        match = {"bucket": "bkt", "prefix": "dated/"}
        return [{"name": "dated", "match": match, "mode": "never", "schedule": window}]

    set_policy(rest, never(3, 5))
    assert explain(rest, "dated/a")["rule"] == "default"
    read_until(rest, "dated/a", body, "ssd")
    holding = set_policy(rest, never(-2, 3))
    assert explain(rest, "dated/a")["rule"] == "dated"
    wait_until(lambda: tiers_of(rest, "dated/a", role="cache") == [], seconds=10, what="the rule holds now")
    set_policy(rest, [])
    read_until(rest, "dated/a", body, "ssd")
    answer = rest.post("/v1/admin/policy/rollback", json={"revision": holding})
    assert answer.status_code == 200 and answer.json()["revision"] > holding
    wait_until(lambda: tiers_of(rest, "dated/a", role="cache") == [], seconds=10, what="the old policy holds again")
    refused = rest.put("/v1/admin/policy", json={"version": 1, "rules": [{"name": "x", "moed": "pin"}]})
    assert refused.status_code == 400 and "mode" in refused.json()["detail"], "the fix is named"
    assert explain(rest, "dated/a")["rule"] == "dated", "what is refused changes nothing"


def test_a_deleted_object_leaves_the_fast_tier(rest: httpx.Client) -> None:
    """Else what nobody can read any more takes the room of what is hot."""
    body = put(rest, "gone", 128 * KIB)
    read_until(rest, "gone", body, "ssd")
    assert rest.delete("/v1/objects/bkt/gone").status_code == 204

    def is_gone() -> bool:
        hot = rest.get("/v1/admin/heat", params={"by": "object", "limit": 100}).json()["items"]
        return all(item["name"] != "bkt/gone" for item in hot)

    wait_until(is_gone, seconds=10, what="its heat is forgotten")
    assert rest.get("/v1/explain/bkt/gone").status_code == 404


def test_what_if_replays_what_was_recorded_while_the_service_goes_on(rest: httpx.Client) -> None:
    """A simulation takes a core for a while: nobody else may notice."""
    body = put(rest, "quiet", 1000)
    for _ in range(120):        # on its own, too, there is a history
        get(rest, "quiet", body)
    stop, slowest = threading.Event(), [0.0]

    def keep_reading() -> None:
        while not stop.wait(0.05):      # the replay has the lowest priority: readers without a pause starve it
            slowest[0] = max(slowest[0], _seconds(lambda: get(rest, "quiet", body)))

    reader = threading.Thread(target=keep_reading)
    reader.start()
    began = time.monotonic()
    try:
        answer = rest.post(
            "/v1/admin/policy/simulate",
            json={"policy": {"version": 1, "rules": [{"name": "n", "match": {"bucket": "bkt"}, "mode": "never"}]}},
            timeout=600,
        )
    finally:
        took = time.monotonic() - began
        stop.set()
        reader.join()
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["requests"] > 100
    assert found["current"]["hit_ratio"]["ssd"] > found["proposed"]["hit_ratio"]["ssd"] == 0.0
    assert found["difference"]["mean_ms"] > 0
    assert {"points", "error"} <= set(found["current"]["curve"])
    print(f"the simulation took {took:.1f} s, the slowest read beside it {slowest[0]:.2f} s")
    assert slowest[0] < max(60.0, took / 2), "reads waited for the simulation"
    bad = rest.post("/v1/admin/policy/simulate", json={"policy": {"version": 1, "rules": [{"nam": "x"}]}})
    assert bad.status_code == 400 and bad.json()["code"] == "bad-policy"


def test_a_wrong_policy_names_the_place_and_the_remedy_whatever_its_type(rest: httpx.Client) -> None:
    """By REST as from the command line: an operator's script sends what its template made of it."""
    before = rest.get("/v1/admin/policy").json()

    def refused(body: bytes, kind: str = "application/json", *, path: str = "/v1/admin/policy") -> str:
        method = "PUT" if path == "/v1/admin/policy" else "POST"
        answer = rest.request(method, path, content=body, headers={"content-type": kind})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad-policy"), answer.text
        return str(answer.json()["detail"])

    for path in ("/v1/admin/policy", "/v1/admin/policy/check"):
        assert "the policy is a list" in refused(b"[]", path=path)
        assert "the policy is not JSON" in refused(b"version = 1", path=path)
    assert "the policy is a list" in refused(b'{"policy": []}', path="/v1/admin/policy/simulate")
    assert "revision is the number" in refused(b'{"version": 1, "revision": "x"}')
    toml = b'version = 1\n[[rules]]\nname = "a"\ncopies = 9\n'
    assert "line 4: 9 copies need 9 object servers, and there are 3" in refused(toml, "application/toml")
    assert "line 5: rules[0].x is not a setting" in refused(toml + b"x = 1\n", "Application/TOML; charset=utf-8")
    assert rest.get("/v1/admin/policy").json() == before, "nothing was changed"
    broken = rest.post("/v1/admin/policy/rollback", content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 422 and "the body is not JSON" in broken.json()["detail"]


def test_more_copies_than_servers_by_force_are_shown_in_the_status(rest: httpx.Client) -> None:
    """Servers that come later: the operator says so, and is reminded until they are there."""
    before = rest.get("/v1/admin/policy").json()
    wish = {"version": 1, "rules": [{"name": "careful", "match": {"prefix": "none-such/"}, "copies": 4}]}

    def warned() -> bool:
        warnings = rest.get("/v1/admin/status").json()["warnings"]
        return any("'careful' of the policy asks for 4 copies" in warning for warning in warnings)

    assert not warned() and rest.put("/v1/admin/policy", json=wish).status_code == 400
    assert rest.put("/v1/admin/policy", params={"force": "true"}, json=wish).status_code == 200
    assert warned()
    before.pop("revision")
    assert rest.put("/v1/admin/policy", json=before).status_code == 200
    assert not warned()


def test_a_policy_that_names_what_is_not_there_is_taken_with_a_warning(rest: httpx.Client) -> None:
    """A misspelt bucket is no error: it may be made tomorrow. Said by nobody, the rule does nothing for ever."""
    rules = [{"name": "typo", "match": {"bucket": "none-such"}, "mode": "pin"}]
    answer = rest.post("/v1/admin/policy/check", json={"version": 1, "rules": rules}).json()
    assert answer["warnings"] == ["rule 'typo': there is no bucket 'none-such'"]
    before = rest.get("/v1/admin/policy").json()
    before.pop("revision")
    taken = rest.put("/v1/admin/policy", json={"version": 1, "rules": rules}).json()
    assert taken["warnings"] == answer["warnings"] and rest.get("/v1/admin/policy").json()["rules"] == taken["rules"]
    again = rest.put("/v1/admin/policy", json={**taken, **before})
    assert again.status_code == 200, "an answer may be sent again"


def test_figures_add_up(rest: httpx.Client, running: Cluster) -> None:
    """What the metrics call a hit is what the client saw."""
    before = _served(rest)
    body, seen = put(rest, "counted", 10 * KIB), {"hdd": 0, "ssd": 0}
    for _ in range(60):
        seen[get(rest, "counted", body)] += 1
    after = _served(rest)
    assert {tier: after.get(tier, 0) - before.get(tier, 0) for tier in seen} == seen
    status = rest.get("/v1/admin/tiering").json()
    assert [t["tier"] for t in status["tiers"]] == ["ssd", "hdd"]
    assert sum(t["hit_ratio"] for t in status["tiers"]) == pytest.approx(1.0, abs=1e-3)
    assert status["promotions"] > 0 and status["tiers"][0]["resident_chunks"] > 0


def _served(rest: httpx.Client) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in rest.get("/-/metrics").text.splitlines():
        if line.startswith("tierstore_object_reads_total{"):
            tier = line.split('tier="', 1)[1].split('"', 1)[0]
            found[tier] = int(float(line.rsplit(" ", 1)[1]))
    return found


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Fast devices with room for whole chunks, and RAM."""
    flags = ("--device", "ssd=64MiB", "--device", "hdd=512MiB,8ms,160MB/s", "--mem", "4MiB")
    with cluster(tmp_path_factory.mktemp("roomy"), *flags) as running:
        headers = {"authorization": f"Bearer {running.token}"}
        with httpx.Client(base_url=running.gateway, headers=headers, timeout=180) as client:
            client.put("/v1/buckets/bkt")
            yield client


def test_landed_objects_drain_home_and_are_served_fast_meanwhile(roomy: httpx.Client) -> None:
    """The burst buffer: a checkpoint is written at the speed of the fast devices, and ends where it belongs."""
    set_policy(roomy, [{"name": "ckpt", "match": {"bucket": "bkt", "prefix": "ckpt/"}, "mode": "land-fast"}])

    def lands() -> bool:    # the gateway follows the policy with its next answer from metadata
        answer = roomy.put("/v1/objects/bkt/ckpt/probe", content=b"x" * 1000)
        return bool(answer.headers["x-tierstore-tier"] == "ssd")

    wait_until(lands, seconds=10, what="the gateway follows the policy")
    body = put(roomy, "ckpt/1", 200 * KIB)
    wait_until(lambda: tiers_of(roomy, "ckpt/1", role="home") == ["hdd", "hdd"], seconds=30, what="it drained home")
    assert tiers_of(roomy, "ckpt/1", role="cache") == ["ssd"]
    wait_until(lambda: get(roomy, "ckpt/1", body) in ("ssd", "mem"), seconds=120, what="served fast")


def test_hot_chunks_are_served_from_ram(roomy: httpx.Client) -> None:
    """The promoter looks once a tick; what is hot for a moment is the RAM cache's."""
    set_policy(roomy, [], paused=True)
    body, large = put(roomy, "small", 50 * KIB), put(roomy, "large", 300 * KIB)
    assert get(roomy, "small", body) == "hdd"
    read_until(roomy, "small", body, "mem")
    read_until(roomy, "large", large, "mem")

    def part() -> str:
        answer = roomy.get("/v1/objects/bkt/large", headers={"range": "bytes=70000-200000"})
        assert answer.content == large[70000:200001]
        return str(answer.headers["x-tierstore-tier"])

    wait_until(lambda: part() == "mem", seconds=120, what="a range from RAM")
    overwritten = random.Random(9).randbytes(50 * KIB)
    roomy.put("/v1/objects/bkt/small", content=overwritten)
    assert get(roomy, "small", overwritten) == "hdd"
    wait_until(
        lambda: [t["tier"] for t in roomy.get("/v1/admin/tiering").json()["tiers"]] == ["mem", "ssd", "hdd"],
        seconds=5, what="the mem tier is shown",
    )  # fmt: skip


def test_new_objects_of_a_bucket_that_is_read_soon_get_a_fast_copy_at_once(roomy: httpx.Client) -> None:
    """Written once, read a minute later: a promoter comes too late for it."""
    set_policy(roomy, [], read_soon=0.5)
    for bucket in ("soon", "archive"):
        assert roomy.put(f"/v1/buckets/{bucket}").status_code in (201, 409)
    written: list[str] = []

    def lands(bucket: str, *, is_read: bool) -> str:
        """Write an object; tier that the answer names."""
        written.append(f"{bucket}/{len(written)}")
        answer = roomy.put(f"/v1/objects/{written[-1]}", content=b"s" * 20_000)
        assert answer.status_code == 200, answer.text
        if is_read:
            assert roomy.get(f"/v1/objects/{written[-1]}").content == b"s" * 20_000
        return str(answer.headers["x-tierstore-tier"])

    for _ in range(40):
        lands("archive", is_read=False)
        lands("soon", is_read=True)
    wait_until(lambda: lands("soon", is_read=True) == "ssd", seconds=20, what="the bucket is known to be read soon")
    chunk = roomy.get(f"/v1/explain/{written[-1]}").json()["chunks"][0]
    assert sorted((r["role"], r["tier"]) for r in chunk["replicas"]) == [
        ("cache", "ssd"), ("home", "hdd"), ("home", "hdd")
    ]  # fmt: skip
    assert chunk["heat_per_hour"] > 0, "its bucket's past speaks for it"
    assert lands("archive", is_read=False) == "hdd"
    set_policy(roomy, [], read_soon=0.0)
    wait_until(lambda: lands("soon", is_read=True) == "hdd", seconds=20, what="it is switched off")


def test_the_ram_of_all_servers_adds_up(roomy: httpx.Client) -> None:
    """Pooled: a chunk is kept by the server that serves it and its readers come back there, so three servers of 4 MiB
    hold what one cannot."""
    set_policy(roomy, [], paused=True)
    bodies = {f"pool/{n}": put(roomy, f"pool/{n}", 200 * KIB) for n in range(45)}     # 8.8 MiB

    def from_ram() -> int:
        """Objects of one round that RAM served. Readers that found a server slow keep away from it for a while."""
        return [get(roomy, key, body) for key, body in bodies.items()].count("mem")

    # one server's RAM holds 20 of them
    wait_until(lambda: from_ram() >= 36, seconds=120, what="most of a round from the RAM of several servers")

    def used() -> int:
        return int(roomy.get("/v1/admin/tiering").json()["mem_used_bytes"])

    wait_until(lambda: used() > 4 * MIB, seconds=120, what="more shown as used than one server has")


def test_what_landed_and_is_not_home_yet_is_shown_with_its_age(roomy: httpx.Client) -> None:
    """Until it is home, losing the fast devices loses a checkpoint: its owner must see how much and since when."""
    set_policy(roomy, [{"name": "ckpt", "match": {"bucket": "bkt", "prefix": "late/"}, "mode": "land-fast"}])
    assert roomy.post("/v1/admin/jobs/pause", json={"duty": "settle"}).status_code == 200
    try:
        def lands() -> bool:
            answer = roomy.put("/v1/objects/bkt/late/probe", content=b"x" * 1000)
            return bool(answer.headers["x-tierstore-tier"] == "ssd")

        wait_until(lands, seconds=10, what="the gateway follows the policy")
        for n in range(5):
            put(roomy, f"late/{n}", 300 * KIB)

        def exposed() -> dict[str, Any]:
            tiers = roomy.get("/v1/admin/tiering").json()["tiers"]
            found: dict[str, Any] = next(tier for tier in tiers if tier["tier"] == "ssd")
            return found

        # of each of the five both home copies
        wait_until(lambda: exposed()["exposed_bytes"] >= 10 * 300 * KIB, seconds=20, what="the bytes are shown")
        before = exposed()["exposed_seconds"]
        wait_until(lambda: exposed()["exposed_seconds"] > max(before, 1.0), seconds=20, what="they grow older")
        assert tiers_of(roomy, "late/0", role="home") == ["ssd", "ssd"]
    finally:
        roomy.post("/v1/admin/jobs/resume", json={"duty": "settle"})
    wait_until(lambda: exposed()["exposed_bytes"] == 0, seconds=40, what="all is home")
    assert exposed()["exposed_seconds"] == 0
    assert [tiers_of(roomy, f"late/{n}", role="home") for n in range(5)] == [["hdd", "hdd"]] * 5
