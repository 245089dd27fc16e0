"""Internal requests that come twice, late or in another order (R14): one version, the same answer, nothing killed."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from tests.kit.cluster import Cluster
from tests.kit.load import Load, judge
from tests.kit.ports import free_port_base
from tests.kit.replay import ReplayProxy

OFFSET = 18     # of the proxy's port from the cluster's base; `up` with three servers uses none behind 13


@pytest.mark.parametrize("writes", [150, pytest.param(20_000, marks=pytest.mark.slow)])
def test_commits_sent_again_change_nothing(tmp_path: Path, writes: int) -> None:
    """The network may deliver a commit any number of times: a late DELETE must not kill a newer PUT, a repeated PUT
    must not bring a deleted object back, a repeated condition must not hold twice."""

    base = free_port_base()
    url = f"http://127.0.0.1:{base + OFFSET}"
    c = Cluster(tmp_path, ["--servers", "3"], {"TIERSTORE_MEMBERSHIP__METADATA": url}, base)

    async def main() -> None:
        proxy = ReplayProxy(
            base, port=base + OFFSET, path=b"/v1/internal/commit", rng=random.Random(writes), late_seconds=3.0
        )
        async with proxy:
            await asyncio.to_thread(c.start)
            load = Load(c.gateway, c.token, seed=writes % 999, registers=10)
            await load.prepare()
            load.start()
            deadline = time.monotonic() + 600 + writes / 20
            while load.outcome.counts["put 200"] < writes or sum(proxy.sent.values()) < writes // 4:
                assert time.monotonic() < deadline, (load.outcome.counts, proxy.sent)
                await asyncio.sleep(0.05)
            outcome = await load.stop()
            while proxy.waiting:
                assert time.monotonic() < deadline, (proxy.waiting, proxy.sent, proxy.answers)
                await asyncio.sleep(0.05)
            found = await judge(c.gateway, c.token, outcome)
        print(f"{dict(proxy.sent)} commits sent again, answers {dict(proxy.answers)}; {dict(outcome.counts)}")
        assert not found, found[:20]
        assert sum(proxy.sent.values()) >= writes // 4 and len(outcome.history) >= writes // 2
        assert not [status for status in proxy.answers if status >= 500], proxy.answers

    try:
        asyncio.run(main())
    except BaseException:
        print(c.log_tail())
        raise
    finally:
        c.stop()
