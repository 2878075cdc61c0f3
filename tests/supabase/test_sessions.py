"""Supabase's sessions through the middleware: what a browser and a bearer see."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from handstamp import Cookies, Policy
from handstamp._connections import SESSION_ENDED, Message, Receive, Scope, Send
from handstamp.asgi import SCOPE_KEY
from handstamp.asgi import SessionAuthMiddleware as AsgiMiddleware
from handstamp.blocking import call
from handstamp.errors import ConfigError, LoginRefused
from handstamp.events import CookieOverridden, LoginWasRefused, Revoked
from handstamp.starlette import wrap
from handstamp.supabase import SupabaseSessions
from handstamp.supabase.cookies import SupabaseCookie, decode_session
from handstamp.supabase.rules import SupabaseRules
from handstamp.supabase.schema import install_supabase_trigger
from handstamp.wsgi import ENVIRON_KEY
from handstamp.wsgi import SessionAuthMiddleware as WsgiMiddleware
from tests.support import asgi, wsgi
from tests.support.clock import FakeClock
from tests.support.supabase_keys import private_key
from tests.support.supabase_site import (
    JWT_SECRET,
    NAME,
    URL,
    Held,
    World,
    living,
    site,
)
from tests.support.waiting import PATIENCE, turns, until


@pytest.fixture
async def world(supabase_dsn: str) -> AsyncIterator[World]:
    """Empty tables."""
    async with living(supabase_dsn) as world:
        yield world


@pytest.fixture
async def database(world: World) -> asyncpg.Connection:
    """What an administrator at psql has."""
    return world.psql


@pytest.fixture
async def user(world: World) -> str:
    """A user as GoTrue keeps one."""
    return await world.add_user()


def sessions_on(dsn: str, **options: Any) -> SupabaseSessions:
    return SupabaseSessions(dsn, **{"url": URL, "jwt_secret": JWT_SECRET, **options})


@pytest.fixture
async def sessions(supabase_dsn: str) -> AsyncIterator[SupabaseSessions]:
    """An engine on empty tables."""
    async with sessions_on(supabase_dsn) as sessions:
        yield sessions


def browser(sessions: SupabaseSessions) -> httpx.AsyncClient:
    """A client of an application on these sessions."""
    app = wrap(site, sessions, cookies=Cookies.insecure())
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://testserver")


async def test_a_sign_in_sets_the_cookie_and_the_next_request_is_known(
    sessions: SupabaseSessions, user: str
) -> None:
    """The first look asks the database, and what follows does not."""
    async with browser(sessions) as client:
        answer = await client.post(f"/login/{user}")
        assert answer.headers["cache-control"].startswith("private, no-cache, no-store")
        inside = decode_session(client.cookies[NAME])
        assert inside is not None
        first = await client.get("/me")
        assert first.json()["user_id"] == user
        before = sessions.stats().queries
        again = await client.get("/me")
    assert (again.json(), sessions.stats().queries) == (first.json(), before)
    assert sessions.stats().hits == 1
    assert again.json()["level"] == 1


async def test_a_bearer_token_is_known_too(sessions: SupabaseSessions, user: str) -> None:
    """Without any cookie."""
    issued = await sessions.create(user)
    async with browser(sessions) as client:
        headers = {"authorization": f"Bearer {issued.session_token}"}
        assert (await client.get("/me", headers=headers)).json()["user_id"] == user
        headers = {"authorization": f"Bearer {issued.session_token[:-2]}xx"}
        assert (await client.get("/me", headers=headers)).status_code == 401


async def test_a_token_near_its_end_is_replaced_before_the_application_runs(
    supabase_dsn: str, user: str
) -> None:
    """The cookie is rewritten on this very response, and the counter has moved."""
    rules = SupabaseRules(access_token_ttl=timedelta(seconds=89), algorithm_version=2)
    async with (
        sessions_on(supabase_dsn, rules=rules) as sessions,
        browser(sessions) as client,
    ):
        await client.post(f"/login/{user}")
        before = decode_session(client.cookies[NAME])
        answer = await client.get("/me")
        after = decode_session(client.cookies[NAME])
        assert answer.status_code == 200
        assert before is not None
        assert after is not None
        assert before.refresh_token != after.refresh_token


async def test_a_logout_deletes_the_row_and_the_cookie(
    sessions: SupabaseSessions, user: str, database: asyncpg.Connection
) -> None:
    """The old cookie is worth nothing at once."""
    async with browser(sessions) as client:
        await client.post(f"/login/{user}")
        old = client.cookies[NAME]
        assert (await client.get("/me")).status_code == 200
        assert (await client.post("/logout")).status_code == 204
        assert NAME not in client.cookies
        assert await database.fetchval("select count(*) from auth.sessions") == 0
        client.cookies.set(NAME, old)
        assert (await client.get("/me")).status_code == 401


async def test_a_ban_is_seen_within_the_bound(
    supabase_dsn: str, user: str, database: asyncpg.Connection
) -> None:
    """A fresh look refuses who is banned, and the session works again afterwards, once
    the end is forgotten."""
    async with sessions_on(supabase_dsn) as sessions, browser(sessions) as client:
        await client.post(f"/login/{user}")
        await database.execute(
            "update auth.users set banned_until = now() + interval '1 day'"
        )
        sessions._state.cache.doubt()
        assert (await client.get("/me")).status_code == 401
        assert NAME in client.cookies
        queries = sessions.store.queries
        assert (await client.get("/me")).status_code == 401
        assert sessions.store.queries == queries
        await database.execute("update auth.users set banned_until = null")
        sessions._state.negative_cache.reset_after_fork()
        assert (await client.get("/me")).status_code == 200


async def test_signing_out_the_others_keeps_this_one(
    sessions: SupabaseSessions, user: str
) -> None:
    """GoTrue's scope ``others``."""
    async with browser(sessions) as one, browser(sessions) as two:
        await one.post(f"/login/{user}")
        await two.post(f"/login/{user}")
        assert (await two.get("/me")).status_code == 200
        assert (await one.post("/others")).json() == 1
        assert (await one.get("/me")).status_code == 200
        assert (await two.get("/me")).status_code == 401


