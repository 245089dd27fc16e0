"""`python -m metadata serve|backup|restore|rebuild --config FILE [--fd N]`: the metadata service in this process.

Owns the process: the command line, settings, logs, exit code. What is done is metadata.run's: `serve(settings)` blocks
until the service was stopped; `backup(settings, target)`, `restore(settings, source)` and `rebuild(settings)` are one
piece of work and return the lines of their report.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from metadata.config import Settings
from tierstore.config.arguments import settings_of, settings_parser
from tierstore.errors import TierstoreError
from tierstore.serving.daemon import loading
from tierstore.telemetry.log import configure

_COMMANDS = {
    "serve": "serve the catalog of a site",
    "backup": "write a consistent copy of the catalog to a file",
    "restore": "load a backup into an empty catalog; no service may run on it",
    "rebuild": "make a lost catalog again from what the object servers hold",
}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line: `command`, `target` or `source`, the shared arguments of all daemons."""
    top = argparse.ArgumentParser(prog="metadata", description="The metadata service of tierstore.", allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True, metavar="serve|backup|restore|rebuild")
    for name, about in _COMMANDS.items():
        command = commands.add_parser(
            name, help=about, parents=[settings_parser(f"metadata {name}", about)], conflict_handler="resolve"
        )
        if name == "backup":
            command.add_argument("target", type=Path, help="file to write; must not exist")
        elif name == "restore":
            command.add_argument("source", type=Path, help="file that `backup` wrote")
    return top.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exit with the error's code after one line when it fails."""
    options = arguments(argv)
    try:
        settings = settings_of(Settings, options)
        configure(level=settings.log.level, form=settings.log.format, role="metadata")
        _run(options, settings)
    except TierstoreError as error:
        sys.stderr.write(f"metadata: {error.detail or error.code}\n")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def _run(options: argparse.Namespace, settings: Settings) -> None:
    # Imported here: a wrong setting is told at once, before the service's packages are loaded.
    with loading():
        from metadata import run
        from tierstore.serving.turn import wait_for_turn

    if options.command == "serve":
        wait_for_turn()
        run.serve(settings)
    elif options.command == "backup":
        sys.stdout.write("".join(f"{line}\n" for line in run.backup(settings, options.target)))
    elif options.command == "restore":
        sys.stdout.write("".join(f"{line}\n" for line in run.restore(settings, options.source)))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in run.rebuild(settings)))


if __name__ == "__main__":
    main()
