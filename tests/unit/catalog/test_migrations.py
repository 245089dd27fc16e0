"""The sum of all migrations is the schema."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from metadata.catalog import migrate, schema
from tierstore.errors import ConfigError


def test_migrations_add_up_to_the_schema() -> None:
    """A release whose catalogs differ by their age fails on old ones only, in the field."""
    with sa.create_engine("sqlite://").begin() as connection:
        migrate.upgrade(connection)
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})
        assert compare_metadata(context, schema.tables) == []
        migrated = _statements(connection)
    with sa.create_engine("sqlite://").begin() as connection:
        schema.tables.create_all(connection)
        assert _statements(connection) == migrated


def _statements(connection: sa.Connection) -> set[str]:
    """What SQLite remembers of each table and index: clustering and collations stand only there."""
    rows = connection.execute(sa.text("SELECT sql FROM sqlite_master WHERE name NOT LIKE 'alembic%' AND sql NOT NULL"))
    made = {" ".join(str(row[0]).replace("\t", " ").split()) for row in rows}
    return {text for text in made if not text.startswith("CREATE TABLE sqlite_")}


def test_a_second_upgrade_changes_nothing() -> None:
    """Every start upgrades."""
    with sa.create_engine("sqlite://").begin() as connection:
        migrate.upgrade(connection)
        before = _statements(connection)
        migrate.upgrade(connection)
        assert _statements(connection) == before


def test_a_catalog_of_a_later_release_is_refused() -> None:
    """Running old code on a new catalog would damage it."""
    with sa.create_engine("sqlite://").begin() as connection:
        migrate.upgrade(connection)
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(ConfigError, match="later release"):
            migrate.upgrade(connection)


def test_every_migration_file_is_part_of_the_history() -> None:
    """A forgotten down_revision would leave a migration out."""
    scripts = migrate._scripts()
    files = {p.name for p in (Path(migrate.__file__).parent / "migrations" / "versions").glob("m*.py")}
    assert {Path(s.path).name for s in scripts.walk_revisions()} == files
