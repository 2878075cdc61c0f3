"""Test clients of applications on Supabase's sessions: the cookie goes in and comes out.

Each client of `tests/support/clients.py`, on real tables; Django's are in
`test_sign_in_supabase_django.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from werkzeug.test import Client as WerkzeugClient

from handstamp import ConfigError, Cookies, LoginRefused, MemoryStore
from handstamp.events import Reissued, Replayed, Revoked
from handstamp.supabase import SupabaseSessions
from handstamp.supabase.cookies import SupabaseCookie, decode_session
from handstamp.supabase.rules import SupabaseRules
from handstamp.testing import (
    Recorded,
    aassert_revoked,
    add_user,
    alogin_as,
    assert_revoked,
    concurrently,
    frozen_clock,
    login_as,
    memory_sessions,
    outage,
    steal,
)
from handstamp.testing.databases import database_like, template_database
from handstamp.testing.engines import close
from tests.support.apps import over_asgi, over_wsgi
from tests.support.browsers import TestClient, browser
from tests.support.clients import (
    ASYNC,
    HTTPS,
    SYNC,
    Make,
    Seen,
    aget,
    get,
    quart,
    quarted,
)
from tests.support.supabase_clients import (
    READABLE,
    add,
    fetch,
    held,
    in_jar,
    pieces,
    sessions_on,
)
from tests.support.supabase_keys import public_key
from tests.support.supabase_site import JWT_SECRET, NAME, URL


@pytest.fixture(scope="module")
def supabase_dsn(supabase_template_dsn: str) -> Iterator[str]:
    """One database for all tests here: each has users of its own."""
    with database_like(supabase_template_dsn) as dsn:
        yield dsn


@pytest.fixture
def ending() -> Iterator[ExitStack]:
    """Is closed when the test ends."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def sessions(supabase_dsn: str, ending: ExitStack) -> SupabaseSessions:
    """An engine on empty tables, whose cookie holds the user too."""
    sessions = sessions_on(supabase_dsn, cookie=READABLE)
    ending.callback(close, sessions)
    return sessions


@pytest.fixture
def alice(supabase_dsn: str) -> str:
    """A user whose cookie is one piece."""
    return add(supabase_dsn, "alice@example.org")


@pytest.fixture
def bob(supabase_dsn: str) -> str:
    """A user whose cookie is several pieces."""
    return add(supabase_dsn, "bob@example.org", 4000)


@pytest.fixture(params=SYNC, ids=lambda make: make.__name__)
def client(
    request: pytest.FixtureRequest, sessions: SupabaseSessions, ending: ExitStack
) -> Any:
    """A client of each kind, served from its startup to its shutdown where it has one."""
    client = request.param(sessions)
    return ending.enter_context(client) if hasattr(client, "__enter__") else client


def is_falcon(client: object) -> bool:
    """Whether the client has a default Cookie header instead of a jar."""
    return hasattr(client, "_default_headers")


def test_a_client_is_signed_in_refreshed_stolen_from_and_signed_out(
    client: Any, alice: str, bob: str, sessions: SupabaseSessions
) -> None:
    """Whole or in pieces, nothing of the cookie before is left in its own kind of jar."""
    assert get(client).status == 401
    signed_in = login_as(client, bob, sessions=sessions)
    assert set(held(client)) == pieces(5)
    assert get(client) == Seen(200, bob)
    stolen = steal(client, sessions=sessions)
    assert (stolen.refresh_token != signed_in.refresh_token) is not is_falcon(client)
    first = login_as(client, alice, sessions=sessions)
    assert set(held(client)) == {NAME}
    assert get(client) == Seen(200, alice)
    assert (in_jar(client) != first.refresh_token) is not is_falcon(client)
    stolen.into(client)
    assert set(held(client)) == pieces(5)
    assert get(client) == Seen(200, bob)
    assert signed_in.revoke() is True
    assert get(client).status == 401
    assert_revoked(signed_in)
    login_as(client, bob, sessions=sessions)
    assert get(client, "/logout").status in (200, 204)
    assert is_falcon(client) or held(client) == {}
    assert get(client).status == 401


