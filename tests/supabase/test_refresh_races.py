"""Refreshing while others are at the same rows, on several connections."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from handstamp.errors import SessionsUnavailable
from handstamp.supabase.rows import Outcome, Refreshed, Refused
from handstamp.supabase.rules import Refusal
from handstamp.supabase.store import SupabaseStore
from tests.support.supabase import (
    LAPTOP,
    SECOND,
    WAITING,
    Supabase,
    assert_gotrue_can_read,
    somebody_waits,
    supabase,
)
from tests.support.waiting import until

V2: dict[str, Any] = {"algorithm_version": 2, "reuse_interval": 10 * SECOND}
KINDS = pytest.mark.parametrize("rules", [{}, V2], ids=["v1", "v2"])
PATIENT = {"retry_budget": timedelta(seconds=60), "budget": timedelta(seconds=60)}
BRIEF = {"retry_budget": timedelta(milliseconds=1)}


@asynccontextmanager
async def elsewhere(auth: Supabase) -> AsyncIterator[asyncpg.Connection]:
    """A transaction of GoTrue's, open until the block ends, and then committed."""
    connection = await asyncpg.connect(auth.dsn)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


class Attempts:
    """Counts the statements by which refreshes look a token up."""

    def __init__(self, *stores: SupabaseStore) -> None:
        self._stores = stores
        self._before = self._sum()

    def _sum(self) -> int:
        return sum(store.queries for store in self._stores)

    @property
    def made(self) -> int:
        return self._sum() - self._before


async def refresh_at_once(
    auth: Supabase, token: str, number: int, **rules: Any
) -> list[Outcome]:
    """Refresh so often in parallel on four pools, all begun while the row is held."""
    stores = [auth.another(**PATIENT, **rules) for _ in range(4)]
    attempts = Attempts(*stores)
    async with elsewhere(auth) as gotrue:
        await gotrue.execute("select from auth.sessions for update")
        tasks = [
            asyncio.create_task(stores[n % 4].refresh(token, LAPTOP)) for n in range(number)
        ]
        # Each look-up of a token, and what the database has, and failures to lock.
        await until(lambda: attempts.made >= 4 + 2 * number)
    return list(await asyncio.gather(*tasks))


async def test_twenty_refreshes_of_one_v1_token_are_one_successor(
    supabase_dsn: str,
) -> None:
    """One swaps; the others find the parent of the active token. One row is inserted."""
    async with supabase(supabase_dsn) as auth:
        created = await auth.login()
        outcomes = await refresh_at_once(auth, created.refresh_token, 20)
        assert all(isinstance(outcome, Refreshed) for outcome in outcomes)
        assert len({outcome.refresh_token for outcome in outcomes}) == 1
        reused = Counter(outcome.reused for outcome in outcomes)
        assert reused == {False: 1, True: 19}
        rows = await auth.tokens(created.session.id)
        assert [row["revoked"] for row in rows] == [True, False]
        await assert_gotrue_can_read(auth.psql)


async def test_twenty_refreshes_of_one_v2_token_are_one_successor(
    supabase_dsn: str,
) -> None:
    """One counts; the others are one behind, and concurrent."""
    async with supabase(supabase_dsn, **V2) as auth:
        created = await auth.login()
        outcomes = await refresh_at_once(auth, created.refresh_token, 20, **V2)
        assert all(isinstance(outcome, Refreshed) for outcome in outcomes)
        assert len({outcome.refresh_token for outcome in outcomes}) == 1
        reused = Counter(outcome.reused for outcome in outcomes)
        assert reused == {False: 1, True: 19}
        row = await auth.session(created.session.id)
        assert row["refresh_token_counter"] == 1


@KINDS
async def test_a_stricter_default_isolation_changes_nothing(
    supabase_dsn: str, rules: dict[str, Any]
) -> None:
    """What was committed while it was trying is seen, whatever the database's default."""
    async with supabase(supabase_dsn, **rules) as auth:
        settings = auth.frozen.connect["server_settings"]
        strict = {**settings, "default_transaction_isolation": "serializable"}
        options = {**rules, "connect": {"server_settings": strict}}
        created = await auth.login()
        outcomes = await refresh_at_once(auth, created.refresh_token, 8, **options)
        assert all(isinstance(outcome, Refreshed) for outcome in outcomes)
        assert len({outcome.refresh_token for outcome in outcomes}) == 1


@KINDS
async def test_a_session_held_too_long_is_no_answer(
    supabase_dsn: str, rules: dict[str, Any]
) -> None:
    """When the budget is spent nobody is refused, and nothing was written."""
    async with supabase(supabase_dsn, **rules, **BRIEF) as auth:
        created = await auth.login()
        before = await auth.snapshot()
        async with elsewhere(auth) as gotrue:
            await gotrue.execute("select from auth.sessions for update")
            with pytest.raises(SessionsUnavailable, match="at once"):
                await auth.store.refresh(created.refresh_token, LAPTOP)
        assert await auth.snapshot() == before
        await auth.refreshed(created.refresh_token)


