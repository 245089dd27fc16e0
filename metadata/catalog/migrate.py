"""Brings a catalog's schema up to this release: Alembic migrations, run in the transaction it is given.

`migrations/versions` is the history; a migration is never edited once released. A test holds the sum of all of them
equal to schema.py. Each migration says its `floor`: the oldest schema whose code still works on the catalog after it
(docs/adr/0210). One that only adds keeps the floor of the one before; one that takes something away raises it.

Invariant: no process runs on a catalog whose floor is above its own schema. One that starts on such a catalog is
refused; a migration that would raise the floor over a process that runs (PostgreSQL) is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from metadata.catalog import leases
from tierstore.errors import ConfigError

#: The schema of this code: the revision of the last migration.
HEAD: Final = "0004"
#: What every connection to PostgreSQL calls itself, with the schema of its code, so that another release can see it.
APPLICATION: Final = "tierstore schema "
#: Setting: the floor of the catalog as it is.
FLOOR: Final = "schema_floor"
#: Key of the advisory lock under which only one process migrates (PostgreSQL).
_MIGRATION_LOCK = 0x7469657273746F73


def _scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return ScriptDirectory.from_config(config)


def upgrade(connection: sa.Connection, to: str = "head") -> None:
    """Run the migrations that are missing, up to revision `to`; nothing when there are none. A catalog that a later
    release has migrated is left as it is when this code still works on it. Raises ConfigError when it does not, or when
    a process of an older release runs that would not work on it any more."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
    scripts = _scripts()
    # A connection that is in a transaction already is left in it: Alembic commits only what it began itself.
    connection.execute(sa.text("SELECT 1"))
    current = MigrationContext.configure(connection).get_current_revision() or ""
    floors = {script.revision: str(script.module.floor) for script in scripts.walk_revisions()}
    if current and current not in floors:
        _refuse_later(connection, current)
        return
    aim = HEAD if to == "head" else to
    floor = max(floors[revision] for revision in floors if revision <= max(aim, current))
    if current and current < aim:
        _refuse_beside_older(connection, floor)

    def steps(revision: Any, _context: MigrationContext) -> Any:
        return scripts._upgrade_revs(to, revision)

    context = MigrationContext.configure(connection, opts={"fn": steps})
    with Operations.context(context):
        context.run_migrations()
    if leases.setting(connection, FLOOR) != floor:
        leases.set_setting(connection, FLOOR, floor)


def _refuse_later(connection: sa.Connection, current: str) -> None:
    """Raises ConfigError unless this code works on the catalog of a later release."""
    floor = leases.setting(connection, FLOOR)
    if not floor or floor > HEAD:
        raise ConfigError(
            f"this catalog was written by a later release of tierstore (schema {current}; this one has {HEAD}): run "
            "that release or a newer one"
        )


def _refuse_beside_older(connection: sa.Connection, floor: str) -> None:
    """Raises ConfigError while a process runs on this database whose code is below the floor to be."""
    if connection.dialect.name != "postgresql":
        return      # SQLite has one metadata process
    rows = connection.execute(
        sa.text(
            "SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND application_name LIKE 'tierstore%'"
        )
    )
    schemas = sorted(str(name).removeprefix(APPLICATION) for (name,) in rows)
    older = [schema for schema in schemas if not schema.isdigit() or schema < floor]
    if older:
        raise ConfigError(
            f"a metadata process of an older release runs on this database (schema {older[0]}) and would not work on "
            f"schema {HEAD}: stop all metadata processes of the older release, then start this one"
        )
