"""What a metadata process shows of its duties, jobs, commits and members, read from plain numbers at scrape time. Owns
no number itself: the services count.

Counters are of this process since it started; of the single-runner duties only the lease's holder counts on. What must
outlive a restart (an operator's word, the day's count of orphans) is in the catalog, not here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from metadata.promoter.runner import DutyStatus, Promoter
from metadata.services.cluster.membership import Cluster
from metadata.services.jobs.queue import JobQueue
from metadata.services.jobs.rates import Tally
from metadata.services.names.commit import CommitService
from metadata.services.upkeep.collect import DeletionGuard
from metadata.services.upkeep.repair_losses import Losses
from tierstore.telemetry.metrics import Value, Watch


def _of_duties(read: Callable[[DutyStatus], float]) -> Callable[[Promoter], Value]:
    return lambda promoter: {(s.name,): float(read(s)) for s in promoter.statuses()}


def _of_jobs(read: Callable[[Tally], float]) -> Callable[[JobQueue], Value]:
    return lambda queue: {(why,): float(read(tally)) for why, tally in queue.tallies.items()}


def _servers_by_state(cluster: Cluster) -> Value:
    counts = Counter((server.role, server.state) for server in cluster.view.servers.values())
    return {labels: float(count) for labels, count in counts.items()}


#: Steps, failures, work and the last step's time of each duty; whether this process holds the lease.
_PROMOTER: Final = Watch[Promoter]()
_PROMOTER.counter(
    "tierstore_duty_steps_total", "steps of background duties that succeeded", _of_duties(lambda s: s.steps),
    labels=("kind",),
)  # fmt: skip
_PROMOTER.counter(
    "tierstore_duty_failures_total", "steps of background duties that failed", _of_duties(lambda s: s.failures),
    labels=("kind",),
)  # fmt: skip
_PROMOTER.counter(
    "tierstore_duty_items_total", "what duties' steps have done, in each duty's own unit",
    _of_duties(lambda s: s.done), labels=("kind",),
)  # fmt: skip
_PROMOTER.gauge(
    "tierstore_duty_step_seconds", "how long the last step of a duty took", _of_duties(lambda s: s.last_step_seconds),
    labels=("kind",),
)  # fmt: skip
_PROMOTER.gauge(
    "tierstore_duties_running", "duties that are neither paused nor waiting for the lease",
    lambda promoter: sum(not (s.is_paused or s.is_waiting_for_lease) for s in promoter.statuses()),
)  # fmt: skip

#: What background jobs came to, by reason.
_QUEUE: Final = Watch[JobQueue]()
_QUEUE.counter(
    "tierstore_queue_jobs_done_total", "background jobs that succeeded", _of_jobs(lambda t: t.done), labels=("reason",)
)
_QUEUE.counter(
    "tierstore_queue_jobs_failed_total", "attempts of background jobs that failed", _of_jobs(lambda t: t.failed),
    labels=("reason",),
)  # fmt: skip
_QUEUE.counter(
    "tierstore_job_bytes_total", "bytes moved by background jobs that succeeded", _of_jobs(lambda t: t.bytes_moved),
    labels=("reason",),
)  # fmt: skip

#: How names change, and how far the feed is.
_COMMITS: Final = Watch[CommitService]()
_COMMITS.counter("tierstore_commit_items_total", "changes of names that were judged", lambda c: c.items)
_COMMITS.counter("tierstore_commit_batches_total", "transactions that changes of names shared", lambda c: c.batches)
_CLUSTER: Final = Watch[Cluster]()
_CLUSTER.gauge(
    "tierstore_catalog_sequence_changes", "the newest sequence of the feed that this process knows",
    lambda cluster: cluster.sequence,
)  # fmt: skip
_CLUSTER.gauge(
    "tierstore_known_servers", "servers of the site by role and state", _servers_by_state, labels=("role", "state")
)

#: The two brakes that wait for a person.
_GUARD: Final = Watch[DeletionGuard]()
_GUARD.gauge(
    "tierstore_deletions_barred", "1 while nothing may be deleted: the catalog is older than the devices",
    lambda guard: float(bool(guard.barred)),
)  # fmt: skip
_GUARD.gauge(
    "tierstore_orphans_waiting", "orphans beyond the day's bound, waiting for an operator's word",
    lambda guard: sum(guard.asking.values()),
)  # fmt: skip
_LOSSES: Final = Watch[Losses]()
_LOSSES.gauge(
    "tierstore_repair_halted", "1 while repair waits because many servers vanished at once",
    lambda losses: float(losses.status.is_halted),
)  # fmt: skip


def watch_duties(promoter: Promoter) -> None:
    """Show the duties of this process."""
    _PROMOTER.show(promoter)


def watch_jobs(queue: JobQueue) -> None:
    """Show what jobs came to here."""
    _QUEUE.show(queue)


def watch_catalog(commits: CommitService, cluster: Cluster) -> None:
    """Show the commits of this process and what it knows of the cluster."""
    _COMMITS.show(commits)
    _CLUSTER.show(cluster)


def watch_safety(guard: DeletionGuard, losses: Losses) -> None:
    """Show the brakes."""
    _GUARD.show(guard)
    _LOSSES.show(losses)
