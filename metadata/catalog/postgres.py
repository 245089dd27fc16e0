"""PostgreSQL: SQLAlchemy's async engine on asyncpg, bulk statements by unnest on the raw asyncpg connection.

A batch is one transaction of a handful of round trips (postgres_session.py), whatever its size; two are under way at
once, so that one prepares while the other waits for the disk. Lookups that arise while one is under
way join the next statement (never one that has begun: rule 9).

Invariant: READ COMMITTED, with row locks (FOR UPDATE, sorted) where a decision rests on a row; synchronous_commit is
on, checked at start and set on every connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from metadata.catalog.migrate import APPLICATION, HEAD
from metadata.catalog.postgres_session import BY_KEY, PostgresSession
from metadata.catalog.session import BulkRead, NameWitness, Row, Session, StaleRows
from tierstore.errors import CapacityError, ConfigError, RequestError, TierstoreError, UnavailableError

T = TypeVar("T")

POOL_MAX: Final = 8
SELECTS_MAX: Final = 512
SELECTS_UNDER_WAY_MAX: Final = 2
SELECTS_WAITING_MAX: Final = 10_000
STATEMENT_SECONDS: Final = 30.0
#: A transaction that lost a lock or a deadlock is redone this often before its caller hears of it.
ATTEMPTS_MAX: Final = 5

_SERVER_SETTINGS: Final = {
    "synchronous_commit": "on", "jit": "off", "application_name": APPLICATION + HEAD,
    "lock_timeout": "10s", "idle_in_transaction_session_timeout": "60s",
}  # fmt: skip
#: SQLSTATEs after which the same transaction may succeed: serialization, deadlock, lock timeout.
_AGAIN: Final = frozenset({"40001", "40P01", "55P03"})
#: program_limit_exceeded: an index holds values of a third of a page, 2.7 KB, compressed where that helps.
_TOO_LONG: Final = "54000"


def _sqlstate(error: BaseException | None) -> str:
    while error is not None:
        state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        if state:
            return str(state)
        error = getattr(error, "orig", None) or error.__cause__
    return ""


def translate(error: Exception) -> Exception:
    """The error of our tree for one of asyncpg or SQLAlchemy; anything else as it is."""
    if isinstance(error, TierstoreError | StaleRows):
        return error
    state = _sqlstate(error)
    if state == _TOO_LONG:
        return RequestError("the name is too long for an index of the catalog's database", code="name-too-long")
    if state in ("53100", "53200"):
        return CapacityError("the catalog's disk or memory is full", code="catalog-full")
    if state[:2] in ("08", "57", "53") or state in _AGAIN:
        return UnavailableError(f"the catalog's database: {error}", code="catalog-unavailable")
    if isinstance(error, ConnectionError | OSError | TimeoutError | asyncpg.InterfaceError):
        return UnavailableError(f"the catalog's database does not answer: {error}", code="catalog-unavailable")
    return error


class PostgresDatabase:
    """See metadata.catalog.database.Database."""

    dialect = "postgresql"
    batches_under_way_max = 2
    witness: NameWitness | None = None

    def __init__(self, engine: AsyncEngine, pool: Any) -> None:
        self._engine = engine
        #: The same connections, whose transactions are made by hand.
        self._by_hand = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._pool = pool
        self._writing = 0
        self._selects: dict[BulkRead, list[tuple[list[Row], asyncio.Future[list[Row]]]]] = {}
        self._selecting: set[asyncio.Task[None]] = set()
        self._selectors = 0     # tasks that will look at the queue once more; lowered in the step that saw it empty

    @classmethod
    async def open(cls, url: str) -> PostgresDatabase:
        plain = "postgresql://" + url.split("://", 1)[1]
        engine = create_async_engine(
            "postgresql+asyncpg://", async_creator=lambda: _raw_connect(plain), pool_size=POOL_MAX, max_overflow=0,
            pool_timeout=STATEMENT_SECONDS,
        )  # fmt: skip
        sa.event.listen(engine.sync_engine, "checkout", _refuse_closed)
        try:
            await _refuse_unsafe(plain)
            pool = await asyncpg.create_pool(
                plain, min_size=1, max_size=SELECTS_UNDER_WAY_MAX, command_timeout=STATEMENT_SECONDS,
                server_settings=_SERVER_SETTINGS | BY_KEY, reset=_nothing_to_reset,
            )  # fmt: skip
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            await engine.dispose()
            raise UnavailableError(f"the catalog's database cannot be reached: {error}") from error
        return cls(engine, pool)

    # -- reads ----------------------------------------------------------------------------------------------
    def select_now(self, read: BulkRead, keys: list[Row]) -> list[Row] | None:
        return None

    def read_now(self, fn: Callable[[sa.Connection], T]) -> T | None:
        return None

    async def select(self, read: BulkRead, keys: list[Row]) -> list[Row]:
        queue = self._selects.setdefault(read, [])
        if len(queue) >= SELECTS_WAITING_MAX:
            raise UnavailableError("too many lookups wait for the catalog")
        future: asyncio.Future[list[Row]] = asyncio.get_running_loop().create_future()
        queue.append((keys, future))
        if self._selectors < SELECTS_UNDER_WAY_MAX:
            self._selectors += 1
            task = asyncio.get_running_loop().create_task(self._run_selects(), name="catalog-selects")
            self._selecting.add(task)
            task.add_done_callback(self._selecting.discard)
        return await future

    async def _run_selects(self) -> None:
        """Statements, each for all that wait when it starts, until nobody waits."""
        try:
            await self._select_all()
        finally:
            self._selectors -= 1

    async def _select_all(self) -> None:
        await asyncio.sleep(0)
        while self._selects:
            read = next(iter(self._selects))
            queue = self._selects.pop(read)
            if len(queue) > SELECTS_MAX:
                self._selects[read] = queue[SELECTS_MAX:]
                queue = queue[:SELECTS_MAX]
            keys = sorted({key for wanted, _ in queue for key in wanted})
            try:
                found: dict[Row, list[Row]] = {}
                width = len(read.by)
                places = [read.columns.index(name) for name in read.by]
                async with self._pool.acquire(timeout=STATEMENT_SECONDS) as raw:
                    for record in await raw.fetch(read.postgres_sql, *map(list, zip(*keys, strict=True))):
                        row = tuple(record)
                        found.setdefault(tuple(row[places[i]] for i in range(width)), []).append(row)
            except Exception as error:      # every waiter must hear of it, or it waits for ever
                for _, future in queue:
                    if not future.done():
                        future.set_exception(translate(error))
                continue
            for wanted, future in queue:
                if not future.done():
                    future.set_result([row for key in wanted for row in found.get(key, ())])

    async def read(self, fn: Callable[[sa.Connection], T], *, seconds: float = 10.0) -> T:
        return await self._transact(fn, seconds, read_only=True)

    async def scan(self, fn: Callable[[sa.Connection], T], *, seconds: float = 60.0) -> T:
        return await self._transact(fn, seconds, read_only=True)

    # -- writes ---------------------------------------------------------------------------------------------
    def watch_names(self, witness: NameWitness) -> bool:
        return False

    @property
    def is_full(self) -> bool:
        """Not known beforehand: PostgreSQL says so when it happens."""
        return False

    @property
    def is_idle(self) -> bool:
        return self._writing == 0

    async def write(self, fn: Callable[[sa.Connection], T], *, seconds: float = 30.0) -> T:
        return await self._again(lambda: self._transact(fn, seconds))

    async def synced(self) -> None:
        """Every commit waits for its sync here."""

    async def batch(self, fn: Callable[[Session], T], *, seconds: float = 30.0, soon: bool = False) -> T:
        return await self._again(
            lambda: self._transact(lambda connection: PostgresSession(connection).run(fn), seconds, by_hand=True)
        )

    async def work(self, fn: Callable[[Session], T], *, seconds: float = 30.0) -> T:
        return await self.batch(fn, seconds=seconds)

    async def _again(self, transact: Callable[[], Awaitable[T]]) -> T:
        self._writing += 1
        try:
            for attempt in range(1, ATTEMPTS_MAX + 1):
                try:
                    return await transact()
                except (sa.exc.DBAPIError, asyncpg.PostgresError) as error:
                    if _sqlstate(error) not in _AGAIN or attempt == ATTEMPTS_MAX:
                        raise translate(error) from error
        finally:
            self._writing -= 1
        raise AssertionError("the loop returns or raises")

    async def _transact(
        self, fn: Callable[[sa.Connection], T], seconds: float, *, read_only: bool = False, by_hand: bool = False
    ) -> T:
        try:
            async with asyncio.timeout(seconds):
                async with (self._by_hand if by_hand else self._engine).connect() as connection:
                    if by_hand:
                        return await connection.run_sync(fn)
                    return await self._within(connection, fn, read_only=read_only)
        except TimeoutError:
            raise UnavailableError(
                "the catalog's database did not answer in time",
                code="catalog-unavailable" if read_only else "outcome-unknown",
            ) from None
        except (OSError, asyncpg.InterfaceError) as error:
            raise translate(error) from error
        except sa.exc.DBAPIError as error:
            if read_only or _sqlstate(error)[:2] in ("08", "57", "53"):
                raise translate(error) from error
            raise

    async def _within(self, connection: AsyncConnection, fn: Callable[[sa.Connection], T], *, read_only: bool) -> T:
        if read_only:
            # One snapshot for all statements of fn, as SQLite gives it.
            await connection.execution_options(isolation_level="REPEATABLE READ")
        async with connection.begin():
            return await connection.run_sync(fn)

    async def close(self) -> None:
        for task in list(self._selecting):
            await asyncio.wait([task], timeout=STATEMENT_SECONDS)
        await self._pool.close()
        await self._engine.dispose()


async def _nothing_to_reset(connection: object) -> None:
    """Lookups are single statements that leave nothing behind; asyncpg's own way is a round trip after each."""


def _refuse_closed(connection: Any, record: object, proxy: object) -> None:
    """The pool makes another one instead of a connection that the server has closed. The event loop knows; asking by a
    statement would be three round trips before every transaction."""
    if connection.driver_connection.is_closed():
        raise sa.exc.DisconnectionError("closed by the server")


async def _raw_connect(url: str) -> Any:
    return await asyncpg.connect(url, server_settings=_SERVER_SETTINGS, timeout=10.0, command_timeout=STATEMENT_SECONDS)


async def _refuse_unsafe(url: str) -> None:
    """Raises ConfigError when this server would acknowledge commits that a power cut can lose."""
    raw = await asyncpg.connect(url, timeout=10.0)
    try:
        for name in ("synchronous_commit", "fsync", "full_page_writes"):
            if await raw.fetchval(f"SHOW {name}") == "off":
                raise ConfigError(
                    f"PostgreSQL runs with {name} = off: an acknowledged write could be lost; set {name} = on"
                )
    finally:
        await raw.close()
