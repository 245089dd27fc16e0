"""`tierstore config show|check`: what a daemon would run with. The daemon itself reads its settings and prints them."""

from __future__ import annotations

import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tierstore.cli.daemons import Set, settings_arguments

config = typer.Typer(help="Settings of the daemons.", no_args_is_help=True)


class Daemon(StrEnum):
    metadata = "metadata"
    objectd = "objectd"
    gateway = "gateway"


_COMMANDS = {
    Daemon.metadata: ["metadata", "serve"],
    Daemon.objectd: ["objectd"],
    Daemon.gateway: ["tierstore.gateway"],
}

Which = Annotated[Daemon, typer.Argument(help="Whose settings.")]
File = Annotated[Path | None, typer.Option("--config", help="Settings file.")]


@config.command("show")
def show(daemon: Which, file: File = None, pairs: Set = None) -> None:
    """Print the settings in force as TOML: flags > environment > file > defaults. Secrets are masked."""
    raise typer.Exit(_ask(daemon, file, pairs, "--show-config"))


@config.command("check")
def check(daemon: Which, file: File = None, pairs: Set = None) -> None:
    """Check settings without starting anything."""
    raise typer.Exit(_ask(daemon, file, pairs, "--check-config"))


def _ask(daemon: Daemon, file: Path | None, pairs: list[str] | None, what: str) -> int:
    arguments = [sys.executable, "-m", *_COMMANDS[daemon], *settings_arguments(file, None, pairs), what]
    return subprocess.run(arguments, check=False).returncode
