"""A database of Supabase Auth under test: its store, its clock, and GoTrue's writes."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from handstamp.core.models import Client
from handstamp.errors import ConfigError
from handstamp.supabase.rows import CreatedAuthSession, Refreshed, Refused
from handstamp.supabase.rules import AuthSession, SupabaseRules
from handstamp.supabase.schema import INSPECT, TABLES, Schema, read_schema
from handstamp.supabase.store import SupabaseStore
from tests.support.frozen_postgres import FrozenPostgres, frozen_postgres

OWNER = "supabase_auth_admin"
ZERO = UUID(int=0)
LAPTOP = Client(address="198.51.100.7", user_agent="Laptop")
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
STEP = timedelta(microseconds=1)
WAITING = """
    select count(*) from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock'"""
_HERE = Path(__file__).parent
_TABLES = _HERE.parents[1] / "examples" / "sql" / "auth.sql"
_DDL = [path.read_text("utf-8") for path in (_TABLES, _HERE / "supabase.sql")]
_OWNER = """
    do $body$ begin create role supabase_auth_admin;
    exception when duplicate_object or unique_violation then null; end $body$;
    do $body$ begin execute format(
    'grant create on database %I to supabase_auth_admin', current_database()); end $body$;
    set role supabase_auth_admin"""


async def make_tables(dsn: str) -> None:
    """Create the tables in an empty database, owned as they are at Supabase."""
    connection = await asyncpg.connect(dsn)
    try:
        for sql in (_OWNER, *_DDL):
            await connection.execute(sql)
    finally:
        await connection.close()


class Supabase:
    """One database with a frozen clock, and a store on it."""

    def __init__(self, dsn: str, frozen: FrozenPostgres, store: SupabaseStore) -> None:
        self.dsn = dsn
        self.frozen = frozen
        self.store = store
        self._others: list[SupabaseStore] = []

    @property
    def psql(self) -> asyncpg.Connection:
        """A superuser's connection, on the frozen clock."""
        return self.frozen.connection

    @property
    def now(self) -> datetime:
        return self.frozen.now

    async def advance(self, by: timedelta) -> None:
        await self.frozen.advance(by)

    def another(self, **settings: Any) -> SupabaseStore:
        """One more store on the same database, closed at the end."""
        store = new_store(self.dsn, **settings)
        self._others.append(store)
        return store

    async def close(self) -> None:
        for store in (self.store, *self._others):
            await store.close()

    async def add_user(self, **values: Any) -> str:
        """A user that a real GoTrue would find."""
        user_id = str(uuid4())
        row = {
            "instance_id": ZERO,
            "id": user_id,
            "aud": "authenticated",
            "role": "authenticated",
            "email": f"{user_id}@example.org",
            "raw_app_meta_data": '{"provider": "email"}',
            "raw_user_meta_data": '{"full_name": "Ada"}',
            "created_at": self.now,
            "updated_at": self.now,
            "confirmation_token": "",
            "recovery_token": "",
            "email_change_token_new": "",
            "email_change": "",
            **values,
        }
        await self.insert("users", row)
        return user_id

    async def add_factor(self, user_id: str, status: str = "verified") -> None:
        await self.psql.execute(
            "insert into auth.mfa_factors (id, user_id, factor_type, status, created_at,"
            " updated_at) values ($1, $2, 'totp', $3, now(), now())",
            uuid4(),
            user_id,
            status,
        )

    async def insert(self, table: str, row: dict[str, Any]) -> None:
        marks = ", ".join(f"${n}" for n in range(1, len(row) + 1))
        await self.psql.execute(
            f"insert into auth.{table} ({', '.join(row)}) values ({marks})", *row.values()
        )

    async def login(
        self,
        user_id: str | None = None,
        *,
        method: str = "password",
        replaces: tuple[str, ...] = (),
        **columns: object,
    ) -> CreatedAuthSession:
        """Signs in; ``columns`` are then written to the row, as another server may."""
        owner = user_id or await self.add_user()
        created = await self.store.sign_in(owner, LAPTOP, method=method, replaces=replaces)
        if not columns:
            return created
        await self.write(created.session.id, **columns)
        session = await read_session(self.store, created.session.id)
        assert session is not None
        return replace(created, session=session)

    async def refreshed(self, token: str, **options: Any) -> Refreshed:
        outcome = await self.store.refresh(token, LAPTOP, **options)
        assert isinstance(outcome, Refreshed), outcome
        return outcome

    async def refused(self, token: str, **options: Any) -> Refused:
        outcome = await self.store.refresh(token, LAPTOP, **options)
        assert isinstance(outcome, Refused), outcome
        return outcome

    async def session(self, session_id: str) -> asyncpg.Record:
        row = await self.psql.fetchrow(
            "select * from auth.sessions where id = $1", session_id
        )
        assert row is not None
        return row

    async def tokens(self, session_id: str) -> list[asyncpg.Record]:
        """The v1 rows of a session, in the order they were written."""
        return await self.psql.fetch(
            "select * from auth.refresh_tokens where session_id = $1 order by id",
            session_id,
        )

    async def write(self, session_id: str, **values: object) -> None:
        await self._update("sessions", session_id, values)

    async def write_user(self, user_id: str, **values: object) -> None:
        await self._update("users", user_id, values)

    async def write_token(self, token: str, **values: object) -> None:
        await self._update("refresh_tokens", token, values, key="token")

    async def _update(
        self, table: str, value: str, values: dict[str, object], key: str = "id"
    ) -> None:
        sets = ", ".join(f"{name} = ${n}" for n, name in enumerate(values, 2))
        status = await self.psql.execute(
            f"update auth.{table} set {sets} where {key} = $1", value, *values.values()
        )
        assert status == "UPDATE 1"

    async def count(self, table: str) -> int:
        return await self.psql.fetchval(f"select count(*) from auth.{table}")

    async def audited(self) -> list[str]:
        """The actions in the audit log, in no order."""
        rows = await self.psql.fetch("select payload from auth.audit_log_entries")
        return sorted(json.loads(row["payload"])["action"] for row in rows)

    async def snapshot(self) -> dict[str, list[asyncpg.Record]]:
        """Everything in the tables, to see that nothing was written."""
        tables = ("users", "sessions", "refresh_tokens", "mfa_amr_claims")
        return {
            table: await self.psql.fetch(f"select * from auth.{table} order by id")
            for table in (*tables, "audit_log_entries")
        }


