"""Refreshing by a v1 token on real tables, rule by rule."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, timedelta
from typing import Any
from uuid import uuid4

import pytest

from handstamp.core.models import Client
from handstamp.supabase.rules import Refusal
from handstamp.supabase.tokens import KeyRing, is_v1, read_v2
from tests.support.supabase import (
    HOUR,
    LAPTOP,
    SECOND,
    STEP,
    ZERO,
    Supabase,
    assert_gotrue_can_read,
    read_session,
    supabase,
)

TEN = 10 * SECOND
AGES = timedelta(days=400)
NOBODY = "00000000-0000-4000-8000-000000000000"
UPGRADE: dict[str, Any] = {"algorithm_version": 2, "upgrade": 100}


@pytest.fixture
async def auth(supabase_dsn: str) -> AsyncIterator[Supabase]:
    """GoTrue's defaults, but for a reuse interval of ten seconds."""
    async with supabase(supabase_dsn, reuse_interval=TEN) as auth:
        yield auth


async def test_a_swap_writes_what_gotrue_writes(each_supabase_dsn: str) -> None:
    """The old row revoked and dated, a new one with its parent, session and user."""
    async with supabase(each_supabase_dsn) as auth:
        created = await auth.login()
        await auth.advance(HOUR)
        phone = Client(address="2001:db8::1", user_agent="Phone")
        outcome = await auth.store.refresh(created.refresh_token, phone)
        old, new = await auth.tokens(created.session.id)
        assert (old["revoked"], old["updated_at"]) == (True, auth.now)
        assert old["created_at"] == auth.now - HOUR
        assert (new["revoked"], new["created_at"]) == (False, auth.now)
        assert new["parent"] == old["token"] == created.refresh_token
        assert new["token"] == outcome.refresh_token != old["token"]
        assert (new["instance_id"], new["updated_at"]) == (ZERO, auth.now)
        assert new["user_id"] == created.session.user_id
        row = await auth.session(created.session.id)
        assert row["refreshed_at"].replace(tzinfo=UTC) == row["updated_at"] == auth.now
        assert (row["user_agent"], str(row["ip"])) == ("Phone", "2001:db8::1")
        assert row["refresh_token_hmac_key"] is row["refresh_token_counter"] is None
        assert row["created_at"] == auth.now - HOUR
        await assert_gotrue_can_read(auth.psql)


async def test_the_answer_is_the_row_as_it_is_now(auth: Supabase) -> None:
    """Whoever reads it again finds the same."""
    created = await auth.login()
    await auth.advance(HOUR)
    outcome = await auth.refreshed(created.refresh_token)
    assert outcome.session == await read_session(auth.store, created.session.id)
    assert not outcome.reused
    assert is_v1(outcome.refresh_token)
    assert outcome.user.id == created.session.user_id
    assert [entry.method for entry in outcome.amr] == ["password"]


async def test_a_client_that_tells_nothing_is_written_as_null(auth: Supabase) -> None:
    """User agent and address are those of the last refresh, and not of the one before."""
    created = await auth.login()
    await auth.store.refresh(created.refresh_token, Client())
    row = await auth.session(created.session.id)
    assert row["user_agent"] is row["ip"] is None


async def test_a_swap_bumps_the_user_and_no_sign_in(auth: Supabase) -> None:
    """updated_at moves, last_sign_in_at does not."""
    created = await auth.login()
    signed_in = auth.now
    await auth.advance(HOUR)
    await auth.refreshed(created.refresh_token)
    user = await auth.psql.fetchrow("select * from auth.users")
    assert (user["updated_at"], user["last_sign_in_at"]) == (auth.now, signed_in)


async def test_a_swap_is_audited_twice_and_a_parent_once(auth: Supabase) -> None:
    """token_refreshed and token_revoked; nothing is revoked for a parent."""
    created = await auth.login()
    await auth.refreshed(created.refresh_token)
    once = ["login", "token_refreshed", "token_revoked"]
    assert await auth.audited() == once
    await auth.refreshed(created.refresh_token)
    assert await auth.audited() == sorted([*once, "token_refreshed"])


async def test_without_the_audit_log_nothing_is_audited(supabase_dsn: str) -> None:
    """The setting switches every row of it off."""
    async with supabase(supabase_dsn, audit=False) as auth:
        created = await auth.login()
        await auth.refreshed(created.refresh_token)
        await auth.store.revoke(created.session.id, reason="x")
        assert await auth.audited() == []


