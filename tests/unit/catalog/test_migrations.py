"""The sum of all migrations is the schema."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from metadata.catalog import leases, migrate, migration_steps, schema
from tierstore.errors import ConfigError


def test_migrations_add_up_to_the_schema() -> None:
    """A release whose catalogs differ by their age fails on old ones only, in the field."""
    with sa.create_engine("sqlite://").begin() as connection:
        assert migration_steps.run(connection, "head") == migrate.HEAD_FLOOR
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})
        assert compare_metadata(context, schema.tables) == []
        migrated = _statements(connection)
    with sa.create_engine("sqlite://").begin() as connection:
        migrate.upgrade(connection)
        assert _statements(connection) == migrated


def _statements(connection: sa.Connection) -> set[str]:
    """What SQLite remembers of each table and index: clustering and collations stand only there."""
    rows = connection.execute(sa.text("SELECT sql FROM sqlite_master WHERE sql NOT NULL"))
    made = {" ".join(str(row[0]).replace("\t", " ").split()) for row in rows}
    return {text for text in made if not text.startswith("CREATE TABLE sqlite_")}


@pytest.mark.parametrize("how", ["head", migrate.HEAD])
def test_a_second_upgrade_changes_nothing(how: str) -> None:
    """Every start upgrades, the first one and those after a migration."""
    with sa.create_engine("sqlite://").begin() as connection:
        migrate.upgrade(connection, how)
        before = _statements(connection)
        migrate.upgrade(connection)
        assert _statements(connection) == before


def test_a_catalog_of_a_later_release_is_refused() -> None:
    """Running old code on a new catalog would damage it."""
    with sa.create_engine("sqlite://").begin() as connection:
        migrate.upgrade(connection)
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        leases.set_setting(connection, migrate.FLOOR, "9998")
        with pytest.raises(ConfigError, match="later release"):
            migrate.upgrade(connection)


def test_a_later_schema_that_this_code_works_on_is_left_as_it_is() -> None:
    """A release that only added something can be taken back, and runs beside the one before it."""
    with sa.create_engine("sqlite://").begin() as connection:
        migrate.upgrade(connection)
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        before = _statements(connection)
        migrate.upgrade(connection)
        assert _statements(connection) == before
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == "9999"


def test_every_migration_says_the_oldest_schema_whose_code_works_after_it() -> None:
    """Without it a release cannot tell whether it may run beside another one."""
    scripts = sorted(migration_steps.scripts().walk_revisions(), key=lambda script: script.revision)
    floors = [str(script.module.floor) for script in scripts]
    assert floors == sorted(floors), "a floor never falls"
    assert all(floor <= script.revision for floor, script in zip(floors, scripts, strict=True))
    assert scripts[-1].revision == migrate.HEAD
    with sa.create_engine("sqlite://").begin() as connection:
        migrate.upgrade(connection)
        assert leases.setting(connection, migrate.FLOOR) == floors[-1]


def test_every_migration_file_is_part_of_the_history() -> None:
    """A forgotten down_revision would leave a migration out."""
    scripts = migration_steps.scripts()
    files = {p.name for p in (Path(migrate.__file__).parent / "migrations" / "versions").glob("m*.py")}
    assert {Path(s.path).name for s in scripts.walk_revisions()} == files
