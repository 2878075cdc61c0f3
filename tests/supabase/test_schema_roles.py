"""Which roles may use Supabase's tables, what they are told, and older databases."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from handstamp.core.models import Client
from handstamp.errors import ConfigError, LoginRefused, SessionsUnavailable
from handstamp.supabase.rows import Refused
from handstamp.supabase.rules import Refusal
from handstamp.supabase.store import SupabaseStore
from handstamp.supabase.tokens import is_v1, write_v2
from tests.support.supabase import (
    HOUR,
    LAPTOP,
    OWNER,
    Supabase,
    assert_gotrue_can_read,
    inspect,
    new_store,
    read_session,
    supabase,
)

RULES: dict[str, Any] = {
    "allow_low_aal": HOUR,
    "inactivity": HOUR,
    "timebox": HOUR,
    "single_per_user": True,
}
# Everything a role with BYPASSRLS needs, under every rule there is.
GRANTS = (
    "usage on schema auth",
    "select on auth.sessions",
    "insert on auth.sessions",
    "update (updated_at, refreshed_at, user_agent, ip, refresh_token_hmac_key,"
    " refresh_token_counter) on auth.sessions",
    "delete on auth.sessions",
    "select on auth.refresh_tokens",
    "insert on auth.refresh_tokens",
    "update (revoked, updated_at) on auth.refresh_tokens",
    "delete on auth.refresh_tokens",
    "usage on sequence auth.refresh_tokens_id_seq",
    "select on auth.mfa_amr_claims",
    "insert on auth.mfa_amr_claims",
    "select on auth.mfa_factors",
    "insert on auth.audit_log_entries",
    "select (id, instance_id, aud, role, email, phone, raw_app_meta_data,"
    " raw_user_meta_data, is_anonymous, is_sso_user, created_at, updated_at,"
    " last_sign_in_at, banned_until, deleted_at) on auth.users",
    "update (last_sign_in_at, updated_at) on auth.users",
)


@asynccontextmanager
async def role(
    auth: Supabase, *grants: str, options: str = "bypassrls"
) -> AsyncIterator[tuple[str, str]]:
    """A role of its own and the address under which it comes; dropped at the end."""
    name, word = f"handstamp_{secrets.token_hex(4)}", secrets.token_hex(8)
    await auth.psql.execute(f"create role {name} login {options} password '{word}'")
    try:
        for grant in grants:
            await auth.psql.execute(f"grant {grant} to {name}")
        url = urlsplit(auth.dsn)
        place = f"{name}:{word}@{url.netloc.rpartition('@')[2]}"
        yield name, urlunsplit(url._replace(netloc=place))
    finally:
        await auth.psql.execute(f"drop owned by {name}")
        await auth.psql.execute(f"drop role {name}")


@asynccontextmanager
async def store_as(dsn: str, **settings: Any) -> AsyncIterator[SupabaseStore]:
    store = new_store(dsn, **settings)
    try:
        yield store
    finally:
        await store.close()


async def live(store: SupabaseStore, user: str) -> None:
    """Everything a store does, as this role."""
    await inspect(store)
    created = await store.sign_in(user, LAPTOP)
    assert await store.find_by_id(created.session.id) is not None
    done = await store.refresh(created.refresh_token, LAPTOP)
    await store.refresh(created.refresh_token, LAPTOP)
    await store.refresh(done.refresh_token, LAPTOP)
    assert len(await store.list_for_user(user)) == 1
    assert await store.revoke(created.session.id, reason="x") is not None
    await store.sign_in(user, LAPTOP)
    assert len(await store.revoke_user(user, reason="x")) == 1


@pytest.fixture
async def auth(supabase_dsn: str) -> AsyncIterator[Supabase]:
    async with supabase(supabase_dsn) as auth:
        yield auth


VERSIONS = pytest.mark.parametrize("version", [0, 2], ids=["v1", "v2"])


@VERSIONS
async def test_p14_a_role_with_the_documented_grants_will_do(
    auth: Supabase, version: int
) -> None:
    """BYPASSRLS and these grants, some of them on single columns."""
    rules = {**RULES, "algorithm_version": version}
    async with role(auth, *GRANTS) as (_, dsn), store_as(dsn, **rules) as store:
        await live(store, await auth.add_user())
    await assert_gotrue_can_read(auth.psql)


@VERSIONS
async def test_p14_the_owner_will_do(auth: Supabase, version: int) -> None:
    """A member that acts as the owner of the tables sees every row of them."""
    async with role(auth, OWNER, options="") as (name, dsn):
        await auth.psql.execute(f"alter role {name} set role {OWNER}")
        async with store_as(dsn, algorithm_version=version, **RULES) as store:
            await live(store, await auth.add_user())


@pytest.mark.parametrize("missing", GRANTS, ids=lambda grant: grant.split(" (")[0])
async def test_p14_no_grant_of_ours_is_too_many(auth: Supabase, missing: str) -> None:
    """Without any one of them it says which, before it does anything by halves."""
    others = [grant for grant in GRANTS if grant != missing]
    async with role(auth, *others) as (name, dsn), store_as(dsn, **RULES) as store:
        with pytest.raises(ConfigError) as refusal:
            await inspect(store)
        with pytest.raises(SessionsUnavailable, match="grant"):
            await store.sign_in(await auth.add_user(), LAPTOP)
        assert await auth.count("sessions") == 0
    kind, _, table = missing.partition(" on ")
    assert str(refusal.value).startswith(f"grant {kind.partition(' (')[0]}")
    assert table in str(refusal.value)
    assert name in str(refusal.value)


async def test_the_grant_that_is_named_mends_it(auth: Supabase) -> None:
    """Without a restart: what is refused is looked at again."""
    async with role(auth, *GRANTS) as (name, dsn), store_as(dsn) as store:
        user = await auth.add_user()
        await auth.psql.execute(f"revoke delete on auth.sessions from {name}")
        for _ in range(20):
            try:
                await inspect(store)
                break
            except ConfigError as refusal:
                await auth.psql.execute(str(refusal))
        else:
            pytest.fail("it names grants without end")
        await live(store, user)


async def test_a_grant_taken_away_is_named_the_next_time(auth: Supabase) -> None:
    """The first question fails without an answer, and the next one says why."""
    async with role(auth, *GRANTS) as (name, dsn), store_as(dsn) as store:
        created = await auth.login()
        assert await store.find_by_id(created.session.id) is not None
        await auth.psql.execute(f"revoke select on auth.sessions from {name}")
        with pytest.raises(SessionsUnavailable):
            await store.find_by_id(created.session.id)
        with pytest.raises(SessionsUnavailable, match=r"grant select on auth\.sessions"):
            await store.find_by_id(created.session.id)
        await auth.psql.execute(f"grant select on auth.sessions to {name}")
        assert await store.find_by_id(created.session.id) is not None


async def test_two_grants_are_enough_to_read(auth: Supabase) -> None:
    """A service that only looks sessions up may write nothing, and is told so."""
    created = await auth.login()
    reading = ("usage on schema auth", "select on auth.sessions", "select on auth.users")
    async with role(auth, *reading) as (_, dsn), store_as(dsn) as store:
        assert await read_session(store, created.session.id) == created.session
        assert len(await store.list_for_user(created.session.user_id)) == 1
        with pytest.raises(SessionsUnavailable, match="grant"):
            await store.revoke(created.session.id, reason="x")
        assert await read_session(store, created.session.id) == created.session


async def test_row_level_security_that_hides_everything_signs_nobody_out(
    auth: Supabase, caplog: pytest.LogCaptureFixture
) -> None:
    """Every question is without an answer, and the log says once what to do."""
    created = await auth.login()
    async with role(auth, *GRANTS, options="") as (name, dsn), store_as(dsn) as store:
        with caplog.at_level(logging.ERROR, logger="handstamp"):
            for _ in range(3):
                with pytest.raises(SessionsUnavailable, match="row level security"):
                    await store.find_by_id(created.session.id)
                with pytest.raises(SessionsUnavailable, match="row level security"):
                    await store.refresh(created.refresh_token, LAPTOP)
                with pytest.raises(SessionsUnavailable, match="row level security"):
                    await store.revoke(created.session.id, reason="x")
        with pytest.raises(ConfigError, match=f'alter role "{name}" bypassrls'):
            await inspect(store)
        assert len(caplog.records) == 1
        assert "auth.sessions" in caplog.text
        await auth.psql.execute(f'alter role "{name}" bypassrls')
        assert await store.find_by_id(created.session.id) is not None


@pytest.mark.parametrize("ask", ["find", "list", "refresh", "revoke", "revoke-user"])
async def test_a_role_that_loses_its_bypass_signs_nobody_out(
    auth: Supabase, ask: str
) -> None:
    """Rows that vanish all at once are no answer, in each question by itself."""
    created = await auth.login()
    v2 = await auth.another(algorithm_version=2).sign_in(created.session.user_id, LAPTOP)
    async with role(auth, *GRANTS) as (name, dsn), store_as(dsn) as store:
        await store.ready()
        await auth.psql.execute(f'alter role "{name}" nobypassrls')
        session, user = created.session.id, created.session.user_id
        questions = {
            "find": lambda: store.find_by_id(session),
            "list": lambda: store.list_for_user(user),
            "refresh": lambda: store.refresh(created.refresh_token, LAPTOP),
            "revoke": lambda: store.revoke(session, reason="x"),
            "revoke-user": lambda: store.revoke_user(user, reason="x"),
        }
        with pytest.raises(SessionsUnavailable, match="row level security"):
            await questions[ask]()
        with pytest.raises(SessionsUnavailable, match="row level security"):
            await store.refresh(v2.refresh_token, LAPTOP)
    assert await auth.count("sessions") == 2


async def test_a_login_of_a_role_that_loses_its_bypass_is_no_refusal(
    auth: Supabase,
) -> None:
    """It is not said that there is no such user."""
    user = await auth.add_user()
    async with role(auth, *GRANTS) as (name, dsn), store_as(dsn) as store:
        await store.ready()
        await auth.psql.execute(f'alter role "{name}" nobypassrls')
        with pytest.raises(SessionsUnavailable):
            await store.sign_in(user, LAPTOP)


async def test_policies_that_let_a_role_in_are_believed(auth: Supabase) -> None:
    """A role with policies of its own needs no BYPASSRLS."""
    async with role(auth, *GRANTS, options="") as (name, dsn), store_as(dsn) as store:
        tables = ("sessions", "refresh_tokens", "users", "mfa_amr_claims", "mfa_factors")
        for table in (*tables, "audit_log_entries"):
            await auth.psql.execute(
                f"create policy {name} on auth.{table} to {name} using (true)"
            )
        await live(store, await auth.add_user())
        for table in (*tables, "audit_log_entries"):
            await auth.psql.execute(f"drop policy {name} on auth.{table}")


# Columns by age, the newest first: what a database of before lacks.
AGES = [
    ["alter table auth.sessions drop column scopes"],
    [
        "alter table auth.sessions drop column refresh_token_hmac_key,"
        " drop column refresh_token_counter"
    ],
    ["alter table auth.sessions drop column oauth_client_id"],
    ["alter table auth.users drop column is_anonymous"],
    ["alter table auth.sessions drop column tag"],
    [
        "alter table auth.sessions drop column refreshed_at, drop column user_agent,"
        " drop column ip"
    ],
    ["alter table auth.users drop column deleted_at"],
    ["alter table auth.sessions drop column not_after"],
    [
        "alter table auth.sessions drop column aal, drop column factor_id",
        "drop table auth.mfa_amr_claims",
        "drop table auth.mfa_factors",
        "alter table auth.users drop column is_sso_user",
    ],
    ["alter table auth.users drop column banned_until"],
    ["drop table auth.audit_log_entries"],
]


@pytest.mark.parametrize("age", range(1, len(AGES) + 1))
async def test_an_older_database_works_without_what_it_lacks(
    auth: Supabase, age: int
) -> None:
    """Sign in, read, refresh, list, end, clean up: v1 where v2 has no columns."""
    for statements in AGES[:age]:
        for statement in statements:
            await auth.psql.execute(statement)
    user = await auth.add_user()
    rules = {**RULES, "algorithm_version": 2, "upgrade": 100}
    store = auth.another(**rules)
    missing = (await inspect(store)).missing
    assert len(missing) >= age - 1  # nothing depends on the newest column
    created = await store.sign_in(user, LAPTOP)
    assert is_v1(created.refresh_token) is (age >= 2)
    assert await store.find_by_id(created.session.id) is not None
    await live(store, await auth.add_user())


async def test_claims_without_ids_are_left_alone(auth: Supabase) -> None:
    """For a few weeks of 2022 they had none; access tokens then say no amr."""
    await auth.psql.execute("alter table auth.mfa_amr_claims drop column id")
    assert (await inspect(auth.store)).missing == ("mfa_amr_claims.id",)
    created = await auth.login()
    assert (await auth.refreshed(created.refresh_token)).amr == ()


async def test_a_newest_database_lacks_nothing(auth: Supabase) -> None:
    """And no feature is off."""
    assert (await inspect(auth.store)).missing == ()


async def test_without_refreshed_at_the_tokens_tell(auth: Supabase) -> None:
    """The last refresh of an old database is that of its youngest token."""
    await auth.psql.execute("alter table auth.sessions drop column refreshed_at")
    store = auth.another(inactivity=HOUR)
    created = await store.sign_in(await auth.add_user(), LAPTOP)
    await auth.advance(HOUR)
    await store.refresh(created.refresh_token, LAPTOP)
    found = await read_session(store, created.session.id)
    assert found is not None
    assert found.last_refreshed_at == auth.now


async def test_a_v2_token_in_an_old_database_is_not_found(auth: Supabase) -> None:
    """There is no key that could have signed it."""
    created = await auth.login()
    await auth.psql.execute(
        "alter table auth.sessions drop column refresh_token_hmac_key,"
        " drop column refresh_token_counter"
    )
    token = write_v2(created.session.id, 0, bytes(32))
    refused = await auth.another(algorithm_version=2).refresh(token, LAPTOP)
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.NOT_FOUND


@pytest.mark.parametrize(
    "change",
    [
        "drop schema auth cascade",
        "drop table auth.sessions cascade",
        "drop table auth.refresh_tokens",
        "alter table auth.refresh_tokens drop column session_id",
        "alter table auth.users rename column raw_user_meta_data to other",
    ],
)
async def test_a_database_that_is_none_of_supabase_is_refused_by_name(
    auth: Supabase, change: str
) -> None:
    """What is missing is named, and nobody is signed out for it."""
    await auth.psql.execute(change)
    with pytest.raises(ConfigError, match=r"auth\.\S+ is missing"):
        await inspect(auth.store)
    with pytest.raises(SessionsUnavailable, match="is missing"):
        await auth.store.find_by_id("123e4567-e89b-42d3-a456-426614174000")


async def test_a_column_that_goes_while_we_run_is_noticed(auth: Supabase) -> None:
    """One question fails without an answer; the next one does without the column."""
    created = await auth.login()
    await auth.psql.execute("alter table auth.sessions drop column tag")
    with pytest.raises(SessionsUnavailable):
        await auth.store.find_by_id(created.session.id)
    found = await read_session(auth.store, created.session.id)
    assert found is not None
    assert found.tag is None


async def test_a_column_that_comes_while_we_run_disturbs_nothing(auth: Supabase) -> None:
    """Columns are named, so a migration of Supabase's own is not noticed."""
    created = await auth.login()
    await auth.refreshed(created.refresh_token)
    for table in ("sessions", "users", "refresh_tokens"):
        await auth.psql.execute(f"alter table auth.{table} add column newest text")
    assert await auth.store.find_by_id(created.session.id) is not None
    await auth.refreshed(created.refresh_token)
    await auth.login(created.session.user_id)


async def test_another_schema_is_possible(auth: Supabase) -> None:
    """GoTrue's namespace is a setting too."""
    user = await auth.add_user()
    await auth.psql.execute('alter schema auth rename to "Auth2"')
    await live(auth.another(schema="Auth2", **RULES), user)


async def test_no_server_is_no_answer() -> None:
    """As for every other table."""
    async with store_as("postgresql://127.0.0.1:1/none") as store:
        with pytest.raises(SessionsUnavailable):
            await store.find_by_id("123e4567-e89b-42d3-a456-426614174000")
        with pytest.raises(SessionsUnavailable):
            await store.ping()


async def test_a_refusal_quotes_no_row(auth: Supabase) -> None:
    """A violated constraint says nothing of the key that was to be written."""
    store = auth.another(algorithm_version=2)
    await auth.psql.execute("alter table auth.sessions add check (user_agent <> 'bad')")
    user = await auth.add_user()
    with pytest.raises(SessionsUnavailable) as failure:
        await store.sign_in(user, Client(user_agent="bad"))
    assert "bad" not in str(failure.value)
    assert failure.value.__cause__ is None
    with pytest.raises(LoginRefused):
        await store.sign_in("123e4567-e89b-42d3-a456-426614174000", LAPTOP)
