"""The reference pages say what the code does, and every link in the documents leads somewhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _generator() -> Any:
    spec = importlib.util.spec_from_file_location("docs_reference_generate", ROOT / "docs/reference/generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


GENERATOR = _generator()


@pytest.mark.parametrize("page", GENERATOR.PAGES)
def test_a_reference_page_is_what_the_code_says(page: str) -> None:
    """An undocumented setting, command, metric or error does not exist for an operator. Mend it: `make reference`."""
    # in a process of its own: what other tests have built here declares metrics too
    code = f"import runpy; print(runpy.run_path('docs/reference/generate.py')['PAGES'][{page!r}](), end='')"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert (ROOT / "docs/reference" / page).read_text() == made, "run `make reference`"


def test_the_metrics_of_every_daemon_are_on_the_page() -> None:
    """Metrics declared only when a process is built were missing, and the page was empty."""
    page = (ROOT / "docs/reference/metrics.md").read_text()
    names = (
        "lookups_total", "commit_items_total", "duty_steps_total", "queue_jobs_done_total", "promotions_total",
        "replication_backlog_bytes", "chunk_reads_total", "device_free_bytes", "object_reads_total",
    )  # fmt: skip
    assert [name for name in names if f"`tierstore_{name}`" not in page] == []
    assert page.count("\n| `tierstore_") >= 60


def test_every_error_code_has_a_meaning_and_no_meaning_is_left_over() -> None:
    """A code that nobody explains is a riddle. Mend it: docs/reference/errors.toml."""
    assert set(GENERATOR.meanings()) == set(GENERATOR.error_codes())
    assert [code for code, text in GENERATOR.meanings().items() if len(text) < 10] == []


def test_every_parameter_of_every_command_is_described() -> None:
    """`--help` is the manual that is always there."""
    import typer.main

    for path, command in GENERATOR.commands(typer.main.get_command(GENERATOR.app), ("tierstore",)):
        assert command.help, path
        for parameter in command.params:
            if parameter.name != "help":
                assert getattr(parameter, "help", None), f"{' '.join(path)} {parameter.name}"


def _documents() -> list[Path]:
    found = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return found + [
        path for package in ("tierstore", "metadata", "objectd") for path in (ROOT / package).rglob("DESIGN.md")
    ]


@pytest.mark.parametrize("path", _documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    """A reading tour must not end at a missing page."""
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"


def test_no_document_or_source_names_a_place_on_somebodys_machine() -> None:
    """The repository must mean the same everywhere."""
    forbidden = re.compile(r"(?<![\w.])/(?:work|root|home)/")
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "tierstore/**/*",
        "metadata/**/*",
        "objectd/**/*",
        "Makefile",
        "*.toml",
        "*.yml",
    ):
        for path in ROOT.glob(pattern):
            if path.is_file() and path.suffix in (".md", ".py", ".toml", ".yml", ""):
                assert not forbidden.search(path.read_text()), path
