"""Refreshing by a v2 token on real tables, rule by rule."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, timedelta
from typing import Any

import pytest

from handstamp.core.models import Client
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import Ended
from handstamp.supabase.rules import Refusal
from handstamp.supabase.tokens import KeyRing, read_v2, write_v2
from tests.support.supabase import (
    HOUR,
    LAPTOP,
    SECOND,
    STEP,
    Supabase,
    assert_gotrue_can_read,
    read_session,
    supabase,
)

TEN = 10 * SECOND
V2: dict[str, Any] = {"algorithm_version": 2, "reuse_interval": TEN}
MASTER = {"a": bytes(32), "b": bytes([1] * 32)}


@pytest.fixture
async def auth(supabase_dsn: str) -> AsyncIterator[Supabase]:
    """Sessions of v2, and a reuse interval of ten seconds."""
    async with supabase(supabase_dsn, **V2) as auth:
        yield auth


def counter_of(token: str) -> int:
    claim = read_v2(token)
    assert claim is not None
    return claim.counter


async def steps(auth: Supabase, number: int) -> list[str]:
    """The first token and those after it."""
    tokens = [(await auth.login()).refresh_token]
    for _ in range(number):
        tokens.append((await auth.refreshed(tokens[-1])).refresh_token)
    return tokens


async def test_a_refresh_counts_and_writes_no_token(each_supabase_dsn: str) -> None:
    """Counter and dates of the session, and not one row of refresh_tokens."""
    async with supabase(each_supabase_dsn, **V2) as auth:
        created = await auth.login()
        key = (await auth.session(created.session.id))["refresh_token_hmac_key"]
        await auth.advance(HOUR)
        phone = Client(address="2001:db8::1", user_agent="Phone")
        done = await auth.store.refresh(created.refresh_token, phone)
        assert (done.reused, done.session.counter) == (False, 1)
        row = await auth.session(created.session.id)
        assert (row["refresh_token_counter"], row["refresh_token_hmac_key"]) == (1, key)
        assert row["refreshed_at"].replace(tzinfo=UTC) == row["updated_at"] == auth.now
        assert (row["user_agent"], str(row["ip"])) == ("Phone", "2001:db8::1")
        assert done.session == await read_session(auth.store, created.session.id)
        assert await auth.count("refresh_tokens") == 0
        user = await auth.psql.fetchrow("select * from auth.users")
        assert user["updated_at"] == auth.now - HOUR
        assert await auth.audited() == ["login", "token_refreshed"]
        await assert_gotrue_can_read(auth.psql)


async def test_a_second_byte_of_the_counter_changes_nothing(auth: Supabase) -> None:
    """The counter is stored as a number, and grows past 127."""
    created = await auth.login()
    await auth.write(created.session.id, refresh_token_counter=127)
    key = (await auth.session(created.session.id))["refresh_token_hmac_key"]
    token = write_v2(created.session.id, 127, KeyRing().open(key, created.session.id))
    done = await auth.refreshed(token)
    assert counter_of(done.refresh_token) == 128
    assert counter_of((await auth.refreshed(done.refresh_token)).refresh_token) == 129


@pytest.mark.parametrize("age", [timedelta(0), TEN, timedelta(days=400)])
async def test_one_behind_gets_the_same_token_always(
    auth: Supabase, age: timedelta
) -> None:
    """The counter stays, and the session counts as refreshed each time."""
    old, new = await steps(auth, 1)
    await auth.advance(age)
    for _ in range(10):
        again = await auth.refreshed(old)
        assert again.refresh_token == new
        assert again.reused
    row = await auth.psql.fetchrow("select * from auth.sessions")
    assert row["refresh_token_counter"] == 1
    assert row["refreshed_at"].replace(tzinfo=UTC) == auth.now


async def test_two_behind_within_the_interval_is_concurrent(auth: Supabase) -> None:
    """An allowed reuse moves refreshed_at, so the window slides."""
    tokens = await steps(auth, 3)
    for _ in range(3):
        await auth.advance(TEN - STEP)
        done = await auth.refreshed(tokens[0])
        assert (done.refresh_token, done.reused) == (tokens[-1], True)


async def test_two_behind_after_the_interval_deletes_the_session(auth: Supabase) -> None:
    """It is committed although it is refused; nothing of the session is left."""
    tokens = await steps(auth, 2)
    claim = read_v2(tokens[0])
    assert claim is not None
    await auth.advance(TEN)
    refused = await auth.refused(tokens[0])
    assert refused.refusal is Refusal.ALREADY_USED
    assert refused.session is not None
    gone = Ended(id=claim.session_id, user_id=refused.session.user_id)
    assert (refused.ended, refused.family_revoked) == ((gone,), False)
    for table in ("sessions", "mfa_amr_claims"):
        assert await auth.count(table) == 0
    assert "logout" not in await auth.audited()
    assert (await auth.refused(tokens[-1])).refusal is Refusal.NOT_FOUND


async def test_without_rotation_theft_changes_nothing(supabase_dsn: str) -> None:
    """The same refusal, and the session lives on."""
    async with supabase(supabase_dsn, rotation_enabled=False, **V2) as auth:
        tokens = await steps(auth, 2)
        await auth.advance(TEN)
        before = await auth.snapshot()
        refused = await auth.refused(tokens[0])
        assert (refused.refusal, refused.ended) == (Refusal.ALREADY_USED, ())
        assert await auth.snapshot() == before
        await auth.refreshed(tokens[-1])


async def test_where_reuse_is_allowed_no_token_is_too_old(supabase_dsn: str) -> None:
    """Each gets the current one."""
    async with supabase(supabase_dsn, allow_reuse=True, **V2) as auth:
        tokens = await steps(auth, 3)
        await auth.advance(TEN)
        done = await auth.refreshed(tokens[0])
        assert (done.refresh_token, done.reused) == (tokens[-1], True)


async def test_a_counter_ahead_of_the_table_is_refused(auth: Supabase) -> None:
    """Well signed, and not issued here: the table was restored from a backup."""
    tokens = await steps(auth, 2)
    claim = read_v2(tokens[2])
    assert claim is not None
    await auth.write(claim.session_id, refresh_token_counter=1)
    before = await auth.snapshot()
    assert (await auth.refused(tokens[2])).refusal is Refusal.AHEAD
    assert await auth.snapshot() == before
    await auth.refreshed(tokens[1])


async def test_what_a_second_factor_did_is_two_steps(auth: Supabase) -> None:
    """GoTrue counts two on a verified factor, so the token of before is theft later."""
    (token,) = await steps(auth, 0)
    await auth.psql.execute(
        "update auth.sessions set refresh_token_counter = refresh_token_counter + 2,"
        " aal = 'aal2'"
    )
    await auth.advance(TEN - STEP)
    done = await auth.refreshed(token)
    assert (done.session.counter, done.session.aal) == (2, "aal2")
    await auth.advance(TEN)
    assert (await auth.refused(token)).refusal is Refusal.ALREADY_USED


@pytest.mark.parametrize("change", ["key", "no-key", "no-counter", "no-session"])
async def test_what_is_wrong_with_a_token_is_not_reported(
    auth: Supabase, change: str
) -> None:
    """Another key, none, no counter or no session: all of them are not found."""
    (token,) = await steps(auth, 0)
    claim = read_v2(token)
    assert claim is not None
    if change == "key":
        token = write_v2(claim.session_id, 0, bytes(32))
    elif change == "no-key":
        await auth.write(claim.session_id, refresh_token_hmac_key=None)
    elif change == "no-counter":
        await auth.write(claim.session_id, refresh_token_counter=None)
    else:
        await auth.psql.execute("delete from auth.sessions")
    before = await auth.snapshot()
    refused = await auth.refused(token)
    assert (refused.refusal, refused.session) == (Refusal.NOT_FOUND, None)
    assert await auth.snapshot() == before


async def test_several_texts_are_one_token(auth: Supabase) -> None:
    """What a token says is compared, and never its text."""
    (token,) = await steps(auth, 0)
    done = await auth.refreshed(token + "\n")
    again = await auth.refreshed("\r\n" + token)
    assert (done.reused, again.refresh_token) == (False, done.refresh_token)


@pytest.mark.parametrize("mangled", ["T=", " T", "T!", "T" * 3])
async def test_what_decodes_to_nothing_is_malformed(auth: Supabase, mangled: str) -> None:
    """It is refused before any session is looked for."""
    (token,) = await steps(auth, 0)
    refused = await auth.refused(mangled.replace("T", token))
    assert refused.refusal is Refusal.MALFORMED


@pytest.mark.parametrize(
    ("rules", "refusal"),
    [
        ({"timebox": HOUR}, Refusal.EXPIRED),
        ({"inactivity": HOUR}, Refusal.INACTIVE),
        ({"allow_low_aal": HOUR}, Refusal.LOW_AAL),
    ],
    ids=["timebox", "inactivity", "low-aal"],
)
async def test_an_expired_v2_session_is_refused_and_left(
    supabase_dsn: str, rules: dict[str, Any], refusal: Refusal
) -> None:
    """Whatever its counter says, and nothing is written."""
    async with supabase(supabase_dsn, **V2, **rules) as auth:
        created = await auth.login()
        await auth.add_factor(created.session.user_id)
        await auth.advance(HOUR + STEP)
        before = await auth.snapshot()
        assert (await auth.refused(created.refresh_token)).refusal is refusal
        assert await auth.snapshot() == before


async def test_a_banned_user_s_v2_session_waits(auth: Supabase) -> None:
    """It works again when the ban is over."""
    created = await auth.login()
    await auth.write_user(created.session.user_id, banned_until=auth.now + HOUR)
    assert (await auth.refused(created.refresh_token)).refusal is Refusal.BANNED
    await auth.advance(HOUR)
    await auth.refreshed(created.refresh_token)


async def test_only_the_v2_session_refreshed_last_can_refresh(supabase_dsn: str) -> None:
    """The rivals are those of both kinds."""
    async with supabase(supabase_dsn, single_per_user=True, **V2) as auth:
        old = await auth.login()
        await auth.advance(SECOND)
        new = await auth.another(single_per_user=True).sign_in(old.session.user_id, LAPTOP)
        assert (await auth.refused(old.refresh_token)).refusal is Refusal.SUPERSEDED
        await auth.refreshed(new.refresh_token)


async def test_a_sealed_key_works_and_stays_sealed(supabase_dsn: str) -> None:
    """The table holds an envelope, whoever signs holds the master key."""
    async with supabase(supabase_dsn, keys=KeyRing("a", MASTER, encrypt=True), **V2) as a:
        created = await a.login()
        stored = (await a.session(created.session.id))["refresh_token_hmac_key"]
        assert stored.startswith('{"key_id":"a"')
        await a.refreshed(created.refresh_token)
        row = await a.session(created.session.id)
        assert row["refresh_token_hmac_key"] == stored


async def test_a_key_is_sealed_anew_under_the_current_master_key(
    supabase_dsn: str,
) -> None:
    """From plain to a, to b and back, at each refresh, without a sign-out."""
    async with supabase(supabase_dsn, **V2) as auth:
        created = await auth.login()
        token, stored = created.refresh_token, set()
        for name in ("a", "b", "a"):
            store = auth.another(keys=KeyRing(name, MASTER, encrypt=True), **V2)
            token = (await store.refresh(token, LAPTOP)).refresh_token
            row = await auth.session(created.session.id)
            stored.add(row["refresh_token_hmac_key"])
            assert f'"key_id":"{name}"' in row["refresh_token_hmac_key"]
        assert len(stored) == 3
        plain = auth.another(keys=KeyRing("a", MASTER), **V2)
        assert (await plain.refresh(token, LAPTOP)).session.counter == 4


async def test_a_master_key_that_is_missing_is_no_answer(supabase_dsn: str) -> None:
    """Nobody is signed out for the operator's mistake, and nothing is written."""
    async with supabase(supabase_dsn, keys=KeyRing("a", MASTER, encrypt=True), **V2) as a:
        created = await a.login()
        before = await a.snapshot()
        with pytest.raises(SessionsUnavailable):
            await a.another(**V2).refresh(created.refresh_token, LAPTOP)
        assert await a.snapshot() == before
        await a.refreshed(created.refresh_token)
