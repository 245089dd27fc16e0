"""`tierstore mount` without a cluster: what it becomes is told how long to wait."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tierstore.cli import main, mount
from tierstore.sdk.limits import StoreLimits

runner = CliRunner()


def test_a_mount_waits_as_long_as_it_is_told_within_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A patience beyond an hour would have metadata refuse every change."""
    told: list[dict[str, Any]] = []

    def become(path: str, argv: list[str]) -> None:
        with os.fdopen(int(argv[-1]), "rb") as pipe:
            told.append(json.load(pipe))

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(mount.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(mount.os, "execv", become)
    argv = ["mount", "photos", "/nowhere", "--endpoint", "http://x:1", "--token", "tst.a.b"]
    for patience, seconds in (([], 20.0), (["--patience", "10m"], 600.0), (["--patience", "1s"], 1.0)):
        assert runner.invoke(main.app, [*argv, *patience]).exit_code == 0
        assert told.pop()["patience_seconds"] == seconds
    for wrong in ("0s", "11m", "long"):
        refused = runner.invoke(main.app, [*argv, "--patience", wrong])
        assert refused.exit_code != 0 and not told
    for flag, right, wrong in (("--memory", "16MiB", "15MiB"), ("--cache", "0", "-1")):
        assert runner.invoke(main.app, [*argv, flag, right]).exit_code == 0 and told.pop()
        refused = runner.invoke(main.app, [*argv, flag, wrong])
        assert refused.exit_code != 0 and not told, "taken in silence, and meant nothing"


def test_patience_stretches_waits_and_not_attempts() -> None:
    """How soon a read leaves a silent server for the next one has nothing to do with when it gives up."""
    usual, patient = StoreLimits(), StoreLimits().waiting(30)
    assert (patient.request_seconds, patient.first_byte_seconds, patient.placement_wait_seconds) == (450, 300, 300)
    assert (patient.stall_seconds, patient.hedge_seconds_max, patient.chunk_attempts_max) == (
        usual.stall_seconds, usual.hedge_seconds_max, usual.chunk_attempts_max,
    )  # fmt: skip