@pytest.mark.parametrize("make", ASYNC, ids=lambda make: make.__name__)
async def test_an_async_client_is_signed_in_refreshed_stolen_from_and_signed_out(
    make: Make, supabase_dsn: str
) -> None:
    """The same with await."""
    alice = await asyncio.to_thread(add, supabase_dsn, "alice@example.org")
    bob = await asyncio.to_thread(add, supabase_dsn, "bob@example.org", 4000)
    sessions = sessions_on(supabase_dsn, cookie=READABLE)
    async with make(sessions) if make is not quart else quarted(sessions) as client:
        assert (await aget(client)).status == 401
        signed_in = await alogin_as(client, bob, sessions=sessions)
        assert set(held(client)) == pieces(5)
        assert await aget(client) == Seen(200, bob)
        stolen = steal(client, sessions=sessions)
        first = await alogin_as(client, alice, sessions=sessions)
        assert set(held(client)) == {NAME}
        assert await aget(client) == Seen(200, alice)
        assert (in_jar(client) != first.refresh_token) is not is_falcon(client)
        stolen.into(client)
        assert await aget(client) == Seen(200, bob)
        assert await signed_in.arevoke() is True
        assert (await aget(client)).status == 401
        if not hasattr(client, "portal"):  # the engine is on this loop
            await aassert_revoked(signed_in)
        await alogin_as(client, bob, sessions=sessions)
        assert (await aget(client, "/logout")).status == 204
        assert is_falcon(client) or held(client) == {}
        assert (await aget(client)).status == 401
    await asyncio.to_thread(close, sessions)
    await sessions.close()


@pytest.fixture
def victim(sessions: SupabaseSessions, ending: ExitStack) -> TestClient:
    """A browser on an application on ASGI."""
    return ending.enter_context(browser(over_asgi(sessions)))


def test_a_login_is_like_gotrue_s(
    victim: TestClient, alice: str, supabase_dsn: str, sessions: SupabaseSessions
) -> None:
    """It has its response, its AMR row and its audit entry; no token is in a repr."""
    signed_in = login_as(victim, alice, sessions=sessions)
    assert signed_in.body is not None
    assert signed_in.body["access_token"] == signed_in.session_token
    assert signed_in.remember is True
    claim = decode_session(victim.cookies[NAME])
    assert claim is not None
    assert claim.access_token == signed_in.session_token
    sql = "select authentication_method from auth.mfa_amr_claims where session_id = $1"
    assert fetch(supabase_dsn, sql, UUID(signed_in.session.id)) == "password"
    for shown in (repr(signed_in), repr(steal(victim, sessions=sessions))):
        assert signed_in.session_token not in shown
        assert str(signed_in.refresh_token) not in shown
        assert victim.cookies[NAME] not in shown


def test_the_cookie_has_the_attributes_of_the_project_s_cookie(
    supabase_dsn: str, alice: str, ending: ExitStack
) -> None:
    """The client is checked before a session is created."""
    cookie = SupabaseCookie(name=NAME, path="/app", domain="example.org")
    sessions = sessions_on(supabase_dsn, cookie=cookie)
    app = over_asgi(sessions)
    client = ending.enter_context(browser(app, base_url="https://app.example.org"))
    login_as(client, alice, sessions=sessions)
    assert {(c.name, c.path, c.domain, c.secure) for c in client.cookies.jar} == {
        (NAME, "/app", ".example.org", True)
    }
    with pytest.raises(ConfigError, match="outside of the cookies' domain"):
        login_as(TestClient(app, base_url=HTTPS), alice, sessions=sessions)


def test_plain_http_needs_insecure_cookies(
    supabase_dsn: str, alice: str, ending: ExitStack
) -> None:
    """The error says so and no session was created. With them it works."""
    sessions = sessions_on(supabase_dsn)
    base_url = "http://testserver"
    with pytest.raises(ConfigError, match=r"cookies=Cookies\.insecure\(\)"):
        login_as(
            TestClient(over_asgi(sessions), base_url=base_url), alice, sessions=sessions
        )
    sql = "select count(*) from auth.sessions where user_id = $1"
    assert fetch(supabase_dsn, sql, UUID(alice)) == 0
    app = over_asgi(sessions, cookies=Cookies.insecure())
    client = ending.enter_context(browser(app, base_url=base_url))
    login_as(client, alice, sessions=app)
    assert get(client) == Seen(200, alice)