@pytest.mark.parametrize(
    "value",
    ["", "x", "base64-", "base64-!!!", "base64-e30", "{}", "%", "base64-" + "A" * 9000],
)
async def test_a_broken_cookie_is_anonymous(sessions: SupabaseSessions, value: str) -> None:
    """Never a 500, and nothing is asked of the database."""
    before = sessions.stats().queries
    async with browser(sessions) as client:
        answer = await client.get("/me", headers={"cookie": f"{NAME}={value}"})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert sessions.stats().queries == before


def pieces(client: httpx.AsyncClient) -> list[str]:
    return sorted(cookie.name for cookie in client.cookies.jar)


async def test_a_large_session_is_cut_shrinks_and_grows(world: World, user: str) -> None:
    """Each time no piece of before is left, and a logout removes them all."""
    cookie = SupabaseCookie(name=NAME, http_only=False, secure=False)
    rules = {"access_token_ttl": timedelta(seconds=60)}  # every request refreshes
    sessions = await world.process(url=None, cookie=cookie, rules=rules)
    client = await world.browser(sessions, cookies=None)
    sql = """update auth.users
        set raw_user_meta_data = jsonb_build_object('x', repeat('y', $1))"""
    counts = []
    for size in (10, 4000, 10, 1500):
        await world.psql.execute(sql, size)
        if not client.cookies:
            await client.post(f"/login/{user}")
        answer = await client.get("/me")
        assert answer.json()["user_id"] == user
        counts.append(len(pieces(client)))
        numbered = [f"{NAME}.{n}" for n in range(counts[-1])]
        assert pieces(client) == ([NAME] if counts[-1] == 1 else numbered)
    assert counts == [1, 5, 1, 2]
    assert (await client.post("/logout")).status_code == 204
    assert pieces(client) == []
    assert (await client.get("/me")).status_code == 401


