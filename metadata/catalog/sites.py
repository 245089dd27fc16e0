"""Other sites: their rows and links, and the queue of what each of them must hear of.

A link (setting `site-link.<name>`, JSON) holds what a row of `sites` has no column for: our token for that site, the
access key it uses here, whether it is paused, its bandwidth. A queue row is written in the transaction of the write
(catalog/feed). `site-names.<target>` is the sequence up to which names were sent: a row beyond it needs its name
sent, one up to it only its body.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from metadata.catalog import leases, objects, schema
from metadata.catalog.among import among
from metadata.catalog.buckets import COLUMNS, Bucket
from metadata.catalog.objects import ObjectRow
from tierstore.errors import ConflictError, NotFound

_LINK: Final = "site-link."
_NAMES: Final = "site-names."
_BACKFILL: Final = "site-backfill."
_HEARD: Final = "site-heard."
_EPOCH: Final = "site-epoch"
_COMPARE: Final = "site-compare"
_AWAY: Final = "sites-away"
_q = schema.replication_queue.c
_s = schema.sites.c


class SiteRow(NamedTuple):
    """Another site. id: its number in version ids."""

    id: int
    name: str
    gateways: list[str]
    networks: list[str]
    link: dict[str, Any]


class QueueRow(NamedTuple):
    sequence: int
    at_ms: int
    bucket_id: int
    key: str
    version: int
    kind: int
    size: int


# -- membership ---------------------------------------------------------------------------------------------------
def others(connection: sa.Connection) -> list[SiteRow]:
    """All other sites by name."""
    links = leases.settings_like(connection, _LINK)
    rows = connection.execute(
        sa.select(_s.id, _s.name, _s.gateways, _s.networks).where(_s.is_local.is_(False)).order_by(_s.name)
    )
    return [
        SiteRow(int(i), str(n), json.loads(g), json.loads(w), json.loads(links.get(_LINK + n, "{}") or "{}"))
        for i, n, g, w in rows
    ]


def local_networks(connection: sa.Connection) -> list[str]:
    text = connection.execute(sa.select(_s.networks).where(_s.is_local.is_(True))).scalar()
    found: list[str] = json.loads(text or "[]")
    return found


def number_of(connection: sa.Connection, name: str) -> int:
    """0 for a site that is not known."""
    return int(connection.execute(sa.select(_s.id).where(_s.name == name)).scalar() or 0)


def put(connection: sa.Connection, row: SiteRow) -> None:
    """Add a site or replace what is known of it. Raises ConflictError when another one has its number."""
    same = connection.execute(sa.select(_s.name).where(_s.id == row.id)).scalar()
    if same is not None and same != row.name:
        raise ConflictError(
            f"site {same!r} has the number {row.id} too: give each site its own placement.site_number",
            code="site-number-taken",
        )
    values: dict[str, Any] = {"gateways": json.dumps(row.gateways), "networks": json.dumps(row.networks)}
    done = connection.execute(
        sa.update(schema.sites).where(_s.name == row.name, _s.is_local.is_(False)).values(**values)
    )
    if not done.rowcount:
        connection.execute(sa.insert(schema.sites).values(id=row.id, name=row.name, is_local=False, **values))
    set_link(connection, row.name, row.link)


def set_link(connection: sa.Connection, name: str, link: dict[str, Any]) -> None:
    leases.set_setting(connection, _LINK + name, json.dumps(link, sort_keys=True))


def set_networks(connection: sa.Connection, name: str, networks: list[str]) -> None:
    """Of any site, this one too. Raises NotFound."""
    done = connection.execute(
        sa.update(schema.sites).where(_s.name == name).values(networks=json.dumps(networks))
    )
    if not done.rowcount:
        raise NotFound(f"there is no site {name!r}", code="no-such-site")


def remove(connection: sa.Connection, name: str) -> int:
    """Forget a site, its link and its queue; how many queue rows went."""
    gone = connection.execute(sa.delete(schema.replication_queue).where(_q.target == name)).rowcount
    connection.execute(sa.delete(schema.sites).where(_s.name == name, _s.is_local.is_(False)))
    s = schema.settings.c
    for prefix in (_LINK, _NAMES, _BACKFILL, _HEARD):
        connection.execute(sa.delete(schema.settings).where(s.name == prefix + name))
    return int(gone)


def forget_progress(connection: sa.Connection, name: str) -> None:
    """A site begins anew, with nothing: what was sent to it and heard of it counts no more. Its rules stay."""
    connection.execute(sa.delete(schema.replication_queue).where(_q.target == name))
    s = schema.settings.c
    for prefix in (_NAMES, _BACKFILL, _HEARD):
        connection.execute(sa.delete(schema.settings).where(s.name == prefix + name))


def away(connection: sa.Connection) -> frozenset[str]:
    """The sites that do not answer, as the process that speaks to them last said."""
    return frozenset(name for name in leases.setting(connection, _AWAY).split(",") if name)


def set_away(connection: sa.Connection, names: Iterable[str]) -> None:
    leases.set_setting(connection, _AWAY, ",".join(sorted(names)))


# -- what sites know of each other's catalogs ----------------------------------------------------------------
class Heard(NamedTuple):
    """The newest that a site said of itself: its epoch and the sequence of its catalog; when (by our clock) it had sent
    us everything; a checksum of its change at that sequence; each is 0 when it never said so."""

    epoch: int = 0
    sequence: int = 0
    confirmed_at_ms: int = 0
    mark: int = 0


def heard(connection: sa.Connection, name: str) -> Heard:
    return Heard(*json.loads(leases.setting(connection, _HEARD + name, "[]") or "[]"))


def set_heard(connection: sa.Connection, name: str, value: Heard) -> None:
    leases.set_setting(connection, _HEARD + name, json.dumps(value))


def epoch(connection: sa.Connection) -> int:
    """Of this site's catalog: one more whenever it went back in time."""
    return int(leases.setting(connection, _EPOCH, "1"))


