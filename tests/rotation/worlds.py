"""Two worlds under one clock: engines on the memory store, engines on PostgreSQL.

A world is one table with several processes on it. Both have the same secrets, entropy and
ids, so the same operations must return the same tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from inspect import iscoroutinefunction
from typing import Any, Protocol, TypeVar

from handstamp import Policy, Sessions
from handstamp.core.models import Client
from handstamp.core.tokens import Tokens
from handstamp.errors import SessionsUnavailable
from handstamp.events import Event, Refreshed, Replayed
from handstamp.stores.memory import MemoryStore, MemoryUser
from handstamp.stores.postgres import UNKNOWN_ADDRESS
from handstamp.stores.shapes import ULID_HASHED
from handstamp.stores.table import TableStore
from tests.support.clock import FakeClock
from tests.support.foreign_tables import FOREIGN
from tests.support.frozen_postgres import FrozenPostgres, frozen_postgres

START = datetime(2026, 1, 5, 9, 0, 0, 123457, tzinfo=UTC)
SECRET = "one secret of the tests, long enough to be one"
WRONG_SECRET = "another secret, which none of the processes has"
USERS = ("01JGQ0000000000000000ALICE", "01JGQ00000000000000000BOBB")


@dataclass(frozen=True, kw_only=True)
class Names:
    """What ids look like, and what a table does not keep of a session."""

    users: tuple[str, str] = USERS
    id: str = "01JGQ{:021d}"
    forgets: frozenset[str] = frozenset()
    longest_reason: int = 100

    def kept(self, row: Row) -> Row:
        """The row without what such a table forgets."""
        reason = row.revoked_reason and row.revoked_reason[: self.longest_reason]
        nothing: dict[str, Any] = dict.fromkeys(self.forgets)
        return replace(row, **nothing | {"revoked_reason": reason})


ULIDS = Names()
INTEGERS = Names(
    users=("1", "2"),
    id="10000{:05d}",
    forgets=frozenset({"user_agent_hash", "fingerprint"}),
    longest_reason=20,
)

_COLUMNS = {
    "id": "id",
    "user_id": "user_id",
    "token_digest": "session_token_hash",
    "refresh_digest": "refresh_token_hash",
    "created_at": "created_at",
    "expires_at": "expires_at",
    "refresh_expires_at": "refresh_expires_at",
    "last_activity_at": "last_activity_at",
    "is_active": "is_active",
    "revoked_at": "revoked_at",
    "revoked_reason": "revoked_reason",
    "address": "ip_address",
    "user_agent_hash": "user_agent_hash",
    "fingerprint": "device_fingerprint",
}
ROWS_SQL = (
    "select " + ", ".join(f"{column} as {name}" for name, column in _COLUMNS.items())
) + " from user_sessions order by id"

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stored session, column by column, whatever stores it."""

    id: str
    user_id: str
    token_digest: str
    refresh_digest: str | None
    created_at: datetime
    expires_at: datetime
    refresh_expires_at: datetime
    last_activity_at: datetime
    is_active: bool
    revoked_at: datetime | None
    revoked_reason: str | None
    address: str | None
    user_agent_hash: str | None
    fingerprint: str | None


Rows = dict[str, Row]


class Base(Protocol):
    """What a world's table offers beyond the store: a look at it, and its users."""

    store: Any
    names: Names

    async def reset(self) -> None:
        """Forget everything of the last example."""
        ...

    async def set_clock(self, now: datetime) -> None:
        """From now on it is ``now`` in this database."""
        ...

    async def rows(self) -> Rows:
        """The whole table."""
        ...

    async def enable(self, user_id: str, active: bool) -> None:
        """What an administrator does to a user, without telling anybody."""
        ...


def silent(store: type[S]) -> type[S]:
    """The same store without notifications, whose heartbeat has a clock of its own: a
    process notices what another one ends when it reads."""
    return type(f"Silent{store.__name__}", (store,), {"channel": None})