@pytest.mark.parametrize("lasts", [3600.0, 60.0, -5.0])
async def test_a_logout_clears_every_piece_that_came(world: World, lasts: float) -> None:
    """Also stale ones and what auth-js keeps beside them; a second one changes nothing."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    extra = f"{NAME}.7=x; {NAME}-code-verifier=x; {NAME}-user=x; theme=dark"
    header = {"cookie": f"{held.cookie(lasts)['cookie']}; {extra}"}
    for _ in range(2):
        answer = await client.post("/logout", headers=header)
        assert answer.status_code == 204
        lines = answer.headers.get_list("set-cookie")
        gone = {line.partition("=")[0] for line in lines}
        assert gone == {NAME, f"{NAME}.7", f"{NAME}-code-verifier", f"{NAME}-user"}
        assert all("=; Max-Age=0; " in line for line in lines)
        assert await world.row(held) is None


@pytest.mark.parametrize("what", ["unknown", "forged", "broken"])
async def test_a_logout_of_nobody_clears_the_cookie_all_the_same(
    world: World, what: str
) -> None:
    """Whatever is in it; and that is no error."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    header = {
        "unknown": Held(user_id=held.user_id, id=str(UUID(int=7)), refresh_token="x"),
        "forged": held,
    }.get(what, held)
    secret = JWT_SECRET if what == "unknown" else "another secret, and long enough, too"
    sent = header.cookie(secret=secret)
    if what == "broken":
        sent = {"cookie": f"{NAME}.0=base64-!; {NAME}.1=%"}
    answer = await client.post("/logout", headers=sent)
    assert answer.status_code == 204
    assert all("Max-Age=0" in line for line in answer.headers.get_list("set-cookie"))
    assert len(answer.headers.get_list("set-cookie")) == (2 if what == "broken" else 1)
    assert await world.row(held) is not None


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_another_site_signs_nobody_of_supabase_out(world: World, site: str) -> None:
    """Neither without the cookie, as its form comes, nor with what else auth-js keeps."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    beside = {"cookie": f"{NAME}-code-verifier=x; theme=dark"}
    for cookies in ({}, beside, held.cookie()):
        headers = {**cookies, "sec-fetch-site": site}
        answer = await client.post("/logout", headers=headers)
        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    assert await world.row(held) is not None


async def test_a_login_beside_a_bearer_token_leaves_no_stale_piece(
    world: World, user: str
) -> None:
    """The cookie is written over whatever the browser has, although nobody read it."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    headers = {"authorization": f"Bearer {held.token()}", "cookie": f"{NAME}.3=stale"}
    answer = await client.post(f"/login/{user}", headers=headers)
    lines = answer.headers.get_list("set-cookie")
    assert lines[0].startswith(f"{NAME}.3=; Max-Age=0")
    assert lines[1].startswith(f"{NAME}=base64-")


async def test_a_login_replaces_the_session_that_asked(world: World, user: str) -> None:
    """In the same transaction, so no session is left behind."""
    sessions = await world.process()
    client = await world.browser(sessions)
    await client.post(f"/login/{user}")
    await client.post(f"/login/{user}")
    assert (await client.get("/me")).status_code == 200
    assert await world.psql.fetchval("select count(*) from auth.sessions") == 1
    assert [event.reason for event in world.of(Revoked)] == ["replaced by a new login"]


@pytest.mark.parametrize("ban", [True, False])
async def test_a_refused_sign_in_writes_nothing(world: World, user: str, ban: bool) -> None:
    """A banned user, or none at all."""
    sessions = await world.process()
    if ban:
        await world.psql.execute("update auth.users set banned_until = 'infinity'")
    with pytest.raises(LoginRefused):
        await sessions.create(user if ban else str(UUID(int=9)))
    assert len(world.of(LoginWasRefused)) == 1
    assert await world.psql.fetchval("select count(*) from auth.sessions") == 0


async def test_the_application_cannot_overwrite_a_refresh(world: World) -> None:
    """A cookie of our name that a page sets gives way, and that is published."""
    sessions = await world.process()
    held = await world.sign_in(sessions)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stale = (b"set-cookie", f"{NAME}.0=old; Path=/".encode())
        other = (b"set-cookie", b"theme=dark")
        await asgi.responding(headers=[stale, other])(scope, receive, send)

    middleware = AsgiMiddleware(app, sessions)
    cookie = (b"cookie", held.cookie(-5)["cookie"].encode())
    answer = await asgi.serve(middleware, asgi.http_scope(headers=[cookie]))
    names = sorted(line.partition(b"=")[0] for line in answer.all(b"set-cookie"))
    assert names == [NAME.encode(), b"theme"]
    assert [event.dropped for event in world.of(CookieOverridden)] == [True]


