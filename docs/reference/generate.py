"""Writes the reference pages from the code (settings, commands, metrics, error codes) and the index of the decision
records. `make reference`.

    python docs/reference/generate.py            write docs/reference/*.md
    python docs/reference/generate.py --check    say which pages are out of date, exit 1 if any

tests/docs runs the same functions, so `make check` fails when a page does not say what the code does. This script
stands outside the packages because it alone may import all three.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import click
import typer.main

import metadata.config
import objectd.config
import tierstore.gateway.config
from tierstore import errors
from tierstore.cli.main import app
from tierstore.config.load import Setting, describe
from tierstore.telemetry import metrics
from tierstore.units import format_seconds, format_size

PACKAGES = ("tierstore", "metadata", "objectd")
_HEAD = "<!-- Made by `make reference` from the code; do not edit. -->\n\n"
DAEMONS: dict[str, type[Any]] = {
    "metadata": metadata.config.Settings,
    "objectd": objectd.config.ObjectdConfig,
    "gateway": tierstore.gateway.config.GatewayConfig,
}


# -- settings ----------------------------------------------------------------------------------------------------
def settings_page() -> str:
    """Every setting of every daemon: name, kind, default, environment variable, meaning."""
    lines = [
        f"{_HEAD}# Settings",
        "",
        "One TOML file per process (`--config`); `--set section.name=value` > environment > file > default. Sizes, "
        'times and rates take units ("8MiB", "250ms", "50MiB/s"). A secret `x` may be given as `x_file`, the path of a '
        "file that holds it. `tierstore config show DAEMON` prints what is in force.",
        "",
    ]
    for daemon, kind in DAEMONS.items():
        lines += [f"## {daemon}", ""]
        section = ""
        for entry in describe(kind):
            if entry.section != section:
                section = entry.section
                head = f"### [[{section}]]" if entry.in_table else f"### [{section}]"
                note = f"`{entry.environment}` takes the whole list, as inline TOML." if entry.in_table else ""
                lines += ["", f"{head} of {daemon}", "", *([note, ""] if note else [])]
                lines += ["| setting | kind | default | meaning |", "|---|---|---|---|"]
            kind_text = entry.kind.replace(" | ", ", ")
            secret = " Secret." if entry.is_secret else ""
            lines.append(f"| `{entry.name}` | {kind_text} | {_default(entry)} | {entry.description}.{secret} |")
        lines.append("")
    return _page(lines)


def _default(entry: Setting) -> str:
    value = entry.default
    if value is MISSING:
        return "required"
    if entry.kind == "size" and isinstance(value, int):
        return format_size(value) if value else "0"
    if entry.kind == "rate" and isinstance(value, int):
        return f"{format_size(value)}/s" if value else "0"
    if entry.kind == "time" and isinstance(value, float):
        return format_seconds(value) if value else "0"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(f"`{part}`" for part in value) or "none"
    return f"`{value}`" if value != "" else "none"


# -- commands ----------------------------------------------------------------------------------------------------
def commands_page() -> str:
    """Every command of `tierstore` with its arguments and options."""
    root = typer.main.get_command(app)
    lines = [
        f"{_HEAD}# Commands",
        "",
        "Exit codes: 0 done · 1 unexpected · 2 wrong request or setting · 3 not found · 4 not allowed · 5 conflict or "
        "condition not met · 6 unavailable, try again · 7 no space · 8 damaged data · 130 interrupted.",
        "",
    ]
    for path, command in commands(root, ("tierstore",)):
        usage = " ".join(piece for piece in command.collect_usage_pieces(click.Context(command)) if piece)
        lines += [f"## {' '.join(path)}", "", f"`{' '.join(path)} {usage}`", "", (command.help or "").strip(), ""]
        options = [parameter for parameter in command.params if parameter.name != "help"]
        if options:
            lines += ["| parameter | meaning |", "|---|---|"]
            lines += [f"| `{_names(parameter)}` | {_meaning(parameter)} |" for parameter in options]
            lines.append("")
    return _page(lines)


def commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The leaves of the command tree with their words."""
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name in children:
        yield from commands(children[name], (*path, name))


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    return ", ".join([*parameter.opts, *parameter.secondary_opts])


def _meaning(parameter: Any) -> str:
    text = str(getattr(parameter, "help", "") or "").replace("|", "\\|")
    default = parameter.default
    shown = default not in (None, False, (), "", []) and "default" not in text and not callable(default)
    return f"{text} Default: `{default}`.".strip() if shown else text