class MemoryBase:
    """The reference store as a database."""

    def __init__(
        self, store: type[MemoryStore] = MemoryStore, names: Names = ULIDS
    ) -> None:
        self._make = store
        self.names = names
        self._at = START
        self.store = silent(store)(lambda: self._at)

    async def reset(self) -> None:
        """See :meth:`Base.reset`."""
        self.store = silent(self._make)(lambda: self._at)

    async def set_clock(self, now: datetime) -> None:
        """See :meth:`Base.set_clock`."""
        self._at = now

    async def rows(self) -> Rows:
        """See :meth:`Base.rows`."""
        return {
            r.id: self.names.kept(Row(**{name: getattr(r, name) for name in _COLUMNS}))
            for r in self.store.rows.values()
        }

    async def enable(self, user_id: str, active: bool) -> None:
        """See :meth:`Base.enable`."""
        self.store.users[user_id] = MemoryUser(is_active=active)


class PostgresBase:
    """A real database whose clock is the test's."""

    names = ULIDS
    shape = replace(ULID_HASHED, level="trust_level")
    rows_sql = ROWS_SQL
    add_level = "alter table user_sessions add trust_level smallint"
    add_user = (
        "insert into users (id, username, password_hash) values ($1::text, $1::text, '')"
    )
    empty = "delete from user_sessions; update users set is_active = true"
    switch = "update users set is_active = $2 where id = $1"

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._open = AsyncExitStack()
        self.store = silent(TableStore)(
            dsn,
            shape=self.shape,
            connect=FrozenPostgres.connect,
            budget=timedelta(minutes=10),  # a slow machine ends nothing
        )

    async def open(self) -> None:
        """Connect, stop the clock, make the users."""
        self._frozen = await self._open.enter_async_context(frozen_postgres(self._dsn))
        self._control = self._frozen.connection
        await self._control.execute(self.add_level)
        for user in self.names.users:
            await self._control.execute(self.add_user, user)
        await self.store.open()

    async def close(self) -> None:
        """Disconnect."""
        await self.store.close()
        await self._open.aclose()

    async def reset(self) -> None:
        """See :meth:`Base.reset`; as cheap as can be, for it is done for each example."""
        await self._control.execute(self.empty)

    async def set_clock(self, now: datetime) -> None:
        """See :meth:`Base.set_clock`."""
        await self._frozen.set(now)

    async def rows(self) -> Rows:
        """See :meth:`Base.rows`."""
        rows = [dict(row) for row in await self._control.fetch(self.rows_sql)]
        for row in rows:
            address = str(row["address"]).partition("/")[0]
            row["address"] = None if address == UNKNOWN_ADDRESS else address
            if row["fingerprint"] is not None:
                row["fingerprint"] = row["fingerprint"].rstrip()  # it is a character(64)
        return {row["id"]: Row(**row) for row in rows}

    async def enable(self, user_id: str, active: bool) -> None:
        """See :meth:`Base.enable`."""
        await self._control.execute(self.switch, user_id, active)


class IntegersBase(PostgresBase):
    """The same with an application's own table, whose ids are integers and which ends a
    session by a time."""

    names = INTEGERS
    shape = replace(FOREIGN["integers"].shape, level="trust")
    add_level = "alter table member_sessions add trust smallint"
    rows_sql = """
        select session_no::text as id, member_no::text as user_id,
            token_sha256 as token_digest, refresh_sha256 as refresh_digest,
            created as created_at, valid_until as expires_at,
            refresh_until as refresh_expires_at, last_seen as last_activity_at,
            ended is null as is_active, ended as revoked_at,
            ended_because as revoked_reason, ip as address,
            null as user_agent_hash, null as fingerprint
        from member_sessions order by session_no"""
    add_user = (
        "insert into members (member_no, login) overriding system value"
        " values ($1::text::integer, $1::text)"
    )
    empty = "delete from member_sessions; update members set enabled = true"
    switch = "update members set enabled = $2 where member_no::text = $1"


