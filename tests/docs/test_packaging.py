"""The package: what is declared is used, what is used is declared, and the wheel holds what runs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
#: Tools that are run, not imported.
RUN_ONLY = {
    "ruff", "mypy", "import-linter", "build", "hatchling", "editables", "types-aiofiles", "types-defusedxml",
    "types-pyyaml", "pytest-xdist",
}  # fmt: skip


def imported(*folders: str) -> set[str]:
    """Top-level modules that the Python files below the folders import."""
    found: set[str] = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("find_spec", "import_module"):
                    found |= {str(part.value).partition(".")[0] for part in node.args if isinstance(part, ast.Constant)}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    names = {normal(match[0]) for text in requirements if (match := re.match(r"[A-Za-z0-9._-]+", text))}
    return names - {"tierstore"}


def distributions(modules: set[str]) -> set[str]:
    known = packages_distributions()
    return {normal(name) for module in modules for name in known.get(module, [])}


@pytest.mark.parametrize("group", ["dependencies", *PROJECT["project"]["optional-dependencies"]])
def test_every_declared_dependency_is_imported_somewhere(group: str) -> None:
    """A dependency that nothing uses is a risk that nobody needs."""
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = declared(PROJECT["project"]["dependencies"] if group == "dependencies" else extras[group])
    folders = [*PACKAGES, *([] if group == "dependencies" else ["tests", "bench", "docs"])]
    assert wanted - distributions(imported(*folders)) - RUN_ONLY == set()


def test_every_imported_distribution_is_declared() -> None:
    """What is only there by chance is missing on the next machine."""
    extras = PROJECT["project"]["optional-dependencies"]
    known = declared([*PROJECT["project"]["dependencies"], *(text for group in extras.values() for text in group)])
    used = imported(*PACKAGES) - set(sys.stdlib_module_names) - set(PACKAGES)
    #: starlette comes with fastapi and is its public face, click with typer, pydantic with fastapi.
    assert distributions(used) - known - {"tierstore", "starlette", "click", "pydantic"} == set()


def test_the_lock_file_pins_every_dependency() -> None:
    """`make` installs from it alone."""
    extras = PROJECT["project"]["optional-dependencies"]
    lines = [line for line in (ROOT / "requirements-dev.lock").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if "==" not in line] == []
    pinned = {normal(line.partition("==")[0]) for line in lines}
    wanted = declared([*PROJECT["project"]["dependencies"], *extras["dev"], *extras["postgres"]])
    assert wanted - pinned == set()


def test_the_wheel_builds_and_holds_the_three_packages_and_nothing_else(tmp_path: Path) -> None:
    """What users install is the wheel, not the checkout."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "tierstore = tierstore.cli.main:run" in archive.read(entry_points).decode()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix in (".py", ".mako", ".ini", ".sql")
    }
    assert sources <= names, sorted(sources - names)[:5]