async def test_what_one_process_ends_another_knows_at_once(world: World) -> None:
    """A logout, a user signed out everywhere: by our own notices, without the trigger."""
    clock = FakeClock()  # stands still: nothing is read again by its age
    one, two = await world.process(), await world.process(clock=clock)
    client = await world.browser(two)
    for ends in ("session", "user"):
        held = await world.sign_in(one)
        cookie = held.cookie()
        assert (await client.get("/me", headers=cookie)).status_code == 200
        assert two.stats().cached == 1
        if ends == "session":
            assert await one.revoke(held.id, user_id=held.user_id)
        else:
            assert await one.revoke_user(held.user_id) == 1
        async with asyncio.timeout(PATIENCE):
            while (await client.get("/me", headers=cookie)).status_code == 200:
                await turns(1)
        assert (await client.get("/me", headers=cookie)).status_code == 401


async def test_without_the_trigger_gotrue_is_noticed_within_the_bound(
    world: World,
) -> None:
    """A row it deletes is believed for max_staleness, and not a moment longer."""
    clock = FakeClock()
    sessions = await world.process(clock=clock)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    cookie = held.cookie()
    assert (await client.get("/me", headers=cookie)).status_code == 200
    assert sessions.stats().all_writers_notify is False
    await world.psql.execute("delete from auth.sessions")
    clock.advance(sessions.policy.max_staleness - timedelta(milliseconds=1))
    assert (await client.get("/me", headers=cookie)).status_code == 200
    clock.advance(0.001)
    assert (await client.get("/me", headers=cookie)).status_code == 401


async def test_with_the_trigger_gotrue_s_logouts_are_noticed_at_once(world: World) -> None:
    """A row it deletes, a user it bans, a level it lowers; nothing is read again before."""
    await install_supabase_trigger(world.psql)
    sessions = await world.process(clock=FakeClock())
    await until(lambda: sessions.stats().all_writers_notify)
    client = await world.browser(sessions)
    for sql, status in (
        ("update auth.sessions set aal = 'aal1'", 403),
        ("update auth.users set banned_until = now() + interval '1 day'", 401),
        ("delete from auth.sessions", 401),
    ):
        held = await world.sign_in(sessions)
        await world.psql.execute("update auth.sessions set aal = 'aal2'")
        cookie = held.cookie(aal="aal2")
        hits = sessions.stats().hits
        while sessions.stats().hits == hits:
            assert (await client.get("/secure", headers=cookie)).status_code == 204
        await world.psql.execute(sql)
        async with asyncio.timeout(15):
            while (await client.get("/secure", headers=cookie)).status_code != status:  # noqa: ASYNC110
                await asyncio.sleep(0.001)  # a hit waits for nothing
        await world.psql.execute("update auth.users set banned_until = null")
        await sessions.revoke(held.id)


async def test_a_socket_is_closed_when_gotrue_signs_its_user_out(world: World) -> None:
    """4401, by the trigger; its handshake was given the refreshed cookie."""
    await install_supabase_trigger(world.psql)
    sessions = await world.process()
    await until(lambda: sessions.stats().all_writers_notify)
    held = await world.sign_in(sessions)
    seen: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope[SCOPE_KEY].user_id)
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    incoming: asyncio.Queue[Message] = asyncio.Queue()
    outgoing: asyncio.Queue[Message] = asyncio.Queue()
    cookie = (b"cookie", held.cookie(-5)["cookie"].encode())
    scope = asgi.socket_scope(headers=[cookie])
    serving = AsgiMiddleware(app, sessions)(scope, incoming.get, outgoing.put)
    task = asyncio.create_task(serving)
    accepted = await asyncio.wait_for(outgoing.get(), 15)
    assert any(value.startswith(NAME.encode()) for _, value in accepted["headers"])
    assert seen == [held.user_id]
    await world.psql.execute("delete from auth.sessions")
    closed = await asyncio.wait_for(outgoing.get(), 15)
    assert closed == {"type": "websocket.close", "code": SESSION_ENDED}
    await asyncio.wait_for(task, 15)


