"""The route table: what is hot, what is left to FastAPI."""

from __future__ import annotations

import time

from tierstore.serving.heads import query_value
from tierstore.serving.table import Route, RouteTable


def _none(exchange: object) -> None:
    raise AssertionError


def test_the_longest_prefix_wins_and_whole_paths_are_whole() -> None:
    """A listing under /v1/objects/{bucket} must not be taken for an object."""
    bucket = Route(b"GET", b"/v1/objects/", _none, accepts=lambda rest: b"/" in rest)
    admin = Route(b"GET", b"/v1/objects/admin/", _none)
    whole = Route(b"POST", b"/v1/internal/lookup", _none)
    table = RouteTable([bucket, admin, whole])
    assert table.match(b"GET", b"/v1/objects/b/k?x=/") is bucket
    assert table.match(b"GET", b"/v1/objects/b?prefix=a/b") is None
    assert table.match(b"GET", b"/v1/objects/admin/x") is admin
    assert table.match(b"GET", b"/v1/objects/") is None
    assert table.match(b"PUT", b"/v1/objects/b/k") is None
    assert table.match(b"POST", b"/v1/internal/lookup?x") is whole
    assert table.match(b"POST", b"/v1/internal/lookup/x") is None
    assert table.match(b"POST", b"/v1/internal/lookupx") is None
    assert table.match(b"GET", b"*") is None


def test_a_match_costs_less_than_two_microseconds() -> None:
    """It is paid by every request, hot or not."""
    routes = [Route(b"POST", b"/v1/internal/r%d" % n, _none) for n in range(12)]
    routes += [Route(m, p, _none) for m in (b"GET", b"PUT", b"HEAD") for p in (b"/v1/chunks/", b"/v1/objects/", b"/a/")]
    table = RouteTable(routes)
    best = 1.0
    for _ in range(40):
        begun = time.thread_time()
        for _ in range(1000):
            table.match(b"GET", b"/v1/chunks/abcdefgh?blocks=1-2")
        best = min(best, (time.thread_time() - begun) / 1000)
    assert best < 2e-6


def test_query_values_are_decoded_once() -> None:
    """Twice would turn %2541 into A."""
    target = b"/p?name=b%2Fa%2541+c&empty&index=7&index=8"
    assert query_value(target, b"name") == b"b/a%41 c"
    assert query_value(target, b"empty") == b""
    assert query_value(target, b"index") == b"7"
    assert query_value(target, b"nam") is None
    assert query_value(b"/p", b"name") is None