@pytest.mark.parametrize("age", [timedelta(0), TEN, TEN + STEP, AGES])
async def test_a_parent_gets_the_active_token_at_any_age(
    auth: Supabase, age: timedelta
) -> None:
    """No row is inserted and none revoked; the session counts as refreshed."""
    created = await auth.login()
    first = await auth.refreshed(created.refresh_token)
    await auth.advance(age)
    before = await auth.tokens(created.session.id)
    for _ in range(3):
        again = await auth.refreshed(created.refresh_token)
        assert again.refresh_token == first.refresh_token
        assert again.reused
    assert await auth.tokens(created.session.id) == before
    row = await auth.session(created.session.id)
    assert row["refreshed_at"].replace(tzinfo=UTC) == auth.now


async def test_a_grandparent_within_the_interval_forks(auth: Supabase) -> None:
    """A new active token, and the presented row's clock starts again."""
    created = await auth.login()
    first = await auth.refreshed(created.refresh_token)
    second = await auth.refreshed(first.refresh_token)
    await auth.advance(TEN)
    third = await auth.refreshed(created.refresh_token)
    assert third.reused
    rows = await auth.tokens(created.session.id)
    assert [row["revoked"] for row in rows] == [True, True, False, False]
    assert rows[3]["parent"] == created.refresh_token
    assert rows[0]["updated_at"] == auth.now
    assert third.refresh_token not in {first.refresh_token, second.refresh_token}


async def test_after_a_fork_the_grandparent_is_the_parent(auth: Supabase) -> None:
    """It is exempt for ever, while the other branch's parent kills the family."""
    created = await auth.login()
    first = await auth.refreshed(created.refresh_token)
    await auth.refreshed(first.refresh_token)
    fork = await auth.refreshed(created.refresh_token)
    await auth.advance(AGES)
    again = await auth.refreshed(created.refresh_token)
    assert again.refresh_token == fork.refresh_token
    refused = await auth.refused(first.refresh_token)
    assert (refused.refusal, refused.family_revoked) == (Refusal.ALREADY_USED, True)


async def test_a_grandparent_after_the_interval_revokes_the_family(
    auth: Supabase,
) -> None:
    """It is committed although it is refused, and the session stays."""
    created = await auth.login()
    first = await auth.refreshed(created.refresh_token)
    await auth.refreshed(first.refresh_token)
    await auth.advance(TEN + STEP)
    refused = await auth.refused(created.refresh_token)
    assert refused.refusal is Refusal.ALREADY_USED
    assert (refused.family_revoked, refused.ended) == (True, ())
    assert refused.session is not None
    rows = await auth.tokens(created.session.id)
    assert [row["revoked"] for row in rows] == [True, True, True]
    old = auth.now - TEN - STEP
    assert [row["updated_at"] for row in rows] == [old, old, auth.now]
    assert (await auth.session(created.session.id))["refreshed_at"].replace(
        tzinfo=UTC
    ) == old
    await assert_gotrue_can_read(auth.psql)


async def test_a_token_revoked_with_its_family_is_good_for_an_interval(
    auth: Supabase,
) -> None:
    """Its clock has just been set; that is what GoTrue does."""
    created = await auth.login()
    first = await auth.refreshed(created.refresh_token)
    second = await auth.refreshed(first.refresh_token)
    await auth.advance(TEN + STEP)
    await auth.refused(created.refresh_token)
    await auth.advance(TEN)
    third = await auth.refreshed(second.refresh_token)
    assert third.reused


async def test_without_rotation_a_misuse_changes_nothing(supabase_dsn: str) -> None:
    """The same refusal, and the family lives on."""
    async with supabase(supabase_dsn, rotation_enabled=False) as auth:
        created = await auth.login()
        first = await auth.refreshed(created.refresh_token)
        second = await auth.refreshed(first.refresh_token)
        await auth.advance(STEP)
        before = await auth.snapshot()
        refused = await auth.refused(created.refresh_token)
        assert refused.refusal is Refusal.ALREADY_USED
        assert refused.family_revoked is False
        assert await auth.snapshot() == before
        await auth.refreshed(second.refresh_token)


async def test_the_active_token_is_the_one_of_the_highest_id(auth: Supabase) -> None:
    """Not the youngest by any clock."""
    created = await auth.login()
    first = await auth.refreshed(created.refresh_token)
    second = await auth.refreshed(first.refresh_token)
    await auth.write_token(first.refresh_token, revoked=False)
    await auth.write_token(second.refresh_token, created_at=auth.now - AGES)
    await auth.advance(AGES)
    refused = await auth.refused(created.refresh_token)
    assert refused.refusal is Refusal.ALREADY_USED