async def test_listing_marks_this_one_and_revoking_ends_only_one_s_own(
    world: World,
) -> None:
    """Whoever's id is given, another user's session stays."""
    sessions = await world.process()
    user = await world.add_user()
    one, two = await world.sign_in(sessions, user), await world.sign_in(sessions, user)
    stranger = await world.sign_in(sessions)
    listed = await sessions.list_for_user(user, current=one.id)
    assert {(s.id, s.current) for s in listed} == {(one.id, True), (two.id, False)}
    assert not await sessions.revoke(stranger.id, user_id=user)
    assert not await sessions.revoke("no uuid", user_id=user)
    assert await sessions.revoke(two.id, user_id=user)
    assert not await sessions.revoke(two.id, user_id=user)
    assert await world.row(stranger) is not None
    assert await sessions.revoke_user(user, keep=one.id) == 0
    assert await sessions.revoke_user(user) == 1
    assert await sessions.list_for_user("no uuid") == []


async def test_what_gotrue_would_not_refresh_is_not_listed(world: World) -> None:
    """The row may still be there."""
    rules = {"timebox": timedelta(hours=1)}
    sessions = await world.process(rules=rules)
    held = await world.sign_in(sessions)
    sql = "update auth.sessions set created_at = now() - interval '2 hours'"
    await world.psql.execute(sql)
    assert await sessions.list_for_user(held.user_id) == []


