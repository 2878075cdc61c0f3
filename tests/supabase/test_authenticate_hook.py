"""A claims hook that raises: what was written, what the browser is told, what is lost."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from handstamp.errors import SessionsUnavailable
from handstamp.events import LoggedIn, Replayed
from handstamp.supabase import SupabaseSessions
from handstamp.supabase.cookies import decode_session
from tests.support.supabase_site import NAME, Held, World, living

NEAR, DEAD = 60.0, -5.0
LONG_AGO = """
    update auth.refresh_tokens set updated_at = now() - interval '1 day';
    update auth.sessions set refreshed_at = (now() at time zone 'utc') - interval '1 day'"""


class Hook:
    """An application's own, which raises ``fault`` while there is one."""

    def __init__(self) -> None:
        self.fault: Exception | None = None

    def __call__(self, claims: dict[str, Any]) -> dict[str, Any]:
        if self.fault is not None:
            raise self.fault
        return {**claims, "plan": "gold"}


@pytest.fixture
async def world(supabase_dsn: str) -> AsyncIterator[World]:
    """Empty tables."""
    async with living(supabase_dsn) as world:
        yield world


@pytest.fixture
def hook() -> Hook:
    """One that works until it is told otherwise."""
    return Hook()


async def current(world: World, sessions: SupabaseSessions, held: Held) -> str:
    """The refresh token that the tables hold to be the current one."""
    token = await world.psql.fetchval(
        "select token from auth.refresh_tokens where session_id = $1 and not revoked",
        held.id,
    )
    if token is not None:
        return str(token)
    issued = await sessions.refresh(held.refresh_token)  # one behind: the same again
    assert issued is not None
    return str(issued.refresh_token)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("interval", [0, 60], ids=["after", "within"])
async def test_nothing_is_lost_by_a_hook_that_raises(
    world: World, hook: Hook, version: int, interval: int
) -> None:
    """The browser keeps its cookie, and gets by it the one successor that was written,
    within the reuse interval and, by the rule of the parent, long after it."""
    rules = {"reuse_interval": timedelta(seconds=interval)}
    sessions = await world.process(version=version, claims=hook, rules=rules)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    hook.fault = LookupError("no such plan")
    for _ in range(3):
        answer = await client.get("/me", headers=held.cookie(DEAD))
        assert (answer.status_code, "set-cookie" in answer.headers) == (500, False)
        if not interval:
            await world.psql.execute(LONG_AGO)
    hook.fault = None
    answer = await client.get("/me", headers=held.cookie(DEAD))
    assert (answer.status_code, answer.json()["id"]) == (200, held.id)
    told = decode_session(client.cookies[NAME])
    assert told is not None
    assert told.refresh_token != held.refresh_token
    assert told.refresh_token == await current(world, sessions, held)
    assert await sessions.refresh(told.refresh_token) is not None
    assert world.of(Replayed) == []
    if version == 1:
        rows = await world.psql.fetch("select revoked from auth.refresh_tokens")
        assert sorted(row["revoked"] for row in rows) == [False, True, True]


@pytest.mark.parametrize("version", [1, 2])
async def test_a_live_token_outlives_a_hook_that_raises(
    world: World, hook: Hook, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It is served until its own end; the log says why it was not replaced."""
    sessions = await world.process(version=version, claims=hook)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    hook.fault = LookupError("no such plan")
    answer = await client.get("/me", headers=held.cookie(NEAR))
    errors = [r.__dict__ for r in caplog.records if r.levelno >= logging.ERROR]
    assert (answer.status_code, answer.json()["id"]) == (200, held.id)
    assert "set-cookie" not in answer.headers
    assert [(r["name"], r["action"]) for r in errors] == [("handstamp", "refresh_failed")]
    assert "no such plan" in caplog.text
    assert held.refresh_token not in caplog.text
    hook.fault = None
    answer = await client.get("/me", headers=held.cookie(NEAR))
    assert (answer.status_code, "set-cookie" in answer.headers) == (200, True)


async def test_a_hook_may_say_that_nobody_can_say(world: World, hook: Hook) -> None:
    """503 with Retry-After, for whoever has no live token; the cookie stays."""
    sessions = await world.process(claims=hook)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    hook.fault = SessionsUnavailable("the plans are elsewhere")
    answer = await client.get("/me", headers=held.cookie(DEAD))
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert "set-cookie" not in answer.headers
    hook.fault = None
    assert (await client.get("/me", headers=held.cookie(DEAD))).status_code == 200


async def test_a_sign_in_whose_hook_raises_leaves_no_session(
    world: World, hook: Hook
) -> None:
    """Nobody would ever have its tokens; what it raised is the application's own."""
    sessions = await world.process(claims=hook)
    held = await world.sign_in(sessions)
    hook.fault = LookupError("no such plan")
    with pytest.raises(LookupError, match="no such plan"):
        await sessions.create(held.user_id, replaces=held.id)
    assert await world.psql.fetchval("select count(*) from auth.sessions") == 0
    assert [event.session_id for event in world.of(LoggedIn)] == [held.id]


@pytest.mark.parametrize("version", [1, 2])
async def test_a_refresh_outside_of_cookies_can_be_repeated(
    world: World, hook: Hook, version: int
) -> None:
    """The same refresh token stays good."""
    sessions = await world.process(version=version, claims=hook)
    held = await world.sign_in(sessions)
    hook.fault = LookupError("no such plan")
    with pytest.raises(LookupError, match="no such plan"):
        await sessions.refresh(held.refresh_token)
    hook.fault = None
    issued = await sessions.refresh(held.refresh_token)
    assert issued is not None
    assert issued.session.id == held.id
