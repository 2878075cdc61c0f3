"""Tables under test: a store, its clock, and writes by other programs."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Protocol

import asyncpg
import pytest
from ulid import ULID

from handstamp.config import Policy
from handstamp.core.models import Client, NewSession, Rotation, StepUp
from handstamp.stores.base import Created
from handstamp.stores.memory import MemoryStore, MemoryUser
from handstamp.stores.resolve import ColumnRef, capabilities_of
from handstamp.stores.shapes import PREFIX, ULID_HASHED, UUID_PLAIN, TableShape, quoted
from handstamp.stores.table import TableStore
from tests.support.clock import FakeClock
from tests.support.foreign_tables import FOREIGN, ForeignTable
from tests.support.frozen_postgres import SEARCH_PATH, FrozenPostgres, frozen_postgres
from tests.support.supabase_table import SUPABASE, auth_table

_numbers = itertools.count()
BUDGET = timedelta(seconds=30)
"""So that no test of what a store does depends on the speed of the machine."""
LAPTOP = Client(address="198.51.100.7", user_agent="Laptop", fingerprint="f" * 64)


ULID_TABLE = ForeignTable(
    shape=ULID_HASHED,
    new_user="insert into users (username, password_hash, email_hash,"
    " last_password_change) values ($1::text, 'x', $1::text, null) returning id",
    delete_user="delete from users where id = $1",
)
UUID_TABLE = ForeignTable(shape=UUID_PLAIN, new_user=None, delete_user=None)
MEMORY_TABLE = replace(ULID_TABLE, shape=replace(ULID_HASHED, level="level"))
DEFINITIONS = {
    "memory": MEMORY_TABLE,
    "ulid": ULID_TABLE,
    "uuid": UUID_TABLE,
    "supabase": SUPABASE,
    **FOREIGN,
}
"""Every table that the contract suite runs over, by name."""


def has(name: str, word: str) -> bool:
    """Whether the table of this name has a capability, or a column for a field.

    More words: ``own_ids`` are unique and not the token's digest, ``user_table`` is where
    users can be deleted, and of sessions that ended a ``kept`` row stays; a login keeps to
    ``max_sessions``, the ``lifetimes`` of a policy end sessions, ``touch`` records
    activity, ``new_tokens`` replaces tokens, ``step_up`` raises a level and ``prune``
    deletes rows.
    """
    definition = DEFINITIONS[name]
    shape, users = definition.shape, definition.shape.users
    if word in definition.lacks:
        return False
    if word in ("max_sessions", "lifetimes", "new_tokens", "prune"):
        return True
    if word == "touch":
        return has(name, "activity") or has(name, "sliding")
    if word == "own_ids":
        return not shape.id_is_token
    if word == "user_table":
        return definition.delete_user is not None
    if word == "kept":
        return shape.is_active is not None or shape.revoked_at is not None
    if word == "locked_until":
        return users is not None and users.locked_until is not None
    able = definition.able or capabilities_of(shape)
    word = "level" if word == "step_up" else word
    return bool(getattr(able if hasattr(able, word) else shape, word))


class Table(Protocol):
    """One table of sessions, in memory or in PostgreSQL.

    ``write`` and ``write_user`` set fields of a row by the words of the records, as an
    application's own SQL could; unknown words are errors, and where a column is never
    null, a test that would make it so is skipped. ``create`` opens a session the way this
    table has, ``retention`` is how long it keeps a dead row under the default policy,
    ``others`` are the connections made since the test began, and in an ``outage`` no
    connection reaches the table.
    """

    lowest_level: int
    retention: timedelta

    @property
    def store(self) -> Any: ...

    @property
    def shape(self) -> TableShape: ...

    @property
    def name(self) -> str: ...

    @property
    def now(self) -> datetime: ...

    async def advance(self, by: timedelta) -> None: ...

    async def add_user(self, user_id: str | None = None) -> str: ...

    async def create(self, new: NewSession, policy: Policy) -> Created: ...

    async def write(self, session_id: str, **values: object) -> None: ...

    async def write_user(self, user_id: str, **values: object) -> None: ...

    async def delete_user(self, user_id: str) -> None: ...

    async def count(self) -> int: ...

    async def others(self) -> set[int]: ...

    def outage(self) -> AbstractAsyncContextManager[None]: ...


class MemoryTable:
    """The table of the reference implementation, in memory."""

    shape = MEMORY_TABLE.shape
    name = "memory"
    lowest_level = 0
    retention = Policy().retention

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock.now)

    @property
    def now(self) -> datetime:
        return self.clock.now()

    async def advance(self, by: timedelta) -> None:
        self.clock.advance(by)

    async def add_user(self, user_id: str | None = None) -> str:
        user_id = user_id or str(ULID())
        self.store.users[user_id] = MemoryUser()
        return user_id

    async def create(self, new: NewSession, policy: Policy) -> Created:
        return await self.store.create(new, policy)

    async def write(self, session_id: str, **values: Any) -> None:
        self.store.rows[session_id] = replace(self.store.rows[session_id], **values)

    async def write_user(self, user_id: str, **values: object) -> None:
        for name, value in values.items():
            setattr(self.store.users[user_id], name, value)

    async def delete_user(self, user_id: str) -> None:
        del self.store.users[user_id]
        for row in [r for r in self.store.rows.values() if r.user_id == user_id]:
            del self.store.rows[row.id]

    async def count(self) -> int:
        return len(self.store.rows)

    async def others(self) -> set[int]:
        return set()

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self.store.down = True
        yield
        self.store.down = False


FIELDS = {"token_digest": "token", "refresh_digest": "refresh_token"}
"""Fields that have another name in a record than in a shape."""


class PostgresTable:
    """A table store on a PostgreSQL with a frozen clock."""

    lowest_level = 0
    retention = Policy().retention

    def __init__(
        self, frozen: FrozenPostgres, store: TableStore, definition: ForeignTable
    ) -> None:
        self.frozen = frozen
        self.store = store
        self.shape = definition.shape
        self.name = next((n for n, d in DEFINITIONS.items() if d is definition), "")
        self._definition = definition

    @property
    def now(self) -> datetime:
        return self.frozen.now

    async def advance(self, by: timedelta) -> None:
        await self.frozen.advance(by)

    async def add_user(self, user_id: str | None = None) -> str:
        if self._definition.new_user is None:
            return str(uuid.uuid4())
        name = f"user-{next(_numbers)}"
        made = await self.frozen.connection.fetchval(self._definition.new_user, name)
        if user_id is None:
            return str(made)
        await self._update("users", made, {"id": user_id})
        return user_id

    async def create(self, new: NewSession, policy: Policy) -> Created:
        return await self.store.create(new, policy)

    async def write(self, session_id: str, **values: object) -> None:
        await self._update("sessions", session_id, values)

    async def plant(self, session_id: str, token: str) -> None:
        """Write a plaintext token into a row, as the application did before handstamp."""
        await self._update("sessions", session_id, {"token_digest": _InClear(token)})

    async def write_user(self, user_id: str, **values: object) -> None:
        await self._update("users", user_id, values)

    async def _update(self, where: str, key: str, values: dict[str, object]) -> None:
        resolved = (await self.store.statements()).resolved
        columns, table = resolved.columns, self.shape.table
        if where == "users":
            assert resolved.users is not None
            assert self.shape.users is not None
            columns, table = resolved.users, self.shape.users.table
        refs = [columns[FIELDS.get(name, name)] for name in values]
        sets = ", ".join(_assignment(one, n) for n, one in enumerate(refs, 2))
        sql = f"update {quoted(table)} set {sets} where {columns['id'].name}::text = $1"
        try:
            status = await self.frozen.connection.execute(
                sql, key, *(self._stored(name, value) for name, value in values.items())
            )
        except asyncpg.NotNullViolationError as exc:
            pytest.skip(f"{table}.{exc.column_name} is never null")
        assert status == "UPDATE 1"

    def _stored(self, name: str, value: object) -> object:
        prefixed = name == "token_digest" and self.shape.at_rest != "digest"
        if prefixed and not isinstance(value, _InClear):
            return f"{PREFIX}{value}"
        return str(value) if name == "level" and value is not None else value

    async def delete_user(self, user_id: str) -> None:
        assert self._definition.delete_user is not None
        await self.frozen.connection.execute(self._definition.delete_user, user_id)

    async def count(self) -> int:
        table = quoted(self.shape.table)
        return await self.frozen.connection.fetchval(f"select count(*) from {table}")

    async def others(self) -> set[int]:
        return await self.frozen.others()

    def outage(self) -> AbstractAsyncContextManager[None]:
        return self.frozen.unreachable()


class _InClear(str):
    """A token that is written in plaintext."""

    __slots__ = ()


def _assignment(column: ColumnRef, n: int) -> str:
    if column.naive:
        return f"{column.name} = ${n}::timestamptz at time zone 'utc'"
    typed = "" if column.cast in ("timestamptz", "bool") else "::text"
    return f"{column.name} = ${n}{typed}::{column.cast}"


@asynccontextmanager
async def postgres_table(
    dsn: str,
    *,
    definition: ForeignTable = ULID_TABLE,
    pool_size: int = 10,
    time_zone: str = "UTC",
) -> AsyncIterator[PostgresTable]:
    """A table in this database, with the clock at its start."""
    settings = {"search_path": SEARCH_PATH, "TimeZone": time_zone}
    async with frozen_postgres(dsn) as frozen:
        store = TableStore(
            dsn,
            shape=definition.shape,
            pool_size=pool_size,
            budget=BUDGET,
            connect={"server_settings": settings},
        )
        try:
            yield PostgresTable(frozen, store, definition)
        finally:
            await store.close()


@asynccontextmanager
async def opened(name: str, dsn: str, time_zone: str = "UTC") -> AsyncIterator[Table]:
    """The table of this name, without rows of earlier tests."""
    if name == "memory":
        yield MemoryTable()
        return
    if DEFINITIONS[name] is SUPABASE:
        table: Any = auth_table(dsn, time_zone=time_zone)
    else:
        table = postgres_table(dsn, definition=DEFINITIONS[name], time_zone=time_zone)
    async with table as opened:
        await opened.frozen.empty()
        yield opened


POLICY = Policy()
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
STEP = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def some_digest() -> str:
    """A digest that no other row has."""
    return sha256(str(next(_numbers)).encode()).hexdigest()


def new_session(user_id: str, **changes: Any) -> NewSession:
    """A session that the engine asks a store to create."""
    values: dict[str, Any] = {
        "id": str(ULID()),
        "user_id": user_id,
        "token_digest": some_digest(),
        "refresh_digest": some_digest(),
        "client": LAPTOP,
        "session_ttl": POLICY.session_ttl,
        "refresh_ttl": POLICY.refresh_ttl,
        "longest": POLICY.absolute_ttl,
    }
    return NewSession(**{**values, **changes})


async def fresh_session(table: Table, user_id: str, **changes: Any) -> NewSession:
    """The same with an id of this table's form, and a refresh token if it has one."""
    values: dict[str, Any] = {"id": await fresh_id(table)}
    if not table.store.capabilities.refresh:
        longest = changes.get("longest", POLICY.absolute_ttl)
        ttl = min(changes.pop("refresh_ttl", POLICY.refresh_ttl), longest)
        values |= {"refresh_digest": None, "session_ttl": ttl}
    if table.shape.id_is_token and table.shape.new_id == "uuid":
        values["token_digest"] = str(uuid.uuid4())
    return new_session(user_id, **values | changes)


async def fresh_id(table: Table) -> str:
    """An unused id of this table's form."""
    if table.shape.new_id == "uuid":
        return str(uuid.uuid4())
    made = await table.store.new_id(lambda: str(ULID()))
    assert made is not None
    return made


def step_up(session_id: str, level: int | None, **changes: Any) -> StepUp:
    """New tokens that the engine asks a store to write, with or without a higher level."""
    values: dict[str, Any] = {
        "id": session_id,
        "level": level,
        "token_digest": some_digest(),
        "refresh_digest": some_digest(),
        "session_ttl": POLICY.session_ttl,
        "refresh_ttl": POLICY.refresh_ttl,
        "longest": POLICY.absolute_ttl,
    }
    return StepUp(**{**values, **changes})


def successor(session_id: str, presented: str | None, **changes: Any) -> Rotation:
    """One rotation that the engine asks a store to write."""
    values: dict[str, Any] = {
        "id": session_id,
        "presented": presented,
        "token_digest": some_digest(),
        "refresh_digest": some_digest(),
        "session_ttl": POLICY.session_ttl,
        "refresh_ttl": POLICY.refresh_ttl,
        "longest": POLICY.absolute_ttl,
    }
    return Rotation(**{**values, **changes})