class Wire:
    """The connection of one process to its database, with delays, lost at a kill."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.cut = False
        self.pauses: Iterator[int] = itertools.repeat(0)
        # As attributes of its own: an isinstance() of a protocol calls no __getattr__.
        for name in dir(store):
            call = getattr(store, name)
            if iscoroutinefunction(call) and not hasattr(type(self), name):
                setattr(self, name, self._slowed(call))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @property
    def channel(self) -> Any:
        """Notifications are not delayed."""
        return self._store.channel

    def _slowed(self, call: Any) -> Any:
        async def through(*arguments: Any, **named: Any) -> Any:
            if self.cut:
                raise SessionsUnavailable("the process is dead")
            await _pause(next(self.pauses, 0))
            answer = await call(*arguments, **named)
            await _pause(next(self.pauses, 0))
            return answer

        return through

    def reset_after_fork(self) -> None:
        """Reset every remaining engine after a fork, without any delay."""
        self._store.reset_after_fork()

    async def new_id(self, make: Callable[[], str]) -> str:
        """The world gives the ids, the same in each."""
        return make()

    async def open(self) -> None:
        """The world holds the connections."""

    async def close(self) -> None:
        """The world holds the connections."""


async def _pause(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


class World:
    """One table and the processes on it."""

    def __init__(
        self, base: Base, clock: FakeClock, policy: Policy, processes: int
    ) -> None:
        self.base = base
        self.clock = clock
        self.policy = policy
        self.events: list[Event] = []
        self._ids = itertools.count(1)
        self._draws = itertools.count(1)
        self._shown: datetime | None = None
        self.wires: list[Wire] = []
        self.processes: list[Sessions] = []
        for _ in range(processes):
            wire, engine = self._start()
            self.wires.append(wire)
            self.processes.append(engine)

    def _start(self) -> tuple[Wire, Sessions]:
        wire = Wire(self.base.store)
        engine = Sessions(
            wire,  # type: ignore[arg-type]
            secret=SECRET,
            policy=self.policy,
            clock=self.clock,
            entropy=self._entropy,
            new_id=self._new_id,
        )
        engine.on(Event, self.events.append)
        return wire, engine

    def _entropy(self, size: int) -> bytes:
        return hashlib.shake_256(b"draw %d" % next(self._draws)).digest(size)

    def _new_id(self) -> str:
        return self.base.names.id.format(next(self._ids))

    async def follow_clock(self) -> None:
        """Let the database know what time it is."""
        if self._shown != self.clock.now():
            self._shown = self.clock.now()
            await self.base.set_clock(self._shown)

    async def kill(self, process: int) -> None:
        """kill -9: what was not written is lost, and a new process starts with nothing."""
        await self._end(process)
        self.wires[process], self.processes[process] = self._start()

    async def _end(self, process: int) -> None:
        self.wires[process].cut = True
        await self.processes[process].close()

    async def close(self) -> None:
        """End every process; nothing is written."""
        for process in range(len(self.processes)):
            await self._end(process)

    def refreshed(self, session_id: str) -> int:
        """How many rotations the processes say they made."""
        return sum(
            isinstance(e, Refreshed) and e.session_id == session_id for e in self.events
        )

    def replayed(self, session_id: str) -> Sequence[Replayed]:
        """The replays of one session that were reported."""
        return [
            e for e in self.events if isinstance(e, Replayed) and e.session_id == session_id
        ]


def client(n: int) -> Client:
    """One of several clients that differ in all that shows."""
    agent = f"browser/{n}"
    return Client(
        address=f"198.51.{n}.7",
        user_agent=agent,
        user_agent_hash=hashlib.sha256(agent.encode()).hexdigest(),
        fingerprint=f"device {n}",
    )


def sha256(text: str) -> str:
    """What the table stores of a token."""
    return hashlib.sha256(text.encode()).hexdigest()


def forgers_tokens() -> Tokens:
    """Somebody who knows the format and not the key."""
    return Tokens([WRONG_SECRET])


@contextmanager
def patched(target: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Break ``target`` for a while."""
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)
