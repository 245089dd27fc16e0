"""The application `tierstore`, and how a command ends: 0, or one line on standard error and the error's exit code.

Exit codes (tierstore.errors): 1 unexpected · 2 wrong request or setting · 3 not found · 4 not allowed · 5 conflict or
condition not met · 6 unavailable, try again · 7 no space · 8 damaged data · 130 interrupted.
"""

from __future__ import annotations

import errno
import sys
from typing import Final, NoReturn

import typer

from tierstore.cli.admin import admin
from tierstore.cli.bench import bench
from tierstore.cli.daemons import gateway, metadata, objectd
from tierstore.cli.export import export
from tierstore.cli.mount import mount
from tierstore.cli.objects import cat, ls, mb, mv, rb, rm, stat
from tierstore.cli.settings import config
from tierstore.cli.transfer import cp, sync
from tierstore.cli.up import up
from tierstore.errors import TierstoreError

#: Of what a local file or directory refuses; the rest is 1.
_LOCAL_EXIT_CODES: Final[dict[int | None, int]] = {
    errno.ENOENT: 3, errno.EACCES: 4, errno.EPERM: 4, errno.ENOSPC: 7, errno.EDQUOT: 7, errno.EISDIR: 2,
    errno.ENOTDIR: 2, errno.EIO: 8,
}  # fmt: skip

app = typer.Typer(
    help="A tiered caching object store: N+1 durable, hot objects on fast devices.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

app.command("up")(up)
for command in (mb, rb, ls, cp, mv, rm, cat, stat, sync, bench, mount):
    app.command(command.__name__)(command)
app.add_typer(metadata, name="metadata")
app.add_typer(objectd, name="objectd")
app.add_typer(gateway, name="gateway")
app.add_typer(admin, name="admin")
app.add_typer(config, name="config")
app.add_typer(export, name="export")


def run() -> None:
    """The console script."""
    try:
        app()
    except BrokenPipeError:
        # The reader of our output went away (`tierstore ls | head`): nothing to say, and nowhere to say it.
        sys.stderr.close()
        raise SystemExit(0) from None
    except (TierstoreError, OSError) as error:
        _fail(error)
    except BaseExceptionGroup as group:
        # Work that was done side by side failed: the first reason is enough for a person.
        first = _first(group)
        if first is None:
            raise
        _fail(first)


def _fail(error: TierstoreError | OSError) -> NoReturn:
    """One line for a person. An OSError is of a local file: anything between processes is a TierstoreError."""
    if isinstance(error, TierstoreError):
        said, code = error.detail or error.code, error.exit_code
    else:
        said = f"{error.filename or 'a local file'}: {error.strerror or error}"
        code = _LOCAL_EXIT_CODES.get(error.errno, 1)
    sys.stderr.write(f"tierstore: {said}\n")
    raise SystemExit(code) from None


def _first(group: BaseExceptionGroup[BaseException]) -> TierstoreError | OSError | None:
    for error in group.exceptions:
        found = _first(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, TierstoreError | OSError):
            return found
    return None


if __name__ == "__main__":
    run()