LOCKS = {
    "updated": "update auth.sessions set updated_at = updated_at",
    "for-update": "select from auth.sessions for update",
    "for-no-key-update": "select from auth.sessions for no key update",
    "child-token": (
        "insert into auth.refresh_tokens (token, session_id) select 'child', id"
        " from auth.sessions"
    ),
    "child-claim": (
        "insert into auth.mfa_amr_claims (id, session_id, created_at, updated_at,"
        " authentication_method) select gen_random_uuid(), id, now(), now(), 'totp'"
        " from auth.sessions"
    ),
}


@KINDS
@pytest.mark.parametrize("sql", LOCKS.values(), ids=LOCKS)
async def test_what_holds_a_session(
    supabase_dsn: str, rules: dict[str, Any], sql: str
) -> None:
    """Its row changed or locked, or a child inserted: none of it is waited for."""
    async with supabase(supabase_dsn, **rules, **BRIEF) as auth:
        created = await auth.login()
        async with elsewhere(auth) as gotrue:
            await gotrue.execute(sql)
            with pytest.raises(SessionsUnavailable, match="at once"):
                await auth.store.refresh(created.refresh_token, LAPTOP)
            assert await auth.psql.fetchval(WAITING) == 0


async def test_a_token_row_that_is_held_is_not_waited_for(supabase_dsn: str) -> None:
    """It is the first that is locked, before its session."""
    async with supabase(supabase_dsn, **BRIEF) as auth:
        created = await auth.login()
        async with elsewhere(auth) as gotrue:
            await gotrue.execute("select from auth.refresh_tokens for update")
            with pytest.raises(SessionsUnavailable, match="at once"):
                await auth.store.refresh(created.refresh_token, LAPTOP)


@KINDS
async def test_a_reader_holds_nobody_up(supabase_dsn: str, rules: dict[str, Any]) -> None:
    """A plain SELECT locks nothing, and our own look-ups are such."""
    async with supabase(supabase_dsn, **rules, **BRIEF) as auth:
        created = await auth.login()
        async with elsewhere(auth) as gotrue:
            await gotrue.execute("select * from auth.sessions")
            await auth.store.find_by_id(created.session.id)
            await auth.refreshed(created.refresh_token)


async def test_a_user_s_row_that_is_held_holds_up_no_v1_refresh(supabase_dsn: str) -> None:
    """Its date is then left to whoever holds it."""
    async with supabase(supabase_dsn, **BRIEF) as auth:
        created = await auth.login()
        signed_in = auth.now
        await auth.advance(SECOND)
        async with elsewhere(auth) as gotrue:
            await gotrue.execute("update auth.users set email = 'new@example.org'")
            await auth.refreshed(created.refresh_token)
        row = await auth.psql.fetchrow("select * from auth.users")
        assert (row["updated_at"], row["email"]) == (signed_in, "new@example.org")


@KINDS
async def test_with_one_session_per_user_the_user_is_locked(
    supabase_dsn: str, rules: dict[str, Any]
) -> None:
    """Without waiting, so two sessions of one user are judged one after the other."""
    async with supabase(supabase_dsn, single_per_user=True, **rules, **BRIEF) as auth:
        created = await auth.login()
        async with elsewhere(auth) as gotrue:
            await gotrue.execute("select from auth.users for update")
            with pytest.raises(SessionsUnavailable, match="at once"):
                await auth.store.refresh(created.refresh_token, LAPTOP)
        await auth.refreshed(created.refresh_token)


async def refresh_during(auth: Supabase, token: str, *sql: str) -> Outcome:
    """Refresh while GoTrue runs this and has not committed it."""
    store = auth.store
    await store.find_by_id(token)  # a statement of its own, to know the database
    attempts = Attempts(store)
    async with elsewhere(auth) as gotrue:
        await gotrue.execute("select from auth.sessions for update")
        for statement in sql:
            await gotrue.execute(statement)
        task = asyncio.create_task(store.refresh(token, LAPTOP))
        await until(lambda: attempts.made >= 4)
        assert not task.done()
    return await task


@KINDS
@pytest.mark.parametrize(
    ("sql", "refusal"),
    [
        ("delete from auth.sessions", Refusal.NOT_FOUND),
        ("delete from auth.users", Refusal.NOT_FOUND),
        ("update auth.users set banned_until = 'infinity'", Refusal.BANNED),
        ("update auth.users set deleted_at = now()", Refusal.NOT_FOUND),
        ("update auth.sessions set not_after = '2020-01-01'", Refusal.EXPIRED),
    ],
    ids=["logout", "user-deleted", "ban", "soft-delete", "ended"],
)
async def test_a_refresh_that_races_an_end_is_refused(
    supabase_dsn: str, rules: dict[str, Any], sql: str, refusal: Refusal
) -> None:
    """What was committed while it was trying decides, and no token comes of it."""
    async with supabase(supabase_dsn, **rules, **PATIENT) as auth:
        created = await auth.login()
        outcome = await refresh_during(auth, created.refresh_token, sql)
        assert isinstance(outcome, Refused)
        assert outcome.refusal is refusal
        assert "token_refreshed" not in await auth.audited()