def comparing(connection: sa.Connection) -> list[str]:
    """The sites with which this one has to be compared before it takes writes again."""
    names: list[str] = json.loads(leases.setting(connection, _COMPARE, "[]") or "[]")
    return names


def set_comparing(connection: sa.Connection, names: list[str], *, new_epoch: int = 0) -> None:
    leases.set_setting(connection, _COMPARE, json.dumps(names))
    if new_epoch:
        leases.set_setting(connection, _EPOCH, str(new_epoch))


# -- the queue ----------------------------------------------------------------------------------------------------
def names_through(connection: sa.Connection, target: str) -> int:
    return int(leases.setting(connection, _NAMES + target, "0"))


def _rows(connection: sa.Connection, query: Any) -> list[QueueRow]:
    return [QueueRow(*row) for row in connection.execute(query)]


_COLUMNS: Final = (_q.sequence, _q.at_ms, _q.bucket_id, _q.key, _q.version, _q.kind, _q.size)


def waiting_names(connection: sa.Connection, target: str, limit: int, *, after: int = 0) -> list[QueueRow]:
    """Rows whose names were not sent yet, in order, behind a sequence."""
    after = max(after, names_through(connection, target))
    return _rows(
        connection,
        sa.select(*_COLUMNS).where(_q.target == target, _q.sequence > after).order_by(_q.sequence).limit(limit),
    )


def waiting_bodies(connection: sa.Connection, target: str, after: int, limit: int) -> list[QueueRow]:
    """Rows whose names were sent, in order, behind a sequence."""
    through = names_through(connection, target)
    return _rows(
        connection,
        sa.select(*_COLUMNS)
        .where(_q.target == target, _q.sequence > after, _q.sequence <= through)
        .order_by(_q.sequence)
        .limit(limit),
    )


def set_names_through(connection: sa.Connection, target: str, through: int) -> None:
    """The names up to a sequence are at the target."""
    leases.set_setting(connection, _NAMES + target, str(through))


def is_queue_longer(connection: sa.Connection, target: str, than: int) -> bool:
    """Whether more rows than that wait for a target; reads no more of them."""
    query = sa.select(_q.sequence).where(_q.target == target).order_by(_q.sequence).limit(1).offset(than)
    return connection.execute(query).first() is not None


