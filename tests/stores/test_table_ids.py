"""Sessions whose ids are any texts: signed in, refreshed, signed out, on real tables.

A column of ids holds what its application puts there. Whatever that is, signing out ends
the session, or raises.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from handstamp import (
    ULID_HASHED,
    UUID_PLAIN,
    Client,
    ConfigError,
    Cookies,
    LoginRefused,
    Policy,
    Sessions,
)
from handstamp.blocking import call
from handstamp.core.models import Authenticated, Issued
from handstamp.events import Revoked
from handstamp.starlette import session_auth, wrap
from handstamp.wsgi import ENVIRON_KEY, SessionAuthMiddleware
from tests.conftest import execute
from tests.support import wsgi
from tests.support.engines import SECRET, credentials_of, running
from tests.support.foreign_tables import INTEGERS, LUCIA
from tests.support.waiting import until

IDS = {
    "colon": "a:b",
    "base64": "q83vEjRWeJA+/w==",
    "digest": "sha256:" + "0" * 64,
    "spaces inside": "a session id",
    "spaces around": "  abc  ",
    "one space": " ",
    "line feed at the end": "abc\n",
    "wide space at the end": "abc\u3000",
    "unicode": "séance-日本-🦊",
    "decomposed": "se\u0301ance",
    "quotes": "o'Re\"il`ly\\",
    "cookie syntax": "a;b, c=d",
    "token syntax": "a.r.b",
    "encoded again": "~YTpi",
    "percent": "%2e%2e%2f",
    "65 plain characters": "a" * 65,
    "empty": "",
    "255 characters": "x" * 255,
    "255 wide characters": "🦊" * 255,
}
"""Ids that a column of texts can hold, by what is unusual about them."""


@pytest.fixture(params=IDS.values(), ids=list(IDS))
def unusual(request: pytest.FixtureRequest) -> str:
    """Each unusual id."""
    return str(request.param)


@pytest.fixture
def text_dsn(dsn: str) -> str:
    """The documented tables, but ids of sessions are texts of up to 255 characters."""
    asyncio.run(execute(dsn, "alter table user_sessions alter id type varchar(255)"))
    return dsn


async def new_user(dsn: str) -> str:
    """A user who may sign in."""
    psql = await asyncpg.connect(dsn)
    made = await psql.fetchval(
        "insert into users (username, password_hash, email_hash, last_password_change)"
        " values ('alice', 'x', 'x', null) returning id"
    )
    await psql.close()
    return str(made)


async def live_ids(dsn: str) -> list[str]:
    """The ids of the rows that are live, as the table has them."""
    psql = await asyncpg.connect(dsn)
    rows = await psql.fetch("select id from user_sessions where is_active order by id")
    await psql.close()
    return [row["id"] for row in rows]


@asynccontextmanager
async def processes(dsn: str, *ids: str, **options: Any) -> AsyncIterator[list[Sessions]]:
    """Two processes, which hear each other; the first gives new sessions these ids."""
    given = itertools.chain(ids, (str(uuid.uuid4()) for _ in itertools.count()))
    options = {"secret": SECRET, **options}
    one = Sessions(dsn, new_id=lambda: next(given), **options)
    other = Sessions(dsn, **options)
    async with one, other:
        await until(lambda: {one.stats().listener, other.stats().listener} == {"listening"})
        yield [one, other]


async def is_in(sessions: Sessions, issued: Issued, *, refresh: bool = False) -> bool:
    """Whether these tokens open a session in this process."""
    tokens = credentials_of(
        [issued.session_token], [issued.refresh_token or ""] if refresh else ()
    )
    return isinstance(await sessions.authenticate(tokens, Client()), Authenticated)


async def login(request: Request) -> Response:
    session = await session_auth(request).login((await request.body()).decode())
    return JSONResponse(session.id)


async def me(request: Request) -> Response:
    return JSONResponse(session_auth(request).require().id)


async def logout(request: Request) -> Response:
    await session_auth(request).logout()
    return Response(status_code=204)


async def revoke(request: Request) -> Response:
    wanted = json.loads(await request.body())
    return JSONResponse(await session_auth(request).revoke(wanted))


async def revoke_others(request: Request) -> Response:
    return JSONResponse(await session_auth(request).revoke_others())


ROUTES = [
    Route("/me", me),
    *(
        Route(f"/{verb.__name__}", verb, methods=["POST"])
        for verb in (login, logout, revoke, revoke_others)
    ),
]


@asynccontextmanager
async def browser(sessions: Sessions) -> AsyncIterator[httpx.AsyncClient]:
    """A browser with a cookie jar, before an application around these sessions."""
    site = httpx.ASGITransport(wrap(Starlette(routes=ROUTES), sessions))
    async with httpx.AsyncClient(transport=site, base_url="https://app.example") as client:
        yield client


def copy_of(client: httpx.AsyncClient, *names: str) -> dict[str, str]:
    """The Cookie header with a copy of these cookies, or of all."""
    jar = {cookie.name: cookie.value for cookie in client.cookies.jar}
    pairs = (f"{name}={jar[name]}" for name in names or jar)
    return {"cookie": "; ".join(pairs)}


async def test_signing_out_ends_a_session_of_any_id(text_dsn: str, unusual: str) -> None:
    """Over HTTP: cookies that somebody copied before open nothing, here or elsewhere."""
    user = await new_user(text_dsn)
    async with processes(text_dsn, unusual) as (here, there), browser(here) as alice:
        assert (await alice.post("/login", content=user)).json() == unusual
        assert (await alice.get("/me")).json() == unusual
        async with browser(there) as thief:
            copied = copy_of(alice)
            assert (await thief.get("/me", headers=copied)).json() == unusual
            assert (await alice.post("/logout")).status_code == 204
            assert not alice.cookies
            assert await live_ids(text_dsn) == []
            assert (await alice.get("/me", headers=copied)).status_code == 401
            # By the notification, and not only after ``max_staleness``.
            await until(lambda: not there.stats().cached)
            assert (await thief.get("/me", headers=copied)).status_code == 401


async def test_a_refresh_token_carries_any_id(text_dsn: str, unusual: str) -> None:
    """Without its session cookie a browser gets the next pair, and then the next."""
    user = await new_user(text_dsn)
    async with processes(text_dsn, unusual) as (here, _), browser(here) as alice:
        await alice.post("/login", content=user)
        for _ in range(2):
            alice.cookies.delete("__Host-session")
            before = alice.cookies["__Host-refresh"]
            assert (await alice.get("/me")).json() == unusual
            assert alice.cookies["__Host-refresh"] != before
        assert await live_ids(text_dsn) == [unusual]


@asynccontextmanager
async def served(sessions: Sessions) -> AsyncIterator[str]:
    """The address of a real server around these sessions."""
    cookies = Cookies(session_name="session", refresh_name="refresh", secure=False)
    site = wrap(Starlette(routes=ROUTES), sessions, cookies=cookies)
    server = uvicorn.Server(uvicorn.Config(site, port=0, log_level="warning"))
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started or running.done())
    (port,) = (s.getsockname()[1] for each in server.servers for s in each.sockets)
    try:
        yield f"http://localhost:{port}"
    finally:
        server.should_exit = True
        await running


async def test_the_longest_ids_work_over_a_real_server(text_dsn: str) -> None:
    """Their refresh cookies fit what servers and clients take: in, on and out."""
    user, longest = await new_user(text_dsn), IDS["255 wide characters"]
    async with (
        processes(text_dsn, longest) as (here, _),
        served(here) as address,
        httpx.AsyncClient(base_url=address) as alice,
    ):
        assert (await alice.post("/login", content=user)).json() == longest
        assert len(alice.cookies["refresh"]) > 1400
        alice.cookies.delete("session")
        assert (await alice.get("/me")).json() == longest
        held = dict(alice.cookies)
        assert (await alice.post("/logout")).status_code == 204
        assert await live_ids(text_dsn) == []
        async with httpx.AsyncClient(base_url=address, cookies=held) as thief:
            assert (await thief.get("/me")).status_code == 401


async def test_a_session_of_any_id_can_be_revoked(text_dsn: str) -> None:
    """One device signs the others out one by one, which other processes hear of."""
    user = await new_user(text_dsn)
    async with processes(text_dsn, *IDS.values(), "this one") as (here, there):
        lost = [await here.create(user) for _ in IDS]
        assert all([await is_in(there, issued) for issued in lost])
        async with browser(here) as alice:
            await alice.post("/login", content=user)
            for unusual in IDS.values():
                assert (await alice.post("/revoke", json=unusual)).json() is True
                assert (await alice.post("/revoke", json=unusual)).json() is False
            assert (await alice.get("/me")).json() == "this one"
        await until(lambda: not there.stats().cached)
        for process in (here, there):
            assert not any([await is_in(process, each, refresh=True) for each in lost])


async def test_revoking_the_others_keeps_any_id(text_dsn: str, unusual: str) -> None:
    """All sessions of the user end, but the one that asked."""
    user = await new_user(text_dsn)
    async with processes(text_dsn, "one", "two", unusual) as (here, _):
        others = [await here.create(user), await here.create(user)]
        async with browser(here) as alice:
            await alice.post("/login", content=user)
            assert (await alice.post("/revoke_others")).json() == 2
            assert (await alice.get("/me")).json() == unusual
        assert await live_ids(text_dsn) == [unusual]
        assert not any([await is_in(here, each, refresh=True) for each in others])


async def test_a_login_ends_the_session_of_any_id_before_it(text_dsn: str) -> None:
    """A second login in one browser replaces the first, and so on."""
    user = await new_user(text_dsn)
    async with processes(text_dsn, *IDS.values()) as (here, _), browser(here) as alice:
        for unusual in IDS.values():
            await alice.post("/login", content=user)
            assert await live_ids(text_dsn) == [unusual]


async def test_a_session_of_any_id_is_evicted_at_the_limit(text_dsn: str) -> None:
    """The oldest goes where a user may have one alone."""
    user, policy = await new_user(text_dsn), Policy(max_sessions=1)
    async with processes(text_dsn, *IDS.values(), policy=policy) as (here, _):
        for unusual in IDS.values():
            await here.create(user)
            assert await live_ids(text_dsn) == [unusual]


def test_signing_out_under_wsgi_ends_a_session_of_any_id(text_dsn: str) -> None:
    """The same from a thread."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        handle = environ[ENVIRON_KEY]
        if environ["PATH_INFO"] == "/login":
            handle.login(user)
        if environ["PATH_INFO"] == "/logout":
            handle.logout()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [json.dumps(handle.session and handle.session.id).encode()]

    user, given = asyncio.run(new_user(text_dsn)), iter(IDS.values())
    sessions = Sessions(text_dsn, secret=SECRET, new_id=lambda: next(given))
    site = SessionAuthMiddleware(app, sessions)
    try:
        for unusual in IDS.values():
            cookies = wsgi.get(site, "/login", method="POST").cookies
            held = "; ".join(f"{name}={value}" for name, value in cookies.items())
            refresh = f"__Host-refresh={cookies['__Host-refresh']}"
            assert json.loads(wsgi.get(site, HTTP_COOKIE=held).body) == unusual
            assert json.loads(wsgi.get(site, HTTP_COOKIE=refresh).body) == unusual
            wsgi.get(site, "/logout", method="POST", HTTP_COOKIE=held)
            assert wsgi.get(site, HTTP_COOKIE=held).body == b"null"
            assert asyncio.run(live_ids(text_dsn)) == []
    finally:
        call(sessions.close)


