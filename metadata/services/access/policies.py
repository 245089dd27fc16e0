"""The policy document of the cluster: its versions, who wrote them, and the one that holds now.

What a document may say is tierstore/policy/rules' matter: it is handed in as a validator. A rollback is a new
revision with an old text, so that history only grows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from metadata.catalog import accounts
from metadata.catalog.accounts import PolicyRow
from metadata.catalog.database import Database
from metadata.catalog.queries import Connection
from tierstore.clock import Clock
from tierstore.errors import RequestError

HISTORY_MAX = 1000
DOCUMENT_BYTES_MAX = 1 << 20


class ParsedPolicy(Protocol):
    """What a validator returns."""

    def document(self) -> dict[str, Any]: ...


P = TypeVar("P", bound=ParsedPolicy)
P_co = TypeVar("P_co", bound=ParsedPolicy, covariant=True)


class Parse(Protocol[P_co]):
    """A validator. Raises RequestError or ConfigError for a document that may not be. text: the TOML it came from;
    servers: how many there are to keep copies, None: not to be looked at."""

    def __call__(self, document: Any, *, text: str = "", servers: int | None = None) -> P_co: ...


@dataclass(frozen=True, slots=True)
class Current(Generic[P]):
    """What holds now. revision 0: nobody has set one, `policy` is the default."""

    revision: int
    policy: P
    document: bytes


class Policies(Generic[P]):
    """One per process. A document that was taken once holds, however few servers are left: only new ones are judged by
    their number."""

    def __init__(self, database: Database, clock: Clock, parse: Parse[P], *, servers: Callable[[], int]) -> None:
        """servers: how many object servers there are to keep copies."""
        self._database = database
        self._clock = clock
        self._parse = parse
        self._servers = servers
        default = parse({"version": 1})
        self.current: Current[P] = Current(0, default, json.dumps(default.document()).encode())
        #: Called after the policy changed, also by another process; must not raise or block.
        self.listeners: list[Callable[[Current[P]], None]] = []

    async def refresh(self) -> None:
        """Notice changes that another process made."""
        newest = await self._database.read(accounts.newest_policy)
        if newest is not None:
            self._take(newest)

    def _take(self, row: PolicyRow) -> None:
        """What holds from now on, unless a newer one does already: answers of the database overtake each other."""
        if row.revision <= self.current.revision:
            return
        self.current = Current(row.revision, self._parse(json.loads(row.document)), row.document.encode())
        for listener in self.listeners:
            listener(self.current)

    async def set(
        self, document: Any, *, who: str, text: str = "", note: str = "", expected: int | None = None,
        is_forced: bool = False,
    ) -> Current[P]:  # fmt: skip
        """Check a document and make it the policy. text: the TOML it came from. is_forced: also when it asks for more
        copies than there are servers. Raises RequestError (what is wrong with it),
        ConflictError(code="policy-changed") when `expected` is not the revision that it replaces."""
        kept = json.dumps(self.check(document, text=text, is_forced=is_forced), sort_keys=True)
        if len(kept) > DOCUMENT_BYTES_MAX:
            raise RequestError(f"a policy has at most {DOCUMENT_BYTES_MAX} bytes", code="bad-policy")
        at_ms = self._clock.now_ms()

        def work(connection: Connection) -> PolicyRow:
            row = accounts.add_policy(connection, kept, at_ms=at_ms, who=who, note=note, expected=expected)
            accounts.note(connection, at_ms=at_ms, who=who, action="policy.set", target=str(row.revision), detail=note)
            return row

        self._take(await self._database.write(work))
        return self.current

    def check(self, document: Any, *, text: str = "", is_forced: bool = False) -> dict[str, Any]:
        """The document as it would be kept. Raises RequestError."""
        return self._parse(document, text=text, servers=None if is_forced else self._servers()).document()

    async def history(self, limit: int = 100) -> list[PolicyRow]:
        """The newest first."""
        count = max(1, min(limit, HISTORY_MAX))
        return await self._database.read(lambda connection: accounts.policy_history(connection, count))

    async def rollback(self, revision: int, *, who: str, is_forced: bool = False) -> Current[P]:
        """Make an old revision's document the newest; 0: what held before anybody set one. Raises
        NotFound(code="no-such-revision"), and what set() raises."""
        if revision == 0:
            return await self.set({"version": 1}, who=who, note="rollback to the built-in policy")
        old = await self._database.read(lambda connection: accounts.policy(connection, revision))
        return await self.set(
            json.loads(old.document), who=who, note=f"rollback to revision {revision}", is_forced=is_forced
        )
