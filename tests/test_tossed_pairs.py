"""A session token of one session beside the refresh token of another.

A browser drops the session cookie after minutes and keeps the refresh cookie for weeks.
Where the names have no `__Host-`, a neighbour below the same domain can set a session
cookie of its own in the meantime. It must not sign the user into that session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest

from handstamp import Cookies, Policy
from handstamp.asgi import SCOPE_KEY
from handstamp.asgi import SessionAuthMiddleware as AsgiMiddleware
from handstamp.blocking import call
from handstamp.core.cookies import CookieReader
from handstamp.core.models import Authenticated, Invalid, Issued, Reason, Unknown
from handstamp.core.tokens import refresh_prefix
from handstamp.events import DuplicateCookies, Refreshed, Reissued, Replayed
from handstamp.wsgi import ENVIRON_KEY
from handstamp.wsgi import SessionAuthMiddleware as WsgiMiddleware
from tests.support import asgi, wsgi
from tests.support.engines import LAPTOP, Engine, credentials_of, running, session_of

PLAIN = Cookies(session_name="session", refresh_name="refresh", domain="a.example")
CONFLICT = Invalid(Reason.CONFLICT)


async def two(engine: Engine) -> tuple[Issued, Issued]:
    """The user's session, whose session token has run out, and the attacker's."""
    mine = await engine.login()
    await engine.expire()
    return mine, await engine.login("mallory")


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("passive", [True, False])
@pytest.mark.parametrize("whole", [True, False])
async def test_a_tossed_session_token_beside_a_good_refresh_token_is_a_conflict(
    cached: bool, passive: bool, whole: bool
) -> None:
    """With the expired session token beside it or without; nothing is refreshed."""
    async with running() as engine:
        mine, tossed = await two(engine)
        if not cached:
            engine.sessions._state.cache.doubt()
        session = [tossed.session_token, *([mine.session_token] if whole else [])]
        for order in (session, session[::-1]):
            credentials = credentials_of(order, [mine.refresh_token or ""])
            ask = engine.sessions.authenticate
            assert await ask(credentials, LAPTOP, passive=passive) == CONFLICT
        assert {event.conflict for event in engine.of(DuplicateCookies)} == {True}
        assert engine.of(Refreshed) == engine.of(Reissued) == []


async def test_both_tokens_tossed_beside_a_good_refresh_token_are_a_conflict() -> None:
    """Two refresh cookies: the one of the live session does not speak for the other."""
    async with running() as engine:
        mine, tossed = await two(engine)
        for refresh in ([mine, tossed], [tossed, mine]):
            credentials = credentials_of(
                [tossed.session_token], [str(r.refresh_token) for r in refresh]
            )
            assert await engine.sessions.authenticate(credentials, LAPTOP) == CONFLICT


@pytest.mark.parametrize("reason", ["revoked", "forged", "expired"])
async def test_a_refresh_token_that_is_worth_nothing_is_no_conflict(reason: str) -> None:
    """Of a session that is over, or replaced long ago: the live session counts. It costs
    a query at most every two seconds."""
    policy = Policy(refresh_ttl=timedelta(hours=1), absolute_ttl=timedelta(days=1))
    async with running(policy=policy) as engine:
        mine = await engine.login()
        text = str(mine.refresh_token)
        if reason == "revoked":
            await engine.sessions.revoke(mine.session.id)
        elif reason == "expired":
            engine.clock.advance(timedelta(hours=2))
        else:
            text = text[:-2] + ("AA" if not text.endswith("AA") else "EE")
        other = await engine.login("bob")
        credentials = credentials_of([other.session_token], [text])
        before = engine.store.queries
        for _ in range(3):
            answer = await engine.sessions.authenticate(credentials, LAPTOP)
            assert session_of(answer).id == other.session.id
        assert engine.store.queries - before <= 1
        assert engine.of(DuplicateCookies) == []


async def stale(engine: Engine, steps: int) -> tuple[Issued, Issued]:
    """The first pair of a session that was refreshed so often since, and the last one."""
    first = last = await engine.login()
    for _ in range(steps):
        await engine.expire()
        last = await engine.refreshed(last)
    await engine.ask(last, refresh=False)
    await engine.sessions.flush()
    return first, last


@pytest.mark.parametrize("passive", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
async def test_a_replay_is_noticed_beside_a_session_token_of_another_session(
    steps: int, passive: bool
) -> None:
    """Who stole the refresh cookie and used it tosses a session cookie to the victim, so
    that the victim's stale token is not presented alone. It ends that session anyway."""
    async with running() as engine:
        mine, thief = await stale(engine, steps)
        await engine.expire()
        other = await engine.login("bob")
        credentials = credentials_of([other.session_token], [str(mine.refresh_token)])
        before = engine.store.queries
        for _ in range(3):
            ask = engine.sessions.authenticate
            answer = await ask(credentials, LAPTOP, passive=passive)
            assert session_of(answer).id == other.session.id
        assert engine.store.queries - before <= 2
        assert [event.session_id for event in engine.of(Replayed)] == [mine.session.id]
        assert await engine.ask(thief) == Invalid(Reason.REVOKED)