@pytest.mark.parametrize(
    "token",
    [
        *("", "short", "A" * 12, "abcdefghijk!", "abcdefghijkl\n", "abcdefghijklm"),
        *("x" * 22, "\x00" * 12, "é" * 12, "a" * 100_000),
    ],
)
async def test_what_is_no_token_asks_nobody(auth: Supabase, token: str) -> None:
    """It is refused without a statement."""
    await auth.store.ping()
    before = auth.store.queries
    refused = await auth.refused(token)
    assert (refused.refusal, refused.session) == (Refusal.MALFORMED, None)
    assert auth.store.queries <= before + 1  # what the database has, once


async def test_an_unknown_token_is_not_found(auth: Supabase) -> None:
    """And nothing is written."""
    await auth.login()
    before = await auth.snapshot()
    assert (await auth.refused("abcdefghijkl")).refusal is Refusal.NOT_FOUND
    assert await auth.snapshot() == before


async def test_a_token_without_a_session_is_deleted(auth: Supabase) -> None:
    """It is from before there were sessions; the next time it is not found."""
    user = await auth.add_user()
    await auth.insert("refresh_tokens", orphan(user))
    assert (await auth.refused("orphan123456")).refusal is Refusal.NO_SESSION
    assert await auth.count("refresh_tokens") == 0
    assert (await auth.refused("orphan123456")).refusal is Refusal.NOT_FOUND


async def test_a_banned_user_s_orphan_stays(auth: Supabase) -> None:
    """The ban is looked at first."""
    user = await auth.add_user(banned_until=auth.now + STEP)
    await auth.insert("refresh_tokens", orphan(user))
    assert (await auth.refused("orphan123456")).refusal is Refusal.BANNED
    assert await auth.count("refresh_tokens") == 1


@pytest.mark.parametrize("owner", ["", "nobody", NOBODY, None])
async def test_a_token_without_a_user_is_not_found(
    auth: Supabase, owner: str | None
) -> None:
    """The column has no foreign key, and may hold anything."""
    await auth.insert("refresh_tokens", {**orphan(""), "user_id": owner})
    assert (await auth.refused("orphan123456")).refusal is Refusal.NOT_FOUND
    assert await auth.count("refresh_tokens") == 1


async def test_a_token_of_another_user_than_its_session_is_not_found(
    auth: Supabase,
) -> None:
    """Two rows that contradict each other prove nothing."""
    created = await auth.login()
    await auth.write_token(created.refresh_token, user_id=await auth.add_user())
    assert (await auth.refused(created.refresh_token)).refusal is Refusal.NOT_FOUND


async def test_a_user_id_in_capitals_is_the_same_user(auth: Supabase) -> None:
    """The column is text."""
    created = await auth.login()
    owner = created.session.user_id.upper()
    await auth.write_token(created.refresh_token, user_id=owner)
    await auth.refreshed(created.refresh_token)


async def test_a_user_of_another_instance_is_not_found(auth: Supabase) -> None:
    """GoTrue knows users of instance zero only."""
    created = await auth.login()
    await auth.write_user(created.session.user_id, instance_id=uuid4())
    assert (await auth.refused(created.refresh_token)).refusal is Refusal.NOT_FOUND


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"banned_until": STEP}, Refusal.BANNED),
        ({"banned_until": timedelta(0)}, None),
        ({"deleted_at": timedelta(0)}, Refusal.NOT_FOUND),
    ],
    ids=["banned", "ban-over", "deleted"],
)
async def test_a_user_who_may_not_refresh(
    auth: Supabase, change: dict[str, timedelta], refusal: Refusal | None
) -> None:
    """Nothing is written for a user who is banned or deleted; a ban ends."""
    created = await auth.login()
    await auth.write_user(
        created.session.user_id, **{name: auth.now + by for name, by in change.items()}
    )
    before = await auth.snapshot()
    if refusal is None:
        await auth.refreshed(created.refresh_token)
        return
    assert (await auth.refused(created.refresh_token)).refusal is refusal
    assert await auth.snapshot() == before


async def test_a_ban_for_ever_is_a_ban(auth: Supabase) -> None:
    """Infinity is a date that Python does not have."""
    created = await auth.login()
    for until in ("'infinity'", "'294276-01-01'"):
        await auth.psql.execute(f"update auth.users set banned_until = {until}")
        assert (await auth.refused(created.refresh_token)).refusal is Refusal.BANNED


