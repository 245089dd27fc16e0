"""Brings a catalog's schema up to this release: Alembic migrations, run in the transaction it is given.

`migrations/versions` is the history; a migration is never edited once released; migration_steps runs them. A test holds
the sum of all of them equal to schema.py, from which an empty embedded catalog is made (docs/adr/0450). Each migration
says its `floor`: the oldest schema whose code still works on the catalog after it (docs/adr/0210). One that only adds
keeps the floor of the one before; one that takes something away raises it.

Invariant: no process runs on a catalog whose floor is above its own schema. One that starts on such a catalog is
refused; a migration that would raise the floor over a process that runs (PostgreSQL) is refused.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from metadata.catalog import leases, schema
from tierstore.errors import ConfigError

#: The schema of this code: the revision of the last migration.
HEAD: Final = "0004"
#: The floor that the last migration says.
HEAD_FLOOR: Final = "0003"
#: What every connection to PostgreSQL calls itself, with the schema of its code, so that another release can see it.
APPLICATION: Final = "tierstore schema "
#: Setting: the floor of the catalog as it is.
FLOOR: Final = "schema_floor"
#: Key of the advisory lock under which only one process migrates (PostgreSQL).
_MIGRATION_LOCK = 0x7469657273746F73
#: Where Alembic keeps the revision of a catalog.
_REVISION: Final = sa.Table(
    "alembic_version", sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)  # fmt: skip


def upgrade(connection: sa.Connection, to: str = "head") -> None:
    """Run the migrations that are missing, up to revision `to`; nothing when there are none. A catalog that a later
    release has migrated is left as it is when this code still works on it. Raises ConfigError when it does not, or when
    a process of an older release runs that would not work on it any more."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
    tables = sa.inspect(connection).get_table_names()
    current = ""
    if _REVISION.name in tables:
        current = str(connection.execute(sa.select(_REVISION.c.version_num)).scalar() or "")
    if current > HEAD:
        _refuse_later(connection, current)
        return
    if current == HEAD and leases.setting(connection, FLOOR) == HEAD_FLOOR:
        return
    if to == "head" and not tables and connection.dialect.name == "sqlite":
        _make_new(connection)
        return
    from metadata.catalog import migration_steps

    aim = HEAD if to == "head" else to

    def before(floor: str) -> None:
        if current and current < aim:
            _refuse_beside_older(connection, floor)

    floor = migration_steps.run(connection, to, before)
    if leases.setting(connection, FLOOR) != floor:
        leases.set_setting(connection, FLOOR, floor)


def _make_new(connection: sa.Connection) -> None:
    """An empty embedded catalog gets at once what all migrations add up to (a test compares the two word by word)."""
    schema.tables.create_all(connection, checkfirst=False)
    _REVISION.create(connection, checkfirst=False)
    connection.execute(sa.insert(_REVISION).values(version_num=HEAD))
    leases.set_setting(connection, FLOOR, HEAD_FLOOR)


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
