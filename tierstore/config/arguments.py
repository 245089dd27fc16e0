"""The command line that all daemons share: --config, --fd, --set, --show-config, --check-config.

`tierstore metadata|objectd|gateway ...` and the supervisor start the daemons with exactly these.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tierstore.config import toml
from tierstore.config.load import as_tree, describe, load
from tierstore.config.sections import SECTIONS
from tierstore.errors import ConfigError

T = TypeVar("T")


def settings_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the shared arguments; daemons may add their own before they call `settings_of`."""
    parser = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings, TOML")
    parser.add_argument("--fd", type=int, metavar="N", help="serve on this inherited listening descriptor")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.NAME=VALUE", help="one setting; may be repeated"
    )
    parser.add_argument("--show-config", action="store_true", help="print the settings in force (no secrets) and stop")
    parser.add_argument("--check-config", action="store_true", help="check the settings and stop")
    return parser


def settings_of(kind: type[T], options: argparse.Namespace, environ: Mapping[str, str] | None = None) -> T:
    """The settings that the parsed arguments, the environment and the file give. Raises ConfigError.

    Exits the process with 0 after --show-config and --check-config."""
    flags: dict[str, object] = {}
    for text in options.set:
        path, separator, value = text.partition("=")
        if not separator or "." not in path:
            raise ConfigError(f"--set {text}: write it like --set listen.port=7480")
        flags[path.strip()] = value.strip()
    if options.fd is not None:
        flags["listen.fd"] = options.fd
    environ = os.environ if environ is None else environ
    settings = load(kind, file=options.config, flags=flags, environ=environ, elsewhere=SECTIONS)
    if options.show_config:
        sys.stdout.write(toml.dumps(as_tree(settings)))
        raise SystemExit(0)
    if options.check_config:
        sys.stdout.write(f"{options.config or 'settings'}: {len(describe(kind))} settings, no errors\n")
        raise SystemExit(0)
    return settings


def parse(kind: type[T], program: str, description: str, argv: Sequence[str] | None = None) -> T:
    """Settings straight from a command line, for daemons with no arguments of their own.

    A ConfigError ends the process with one line on standard error and exit code 2."""
    options = settings_parser(program, description).parse_args(argv)
    try:
        return settings_of(kind, options)
    except ConfigError as error:
        sys.stderr.write(f"{program}: {error.detail}\n")
        raise SystemExit(error.exit_code) from None
