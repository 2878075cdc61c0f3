"""What somebody who means harm, or a careless setting, tries on Supabase's tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest

from handstamp.engine.clocks import FRESH
from handstamp.events import Refreshed
from handstamp.supabase.cookies import SupabaseCookie, cut, encode_session
from tests.support.clock import FakeClock
from tests.support.frozen_postgres import FrozenPostgres, frozen_postgres
from tests.support.supabase_site import NAME, Held, World, living
from tests.support.waiting import until

HOUR = timedelta(hours=1)
DEAD = -5.0
DOMAIN = "a.example"


@pytest.fixture
async def world(supabase_dsn: str) -> AsyncIterator[World]:
    """Empty tables."""
    async with living(supabase_dsn) as world:
        yield world


def bearer(held: Held, ends: datetime) -> dict[str, str]:
    """An access token of this session that nothing can refresh."""
    return {"authorization": f"Bearer {held.token(exp=int(ends.timestamp()))}"}


@pytest.mark.parametrize("days", [2, -2])
async def test_a_wrong_clock_of_this_machine_refuses_no_live_bearer_token(
    world: World, days: int
) -> None:
    """The database's clock alone refuses, from the first request of a process on."""
    start = datetime.now(UTC) - timedelta(days=days)
    async with frozen_postgres(world.dsn, start) as frozen:
        elsewhere = await world.process(connect=FrozenPostgres.connect)
        held = await world.sign_in(elsewhere)
        sessions = await world.process(connect=FrozenPostgres.connect)
        client = await world.browser(sessions)
        for left, status in ((HOUR, 200), (-HOUR, 401), (HOUR, 200)):
            headers = bearer(held, frozen.now + left)
            assert (await client.get("/me", headers=headers)).status_code == status


async def test_a_database_clock_that_was_put_right_is_learned_again(world: World) -> None:
    """What it showed once refuses a bearer token for a while, and not for ever."""
    clock = FakeClock()
    async with frozen_postgres(world.dsn, datetime.now(UTC)) as frozen:
        sessions = await world.process(connect=FrozenPostgres.connect, clock=clock)
        client = await world.browser(sessions)
        right = frozen.now
        await frozen.advance(2 * HOUR)
        held = await world.sign_in(sessions)
        await frozen.set(right)
        clock.advance(FRESH)
        answer = await client.get("/me", headers=bearer(held, right + HOUR))
        assert answer.status_code == 200


async def test_an_expired_bearer_token_costs_no_query_for_a_while(world: World) -> None:
    """The database's clock was heard a moment ago, and nothing else is asked for."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    before = sessions.stats().queries
    headers = bearer(held, datetime.now(UTC) - HOUR)
    assert (await client.get("/me", headers=headers)).status_code == 401
    assert sessions.stats().queries == before


async def test_an_oauth_client_s_session_is_no_sign_in_whatever_its_token_says(
    world: World,
) -> None:
    """A token hook of GoTrue's may leave client_id out, and the row still has it."""
    oauth_client = uuid4()
    await world.psql.execute("insert into auth.oauth_clients values ($1)", oauth_client)
    strict = await world.process()
    listing = await world.process(oauth_clients=[str(oauth_client)])
    held = await world.sign_in(strict)
    await world.psql.execute("update auth.sessions set oauth_client_id = $1", oauth_client)
    for sessions, status in ((strict, 401), (listing, 200)):
        client = await world.browser(sessions)
        cookie, token = held.cookie(), bearer(held, datetime.now(UTC) + HOUR)
        for headers in (cookie, token, {"cookie": f"{cookie['cookie']}; {NAME}=x"}):
            assert (await client.get("/me", headers=headers)).status_code == status


async def test_a_shared_cache_keeps_the_page_of_a_bearer_token_from_others(
    world: World,
) -> None:
    """It varies by the token, and not by the cookie alone, which was not sent."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    answer = await client.get("/me", headers=bearer(held, datetime.now(UTC) + HOUR))
    assert answer.headers["vary"] == "Authorization, Cookie"
    assert (await client.get("/me", headers=held.cookie())).headers["vary"] == "Cookie"


class Browser:
    """Keeps a cookie of one host and one of its domain apart, and sends both."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._jar: dict[tuple[str, str], str] = {}

    def put(self, held: Held, domain: str) -> None:
        for name, value in cut(NAME, encode_session(held.body())).items():
            self._jar[name, domain] = value

    async def ask(self, method: str, path: str) -> httpx.Response:
        pairs = [f"{name}={value}" for (name, _), value in sorted(self._jar.items())]
        url, headers = f"https://www.{DOMAIN}{path}", {"cookie": "; ".join(pairs)}
        answer = await self._client.request(method, url, headers=headers)
        for line in answer.headers.get_list("set-cookie"):
            pair, *attributes = line.split("; ")
            name, _, value = pair.partition("=")
            domain = DOMAIN if f"Domain={DOMAIN}" in attributes else ""
            self._jar.pop((name, domain), None)
            if "Max-Age=0" not in attributes:
                self._jar[name, domain] = value
        return answer


async def test_a_cookie_of_before_the_domain_is_no_bar_to_signing_in_again(
    world: World,
) -> None:
    """Two living sessions are none, and a sign-in leaves one, its own."""
    cookie = SupabaseCookie(name=NAME, domain=DOMAIN)
    sessions = await world.process(url=None, cookie=cookie)
    browser = Browser(await world.browser(sessions, cookies=None))
    browser.put(await world.sign_in(sessions), "")
    browser.put(await world.sign_in(sessions), DOMAIN)
    assert (await browser.ask("GET", "/maybe")).json() == {"user_id": None}
    user = await world.add_user()
    assert (await browser.ask("POST", f"/login/{user}")).status_code == 200
    assert (await browser.ask("GET", "/maybe")).json() == {"user_id": user}


async def test_one_refresh_token_in_many_spellings_is_one_refresh(world: World) -> None:
    """Line breaks make another text of it and no other token: one transaction for all."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    spellings = [held.refresh_token + "\n" * breaks for breaks in range(8)]
    gotrue = await world.connect()
    async with gotrue.transaction():
        await gotrue.execute("select 1 from auth.sessions for update")
        headers = [held.cookie(DEAD, refresh_token=text) for text in spellings]
        asked = [asyncio.create_task(client.get("/me", headers=h)) for h in headers]
        await until(lambda: sessions._supabase._single_flight)
        await asyncio.sleep(0.1)
        assert len(sessions._supabase._single_flight) == 1
    answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} == {200}
    assert len(world.of(Refreshed)) == 1


ENDLESS = "1" * 5000
"""PostgreSQL keeps numbers with more digits than Python takes."""
DEEP = [
    f"{'[' * depth}{']' * depth}" for depth in (*range(80, 120, 10), *range(900, 990, 3))
]
"""Some of these can just be read, and not be written from further down the stack."""


@pytest.mark.parametrize("values", [[ENDLESS], DEEP], ids=["endless", "deep"])
@pytest.mark.parametrize("http_only", [True, False])
async def test_no_metadata_that_users_write_is_an_error(
    world: World, values: list[str], http_only: bool
) -> None:
    """What is too much for us is left out of the token, and everybody is signed in."""
    cookie = SupabaseCookie(name=NAME, http_only=http_only, secure=False)
    sessions = await world.process(url=None, cookie=cookie)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    for value in values:
        sql = "update auth.users set raw_user_meta_data = $1::jsonb"
        await world.psql.execute(sql, f'{{"x": {value}}}')
        answer = await client.get("/me", headers=held.cookie(DEAD))
        assert (answer.status_code, "set-cookie" in answer.headers) == (200, True)