async def test_the_store_in_memory_takes_any_id(unusual: str) -> None:
    """The reference of the contract, which tests of applications use."""
    async with running(new_id=lambda: unusual) as engine:
        issued = await engine.login()
        await engine.expire()
        again = await engine.refreshed(issued)
        assert again.session.id == unusual
        assert await engine.sessions.revoke(unusual)
        assert not await is_in(engine.sessions, again, refresh=True)


@pytest.mark.parametrize(
    "form", [str.upper, lambda id: uuid.UUID(id).hex], ids=["upper", "hex"]
)
async def test_a_uuid_is_one_id_in_every_form(
    uuid_dsn: str, form: Callable[[str], str]
) -> None:
    """Capitals, or without hyphens: it names the session, in the cache and the table."""
    user, one, two = (str(uuid.uuid4()) for _ in range(3))
    async with processes(uuid_dsn, one, two, shape=UUID_PLAIN) as (here, there):
        first, second = await here.create(user), await here.create(user)
        assert await is_in(there, first)
        assert await here.revoke(form(one), user_id=form(user))
        assert not await is_in(here, first)
        await until(lambda: not there.stats().cached)
        assert [s.id for s in await here.list_for_user(form(user))] == [two]
        assert await here.revoke_user(form(user), keep=form(two)) == 0
        assert await is_in(here, second)
        assert await here.revoke_user(form(user)) == 1
        assert not await is_in(here, second)