async def read_session(store: SupabaseStore, session_id: str) -> AuthSession | None:
    """The row with this id."""
    found = await store.read_sessions([session_id])
    return found[0] if found else None


async def inspect(store: SupabaseStore) -> Schema:
    """What the tables have now. Raises the first defect that prevents writing."""
    rows = await store._database.read(INSPECT, store._name, list(TABLES))
    schema = read_schema(store._name, rows, store.rules)
    if schema.unwritable is not None:
        raise ConfigError(schema.unwritable)
    return schema


def new_store(dsn: str, **settings: Any) -> SupabaseStore:
    """A store on the frozen clock; settings of the store, or of its rules."""
    connect = {**FrozenPostgres.connect, **settings.pop("connect", {})}
    names = (
        "keys",
        "oauth_clients",
        "pool_size",
        "budget",
        "schema",
        "entropy",
        "listen_dsn",
    )
    own = {name: settings.pop(name) for name in names if name in settings}
    return SupabaseStore(
        dsn,
        rules=settings.pop("rules", None) or SupabaseRules(**settings),
        connect=connect,
        **{"entropy": os.urandom, **own},
    )


@asynccontextmanager
async def supabase(dsn: str, **settings: Any) -> AsyncIterator[Supabase]:
    """Supabase Auth in this database, at the fixed start of time."""
    async with frozen_postgres(dsn) as frozen:
        world = Supabase(dsn, frozen, new_store(dsn, **settings))
        try:
            yield world
        finally:
            await world.close()


async def somebody_waits(connection: asyncpg.Connection) -> None:
    """Return when a connection of this database waits for a lock."""
    async with asyncio.timeout(15):
        while await connection.fetchval(WAITING) < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# What GoTrue's Go types need although the columns allow NULL. It reads with `select *`.
_NEEDED = {
    "sessions": ("created_at", "updated_at"),
    "refresh_tokens": (
        *("instance_id", "token", "user_id", "revoked"),
        *("created_at", "updated_at"),
    ),
}
_SESSION_FIELDS = 15
_TOKEN_FIELDS = 9


async def assert_gotrue_can_read(connection: asyncpg.Connection) -> None:
    """Every row scans into GoTrue's types, and means what GoTrue means by it."""
    for table, needed in _NEEDED.items():
        for row in await connection.fetch(f"select * from auth.{table}"):
            assert len(row) == (_SESSION_FIELDS if table == "sessions" else _TOKEN_FIELDS)
            assert [name for name in needed if row[name] is None] == []
    for row in await connection.fetch("select * from auth.refresh_tokens"):
        assert row["instance_id"] == ZERO
        assert re.fullmatch("[a-z2-7]{12}", row["token"])
        assert UUID(row["user_id"])
    for row in await connection.fetch("select * from auth.sessions"):
        pair = row["refresh_token_hmac_key"], row["refresh_token_counter"]
        assert (pair[0] is None) == (pair[1] is None)
        assert row["id"].version == 4
        assert row["aal"] in ("aal1", "aal2", "aal3")
    for row in await connection.fetch("select * from auth.mfa_amr_claims"):
        assert row["id"].version == 4
    for row in await connection.fetch("select * from auth.audit_log_entries"):
        assert row["instance_id"] == ZERO
        assert row["ip_address"] == ""
        assert {"action", "actor_id", "log_type"} <= set(json.loads(row["payload"]))
