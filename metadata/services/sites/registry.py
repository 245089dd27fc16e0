"""Membership of sites: who else there is, under which keys, paused or not, and what the buckets' rules make of it.

Keys are exchanged once: the operator shows an administrator's token of the other site, with which the two make a key
for each other (user "site:<name>", readwrite); it is not kept. Either side replaces both keys (`rotate`) or ends them
(`remove`). What was agreed is in the catalog (catalog/sites), so every metadata process can speak to every site.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from metadata.catalog import buckets, fetched, sites
from metadata.catalog.buckets import HOME, REPLICATED_FROM
from metadata.catalog.database import Database
from metadata.catalog.queries import Connection
from metadata.catalog.sites import SiteRow
from metadata.services.access.credentials import Credentials
from metadata.services.cluster.refreshing import Refreshing
from metadata.services.names.bucket_names import BucketNames
from metadata.services.sites.apply import rules_of
from metadata.services.sites.courier import SECONDS_PER_CALL, Courier
from metadata.services.sites.link import checked_link
from tierstore.auth.access import Principal
from tierstore.clock import Clock
from tierstore.errors import ConflictError, NotFound, RequestError, TierstoreError, UnavailableError
from tierstore.wire.sites import SITE_USER, NewKey, Peer, Peers

SITES_MAX: Final = 32


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
        #: Buckets that other sites write to or hear of.
        self.shared_buckets: frozenset[str] = frozenset()
        #: bucket -> (prefix, target) of its rules with bodies = "hot".
        self.hot_rules: dict[str, list[tuple[str, str]]] = {}
        #: Sites that do not answer, as the process that speaks to other sites says.
        self.away: frozenset[str] = frozenset()
        #: bucket -> the site that judges its conditional writes, where that is another one.
        self.homes: dict[str, str] = {}
        self._refreshing = Refreshing(self._refresh)

    # -- what is known --------------------------------------------------------------------------------------
    async def refresh(self) -> None:
        """Read what operators, and other processes, changed. What it takes over is no older than the call."""
        await self._refreshing.now()

    async def _refresh(self) -> None:
        def work(c: Connection) -> tuple[list[SiteRow], list[str], list[buckets.Bucket], frozenset[str]]:
            return sites.others(c), sites.local_networks(c), buckets.everything(c), sites.away(c)

        rows, networks, every, self.away = await self._database.read(work)
        self.known.rows, self.known.networks = rows, networks
        self.sync_buckets = frozenset(
            bucket.name for bucket in every if any(rule["mode"] == "sync" for rule in rules_of(bucket))
        )
        self.shared_buckets = frozenset(bucket.name for bucket in every if bucket.is_replicated)
        hot = {b.name: [(r["prefix"], r["target"]) for r in rules_of(b) if r["bodies"] == "hot"] for b in every}
        self.hot_rules = {name: rules for name, rules in hot.items() if rules}
        me = self.me().name
        self.homes = {b.name: b.config[HOME] for b in every if b.config.get(HOME, me) != me}

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
    async def add(
        self, name: str, gateway: str, token: str, *, own_gateways: list[str], who: Principal, is_rebuild: bool = False
    ) -> SiteRow:
        """Make each other known. token: an administrator's of the other site; it is used once. is_rebuild: this site
        is new and takes the place of one of the same name and number that was lost; buckets that it had shared get
        their rules back.

        Raises ConflictError (known already, or with a number that is taken), and what the other site answers."""
        me = self.me()
        if any(row.name == name for row in self.known.rows) and not is_rebuild:
            raise ConflictError(f"site {name!r} is known already", code="site-exists")
        if len(self.known.rows) >= SITES_MAX or name == me.name:
            raise RequestError(f"{name!r} is this site, or there are {SITES_MAX} already", code="bad-site")
        await self._meet(gateway, token, name)
        access, ours = await self._new_key(name, who)
        try:
            # a member that the release before does not know would be refused there: see wire/sites
            answer = await self.courier.send_json(
                gateway, "/v1/admin/sites/join", token,
                {"name": me.name, "number": me.number, "gateways": own_gateways or me.gateways, "token": ours,
                 "replace": is_rebuild},
            )  # fmt: skip
            row = SiteRow(
                int(answer["number"]), name, _unique([gateway.rstrip("/"), *answer["gateways"]]), [],
                {"token": answer["token"], "access": access},
            )
            back = {str(bucket): str(versioning) for bucket, versioning in answer.get("buckets", {}).items()}
            await self._database.write(lambda c: self._take_back(c, row, back))
        except (TierstoreError, KeyError, ValueError):
            await self._credentials.revoke(access, who=who.access)
            raise
        self._names.forget()
        await self.refresh()
        return row

    async def _meet(self, gateway: str, token: str, name: str) -> None:
        """See who answers at a gateway before either side keeps anything, so that the operator can ask again.

        Raises ConflictError when it is not the site of that name, UnavailableError when it is no site, and what it
        answers."""
        answer = await self.courier.send_json(gateway, "/v1/admin/sites", token)
        found = next((str(site["name"]) for site in answer.get("sites", ()) if site.get("is_local")), "")
        if not found:
            raise UnavailableError(f"what answers at {gateway} is no gateway of a site", code="unreachable")
        if found != name:
            raise ConflictError(f"the site at {gateway} is called {found!r}, not {name!r}", code="bad-site")

    def _take_back(self, c: Connection, row: SiteRow, back: dict[str, str]) -> None:
        """The other site, and rules to it for the buckets that this site's predecessor had sent there."""
        sites.put(c, row)
        at_ms = self._clock.now_ms()
        for name, versioning in back.items():
            with contextlib.suppress(ConflictError):
                buckets.create(c, name, owner=f"site:{row.name}", at_ms=at_ms)
            rules = [r for r in rules_of(buckets.get(c, name)) if r["target"] != row.name]
            rules.append(
                {"prefix": "", "target": row.name, "mode": "async", "bodies": "all", "on_failure": "degrade"}
            )
            buckets.configure(
                c, name, at_ms=at_ms, versioning=versioning or None,
                documents={"replication": json.dumps({"rules": rules})},
            )

    async def join(
        self, name: str, number: int, gateways: list[str], token: str, *, who: Principal, is_replacement: bool = False,
        called: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        """The other half of `add`, asked by another site's metadata with an administrator's token of this one.
        is_replacement: the site of that name was lost; its rules and networks stay, its keys and its queue end.
        called: what an asker of the release before takes this site for; one of this release has asked for it first."""
        me = self.me()
        if called and called != me.name:
            raise ConflictError(f"the site at that gateway is called {me.name!r}, not {called!r}", code="bad-site")
        if number == me.number:
            raise ConflictError(
                f"both sites have the number {number}: give each its own placement.site_number",
                code="site-number-taken",
            )
        old = next((row for row in self.known.rows if row.name == name), None)
        if old is not None and not is_replacement:
            raise ConflictError(
                f"site {me.name!r} knows a site {name!r} already; to add it anew, run there: "
                f"tierstore admin sites remove {name}", code="site-exists",
            )  # fmt: skip
        if old is not None and old.id != number:
            raise ConflictError(f"site {name!r} has the number {old.id}, not {number}", code="site-number-taken")
        if not gateways or not all(url.startswith(("http://", "https://")) for url in gateways):
            raise RequestError("gateways are URLs of gateways that this site can reach", code="bad-site")
        access, ours = await self._new_key(name, who)
        row = SiteRow(number, name, gateways, old.networks if old else [], {"token": token, "access": access})

        def work(c: Connection) -> dict[str, str]:
            if old is not None:
                sites.forget_progress(c, name)
                fetched.forget_site(c, number)      # it lost what it wrote: this site's copies may be the only ones
            sites.put(c, row)
            every = buckets.everything(c) if is_replacement else []
            return {b.name: b.versioning for b in every if name in b.config.get(REPLICATED_FROM, "").split(",")}

        back = await self._database.write(work)
        for key in (old.link.get("access"), old.link.get("old_access")) if old is not None else ():
            await self._end_key(key, who)
        await self.refresh()
        return {"name": me.name, "number": me.number, "gateways": me.gateways, "token": ours, "buckets": back}

    async def _new_key(self, name: str, who: Principal) -> tuple[str, str]:
        account, token = await self._credentials.create(
            user=SITE_USER + name, grants={"*": "readwrite"}, who=who.access,
            access=f"site-{name[:40]}-{self._random_hex()}",
        )
        return account.access, token

    async def remove(self, name: str, *, drop_queue: bool, who: Principal) -> tuple[int, list[str], list[str]]:
        """Forget a site and end its key; how many queued changes went with it, the buckets whose rules, and those whose
        home it was: each site judges their conditional writes by itself now, until a home is named.

        Raises ConflictError(code="queue-not-empty") while it lacks something and nobody said to drop that."""
        row = self.known.get(name)

        def work(c: Connection) -> tuple[int, list[str], list[str]]:
            if not drop_queue and sites.is_queue_longer(c, name, 0):
                raise ConflictError(
                    f"site {name!r} has not got everything; wait, or say that its queue is to be dropped",
                    code="queue-not-empty",
                )
            changed, homeless = [], []
            for bucket in buckets.everything(c):
                documents: dict[str, str | None] = {}
                rules = rules_of(bucket)
                kept = [rule for rule in rules if rule["target"] != name]
                if len(kept) < len(rules):
                    documents["replication"] = json.dumps({"rules": kept}) if kept else None
                    changed.append(bucket.name)
                if bucket.config.get(HOME) == name:
                    documents[HOME] = None
                    homeless.append(bucket.name)
                if documents:
                    buckets.configure(c, bucket.name, at_ms=self._clock.now_ms(), documents=documents)
            fetched.forget_site(c, row.id)      # it gives nothing any more
            return sites.remove(c, name), changed, homeless

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
        checked = checked_link(changes)
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


def _unique(urls: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(url.rstrip("/") for url in urls))