async def test_blanks_that_pad_a_column_are_no_part_of_an_id(dsn: str) -> None:
    """In a ``character(26)`` a shorter id is padded; it is one id with and without."""
    user = await new_user(dsn)
    async with processes(dsn, "short", "short too") as (here, there):
        first, second = await here.create(user), await here.create(user)
        assert {first.session.id, second.session.id} == {"short", "short too"}
        assert await is_in(there, first)
        assert await here.revoke("short" + " " * 21, user_id=user)
        await until(lambda: not there.stats().cached)
        assert not await is_in(there, first, refresh=True)
        assert await here.revoke_user(user + "  ", keep="short too   ") == 0
        assert await is_in(here, second)


async def test_a_number_is_one_id_in_every_form(
    foreign_dsn: Callable[[str], str],
) -> None:
    """``007`` is the session 7, and what no column of numbers holds is none."""
    dsn = await asyncio.to_thread(foreign_dsn, "integers")
    psql = await asyncpg.connect(dsn)
    user = str(await psql.fetchval(INTEGERS.new_user or "", "alice"))
    await psql.close()
    async with processes(dsn, shape=INTEGERS.shape) as (here, there):
        issued, kept = await here.create(user), await here.create(f"00{user}")
        assert await is_in(there, issued)
        for nonsense in ("a:b", "", " ", "1.0", "9" * 30, "٧"):
            assert not await here.revoke(nonsense)
            assert not await here.revoke(issued.session.id, user_id=nonsense)
            assert await here.revoke_user(nonsense) == 0
        assert await here.revoke(f"00{issued.session.id}", user_id=f"0{user}")
        await until(lambda: not there.stats().cached)
        assert not await is_in(there, issued, refresh=True)
        assert await here.revoke_user(f"0{user}", keep=f"0{kept.session.id}") == 0
        assert await is_in(here, kept)


