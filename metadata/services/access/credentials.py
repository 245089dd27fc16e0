"""Who is calling: access keys and bearer tokens to principals, in memory; making, changing and revoking keys.

A cache entry is dropped when the auth revision changes: at once in the process that changed it, within a refresh
(1 s) in others on the same database. Tokens are kept as SHA-256 only; a token is shown once, when it is made.

Cost: a known Authorization header is one dict look-up; a known access key another.
"""

from __future__ import annotations

import hmac
import secrets as _secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from metadata.catalog import accounts
from metadata.catalog.accounts import Account
from metadata.catalog.database import Database
from metadata.catalog.queries import Connection
from metadata.services.access import users
from tierstore.auth.access import (
    JUDGED,
    NOTHING_SEEN,
    ROLES,
    USER_TOKEN,
    Principal,
    Seen,
    parse_bearer,
    token_hash,
    user_token,
)
from tierstore.clock import Clock
from tierstore.errors import AccessDenied, ConfigError, NotAuthenticated, NotFound, RequestError
from tierstore.names import check_bucket_name
from tierstore.wire.cluster import Credential

#: A row, by the name that routes use beside their own models.
AccountRow = Account
#: Headers and access keys remembered; beyond it the caches start anew.
REMEMBERED_MAX: Final = 10_000
ACCESS_BYTES: Final = 12
TOKEN_BYTES: Final = 32
_ACCESS_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")

#: (server id as text, whole token) -> principal of a daemon; raises NotAuthenticated.
AuthenticateDaemon = Callable[[str, str], Principal]


