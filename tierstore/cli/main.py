"""The application `tierstore`, and how a command ends: 0, or one line on standard error and the error's exit code.

Exit codes (tierstore.errors): 1 unexpected · 2 wrong request or setting · 3 not found · 4 not allowed · 5 conflict or
condition not met · 6 unavailable, try again · 7 no space · 8 damaged data · 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from tierstore.cli.daemons import gateway, metadata, objectd
from tierstore.cli.settings import config
from tierstore.cli.up import up
from tierstore.errors import TierstoreError

app = typer.Typer(
    help="A tiered caching object store: N+1 durable, hot objects on fast devices.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

app.command("up")(up)
app.add_typer(metadata, name="metadata")
app.add_typer(objectd, name="objectd")
app.add_typer(gateway, name="gateway")
app.add_typer(config, name="config")


def run() -> None:
    """The console script."""
    try:
        app()
    except TierstoreError as error:
        sys.stderr.write(f"tierstore: {error.detail or error.code}\n")
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        # The reader of our output went away (`tierstore ls | head`): nothing to say, and nowhere to say it.
        sys.stderr.close()
        raise SystemExit(0) from None


if __name__ == "__main__":
    run()
