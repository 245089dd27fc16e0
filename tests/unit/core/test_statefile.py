"""Small files that must survive: what is synced, in which order, and what a reader can meet."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tierstore import statefile


def test_the_content_is_synced_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename that reaches the disk before its content, or a return before the name, loses an identity in a cut."""
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else f"file of {os.fstat(fd).st_size}")
        real_fsync(fd)

    def replace(source: str, target: str) -> None:
        steps.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    path = tmp_path / "state.json"
    statefile.replace(str(path), b"12345")
    assert steps == ["file of 5", "rename", "directory"]
    assert path.read_bytes() == b"12345" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk must not cost a daemon its identity."""
    path = tmp_path / "state.json"
    statefile.replace(str(path), b"old")

    def full(_fd: int, _content: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        statefile.replace(str(path), b"new")
    assert path.read_bytes() == b"old"


def test_each_new_directory_is_made_durable_in_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file synced in a directory whose own name was lost is lost with it."""
    synced: list[str] = []
    monkeypatch.setattr(statefile, "sync_directory", synced.append)
    statefile.make_directory(str(tmp_path / "a" / "b"))
    assert synced == [str(tmp_path), str(tmp_path / "a")]
    statefile.make_directory(str(tmp_path / "a" / "b"))
    assert len(synced) == 2