@pytest.mark.parametrize("at_rest", ["digest", "prefixed"])
async def test_signing_out_works_where_the_id_is_the_token_s_digest(
    foreign_dsn: Callable[[str], str], at_rest: Any
) -> None:
    """``sha256:`` and the digest: there is a colon in the id of every session."""
    dsn = await asyncio.to_thread(foreign_dsn, "lucia")
    psql = await asyncpg.connect(dsn)
    user = str(await psql.fetchval(LUCIA.new_user or "", "alice"))
    shape = replace(LUCIA.shape, at_rest=at_rest)
    async with processes(dsn, shape=shape) as (here, there), browser(here) as alice:
        session_id = (await alice.post("/login", content=user)).json()
        assert session_id.startswith("sha256:") == (at_rest == "prefixed")
        copied = copy_of(alice)
        async with browser(there) as thief:
            assert (await thief.get("/me", headers=copied)).json() == session_id
            await alice.post("/logout")
            await until(lambda: not there.stats().cached)
            assert (await thief.get("/me", headers=copied)).status_code == 401
    assert await psql.fetchval("select count(*) from user_session") == 0
    await psql.close()


@pytest.mark.parametrize("at_rest", ["digest", "prefixed"])
async def test_a_token_in_plaintext_that_is_an_id_is_never_shown(
    foreign_dsn: Callable[[str], str], at_rest: Any
) -> None:
    """A row of the time before ends with all others, and no event names it."""
    dsn = await asyncio.to_thread(foreign_dsn, "lucia")
    psql = await asyncpg.connect(dsn)
    user = str(await psql.fetchval(LUCIA.new_user or "", "alice"))
    await psql.execute(
        "insert into user_session values ('a token', $1, now() + interval '1 day')", user
    )
    shape = replace(LUCIA.shape, at_rest=at_rest)
    async with processes(dsn, shape=shape) as (here, _):
        events: list[Revoked] = []
        here.on(Revoked, events.append)
        issued = await here.create(user)
        assert [s.id for s in await here.list_for_user(user)] == [issued.session.id]
        assert await here.revoke_user(user) == 2
    assert {event.session_id for event in events} == {issued.session.id, ""}
    assert await psql.fetchval("select count(*) from user_session") == 0
    await psql.close()


