"""Is the history of one key (put, get, delete, compare-and-set on a register) linearizable?

Wing and Gong's search with Lowe's memo of (linearized set, state). Keys are independent, so a history is split by key
first. An operation is (called, returned, kind, argument, result):

    ("put", value, "ok" | "fail" | "?")          ("get", None, value | None | "?")
    ("del", None, "ok" | "fail" | "?")           ("cas", (expected, new), "ok" | "mismatch" | "?")

None stands for "no such object". "?" is an unknown outcome (timeout, 5xx, connection lost): it may take effect at any
later time or never. "fail" certainly had no effect and is dropped. Keep a key under 200 operations: the search is
exponential in the width of the overlap.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

Operation = tuple[float, float, str, Any, Any]
Event = tuple[str, float, float, str, Any, Any]
_NEVER = float("inf")


def _step(state: Any, kind: str, argument: Any, result: Any) -> tuple[bool, Any]:
    """(allowed, new state) of applying one operation to the register."""
    if kind == "put":
        return True, argument
    if kind == "del":
        return True, None
    if kind == "get":
        return result in ("?", state), state
    hit = state == argument[0]
    if result == "ok":
        return hit, argument[1]
    if result == "mismatch":
        return not hit, state
    return True, (argument[1] if hit else state)


def check_key(operations: Iterable[Operation], initial: Any = None, budget: int = 5_000_000) -> bool | None:
    """True, False, or None when the budget of visited states is spent."""
    ops = [
        (called, _NEVER if result == "?" else returned, kind, argument, result)
        for called, returned, kind, argument, result in operations
        if result != "fail" and not (kind == "get" and result == "?")
    ]
    if not any(op[2] == "cas" for op in ops):
        # an unknown put that nobody ever saw may as well never have happened: fewer branches
        seen_values = {op[4] for op in ops if op[2] == "get"}
        ops = [op for op in ops if not (op[2] == "put" and op[4] == "?" and op[3] not in seen_values)]
    ops.sort(key=lambda op: op[0])
    must = sum(1 << i for i, op in enumerate(ops) if op[1] < _NEVER)
    visited: set[tuple[int, Any]] = set()
    stack: list[tuple[int, Any]] = [(0, initial)]
    while stack:
        done, state = stack.pop()
        if done & must == must:
            return True
        if (done, state) in visited:
            continue
        visited.add((done, state))
        budget -= 1
        if budget < 0:
            return None
        stack.extend(_successors(ops, done, state))
    return False


def _successors(ops: list[Operation], done: int, state: Any) -> list[tuple[int, Any]]:
    """The states reachable by linearizing one more operation; the one to try first stands last."""
    low = ((~done) & -(~done)).bit_length() - 1  # everything below low is done
    first_return = _NEVER  # an operation may be next only if it began before every open one returned
    for i in range(low, len(ops)):
        if ops[i][0] > first_return:
            break
        if not done >> i & 1:
            first_return = min(first_return, ops[i][1])
    found: list[tuple[float, int, Any]] = []
    for i in range(low, len(ops)):
        called, returned, kind, argument, result = ops[i]
        if called > first_return:
            break
        if done >> i & 1:
            continue
        allowed, new_state = _step(state, kind, argument, result)
        if not allowed:
            continue
        if kind == "get" or (kind == "cas" and result == "mismatch"):
            return [(done | 1 << i, new_state)]  # it only reads: taking it now is never wrong
        found.append((returned, done | 1 << i, new_state))
    found.sort(key=lambda entry: -entry[0])
    return [entry[1:] for entry in found]


def check_history(history: Iterable[Event], initial: Any = None) -> dict[str, bool | None]:
    """key -> verdict for all keys that are not linearizable (False) or not decided (None)."""
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for key, *operation in history:
        by_key[key].append(tuple(operation))  # type: ignore[arg-type]
    verdicts = {key: check_key(operations, initial) for key, operations in by_key.items()}
    return {key: verdict for key, verdict in verdicts.items() if verdict is not True}
