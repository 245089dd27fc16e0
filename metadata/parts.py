"""The services of the metadata service, put together: who asks whom. The only place of the package that builds them.

In this order: membership and background work; names; what is between this site and others. What is served over them:
metadata/doors. Their life: metadata/app."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from metadata import metrics
from metadata.catalog.book import CatalogBook
from metadata.catalog.database import Database
from metadata.config import Settings
from metadata.promoter.collect import CollectDuty
from metadata.promoter.drain import DrainDuty
from metadata.promoter.heat import HeatGatherer
from metadata.promoter.lifecycle import LifecycleDuty
from metadata.promoter.liveness import KeyDuty, LivenessDuty
from metadata.promoter.notify import NotifyDuty
from metadata.promoter.quotas import QuotasDuty
from metadata.promoter.reconcile import ReconcileDuty
from metadata.promoter.repair import AuditDuty, RepairDuty
from metadata.promoter.retention import QueueDuty, RetentionDuty
from metadata.promoter.runner import Duty, DutyRunner, Promoter
from metadata.promoter.scrub import ScrubDuty
from metadata.promoter.sites import FetchedDuty, SitesDuty, TombstoneDuty
from metadata.promoter.snapshot import SnapshotDuty
from metadata.promoter.tiering import HistoryDuty, TieringDuty, WalkDuty
from metadata.services.access.audit import AuditService
from metadata.services.access.credentials import Credentials
from metadata.services.access.policies import Policies
from metadata.services.cluster.duties import DutySwitches, Holder, LeaseKeeper
from metadata.services.cluster.heartbeat import Heartbeats
from metadata.services.cluster.join import Registrar
from metadata.services.cluster.liveness import Timers
from metadata.services.cluster.membership import Cluster, ClusterSettings
from metadata.services.cluster.view import ClusterView
from metadata.services.files.bodies import FileBodies
from metadata.services.files.service import FilesService
from metadata.services.jobs.queue import JobQueue
from metadata.services.jobs.rates import JobRates
from metadata.services.names.allocate import AllocateService
from metadata.services.names.bucket_names import BucketNames
from metadata.services.names.buckets import BucketService
from metadata.services.names.commit import CommitService
from metadata.services.names.copies import Copies
from metadata.services.names.lifecycle import Lifecycle
from metadata.services.names.listing import ListingService
from metadata.services.names.lookup import LookupService
from metadata.services.names.notify import Notify
from metadata.services.names.quotas import Quotas
from metadata.services.names.replicas import ReplicaOrder
from metadata.services.names.s3_names import S3Names
from metadata.services.names.uploads import UploadService
from metadata.services.sites import metrics as sites_metrics
from metadata.services.sites.ahead import AheadReader
from metadata.services.sites.apply import NameTaker
from metadata.services.sites.backfill import Backfills
from metadata.services.sites.compare import Comparison
from metadata.services.sites.courier import Courier
from metadata.services.sites.fetched import FetchedBodies
from metadata.services.sites.holds import Holdings, Vouchers
from metadata.services.sites.hot import HotBodies
from metadata.services.sites.read import BodyReader
from metadata.services.sites.registry import Self, Sites
from metadata.services.sites.run import Replication
from metadata.services.sites.target import Parts as SendParts
from metadata.services.sites.tombstones import Tombstones
from metadata.services.tiering import metrics as tiering_metrics
from metadata.services.tiering.doubts import PolicyDoubts
from metadata.services.tiering.pins import Pins
from metadata.services.tiering.read_soon import ReadSoon
from metadata.services.tiering.recorder import Recorder
from metadata.services.tiering.service import Tiering
from metadata.services.tiering.view import TieringView
from metadata.services.tiering.walk import ShelfWalk
from metadata.services.tiering.whatif import WhatIf
from metadata.services.upkeep.collect import Collection, DeletionGuard
from metadata.services.upkeep.compare import CatalogComparison
from metadata.services.upkeep.drain import Drains
from metadata.services.upkeep.inventories import Inventories
from metadata.services.upkeep.placements import PlacementIndexer
from metadata.services.upkeep.repair import Repair
from metadata.services.upkeep.repair_audit import Audit
from metadata.services.upkeep.repair_losses import Losses
from metadata.services.upkeep.repair_plan import Planner
from metadata.services.upkeep.retention import Retention
from metadata.services.upkeep.scrub import Scrub
from metadata.services.upkeep.snapshot import Snapshots
from metadata.services.upkeep.status import Status
from metadata.surroundings import CatalogClock, Surroundings
from metadata.webhooks import Webhooks
from tierstore.auth.access import Principal
from tierstore.clock import Clock, HybridClock
from tierstore.names import SiteId
from tierstore.policy import parser
from tierstore.transport.object_client import ObjectClient
from tierstore.wire.cluster import BadChunk, Inventory, InventoryAnswer


class Parts:
    """The services of one metadata process and the duties over them. Nothing runs and nobody is served yet."""

    def __init__(self, settings: Settings, around: Surroundings, database: Database) -> None:
        self.settings = settings
        self.around = around
        self.database = database

    def build_cluster(self) -> None:
        """Membership and background work: services first, then the duties over them."""
        settings, around, database = self.settings, self.around, self.database
        timers = settings.timers
        self.view = ClusterView(site=settings.placement.site)
        self.cluster = Cluster(
            database, self.view, around.clock,
            ClusterSettings(
                join_token=settings.auth.join_token, copies=settings.placement.copies,
                chunk_bytes=settings.placement.chunk_bytes, trash_seconds=int(settings.duties.trash),
                timers=Timers(
                    heartbeat_seconds=timers.heartbeat, suspect_seconds=timers.suspect,
                    no_placement_seconds=timers.no_placement, dead_seconds=timers.dead,
                    repair_grace_seconds=timers.repair_grace, restart_seconds=timers.announced_restart,
                ),
            ),
            around.random_bytes,
        )  # fmt: skip
        self.registrar = Registrar(database, self.cluster, around.random_bytes)
        self.clock: Clock = CatalogClock(around.clock, lambda: self.cluster)
        self.lease = LeaseKeeper(database, around.clock, Holder(around.instance, around.advertise))
        self.switches = DutySwitches(database)
        self.book = CatalogBook()
        self.heat = HeatGatherer(around.clock, self._heat_file())
        self.copies = Copies(
            settings.placement.copies, policy=lambda: self.policies.current.policy,
            now=lambda: self.clock.now_ms() / 1000,
        )  # fmt: skip
        self.jobs = JobQueue(
            database, self.cluster, self.book, self.switches, copies_of=self.copies.of_chunk,
            rates=JobRates(settings.jobs.device_rate, settings.jobs.total_rate, settings.jobs.promote_rate),
            heat_of=self.heat.heat_per_hour, reporter=self.heat.reporter,
        )  # fmt: skip
        self.tiering = Tiering(
            database, self.cluster, self.book, self.jobs, self.heat,
            policy=lambda: (self.policies.current.revision, self.policies.current.policy),
        )  # fmt: skip
        self.scrub = Scrub(database, self.cluster, self.book, pace_default=settings.background.scrub_rate)
        self.heartbeats = Heartbeats(
            database, self.cluster, self.lease, desk=self.jobs, heat=self.heat.merge,
            served=self.tiering.served,
            scrub_bytes_per_second=lambda: self.scrub.bytes_per_second,
        )  # fmt: skip
        self.guard = DeletionGuard(database, self.cluster, orphan_share=settings.duties.deleted_share_max)
        planner, losses = Planner(self.view, self.jobs, around.rng), Losses(database, self.cluster)
        self.repair = Repair(database, self.cluster, self.book, planner, losses)
        self.walk = ShelfWalk(
            database, self.cluster, self.tiering,
            choose=lambda size, tier, taken: planner.choose(size, tier, exclude_servers=taken),
        )  # fmt: skip
        self.recorder = Recorder(around.clock, self._own_directory())
        self.read_soon = ReadSoon(
            self.view, around.clock, rules=lambda: self.tiering.rules, table=lambda: self.heat.table
        )
        self.pins = Pins(database, policy=lambda: self.policies.current.policy, now=self.tiering.now)
        self.drains = Drains(database, self.cluster, self.repair)
        self.collection = Collection(
            database, self.cluster, self.guard, keep_ms=int(settings.duties.collect_after * 1000)
        )
        self.inventories = Inventories(
            database, self.cluster, queue=self.jobs, book=self.book, guard=self.guard, clock=around.clock,
            over_ms=int(settings.duties.orphan_after * 1000),
        )  # fmt: skip
        self.compared = CatalogComparison(
            database, self.cluster, self.book, over_ms=int(settings.duties.orphan_after * 1000)
        )
        #: Who judges inventory pages; a rebuild takes them itself.
        self.take_inventory: Callable[[Inventory], Awaitable[InventoryAnswer]] = self._judge_inventory
        retention = Retention(
            database, self.cluster, self.book, feed_kept_ms=int(settings.catalog.feed_retention * 1000)
        )
        self.status = Status(
            database, self.cluster, self.jobs, losses=self.repair.losses, drains=self.drains, guard=self.guard,
            scrub=self.scrub, is_paused=self.switches.is_paused, copies=self.copies,
        )  # fmt: skip
        duties: list[Duty] = [
            LivenessDuty(self.cluster, self.heartbeats, self.switches), KeyDuty(self.cluster), QueueDuty(self.jobs),
            RepairDuty(self.repair), AuditDuty(Audit(database, self.cluster, self.book, planner, losses)),
            DrainDuty(self.drains), CollectDuty(self.collection),
            ReconcileDuty(self.inventories, every_seconds=settings.duties.inventory_interval),
            ScrubDuty(self.scrub), RetentionDuty(retention), self.heat,
            TieringDuty(self.tiering, self.walk, self.pins), WalkDuty(self.walk),
            HistoryDuty(self.recorder, self.read_soon), SitesDuty(lambda: self.replication),
            TombstoneDuty(lambda: self.tombstones), FetchedDuty(lambda: self.fetched),
            NotifyDuty(lambda: self.notify),
            LifecycleDuty(lambda: self.lifecycle, interval_seconds=settings.duties.lifecycle_interval),
            QuotasDuty(lambda: self.quotas),
        ]  # fmt: skip
        if settings.catalog.snapshot_interval > 0:
            self.snapshots = Snapshots(
                database, self.cluster, ObjectClient(around.transport, around.clock), self.guard, rng=around.rng,
                directory=self._own_directory, snapshot_seconds=settings.catalog.snapshot_interval,
            )  # fmt: skip
            duties.append(SnapshotDuty(self.snapshots, interval_seconds=settings.catalog.journal_interval))
        runners = [DutyRunner(duty, around.clock, self.lease, self.switches) for duty in duties]
        self.promoter = Promoter(runners, self.lease, around.clock)
        self.jobs.on_done = self.promoter.kick
        metrics.watch_duties(self.promoter)
        metrics.watch_jobs(self.jobs)
        metrics.watch_safety(self.guard, losses)

    def _own_directory(self) -> Path | None:
        """Where this process may keep files of its own; None without one (the catalog is elsewhere)."""
        directory = Path(self.settings.catalog.data)
        return directory if directory.is_dir() else None

    def _heat_file(self) -> Path | None:
        directory = self._own_directory()
        return directory / "heat.bin" if directory is not None else None

    def build_names(self, site_id: int, version_floor: int) -> None:
        """The name service: lookups, allocations, commits, listings, buckets, keys, policy."""
        database, clock, rng = self.database, self.clock, self.around.rng
        self.versions = HybridClock(clock, SiteId(site_id), floor=version_floor)
        self.credentials = Credentials(
            database, clock, daemon=self.cluster.authenticate, random_bytes=self.around.random_bytes
        )
        self.policies = Policies(database, clock, parser.parse, servers=self.view.stores_that_stay)
        self.names = BucketNames(database)
        self.policy_doubts = PolicyDoubts(self.names, self.view)
        order = ReplicaOrder(self.view, rng)
        self.lookups = LookupService(database, self.names, order, clock)
        self.lookups.on_read, self.lookups.on_window = self._note_read, self.tiering.finder.learn_names
        self.allocations = AllocateService(self.view, clock, rng)
        self.commits = CommitService(
            database, self.view, clock, self.versions, rng=rng, copies_for=self.copies.for_object
        )
        self.files = FilesService(
            database, self.commits, FileBodies(self.versions, rng=rng, copies_for=self.copies.for_object),
            names=self.names, order=order, view=self.view, clock=clock, copies=lambda: self.settings.placement.copies,
        )  # fmt: skip
        self.files.answers.on_read = self._note_read
        self.commits.listeners += [self.recorder.committed, self.tiering.committed, self.read_soon.committed]
        self.tiering_view = TieringView(
            database, self.cluster, self.names, self.tiering, self.walk, recorder=self.recorder
        )
        tiering_metrics.watch(self.tiering, self.tiering_view, self.recorder)
        self.whatif = WhatIf(
            self.recorder, policy=lambda: self.policies.current.policy, fleet=self.tiering_view.fleet
        )
        self.listings = ListingService(database, self.names, order, heats_of=self.heats_of)
        self.uploads = UploadService(database, clock, self.view)
        self._build_sites()
        self.buckets = BucketService(
            database, self.names, clock, sites=self.sites.names, me=lambda: self.settings.placement.site
        )
        self.buckets.in_rules = self.backfills.rules_changed
        self.buckets.on_rules = self.sites.refresh
        self.quotas = Quotas(database, self.names, clock)
        self.s3_names = S3Names(database, self.names, clock)
        self.webhooks = Webhooks()
        self.notify = Notify(
            database, {hook.name: hook.url for hook in self.settings.webhooks}, self.webhooks.post, region="us-east-1"
        )
        self.lifecycle = Lifecycle(
            database, self.commits, self.s3_names, clock, rng=rng, day_seconds=self.settings.duties.lifecycle_day
        )
        self.audit = AuditService(database, clock)
        self.indexer = PlacementIndexer(
            database, self.around.clock, interval_seconds=self.settings.duties.placements_interval
        )
        self.cluster.policy = lambda: (self.policies.current.revision, self.policies.current.document)
        self.cluster.auth_revision = lambda: self.credentials.revision
        self.cluster.read_soon = lambda: self.read_soon.buckets

    def _build_sites(self) -> None:
        """What is between this site and others."""
        database, clock = self.database, self.clock
        courier = Courier(self.around.transport)
        keep_ms = int(self.settings.duties.tombstone_keep * 1000)
        remembered_ms = min(keep_ms, int(self.settings.catalog.feed_retention * 1000))
        self.sites = Sites(
            database, self.names, clock, self.credentials, courier, me=self._this_site,
            random_hex=lambda: self.around.random_bytes(4).hex(),
        )  # fmt: skip
        self.backfills = Backfills(database, clock)
        self.comparison = Comparison(
            database, clock, courier, keep_ms=remembered_ms, devices_agree=lambda: self.guard.has_heard_all,
            token="" if database.dialect == "sqlite" else self.around.random_bytes(8).hex(),
        )
        hot = HotBodies(
            database, clock, hottest=self._hottest, find=self.tiering.finder.find, name_of=self.tiering.finder.name_of
        )
        parts = SendParts(
            database, clock, courier, self.sites.known, self._this_site, self.heats_of, epoch=lambda: self.lease.epoch,
            comparison=self.comparison, hot=hot.parts,
            foreground=lambda: self.lookups.lookups + self.commits.items - self.commits.fills,
            is_delivered=self._is_delivered,
            is_under_way=self._is_under_way, lost_devices=self.view.lost_devices,
        )  # fmt: skip
        body = BodyReader(self.lookups, self.view, ObjectClient(self.around.transport, clock))
        ahead = AheadReader(body, self.commits.reads.receipts_of)
        self.replication = Replication(
            parts, self.sites, body, ahead, backfills=self.backfills, hot=hot,
            sync_seconds=self.settings.duties.sync_wait,
        )  # fmt: skip
        vouchers = Vouchers(
            clock, courier, self.sites.known, statuses=self.replication.statuses,
            settle_seconds=self.settings.duties.fetched_settle,
        )  # fmt: skip
        self.tombstones = Tombstones(
            database, clock, keep_ms=keep_ms, confirmed=self.replication.confirmed, seen=vouchers.seen
        )
        self.holdings = Holdings(database, is_sound=self._is_sound)
        self.fetched = FetchedBodies(
            database, clock, heat_of=self.heat_of, share=self.settings.duties.fetched_share,
            capacity=lambda: sum(device.capacity_bytes for device in self.view.devices.values()),
            copies=lambda: self.copies.for_object("", "", 0), vouched=vouchers.vouched,
        )  # fmt: skip
        sites_metrics.watch(self.replication, self.tombstones, self.fetched)
        self.name_taker = NameTaker(database, self.names, clock, self.versions)
        self.commits.on_replicated = self.replication.kick
        self.commits.gate = self.replication
        self.name_taker.numbers = lambda: {row.id: row.name for row in self.sites.known.rows}
        self.name_taker.on_replicated = self.replication.kick

    def _is_sound(self) -> bool:
        """Whether what the catalog names is all here: it is no old one, and each body has a copy on a server that
        lives."""
        dead = sum(server.state == "dead" for server in self.view.servers.values())
        return not self.comparison.refusal() and dead < self.copies.for_object("", "", 0)

    def _is_delivered(self, target: str, bucket_id: int, key: str, version: int) -> bool:
        return self.replication.sync.is_delivered(target, bucket_id, key, version)

    def _is_under_way(self, target: str, bucket_id: int, key: str, version: int) -> bool:
        return self.replication.sync.is_under_way(target, bucket_id, key, version)

    def _hottest(self, count: int) -> list[tuple[bytes, float]]:
        """Chunks with their reads per hour, the hottest first."""
        table, now = self.heat.table, self.clock.now_ms() / 1000
        return [(chunk, table.per_hour(score, now)) for chunk, score in table.hottest(count)]

    def _note_read(self, bucket: str, key: str, size: int, share: float) -> None:
        self.recorder.read(bucket, key, size, share)
        self.read_soon.read(bucket, key, size)

    def _this_site(self) -> Self:
        here = self.cluster.cluster_map(metadata_urls=[]).sites[0]
        return Self(self.view.site, self.view.site_id, here.gateways, self.view.cluster_id)

    def heat_of(self, chunk: bytes) -> float:
        """Reads per hour of a chunk, as far as this process has gathered them."""
        return self.heat.heat_per_hour(chunk)

    def heats_of(self, chunks: Sequence[bytes]) -> list[float]:
        return self.heat.heats_per_hour(chunks)

    async def report_bad(self, bad: Sequence[BadChunk], caller: Principal) -> None:
        """A reader's report is a suspicion: the object server that holds the copy checks it, and is believed (its own
        findings come with its heartbeats). A gateway is a reader too."""
        await self.jobs.report_suspect(bad)

    async def inventory(self, page: Inventory) -> InventoryAnswer:
        return await self.take_inventory(page)

    async def _judge_inventory(self, page: Inventory) -> InventoryAnswer:
        """Pages of headers are asked for by comparisons (a rebuild takes its own)."""
        return await (self.compared.page(page) if page.since_ms > 0 else self.inventories.page(page))