@pytest.mark.postgres15
async def test_every_form_of_a_user_id_is_notified(
    system_dsn: str,
) -> None:
    """Where a collation takes different texts for one user, rows can have several."""
    psql = await asyncpg.connect(system_dsn)
    await psql.execute(
        "create collation blind (provider = icu, locale = 'und-u-ks-level2',"
        " deterministic = false);"
        " alter table user_sessions drop constraint user_sessions_user_id_fkey,"
        " alter user_id type text collate blind"
    )
    shape = replace(ULID_HASHED, users=None)
    async with processes(system_dsn, "1", "2", shape=shape) as (here, there):
        issued = [await here.create(spelling) for spelling in ("Alice", "ALICE")]
        assert all([await is_in(there, each) for each in issued])
        assert await here.revoke_user("alice") == 2
        await until(lambda: not there.stats().cached)
    await psql.close()


BEFORE = """
    create function keep() returns trigger language plpgsql as
        'begin return case when new.is_active then new end; end';
    create trigger keep before update on user_sessions for each row execute function keep()
"""


@pytest.mark.parametrize("end", ["revoke", "revoke own", "revoke_user", "logout"])
async def test_a_row_that_the_database_keeps_is_no_success(dsn: str, end: str) -> None:
    """A trigger of the application keeps the row: no call reports that it has ended, and
    the browser keeps its cookies."""
    user = await new_user(dsn)
    await execute(dsn, BEFORE)
    async with processes(dsn, "kept") as (here, _), browser(here) as alice:
        await alice.post("/login", content=user)
        ways: dict[str, Callable[[], Awaitable[object]]] = {
            "revoke": lambda: here.revoke("kept"),
            "revoke own": lambda: here.revoke("kept", user_id=user),
            "revoke_user": lambda: here.revoke_user(user),
            "logout": lambda: alice.post("/logout"),
        }
        with pytest.raises(ConfigError, match="still live after it was ended"):
            await ways[end]()
        assert (await alice.get("/me")).json() == "kept"
        assert not await here.revoke("kept", user_id="somebody else")


async def test_a_policy_that_keeps_a_row_is_no_success(dsn: str) -> None:
    """Row level security lets the role see the session, and not end it."""
    user, role = await new_user(dsn), f"app_{uuid.uuid4().hex}"
    await execute(
        dsn,
        f"create role {role} login password 'x';"
        f" grant select, insert, update, delete on user_sessions, users to {role};"
        " alter table user_sessions enable row level security;"
        f" create policy seen on user_sessions for select to {role} using (true);"
        f" create policy made on user_sessions for insert to {role} with check (true)",
    )
    try:
        async with processes(_as_role(dsn, role), "kept") as (here, _):
            issued = await here.create(user)
            with pytest.raises(ConfigError, match="still live after it was ended"):
                await here.revoke("kept", user_id=user)
            with pytest.raises(ConfigError, match="still live after it was ended"):
                await here.revoke_user(user)
            assert await is_in(here, issued)
    finally:
        await execute(dsn, f"drop owned by {role}; drop role {role}")


def _as_role(dsn: str, role: str) -> str:
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{role}:x@{host}").geturl()


