"""Several processes on one database of Supabase Auth, and queries of its tables."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

from handstamp import Policy
from handstamp.core.cookies import Credentials
from handstamp.core.models import Client
from handstamp.events import Event
from handstamp.supabase import SupabaseSessions
from handstamp.supabase.rules import SupabaseRules
from handstamp.supabase.store import SupabaseStore
from tests.rotation.supabase_families import STALENESS, TTL, Settings
from tests.support.clock import FakeClock
from tests.support.frozen_postgres import FrozenPostgres, frozen_postgres
from tests.support.supabase import ZERO, assert_gotrue_can_read
from tests.support.supabase_site import JWT_SECRET, NAME, URL, as_header

USERS = (
    "a11ce000-0000-4000-8000-000000000001",
    "b0b00000-0000-4000-8000-000000000002",
)
# A busy machine must not make a refresh "no answer", which is not predicted.
PATIENCE = timedelta(seconds=60)
POLICY = Policy(max_staleness=STALENESS, time_budget=PATIENCE)

_ADD_USER = """
    insert into auth.users (instance_id, id, aud, role, email, created_at, updated_at)
    values ($1, $2, 'authenticated', 'authenticated', $2::uuid::text || '@example.org',
        now(), now())"""
_EMPTY = """
    delete from auth.audit_log_entries; delete from auth.sessions;
    delete from auth.refresh_tokens; update auth.users set banned_until = null"""
_SESSIONS = """
    select id, user_id, created_at, updated_at,
        refreshed_at at time zone 'UTC' as refreshed_at, user_agent, host(ip) as address,
        refresh_token_hmac_key as key, refresh_token_counter as counter
    from auth.sessions"""
_TOKENS = """
    select session_id, token, parent, revoked, updated_at
    from auth.refresh_tokens order by id"""
_EVERYTHING = " union all ".join(
    f"select t::text as line from auth.{table} t"
    for table in ("users", "sessions", "refresh_tokens", "mfa_amr_claims")
)
_LOOK = f"""
    select (select json_agg(s) from ({_SESSIONS}) s)::text as sessions,
        (select json_agg(t) from ({_TOKENS}) t)::text as tokens,
        (select md5(string_agg(line, '|' order by line)) from ({_EVERYTHING}
            union all select id::text from auth.audit_log_entries) e) as digest"""


@dataclass(frozen=True)
class AuthTables:
    """The rows that the machine predicts, and a digest of all there are."""

    sessions: Mapping[str, Mapping[str, Any]] = field(repr=False)
    tokens: Mapping[str, list[Mapping[str, Any]]] = field(repr=False)
    digest: str


def _read(rows: str | None) -> list[dict[str, Any]]:
    return [
        {name: _value(name, row[name]) for name in row} for row in json.loads(rows or "[]")
    ]


def _value(name: str, value: Any) -> Any:
    return datetime.fromisoformat(value) if value and name.endswith("_at") else value


class StandingStore(SupabaseStore):
    """Stays connected when a process ends: the next one goes on with its connections."""

    async def close(self) -> None:
        """See :meth:`hang_up`."""

    async def hang_up(self) -> None:
        """Close it in earnest."""
        await super().close()


class SupabaseBase:
    """One real database whose clock is the machine's, and the stores on it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._open = AsyncExitStack()
        self._stores: dict[tuple[str, int, int], StandingStore] = {}
        self._shown: datetime | None = None

    async def open(self) -> None:
        """Connect, stop the clock, make the users."""
        self._frozen = await self._open.enter_async_context(frozen_postgres(self.dsn))
        for user in USERS:
            await self._frozen.connection.execute(_ADD_USER, ZERO, user)

    async def close(self) -> None:
        """Disconnect."""
        for store in self._stores.values():
            await store.hang_up()
        await self._open.aclose()

    async def reset(self) -> None:
        """Forget everything of the last example, if GoTrue could have read it."""
        await assert_gotrue_can_read(self._frozen.connection)
        await self._frozen.connection.execute(_EMPTY)

    async def set_clock(self, now: datetime) -> None:
        """From now on it is ``now`` in this database."""
        if self._shown != now:
            await self._frozen.set(now)
            self._shown = now

    async def ban(self, user_id: str, until: datetime | None) -> None:
        """What an administrator does at GoTrue, without telling anybody."""
        sql = "update auth.users set banned_until = $2 where id = $1"
        await self._frozen.connection.execute(sql, user_id, until)

    async def delete(self, session_id: str) -> None:
        """What GoTrue does at a sign-out."""
        sql = "delete from auth.sessions where id = $1"
        await self._frozen.connection.execute(sql, session_id)

    async def tables(self) -> AuthTables:
        """Everything as it is."""
        row = await self._frozen.connection.fetchrow(_LOOK)
        tokens: dict[str, list[Mapping[str, Any]]] = {}
        for token in _read(row["tokens"]):
            tokens.setdefault(token["session_id"], []).append(token)
        sessions = {session["id"]: session for session in _read(row["sessions"])}
        return AuthTables(sessions, tokens, row["digest"])

    def store(self, settings: Settings, version: int, upgrade: int) -> StandingStore:
        """The store under these settings, shared by the processes that have them."""
        key = settings.name, version, upgrade
        if key not in self._stores:
            rules: Any = {"algorithm_version": version, "upgrade": upgrade}
            self._stores[key] = StandingStore(
                self.dsn,
                entropy=os.urandom,
                connect=FrozenPostgres.connect,
                budget=PATIENCE,
                rules=SupabaseRules(
                    **rules,
                    access_token_ttl=TTL,
                    reuse_interval=settings.interval,
                    rotation_enabled=settings.rotation,
                    allow_reuse=settings.reuse,
                    timebox=settings.timebox,
                    inactivity=settings.inactivity,
                    retry_budget=PATIENCE,
                ),
            )
        return self._stores[key]


class AuthProcess:
    """One process: its engine, and what it published."""

    def __init__(self, store: StandingStore, dsn: str, clock: FakeClock) -> None:
        self.version, self.upgrade = store.rules.algorithm_version, store.rules.upgrade
        self.upgrades = store.rules.upgrades
        self.events: list[Event] = []
        # Several processes share a store, whose connections stay open.
        with patch("handstamp.supabase.SupabaseStore", lambda *_, **__: store):
            self.sessions = sessions = SupabaseSessions(
                dsn, url=URL, jwt_secret=JWT_SECRET, policy=POLICY, clock=clock
            )
        # The listener has a clock of its own, so these processes do not listen.
        sessions._listener._channel = None
        # Before the first answer it would go by the system's clock, which is elsewhere.
        sessions._state.database_clock.update(clock.now(), clock())
        sessions.on(Event, self.events.append)

    async def close(self) -> None:
        """The end of it, and of all that it remembered."""
        await self.sessions.close()

    def read(self, body: Mapping[str, object]) -> Credentials:
        """What a request carries whose cookie holds this session."""
        line = as_header(body, NAME)["cookie"].encode()
        return self.sessions.cookie_transport(None).reader.read([(b"cookie", line)])


def client(number: int) -> Client:
    """One of several clients that differ in all that is written down."""
    return Client(address=f"198.51.{number}.7", user_agent=f"browser/{number}")


async def all_at_once(*work: Any) -> list[Any]:
    """Await several things at once."""
    return list(await asyncio.gather(*work))