@KINDS
@pytest.mark.parametrize(
    ("sql", "refusal"),
    [
        ("update auth.users set banned_until = 'infinity'", Refusal.BANNED),
        ("update auth.sessions set not_after = '2020-01-01'", Refusal.EXPIRED),
    ],
    ids=["ban", "ended"],
)
async def test_what_ends_between_look_up_and_lock_is_seen(
    supabase_dsn: str, rules: dict[str, Any], sql: str, refusal: Refusal
) -> None:
    """Everything is judged once more under the locks, on what is true by then."""
    async with supabase(supabase_dsn, **rules) as auth:
        created = await auth.login()
        database = auth.store._database
        look_up = database.read

        async def then(question: str, *values: object) -> list[asyncpg.Record]:
            rows = await look_up(question, *values)
            await auth.psql.execute(sql)
            return rows

        await auth.store.find_by_id(created.session.id)
        database.read = then  # type: ignore[method-assign]
        assert (await auth.refused(created.refresh_token)).refusal is refusal


@KINDS
async def test_a_ban_older_than_the_lock_is_not_overlooked(
    supabase_dsn: str, rules: dict[str, Any]
) -> None:
    """What lies beside a locked row is read anew, not as the locking statement saw it."""
    async with supabase(supabase_dsn, **rules, **PATIENT) as auth:
        created = await auth.login()
        assert auth.store._schema._cached is not None
        statements = auth.store._schema._cached[1]
        begun = "and pg_advisory_xact_lock_shared(7) is not null limit 1"
        statements.lock_session = statements.lock_session.replace("limit 1", begun)
        async with elsewhere(auth) as gotrue:
            await gotrue.execute("select pg_advisory_xact_lock(7)")
            task = asyncio.create_task(auth.store.refresh(created.refresh_token, LAPTOP))
            await somebody_waits(auth.psql)
            await gotrue.execute("update auth.users set banned_until = 'infinity'")
        outcome = await task
        assert isinstance(outcome, Refused)
        assert outcome.refusal is Refusal.BANNED


@KINDS
async def test_a_logout_waits_for_a_refresh_and_ends_what_it_made(
    supabase_dsn: str, rules: dict[str, Any]
) -> None:
    """The row it deletes is the one that was just written."""
    async with supabase(supabase_dsn, **rules, **PATIENT) as auth:
        created = await auth.login()
        async with elsewhere(auth) as gotrue:
            await gotrue.execute("update auth.sessions set refreshed_at = now()")
            task = asyncio.create_task(auth.store.revoke(created.session.id, reason="x"))
            await somebody_waits(auth.psql)
        ended = await task
        assert ended is not None
        assert ended.id == created.session.id
        for table in ("sessions", "refresh_tokens", "mfa_amr_claims"):
            assert await auth.count(table) == 0


@KINDS
async def test_a_refresh_leaves_no_transaction_behind(
    supabase_dsn: str, rules: dict[str, Any]
) -> None:
    """Whatever came of it, and the next one finds the row free."""
    async with supabase(supabase_dsn, **rules, **BRIEF) as auth:
        created = await auth.login()
        token = (await auth.refreshed(created.refresh_token)).refresh_token
        async with elsewhere(auth) as gotrue:
            await gotrue.execute("select from auth.sessions for update nowait")
            with pytest.raises(SessionsUnavailable):
                await auth.store.refresh(token, LAPTOP)
        open_ones = await auth.psql.fetchval(
            "select count(*) from pg_stat_activity where state like 'idle in%'"
            " and datname = current_database()"
        )
        assert open_ones == 0


async def test_logouts_and_refreshes_at_once_never_deadlock(supabase_dsn: str) -> None:
    """Sessions of one user refreshed and ended in every order: each gets an answer."""
    async with supabase(supabase_dsn, **PATIENT) as auth:
        user = await auth.add_user()
        created = [await auth.login(user) for _ in range(8)]
        other = auth.another(**PATIENT)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(store.refresh(known.refresh_token, LAPTOP))
                for known in created
                for store in (auth.store, other)
            ]
            for store in (auth.store, other):
                group.create_task(store.revoke_user(user, reason="x"))
                for known in reversed(created):
                    group.create_task(store.revoke(known.session.id, reason="x"))
        for task in tasks:
            outcome = task.result()
            if isinstance(outcome, Refused):
                assert outcome.refusal is Refusal.NOT_FOUND
        assert await auth.count("sessions") == 0
        assert (
            await auth.psql.fetchval(
                "select deadlocks from pg_stat_database where datname = current_database()"
            )
            == 0
        )
