"""What a metadata process shows of its duties, jobs, commits and members, read from plain numbers at scrape time. Owns
no number itself: the services count.

Counters are of this process since it started; of the single-runner duties only the lease's holder counts on. What must
outlive a restart (an operator's word, the day's count of orphans) is in the catalog, not here.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from metadata.promoter.runner import DutyStatus, Promoter
from metadata.services.cluster import Cluster
from metadata.services.collect import DeletionGuard
from metadata.services.commit import CommitService
from metadata.services.jobs import JobQueue, Tally
from metadata.services.repair import Repair
from tierstore.telemetry.metrics import watched

Values = Mapping[tuple[str, ...], float]

#: name, kind, description, what of a duty's status.
_DUTIES: Final[tuple[tuple[str, str, Callable[[DutyStatus], float]], ...]] = (
    ("tierstore_duty_steps_total", "steps of background duties that succeeded", lambda s: s.steps),
    ("tierstore_duty_failures_total", "steps of background duties that failed", lambda s: s.failures),
    ("tierstore_duty_items_total", "what duties' steps have done, in each duty's own unit", lambda s: s.done),
)
_JOBS: Final[tuple[tuple[str, str, Callable[[Tally], float]], ...]] = (
    ("tierstore_queue_jobs_done_total", "background jobs that succeeded", lambda t: t.done),
    ("tierstore_queue_jobs_failed_total", "attempts of background jobs that failed", lambda t: t.failed),
    ("tierstore_job_bytes_total", "bytes moved by background jobs that succeeded", lambda t: t.bytes_moved),
)


def watch_duties(promoter: Promoter) -> None:
    """Steps, failures, work and the last step's time of each duty; whether this process holds the lease."""
    known = weakref.ref(promoter)

    def of_each(read: Callable[[DutyStatus], float]) -> Callable[[], Values]:
        return lambda: {(s.name,): float(read(s)) for s in found.statuses()} if (found := known()) else {}

    for name, about, read in _DUTIES:
        watched(name, "counter", about, promoter, of_each(read), labels=("kind",))
    watched(
        "tierstore_duty_step_seconds", "gauge", "how long the last step of a duty took", promoter,
        of_each(lambda s: s.last_step_seconds), labels=("kind",),
    )  # fmt: skip
    watched(
        "tierstore_duties_running", "gauge", "duties that are neither paused nor waiting for the lease", promoter,
        lambda: sum(not (s.is_paused or s.is_waiting_for_lease) for s in found.statuses()) if (found := known()) else 0,
    )  # fmt: skip


def watch_jobs(queue: JobQueue) -> None:
    """What background jobs came to, by reason."""
    known = weakref.ref(queue)

    def of_each(read: Callable[[Tally], float]) -> Callable[[], Values]:
        return lambda: {(w,): float(read(t)) for w, t in found.tallies.items()} if (found := known()) else {}

    for name, about, read in _JOBS:
        watched(name, "counter", about, queue, of_each(read), labels=("reason",))


def watch_catalog(commits: CommitService, cluster: Cluster) -> None:
    """How names change, and how far the feed is."""
    service, members = weakref.ref(commits), weakref.ref(cluster)
    watched(
        "tierstore_commit_items_total", "counter", "changes of names that were judged", commits,
        lambda: found.items if (found := service()) else 0,
    )  # fmt: skip
    watched(
        "tierstore_commit_batches_total", "counter", "transactions that changes of names shared", commits,
        lambda: found.batches if (found := service()) else 0,
    )  # fmt: skip
    watched(
        "tierstore_catalog_sequence_changes", "gauge", "the newest sequence of the feed that this process knows",
        cluster, lambda: found.sequence if (found := members()) else 0,
    )  # fmt: skip

    def by_state() -> Values:
        found = members()
        servers = found.view.servers.values() if found is not None else ()
        counts = Counter((server.role, server.state) for server in servers)
        return {labels: float(count) for labels, count in counts.items()}

    watched(
        "tierstore_known_servers", "gauge", "servers of the site by role and state", cluster, by_state,
        labels=("role", "state"),
    )  # fmt: skip


def watch_safety(guard: DeletionGuard, repair: Repair) -> None:
    """The two brakes that wait for a person."""
    brake, halted = weakref.ref(guard), weakref.ref(repair)
    watched(
        "tierstore_deletions_barred", "gauge", "1 while nothing may be deleted: the catalog is older than the devices",
        guard, lambda: float(bool(found.barred)) if (found := brake()) else 0,
    )  # fmt: skip
    watched(
        "tierstore_orphans_waiting", "gauge", "orphans beyond the day's bound, waiting for an operator's word", guard,
        lambda: sum(found.asking.values()) if (found := brake()) else 0,
    )  # fmt: skip
    watched(
        "tierstore_repair_halted", "gauge", "1 while repair waits because many servers vanished at once", repair,
        lambda: float(found.status.is_halted) if (found := halted()) else 0,
    )  # fmt: skip
