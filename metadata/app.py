"""One metadata process: its services (metadata/parts) behind their routes (metadata/doors), from start to stop.

Owns the order. Start: catalog opened and upgraded -> membership, keys and policy read -> routes -> serving ->
background. Stop: background ended -> commits under way finished -> catalog closed. Invariant: every task has the
server as its owner and has ended when stop() returns.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from fastapi import FastAPI

from metadata import doors, metrics
from metadata.background import Background
from metadata.catalog.database import Database
from metadata.catalog.setup import prepare
from metadata.config import Settings
from metadata.parts import Parts
from metadata.surroundings import Surroundings
from tierstore.errors import TierstoreError
from tierstore.serving.drain import Drain
from tierstore.serving.table import Route
from tierstore.telemetry.log import get_logger

log = get_logger("metadata")

#: Between two looks at what other processes on the same database changed.
REFRESH_SECONDS: Final = 1.0
#: Between two looks for open unlinked files of mounts that are gone.
SWEEP_SECONDS: Final = 30.0
#: For the catalog to finish what it has when the process stops.
STOP_SECONDS_MAX: Final = 20.0


class MetadataServer(Parts):
    """One metadata process (a simulation may have several in one). Built by `open`."""

    def __init__(self, settings: Settings, around: Surroundings, database: Database) -> None:
        super().__init__(settings, around, database)
        self.routes: list[Route] = []
        self.app: FastAPI
        self.drain = Drain()
        self._background = Background(around.clock)
        self._is_started = False

    @classmethod
    async def open(cls, settings: Settings, around: Surroundings, database: Database) -> MetadataServer:
        """Upgrade the catalog, read what it holds, build the services and the routes. Serves nothing yet."""
        server = cls(settings, around, database)
        start = await prepare(
            database, new_cluster_id=around.random_bytes(16).hex(), site=settings.placement.site,
            site_id=settings.placement.site_number,
        )
        server.build_cluster()
        await server.cluster.load()
        server.build_names(start.site_id, start.version_floor)
        await server.switches.load()
        await server.scrub.load()
        await server.heat.load()
        await server.recorder.load()
        root = settings.root
        await server.credentials.refresh()
        await server.credentials.bootstrap(access=root.access_key, secret=root.secret_key, token=root.token)
        for user in settings.users:
            await server.credentials.set_up(
                user=user.name, access=user.access_key, secret=user.secret_key, grants=user.roles, policy=user.policy
            )
        await server.policies.refresh()
        await server.sites.refresh()
        await server.comparison.refresh()
        server.routes, server.app = doors.build(server, reasons_not_ready=server.reasons_not_ready)
        metrics.watch_catalog(server.commits, server.cluster)
        return server

    def reasons_not_ready(self) -> list[str]:
        """Why this process should get no requests now, for people."""
        reasons = ["a restart is announced"] if self.drain.is_announced else []
        return reasons if self._is_started else [*reasons, "the catalog is being opened"]

    # -- life -----------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Begin the background work."""
        self.promoter.start()
        self._background.begin("placements", self.indexer.run)
        self._background.begin("refresh", self._refresh)
        self._background.begin("mounts", self._sweep_mounts)
        self._is_started = True

    async def _sweep_mounts(self) -> None:
        """Open unlinked files of mounts that are gone. Safe in several processes at once; bounded per round."""
        while True:
            await self.around.clock.sleep(SWEEP_SECONDS)
            try:
                await self.files.sweep()
            except (TierstoreError, TimeoutError) as error:
                log.warning("files of lost mounts could not be removed", error=str(error))

    async def _refresh(self) -> None:
        """Follow what other processes on the same database changed; on SQLite there are none."""
        while self.database.dialect != "sqlite":
            await self.around.clock.sleep(REFRESH_SECONDS)
            try:
                await self.credentials.refresh()
                await self.policies.refresh()
                await self.cluster.refresh()
                await self.sites.refresh()
                await self.comparison.refresh()
            except TierstoreError as error:
                log.warning("refresh failed", error=str(error))

    async def stop(self) -> None:
        """End the background work, finish commits under way, close the catalog. Safe to repeat."""
        await self.promoter.stop()
        await self.webhooks.close()
        await self.replication.close()
        if self._is_started:
            await self.heat.save()
            await self.recorder.flush(close=True)
        await self._background.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await self.commits.close()
        await self.database.close()
