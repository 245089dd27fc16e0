"""What operators ask of a running cluster, for tests: status, servers, jobs, scrub; and waiting for it to settle."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from tests.kit.cluster import Cluster, wait_until


def call(c: Cluster, method: str, target: str, body: dict[str, Any] | None = None, *, seconds: float = 120) -> Any:
    """One request to the gateway as the administrator; the JSON of its answer. Raises URLError."""
    request = urllib.request.Request(
        c.gateway + target, method=method, data=None if body is None else json.dumps(body).encode(),
        headers={"authorization": f"Bearer {c.token}", "content-type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def ask(c: Cluster, target: str) -> Any:
    """call() for polling: None while nobody answers."""
    try:
        return call(c, "GET", target)
    except OSError:
        return None


def server(c: Cluster, name: str) -> dict[str, Any]:
    servers = (ask(c, "/v1/admin/servers") or {"servers": []})["servers"]
    return next((s for s in servers if s["name"] == name), {"state": "unknown", "devices": []})


def kill_and_wait(c: Cluster, name: str) -> None:
    """kill -9 of an object server, and wait until the cluster has it back in a new life: for some seconds the old one
    still looks alive."""
    before = wait_until(lambda: server(c, name).get("incarnation"), seconds=120, what=f"{name} known")
    c.kill(name)
    wait_until(
        lambda: (s := server(c, name))["state"] == "up" and s["incarnation"] > before and s["devices"],
        seconds=120, what=lambda: f"{name} back: {told(c)}",
    )  # fmt: skip


def open_jobs(c: Cluster) -> int | None:
    """Jobs that wait or run, of all reasons; None while nobody answers."""
    answer = ask(c, "/v1/admin/jobs?limit=1")
    return None if answer is None else sum(w["waiting"] + w["running"] for w in answer["work"])


def wait_settled(c: Cluster, *, seconds: float, looks: int = 8) -> None:
    """Every object server up and reconciled, nothing to collect, no job open, at `looks` looks in a row half a second
    apart (duties make jobs out of jobs)."""
    quiet = 0

    def is_settled() -> bool:
        nonlocal quiet
        status, servers, jobs = ask(c, "/v1/admin/status"), ask(c, "/v1/admin/servers"), open_jobs(c)
        is_quiet = (
            status is not None and servers is not None and jobs == 0 and status["garbage_rows"] == 0
            and not status["repair_halted"] and not status["deletion_barred"]
            and all(
                s["state"] == "up" and all(d["is_reconciled"] for d in s["devices"])
                for s in servers["servers"] if s["role"] == "objectd"
            )
        )  # fmt: skip
        quiet = quiet + 1 if is_quiet else 0
        return quiet >= looks

    wait_until(is_settled, seconds=seconds, what=lambda: f"nothing left to do: {told(c)}", every=0.5)


def told(c: Cluster) -> dict[str, Any]:
    """What operators can see, for the message of a wait that failed: CI keeps nothing but the message."""
    targets = ("status", "servers", "jobs?limit=20", "scrub")
    return {target: ask(c, f"/v1/admin/{target}") for target in targets}
