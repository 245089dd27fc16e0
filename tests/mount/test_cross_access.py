"""One truth for all doors: what REST writes the mount reads, and the other way round, byte for byte; two mounts."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.kit.cluster import wait_until
from tests.kit.mount import Mounted

NAMES = st.sampled_from(["a", "b", "d/x", "d/y", "e/f/z"])
BYTES = st.binary(max_size=40) | st.integers(1, 400_000).map(lambda size: bytes([size % 251]) * size)


def url(key: str) -> str:
    return f"/v1/objects/files/{quote(key)}"


class Doors(RuleBasedStateMachine):
    """A few keys, written and looked at by REST and by the mount."""

    mount: Mounted
    rest: httpx.Client

    @initialize()
    def begin(self) -> None:
        self.root = f"doors-{uuid.uuid4().hex[:12]}"
        self.model: dict[str, bytes] = {}

    def path(self, name: str) -> Path:
        return self.mount.path / self.root / name

    def key(self, name: str) -> str:
        return f"{self.root}/{name}"

    @rule(name=NAMES, data=BYTES)
    def put(self, name: str, data: bytes) -> None:
        assert self.rest.put(url(self.key(name)), content=data).status_code == 200
        self.model[name] = data

    @rule(name=NAMES, data=BYTES)
    def write(self, name: str, data: bytes) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_bytes(data)
        self.model[name] = data

    @rule(name=NAMES, data=BYTES)
    def append(self, name: str, data: bytes) -> None:
        if name in self.model:
            with open(self.path(name), "ab") as file:
                file.write(data)
            self.model[name] += data

    @rule(name=NAMES, first=st.integers(0, 300_000), data=st.binary(min_size=1, max_size=5000))
    def overwrite(self, name: str, first: int, data: bytes) -> None:
        if name in self.model:
            with open(self.path(name), "r+b") as file:
                file.seek(first)
                file.write(data)
            old = self.model[name].ljust(first, b"\0")
            self.model[name] = old[:first] + data + old[first + len(data) :]

    @rule(name=NAMES, size=st.integers(0, 500_000))
    def truncate(self, name: str, size: int) -> None:
        if name in self.model:
            os.truncate(self.path(name), size)
            self.model[name] = self.model[name][:size].ljust(size, b"\0")

    @rule(name=NAMES, by_rest=st.booleans())
    def delete(self, name: str, by_rest: bool) -> None:
        if self.model.pop(name, None) is not None:
            if by_rest:
                assert self.rest.delete(url(self.key(name))).status_code == 204
            else:
                self.path(name).unlink()

    @rule(source=NAMES, to=NAMES, by_rest=st.booleans())
    def rename(self, source: str, to: str, by_rest: bool) -> None:
        if source not in self.model or source == to:
            return
        if by_rest:
            answer = self.rest.post(url(self.key(source)), json={"rename_to": self.key(to)})
            assert answer.status_code == 200, answer.text
        else:
            self.path(to).parent.mkdir(parents=True, exist_ok=True)
            self.path(source).rename(self.path(to))
        self.model[to] = self.model.pop(source)

    @invariant()
    def both_doors_show_the_model(self) -> None:
        listed = self.rest.get("/v1/objects/files", params={"prefix": f"{self.root}/"}).json()["objects"]
        assert {entry["key"].removeprefix(f"{self.root}/"): entry["size"] for entry in listed} == {
            name: len(data) for name, data in self.model.items()
        }
        for name, data in self.model.items():
            answer = self.rest.get(url(self.key(name)))
            assert answer.status_code == 200
            assert answer.content == data
            assert len(answer.headers["etag"].strip('"')) != 32
            assert self.path(name).read_bytes() == data


def test_rest_and_the_mount_agree_whatever_is_done(mount: Mounted, rest: httpx.Client) -> None:
    Doors.mount, Doors.rest = mount, rest
    run_state_machine_as_test(
        Doors,
        settings=settings(
            max_examples=8, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_keys_that_are_no_paths_stay_with_rest(mount: Mounted, rest: httpx.Client) -> None:
    """Where `a` and keys below `a/` exist, the directory is shown; impossible names are not."""
    for key in ("odd/a", "odd/a/b", "odd//empty", f"odd/{'n' * 300}", "odd/plain"):
        assert rest.put(url(key), content=key.encode()).status_code in (200, 400)
    assert sorted(os.listdir(mount.path / "odd")) == ["a", "plain"]
    assert (mount.path / "odd/a/b").read_bytes() == b"odd/a/b"
    assert rest.get(url("odd/a")).content == b"odd/a"
    with pytest.raises(OSError, match="not empty"):
        (mount.path / "odd").rmdir()


def test_a_second_mount_sees_what_the_first_closed(mount: Mounted, tmp_path: Path) -> None:
    """Close-to-open: an open after the close reads the new bytes; what was learned of names is corrected."""
    other = Mounted(mount.cluster, mount.bucket, tmp_path / "other").start()
    try:
        here, there = mount.path / "shared", other.path / "shared"
        here.write_bytes(b"first")
        assert there.read_bytes() == b"first"
        here.write_bytes(b"second, longer")
        assert there.read_bytes() == b"second, longer"
        there.chmod(0o600)
        wait_until(lambda: here.stat().st_mode & 0o777 == 0o600, seconds=10, what="the mode seen by the other mount")
        there.rename(other.path / "moved")
        wait_until(lambda: not here.exists(), seconds=10, what="the name gone from the other mount")
        with open(mount.path / "both", "ab") as one, open(other.path / "both", "ab") as two:
            for _ in range(5):
                for file in (one, two):
                    file.write(b"line\n")
                    file.flush()
                    os.fsync(file.fileno())
        assert (mount.path / "both").read_bytes() == b"line\n" * 10
    finally:
        other.stop()
