"""The optional trigger on Supabase's tables: who makes it notify, and who never does."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from handstamp.supabase.schema import install_supabase_trigger, supabase_trigger_script
from tests.support.supabase import HOUR, LAPTOP, OWNER, Supabase, supabase


class Town:
    """A database with the trigger, somebody who listens, and GoTrue at its tables."""

    def __init__(self, auth: Supabase) -> None:
        self.auth = auth
        self._said: list[str] = []

    async def listen(self) -> None:
        channel = self.auth.store.channel
        self._link = await channel.listen(self._said.append, lambda: None)

    async def heard(self) -> list[str]:
        """What was said since the last call, each once."""
        await self._link.prove()
        said = sorted(self._said)
        self._said.clear()
        return said

    async def run(self, sql: str, *values: object) -> list[str]:
        """Run what GoTrue runs, as the role it runs as; what was heard of it."""
        await self.heard()
        psql = self.auth.psql
        async with psql.transaction():
            await psql.execute(f"set local role {OWNER}")
            await psql.execute(sql, *values)
        return await self.heard()

    async def covers(self) -> bool:
        await self._link.all_writers_notify()  # False once after each change
        return await self._link.all_writers_notify()

    def leave(self) -> None:
        self._link.drop()


@asynccontextmanager
async def settled(dsn: str, *, trigger: bool = True, **rules: Any) -> AsyncIterator[Town]:
    async with supabase(dsn, **rules) as auth:
        psql = await asyncpg.connect(dsn)
        try:
            if trigger:
                await install_supabase_trigger(psql)
        finally:
            await psql.close()
        town = Town(auth)
        await town.listen()
        try:
            yield town
        finally:
            town.leave()


def test_there_is_no_table_to_make() -> None:
    """The tables are Supabase's own: only functions and triggers are ours, if wanted."""
    made = supabase_trigger_script()
    assert set(re.findall("^create (?:or replace )?([a-z]+)", made, re.M)) == {
        "function",
        "trigger",
    }


async def test_installing_makes_every_trigger_and_twice_none(supabase_dsn: str) -> None:
    """All are found the second time, and no table changes."""
    psql = await asyncpg.connect(supabase_dsn)
    try:
        first = await install_supabase_trigger(psql)
        second = await install_supabase_trigger(psql)
    finally:
        await psql.close()
    assert {outcome.state for outcome in first} == {"created"}
    assert {outcome.state for outcome in second} == {"found"}


async def test_a_database_without_factors_gets_the_other_triggers(
    supabase_dsn: str,
) -> None:
    """What is missing in an older one is skipped, with the reason."""
    psql = await asyncpg.connect(supabase_dsn)
    try:
        await psql.execute("drop table auth.mfa_factors")
        outcomes = await install_supabase_trigger(psql)
    finally:
        await psql.close()
    skipped = [outcome for outcome in outcomes if outcome.state == "skipped"]
    assert {outcome.statement.relation for outcome in skipped} == {"auth.mfa_factors"}
    assert all("no table auth.mfa_factors" in outcome.reason for outcome in skipped)


async def test_the_trigger_makes_all_writers_notify(
    supabase_dsn: str,
) -> None:
    """Where a rule depends on factors, those must be watched too."""
    async with settled(supabase_dsn, trigger=False) as town:
        assert await town.covers() is False
    async with settled(supabase_dsn) as town:
        assert await town.covers() is True
        await town.run("alter table auth.mfa_factors disable trigger user")
        assert await town.covers() is True
    async with settled(supabase_dsn, trigger=False, allow_low_aal=HOUR) as town:
        assert await town.covers() is False
        await town.run("alter table auth.mfa_factors enable trigger user")
        assert await town.covers() is True
        await town.run("alter table auth.sessions disable trigger user")
        assert await town.covers() is False


