"""What devices hold against what the catalog says: every kind of difference is named, and nothing is changed."""

from __future__ import annotations

from metadata.services.upkeep.compare import DeviceComparison, Finding
from tests.unit.cluster.cluster_kit import MiniCluster, follow_feed, new_cluster


async def _compared(c: MiniCluster) -> dict[int, DeviceComparison]:
    await c.comparison.start()
    for store in c.stores.values():
        await store.turn(c)
    return {d.device: d for d in await c.comparison.status()}


async def test_a_whole_cluster_has_no_differences_and_says_how_far_it_looked() -> None:
    """Without the counts "no difference" could mean "nothing looked at"."""
    c = await new_cluster("a", "b")
    for i in range(5):
        await c.put(f"k{i}", "a", "b")
    assert await c.comparison.status() == []
    begun = await c.comparison.start()
    assert [(d.expected, d.finished_at_ms) for d in begun] == [(5, 0), (5, 0)]
    found = await _compared(c)
    assert all(d.chunks == 5 and d.total_bytes == 500 and d.finished_at_ms for d in found.values())
    assert not any(d.differences for d in found.values())


async def test_every_kind_of_difference_is_named_by_chunk_and_device() -> None:
    """The operator must see which copies to look at; nothing is deleted or queued for it."""
    c = await new_cluster("a", "b")
    lost, short, other = await c.put("k1", "a", "b"), await c.put("k2", "a", "b"), await c.put("k3", "a", "b")
    gone = await c.put("k4", "a", "b")
    stray = c.world.clock.now_ms().to_bytes(6, "big") + b"strays" + bytes(4)
    await c.delete("k4")    # waits for collection: no difference
    await follow_feed(c.world)
    await c.pass_time(16 * 60, "a", "b")
    held = c.stores["a"].held[c.device("a")]
    held.discard(lost)
    held.add(stray)
    young = c.world.clock.now_ms().to_bytes(6, "big") + b"young!" + bytes(4)
    held.add(young)
    c.stores["a"].odd_headers = {short: (99, 7), other: (100, 8)}
    found = await _compared(c)
    a, b = found[c.device("a")], found[c.device("b")]
    assert b.differences == 0 and (a.pending, b.pending) == (2, 1)
    assert {(f.chunk, f.what) for f in a.findings} == {
        (lost.hex(), "missing"), (short.hex(), "size"), (other.hex(), "checksum"), (stray.hex(), "unknown"),
    }  # fmt: skip
    assert (a.missing, a.size_differs, a.checksum_differs, a.unknown) == (1, 1, 1, 1)
    assert {stray, young, gone} <= held
    assert not [job for store in c.stores.values() for job in store.jobs_seen if job.kind != "inventory"]


async def test_what_is_about_to_be_deleted_is_no_difference() -> None:
    """Between its garbage row and its deletion a chunk is named by the job's payload alone."""
    c = await new_cluster("a", "b")
    gone = await c.put("k", "a", "b")
    await c.delete("k")
    await c.pass_time(16 * 60, "a", "b")
    await c.collection.step(0)
    assert gone in c.held_on(c.device("a"))
    await c.comparison.start()
    c.stores["a"].slots = 0
    job = next(j for j in await c.queue.hand_out(c.stores["a"].server.id, 8) if j.kind == "inventory")
    await c.stores["a"]._tell_headers(c, job)
    (found,) = [d for d in await c.comparison.status() if d.device == c.device("a")]
    assert (found.chunks, found.pending, found.differences) == (1, 1, 0)


async def test_a_comparison_does_not_make_a_returned_device_count() -> None:
    """Only an inventory whose strays and orphans were judged does (rule 16)."""
    c = await new_cluster("a", "b", "c")
    await c.put("k", "a", "b")
    await c.pass_time(45, "b", "c")
    await c.stores["a"].server.beat()
    await c.world.heartbeats.flush()
    assert not c.world.cluster.view.devices[c.device("a")].counts_for_copies
    await _compared(c)
    await c.world.cluster.refresh()
    assert not c.world.cluster.view.devices[c.device("a")].counts_for_copies


def test_differences_beyond_the_bound_are_counted_only() -> None:
    """A wiped device has millions."""
    state = DeviceComparison(1, 1)
    for number in range(1000):
        state.note(Finding(f"{number:032x}", "missing"))
    assert state.missing == 1000 and len(state.findings) == 200
