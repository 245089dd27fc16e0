"""A real trace replayed on a real cluster with slow hdd devices (`python -m bench.tiering.replay`), in short.

The figures are the bench's; here it must be right: every byte, the tiers as the gateway counts them, copies made, and
faster than without."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.tiering.replay import Run, measure

#: Mean of the reads that all go to hdd: 12 ms on a machine that does nothing else.
QUIET_MS = 20.0


def test_a_short_replay_is_right_and_is_served_by_the_fast_tier(tmp_path: Path) -> None:
    """Promotion goes on beside reads of the same chunks: not one byte may be another's."""
    run = measure(900, 5.0, tmp_path, names=["promoter"])["promoter"]
    assert run.wrong == 0 and len(run.seconds) > 400
    assert run.counted == dict(run.tiers), "the gateway counts what the clients saw"
    assert run.promotions >= 3 and run.tiers["ssd"] > 0.02 * len(run.seconds)
    assert 0 < run.moved_per_served <= 0.25
    assert 0 < run.predicted < 1, "what-if replays what was recorded"


@pytest.mark.slow
def test_a_longer_replay_is_faster_with_the_promoter_and_faster_still_with_ram(tmp_path: Path) -> None:
    """The reason why any of this exists."""
    runs = measure(6000, 45.0, tmp_path)
    assert all(run.wrong == 0 and run.counted == dict(run.tiers) for run in runs.values())
    off = runs["off"].mean_ms
    print({name: round(run.mean_ms / off, 3) for name, run in runs.items()})
    for run in runs.values():
        # The forecast knows no time that a copy takes, nor readers who come while one is under way.
        assert abs(run.predicted - (1 - run.tiers["hdd"] / len(run.seconds))) < 0.15
    # What the disks are spared does not depend on who else uses the machine. Latencies do: runs one after the other
    # are comparable only while reads wait for the disks (8 ms and their queue), not for a processor.
    assert hdd_share(runs["off"]) == 1.0
    assert hdd_share(runs["promoter"]) < 0.6 and hdd_share(runs["mem"]) < 0.6
    if off < QUIET_MS:
        assert runs["promoter"].mean_ms < 0.8 * off
        assert runs["mem"].mean_ms < 0.7 * off


def hdd_share(run: Run) -> float:
    """Share of the reads after warm-up that waited for a slow disk."""
    tiers = run.tier_of[len(run.tier_of) // 3 :]
    return tiers.count("hdd") / len(tiers)
