"""A catalog made ready at start: schema upgraded, the rows that must exist, what the process needs to begin with."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from metadata.catalog import feed, schema
from metadata.catalog.database import Database
from metadata.catalog.migrate import upgrade

#: A starting migration of a large catalog may take its time.
UPGRADE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Start:
    """cluster_id: 32 hex digits, for ever. site: this site's (id, name). version_floor: no version id is larger."""

    cluster_id: str
    site_id: int
    site: str
    version_floor: int
    sequence: int


async def prepare(database: Database, *, new_cluster_id: str, site: str, site_id: int = 1) -> Start:
    """Upgrade the schema and make the first rows; `new_cluster_id` is taken only by an empty catalog. Safe to repeat,
    also by several processes at once."""
    await database.write(upgrade, seconds=UPGRADE_SECONDS)
    return await database.write(lambda connection: _first_rows(connection, new_cluster_id, site, site_id))


def _first_rows(connection: sa.Connection, new_cluster_id: str, site: str, site_id: int) -> Start:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("LOCK TABLE settings IN SHARE ROW EXCLUSIVE MODE"))
    s, sites = schema.settings, schema.sites
    cluster_id = connection.execute(sa.select(s.c.value).where(s.c.name == "cluster_id")).scalar()
    if cluster_id is None:
        cluster_id = new_cluster_id
        connection.execute(sa.insert(s).values(name="cluster_id", value=cluster_id))
        connection.execute(sa.insert(schema.feed_head).values(id=1, sequence=0, version=0))
        connection.execute(sa.insert(sites).values(id=site_id, name=site, is_local=True))
    local = connection.execute(sa.select(sites.c.id, sites.c.name).where(sites.c.is_local.is_(True))).one()
    sequence, floor = feed.head(connection)
    return Start(str(cluster_id), int(local[0]), str(local[1]), floor, sequence)
