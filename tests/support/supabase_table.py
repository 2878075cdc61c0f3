"""Supabase's own tables as one more table of the store contract.

Sessions are opened by `SupabaseStore.sign_in`, as an application's are; rows are read and
changed by SQL, in the schema and on the frozen clock of `tests/support/supabase.py`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from uuid import UUID

from handstamp.config import Policy
from handstamp.core.models import NewSession
from handstamp.stores.base import Created
from handstamp.stores.shapes import TableShape, UsersTable
from handstamp.supabase.rows import record_of
from handstamp.supabase.store import SupabaseStore
from tests.support.foreign_tables import ForeignTable
from tests.support.frozen_postgres import SEARCH_PATH
from tests.support.supabase import Supabase, supabase

CENTURY = timedelta(days=36_500)
ABLE = SupabaseStore("postgresql://localhost/nothing", entropy=os.urandom).capabilities

SUPABASE = ForeignTable(
    shape=TableShape(
        table="auth.sessions",
        token="id",
        refresh_token=None,
        refresh_expires_at=None,
        expires_at="not_after",
        last_activity_at="refreshed_at",
        is_active=None,
        revoked_at=None,
        revoked_reason=None,
        address="ip",
        user_agent="user_agent",
        user_agent_hash=None,
        fingerprint=None,
        level="aal",
        new_id="uuid",
        users=UsersTable(
            table="auth.users",
            is_active="banned_until",
            locked_until=None,
            password_changed_at=None,
        ),
    ),
    new_user=None,
    delete_user="delete from auth.users where id = $1",
    able=ABLE,
    lacks={
        "refresh": "GoTrue's tokens are replaced by SupabaseStore.refresh",
        "activity": "no column records it",
        "sliding": "no activity moves the end of a session",
        "password_change": "GoTrue deletes the sessions when it writes a password",
        "plain": "an access token stands in no row",
        "own_ids": "what an access token names is the id itself",
        "max_sessions": "a login keeps to no number of sessions",
        "lifetimes": "sessions end by GoTrue's rules, and by no limit of a Policy",
        "new_tokens": "GoTrue alone replaces tokens",
        "step_up": "GoTrue raises the level, when it verifies a second factor",
        "locked_until": "GoTrue locks nobody out for failed logins",
        "is_active": "a session that ended has no row",
        "revoked_at": "a session that ended has no row",
        "revoked_reason": "a session that ended has no row",
        "kept": "a session that ended has no row",
        "prune": "GoTrue's own cleanup deletes the rows of sessions that are over",
    },
)


class Entropy:
    """Random bytes, except for the id of the next session, which a test may choose."""

    def __init__(self) -> None:
        self.id: UUID | None = None

    def __call__(self, length: int) -> bytes:
        if length == 16 and self.id is not None:
            chosen, self.id = self.id, None
            return chosen.bytes
        return os.urandom(length)


class AuthTable:
    """`auth.sessions` of one database with a frozen clock.

    Sessions end by age, at the refresh limit of the other tables.
    """

    name = "supabase"
    shape = SUPABASE.shape
    lowest_level = 1
    retention = timedelta(hours=24)

    def __init__(self, auth: Supabase, entropy: Entropy) -> None:
        self.auth = auth
        self.frozen = auth.frozen
        self.store = auth.store
        self._entropy = entropy

    @property
    def now(self) -> datetime:
        return self.auth.now

    async def advance(self, by: timedelta) -> None:
        await self.auth.advance(by)

    async def add_user(self, user_id: str | None = None) -> str:
        return await self.auth.add_user(**({} if user_id is None else {"id": user_id}))

    async def create(self, new: NewSession, policy: Policy) -> Created:
        """As an application signs in; with the id that stands for the new token's digest.

        How long a session lasts is for the rules to say, and not for `new`.
        """
        assert new.limit is None
        self._entropy.id = UUID(new.token_digest)
        made = await self.store.sign_in(new.user_id, new.client, replaces=new.replaces)
        record = record_of(made.session, self.store.rules)
        return Created(record=record, ended=made.ended)

    async def write(self, session_id: str, **values: object) -> None:
        columns = {str(getattr(self.shape, name)): value for name, value in values.items()}
        if columns.get("aal") is not None:
            columns["aal"] = f"aal{columns['aal']}"
        at = columns.get("refreshed_at")
        if isinstance(at, datetime):
            columns["refreshed_at"] = at.replace(tzinfo=None)  # of UTC
        await self.auth.write(session_id, **columns)

    async def write_user(self, user_id: str, *, is_active: bool) -> None:
        """Ban a user, or end the ban."""
        until = None if is_active else self.now + CENTURY
        await self.auth.write_user(user_id, banned_until=until)

    async def delete_user(self, user_id: str) -> None:
        await self.auth.psql.execute(str(SUPABASE.delete_user), user_id)

    async def count(self) -> int:
        return await self.auth.count("sessions")

    async def others(self) -> set[int]:
        return await self.frozen.others()

    def outage(self) -> AbstractAsyncContextManager[None]:
        return self.frozen.unreachable()


@asynccontextmanager
async def auth_table(dsn: str, *, time_zone: str = "UTC") -> AsyncIterator[AuthTable]:
    """The tables in this database, with the clock at its start."""
    entropy = Entropy()
    async with supabase(
        dsn,
        entropy=entropy,
        timebox=Policy().refresh_ttl,
        connect={"server_settings": {"search_path": SEARCH_PATH, "TimeZone": time_zone}},
    ) as auth:
        yield AuthTable(auth, entropy)
