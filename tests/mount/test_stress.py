"""Long random use: one file against a model of its bytes (as fsx does), and several programs at once against models
of their trees (as fsstress does), looked at by a second mount at the end."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.mount import Mounted
from tests.kit.one_file import OneFile


@pytest.mark.parametrize("seed", [11])
def test_any_mixture_of_acts_on_one_file_agrees_with_memory(place: Path, seed: int) -> None:
    """Also by memory maps, appends by another handle, and after it was closed and opened."""
    OneFile(place / "file", seed).run(150)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_one_file_for_long(place: Path, seed: int) -> None:
    OneFile(place / "file", seed).run(3000)


#: A program that changes its own directory at random and prints what must be there: "kind path size-or-target".
WORKER = r"""
import os, random, sys
root, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance, dirs, files, links = random.Random(seed), [""], {}, {}
at = lambda name: os.path.join(root, name)
def fresh():
    return os.path.join(chance.choice(dirs), "n%d" % chance.randrange(10**9))
for _ in range(count):
    act = chance.random()
    if act < 0.30:
        name = fresh(); size = chance.choice([0, 10, 5000, 200000])
        open(at(name), "wb").write(b"%d" % (size % 7) * size)
        files[name] = size
    elif act < 0.40:
        name = fresh(); os.mkdir(at(name)); dirs.append(name)
    elif act < 0.50 and files:
        name = chance.choice(sorted(files)); size = chance.randrange(9000)
        with open(at(name), "ab") as f: f.write(b"x" * size)
        files[name] += size
    elif act < 0.60 and files:
        name = chance.choice(sorted(files)); size = chance.randrange(50000)
        os.truncate(at(name), size); files[name] = size
    elif act < 0.75 and files:
        name, to = chance.choice(sorted(files)), chance.choice([fresh(), chance.choice(sorted(files))])
        os.rename(at(name), at(to)); size = files.pop(name); files[to] = size
    elif act < 0.82 and files:
        name = chance.choice(sorted(files)); os.unlink(at(name)); del files[name]
    elif act < 0.88 and len(dirs) > 1:
        name, to = chance.choice(dirs[1:]), fresh()
        if (to + "/").startswith(name + "/"): continue
        os.rename(at(name), at(to))
        move = lambda k: to + k[len(name):] if k == name or k.startswith(name + "/") else k
        dirs = [move(k) for k in dirs]; files = {move(k): v for k, v in files.items()}
        links = {move(k): v for k, v in links.items()}
    elif act < 0.93:
        name = fresh(); os.symlink("t%d" % len(links), at(name)); links[name] = "t%d" % len(links)
    elif len(dirs) > 1:
        name = chance.choice(dirs[1:])
        if not any(k.startswith(name + "/") for k in [*dirs, *files, *links]):
            os.rmdir(at(name)); dirs.remove(name)
lines = ["d " + k for k in dirs if k] + ["f %s %d" % i for i in files.items()] + ["l %s %s" % i for i in links.items()]
print("\n".join(sorted(lines)))
"""


def found(root: Path) -> list[str]:
    lines = []
    for above, directories, files in os.walk(root):
        for name in [*directories, *files]:
            path = Path(above) / name
            key = str(path.relative_to(root))
            if path.is_symlink():
                lines.append(f"l {key} {os.readlink(path)}")
            elif path.is_dir():
                lines.append(f"d {key}")
            else:
                data = path.read_bytes()
                lines.append(f"f {key} {len(data)}")
    return sorted(lines)


def stress(place: Path, other: Path, *, workers: int, count: int) -> None:
    running = []
    for number in range(workers):
        root = place / f"worker{number}"
        root.mkdir()
        argv = [sys.executable, "-c", WORKER, str(root), str(number), str(count)]
        running.append((root.name, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)))
    for name, process in running:
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
        expected = out.strip().splitlines()
        assert found(place / name) == expected
        assert found(other / place.name / name) == expected, "as a second mount sees it"


def test_programs_side_by_side_leave_what_they_made(place: Path, mount: Mounted, tmp_path: Path) -> None:
    other = Mounted(mount.cluster, mount.bucket, tmp_path / "other").start()
    try:
        stress(place, other.path, workers=3, count=60)
    finally:
        other.stop()


@pytest.mark.slow
def test_programs_side_by_side_for_long(place: Path, mount: Mounted, tmp_path: Path) -> None:
    other = Mounted(mount.cluster, mount.bucket, tmp_path / "other").start()
    try:
        stress(place, other.path, workers=6, count=800)
    finally:
        other.stop()


def test_two_programs_that_fight_for_a_name_get_one_answer_each(place: Path) -> None:
    """O_EXCL, mkdir and link decide who was first, also when both try at the same time."""
    script = (
        "import os, sys\nwon = 0\nfor i in range(25):\n try:\n"
        "  os.close(os.open(f'{sys.argv[1]}/{i}', os.O_CREAT | os.O_EXCL)); won += 1\n"
        " except FileExistsError: pass\nprint(won)\n"
    )
    racers = [subprocess.Popen([sys.executable, "-c", script, str(place)], stdout=subprocess.PIPE) for _ in range(3)]
    assert sum(int(racer.communicate(timeout=180)[0]) for racer in racers) == 25
    with pytest.raises(FileExistsError) as raised:
        os.mkdir(place / "0")
    assert raised.value.errno == errno.EEXIST
