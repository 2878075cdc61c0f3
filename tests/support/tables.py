"""Tables under test: a store, its clock, and foreign code that writes behind its back."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Protocol

from ulid import ULID

from handstamp.config import Policy
from handstamp.core.records import Client, NewSession, Successor
from handstamp.stores.base import Store
from handstamp.stores.memory import MemoryStore, MemoryUser
from handstamp.stores.shapes import ULID_HASHED, TableShape
from handstamp.stores.table import TableStore
from tests.support.clock import FakeClock
from tests.support.frozen_postgres import FrozenPostgres, frozen_postgres

_numbers = itertools.count()
LAPTOP = Client(address="198.51.100.7", user_agent="Laptop", fingerprint="f" * 64)


class Table(Protocol):
    """One table of sessions, whatever it is made of.

    ``write`` and ``write_user`` set fields of a row by the words of the records, as an
    application's own SQL could; unknown words are errors.
    """

    @property
    def store(self) -> Store: ...

    @property
    def now(self) -> datetime: ...

    async def advance(self, by: timedelta) -> None: ...

    async def add_user(self, user_id: str | None = None) -> str: ...

    async def write(self, session_id: str, **values: object) -> None: ...

    async def write_user(self, user_id: str, **values: object) -> None: ...

    async def delete_user(self, user_id: str) -> None: ...

    async def count(self) -> int: ...


class MemoryTable:
    """The reference implementation."""

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


class PostgresTable:
    """A table store on a PostgreSQL whose clock stands still."""

    def __init__(
        self, frozen: FrozenPostgres, store: TableStore, shape: TableShape
    ) -> None:
        self.frozen = frozen
        self.store = store
        self._shape = shape

    @property
    def now(self) -> datetime:
        return self.frozen.now

    async def advance(self, by: timedelta) -> None:
        await self.frozen.advance(by)

    async def add_user(self, user_id: str | None = None) -> str:
        user_id = user_id or str(ULID())
        name = f"user-{next(_numbers)}"
        users = self._shape.users
        await self.frozen.connection.execute(
            f"insert into {users.table} ({users.id}, username, password_hash, email_hash,"
            f" {users.password_changed_at}) values ($1, $2::text, 'x', $2::text, null)",
            user_id,
            name,
        )
        return user_id

    async def write(self, session_id: str, **values: object) -> None:
        await self._update(self._shape, session_id, values)

    async def write_user(self, user_id: str, **values: object) -> None:
        await self._update(self._shape.users, user_id, values)

    async def _update(self, names: Any, key: str, values: dict[str, object]) -> None:
        sets = ", ".join(
            f"{getattr(names, name)} = ${n}" for n, name in enumerate(values, 2)
        )
        status = await self.frozen.connection.execute(
            f"update {names.table} set {sets} where {names.id} = $1", key, *values.values()
        )
        assert status == "UPDATE 1"

    async def delete_user(self, user_id: str) -> None:
        users = self._shape.users
        await self.frozen.connection.execute(
            f"delete from {users.table} where {users.id} = $1", user_id
        )

    async def count(self) -> int:
        table = self._shape.table
        return await self.frozen.connection.fetchval(f"select count(*) from {table}")


@asynccontextmanager
async def postgres_table(
    dsn: str, *, shape: TableShape = ULID_HASHED, pool_size: int = 10
) -> AsyncIterator[PostgresTable]:
    """A table in this database, empty and at the fixed start of time."""
    async with frozen_postgres(dsn) as frozen:
        store = TableStore(dsn, shape=shape, pool_size=pool_size, connect=frozen.connect)
        try:
            yield PostgresTable(frozen, store, shape)
        finally:
            await store.close()


POLICY = Policy()
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
STEP = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def some_digest() -> str:
    """A digest that no other row has."""
    return sha256(str(next(_numbers)).encode()).hexdigest()


def new_session(user_id: str, **changes: Any) -> NewSession:
    """A session as the engine asks a store to create it."""
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


def successor(session_id: str, presented: str | None, **changes: Any) -> Successor:
    """One rotation as the engine asks a store to write it."""
    values: dict[str, Any] = {
        "id": session_id,
        "presented": presented,
        "token_digest": some_digest(),
        "refresh_digest": some_digest(),
        "session_ttl": POLICY.session_ttl,
        "refresh_ttl": POLICY.refresh_ttl,
        "longest": POLICY.absolute_ttl,
    }
    return Successor(**{**values, **changes})
