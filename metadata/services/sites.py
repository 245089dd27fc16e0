"""Membership of sites: who else there is, under which keys, paused or not; rules' backfill; and the courier that
carries messages to another site's gateways.

Keys are exchanged once: the operator shows an administrator's token of the other site, with which the two make a key
for each other (user "site:<name>", readwrite); it is not kept. Either side replaces both keys (`rotate`) or ends them
(`remove`). What was agreed is in the catalog (catalog/sites), so every metadata process can speak to every site.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from metadata.catalog import buckets, sites
from metadata.catalog.database import Database
from metadata.catalog.queries import Connection
from metadata.catalog.session import Session
from metadata.catalog.sites import SiteRow
from metadata.services.bucket_names import BucketNames
from metadata.services.credentials import Credentials
from metadata.services.sites_apply import rules_of
from tierstore.auth.access import Principal
from tierstore.clock import Clock
from tierstore.errors import ConfigError, ConflictError, NotFound, RequestError, TierstoreError, UnavailableError
from tierstore.transport.metadata_client import error_of
from tierstore.transport.peer import PeerReply, PeerTransport
from tierstore.units import parse_rate
from tierstore.wire import MEDIA_TYPE, decode, encode
from tierstore.wire.sites import SITE_USER, NewKey, Peer, Peers

T = TypeVar("T")

SECONDS_PER_CALL: Final = 10.0
SITES_MAX: Final = 32
BACKFILL_PAGE: Final = 500
#: A backfill waits while the queue of its target is longer.
BACKFILL_QUEUE_MAX: Final = 20_000


@dataclass(frozen=True, slots=True)
class Self:
    """This site as others see it."""

    name: str
    number: int
    gateways: list[str]
    cluster_id: str = ""


@dataclass(slots=True)
class Known:
    """The other sites as last read; latency as last measured here."""

    rows: list[SiteRow] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    latency_ms: dict[str, float] = field(default_factory=dict)

    def get(self, name: str) -> SiteRow:
        for row in self.rows:
            if row.name == name:
                return row
        names = ", ".join(row.name for row in self.rows) or "there is no other site"
        raise NotFound(f"there is no site {name!r} ({names})", code="no-such-site")


class Courier:
    """Messages to the gateways of a site, tried in turn."""

    def __init__(self, transport: PeerTransport) -> None:
        self._transport = transport

    async def send(self, row: SiteRow, path: str, message: object, kind: type[T], *, seconds: float) -> T:
        """Raises what the site answered, UnavailableError when none of its gateways does."""
        headers = [
            (b"authorization", b"Bearer " + str(row.link.get("token", "")).encode("latin-1")),
            (b"content-type", MEDIA_TYPE.encode()),
        ]
        reply = await self._first(row.gateways, b"POST", path.encode(), headers, encode(message), seconds)
        return decode(reply.body, kind)

    async def send_json(self, url: str, path: str, token: str, message: dict[str, Any]) -> dict[str, Any]:
        """A call to an administration route, under an administrator's token."""
        headers = [
            (b"authorization", b"Bearer " + token.encode("latin-1")), (b"content-type", b"application/json"),
        ]
        body = json.dumps(message).encode()
        reply = await self._first([url.rstrip("/")], b"POST", path.encode(), headers, body, SECONDS_PER_CALL)
        answer: dict[str, Any] = json.loads(reply.body)
        return answer

    async def _first(  # noqa: PLR0917 - the parts of one request
        self, urls: Sequence[str], method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes,
        seconds: float,
    ) -> PeerReply:  # fmt: skip
        failure: TierstoreError = UnavailableError("no gateway of that site is known", code="unreachable")
        for url in urls:
            try:
                reply = await self._transport.call(
                    url, method, target, headers=headers, body=body, seconds=seconds
                )
            except UnavailableError as error:
                failure = error
                continue
            if reply.status < 400:
                return reply
            failure = error_of(reply)
            if reply.status < 500:
                break
        raise failure


