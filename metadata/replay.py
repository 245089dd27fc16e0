"""`python -m metadata.replay`: one what-if, from a question on standard input to an answer on standard output.

A process of its own because a replay is a minute of pure computing. Owns nothing; see services/tiering/whatif.py.
"""

from __future__ import annotations

import os
import sys

import msgspec

from metadata.services.tiering.whatif import Question
from tierstore.policy.history import History
from tierstore.policy.parser import parse
from tierstore.policy.simulate import Fleet, Speed
from tierstore.policy.whatif import compare

#: Least polite value that still leaves the machine to those who serve.
NICENESS = 10


def main() -> None:
    """Read, replay, answer."""
    os.nice(NICENESS)
    question = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Question)
    recorded = History(bytes_max=1 << 62, segments=question.segments).recorded()
    trace, share = recorded.trace.latest(question.hours), recorded.share
    fleet = Fleet(
        # A sample of the keys is a smaller store: its tiers shrink with it.
        {tier: int(size * share) for tier, size in question.fast.items()}, int(question.mem_bytes * share),
        question.slow, {tier: Speed(*speed) for tier, speed in question.speeds.items()},
        is_timed=True,      # the record is in milliseconds
        chunk_bytes=question.chunk_bytes, rate_scale=question.rate_scale * share,
        taken={tier: int(size * share) for tier, size in question.taken.items()},
    )  # fmt: skip
    answer = compare(
        trace, parse(question.current), parse(question.proposed), fleet, has_curve=question.has_curve and len(trace) > 0
    )
    answer["requests"] = len(trace)
    answer["sample_share"] = share
    answer["hours"] = round(float(trace.time[-1] - trace.time[0]) / 3600, 4) if len(trace) else 0.0
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
