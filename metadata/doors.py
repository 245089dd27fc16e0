"""What the metadata service answers: its services behind their routes."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Request

from metadata.parts import Parts
from metadata.routes import admin_cluster, admin_compare, admin_names, buckets, cluster, files, hot
from metadata.routes import jobs as job_routes
from metadata.routes import policy as policy_routes
from metadata.routes import quotas as quota_routes
from metadata.routes import s3 as s3_routes
from metadata.routes import sites as site_routes
from metadata.routes import tiering as tiering_routes
from metadata.routes.callers import Callers
from metadata.routes.declared import declare_routes
from metadata.routes.holder import AskHolder
from tierstore.serving import pages, problem_handlers
from tierstore.serving.table import Route
from tierstore.telemetry.metrics import REGISTRY


def build(parts: Parts, *, reasons_not_ready: Callable[[], list[str]]) -> tuple[list[Route], FastAPI]:
    """The routes that are served by hand, for speed, and the application for all others.

    reasons_not_ready: why this process should get no requests now, for people; empty when it should."""
    callers = Callers(parts.credentials, parts.clock)
    handlers = hot.HotRoutes(
        credentials=parts.credentials, lookups=parts.lookups, allocations=parts.allocations, commits=parts.commits,
        listings=parts.listings, uploads=parts.uploads, clock=parts.clock, report_bad=parts.report_bad,
        revisions=hot.Revisions(
            map=lambda: parts.view.revision, auth=lambda: parts.credentials.revision,
            policy=lambda: parts.policies.current.revision,
        ),
    )  # fmt: skip
    handlers.sync = parts.replication.sync
    parts.files.sync = parts.replication.sync
    names = handlers.routes()
    members = cluster.build(
        parts.cluster, parts.registrar, parts.heartbeats, metadata_urls=lambda: parts.lease.urls,
        any_key=callers.caller, inventory=parts.inventory,
    )  # fmt: skip
    mounts = files.FileRoutes(parts.credentials, parts.files, parts.clock).routes()
    s3_door = s3_routes.S3Routes(parts.credentials, parts.s3_names).routes()
    routes: list[Route] = [*names, *mounts, *s3_door, *members.hot]
    app = FastAPI(title="tierstore metadata", docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json")
    problem_handlers.install(app)
    pages.install(app, reasons_not_ready=reasons_not_ready, guard=_metrics_guard(parts, callers), registry=REGISTRY)
    declare_routes(app, names, hot.SUMMARIES)
    declare_routes(app, mounts, files.SUMMARIES, family="files_")
    declare_routes(app, s3_door, s3_routes.SUMMARIES, family="s3_")
    declare_routes(app, members.hot, cluster.SUMMARIES)
    app.include_router(members.router)
    app.include_router(
        admin_cluster.build(
            callers, parts.audit, parts.status, cluster=parts.cluster, drains=parts.drains, losses=parts.repair.losses,
            scrub=parts.scrub, guard=parts.guard,
        )
    )  # fmt: skip
    app.include_router(
        job_routes.build(
            callers, parts.audit, parts.status, queue=parts.jobs, switches=parts.switches,
            duties=parts.promoter.statuses,
        )
    )
    app.include_router(admin_compare.build(callers, parts.audit, parts.compared, parts.view))
    app.include_router(tiering_routes.build(
        callers, parts.tiering, parts.tiering_view, parts.whatif, soon=lambda: len(parts.read_soon.buckets)
    ))
    app.include_router(buckets.build(parts.buckets, callers))
    app.include_router(quota_routes.build(parts.quotas, callers))
    app.include_router(
        site_routes.build(
            callers, parts.audit, parts.sites, replication=parts.replication, taker=parts.name_taker, clock=parts.clock,
            buckets=parts.buckets, comparison=parts.comparison, backfills=parts.backfills, holdings=parts.holdings,
            holder=AskHolder(
                parts.around.transport, lambda: parts.lease.holder_elsewhere, others=lambda: parts.lease.urls[1:]
            ),
        )
    )
    app.include_router(admin_names.build(parts.credentials, parts.audit, callers))
    app.include_router(policy_routes.build(parts.policies, parts.policy_doubts, callers))
    return routes, app


def _metrics_guard(parts: Parts, callers: Callers) -> pages.MetricsGuard:
    async def administrators(request: Request) -> None:
        await callers.admin(request)

    return pages.metrics_guard(parts.settings.telemetry, administrators)