def test_a_replay_ends_a_v2_session(
    victim: TestClient, sessions: SupabaseSessions, alice: str
) -> None:
    """Two steps behind, without a reuse interval. Only the events have the reason."""
    events = Recorded(sessions)
    signed_in = login_as(victim, alice, sessions=sessions)
    stolen = steal(victim, sessions=sessions)
    assert [get(victim).status for _ in range(2)] == [200, 200]  # two refreshes
    assert stolen.replay() is None
    assert [e.session_id for e in events.of(Replayed)] == [signed_in.session.id]
    assert [e.presented_by.address for e in events.of(Replayed)] == ["203.0.113.66"]
    assert_revoked(signed_in)
    assert_revoked(signed_in, reason="refresh token replayed", events=events)
    with pytest.raises(AssertionError, match="events="):
        assert_revoked(signed_in, reason="refresh token replayed")
    assert get(victim).status == 401


def test_a_lost_response_is_no_theft(
    victim: TestClient, sessions: SupabaseSessions, alice: str
) -> None:
    """One step behind, the old token returns the current one again."""
    events = Recorded(sessions)
    login_as(victim, alice, sessions=sessions)
    stolen = steal(victim, sessions=sessions)
    get(victim)
    again = stolen.replay()
    assert again is not None
    assert again.refresh_token == in_jar(victim)
    assert (len(events.of(Reissued)), events.of(Replayed)) == (1, [])


def test_a_replay_of_a_v1_token_ends_its_family(
    supabase_dsn: str, alice: str, ending: ExitStack
) -> None:
    """As in GoTrue the row stays, so `assert_revoked` fails."""
    sessions = sessions_on(supabase_dsn, version=1)
    events = Recorded(sessions)
    victim = ending.enter_context(browser(over_asgi(sessions)))
    signed_in = login_as(victim, alice, sessions=sessions)
    stolen = steal(victim, sessions=sessions)
    assert [get(victim).status for _ in range(2)] == [200, 200]
    assert stolen.replay() is None
    assert [e.session_id for e in events.of(Replayed)] == [signed_in.session.id]
    assert events.of(Revoked) == []
    with pytest.raises(AssertionError, match="is not revoked"):
        assert_revoked(signed_in)


def test_eight_tabs_have_one_successor(supabase_dsn: str, alice: str) -> None:
    """Copies of one cookie stand for eight tabs, here under WSGI."""
    sessions = sessions_on(supabase_dsn)
    app = over_wsgi(sessions)
    tabs = [WerkzeugClient(app) for _ in range(8)]
    login_as(tabs[0], alice, sessions=sessions)
    copied = steal(tabs[0], sessions=sessions)
    for tab in tabs:
        copied.into(tab)
    answers = concurrently(8, lambda number: get(tabs[number]))
    assert answers == [Seen(200, alice)] * 8
    assert {in_jar(tab) for tab in tabs} - {copied.refresh_token} == {in_jar(tabs[0])}
    close(sessions)


def test_p5_an_outage_is_a_503(
    victim: TestClient, sessions: SupabaseSessions, alice: str
) -> None:
    """After the outage all is as before."""
    login_as(victim, alice, sessions=sessions)
    with outage(sessions):
        assert get(victim).status == 503
    assert get(victim) == Seen(200, alice)


def test_an_access_token_expires_by_the_frozen_clock(
    supabase_dsn: str, alice: str, ending: ExitStack
) -> None:
    """It is then replaced, although the database's own clock has not moved. Each look at
    the database sets the engine right again."""
    sessions = sessions_on(supabase_dsn, rules=SupabaseRules())
    client = ending.enter_context(browser(over_asgi(sessions)))
    signed_in = login_as(client, alice, sessions=sessions)
    with frozen_clock(sessions) as clock:
        clock.advance(timedelta(minutes=58))
        assert get(client) == Seen(200, alice)
        assert in_jar(client) == signed_in.refresh_token
        clock.advance(timedelta(minutes=59))
        assert get(client) == Seen(200, alice)
        assert in_jar(client) != signed_in.refresh_token