async def test_gotrue_s_own_writes_notify(each_supabase_dsn: str) -> None:
    """Logouts of every scope, bans, deletions, and a level that changes."""
    async with settled(each_supabase_dsn) as town:
        auth = town.auth
        user = await auth.add_user()
        ids = [(await auth.login(user)).session.id for _ in range(4)]
        said = [f"s:{known}" for known in ids]
        one = "delete from auth.sessions where id = $1"
        assert await town.run(one, ids[0]) == [said[0]]
        assert await town.run(one, ids[0]) == []
        others = "delete from auth.sessions where id <> $1 and user_id = $2"
        assert await town.run(others, ids[1], user) == sorted(said[2:])
        for change in (
            "update auth.sessions set aal = 'aal2'",
            "update auth.sessions set not_after = '2030-01-01'",
            "update auth.sessions set not_after = '2029-01-01'",
            "update auth.sessions set refreshed_at = '2029-01-01'",
            "update auth.sessions set refreshed_at = '2028-01-01'",
            "update auth.sessions set created_at = created_at - interval '1 hour'",
        ):
            quiet = change.endswith("refreshed_at = '2029-01-01'")
            assert await town.run(change) == ([] if quiet else [said[1]]), change
        for change in (
            "update auth.users set banned_until = '2030-01-01'",
            "update auth.users set banned_until = null",
            "update auth.users set deleted_at = now()",
        ):
            assert await town.run(change) == [f"u:{user}"], change
        assert await town.run("delete from auth.users") == sorted([said[1], f"u:{user}"])


async def test_what_a_before_trigger_changes_notifies(
    supabase_dsn: str,
) -> None:
    """A hook of the project that bans in passing, whatever the statement names."""
    async with settled(supabase_dsn) as town:
        user = await town.auth.add_user()
        ids = [(await town.auth.login(user)).session.id for _ in range(2)]
        await town.auth.psql.execute(
            "create function public.ban() returns trigger language plpgsql as $$ begin"
            " new.banned_until := now() + interval '1 day'; return new; end $$;"
            "create trigger ban before update on auth.users"
            " for each row execute function public.ban()"
        )
        assert await town.run("update auth.users set email = 'x'") == [f"u:{user}"]
        said = sorted(f"s:{known}" for known in ids)
        for change in ("created_at = null", "user_id = id"):
            sql = f"update auth.sessions set {change}"
            await town.auth.psql.execute(
                "alter table auth.sessions drop constraint if exists sessions_user_id_fkey"
            )
            assert await town.run(sql) == said, change


async def test_a_factor_that_changes_notifies(supabase_dsn: str) -> None:
    """Verified, unverified again, or gone: the user's highest level is another."""
    async with settled(supabase_dsn) as town:
        user = await town.auth.add_user()
        await town.heard()
        await town.auth.add_factor(user, "unverified")
        assert await town.heard() == [f"u:{user}"]
        assert await town.run("update auth.mfa_factors set updated_at = now()") == []
        verify = "update auth.mfa_factors set status = 'verified'"
        assert await town.run(verify) == [f"u:{user}"]
        other = await town.auth.add_user()
        move = "update auth.mfa_factors set user_id = $1"
        assert await town.run(move, other) == sorted([f"u:{user}", f"u:{other}"])
        assert await town.run("delete from auth.mfa_factors") == [f"u:{other}"]


async def test_truncating_notifies(supabase_dsn: str) -> None:
    """Anything may be over then."""
    async with settled(supabase_dsn) as town:
        assert await town.run("truncate auth.users cascade") == ["all"]


@pytest.mark.parametrize("version", [0, 2], ids=["v1", "v2"])
async def test_no_login_and_no_refresh_notifies(supabase_dsn: str, version: int) -> None:
    """NOTIFY in every commit would cost too much."""
    async with settled(supabase_dsn, algorithm_version=version) as town:
        auth = town.auth
        created = await auth.login()
        for _ in range(3):
            await auth.advance(HOUR)
            await auth.refreshed(created.refresh_token)
        await auth.store.sign_in(created.session.user_id, LAPTOP)
        assert await town.heard() == []


async def test_our_own_ends_are_said_once(supabase_dsn: str) -> None:
    """The trigger says nothing that was said already."""
    async with settled(supabase_dsn) as town:
        auth = town.auth
        created = await auth.login()
        user = created.session.user_id
        await auth.store.revoke(created.session.id, reason="x")
        assert await town.heard() == [f"s:{created.session.id}"]
        for _ in range(3):
            await auth.login(user)
        await auth.store.revoke_user(user, reason="x")
        assert await town.heard() == [f"u:{user}"]