class Sites:
    """One per process."""

    def __init__(
        self, database: Database, names: BucketNames, clock: Clock, credentials: Credentials, courier: Courier, *,
        me: Callable[[], Self], random_hex: Callable[[], str],
    ) -> None:  # fmt: skip
        self._database = database
        self._names = names
        self._clock = clock
        self._credentials = credentials
        self.courier = courier
        self.me = me
        self._random_hex = random_hex
        self.known = Known()
        #: Buckets with a sync rule: commits to them wait for other sites.
        self.sync_buckets: frozenset[str] = frozenset()

    # -- what is known --------------------------------------------------------------------------------------
    async def refresh(self) -> None:
        """Read what operators, and other processes, changed."""

        def work(c: Connection) -> tuple[list[SiteRow], list[str], list[buckets.Bucket]]:
            return sites.others(c), sites.local_networks(c), buckets.everything(c)

        rows, networks, every = await self._database.read(work)
        self.known.rows, self.known.networks = rows, networks
        self.sync_buckets = frozenset(
            bucket.name for bucket in every if any(rule["mode"] == "sync" for rule in rules_of(bucket))
        )

    def names(self) -> list[str]:
        return [row.name for row in self.known.rows]

    def peers(self) -> Peers:
        """For this site's gateways."""
        return Peers(
            self.me().name,
            [
                Peer(
                    row.name, row.id, row.gateways, row.link.get("token", ""), row.networks,
                    self.known.latency_ms.get(row.name, 0.0),
                )
                for row in self.known.rows
            ],
            self.known.networks,
        )  # fmt: skip

    def caller(self, who: Principal) -> str:
        """The name of the site that calls. Raises NotFound when it was removed here."""
        return self.known.get(who.user.removeprefix(SITE_USER)).name

    # -- membership -----------------------------------------------------------------------------------------
    async def add(self, name: str, gateway: str, token: str, *, own_gateways: list[str], who: Principal) -> SiteRow:
        """Make each other known. token: an administrator's of the other site; it is used once.

        Raises ConflictError (known already, or with a number that is taken), and what the other site answers."""
        me = self.me()
        if any(row.name == name for row in self.known.rows):
            raise ConflictError(f"site {name!r} is known already", code="site-exists")
        if len(self.known.rows) >= SITES_MAX or name == me.name:
            raise RequestError(f"{name!r} is this site, or there are {SITES_MAX} already", code="bad-site")
        access, ours = await self._new_key(name, who)
        try:
            answer = await self.courier.send_json(
                gateway, "/v1/admin/sites/join", token,
                {"name": me.name, "number": me.number, "gateways": own_gateways or me.gateways, "token": ours},
            )
            if answer["name"] != name:
                raise ConflictError(f"the site at {gateway} is called {answer['name']!r}", code="bad-site")
            row = SiteRow(
                int(answer["number"]), name, _unique([gateway.rstrip("/"), *answer["gateways"]]), [],
                {"token": answer["token"], "access": access},
            )
            await self._database.write(lambda c: sites.put(c, row))
        except (TierstoreError, KeyError, ValueError):
            await self._credentials.revoke(access, who=who.access)
            raise
        await self.refresh()
        return row

    async def join(self, name: str, number: int, gateways: list[str], token: str, *, who: Principal) -> dict[str, Any]:
        """The other half of `add`, asked by another site's metadata with an administrator's token of this one."""
        me = self.me()
        if number == me.number:
            raise ConflictError(
                f"both sites have the number {number}: give each its own placement.site_number",
                code="site-number-taken",
            )
        if any(row.name == name for row in self.known.rows):
            raise ConflictError(f"site {name!r} is known already", code="site-exists")
        if not gateways or not all(url.startswith(("http://", "https://")) for url in gateways):
            raise RequestError("gateways are URLs of gateways that this site can reach", code="bad-site")
        access, ours = await self._new_key(name, who)
        row = SiteRow(number, name, gateways, [], {"token": token, "access": access})
        await self._database.write(lambda c: sites.put(c, row))
        await self.refresh()
        return {"name": me.name, "number": me.number, "gateways": me.gateways, "token": ours}

    async def _new_key(self, name: str, who: Principal) -> tuple[str, str]:
        account, token = await self._credentials.create(
            user=SITE_USER + name, grants={"*": "readwrite"}, who=who.access,
            access=f"site-{name[:40]}-{self._random_hex()}",
        )
        return account.access, token

    async def remove(self, name: str, *, drop_queue: bool, who: Principal) -> int:
        """Forget a site and end its key; how many queued changes went with it.

        Raises ConflictError(code="queue-not-empty") while it lacks something and nobody said to drop that."""
        row = self.known.get(name)

        def work(c: Connection) -> int:
            if not drop_queue and sites.backlog(c, name).objects:
                raise ConflictError(
                    f"site {name!r} has not got everything; wait, or say that its queue is to be dropped",
                    code="queue-not-empty",
                )
            for bucket in buckets.everything(c):
                rules = rules_of(bucket)
                kept = [rule for rule in rules if rule["target"] != name]
                if len(kept) < len(rules):
                    text = json.dumps({"rules": kept}) if kept else None
                    buckets.configure(
                        c, bucket.name, at_ms=self._clock.now_ms(), documents={"replication": text}
                    )
            return sites.remove(c, name)

        gone = await self._database.write(work)
        self._names.forget()
        for access in (row.link.get("access"), row.link.get("old_access")):
            await self._end_key(access, who)
        await self.refresh()
        return gone

    async def change(self, name: str, changes: dict[str, Any]) -> SiteRow:
        """paused, rate (text, "" for none), schedule (list of {"from","to","rate"}, UTC), gateways, networks.

        Raises NotFound, RequestError."""
        me = self.me()
        checked = _checked(changes)
        networks = checked.pop("networks", None)
        if name == me.name:
            if checked or networks is None:
                raise RequestError("of this site only the networks can be set here", code="bad-site")
            await self._database.write(lambda c: sites.set_networks(c, name, networks))
            await self.refresh()
            return SiteRow(me.number, me.name, me.gateways, networks, {})
        row = self.known.get(name)
        gateways = checked.pop("gateways", row.gateways)
        link = {**row.link, **checked}
        new = row._replace(gateways=gateways, link=link, networks=row.networks if networks is None else networks)
        await self._database.write(lambda c: sites.put(c, new))
        await self.refresh()
        return new

    async def rotate(self, name: str, who: Principal) -> None:
        """New keys in both directions; the old ones end. Raises UnavailableError when the site does not answer: then
        both old keys still hold."""
        row = self.known.get(name)
        access, ours = await self._new_key(name, who)
        try:
            answer = await self.courier.send(row, "/v1/sites/rotate", NewKey(ours), NewKey, seconds=SECONDS_PER_CALL)
        except TierstoreError:
            await self._credentials.revoke(access, who=who.access)
            raise
        now = await self._fresh(name)
        link = {key: value for key, value in now.link.items() if key != "old_access"}
        link |= {"token": answer.token, "access": access}
        await self._database.write(lambda c: sites.set_link(c, name, link))
        for old in {row.link.get("access"), now.link.get("access"), now.link.get("old_access")} - {access}:
            await self._end_key(old, who)
        await self.refresh()

    async def _fresh(self, name: str) -> SiteRow:
        """The site as the catalog has it now, after a wait in which another request may have changed it."""
        await self.refresh()
        return self.known.get(name)

    async def _end_key(self, access: object, who: Principal) -> None:
        """Revoke a key that may be gone already."""
        if access:
            with contextlib.suppress(NotFound):
                await self._credentials.revoke(str(access), who=who.access)

    async def rotated(self, name: str, token: str, who: Principal) -> NewKey:
        """The other half: the caller's new token for it is ours now; it gets a new one for here. Its old one holds
        until it shows the new one, at the latest for a day."""
        access, ours = await self._new_key(name, who)
        row = await self._fresh(name)
        await self._end_key(row.link.get("old_access"), who)
        old = str(row.link["access"])
        link = {**row.link, "token": token, "access": access, "old_access": old}
        await self._database.write(lambda c: sites.set_link(c, name, link))
        await self.refresh()
        return NewKey(ours)

    async def seen(self, name: str, who: Principal) -> None:
        """A site has shown its key: one that this replaced is ended."""
        row = self.known.get(name)
        old = row.link.get("old_access")
        if old and who.access == row.link.get("access"):
            await self._end_key(old, who)
            now = await self._fresh(name)
            link = {key: value for key, value in now.link.items() if key != "old_access" or value != old}
            await self._database.write(lambda c: sites.set_link(c, name, link))
            await self.refresh()

    # -- backfill -------------------------------------------------------------------------------------------
    async def backfill(self, target: str, bucket: str = "", prefix: str = "") -> None:
        """Queue what exists for a site: one bucket's prefix, or everything that a rule sends there."""
        self.known.get(target)

        def work(c: Connection) -> None:
            found = [buckets.get(c, bucket)] if bucket else buckets.everything(c)
            state = sites.backfill_state(c, target)
            parts = list(state.get("parts", []))
            for each in found:
                prefixes = [prefix] if bucket else [r["prefix"] for r in rules_of(each) if r["target"] == target]
                parts += [{"bucket": each.id, "prefix": p, "after": ""} for p in prefixes]
            sites.set_backfill(c, target, {**state, "parts": parts, "queued": state.get("queued", 0)})

        await self._database.write(work)

    async def backfill_left(self, target: str) -> dict[str, Any]:
        """parts: what is still to be walked; queued: objects queued so far."""
        return await self._database.read(lambda c: sites.backfill_state(c, target))

    async def rules_changed(self, bucket: str, new: list[tuple[str, str]]) -> None:
        """Rules of a bucket were replaced: queue what exists for those that are new."""
        await self.refresh()
        for target, prefix in new:
            await self.backfill(target, bucket, prefix)

    async def backfill_step(self, target: str) -> bool:
        """Queue one page; whether there is more to do now."""
        now_ms = self._clock.now_ms()

        def work(session: Session) -> bool:
            c = session.connection
            state = sites.backfill_state(c, target)
            parts = state.get("parts", [])
            if not parts or sites.backlog(c, target).objects > BACKFILL_QUEUE_MAX:
                return False
            part = parts[0]
            count, last = sites.queue_page(
                session, target, int(part["bucket"]), prefix=part["prefix"], after=part["after"],
                limit=BACKFILL_PAGE, at_ms=now_ms,
            )  # fmt: skip
            parts = [{**part, "after": last}, *parts[1:]] if last else parts[1:]
            sites.set_backfill(c, target, {**state, "parts": parts, "queued": state.get("queued", 0) + count})
            return bool(parts)

        return await self._database.batch(work)