LIMITS = pytest.mark.parametrize(
    ("rules", "limit", "refusal"),
    [
        ({"timebox": HOUR}, HOUR, Refusal.EXPIRED),
        ({"inactivity": HOUR}, HOUR, Refusal.INACTIVE),
        ({"allow_low_aal": HOUR}, HOUR, Refusal.LOW_AAL),
    ],
    ids=["timebox", "inactivity", "low-aal"],
)


@LIMITS
async def test_an_expired_session_is_refused_and_left(
    supabase_dsn: str, rules: dict[str, Any], limit: timedelta, refusal: Refusal
) -> None:
    """At the limit it is refreshed; a step later it is refused and nothing is written."""
    async with supabase(supabase_dsn, **rules) as auth:
        created = await auth.login()
        late = await auth.login(created.session.user_id)
        await auth.add_factor(created.session.user_id)
        await auth.advance(limit)
        await auth.refreshed(created.refresh_token)
        await auth.advance(STEP)
        before = await auth.snapshot()
        refused = await auth.refused(late.refresh_token)
        assert refused.refusal is refusal
        assert refused.session is not None
        assert await auth.snapshot() == before


async def test_an_unverified_factor_lowers_nothing(supabase_dsn: str) -> None:
    """Only a verified one raises what the user could reach."""
    async with supabase(supabase_dsn, allow_low_aal=HOUR) as auth:
        created = await auth.login()
        await auth.add_factor(created.session.user_id, "unverified")
        await auth.advance(2 * HOUR)
        await auth.refreshed(created.refresh_token)


async def test_inactivity_counts_from_the_token_of_a_session_never_refreshed(
    supabase_dsn: str,
) -> None:
    """A GoTrue from before refreshed_at left no other trace."""
    async with supabase(supabase_dsn, inactivity=HOUR) as auth:
        created = await auth.login()
        await auth.advance(2 * HOUR)
        await auth.write_token(created.refresh_token, updated_at=auth.now - HOUR)
        found = await read_session(auth.store, created.session.id)
        assert found is not None
        assert found.last_refreshed_at == auth.now - HOUR
        await auth.refreshed(created.refresh_token)


async def test_the_end_a_login_set_is_kept(auth: Supabase) -> None:
    """not_after of a SAML assertion, to the microsecond."""
    created = await auth.login(not_after=auth.now + HOUR)
    await auth.advance(HOUR)
    again = await auth.refreshed(created.refresh_token)
    await auth.advance(STEP)
    assert (await auth.refused(again.refresh_token)).refusal is Refusal.EXPIRED


@pytest.mark.parametrize("tags", [(), ("web", "app")], ids=["untagged", "tagged"])
async def test_only_the_session_refreshed_last_can_refresh(
    supabase_dsn: str, tags: tuple[str, ...]
) -> None:
    """Of one user and one tag; the older one's row is left."""
    async with supabase(supabase_dsn, single_per_user=True, tags=tags) as auth:
        old = await auth.login(tag="web")
        await auth.advance(SECOND)
        new = await auth.login(old.session.user_id, tag="app")
        other = await auth.login()
        before = await auth.snapshot()
        if tags:
            await auth.refreshed(old.refresh_token)
        else:
            refused = await auth.refused(old.refresh_token)
            assert refused.refusal is Refusal.SUPERSEDED
            assert await auth.snapshot() == before
        await auth.refreshed(new.refresh_token)
        await auth.refreshed(other.refresh_token)


async def test_an_oauth_session_is_not_refreshed(auth: Supabase) -> None:
    """Its client must authenticate itself, at GoTrue; nothing is written."""
    client = str(uuid4())
    await auth.insert("oauth_clients", {"id": client})
    theirs = await auth.login(oauth_client_id=client, scopes="openid email")
    before = await auth.snapshot()
    refused = await auth.refused(theirs.refresh_token)
    assert refused.refusal is Refusal.OAUTH_CLIENT
    assert await auth.snapshot() == before


async def test_refreshed_at_is_utc_wherever_the_database_thinks_it_is(
    supabase_dsn: str,
) -> None:
    """The column has no time zone, and the connection's is not taken for it."""
    async with supabase(supabase_dsn, inactivity=HOUR) as auth:
        far = auth.another(
            inactivity=HOUR,
            connect={
                "server_settings": {
                    **auth.frozen.connect["server_settings"],
                    "timezone": "Asia/Tokyo",
                }
            },
        )
        created = await auth.login()
        done = await far.refresh(created.refresh_token, LAPTOP)
        row = await auth.session(created.session.id)
        assert row["refreshed_at"].replace(tzinfo=UTC) == auth.now
        found = await read_session(far, created.session.id)
        assert found is not None
        assert found.refreshed_at == auth.now == done.session.refreshed_at


