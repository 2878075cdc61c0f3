"""Times that no Python date holds: one odd row never breaks its neighbours.

``infinity``, the year 20000 and years before Christ are times to PostgreSQL. Whatever
is in a column, the rows beside it are found, listed, judged, touched, rotated, ended
and pruned, and so is the odd one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta, timezone
from functools import partial
from typing import Any

import asyncpg
import pytest

from handstamp import UUID_PLAIN, Client, Policy, Sessions
from handstamp.core.cookies import Credentials
from handstamp.core.lifetime import judge, judge_family
from handstamp.core.models import Authenticated, Issued, Record, Session, Touch, Unknown
from handstamp.core.rotation import judge_refresh
from handstamp.core.tokens import TokenPair
from handstamp.engine.cache import Read, make_entry
from handstamp.stores.shapes import ULID_HASHED, quoted
from tests.stores.conftest import Templates
from tests.support.engines import SECRET, credentials_of
from tests.support.supabase import supabase
from tests.support.tables import (
    DEFINITIONS,
    POLICY,
    SECOND,
    Table,
    fresh_session,
    has,
    opened,
    step_up,
    successor,
)

ODD = {
    "infinity": "infinity",
    "minus infinity": "-infinity",
    "year 20000": "20000-01-01 00:00:00.5",
    "the last": "294276-12-31 23:59:59.999999",
    "44 BC": "0044-03-15 BC",
    "the first": "4713-12-01 BC",
    "the last of Python": "9999-12-31 23:59:59.999999",
    "the first of Python": "0001-01-01",
}
"""Times of PostgreSQL; the last two cannot be shown in every time zone."""
FAR_AWAY = [timezone(timedelta(hours=hours)) for hours in (-23, 23)]
CENTURY = timedelta(days=36_500)
LONG = Policy(
    session_ttl=CENTURY,
    refresh_ttl=CENTURY,
    absolute_ttl=CENTURY,
    browser_ttl=CENTURY,
    idle_ttl=CENTURY,
    retention=CENTURY,
    end_on_password_change=True,
)
POLICIES = (POLICY, replace(POLICY, end_on_password_change=True), LONG)
PAIR = TokenPair(session="s", refresh="r")


@pytest.fixture(params=ODD.values(), ids=list(ODD))
def odd(request: pytest.FixtureRequest) -> str:
    """Each odd time, as PostgreSQL spells it."""
    return str(request.param)


@pytest.fixture(params=[name for name in DEFINITIONS if name != "memory"])
async def table(
    request: pytest.FixtureRequest, lasting: Templates
) -> AsyncIterator[tuple[str, Table]]:
    """An empty table of each kind, whose columns take any time."""
    name = request.param
    dsn = await asyncio.to_thread(lasting, name)
    async with opened(name, dsn) as table:
        await table.frozen.connection.execute(WITHOUT_CHECKS)
        await table.store.ready()
        yield name, table


WITHOUT_CHECKS = """
    do $body$ declare one record; begin
        for one in select conrelid::regclass as relation, conname from pg_constraint
            where contype = 'c' and conrelid <> 0
            and connamespace in ('public'::regnamespace, to_regnamespace('auth'))
        loop
            execute format('alter table %s drop constraint %I', one.relation, one.conname);
        end loop;
    end $body$"""
TIMES = """
    select attname::text from pg_attribute where attrelid = to_regclass($1)
    and attnum > 0 and not attisdropped
    and atttypid in ('timestamptz'::regtype, 'timestamp'::regtype) order by attnum"""


async def columns_of(connection: asyncpg.Connection, relation: str) -> list[str]:
    """The columns of this table that hold times."""
    rows = await connection.fetch(TIMES, quoted(relation))
    return [row["attname"] for row in rows]


def check(records: Sequence[Record]) -> None:
    """Every rule judges every record, and what an application sees can be shown."""
    for record in records:
        for policy in POLICIES:
            judge(record, policy)
            judge_family(record, policy, active_at=record.read_at)
            make_entry(record, policy, b"key", Read(1.0, 2.0))
            for presented in (record.refresh_digest or "", "0" * 64):
                judge_refresh(record, presented, [PAIR], policy)
        session = Session.of(record)
        times = (session.created_at, session.expires_at, session.last_activity_at)
        for time in times:
            assert time is None or time.tzinfo is not None
            assert all(time.astimezone(zone) for zone in FAR_AWAY if time is not None)


async def open_session(table: Table, user: str) -> Record:
    new = await fresh_session(table, user)
    return (await table.create(new, POLICY)).record


async def spoil(table: Table, column: str, odd: str, session_id: str) -> bool:
    """Write the odd time into one row; whether the column takes it."""
    shape = table.shape
    sql = f"update {quoted(shape.table)} set {quoted(column)} = '{odd}'"
    try:
        await table.frozen.connection.execute(
            f"{sql} where {quoted(shape.id)}::text = $1", session_id
        )
    except asyncpg.GeneratedAlwaysError:
        return False
    return True


async def test_an_odd_row_is_read_and_breaks_no_neighbour(
    table: tuple[str, Table], odd: str
) -> None:
    """In look-ups by token and by id, in lists, and in every rule."""
    _, opened = table
    store = opened.store
    for column in await columns_of(opened.frozen.connection, opened.shape.table):
        user = await opened.add_user()
        bad, good = [await open_session(opened, user) for _ in range(2)]
        if not await spoil(opened, column, odd, bad.id):
            continue
        both = [bad.token_digest, good.token_digest]
        for records in (
            await store.find(both),
            await store.find_many([bad.id, good.id]),
            await store.list_for_user(user),
        ):
            assert good in records, column
            check(records)
        if good.refresh_digest is not None:
            assert await store.find_by_refresh(good.refresh_digest) == good
            found = await store.find_by_refresh(bad.refresh_digest or "")
            check([] if found is None else [found])


async def test_an_odd_row_is_written_and_breaks_no_neighbour(
    table: tuple[str, Table], odd: str
) -> None:
    """Activity, rotation, logins that make room, levels, revocations and pruning."""
    name, opened = table
    store = opened.store
    for column in await columns_of(opened.frozen.connection, opened.shape.table):
        user = await opened.add_user()
        bad, good, gone = [await open_session(opened, user) for _ in range(3)]
        if not await spoil(opened, column, odd, bad.id):
            continue
        at = opened.now + SECOND
        touches = [
            Touch(session_id=each.id, token_digest=each.token_digest, at=at)
            for each in (bad, good)
        ]
        for policy in POLICIES if has(name, "touch") else ():
            await store.touch(touches, policy)
        seen = await store.find_by_id(good.id)
        assert seen is not None
        if store.capabilities.activity:
            assert seen.last_activity_at is not None
            assert seen.last_activity_at >= at
        for each in (bad, good):
            await rotate(opened, each, good=each is good)
        levels = [1, None, None] if has(name, "step_up") else [None, None]
        for each in (bad, good) if has(name, "new_tokens") else ():
            await renew(opened, each, levels)
        if has(name, "max_sessions"):
            for policy in POLICIES:
                new = await fresh_session(opened, user, limit=3)
                check([(await store.create(new, policy)).record])
        assert await store.revoke(gone.id, reason="tested") or has(name, "max_sessions")
        await store.revoke(bad.id, reason="tested", user_id=user)
        for policy in POLICIES:
            await store.prune(policy, batch=100)
        await store.revoke_user(user, reason="tested")
        live = [r for r in await store.find_many([bad.id, good.id]) if r.is_active]
        assert live == [], column


async def renew(table: Table, record: Record, levels: Sequence[int | None]) -> None:
    """New tokens, with a higher level and without, also for a policy of centuries."""
    for level in levels:
        for changes in ({}, {"session_ttl": CENTURY, "longest": CENTURY}):
            after = await table.store.replace_tokens(step_up(record.id, level, **changes))
            check([] if after is None else [after])


async def rotate(table: Table, record: Record, *, good: bool) -> None:
    """Every write of a rotation, which is refused for a row that is over."""
    if record.refresh_digest is None:
        return
    for changes in ({}, {"session_ttl": CENTURY, "longest": CENTURY}):
        step = successor(record.id, record.refresh_digest, **changes)
        after = await table.store.rotate(step)
        assert after is not None or not good
        if after is None:
            break
        check([after])
        record = after
    again = successor(record.id, record.refresh_digest, session_ttl=POLICY.session_ttl)
    redated = await table.store.redate(again)
    check([] if redated is None else [redated])


@pytest.mark.parametrize("name", ["ulid", "uuid", "rails"])
async def test_activity_leaves_an_odd_time_as_it_is(lasting: Templates, name: str) -> None:
    """An expiry that was never to come stays so; nothing is written over with a date."""
    dsn = await asyncio.to_thread(lasting, name)
    async with opened(name, dsn) as table:
        await table.frozen.connection.execute(WITHOUT_CHECKS)
        shape = table.shape
        record = await open_session(table, await table.add_user())
        for column in (shape.expires_at, shape.created_at):
            await spoil(table, str(column), "infinity", record.id)
        at = table.now + SECOND
        touch = Touch(session_id=record.id, token_digest=record.token_digest, at=at)
        assert await table.store.touch([touch], POLICY) == 1
        await spoil(table, str(shape.last_activity_at), "infinity", record.id)
        assert await table.store.touch([touch], POLICY) == 0
        columns = [shape.expires_at, shape.created_at, shape.last_activity_at]
        names = ", ".join(f"{quoted(str(column))}::text" for column in columns)
        row = await table.frozen.connection.fetchrow(
            f"select {names} from {quoted(shape.table)}"
        )
        assert set(row) == {"infinity"}


async def test_an_odd_user_breaks_no_neighbour(table: tuple[str, Table], odd: str) -> None:
    """Nor does a look at their sessions raise, nor at whether they may sign in."""
    _, opened = table
    users = opened.shape.users
    for column in await columns_of(opened.frozen.connection, users.table if users else "-"):
        assert users is not None
        one, other = await opened.add_user(), await opened.add_user()
        bad, good = await open_session(opened, one), await open_session(opened, other)
        await opened.frozen.connection.execute(
            f"update {quoted(users.table)} set {quoted(column)} = '{odd}'"
            f" where {quoted(users.id)}::text = $1",
            one,
        )
        both = [bad.token_digest, good.token_digest]
        for records in (
            await opened.store.find(both),
            await opened.store.find_many([bad.id, good.id]),
        ):
            assert good in records, column
            check(records)
        check(await opened.store.list_for_user(one))
        await rotate(opened, good, good=True)
        await opened.store.prune(LONG, batch=100)


@pytest.mark.parametrize(
    "relation",
    ["auth.sessions", "auth.users", "auth.refresh_tokens", "auth.mfa_amr_claims"],
)
async def test_an_odd_time_of_supabase_breaks_no_refresh(
    supabase_dsn: str, relation: str, odd: str
) -> None:
    """Also with every rule that looks at times, and whatever it decides."""
    rules: dict[str, Any] = {"timebox": CENTURY, "inactivity": CENTURY}
    rules |= {"allow_low_aal": CENTURY, "single_per_user": True}
    async with supabase(supabase_dsn, **rules) as auth:
        for column in await columns_of(auth.psql, relation):
            made, other = await auth.login(), await auth.login()
            user = f"'{made.session.user_id}'"
            owner = {
                "auth.sessions": f"user_id = {user}",
                "auth.users": f"id = {user}",
                "auth.refresh_tokens": f"user_id = {user}",
                "auth.mfa_amr_claims": f"session_id = '{made.session.id}'",
            }
            await auth.psql.execute(
                f"update {relation} set {column} = '{odd}' where {owner[relation]}"
            )
            await auth.store.refresh(made.refresh_token, Client())
            await auth.refreshed(other.refresh_token)
            ids = [made.session.id, other.session.id]
            found = {each.id for each in await auth.store.find_many(ids)}
            assert other.session.id in found
            await auth.store.list_for_user(made.session.user_id)
            await auth.store.revoke_user(made.session.user_id, reason="tested")


def tokens(issued: Issued) -> Credentials:
    """What a browser with these tokens sends."""
    refresh = [issued.refresh_token] if issued.refresh_token else []
    return credentials_of([issued.session_token], refresh)


@pytest.mark.parametrize("name", ["ulid", "uuid"])
async def test_an_odd_row_affects_no_other_request_or_socket(
    lasting: Templates, name: str, odd: str
) -> None:
    """Look-ups of one moment share a query, and so do looks at open connections."""
    dsn = await asyncio.to_thread(lasting, name)
    shape = ULID_HASHED if name == "ulid" else UUID_PLAIN
    async with opened(name, dsn) as table:
        await table.frozen.connection.execute(WITHOUT_CHECKS)
        users = [await table.add_user() for _ in range(3)]
        for column in await columns_of(table.frozen.connection, shape.table):
            async with Sessions(dsn, secret=SECRET, shape=shape) as first:
                issued = [await first.create(user) for user in users]
            bad, good, gone = issued
            await spoil(table, column, odd, bad.session.id)
            async with Sessions(dsn, secret=SECRET, shape=shape) as sessions:
                answers = await asyncio.gather(
                    *(sessions.authenticate(tokens(each), Client()) for each in issued)
                )
                assert not isinstance(answers[0], Unknown), column
                assert all(isinstance(each, Authenticated) for each in answers[1:]), column
                closed: list[str] = []
                for each in issued:
                    closer = partial(closed.append, each.session.id)
                    sessions.connections.add(each.session, closer)
                await deleted(table, gone.session.id)
                await sessions._invalidator.check_due(all_sessions=True)
                assert gone.session.id in closed
                assert good.session.id not in closed
                await sessions.list_for_user(users[0])
                await sessions.revoke_user(users[0])
                await sessions.prune()


async def deleted(table: Table, session_id: str) -> None:
    """Somebody else deletes the row."""
    shape = table.shape
    await table.frozen.connection.execute(
        f"delete from {quoted(shape.table)} where {quoted(shape.id)}::text = $1", session_id
    )
