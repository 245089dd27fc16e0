"""`tierstore metadata|objectd|gateway ...`: the daemons take over this process.

They are replaced by exec, not imported: the shared core knows no daemon, and a service manager sees one process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

metadata = typer.Typer(help="The metadata service.", no_args_is_help=True)
objectd = typer.Typer(help="An object server.", no_args_is_help=True)
gateway = typer.Typer(help="The door for clients.", no_args_is_help=True)

Config = Annotated[Path | None, typer.Option(help="Settings, TOML.")]
Fd = Annotated[int | None, typer.Option(help="Serve on this inherited listening descriptor.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="SECTION.NAME=VALUE; may be repeated.")]


def become(module: str, *arguments: str) -> NoReturn:
    """Replace this process by `python -m module arguments`."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  # no shell is wanted


def settings_arguments(config: Path | None, fd: int | None, pairs: list[str] | None) -> list[str]:
    arguments = ["--config", str(config)] if config else []
    arguments += ["--fd", str(fd)] if fd is not None else []
    for pair in pairs or []:
        arguments += ["--set", pair]
    return arguments


@metadata.command("serve")
def metadata_serve(config: Config = None, fd: Fd = None, pairs: Set = None) -> None:
    """Serve the catalog of a site."""
    become("metadata", "serve", *settings_arguments(config, fd, pairs))


@metadata.command("backup")
def metadata_backup(
    target: Annotated[Path, typer.Argument(help="File to write; must not exist.")],
    config: Config = None,
    pairs: Set = None,
) -> None:
    """Write a consistent copy of the catalog to a file."""
    become("metadata", "backup", str(target), *settings_arguments(config, None, pairs))


@metadata.command("restore")
def metadata_restore(
    source: Annotated[Path, typer.Argument(help="File that `backup` wrote.", exists=True, dir_okay=False)],
    config: Config = None,
    pairs: Set = None,
) -> None:
    """Load a backup into an empty catalog, of any engine; no service may run on it. Then run `rebuild`."""
    become("metadata", "restore", str(source), *settings_arguments(config, None, pairs))


@metadata.command("rebuild")
def metadata_rebuild(config: Config = None, pairs: Set = None) -> None:
    """Make a lost catalog again from the snapshots, journals and chunk headers on the object servers."""
    become("metadata", "rebuild", *settings_arguments(config, None, pairs))


@objectd.command("serve")
def objectd_serve(config: Config = None, fd: Fd = None, pairs: Set = None) -> None:
    """Store and serve chunks on the devices of this machine."""
    become("objectd", *settings_arguments(config, fd, pairs))


@gateway.command("serve")
def gateway_serve(config: Config = None, fd: Fd = None, pairs: Set = None) -> None:
    """Serve clients."""
    become("tierstore.gateway", *settings_arguments(config, fd, pairs))


# A daemon that serves and nothing else needs no sub-command name from typer's single-command shortcut.
@objectd.callback()
def _objectd() -> None:
    """An object server."""


@gateway.callback()
def _gateway() -> None:
    """The door for clients."""