async def test_cookies_may_be_given(supabase_dsn: str) -> None:
    """For a middleware whose cookies are not the project's."""
    alice = await asyncio.to_thread(add, supabase_dsn, "alice@example.org")
    async with sessions_on(supabase_dsn) as sessions:
        app = over_asgi(sessions, cookies=Cookies.insecure())
        transport, base_url = httpx.ASGITransport(app), "http://testserver"
        async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
            with pytest.raises(ConfigError, match="Secure"):
                await alogin_as(client, alice, sessions=sessions)
            await alogin_as(client, alice, sessions=sessions, cookies=Cookies.insecure())
            assert await aget(client) == Seen(200, alice)


def test_a_thief_takes_the_session_s_cookies_and_no_others(
    victim: TestClient, sessions: SupabaseSessions, alice: str, bob: str
) -> None:
    """Other cookies in both jars stay as they are."""
    login_as(victim, bob, sessions=sessions)
    victim.cookies.set("theme", "dark")
    thief = WerkzeugClient(over_wsgi(sessions))
    thief.set_cookie("lang", "en")
    steal(victim, sessions=sessions).into(thief)
    assert set(held(thief)) == {*pieces(5), "lang"}
    assert set(held(victim)) == {*pieces(5), "theme"}
    plain = TestClient(over_asgi(sessions), base_url="http://testserver")
    with pytest.raises(ConfigError, match="Secure"):
        steal(victim, sessions=sessions).into(plain)


def test_a_client_that_is_not_signed_in_has_nothing_to_steal(
    victim: TestClient, sessions: SupabaseSessions
) -> None:
    """Nor has one whose cookie holds no session."""
    victim.cookies.set(NAME, "base64-e30")
    with pytest.raises(ConfigError, match="sign it in"):
        steal(victim, sessions=sessions)


def test_an_unknown_user_is_not_signed_in(
    victim: TestClient, sessions: SupabaseSessions
) -> None:
    """The refusal is raised, and the jar stays empty."""
    with pytest.raises(LoginRefused):
        login_as(victim, str(UUID(int=7)), sessions=sessions)
    assert held(victim) == {}


def test_a_login_needs_a_key_that_signs(supabase_dsn: str, alice: str) -> None:
    """The error says what to give, and no session was created."""
    sessions = sessions_on(supabase_dsn, jwt_secret=None, jwt_keys=[public_key("ES256")])
    client = WerkzeugClient(over_wsgi(sessions))
    with pytest.raises(ConfigError, match="jwt_secret="):
        login_as(client, alice, sessions=sessions)
    sql = "select count(*) from auth.sessions where user_id = $1"
    assert fetch(supabase_dsn, sql, UUID(alice)) == 0


def test_add_user_writes_a_row_as_gotrue_does(supabase_dsn: str, alice: str) -> None:
    """GoTrue looks for the instance, and its types take no NULL in these columns."""
    sql = """select count(*) from auth.users where id = $1 and instance_id = $2
        and (aud, role) = ('authenticated', 'authenticated')
        and (confirmation_token, recovery_token, email_change_token_new, email_change)
            = ('', '', '', '') and email = 'alice@example.org'
        and not is_anonymous and created_at is not null"""
    assert fetch(supabase_dsn, sql, UUID(alice), UUID(int=0)) == 1


def test_what_supabase_does_not_support_is_an_error() -> None:
    """There are no such tables in memory, and only GoTrue creates them."""
    with pytest.raises(ConfigError, match="for SupabaseSessions") as raised:
        memory_sessions(url=URL, jwt_secret=JWT_SECRET)
    assert JWT_SECRET not in str(raised.value)
    store: Any = MemoryStore()
    with pytest.raises(ConfigError, match="no MemoryStore can replace them"):
        SupabaseSessions(store, url=URL, jwt_secret=JWT_SECRET)
    nowhere = "postgresql://nowhere.invalid/x"
    with pytest.raises(ConfigError, match="shape=None"):
        template_database(nowhere, shape="supabase").__enter__()
    with pytest.raises(ConfigError, match="no table of users"):
        add_user(nowhere, "alice", shape="uuid")
