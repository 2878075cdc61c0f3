"""Supabase's sessions through the middleware: what a browser and a bearer see."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from handstamp import Cookies
from handstamp.core.supabase_cookies import decode_session
from handstamp.core.supabase_rules import SupabaseRules
from handstamp.starlette import session_auth, wrap
from handstamp.supabase import SupabaseSessions

JWT_SECRET = "the secret of a project of the tests: 32 bytes and more"
NAME = "sb-abcd-auth-token"


async def login(request: Request) -> Response:
    session = await session_auth(request).login(request.path_params["user"])
    return JSONResponse({"id": session.id})


async def me(request: Request) -> Response:
    session = session_auth(request).require()
    return JSONResponse(
        {"id": session.id, "user_id": session.user_id, "level": session.level}
    )


async def logout(request: Request) -> Response:
    await session_auth(request).logout()
    return Response(status_code=204)


async def others(request: Request) -> Response:
    return JSONResponse(await session_auth(request).revoke_others())


site = Starlette(
    routes=[
        Route("/login/{user}", login, methods=["POST"]),
        Route("/logout", logout, methods=["POST"]),
        Route("/others", others, methods=["POST"]),
        Route("/me", me),
    ]
)


@pytest.fixture
async def database(supabase_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """What an administrator at psql has."""
    connection = await asyncpg.connect(supabase_dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def user(database: asyncpg.Connection) -> str:
    """A user as GoTrue keeps one."""
    id = uuid.uuid4()
    await database.execute(
        "insert into auth.users (id, instance_id, aud, role, email, is_anonymous)"
        " values ($1, $2, 'authenticated', 'authenticated', $3, false)",
        id,
        uuid.UUID(int=0),
        f"{id}@example.org",
    )
    return str(id)


def sessions_on(dsn: str, **options: object) -> SupabaseSessions:
    url = "https://abcd.supabase.co"
    return SupabaseSessions(dsn, url=url, jwt_secret=JWT_SECRET, **options)  # type: ignore[arg-type]


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
    async with sessions_on(supabase_dsn, rules=rules) as sessions, browser(sessions) as client:
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
    """A fresh look refuses who is banned, and the session works again afterwards."""
    async with sessions_on(supabase_dsn) as sessions, browser(sessions) as client:
        await client.post(f"/login/{user}")
        await database.execute("update auth.users set banned_until = now() + interval '1 day'")
        sessions._parts.cache.doubt()
        assert (await client.get("/me")).status_code == 401
        assert NAME in client.cookies
        await database.execute("update auth.users set banned_until = null")
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
    "value", ["", "x", "base64-", "base64-!!!", "base64-e30", "{}", "%", "base64-" + "A" * 9000]
)
async def test_a_broken_cookie_is_anonymous(sessions: SupabaseSessions, value: str) -> None:
    """Never a 500, and nothing is asked of the database."""
    before = sessions.stats().queries
    async with browser(sessions) as client:
        answer = await client.get("/me", headers={"cookie": f"{NAME}={value}"})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert sessions.stats().queries == before