async def test_a_new_token_that_exists_is_minted_again(supabase_dsn: str) -> None:
    """The collision is rolled back and nobody's token is quoted anywhere."""
    drawn = [bytes(8), bytes(range(8))]
    async with supabase(supabase_dsn) as auth:
        created = await auth.login()
        await auth.insert("refresh_tokens", {**orphan(""), "token": "a" * 12})
        store = auth.another(entropy=lambda n: drawn.pop(0) if n == 8 else bytes(n))
        done = await store.refresh(created.refresh_token, LAPTOP)
        assert drawn == []
        rows = await auth.tokens(created.session.id)
        assert [row["token"] for row in rows] == [
            created.refresh_token,
            done.refresh_token,
        ]


async def test_an_upgrade_makes_a_v2_session(supabase_dsn: str) -> None:
    """Key and counter 0 are written, and only revoked v1 rows are left."""
    async with supabase(supabase_dsn) as auth:
        created = await auth.login()
        store = auth.another(**UPGRADE)
        done = await store.refresh(created.refresh_token, LAPTOP)
        assert (is_v1(done.refresh_token), done.session.counter) == (False, 0)
        claim = read_v2(done.refresh_token)
        assert claim is not None
        assert (claim.session_id, claim.counter) == (created.session.id, 0)
        rows = await auth.tokens(created.session.id)
        assert [row["revoked"] for row in rows] == [True, True]
        assert rows[1]["parent"] == created.refresh_token
        again = await store.refresh(done.refresh_token, LAPTOP)
        assert again.session.counter == 1
        await assert_gotrue_can_read(auth.psql)


async def test_a_parent_is_never_upgraded(supabase_dsn: str) -> None:
    """Only a real swap is."""
    async with supabase(supabase_dsn) as auth:
        created = await auth.login()
        first = await auth.refreshed(created.refresh_token)
        done = await auth.another(**UPGRADE).refresh(created.refresh_token, LAPTOP)
        assert done.refresh_token == first.refresh_token
        assert is_v1(done.refresh_token)
        row = await auth.session(created.session.id)
        assert row["refresh_token_counter"] is None


async def test_after_an_upgrade_a_v1_token_counts_on_within_the_interval(
    supabase_dsn: str,
) -> None:
    """Outside of it the token is refused, and the session and its v2 token live on."""
    async with supabase(supabase_dsn, reuse_interval=TEN, **UPGRADE) as auth:
        created = await auth.another().sign_in(await auth.add_user(), LAPTOP)
        first = await auth.refreshed(created.refresh_token)
        await auth.advance(TEN)
        second = await auth.refreshed(created.refresh_token)
        assert (first.session.counter, second.session.counter) == (0, 1)
        assert second.reused
        await auth.advance(TEN + STEP)
        refused = await auth.refused(created.refresh_token)
        assert refused.refusal is Refusal.ALREADY_USED
        third = await auth.refreshed(first.refresh_token)
        assert (third.session.counter, third.reused) == (1, True)
        await assert_gotrue_can_read(auth.psql)


async def test_an_upgrade_seals_the_key_and_reseals_one_that_is_there(
    supabase_dsn: str,
) -> None:
    """Under the master key that is in force, in the same statement."""
    async with supabase(supabase_dsn, reuse_interval=TEN) as auth:
        created = await auth.login()
        keys = {"a": bytes(32), "b": bytes([1] * 32)}
        for name in ("a", "b"):
            ring = KeyRing(name, keys, encrypt=True)
            store = auth.another(keys=ring, reuse_interval=TEN, **UPGRADE)
            done = await store.refresh(created.refresh_token, LAPTOP)
            assert not is_v1(done.refresh_token)
            row = await auth.session(created.session.id)
            assert f'"key_id":"{name}"' in row["refresh_token_hmac_key"]
            again = await store.refresh(done.refresh_token, LAPTOP)
            assert again.session.counter == done.session.counter + 1


def orphan(user_id: str) -> dict[str, Any]:
    return {
        "instance_id": ZERO,
        "token": "orphan123456",
        "user_id": user_id,
        "revoked": False,
    }