def newest_queued(connection: sa.Connection, target: str) -> int:
    """The largest sequence that waits for a target; 0 without one."""
    found = connection.execute(sa.select(sa.func.max(_q.sequence)).where(_q.target == target)).scalar()
    return int(found or 0)


def names_before(connection: sa.Connection, target: str, through: int) -> int:
    """Rows up to a sequence whose names were not sent yet."""
    after = names_through(connection, target)
    query = sa.select(sa.func.count()).where(_q.target == target, _q.sequence > after, _q.sequence <= through)
    return int(connection.execute(query).scalar_one())


#: Fewer names than this are looked up one by one, by a prepared statement.
_ONE_BY_ONE: Final = 4
_KEYS_PER_READ: Final = 256


def versions_of(
    connection: sa.Connection, names: Iterable[tuple[int, str, int]]
) -> dict[tuple[int, str, int], ObjectRow]:
    """Those of the named versions that still are there."""
    wanted = sorted(set(names))
    latest = _latest_of(connection, wanted)
    found = {}
    for bucket_id, key, version in wanted:
        row = latest.get((bucket_id, key))
        if row is None or row.version != version:       # few: replaced since, or gone
            row = objects.version(connection, bucket_id, key, version)
        if row is not None:
            found[bucket_id, key, version] = row
    return found


def _latest_of(
    connection: sa.Connection, names: Sequence[tuple[int, str, int]]
) -> dict[tuple[int, str], ObjectRow]:
    """The latest versions of these keys, of all keys of a bucket at once. names: sorted."""
    if len(names) < _ONE_BY_ONE:
        rows = [objects.latest(connection, bucket_id, key) for bucket_id, key, _ in names]
        return {(row.bucket_id, row.key): row for row in rows if row is not None}
    t = schema.objects.c
    found: dict[tuple[int, str], ObjectRow] = {}
    for bucket_id, some in groupby(names, key=itemgetter(0)):
        keys = [key for _, key, _ in some]
        for at in range(0, len(keys), _KEYS_PER_READ):
            query = sa.select(*(t[name] for name in objects.COLUMNS)).where(
                t.bucket_id == bucket_id, among(t.key, keys[at : at + _KEYS_PER_READ])
            )
            found.update(((bucket_id, row.key), ObjectRow._make(row)) for row in connection.execute(query))
    return found


# -- backfill -----------------------------------------------------------------------------------------------------
def backfill_state(connection: sa.Connection, target: str) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(leases.setting(connection, _BACKFILL + target, "{}") or "{}")
    return state


def lock_backfill(connection: sa.Connection, target: str, *, make: bool = False) -> dict[str, Any]:
    """The same with its row locked to the end of the transaction; make: the row is made when there is none."""
    if make:
        leases.insert_new(connection, schema.settings, [{"name": _BACKFILL + target, "value": "{}"}])
    state: dict[str, Any] = json.loads(leases.lock_setting(connection, _BACKFILL + target) or "{}")
    return state


def is_compared(connection: sa.Connection, target: str) -> bool:
    """Whether a site that was restored has asked for all names, and has not got them yet."""
    state = backfill_state(connection, target)
    if "compare" not in state or state.get("through") == -1:
        return False
    through = state.get("through")
    return bool(state.get("parts")) or not through or names_before(connection, target, through) > 0


def set_backfill(connection: sa.Connection, target: str, state: dict[str, Any]) -> None:
    leases.set_setting(connection, _BACKFILL + target, json.dumps(state))


def buckets_of(connection: sa.Connection, ids: Iterable[int], *, hold: bool = False) -> dict[int, Bucket]:
    """Buckets by id; those that are gone are left out. hold: they stay as they are to the end of the transaction."""
    t, wanted = schema.buckets.c, sorted(set(ids))
    found: dict[int, Bucket] = {}
    for at in range(0, len(wanted), 500):
        query = sa.select(*(t[name] for name in COLUMNS)).where(among(t.id, wanted[at : at + 500]))
        if hold:
            query = query.with_for_update(read=True)
        found.update((int(row[0]), Bucket.of(tuple(row))) for row in connection.execute(query))
    return found
