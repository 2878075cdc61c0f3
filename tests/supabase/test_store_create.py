"""Signing in to Supabase's own tables, and reading sessions from them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest

from handstamp.core.models import Client
from handstamp.errors import ConfigError, LoginRefused
from handstamp.supabase.store import SupabaseStore
from handstamp.supabase.tokens import is_v1, read_v2
from tests.support.supabase import (
    HOUR,
    LAPTOP,
    SECOND,
    ZERO,
    Supabase,
    assert_gotrue_can_read,
    read_session,
    supabase,
)

NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def auth(supabase_dsn: str) -> AsyncIterator[Supabase]:
    async with supabase(supabase_dsn) as auth:
        yield auth


async def test_a_v1_sign_in_writes_what_gotrue_writes(each_supabase_dsn: str) -> None:
    """A session without key and counter, and one token without a parent."""
    async with supabase(each_supabase_dsn) as auth:
        created = await auth.login()
        row = await auth.session(created.session.id)
        assert dict(row) == {
            **dict.fromkeys(row.keys()),
            "id": row["id"],
            "user_id": row["user_id"],
            "created_at": auth.now,
            "updated_at": auth.now,
            "aal": "aal1",
            "user_agent": "Laptop",
            "ip": row["ip"],
        }
        assert str(row["ip"]) == "198.51.100.7"
        (token,) = await auth.tokens(created.session.id)
        assert dict(token) == {
            "instance_id": ZERO,
            "id": token["id"],
            "token": created.refresh_token,
            "user_id": created.session.user_id,
            "revoked": False,
            "created_at": auth.now,
            "updated_at": auth.now,
            "parent": None,
            "session_id": row["id"],
        }
        assert is_v1(created.refresh_token)
        assert is_v1(created.refresh_token)
        await assert_gotrue_can_read(auth.psql)


async def test_a_v2_sign_in_writes_what_gotrue_writes(each_supabase_dsn: str) -> None:
    """A session with a key of its own and counter zero, and no token row."""
    async with supabase(each_supabase_dsn, algorithm_version=2) as auth:
        one, other = await auth.login(), await auth.login()
        rows = [await auth.session(known.session.id) for known in (one, other)]
        assert [row["refresh_token_counter"] for row in rows] == [0, 0]
        keys = {row["refresh_token_hmac_key"] for row in rows}
        assert {len(key) for key in keys} == {43}
        assert len(keys) == 2
        claim = read_v2(one.refresh_token)
        assert claim is not None
        assert (claim.session_id, claim.counter) == (one.session.id, 0)
        assert await auth.count("refresh_tokens") == 0
        await assert_gotrue_can_read(auth.psql)


async def test_the_algorithm_is_v1_unless_it_is_two(supabase_dsn: str) -> None:
    """0 is the default, and 1 is the same."""
    async with supabase(supabase_dsn, algorithm_version=1) as auth:
        assert is_v1((await auth.login()).refresh_token)


async def test_a_sign_in_dates_the_user_and_claims_its_method(auth: Supabase) -> None:
    """last_sign_in_at, updated_at, one AMR claim and one row of the audit log."""
    user = await auth.add_user()
    await auth.advance(HOUR)
    created = await auth.login(user, method="otp")
    row = await auth.psql.fetchrow("select * from auth.users")
    assert row["last_sign_in_at"] == row["updated_at"] == auth.now
    assert row["created_at"] == auth.now - HOUR
    claim = await auth.psql.fetchrow("select * from auth.mfa_amr_claims")
    assert str(claim["session_id"]) == created.session.id
    assert claim["authentication_method"] == "otp"
    assert claim["created_at"] == claim["updated_at"] == auth.now
    assert [(e.method, e.at) for e in created.amr] == [("otp", auth.now)]
    assert await auth.audited() == ["login"]


async def test_the_audit_log_tells_who_as_gotrue_does(auth: Supabase) -> None:
    """The phone before the e-mail address, the full name if there is one."""
    user = await auth.add_user(phone="4915112345678", is_sso_user=True)
    await auth.login(user)
    row = await auth.psql.fetchrow(
        "select payload::jsonb::text as payload, created_at from auth.audit_log_entries"
    )
    assert json.loads(row["payload"]) == {
        "action": "login",
        "actor_id": user,
        "actor_name": "Ada",
        "actor_username": "4915112345678",
        "actor_via_sso": True,
        "log_type": "account",
    }
    assert row["created_at"] == auth.now


async def test_the_answer_tells_what_an_access_token_needs(auth: Supabase) -> None:
    """Email and phone are texts also where the row has none."""
    user = await auth.add_user(
        email=None, is_anonymous=True, raw_user_meta_data=None, raw_app_meta_data="[]"
    )
    known = (await auth.login(user)).user
    assert (known.id, known.aud, known.role) == (user, "authenticated", "authenticated")
    assert (known.email, known.phone, known.is_anonymous) == ("", "", True)
    assert (known.app_metadata, known.user_metadata) == ({}, {})
    named = (await auth.login()).user
    assert named.user_metadata == {"full_name": "Ada"}
    assert named.app_metadata == {"provider": "email"}


async def test_metadata_too_deep_to_read_is_none(auth: Supabase) -> None:
    """Users write some of it themselves, and raise nothing with it."""
    deep = '{"a":' * 5000 + "1" + "}" * 5000
    created = await auth.login(await auth.add_user(raw_user_meta_data=deep))
    assert created.user.user_metadata == {}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"banned_until": timedelta(microseconds=1)}, "user_disabled"),
        ({"deleted_at": timedelta(0)}, "user_disabled"),
        ({"banned_until": timedelta(0)}, None),
    ],
    ids=["banned", "deleted", "ban-over"],
)
async def test_a_user_who_may_not_sign_in(
    auth: Supabase, values: dict[str, timedelta], reason: str | None
) -> None:
    """Nothing is written for a banned or deleted user."""
    user = await auth.add_user(**{name: auth.now + by for name, by in values.items()})
    before = await auth.snapshot()
    if reason is None:
        await auth.login(user)
        return
    with pytest.raises(LoginRefused) as refusal:
        await auth.login(user)
    assert refusal.value.reason == reason
    assert await auth.snapshot() == before


@pytest.mark.parametrize("user", ["", "alice", "é" * 36, NOBODY, "\x00"])
async def test_no_such_user(auth: Supabase, user: str) -> None:
    """What is no uuid names nobody either."""
    with pytest.raises(LoginRefused) as refusal:
        await auth.store.sign_in(user, LAPTOP)
    assert refusal.value.reason == "unknown_user"
    assert list(await auth.store.list_for_user(user)) == []
    assert list(await auth.store.revoke_user(user, reason="x")) == []


async def test_a_user_of_another_instance_cannot_sign_in(auth: Supabase) -> None:
    """GoTrue would not find the user, and we do not either."""
    user = await auth.add_user(instance_id=uuid4())
    with pytest.raises(LoginRefused, match="unknown user"):
        await auth.login(user)


async def test_a_new_login_replaces_the_old_session(auth: Supabase) -> None:
    """In one transaction, and the refused one replaces nothing."""
    old = await auth.login()
    with pytest.raises(LoginRefused):
        await auth.login(str(uuid4()), replaces=(old.session.id,))
    assert await auth.count("sessions") == 1
    new = await auth.login(old.session.user_id, replaces=(old.session.id,))
    assert [gone.id for gone in new.ended] == [old.session.id]
    known = await auth.store.list_for_user(old.session.user_id)
    assert [session.id for session in known] == [new.session.id]


async def test_a_user_agent_may_be_anything(auth: Supabase) -> None:
    """What PostgreSQL stores in no text is replaced, and an empty one is none."""
    user = await auth.add_user()
    for agent, stored in (("a\x00b\ud800", "a?b?"), ("", None), (None, None)):
        client = Client(user_agent=agent, address="not an address")
        created = await auth.store.sign_in(user, client)
        row = await auth.session(created.session.id)
        assert (row["user_agent"], row["ip"]) == (stored, None)


async def test_sessions_are_found_by_their_ids(auth: Supabase) -> None:
    """Those that exist, whatever else is asked for, in any spelling of a uuid."""
    one, other = await auth.login(), await auth.login()
    ids = [one.session.id.upper(), other.session.id, str(uuid4()), "", "'", "\x00"]
    found = await auth.store.read_sessions(ids)
    assert {session.id for session in found} == {one.session.id, other.session.id}
    assert await auth.store.read_sessions([]) == []
    assert await auth.store.find_by_id("no uuid") is None
    assert await auth.store.find_by_id(str(uuid4())) is None
    assert one.session in found


async def test_a_session_is_read_with_its_user(auth: Supabase) -> None:
    """Ban, deletion, and whether GoTrue would find the user at all."""
    created = await auth.login()
    await auth.write_user(
        created.session.user_id, banned_until=auth.now, deleted_at=auth.now + SECOND
    )
    found = await read_session(auth.store, created.session.id)
    assert found is not None
    assert (found.banned_until, found.deleted_at) == (auth.now, auth.now + SECOND)
    assert (found.user_found, found.read_at, found.key) == (True, auth.now, None)
    await auth.write_user(created.session.user_id, instance_id=None)
    found = await read_session(auth.store, created.session.id)
    assert found is not None
    assert found.user_found is False


async def test_infinite_times_are_read(auth: Supabase) -> None:
    """No date of the table raises."""
    created = await auth.login()
    await auth.psql.execute(
        "update auth.sessions set not_after = 'infinity', refreshed_at = 'infinity',"
        " created_at = '-infinity'; update auth.users set banned_until = '-infinity'"
    )
    found = await read_session(auth.store, created.session.id)
    assert found is not None
    times = (found.created_at, found.not_after, found.refreshed_at, found.banned_until)
    assert all(time is not None and time.tzinfo is not None for time in times)


async def test_the_list_begins_with_the_session_refreshed_last(auth: Supabase) -> None:
    """A session never refreshed counts from its creation."""
    first = await auth.login()
    user = first.session.user_id
    await auth.advance(SECOND)
    second = await auth.login(user)
    await auth.advance(SECOND)
    await auth.login()
    listed = [session.id for session in await auth.store.list_for_user(user)]
    assert listed == [second.session.id, first.session.id]
    await auth.refreshed(first.refresh_token)
    listed = [session.id for session in await auth.store.list_for_user(user)]
    assert listed == [first.session.id, second.session.id]


async def test_a_look_up_is_one_statement(auth: Supabase) -> None:
    """After the first, which looks what the database has."""
    created = await auth.login()
    await read_session(auth.store, created.session.id)
    before = auth.store.queries
    await read_session(auth.store, created.session.id)
    assert auth.store.queries == before + 1


def test_a_store_on_what_is_no_schema_is_refused() -> None:
    """The name ends up in SQL text."""
    with pytest.raises(ConfigError, match="schema"):
        SupabaseStore(
            "postgresql://localhost/x", schema='auth"; drop', entropy=lambda n: bytes(n)
        )


async def test_what_it_can_do_and_says_of_itself(auth: Supabase) -> None:
    """No activity, no fingerprint and no refresh by our rules; no address in its repr."""
    able = auth.store.capabilities
    assert (able.refresh, able.user_status, able.level) == (False, True, True)
    assert (able.activity, able.fingerprint) == (False, False)
    assert repr(auth.store) == "SupabaseStore(schema='auth')"


async def test_what_is_handed_out_shows_no_token(auth: Supabase) -> None:
    """Neither the answer to a login nor that to a refresh, in its repr."""
    created = await auth.login()
    done = await auth.refreshed(created.refresh_token)
    for text in (repr(created), repr(done)):
        assert created.refresh_token not in text
        assert done.refresh_token not in text
        assert "198.51.100.7" not in text
        assert "@example.org" not in text


async def test_the_method_of_sign_in_is_required(auth: Supabase) -> None:
    """It is the first AMR claim of the session."""
    user = await auth.add_user()
    with pytest.raises(ConfigError, match="method"):
        await auth.store.sign_in(user, LAPTOP, method="")
    assert await auth.count("sessions") == 0
