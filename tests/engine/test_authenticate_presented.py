"""Whose sessions the tokens of a request are, for a login and a logout to end them."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from handstamp import Policy, Sessions
from handstamp.core.cookies import Credentials
from handstamp.core.tokens import digest
from handstamp.engine.refresh import MAX_UNSIGNED
from handstamp.errors import SessionsUnavailable
from handstamp.events import Replayed
from handstamp.stores.shapes import UUID_PLAIN
from handstamp.supabase.cookies import cut, encode_session
from tests.support.engines import LAPTOP, PHONE, SECRET, Engine, credentials_of, running
from tests.support.supabase_site import NAME, Held, World, living


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """One process on a store in memory."""
    async with running() as engine:
        yield engine


async def ids(sessions: Sessions, credentials: Credentials) -> set[str]:
    """The ids of the sessions of these tokens."""
    return {s.id for s in await sessions.find_presented(credentials, LAPTOP)}


async def test_finding_whose_tokens_these_are_changes_nothing(engine: Engine) -> None:
    """No row, no activity, no event, nothing for the next request."""
    issued = await engine.login()
    await engine.expire()
    rows, events = dict(engine.store.rows), list(engine.events)
    found = await engine.sessions.find_presented(
        credentials_of([issued.session_token], [issued.refresh_token or ""]), LAPTOP
    )
    assert [session.id for session in found] == [issued.session.id]
    assert (engine.store.rows, engine.events) == (rows, events)
    assert engine.sessions.stats().pending_touches == 0


async def test_many_genuine_tokens_are_two_queries(engine: Engine) -> None:
    """One by session tokens and one by ids, however many cookies somebody collected."""
    mine = [await engine.login() for _ in range(20)]
    engine.sessions._state.cache.reset_after_fork()
    credentials = credentials_of(
        [one.session_token for one in mine[:10]],
        [one.refresh_token or "" for one in mine[10:]],
    )
    before = engine.store.queries
    assert await ids(engine.sessions, credentials) == {one.session.id for one in mine}
    assert engine.store.queries == before + 2


async def test_p8_a_stale_token_beside_a_current_one_is_no_replay(engine: Engine) -> None:
    """A forgotten cookie; alone it is one, and both clients are named."""
    first = await engine.login()
    await engine.expire()
    second = await engine.refreshed(first)
    engine.clock.advance(1)
    await engine.ask(second)
    await engine.sessions.flush()
    engine.clock.advance(engine.policy.grace)
    stale, current = first.refresh_token or "", second.refresh_token or ""
    assert await ids(engine.sessions, credentials_of((), [stale, current])) == {
        first.session.id
    }
    assert engine.of(Replayed) == []
    credentials = credentials_of((), [stale])
    assert await engine.sessions.find_presented(credentials, PHONE) == []
    [event] = engine.of(Replayed)
    assert (event.presented_by, event.signed_in_by.address) == (PHONE, LAPTOP.address)


async def test_p16_nobody_waits_longer_for_it_than_for_anything(engine: Engine) -> None:
    """An outage is an answer that is not there."""
    issued = await engine.login()
    await engine.expire()
    engine.store.down = True
    with pytest.raises(SessionsUnavailable):
        await ids(engine.sessions, credentials_of([issued.session_token]))


async def test_what_came_before_handstamp_ends_as_well() -> None:
    """Unsigned tokens by digest, however many others hide them: session tokens in one
    query, and refresh tokens in a query each, or there is no answer."""
    async with running(policy=Policy(accept_unsigned=True)) as engine:
        issued = await engine.login()
        row = engine.row(issued.session.id)
        old_session, old_refresh = "an-old-session", "an-old-refresh"
        engine.store._write(
            row,
            token_digest=digest(old_session.encode()).hex(),
            refresh_digest=digest(old_refresh.encode()).hex(),
        )
        engine.sessions._state.cache.reset_after_fork()
        made_up = [f"made-up-{number}" for number in range(100)]
        few = made_up[: MAX_UNSIGNED - 1]
        for credentials in (
            credentials_of([old_session]),
            credentials_of((), [old_refresh]),
            credentials_of([*made_up, old_session]),
            credentials_of((), [*few, old_refresh]),
        ):
            assert await ids(engine.sessions, credentials) == {row.id}
        before = engine.store.queries
        assert await ids(engine.sessions, credentials_of(made_up)) == set()
        assert engine.store.queries == before + 1
        with pytest.raises(SessionsUnavailable):
            await ids(engine.sessions, credentials_of((), [*made_up, old_refresh]))
        assert engine.store.queries == before + 1


async def test_a_token_in_plaintext_is_its_sessions(uuid_dsn: str) -> None:
    """On a table that held tokens as they are."""
    token = secrets.token_urlsafe(32)
    connection = await asyncpg.connect(uuid_dsn)
    try:
        id = await connection.fetchval(
            "insert into user_sessions (user_id, session_token, expires_at)"
            " values ($1, $2, now() + interval '1 hour') returning id",
            uuid.uuid4(),
            token,
        )
    finally:
        await connection.close()
    async with Sessions(uuid_dsn, secret=SECRET, shape=UUID_PLAIN) as sessions:
        assert await ids(sessions, credentials_of([token])) == {str(id)}
        assert await ids(sessions, credentials_of(["x" * 43])) == set()


# Supabase.


@pytest.fixture
async def world(supabase_dsn: str) -> AsyncIterator[World]:
    """Empty tables."""
    async with living(supabase_dsn) as world:
        yield world


def header(*held: Held, lasts: float = 3600.0, **claims: Any) -> dict[str, str]:
    """The Cookie header with these sessions, each as a cookie of one name."""
    texts = [encode_session({**one.body(lasts, **claims), "user": {}}) for one in held]
    pieces = [cut(NAME, text) for text in texts]
    pairs = [pair for piece in pieces for pair in piece.items()]
    return {"cookie": "; ".join(f"{name}={text}" for name, text in pairs)}


@pytest.mark.parametrize("verb", ["/logout", "/login"])
@pytest.mark.parametrize("lasts", [3600.0, 60.0, -5.0], ids=["live", "near", "expired"])
@pytest.mark.parametrize("excluded", [False, True], ids=["asked", "excluded"])
async def test_a_login_and_a_logout_end_what_a_supabase_cookie_had(
    world: World, verb: str, lasts: float, excluded: bool
) -> None:
    """On a path that is not authenticated too; also two sessions of one request."""
    sessions = await world.process()
    user = await world.add_user()
    path = f"/login/{user}" if verb == "/login" else verb
    options = {"exclude": [path]} if excluded else {}
    client = await world.browser(sessions, **options)
    one, other = await world.sign_in(sessions), await world.sign_in(sessions)
    kept = await world.sign_in(sessions)
    for held in ((one,), (other, await world.sign_in(sessions))):
        answer = await client.post(path, headers=header(*held, lasts=lasts))
        assert answer.status_code in (200, 204)
        assert [await world.row(each) for each in held] == [None] * len(held)
    assert await world.row(kept) is not None


async def test_a_forged_supabase_cookie_ends_nothing(world: World) -> None:
    """Though it names a session that there is, and its user."""
    sessions = await world.process()
    client = await world.browser(sessions, exclude=["/logout"])
    held = await world.sign_in(sessions)
    before = sessions.stats().queries
    sent = header(held, secret="another secret, and long enough, too")
    assert (await client.post("/logout", headers=sent)).status_code == 204
    wrong_user = header(held, sub=str(uuid.uuid4()))
    assert sessions.stats().queries == before
    assert (await client.post("/logout", headers=wrong_user)).status_code == 204
    assert await world.row(held) is not None


async def test_a_bearer_of_supabase_logs_out_alone(world: World) -> None:
    """From any origin, and the cookie beside it is left alone; a login ends both."""
    sessions = await world.process()
    user = await world.add_user()
    client = await world.browser(sessions)
    one, other = await world.sign_in(sessions), await world.sign_in(sessions)
    bearer = {"authorization": f"Bearer {one.token()}", **header(other)}
    cross = {"sec-fetch-site": "cross-site", "origin": "https://app.example"}
    answer = await client.post("/logout", headers={**bearer, **cross})
    assert (answer.status_code, "set-cookie" in answer.headers) == (204, False)
    assert (await world.row(one), await world.row(other) is None) == (None, False)
    two = await world.sign_in(sessions)
    bearer = {"authorization": f"Bearer {two.token()}", **header(other)}
    assert (await client.post(f"/login/{user}", headers=bearer)).status_code == 200
    assert (await world.row(two), await world.row(other)) == (None, None)
