"""The gateway, put together: the only place of the package that builds things, and their start and stop.

Owns the order. Start: listen at once, join the cluster in the background (requests get 503 `not-ready` until then, so
health pages answer while metadata is away). Stop: drained by serving -> heartbeat ends -> connections closed.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import random

from fastapi import FastAPI, Request

from tierstore.auth.access import authorize
from tierstore.clock import Clock
from tierstore.errors import TierstoreError
from tierstore.gateway import routes, sites
from tierstore.gateway.bodies import Bodies
from tierstore.gateway.config import GatewayConfig
from tierstore.gateway.credentials import CredentialCache
from tierstore.gateway.forward import Forwarder
from tierstore.gateway.listing import ListingDoor
from tierstore.gateway.membership import Membership
from tierstore.gateway.metrics import watch
from tierstore.gateway.objects import DoorLimits, ObjectDoor
from tierstore.gateway.redirect import Redirects
from tierstore.gateway.rights import NativeRights
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.door import S3Door
from tierstore.gateway.s3.sse_keys import MasterKeys, Vault
from tierstore.gateway.sites_push import PushDoor
from tierstore.sdk.limits import StoreLimits
from tierstore.sdk.store import Store
from tierstore.serving import pages, problem_handlers
from tierstore.serving.declared import declare
from tierstore.serving.drain import Drain
from tierstore.telemetry.log import get_logger
from tierstore.telemetry.metrics import REGISTRY
from tierstore.transport.handovers import Handovers
from tierstore.transport.loans import Borrower
from tierstore.transport.metadata_calls import MetadataLimits
from tierstore.transport.metadata_client import MetadataClient
from tierstore.transport.object_client import ObjectClient
from tierstore.transport.peer import PeerTransport

log = get_logger("gateway")

#: How long the start waits for the cluster before it serves 503 in the meantime.
_JOIN_SECONDS = 5.0
#: For metadata to answer after it is back.
ANSWER_SECONDS = 5.0
#: Between attempts to fetch the cluster map after it has joined.
_OPEN_RETRY_SECONDS = 1.0


class Gateway:
    """One gateway in this process (a simulation has several). token "": a credential comes by registration."""

    def __init__(
        self, config: GatewayConfig, *, clock: Clock, transport: PeerTransport, rng: random.Random,
        membership_kept: bool = True, borrower: Borrower | None = None,
        handovers: Handovers | None = None,
    ) -> None:  # fmt: skip
        """borrower: to read from the files of object servers on this machine; None: all by the network.
        handovers: to give them chunks in shared memory; None: the same."""
        self.config = config
        self.drain = Drain()
        self._transport = transport
        bounds = MetadataLimits(
            items_max=config.limits.batch_items_max, waiting_max=config.limits.queue_items_max,
            hold_seconds=config.timers.metadata_restart,
        )  # fmt: skip
        self.client = MetadataClient(
            transport, config.membership.metadata, token="", clock=clock, rng=rng, limits=bounds
        )
        self.object_client: ObjectClient = ObjectClient(transport, clock, borrower=borrower, handovers=handovers)
        self.store: Store = Store(self.client, self.object_client, clock=clock, limits=store_limits(config))
        self.credentials = CredentialCache(self.client, clock)
        self.forwarder = Forwarder(
            transport, config.membership.metadata, self.credentials, clock, hold_seconds=config.timers.metadata_restart,
            request_seconds=config.timers.request, body_bytes_max=config.limits.small_body_bytes_max,
            on_rights=self.client.forget_rights, is_secure=bool(config.tls.certificate),
        )  # fmt: skip
        catalog = S3Catalog(self.client, clock)
        self.rights = NativeRights(catalog, self.store, clock, is_secure=bool(config.tls.certificate))
        self.objects: ObjectDoor = ObjectDoor(
            self.store, self.credentials, self.rights,
            limits=DoorLimits(config.limits.requests_in_flight_max, config.limits.object_bytes_max),
        )  # fmt: skip
        self.listing = ListingDoor(self.store, self.credentials, self.rights)
        self.bodies = Bodies(self.store, transport, clock)
        self.store.remote = self.bodies
        self.body_door = sites.BodyDoor(self.store, self.bodies, self.credentials, self.rights, self.objects)
        self.redirects = Redirects(lambda: self.bodies.known)
        self._object_routes = routes.hot_routes(self.objects, self.listing, self.redirects)
        is_open = bool(config.tls.certificate) or config.s3.customer_keys_over_http
        vault = Vault(MasterKeys(config.s3.master_keys), customer_keys_over_http=is_open)
        self.s3: S3Door = S3Door(
            self.store, catalog, clock, self.objects, domain=config.s3.domain, vault=vault,
            redirects=self.redirects if config.s3.redirect_near else None, is_secure=bool(config.tls.certificate),
            access_log_seconds=config.s3.access_log_every, access_log_paused=config.s3.access_log_paused,
        )  # fmt: skip
        self._site_routes = (
            sites.hot_route(self.body_door), PushDoor(self.store, self.credentials, self.objects).route()
        )  # fmt: skip
        self.routes = [*self._object_routes, *self.s3.routes(), *self._site_routes]
        self.app = self._application()
        self.membership = Membership(
            self.client, directory=config.membership.data if membership_kept else "", name=config.name,
            join_token=config.auth.join_token, heartbeat_seconds=config.timers.heartbeat,
            on_secret=self.forwarder.set_secret, in_flight=lambda: self.objects.in_flight,
            is_leaving=lambda: self.drain.is_stopping,
        )  # fmt: skip
        self._joining: asyncio.Task[None] | None = None
        watch(self)

    def _application(self) -> FastAPI:
        app = FastAPI(
            title="tierstore", version=importlib.metadata.version("tierstore"), openapi_url="/v1/openapi.json",
            docs_url=None, redoc_url=None, description="A tiered caching object store: native REST.",
            separate_input_output_schemas=False, redirect_slashes=False,
        )  # fmt: skip
        problem_handlers.install(app)
        pages.install(app, reasons_not_ready=self.reasons_not_ready, guard=self._metrics_guard(), registry=REGISTRY)
        routes.declare_hot(app, self._object_routes)
        routes.add_actions(app, self.store, self.credentials, self.rights)
        routes.add_forwarded(app, self.forwarder)
        routes.add_route_page(app, self.store, self.credentials, self.bodies)
        sites.add_routes(
            app, *self._site_routes, self.bodies, credentials=self.credentials, forwarder=self.forwarder,
            problems=routes.problem_responses(),
        )
        routes.add_schemas(app)
        for row in self.s3.routes():
            # for requests that the protocol class hands on; S3 is described by AWS's model, not by OpenAPI
            name = f"s3_{row.method.decode().lower()}"
            declare(app, row, "/{path:path}", summary="S3", operation_id=name, include_in_schema=False)
        return app

    def _metrics_guard(self) -> pages.MetricsGuard:
        async def administrators(request: Request) -> None:
            header = request.headers.get("authorization")
            principal = await self.credentials.resolve(None if header is None else header.encode("latin-1"))
            authorize(principal, "admin")

        return pages.metrics_guard(self.config.telemetry, administrators)

    def reasons_not_ready(self) -> list[str]:
        """Why clients should use another gateway, for people; empty when they need not."""
        reasons = []
        if self.drain.is_announced:
            reasons.append("a restart is announced")
        if not self.objects.is_open:
            reasons.append(f"it has not joined the cluster yet: {self.membership.waits_for or 'no cluster map'}")
        return reasons

    async def start(self, url: str) -> None:
        """Join the cluster as `url`; after a while without it, go on in the background, however often it is refused."""
        self._joining = asyncio.create_task(self._join(url), name="gateway-join")
        await asyncio.wait({self._joining}, timeout=_JOIN_SECONDS)
        if self._joining.done():
            self._joining.result()
        else:
            log.warning("requests get 503 until this gateway has joined", why=self.membership.waits_for)

    async def _join(self, url: str) -> None:
        registered = await self.membership.join_whatever_comes(url)
        while True:
            try:
                await self.store.open()
                break
            except TierstoreError as error:
                log.warning("joined, but the cluster map does not come; trying on", why=str(error))
                await asyncio.sleep(_OPEN_RETRY_SECONDS)
                if not error.retryable:     # metadata knows another secret by now: nothing else helps
                    registered = await self.membership.join_whatever_comes(url)
        self.objects.open(registered.site)
        self.listing.open(registered.site)
        self.forwarder.open()
        self.bodies.start()
        self.membership.start()
        log.info("serving", url=url, server=registered.server, site=registered.site)

    async def stop(self) -> None:
        """End everything. The sockets are closed already."""
        if self._joining is not None:
            self._joining.cancel()
            await asyncio.gather(self._joining, return_exceptions=True)
        await self.membership.stop()
        await self.bodies.close()
        await self.s3.close()
        await self.store.close()
        await self._transport.close()


def store_limits(config: GatewayConfig) -> StoreLimits:
    """The bounds of the walks from the settings."""
    return StoreLimits(
        buffer_bytes_max=config.uploads.buffer_bytes_max, chunks_in_flight_max=config.uploads.chunks_in_flight_max,
        straggler_seconds=config.uploads.straggler, hedge_seconds_min=config.timers.hedge,
        placement_wait_seconds=config.uploads.placement_wait,
        # all attempts together: a request that is held for a restart still has time to be answered
        request_seconds=config.timers.metadata_restart + ANSWER_SECONDS,
    )  # fmt: skip
