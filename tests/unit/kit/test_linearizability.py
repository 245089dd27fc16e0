"""The checker itself: it agrees with brute force, and it finds a planted stale read and a lost write."""

import itertools
import random
from typing import Any

import pytest

from tests.kit.linearizability import Operation, _step, check_key


def brute_force(ops: list[Operation]) -> bool:
    """Try every order and every subset of the unknown ones."""
    ops = [o for o in ops if o[4] != "fail" and not (o[2] == "get" and o[4] == "?")]
    known = [o for o in ops if o[4] != "?"]
    unknown = [o for o in ops if o[4] == "?"]
    for count in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *some]):
                state: Any = None
                for i, op in enumerate(order):
                    if any(later[1] < op[0] and later[4] != "?" for later in order[i + 1 :]):
                        break
                    allowed, state = _step(state, op[2], op[3], op[4])
                    if not allowed:
                        break
                else:
                    return True
    return False


def random_history(seed: int, count: int, *, stale: float = 0.0) -> list[Operation]:
    """A real register seen through random delays; some reads return an older value."""
    rng = random.Random(seed)
    clocks, events = [0.0] * 3, []
    for i in range(count):
        who = min(range(3), key=lambda c: clocks[c])
        called = clocks[who] + rng.random() * 0.1
        applied = called + rng.random() * 0.5
        clocks[who] = applied + rng.random() * 0.5
        events.append((applied, called, clocks[who], rng.choice(["put", "get", "get", "del", "cas"]), i, rng.random()))
    state: Any = None
    old: list[Any] = [None]
    ops: list[Operation] = []
    for _, called, returned, kind, i, luck in sorted(events):
        if kind == "get":
            result = rng.choice(old) if rng.random() < stale else state
            ops.append((called, returned, "get", None, result))
        elif kind == "put":
            state = i
            old.append(i)
            ops.append((called, returned, "put", i, "?" if luck < 0.1 else "ok"))
        elif kind == "del":
            state = None
            ops.append((called, returned, "del", None, "?" if luck < 0.1 else "ok"))
        else:
            expected = rng.choice(old[-3:])
            hit = state == expected
            if hit:
                state = -i
                old.append(state)
            result = "?" if luck < 0.1 else "ok" if hit else "mismatch"
            ops.append((called, returned, "cas", (expected, -i), result))
    return ops


@pytest.mark.parametrize("stale", [0.0, 0.5])
def test_the_checker_agrees_with_brute_force(stale: float) -> None:
    """A checker that says yes to everything would hide every loss."""
    verdicts = set()
    for seed in range(150):
        ops = random_history(seed, 6, stale=stale)
        verdict = check_key(ops)
        assert verdict == brute_force(ops), seed
        verdicts.add(verdict)
    assert verdicts == ({True} if stale == 0.0 else {True, False})


def test_a_planted_stale_read_is_found_in_a_long_history() -> None:
    """What the fault tests rely on."""
    ops = [(float(i), i + 0.5, "put", i, "ok") for i in range(0, 100, 2)]
    ops += [(i + 0.0, i + 0.5, "get", None, i - 1) for i in range(1, 100, 2)]
    assert check_key(ops) is True
    ops[-1] = (99.0, 99.5, "get", None, 4)
    assert check_key(ops) is False


def test_a_lost_acknowledged_write_is_found() -> None:
    """An acknowledged put that a later read does not see."""
    assert check_key([(0, 1, "put", 1, "ok"), (2, 3, "get", None, None)]) is False
    assert check_key([(0, 1, "put", 1, "?"), (2, 3, "get", None, None)]) is True
