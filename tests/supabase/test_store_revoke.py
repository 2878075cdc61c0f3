"""Ending sessions in Supabase's own tables, who hears of it, and cleaning up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from handstamp.stores.base import Ended
from tests.support.supabase import (
    HOUR,
    LAPTOP,
    SECOND,
    Supabase,
    assert_gotrue_can_read,
    somebody_waits,
    supabase,
)

V2: dict[str, Any] = {"algorithm_version": 2}
DAY = timedelta(hours=24)


class Listener:
    """Somebody who hears what is said."""

    def __init__(self, auth: Supabase) -> None:
        self._auth = auth
        self._said: list[str] = []

    async def listen(self) -> None:
        store = self._auth.store
        self._link = await store.channel.listen(self._said.append, lambda: None)

    async def heard(self) -> list[str]:
        await self._link.prove()
        said, self._said[:] = list(self._said), []
        return said

    def leave(self) -> None:
        self._link.drop()


@pytest.fixture
async def auth(supabase_dsn: str) -> AsyncIterator[Supabase]:
    async with supabase(supabase_dsn, **V2) as auth:
        yield auth


@pytest.fixture
async def listener(auth: Supabase) -> AsyncIterator[Listener]:
    listener = Listener(auth)
    await listener.listen()
    yield listener
    listener.leave()


async def test_a_logout_deletes_the_session_and_all_of_it(
    auth: Supabase, listener: Listener
) -> None:
    """Its row, its tokens and its claims; said in the same transaction."""
    created = await auth.another().sign_in(await auth.add_user(), LAPTOP)
    other = await auth.login(created.session.user_id)
    ended = await auth.store.revoke(created.session.id, reason="x")
    assert ended == Ended(id=created.session.id, user_id=created.session.user_id)
    assert await listener.heard() == [f"s:{created.session.id}"]
    assert await auth.count("refresh_tokens") == 0
    assert await auth.count("mfa_amr_claims") == 1
    assert await auth.store.find_by_id(created.session.id) is None
    assert await auth.store.find_by_id(other.session.id) is not None
    assert await auth.audited() == ["login", "login", "logout"]


async def test_a_second_logout_ends_nothing_and_says_nothing(
    auth: Supabase, listener: Listener
) -> None:
    """It is no error, and no row of the audit log either."""
    created = await auth.login()
    await auth.store.revoke(created.session.id, reason="x")
    await listener.heard()
    assert await auth.store.revoke(created.session.id, reason="x") is None
    assert await listener.heard() == []
    assert await auth.audited() == ["login", "logout"]


@pytest.mark.parametrize("session_id", ["", "no uuid", "\x00", "é" * 36])
async def test_a_logout_of_what_is_no_session(auth: Supabase, session_id: str) -> None:
    """What is no uuid names none."""
    assert await auth.store.revoke(session_id, reason="x") is None


async def test_a_logout_may_name_the_owner(auth: Supabase) -> None:
    """Somebody else's session is not ended, and no session of nobody."""
    created, other = await auth.login(), await auth.login()
    for stranger in (other.session.user_id, "nobody", str(uuid4())):
        ended = await auth.store.revoke(created.session.id, reason="x", user_id=stranger)
        assert ended is None
    owner = created.session.user_id.upper()
    ended = await auth.store.revoke(created.session.id, reason="x", user_id=owner)
    assert ended is not None


async def test_a_global_logout_ends_every_session_of_a_user(
    auth: Supabase, listener: Listener
) -> None:
    """One message and one row of the audit log, however many they are."""
    user = await auth.add_user()
    ids = {(await auth.login(user)).session.id for _ in range(3)}
    other = await auth.login()
    ended = await auth.store.revoke_user(user, reason="x")
    assert {gone.id for gone in ended} == ids
    assert await listener.heard() == [f"u:{user}"]
    assert await auth.store.find_by_id(other.session.id) is not None
    assert (await auth.audited()).count("logout") == 1
    assert list(await auth.store.revoke_user(user, reason="x")) == []
    assert await listener.heard() == []


async def test_a_logout_of_the_others_keeps_one(auth: Supabase) -> None:
    """And only if it is the user's; what is no uuid keeps none."""
    user = await auth.add_user()
    kept, gone = await auth.login(user), await auth.login(user)
    ended = await auth.store.revoke_user(user, reason="x", keep=kept.session.id.upper())
    assert [known.id for known in ended] == [gone.session.id]
    ended = await auth.store.revoke_user(user, reason="x", keep="no uuid")
    assert [known.id for known in ended] == [kept.session.id]


