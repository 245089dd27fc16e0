"""Paths longer than one call can name: a program gets there by directories that it has open, as on a disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

NAME = "n" * 240
DEEP = 33       # of these names are longer than 4096 bytes, which a program may say in one call, shorter than 8192
TOO_DEEP = 35


@contextmanager
def descended(top: Path, depth: int, *, make: bool = False) -> Iterator[int]:
    """The directory that many names below top, opened name by name."""
    at = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(depth):
            if make:
                os.mkdir(NAME, dir_fd=at)
            below = os.open(NAME, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        yield at
    finally:
        os.close(at)


def test_a_file_lies_deeper_than_one_call_can_name(place: Path) -> None:
    top = place / "top"
    top.mkdir()
    with descended(top, DEEP, make=True) as at:
        with open("file", "wb", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, dir_fd=at)) as file:
            file.write(b"deep" * 1000)
        os.rename("file", "moved", src_dir_fd=at, dst_dir_fd=at)
        os.link("moved", "twin", src_dir_fd=at, dst_dir_fd=at)
        os.chmod("twin", 0o640, dir_fd=at)
        assert sorted(os.listdir(at)) == ["moved", "twin"]
    os.rename(top, place / "there")     # its files go along, however deep
    with descended(place / "there", DEEP) as at:
        with open("moved", "rb", opener=lambda name, flags: os.open(name, flags, dir_fd=at)) as file:
            assert file.read() == b"deep" * 1000
        found = os.stat("moved", dir_fd=at)
        assert (found.st_nlink, found.st_mode & 0o7777) == (2, 0o640)
    shutil.rmtree(place / "there")
    assert os.listdir(place) == []


def test_a_path_that_is_too_long_is_refused_by_its_name(place: Path) -> None:
    with pytest.raises(OSError) as refused, descended(place, TOO_DEEP, make=True):
        pass
    assert refused.value.errno == errno.ENAMETOOLONG


def test_rest_lists_past_keys_that_are_longer_than_its_own(place: Path, rest: httpx.Client) -> None:
    """Page by page: where a page ended at such a key, the next one begins there."""
    with descended(place, DEEP, make=True) as at:
        for name in ("one", "two"):
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=at))
    found: list[str] = []
    page: dict[str, Any] = {"next_start_after": ""}
    while page["next_start_after"] is not None:
        query: dict[str, str | int] = {
            "prefix": f"{place.name}/", "limit": 1, "start_after": page["next_start_after"],
        }  # fmt: skip
        answer = rest.get("/v1/objects/files", params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += [item["key"] for item in page["objects"]]
    start = f"{place.name}/{f'{NAME}/' * DEEP}"
    assert found == [f"{start}one", f"{start}two"]