class Credentials:
    """One per process. Event loop only."""

    def __init__(
        self, database: Database, clock: Clock, *, daemon: AuthenticateDaemon,
        random_bytes: Callable[[int], bytes] = _secrets.token_bytes,
    ) -> None:  # fmt: skip
        self._database = database
        self._clock = clock
        self._daemon = daemon
        self._random_bytes = random_bytes
        self.revision = 0
        self._by_header: dict[bytes, tuple[Principal, int]] = {}      # with expiry, ms
        self._by_access: dict[str, tuple[Principal, int]] = {}

    # -- who is calling -------------------------------------------------------------------------------------
    def caller_now(self, header: bytes | None) -> Principal | None:
        """The caller if known at once. Daemons always are; None: ask caller(). Raises NotAuthenticated."""
        if header is not None:
            known = self._by_header.get(header)
            if known is not None:
                return self._fresh(known)
        kind, who, token = parse_bearer(header)
        return None if kind == USER_TOKEN else self._daemon(who, token)

    async def caller(self, header: bytes | None) -> Principal:
        """The caller of a request. Raises NotAuthenticated, without saying what was wrong."""
        known = self.caller_now(header)
        if known is not None:
            return known
        assert header is not None, "parse_bearer has refused"
        _, access, token = parse_bearer(header)
        digest = token_hash(token)
        revision = self.revision
        account = await self._database.read(lambda connection: accounts.by_token(connection, digest))
        if account is None or account.access != access or not hmac.compare_digest(account.token_sha256, digest):
            raise _unknown()
        entry = _entry(account)
        principal = self._fresh(entry) if account.enabled else None
        if principal is None:
            raise _unknown()
        if revision == self.revision:      # else the row may be older than what was just cleared
            _remember(self._by_header, header, entry)
        return principal

    def sending(self, caller: Principal, address: str) -> Principal:
        """The caller with what is seen of his request, which came from `address`, by plain HTTP as all that comes to
        metadata."""
        return caller if caller.is_daemon else caller.sending(Seen(address, False, self._clock.now_ms()))

    def behind_now(self, caller: Principal, access: str) -> Principal | None:
        """Whom the caller acts for: itself, or (daemons only) the holder of an access key, whom the daemon has judged
        by what it saw; None: ask behind()."""
        if not access or access == caller.access:
            return caller
        if not caller.is_daemon:
            raise AccessDenied("only the cluster's own servers may act for somebody else")
        known = self._by_access.get(access)
        return self._fresh(known) if known is not None else None

    async def behind(self, caller: Principal, access: str) -> Principal:
        """Raises NotAuthenticated for an access key that is not known, is disabled or has expired."""
        known = self.behind_now(caller, access)
        if known is not None:
            return known
        revision = self.revision
        account = await self._database.read(lambda connection: accounts.by_access(connection, access))
        if account is None or not account.enabled:
            raise _unknown()
        entry = _entry(account, JUDGED)
        principal = self._fresh(entry)
        if revision == self.revision:
            _remember(self._by_access, access, entry)
        return principal

    def _fresh(self, entry: tuple[Principal, int]) -> Principal:
        if entry[1] and entry[1] < self._clock.now_ms():
            raise _unknown()
        return entry[0]

    async def for_gateway(self, *, access: str = "", token_sha256: bytes = b"") -> Credential:
        """What a gateway needs to authenticate a client itself. Raises NotFound(code="no-such-access-key")."""

        account = await self._database.read(
            lambda c: accounts.by_access(c, access) if access else accounts.by_token(c, token_sha256)
        )
        if account is None or not account.enabled:
            raise NotFound("there is no such access key", code="no-such-access-key")
        return Credential(
            account.access, account.user, account.grants, account.token_sha256, account.secret, account.enabled,
            [document for _, document in users.policies_of(account)], account.expires_at_ms,
        )  # fmt: skip

    # -- revisions ------------------------------------------------------------------------------------------
    async def refresh(self) -> None:
        """Notice changes that another process made."""
        self._took(await self._database.read(accounts.auth_revision))

    def _took(self, revision: int) -> None:
        if revision > self.revision:    # it only rises, and an older answer may come behind a newer one
            self.revision = revision
            self._by_header.clear()
            self._by_access.clear()

    # -- keys -----------------------------------------------------------------------------------------------
    async def everyone(self) -> list[Account]:
        return await self._database.read(accounts.everyone)

    async def create(
        self, *, user: str, grants: dict[str, str], who: str, access: str = "", expires_at_ms: int = 0,
    ) -> tuple[Account, str]:  # fmt: skip
        """A new access key with its bearer token, which is shown only here. Raises RequestError, ConflictError."""
        _check_grants(grants)
        if len(user.encode()) > 256 or not user.isprintable():
            raise RequestError("a user's name has at most 256 printable bytes", code="bad-user")
        access = access or "TS" + self._random_bytes(ACCESS_BYTES).hex().upper()
        _check_access(access)
        token = user_token(access, self._random_bytes(TOKEN_BYTES))
        account = Account(
            access, user or access, grants, token_hash(token), self._random_bytes(TOKEN_BYTES).hex(), True, (),
            self._clock.now_ms(), expires_at_ms,
        )  # fmt: skip
        return await self._add(account, who, as_others=True), token

    async def bootstrap(self, *, access: str, secret: str, token: str) -> bool:
        """Make (or bring up to date) the administrator's key of the settings; False when nothing was to do.

        Raises ConfigError when the token is not of the form tst.<access>.<random>."""
        if not access:
            return False
        _check_access(access)
        kind, named, whole = parse_bearer("Bearer " + token)
        if kind != USER_TOKEN or named != access:
            raise ConfigError(f"root.token must be {USER_TOKEN}.{access}.<random>")
        known = await self._database.read(lambda connection: accounts.by_access(connection, access))
        account = Account(
            access, "admin", {"*": "admin"}, token_hash(whole), secret, True, (),
            known.created_at_ms if known else self._clock.now_ms(), 0,
        )  # fmt: skip
        if known == account:
            return False
        if known is None:
            await self._add(account, "settings")
        else:
            await self._put(account, "settings", "key.update")
        return True

    async def set_up(
        self, *, user: str, access: str, secret: str, grants: dict[str, str], policy: str
    ) -> bool:  # fmt: skip
        """Make (or bring up to date) a user's key of the settings, for signed requests only; False: nothing to do."""
        _check_access(access)
        _check_grants(grants)
        known = await self._database.read(lambda connection: accounts.by_access(connection, access))
        policies = (users.packed("settings", policy),) if policy else ()
        account = Account(
            access, user, grants, known.token_sha256 if known else token_hash(self._random_bytes(TOKEN_BYTES)), secret,
            True, policies, known.created_at_ms if known else self._clock.now_ms(), 0,
        )  # fmt: skip
        if known == account:
            return False
        await (self._add(account, "settings") if known is None else self._put(account, "settings", "key.update"))
        return True

    async def attach(self, user: str, name: str, document: str | None, *, who: str) -> list[Account]:
        """Attach a policy to all keys of a user, replace it, or (None) take it away. Raises NotFound(no-such-user),
        RequestError(bad-policy)."""
        if document is not None:
            users.check(name, document)
        at_ms = self._clock.now_ms()

        def work(connection: Connection) -> tuple[int, list[Account]]:
            accounts.hold(connection)
            mine = accounts.of_user(connection, user)
            if not mine:
                raise NotFound(f"no key belongs to a user {user!r}", code="no-such-user")
            changed = [replace(account, policies=users.with_policy(account, name, document)) for account in mine]
            action = "user.attach" if document is not None else "user.detach"
            accounts.note(connection, at_ms=at_ms, who=who, action=action, target=user, detail=name)
            return max(accounts.replace(connection, account, at_ms=at_ms) for account in changed), changed

        revision, changed = await self._database.write(work)
        self._took(revision)
        return changed

    async def set_enabled(self, access: str, *, enabled: bool, who: str) -> Account:
        """Raises NotFound(code="no-such-access-key")."""
        action = "key.enable" if enabled else "key.disable"
        return await self._change(access, lambda account: replace(account, enabled=enabled), who, action)

    async def set_grants(self, access: str, grants: dict[str, str], *, who: str) -> Account:
        """Raises NotFound(code="no-such-access-key"), RequestError(code="bad-grants")."""
        _check_grants(grants)
        return await self._change(access, lambda account: replace(account, grants=grants), who, "key.grants")

    async def revoke(self, access: str, *, who: str) -> None:
        """For good, at once here. Raises NotFound(code="no-such-access-key")."""
        at_ms = self._clock.now_ms()

        def work(connection: Connection) -> int:
            accounts.note(connection, at_ms=at_ms, who=who, action="key.revoke", target=access)
            return accounts.delete(connection, access, at_ms=at_ms)

        self._took(await self._database.write(work))

    async def _change(self, access: str, how: Callable[[Account], Account], who: str, action: str) -> Account:
        """Change a key as it stands in the catalog then, under its lock: of two operators who change different things
        at once neither undoes what the other did, such as disabling it."""
        at_ms = self._clock.now_ms()

        def work(connection: Connection) -> tuple[int, Account]:
            accounts.hold(connection)
            account = accounts.by_access(connection, access)
            if account is None:
                raise NotFound(f"there is no access key {access!r}", code="no-such-access-key")
            changed = how(account)
            accounts.note(connection, at_ms=at_ms, who=who, action=action, target=access)
            return accounts.replace(connection, changed, at_ms=at_ms), changed

        revision, changed = await self._database.write(work)
        self._took(revision)
        return changed

    async def _add(self, account: Account, who: str, *, as_others: bool = False) -> Account:
        """as_others: with the policies of the user's other keys, as they are then."""

        def work(connection: Connection) -> tuple[int, Account]:
            accounts.hold(connection)
            others = accounts.of_user(connection, account.user) if as_others else []
            added = replace(account, policies=others[0].policies) if others else account
            accounts.note(
                connection, at_ms=account.created_at_ms, who=who, action="key.create", target=account.access
            )
            return accounts.insert(connection, added), added

        revision, added = await self._database.write(work)
        self._took(revision)
        return added

    async def _put(self, account: Account, who: str, action: str) -> None:
        at_ms = self._clock.now_ms()

        def work(connection: Connection) -> int:
            accounts.note(connection, at_ms=at_ms, who=who, action=action, target=account.access)
            return accounts.replace(connection, account, at_ms=at_ms)

        self._took(await self._database.write(work))


def _entry(account: Account, seen: Seen = NOTHING_SEEN) -> tuple[Principal, int]:
    policies = tuple(document for _, document in users.policies_of(account))
    return Principal(account.access, account.user, account.grants, policies=policies, seen=seen), account.expires_at_ms


def _remember(cache: dict[bytes, tuple[Principal, int]] | dict[str, tuple[Principal, int]], key: bytes | str,
              entry: tuple[Principal, int]) -> None:
    if len(cache) >= REMEMBERED_MAX:
        cache.clear()
    cache[key] = entry  # type: ignore[index]


def _unknown() -> NotAuthenticated:
    return NotAuthenticated("the token is not known, was revoked or has expired")


def _check_grants(grants: dict[str, str]) -> None:
    for bucket, role in grants.items():
        if bucket != "*":
            check_bucket_name(bucket)
        if role not in ROLES:
            raise RequestError(f"{role!r} is not a role; use one of {', '.join(ROLES)}", code="bad-grants")


def _check_access(access: str) -> None:
    if not 3 <= len(access) <= 64 or not _ACCESS_LETTERS.issuperset(access):
        raise RequestError("an access key has 3 to 64 letters, digits, '-' and '_'", code="bad-access-key")