async def test_no_token_is_in_a_log_a_repr_or_an_exception(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong, and at the level of debugging."""
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    sessions = await world.process()
    client, user = await world.browser(sessions), await world.add_user()
    issued = await sessions.create(user)
    assert issued.refresh_token is not None
    held = Held(issued.session.id, user, issued.refresh_token)
    secrets = [issued.session_token, held.refresh_token, JWT_SECRET]
    middleware = AsgiMiddleware(asgi.responding(), sessions)
    question = middleware._options.classify(
        "GET", [(b"cookie", held.cookie()["cookie"].encode())]
    )
    texts = [repr(issued), repr(sessions), repr(question), repr(sessions._issuer)]
    for header in (held.cookie(-5), held.cookie(-5), held.cookie(60, sub=str(UUID(int=5)))):
        await client.get("/broken", headers=header)
        secrets.append(header["cookie"].partition("base64-")[2])
    texts += [
        repr(vars(event)) if hasattr(event, "__dict__") else repr(event)
        for event in world.events
    ]
    gotrue = await world.connect()
    async with gotrue.transaction():
        await gotrue.execute("select 1 from auth.sessions for update")
        await client.get("/me", headers=held.cookie(-5))
        texts += [repr(task) for task in asyncio.all_tasks()]
    sessions._issuer = None  # type: ignore[assignment]
    with pytest.raises(AttributeError) as raised:
        await sessions.create(user)
    texts += [str(raised.value), caplog.text]
    assert [s for s in secrets for text in texts if s in text] == []
    assert len(caplog.records) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": None}, "either url="),
        ({"cookie": SupabaseCookie(name=NAME)}, "either url="),
        ({"url": "abcd"}, "no http"),
        ({"jwt_secret": None}, "jwt_secret=.* or jwt_keys="),
        ({"jwt_keys": "{"}, "no JSON"),
        ({"jwt_keys": [private_key("ES256"), private_key("RS256")]}, "only one key"),
        ({"schema": "auth; drop"}, "no SQL name"),
        ({"policy": Policy(max_sessions=3)}, "max_sessions has no place"),
        ({"database": "mysql://x"}, "URI like postgresql"),
    ],
)
def test_what_cannot_work_is_said_at_once(options: dict[str, Any], words: str) -> None:
    """By name, before anything is served, and without the secret."""
    dsn = options.pop("database", "postgresql://nowhere.invalid/x")
    with pytest.raises(ConfigError, match=words) as raised:
        sessions_on(dsn, **options)
    assert JWT_SECRET not in str(raised.value)


async def test_levels_are_raised_by_gotrue_alone(world: World) -> None:
    """A second factor is verified there."""
    sessions = await world.process()
    held = await world.sign_in(sessions)
    with pytest.raises(ConfigError, match="MFA"):
        await sessions.step_up(held.id, 2)


def test_the_middleware_may_change_the_attributes_of_the_cookie() -> None:
    """All but http_only, which the project's cookie alone decides."""
    cookie = SupabaseCookie(name=NAME, http_only=False)
    dsn = "postgresql://nowhere.invalid/x"
    sessions = sessions_on(dsn, url=None, cookie=cookie)
    cookie_transport = sessions.cookie_transport(Cookies(same_site="Strict"))
    (line,) = cookie_transport.writer.clear({NAME: "x"})
    assert line == f"{NAME}=; Max-Age=0; Path=/; Secure; SameSite=Strict".encode()
    (line,) = sessions.cookie_transport(None).writer.clear({NAME: "x"})
    assert line == f"{NAME}=; Max-Age=0; Path=/; Secure; SameSite=Lax".encode()


def test_frameworks_know_this_cookie_and_no_other(supabase_dsn: str) -> None:
    """Whoever compares the name of their own session, describes the cookie in OpenAPI, or
    asks where it goes; with options for plain http too."""
    cookie = SupabaseCookie(name=NAME, same_site="Strict", path="/app", domain="a.example")
    told = sessions_on(supabase_dsn, url=None, cookie=cookie).cookie_transport(None).cookies
    assert (told.session_name, told.refresh_name) == (NAME, f"{NAME}.0")
    assert (told.same_site, told.path, told.domain) == ("Strict", "/app", "a.example")
    sessions, plain = sessions_on(supabase_dsn), Cookies.insecure()
    flask = pytest.importorskip("flask")
    from handstamp.flask import SessionAuth

    app = flask.Flask("tests", root_path=".")
    app.secret_key = "of a session of Flask's own, whose cookie is called session"
    SessionAuth(app, sessions, cookies=plain)
    litestar = pytest.importorskip("litestar")
    from handstamp.litestar import wrap as wrap_litestar

    served = litestar.Litestar([])
    wrap_litestar(served, sessions, cookies=plain)
    schemes = served.openapi_schema.to_schema()["components"]["securitySchemes"]
    assert schemes["session"]["name"] == NAME
    configurator = pytest.importorskip("pyramid.config").Configurator
    factory = pytest.importorskip("pyramid.session").SignedCookieSessionFactory
    with configurator() as config:
        config.include("handstamp.pyramid")
        config.set_session_auth(sessions, cookies=plain)
        config.set_session_factory(factory("x" * 32))
        config.make_wsgi_app()


def shown(status: int, headers: list[tuple[str, str]]) -> Any:
    """An answer without what differs from one minted token to the next."""
    names = [
        (name.lower(), value if name.lower() != "set-cookie" else value.partition("=")[0])
        for name, value in headers
    ]
    return status, sorted(pair for pair in names if pair[0] != "content-length")


TRANSPORTED = ["live", "near", "dead", "bearer", "forged", "nobody", "cross", "out", "in"]


def sent(case: str, held: Held) -> dict[str, str]:
    """The headers of a case."""
    lasts = {"near": 60.0, "dead": -5.0}.get(case, 3600.0)
    if case == "nobody":
        return {}
    if case == "bearer":
        return {"authorization": f"Bearer {held.token()}"}
    if case == "forged":
        return held.cookie(secret="another secret, and long enough, of another project")
    cross = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    return {**held.cookie(lasts), **(cross if case == "cross" else {})}


def method_of(case: str) -> str:
    return "POST" if case in ("cross", "out", "in") else "GET"


def doing(case: str, other: str) -> tuple[str, ...]:
    """What the application does with its handle: a method and its arguments."""
    return {"out": ("logout",), "in": ("login", other)}.get(case, ("require",))


async def prepare(dsn: str) -> tuple[Held, str]:
    """A session, and another user."""
    async with living(dsn) as world, sessions_on(dsn) as sessions:
        return await world.sign_in(sessions), await world.add_user()


async def over_asgi(dsn: str, case: str) -> Any:
    held, other = await prepare(dsn)
    heard: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        handle = scope[SCOPE_KEY]
        heard.append(handle.user_id == held.user_id)
        name, *arguments = doing(case, other)
        done = getattr(handle, name)(*arguments)
        _ = await done if hasattr(done, "__await__") else done
        headers = [(b"content-type", b"text/plain")]
        await asgi.responding(headers=headers)(scope, receive, send)

    named = {"host": "app.example", **sent(case, held)}
    raw = [(name.encode(), value.encode()) for name, value in named.items()]
    scope = asgi.http_scope("/", method=method_of(case), headers=raw)
    async with sessions_on(dsn) as sessions:
        answer = await asgi.serve(AsgiMiddleware(app, sessions), scope)
    found = [(k.decode(), v.decode()) for k, v in answer.start["headers"]]
    return shown(answer.status, found), heard


def over_wsgi(dsn: str, case: str) -> Any:
    held, other = call(prepare, dsn)
    heard: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        handle = environ[ENVIRON_KEY]
        heard.append(handle.user_id == held.user_id)
        name, *arguments = doing(case, other)
        getattr(handle, name)(*arguments)
        start_response("200 OK", [("content-type", "text/plain")])
        return [b"ok"]

    named = sent(case, held).items()
    raw = {"HTTP_" + name.upper().replace("-", "_"): value for name, value in named}
    sessions = sessions_on(dsn)
    try:
        environ = wsgi.environ("/", method=method_of(case), **raw)
        answer = wsgi.serve(WsgiMiddleware(app, sessions), environ)
    finally:
        call(sessions.close)
    return shown(answer.status, answer.headers), heard


@pytest.mark.parametrize("case", TRANSPORTED)
def test_wsgi_and_asgi_answer_alike(supabase_dsn: str, case: str) -> None:
    """Status, headers, and the cookies that are set; and whose session it was."""
    assert over_wsgi(supabase_dsn, case) == asyncio.run(over_asgi(supabase_dsn, case))


def test_under_wsgi_a_hit_stays_in_its_own_thread(supabase_dsn: str) -> None:
    """No query, and nothing is asked of the loop's thread."""
    sessions = sessions_on(
        supabase_dsn,
        policy=Policy(max_staleness=timedelta(hours=1), longest_trust=timedelta(hours=1)),
    )

    async def sign_in() -> Held:
        async with living(supabase_dsn) as world:
            held = await world.sign_in(sessions)
            # A read that was begun before then is not kept.
            await until(lambda: sessions.stats().listener == "listening")
            return held

    seen: list[str | None] = []

    def app(environ: Any, start_response: Any) -> Any:
        seen.append(environ[ENVIRON_KEY].user_id)
        start_response("200 OK", [("content-type", "text/plain")])
        return [b"ok"]

    try:
        held = call(sign_in)
        middleware = WsgiMiddleware(app, sessions)
        environ = wsgi.environ("/", HTTP_COOKIE=held.cookie()["cookie"])
        for _ in range(3):
            assert wsgi.serve(middleware, dict(environ)).status == 200
        assert (sessions.stats().hits, sessions.stats().misses) == (2, 1)
    finally:
        call(sessions.close)
    assert seen == [held.user_id] * 3


def test_under_wsgi_a_forged_cookie_stays_in_its_own_thread(
    supabase_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is well formed too, or several: no other thread verifies the signature."""
    sessions = sessions_on(supabase_dsn)
    held = Held(str(uuid4()), str(uuid4()), "a2b3c4d5e6f7")
    forged = held.cookie(secret="another project's secret, as long as ours")["cookie"]
    other = held.cookie(-300, secret="another project's secret, as long as ours")["cookie"]

    def crossing(*_: object) -> None:
        raise AssertionError("crossed into the loop")

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("content-type", "text/plain")])
        return [repr(environ[ENVIRON_KEY].user_id).encode()]

    monkeypatch.setattr("handstamp.blocking._submit", crossing)
    middleware = WsgiMiddleware(app, sessions)
    for cookie in (forged, f"{forged}; {other}", f"{NAME}=base64-x"):
        environ = wsgi.environ("/", HTTP_COOKIE=cookie)
        assert wsgi.serve(middleware, environ).body == b"None"


async def test_a_database_without_supabase_is_refused_whenever_it_is_opened(
    empty_dsn: str,
) -> None:
    """Not at the first request, in words, the second time too, and nothing stays open."""
    sessions = sessions_on(empty_dsn)
    for _ in range(2):
        with pytest.raises(ConfigError, match="no database of Supabase Auth"):
            await sessions.open()