@pytest.mark.parametrize("column", ["id", "user_id"])
async def test_ids_that_no_token_can_carry_are_refused_at_the_start(
    text_dsn: str, column: str
) -> None:
    """With the DDL that mends it; a session with such an id would be none."""
    await execute(
        text_dsn,
        "alter table user_sessions drop constraint user_sessions_user_id_fkey,"
        f" alter {column} type text;"
        " insert into user_sessions (id, user_id, session_token_hash, refresh_token_hash,"
        " ip_address, user_agent_hash, expires_at, refresh_expires_at) values ('a', 'u',"
        " repeat('0', 64), repeat('0', 64), '192.0.2.1', 'x', now() + interval '1 day',"
        " now() + interval '2 days');"
        f" update user_sessions set {column} = repeat('x', 256)",
    )
    sessions = Sessions(text_dsn, secret=SECRET, shape=replace(ULID_HASHED, users=None))
    with pytest.raises(ConfigError) as refusal:
        await sessions.open()
    assert f"user_sessions.{column} holds ids of up to 256 characters" in str(refusal.value)
    if column == "id":
        ddl = str(refusal.value).partition("Fix it with: ")[2]
        await execute(text_dsn, ddl)
        shape = replace(ULID_HASHED, users=None, id="session_id", new_id="uuid")
        async with Sessions(text_dsn, secret=SECRET, shape=shape) as mended:
            issued = await mended.create("alice")
            assert await mended.revoke(issued.session.id)


async def test_a_row_that_comes_with_too_long_an_id_is_no_session(text_dsn: str) -> None:
    """It is no session, so no limit ends it."""
    await execute(text_dsn, "alter table user_sessions alter id type text")
    user = await new_user(text_dsn)
    async with processes(text_dsn, "short", "new") as (here, there):
        issued = await here.create(user)
        assert await is_in(there, issued)
        await execute(text_dsn, "update user_sessions set id = repeat('x', 256)")
        await here.create(user)
        for process in (here, there):
            process._state.cache.doubt()
            assert not await is_in(process, issued, refresh=True)
            assert not await process.revoke("x" * 256)
        assert [s.id for s in await here.list_for_user(user)] == ["new"]


async def test_an_id_that_the_column_does_not_take_is_refused_at_the_login(
    text_dsn: str,
) -> None:
    """An error names the reason, and no session is opened with another id."""
    user = await new_user(text_dsn)
    async with processes(text_dsn, "x" * 256, "a\x00b") as (here, _):
        for _ in range(2):
            with pytest.raises(ConfigError, match="change the default of the column"):
                await here.create(user)
    assert await live_ids(text_dsn) == []


@pytest.mark.parametrize("type", ["char(64)", "varchar(64)"])
async def test_an_id_longer_than_its_column_is_a_config_error(dsn: str, type: str) -> None:
    """It names the limit, and is no outage; the longest that fits opens a session. Whoever
    asks for a longer one asks for no session, and a longer user is no user."""
    await execute(dsn, f"alter table user_sessions alter id type {type}")
    user = await new_user(dsn)
    async with processes(dsn, "x" * 65, "🦊" * 65, "🦊" * 64) as (here, _):
        for _ in range(2):
            with pytest.raises(ConfigError, match="more than 64 characters"):
                await here.create(user)
        issued = await here.create(user)
        assert issued.session.id == "🦊" * 64
        assert not await here.revoke("🦊" * 65)
        assert await is_in(here, issued)
        with pytest.raises(LoginRefused) as refusal:
            await here.create("u" * 100)
        assert refusal.value.reason == "unknown_user"


async def test_where_the_id_is_the_digest_nothing_rotates(dsn: str) -> None:
    """A rotation would make another session of it, and sign its user out."""
    shape = replace(ULID_HASHED, id="session_token_hash", new_id="database")
    sessions = Sessions(dsn, secret=SECRET, shape=shape)
    with pytest.raises(ConfigError) as refusal:
        await sessions.open()
    assert "every rotation would make another session" in str(refusal.value)
    await execute(dsn, str(refusal.value).partition("Fix it with: ")[2])
    mended = replace(ULID_HASHED, id="session_id", new_id="uuid")
    async with Sessions(dsn, secret=SECRET, shape=mended) as sessions:
        issued = await sessions.create(await new_user(dsn))
        again = await sessions.refresh(issued.refresh_token or "")
        assert again is not None
        assert await sessions.revoke(again.session.id)
