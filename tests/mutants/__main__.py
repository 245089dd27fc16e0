"""`make mutants`: plants known bugs in a copy of the tree, one by one; each must make one of its quick tests fail.

A mutant that survives is a missing test. First all named tests must pass on the unchanged copy: a test that fails
anyway catches nothing. Two at a time; a few minutes in all. `python -m tests.mutants WORD` plants only those whose name
has the word.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.planted import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("tierstore", "metadata", "objectd", "tests", "pyproject.toml")
AT_ONCE = 2
#: Of one mutant's tests; a mutant that makes them hang is caught too.
SECONDS_MAX = 180


def copy_tree(target: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        else:
            shutil.copy(source, target / name)


def run_tests(tree: Path, tests: tuple[str, ...], only: str) -> tuple[int, str]:
    """pytest's exit code in that tree (1: a test failed, -1: it hung), and its output."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--basetemp={tree}/tmp", *tests]
    if only:
        command += ["-k", only]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)    # compiling the tree anew for each mutant was most of the time
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, "the tests hang"
    return done.returncode, done.stdout + done.stderr


def plant(tree: Path, mutant: Mutant) -> str:
    """The text before. Raises ValueError when the line to change is not there exactly once."""
    path = tree / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} has the text {text.count(mutant.old)} times: plant it anew")
    _write(path, text.replace(mutant.old, mutant.new))
    return text


def _write(path: Path, text: str) -> None:
    """With its compiled form removed: that one is known by size and whole seconds, which two mutants may share."""
    path.write_text(text)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def try_one(tree: Path, mutant: Mutant) -> tuple[str, bool]:
    """(a line for people, is it caught)."""
    began = time.monotonic()
    try:
        before = plant(tree, mutant)
    except ValueError as error:
        return f"MISPLACED  {error}", False
    try:
        code, said = run_tests(tree, mutant.tests, mutant.only)
    finally:
        _write(tree / mutant.file, before)
    seconds = time.monotonic() - began
    if code in (1, -1):
        failed = next((line for line in said.splitlines() if line.startswith("FAILED")), said.strip()[-100:])
        return f"caught     {mutant.name} ({seconds:.1f} s): {failed[:150]}", True
    if code == 0:
        return f"SURVIVED   {mutant.name} ({seconds:.1f} s): write the test that catches it", False
    return f"BROKEN     {mutant.name}: pytest ended with {code}: {said[-600:]}", False


def sound(tree: Path, mutants: list[Mutant]) -> str:
    """Why the tests say nothing even without a mutant; "" when they pass."""
    for tests, only in sorted({(mutant.tests, mutant.only) for mutant in mutants}):
        code, said = run_tests(tree, tests, only)
        if code:
            return f"{' '.join(tests)} -k {only!r} ends with {code} on the unchanged tree:\n{said[-3000:]}"
    return ""


def main() -> int:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [mutant for mutant in MUTANTS if word in mutant.name]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tierstore-mutants-") as place:
        trees = [Path(place) / str(number) for number in range(AT_ONCE)]
        for tree in trees:
            tree.mkdir()
            copy_tree(tree)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            unsound = [why for why in pool.map(sound, trees, [chosen[0::2], chosen[1::2]]) if why]
            if unsound:
                print("\n".join(unsound))
                return 1

            def half(number: int) -> list[bool]:
                caught = []
                for mutant in chosen[number::AT_ONCE]:
                    line, is_caught = try_one(trees[number], mutant)
                    print(line, flush=True)
                    caught.append(is_caught)
                return caught

            caught = [is_caught for verdicts in pool.map(half, range(AT_ONCE)) for is_caught in verdicts]
    print(f"{sum(caught)} of {len(caught)} planted bugs were caught in {time.monotonic() - began:.0f} s")
    return 0 if caught and all(caught) else 1


if __name__ == "__main__":
    sys.exit(main())
