"""docs/uuid.md: what it says of trust levels, and of moving in, through an application."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from handstamp import Client, Cookies, Sessions
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated
from handstamp.starlette import session_auth, wrap
from handstamp.stores.shapes import UUID_PLAIN
from tests.support.waiting import PATIENCE

SECRET = "the secret of the tests of the uuid page: 32 bytes"
TOKEN = "Zm9yIHRoZSB0ZXN0cyBvZiB0aGUgdXVpZCBwYWdl"  # as the application made them


async def transfer(request: Request) -> Response:
    session_auth(request).require(level=2)
    return Response(status_code=204)


async def confirm_code(request: Request) -> Response:
    await session_auth(request).step_up(2)
    return Response(status_code=204)


@pytest.fixture
async def client(uuid_dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that an application signed in before handstamp came, and the rows that
    it wrote then."""
    connection = await asyncpg.connect(uuid_dsn)
    await connection.execute(
        "insert into user_sessions (user_id, session_token, expires_at)"
        " values ($1, $2, now() + interval '7 days')",
        uuid.uuid4(),
        TOKEN,
    )
    await connection.close()
    site = Starlette(
        routes=[
            Route("/transfer", transfer, methods=["POST"]),
            Route("/confirm", confirm_code, methods=["POST"]),
        ]
    )
    cookies = Cookies(session_name="sid")
    async with Sessions(uuid_dsn, secret=SECRET, shape=UUID_PLAIN) as sessions:
        transport = httpx.ASGITransport(wrap(site, sessions, cookies=cookies))
        async with httpx.AsyncClient(
            transport=transport, base_url="https://app.example"
        ) as client:
            client.cookies.set("sid", TOKEN, domain="app.example")
            yield client


async def status(client: httpx.AsyncClient, path: str) -> int:
    """The status of the response to a POST."""
    return (await client.post(path)).status_code


async def test_a_session_from_before_steps_up(client: httpx.AsyncClient) -> None:
    """The old cookie stays valid under its name. A level of NULL or 0 is not enough, and
    the level after the second factor is."""
    assert await status(client, "/transfer") == 403
    assert await status(client, "/confirm") == 204
    assert await status(client, "/transfer") == 204


async def test_a_session_from_before_that_is_too_old_ends(
    client: httpx.AsyncClient, uuid_dsn: str
) -> None:
    """`absolute_ttl` counts from `created_at`, also for rows that the application wrote."""
    connection = await asyncpg.connect(uuid_dsn)
    await connection.execute(
        "update user_sessions set created_at = created_at - interval '91 days'"
    )
    await connection.close()
    assert await status(client, "/transfer") == 401


async def test_a_copy_of_the_cookie_does_not_step_up_with_its_user(
    client: httpx.AsyncClient,
) -> None:
    """A copy from before the second factor is not accepted afterwards."""
    assert await status(client, "/confirm") == 204
    assert client.cookies["sid"] != TOKEN
    assert await status(client, "/transfer") == 204
    client.cookies.clear()
    client.cookies["sid"] = TOKEN
    assert await status(client, "/transfer") == 401


async def test_the_text_in_the_table_is_no_valid_cookie(
    client: httpx.AsyncClient, uuid_dsn: str
) -> None:
    """After the first use that is a digest, and the digest is no cookie."""
    await status(client, "/confirm")
    connection = await asyncpg.connect(uuid_dsn)
    stored = "select session_token from user_sessions"
    async with asyncio.timeout(PATIENCE):
        while await connection.fetchval(stored) == TOKEN:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    held = await connection.fetchval(stored)
    await connection.close()
    client.cookies.clear()
    client.cookies["sid"] = held
    assert held.startswith("sha256:")
    assert await status(client, "/transfer") == 401


async def test_prefixed_refuses_tokens_in_plaintext_without_a_query(
    uuid_dsn: str,
) -> None:
    """A made-up cookie costs a query before, and none after."""
    for at_rest, cost in (("plain", 1), ("prefixed", 0)):
        shape = replace(UUID_PLAIN, at_rest=at_rest)
        async with Sessions(uuid_dsn, secret=SECRET, shape=shape) as sessions:
            made_up = Credentials(session=(b"made up",), sent=True)
            before = sessions.stats().queries
            answer = await sessions.authenticate(made_up, Client())
            assert not isinstance(answer, Authenticated)
            assert sessions.stats().queries - before == cost