async def test_theft_is_said_in_its_own_transaction(
    auth: Supabase, listener: Listener
) -> None:
    """The session a stale v2 token deleted is forgotten everywhere."""
    created = await auth.login()
    token = (await auth.refreshed(created.refresh_token)).refresh_token
    await auth.refreshed(token)
    assert await listener.heard() == []
    assert (await auth.refused(created.refresh_token)).ended
    assert await listener.heard() == [f"s:{created.session.id}"]


async def test_neither_a_login_nor_a_refresh_is_said(
    auth: Supabase, listener: Listener
) -> None:
    """Nothing is, that does not end a session."""
    user = await auth.add_user()
    created = await auth.login(user)
    v1 = await auth.another().sign_in(user, LAPTOP)
    await auth.refreshed(created.refresh_token)
    again = await auth.refreshed(v1.refresh_token)
    await auth.refreshed(again.refresh_token)
    await auth.advance(SECOND)
    assert (await auth.refused(v1.refresh_token)).family_revoked
    assert await listener.heard() == []
    await auth.login(user, replaces=(created.session.id,))
    assert await listener.heard() == [f"s:{created.session.id}"]


FULL_QUEUE = """
    create sequence public.full_queue;
    create function public.full_queue() returns trigger language plpgsql as $$ begin
        if nextval('public.full_queue') <= {} or {}
            and current_setting('handstamp.skip_notify', true)
            is distinct from pg_current_xact_id()::text then
            raise exception using errcode = '54000', message = 'the NOTIFY queue is full';
        end if;
        return null;
    end $$;
    create constraint trigger full_queue after delete on auth.sessions
        deferrable initially deferred for each row execute function public.full_queue()"""


@pytest.mark.parametrize(
    ("times", "loud"), [(1, False), (2, False), (0, True)], ids=["once", "twice", "ever"]
)
async def test_a_full_notification_queue_stops_no_end(
    auth: Supabase, listener: Listener, times: int, loud: bool
) -> None:
    """A COMMIT that fails for it is tried again, and at last made without a word."""
    created = await auth.login()
    token = (await auth.refreshed(created.refresh_token)).refresh_token
    await auth.refreshed(token)
    await auth.psql.execute(FULL_QUEUE.format(times, loud))
    refused = await auth.refused(created.refresh_token)
    assert [gone.id for gone in refused.ended] == [created.session.id]
    assert await auth.count("sessions") == 0
    user = created.session.user_id
    for end in (
        lambda known: auth.store.revoke(known, reason="x"),
        lambda known: auth.login(user, replaces=(known,)),
    ):
        known = (await auth.login(user)).session.id
        await auth.psql.execute("select setval('public.full_queue', 1, false)")
        await listener.heard()
        assert await end(known)
        assert await auth.store.find_by_id(known) is None
        assert await listener.heard() == ([f"s:{known}"] if times == 1 else [])
    await auth.psql.execute("select setval('public.full_queue', 1, false)")
    assert await auth.store.revoke_user(user, reason="x")
    assert await listener.heard() == ([] if times == 2 else [f"u:{user}"])


async def test_whoever_ends_several_locks_them_in_the_order_of_their_ids(
    supabase_dsn: str,
) -> None:
    """So two who end the same sessions never wait for each other."""
    drawn = [bytes([9] * 16), bytes([1] * 16)]
    async with supabase(supabase_dsn, budget=HOUR, **V2) as auth:
        store = auth.another(**V2, entropy=lambda n: drawn.pop(0) if n == 16 else bytes(n))
        user = await auth.add_user()
        high, low = [(await store.sign_in(user, LAPTOP)).session.id for _ in range(2)]
        gotrue = await asyncpg.connect(auth.dsn)
        one = "select id::text from auth.sessions where id = $1 for update"
        try:
            async with gotrue.transaction():
                await gotrue.execute(one, low)
                task = asyncio.create_task(auth.store.revoke_user(user, reason="x"))
                await somebody_waits(auth.psql)
                free = await auth.psql.fetchval(one + " skip locked", high)
        finally:
            await gotrue.close()
        assert free == high
        assert [gone.id for gone in await task] == [low, high]


async def test_after_everything_gotrue_can_read_every_row(supabase_dsn: str) -> None:
    """Logins, refreshes, upgrades and misuse of both kinds."""
    async with supabase(supabase_dsn, audit=False) as auth:
        v2 = auth.another(algorithm_version=2, upgrade=100)
        user = await auth.add_user()
        for store in (auth.store, v2):
            created = await store.sign_in(user, LAPTOP)
            first = await store.refresh(created.refresh_token, LAPTOP)
            await v2.refresh(first.refresh_token, LAPTOP)
            await store.refresh(created.refresh_token, LAPTOP)
            await store.sign_in(user, LAPTOP)
            await auth.advance(SECOND)
            await store.refresh(created.refresh_token, LAPTOP)
            await assert_gotrue_can_read(auth.psql)