async def test_an_old_token_beside_a_good_one_of_its_session_is_no_replay() -> None:
    """Whoever presents both holds both. The good one is a conflict, and nothing ends."""
    async with running() as engine:
        mine, fresh = await stale(engine, 2)
        await engine.expire()
        other = await engine.login("bob")
        for texts in ([mine, fresh], [fresh, mine]):
            refresh = [str(issued.refresh_token) for issued in texts]
            credentials = credentials_of([other.session_token], refresh)
            assert await engine.sessions.authenticate(credentials, LAPTOP) == CONFLICT
        assert engine.of(Replayed) == []


async def test_a_late_refresh_token_beside_another_session_is_a_conflict() -> None:
    """It is refused alone, and its session goes on: one of the two is another user's."""
    async with running() as engine:
        mine, _ = await stale(engine, 2)
        other = await engine.login("bob")
        credentials = credentials_of([other.session_token], [str(mine.refresh_token)])
        assert await engine.sessions.authenticate(credentials, LAPTOP) == CONFLICT
        assert engine.of(Replayed) == []


async def test_the_refresh_token_of_the_session_itself_costs_nothing() -> None:
    """Current or replaced: it names the session that the session token is of."""
    async with running() as engine:
        issued = await engine.login()
        fresh = await engine.refreshed(issued)
        before = engine.store.queries
        for refresh in (issued.refresh_token, fresh.refresh_token):
            credentials = credentials_of([fresh.session_token], [str(refresh)])
            answer = await engine.sessions.authenticate(credentials, LAPTOP)
            assert session_of(answer).id == issued.session.id
        assert engine.store.queries == before


async def test_a_token_from_before_handstamp_is_a_conflict_as_well() -> None:
    """It names no session, and is found in the table by its digest."""
    async with running(policy=Policy(accept_unsigned=True)) as engine:
        mine = await engine.login()
        legacy = "r" * 40
        row = engine.row(mine.session.id)
        known = sha256(legacy.encode()).hexdigest()
        engine.store.rows[row.id] = replace(row, refresh_digest=known)
        other = await engine.login("bob")
        credentials = credentials_of([other.session_token], [legacy])
        assert await engine.sessions.authenticate(credentials, LAPTOP) == CONFLICT
        own = credentials_of([mine.session_token], [legacy])
        answer = await engine.sessions.authenticate(own, LAPTOP)
        assert session_of(answer).id == mine.session.id


@pytest.mark.parametrize("which", ["session", "refresh"])
async def test_in_an_outage_a_tossed_session_is_not_believed(which: str) -> None:
    """It is cached and the user's is not: the answer is unknown."""
    policy = Policy(stale_while_down=timedelta(seconds=30))
    async with running(policy=policy) as engine:
        mine, tossed = await engine.login(), await engine.login("mallory")
        engine.sessions._state.cache.forget_session(mine.session.id)
        engine.clock.advance(engine.policy.max_staleness + timedelta(seconds=1))
        engine.store.down = True
        session = [tossed.session_token] + (
            [mine.session_token] if which == "session" else []
        )
        refresh = [str(mine.refresh_token)] if which == "refresh" else []
        ask = engine.sessions.authenticate
        assert isinstance(await ask(credentials_of(session, refresh), LAPTOP), Unknown)
        alone = await ask(credentials_of(session[:1], [str(tossed.refresh_token)]), LAPTOP)
        assert isinstance(alone, Authenticated)


