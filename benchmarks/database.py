"""A database for one benchmark, and many unused sessions in it."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
from ulid import ULID

from handstamp.config import Policy
from handstamp.core.models import Client
from handstamp.core.tokens import ENTROPY, TokenPair, Tokens
from handstamp.stores.install import install
from handstamp.stores.postgres import UNKNOWN_ADDRESS
from handstamp.testing.postgres import ephemeral

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]

SECRET = "the secret of the benchmarks: 32 bytes and more"
POOL_SIZE = 10
USERS = 100
_SETTINGS = {"shared_preload_libraries": "pg_stat_statements"}
_AS_SHIPPED = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
"""The defaults of PostgreSQL: a commit is on disk when it returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    """A session in the table, and its tokens."""

    id: str
    user_id: str
    pair: TokenPair


@contextmanager
def database(*, shape: str = "ulid", trigger: bool = False) -> Iterator[str]:
    """The address of a new database, dropped at the end, with empty tables.

    A server that is started for this has the durability settings of PostgreSQL's defaults.
    """
    with _server() as admin:
        name = f"handstamp_bench_{secrets.token_hex(6)}"
        dsn = urlunsplit(urlsplit(admin)._replace(path="/" + quote(name)))
        asyncio.run(_execute(admin, f"create database {name}"))
        try:
            asyncio.run(_install(dsn, shape, trigger))
            yield dsn
        finally:
            asyncio.run(_execute(admin, f"drop database {name} with (force)"))


@contextmanager
def _server() -> Iterator[str]:
    given = os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    with ephemeral(settings={**_SETTINGS, **_AS_SHIPPED}) as server:
        yield server.dsn()


async def _execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def _install(dsn: str, shape: str, trigger: bool) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await install(connection, shape, trigger=trigger)
    finally:
        await connection.close()


def connect_pool(dsn: str) -> Pool:
    """A pool as handstamp's own: as large, and without the reset that costs a round
    trip after every query. Await it, or enter it."""
    return asyncpg.create_pool(dsn, min_size=POOL_SIZE, max_size=POOL_SIZE, reset=_keep)


async def _keep(connection: object) -> None: ...


async def seed(pool: Pool, count: int, policy: Policy) -> list[Seeded]:
    """Put ``count`` live sessions of a hundred users into the tables."""
    tokens, users = Tokens([SECRET]), [str(ULID()) for _ in range(USERS)]
    rows = [_row(tokens, users[number % USERS]) for number in range(count)]
    await pool.copy_records_to_table(
        "users",
        columns=["id", "username", "password_hash"],
        records=[(user, f"user{number}", "-") for number, user in enumerate(users)],
    )
    await pool.copy_records_to_table(
        "user_sessions",
        columns=list(_columns(rows[0], policy)),
        records=[tuple(_columns(row, policy).values()) for row in rows],
    )
    await pool.execute("vacuum analyze")
    return rows


def _row(tokens: Tokens, user_id: str) -> Seeded:
    session_id = str(ULID())
    entropy = secrets.token_bytes(2 * ENTROPY)
    pair = tokens.mint(session_id, entropy, remember=True)
    return Seeded(id=session_id, user_id=user_id, pair=pair)


def _columns(row: Seeded, policy: Policy) -> Mapping[str, Any]:
    now = datetime.now(UTC) - timedelta(seconds=10)
    return {
        "id": row.id,
        "user_id": row.user_id,
        "session_token_hash": row.pair.session_digest,
        "refresh_token_hash": row.pair.refresh_digest,
        "ip_address": UNKNOWN_ADDRESS,
        "user_agent_hash": Client().user_agent_hash,
        "expires_at": now + policy.session_ttl,
        "refresh_expires_at": now + policy.refresh_ttl,
        "last_activity_at": now,
        "is_active": True,
        "created_at": now,
    }
