"""What `python -m metadata` does: serve, rebuild, backup, restore. Each opens the catalog, does its work and closes it.

Owns the order around metadata.app, which builds the service. All of them block; reports are lines for people.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import uvloop

from metadata.app import MetadataServer
from metadata.catalog import snapshot_load, snapshots
from metadata.catalog.database import open_database
from metadata.catalog.setup import prepare
from metadata.config import Settings
from metadata.routes.delegations import delegate
from metadata.services.names.commit import CommitService
from metadata.services.upkeep.adopt import Adoption, Findings
from metadata.services.upkeep.rebuild import Rebuild, finish
from metadata.surroundings import Surroundings
from tierstore import statefile
from tierstore.clock import SystemClock
from tierstore.errors import UnavailableError
from tierstore.serving.daemon import settle
from tierstore.serving.limits import limits_of
from tierstore.serving.run import Serving, inherited, listen
from tierstore.telemetry.log import get_logger
from tierstore.transport.pool import PooledTransport, PoolLimits
from tierstore.transport.tls import client_context

log = get_logger("metadata")

#: For a dump or the loading of one.
BACKUP_SECONDS: Final = 3600.0


def database_url(settings: Settings) -> str:
    """The configured database, or the embedded one in the data directory (made when it is missing)."""
    if settings.catalog.url:
        return settings.catalog.url
    statefile.make_directory(settings.catalog.data)
    return f"sqlite:///{os.path.abspath(settings.catalog.data)}/catalog.db"


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[MetadataServer, Serving]]:
    """The service and its edge, built and closed again; nothing runs yet inside."""
    at = settings.listen
    sock = inherited(at.fd) if at.fd >= 0 else listen(at.host, at.port)
    host = "127.0.0.1" if at.host == "0.0.0.0" else at.host
    advertise = at.advertise.rstrip("/") or f"http://{host}:{sock.getsockname()[1]}"
    transport = PooledTransport(
        PoolLimits(connections_per_peer=settings.limits.peer_connections_max), tls=client_context(settings.tls.ca_file)
    )
    database = await open_database(database_url(settings))
    around = Surroundings(
        clock=SystemClock(), rng=random.Random(secrets.randbits(64)), random_bytes=secrets.token_bytes,
        advertise=advertise, instance=secrets.token_hex(8), transport=transport,
    )  # fmt: skip
    server = await MetadataServer.open(settings, around, database)
    limits = limits_of(settings.limits, settings.timers)
    try:
        yield server, Serving(server.app, server.routes, sock=sock, limits=limits, drain=server.drain)
    finally:
        await server.stop()
        await transport.close()


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; blocks."""

    async def main() -> None:
        async with opened(settings) as (server, serving):
            await server.start()
            door = delegate(server.files, random_bytes=server.around.random_bytes)
            settle()
            log.info(
                "serving", url=server.around.advertise, cluster=server.view.cluster_id,
                database=server.database.dialect,
            )  # fmt: skip
            try:
                await serving.run()
            finally:
                if door is not None:
                    door.close()

    uvloop.run(main())


def rebuild(settings: Settings) -> list[str]:
    """Make a lost catalog again from what the object servers hold; the lines of the report. Blocks, serving them
    meanwhile. Raises ConflictError when the catalog is not empty, UnavailableError when nothing whole is left."""

    async def main() -> list[str]:
        async with opened(settings) as (server, serving):
            work = Rebuild(
                server.database, server.cluster, server.guard, registrar=server.registrar,
                transport=server.around.transport, clock=server.around.clock,
            )  # fmt: skip
            server.take_inventory = work.page
            await work.begin()
            edge = asyncio.create_task(serving.run(), name="metadata edge")
            walk = asyncio.create_task(work.run(server.heartbeats.flush), name="metadata rebuild")
            # A signal ends the edge, and with it the rebuild: the catalog is changed by its last step only.
            await asyncio.wait({edge, walk}, return_when=asyncio.FIRST_COMPLETED)
            serving.stop()
            await edge
            if not walk.done():
                walk.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await walk
                raise UnavailableError("the rebuild was interrupted; nothing was changed", code="interrupted")
            report = walk.result()
        return report + await adopt(settings, work.findings)

    return uvloop.run(main())


async def adopt(settings: Settings, findings: Findings) -> list[str]:
    """The second half of a rebuild: the catalog that was loaded is opened anew, with nobody to serve, and takes in what
    only the chunks' headers tell. The lines of the report."""
    transport, rng = PooledTransport(), random.Random(secrets.randbits(64))
    around = Surroundings(
        clock=SystemClock(), rng=rng, random_bytes=secrets.token_bytes, advertise="", instance=secrets.token_hex(8),
        transport=transport,
    )  # fmt: skip
    server = await MetadataServer.open(settings, around, await open_database(database_url(settings)))
    # One copy that was found is enough to name an object: repair makes the others.
    commits = CommitService(
        server.database, server.view, server.clock, server.versions, rng=rng, copies_for=lambda *_: 1
    )
    try:
        report = await Adoption(server.database, server.cluster, commits, rng).run(findings)
        await server.database.write(finish)
    finally:
        await commits.close()
        await server.stop()
        await transport.close()
    return report


def backup(settings: Settings, target: Path) -> list[str]:
    """Write one consistent dump of the catalog to a new file, synced; the lines of the report. The service may run."""

    async def main() -> list[str]:
        database = await open_database(database_url(settings))
        try:
            at_ms = SystemClock().now_ms()
            count = await database.scan(lambda c: snapshots.dump_to(c, target, at_ms=at_ms), seconds=BACKUP_SECONDS)
        finally:
            await database.close()
        return [f"{target}: {count} objects, {target.stat().st_size} bytes"]

    return uvloop.run(main())


def restore(settings: Settings, source: Path) -> list[str]:
    """Load a backup into an empty catalog; the lines of the report. No service may run on it. What was written since
    the backup is not known then: the devices have seen higher sequences, so nothing is deleted until an operator
    looked. Raises ConflictError when the catalog is not empty, IntegrityError when the file is damaged."""

    async def main() -> list[str]:
        database = await open_database(database_url(settings))
        try:
            await prepare(database, new_cluster_id=secrets.token_hex(16), site=settings.placement.site)
            data = await asyncio.to_thread(source.read_bytes)
            count = await database.write(lambda c: snapshot_load.restore(c, data), seconds=BACKUP_SECONDS)
        finally:
            await database.close()
        return [f"{source}: {count} objects restored"]

    return uvloop.run(main())