def cookie(cookies: Cookies, session: Issued, refresh: Issued) -> str:
    """The Cookie header with one token of each."""
    return (
        f"{cookies.refresh_name}={refresh.refresh_token}; "
        f"{cookies.session_name}={session.session_token}"
    )


def over_asgi(engine: Engine, cookies: Cookies, method: str, header: str) -> list[Any]:
    """Who it was, in a process with its loop."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope[SCOPE_KEY].user_id)
        await asgi.responding()(scope, receive, send)

    async def run() -> None:
        middleware = AsgiMiddleware(app, engine.sessions, cookies=cookies)
        scope = asgi.http_scope("/", method=method, headers=[(b"cookie", header.encode())])
        await asgi.serve(middleware, scope)

    call(run)
    return seen


def over_wsgi(engine: Engine, cookies: Cookies, method: str, header: str) -> list[Any]:
    """Who it was, in a thread of its own."""
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        seen.append(environ[ENVIRON_KEY].user_id)
        start_response("200 OK", [])
        return [b""]

    middleware = WsgiMiddleware(app, engine.sessions, cookies=cookies)
    wsgi.serve(middleware, wsgi.environ("/", method=method, HTTP_COOKIE=header))
    return seen


@pytest.mark.parametrize("over", [over_asgi, over_wsgi])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("cookies", [PLAIN, Cookies.insecure()], ids=["domain", "local"])
def test_no_transport_takes_a_short_way_past_the_conflict(
    over: Callable[..., list[Any]], method: str, cookies: Cookies
) -> None:
    """The tossed session is cached, and a hit makes no query."""
    engine = Engine()

    async def begin() -> tuple[Issued, Issued]:
        await engine.sessions.open()
        return await two(engine)

    mine, tossed = call(begin)
    try:
        header = cookie(cookies, tossed, mine)
        assert over(engine, cookies, method, header) == [None]
        own = cookie(cookies, tossed, tossed)
        assert over(engine, cookies, method, own) == ["mallory"]
        assert over(engine, cookies, method, own.split("; ")[1]) == ["mallory"]
    finally:
        call(engine.sessions.close)


@pytest.mark.parametrize("over", [over_asgi, over_wsgi])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("name", ["session", "refresh"])
def test_too_many_cookies_of_one_name_do_not_leave_the_other_to_a_neighbour(
    over: Callable[..., list[Any]], method: str, name: str
) -> None:
    """More refresh cookies than are looked at hide the user's own among them, and so do
    more session cookies: the tossed token of the other name must not count alone."""
    engine = Engine()

    async def begin() -> tuple[Issued, Issued]:
        await engine.sessions.open()
        return await engine.login(), await engine.login("mallory")

    mine, tossed = call(begin)
    junk = "".join(f"{name}=made-up-{number}; " for number in range(4))
    session, refresh = (mine, tossed) if name == "session" else (tossed, mine)
    try:
        header = cookie(PLAIN, session, refresh)
        assert over(engine, PLAIN, method, junk + header) == [None]
        assert over(engine, PLAIN, method, header + "; " + junk.removesuffix("; ")) == [
            None
        ]
    finally:
        call(engine.sessions.close)


def test_names_that_nobody_else_can_set_take_the_short_way() -> None:
    """With `__Host-` a hit looks at the session cookie alone."""
    assert AsgiMiddleware(asgi.responding(), Engine().sessions)._refresh_matches is None
    loose = AsgiMiddleware(asgi.responding(), Engine().sessions, cookies=PLAIN)
    assert loose._refresh_matches is not None


def test_the_short_way_compares_every_refresh_cookie() -> None:
    """Beside one of the session itself, in any order; a longer name costs the long way."""
    refresh_matches = CookieReader(PLAIN).refresh_matches
    assert refresh_matches is not None
    own, other = b"refresh=own.r.x.y", b"refresh=other.r.x.y"
    for header in (b"", b"a=b; session=x", own, b"session=x; " + own):
        assert refresh_matches(header, "own")
    for header in (other, own + b"; " + other, other + b"; " + own, b"refresh=own; a=b"):
        assert not refresh_matches(header, "own")
    assert not refresh_matches(b"x" + other, "own")
    odd = f"refresh={refresh_prefix('a:b').decode()}r.x.y".encode()
    assert refresh_matches(odd, "a:b")