# -- metrics -----------------------------------------------------------------------------------------------------
def metrics_page() -> str:
    """Every metric that any module of the three packages declares."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if not module.name.endswith("__main__") and ".fuse" not in module.name and ".migrations" not in module.name:
                importlib.import_module(module.name)
    lines = [
        f"{_HEAD}# Metrics",
        "",
        "At `/-/metrics` of every daemon, Prometheus text form. A daemon shows those of its own parts. No label ever "
        "holds a key or a bucket.",
        "",
        "| metric | kind | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in metrics.declared():
        if not metric.name.startswith("tierstore_test_"):
            labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
            lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.description} |")
    return _page(lines)


# -- errors ------------------------------------------------------------------------------------------------------
def error_codes() -> dict[str, type[errors.TierstoreError]]:
    """Every code that the code can raise or answer, with its class: from the error tree and from the source."""
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.TierstoreError)
    }
    found = {kind.code: kind for kind in reversed(classes.values())}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for call in ast.walk(ast.parse(path.read_text())):
                if not isinstance(call, ast.Call):
                    continue
                name = getattr(call.func, "id", getattr(call.func, "attr", ""))
                for keyword in call.keywords:
                    is_code = keyword.arg == "code" and isinstance(keyword.value, ast.Constant)
                    if is_code and name in classes and keyword.value.value:  # type: ignore[attr-defined]
                        found.setdefault(str(keyword.value.value), classes[name])  # type: ignore[attr-defined]
                    elif is_code and name == "EdgeError" and isinstance(call.args[0], ast.Constant):
                        # refused before it is a request: the status stands in the call
                        status = int(str(call.args[0].value))
                        base = errors.BY_STATUS.get(status, errors.RequestError)
                        found.setdefault(str(keyword.value.value), type(name, (base,), {"status": status}))  # type: ignore[attr-defined]
    return {**found, **errors.BY_CODE}


def meanings() -> dict[str, str]:
    """What each code means and what to do: written by hand in errors.toml."""
    return {code: str(text) for code, text in tomllib.loads((HERE / "errors.toml").read_text()).items()}


def errors_page() -> str:
    """Every error code with status, exit code and what to do."""
    lines = [
        f"{_HEAD}# Error codes",
        "",
        "Errors are problem+json (RFC 9457) with a stable `code`, a `detail` for people and the `request_id` that "
        "stands in the log. Retry: the same request may succeed later.",
        "",
        "| code | status | exit | retry | meaning, and what to do |",
        "|---|---|---|---|---|",
    ]
    known = meanings()
    for code, kind in sorted(error_codes().items()):
        retry = "yes" if kind.retryable else "no"
        lines.append(f"| `{code}` | {kind.status} | {kind.exit_code} | {retry} | {known.get(code, '')} |")
    return _page(lines)


def _page(lines: list[str]) -> str:
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip("\n") + "\n"


def s3_page() -> str:
    """Every operation of S3, from the table that requests are matched by."""
    from tierstore.gateway.s3.operations import OPERATIONS

    shown = {"yes": "yes", "partly": "partly", "unset": "answered as never set", "no": "not supported"}
    supported = sum(row.state in ("yes", "partly") for row in OPERATIONS)
    lines = [
        "# S3 operations", "",
        f"{supported} of {len(OPERATIONS)} operations are served, wholly or in part. What is not supported is answered",
        "`NotImplemented`; nothing is accepted and then ignored. The test named holds the row (tests/integration/s3).",
        "",
        "| operation | supported | remark | test |", "|---|---|---|---|",
    ]
    for row in OPERATIONS:
        test = f"`{row.test}`" if row.test else ""
        lines.append(f"| {row.name} | {shown[row.state]} | {row.note} | {test} |")
    return _page(lines)


def records_page() -> str:
    """The index of the decision records: number and title of each, as its first line says."""
    lines = [
        f"{_HEAD}# Decision records",
        "",
        "What was decided, why, what else was weighed, what it costs. Newer ones may replace older ones; they say so.",
        "The first nine are the core's; from there on a group of ten begins where a piece of work began.",
        "",
    ]
    for path in sorted((ROOT / "docs/adr").glob("0*.md")):
        number, _, title = path.read_text().partition("\n")[0].removeprefix("# ").partition(" ")
        lines.append(f"- [{number.rstrip(':')}]({path.name}) {title}")
    return _page(lines)


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "commands.md": commands_page,
    "metrics.md": metrics_page,
    "errors.md": errors_page,
    "s3.md": s3_page,
    "../adr/README.md": records_page,
}


def main() -> int:
    stale = []
    for name, page in PAGES.items():
        path, text = HERE / name, page()
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text)
    print(("out of date: " if "--check" in sys.argv else "written: ") + (", ".join(stale) or "nothing"))
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
