"""Brings a catalog's schema up to this release: Alembic migrations, run in the transaction it is given.

`migrations/versions` is the history; a migration is never edited once released. A test holds the sum of all of them
equal to schema.py. A catalog of a later release than this code is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from tierstore.errors import ConfigError

#: Key of the advisory lock under which only one process migrates (PostgreSQL).
_MIGRATION_LOCK = 0x7469657273746F73


def _scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return ScriptDirectory.from_config(config)


def upgrade(connection: sa.Connection, to: str = "head") -> None:
    """Run the migrations that are missing, up to revision `to`; nothing when there are none. Raises ConfigError for a
    newer catalog."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
    scripts = _scripts()

    def steps(revision: Any, _context: MigrationContext) -> Any:
        try:
            return scripts._upgrade_revs(to, revision)
        except CommandError as error:
            raise ConfigError(
                f"this catalog was written by a later release of tierstore: {error}; run that release or a newer one"
            ) from error

    # A connection that is in a transaction already is left in it: Alembic commits only what it began itself.
    connection.execute(sa.text("SELECT 1"))
    context = MigrationContext.configure(connection, opts={"fn": steps})
    with Operations.context(context):
        context.run_migrations()