def _unique(urls: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(url.rstrip("/") for url in urls))


def _checked(changes: dict[str, Any]) -> dict[str, Any]:
    """Raises RequestError that names the member."""
    out: dict[str, Any] = {}
    for name, value in changes.items():
        if value is None:
            continue
        if name == "networks":
            try:
                out[name] = [str(ipaddress.ip_network(text, strict=False)) for text in value]
            except ValueError as error:
                raise RequestError(f"networks: {error}", code="bad-site") from None
        elif name == "rate":
            out[name] = value
            rate_of(value)
        elif name == "schedule":
            out[name] = [{"from": _minute(s["from"]), "to": _minute(s["to"]), "rate": s["rate"]} for s in value]
            for span in value:
                rate_of(span["rate"])
        else:
            out[name] = value
    return out


def rate_of(text: str) -> int:
    """Bytes per second of "25MiB/s"; 0 of "": no limit. Raises RequestError."""
    if not text:
        return 0
    try:
        return parse_rate(text)
    except (ConfigError, ValueError) as error:
        raise RequestError(f"rate: {error}", code="bad-site") from None


def _minute(text: str) -> str:
    hours, _, minutes = text.partition(":")
    if not (hours.isdigit() and minutes.isdigit() and int(hours) < 24 and int(minutes) < 60):
        raise RequestError(f"schedule: {text!r} is not like 22:00", code="bad-site")
    return f"{int(hours):02}:{int(minutes):02}"


def bandwidth(link: dict[str, Any], now_ms: int) -> int:
    """Bytes per second to a site at this time of the day (UTC); 0: no limit."""
    minutes = now_ms // 60_000 % 1440
    at = f"{minutes // 60:02}:{minutes % 60:02}"
    for span in link.get("schedule") or ():
        start, stop = span["from"], span["to"]
        if (start <= at < stop) if start <= stop else (at >= start or at < stop):
            return rate_of(span["rate"])
    return rate_of(link.get("rate") or "")
