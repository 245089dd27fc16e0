"""Runs the Alembic migrations that a catalog lacks. Loaded only when there is one: Alembic is a seventh of what the
service's start costs, and a catalog that is new or up to date needs none of it.

Owns the walk over `migrations/versions`; metadata.catalog.migrate decides whether it is taken and holds the lock.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory


def scripts() -> ScriptDirectory:
    """All migrations."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return ScriptDirectory.from_config(config)


def floors() -> dict[str, str]:
    """Revision -> the oldest schema whose code still works after it."""
    return {script.revision: str(script.module.floor) for script in scripts().walk_revisions()}


def run(connection: sa.Connection, to: str, before: Callable[[str], None] = lambda floor: None) -> str:
    """Run what is missing up to revision `to` ("head": the last), in the connection's transaction; the floor of the
    catalog after it. `before(floor)` is called first and may raise."""
    # A connection that is in a transaction already is left in it: Alembic commits only what it began itself.
    connection.execute(sa.text("SELECT 1"))
    current = MigrationContext.configure(connection).get_current_revision() or ""
    known = floors()
    aim = max(known) if to == "head" else to
    floor = max(known[revision] for revision in known if revision <= max(aim, current))
    before(floor)
    walk = scripts()

    def steps(revision: Any, _context: MigrationContext) -> Any:
        return walk._upgrade_revs(to, revision)

    context = MigrationContext.configure(connection, opts={"fn": steps})
    with Operations.context(context):
        context.run_migrations()
    return floor
