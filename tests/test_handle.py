"""The handle: three states, and what a route may ask of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from handstamp.asgi import Handle, SessionAuthMiddleware
from handstamp.config import Policy
from handstamp.core.models import Authenticated, Invalid, Issued, Reason, Unknown
from handstamp.errors import (
    AuthenticationRequired,
    FreshLoginRequired,
    HandstampError,
    SessionsUnavailable,
    StepUpRequired,
)
from tests.support.engines import ALICE, LAPTOP, Engine, running, seconds


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """One process on a store in memory."""
    async with running() as engine:
        yield engine


def handle(engine: Engine, answer: object = None, method: str = "POST") -> Handle:
    """A handle as the middleware makes it, for this answer of the engine's."""
    options = SessionAuthMiddleware(None, engine.sessions)._options  # type: ignore[arg-type]
    made = Handle(options, [(b"user-agent", b"test")], ("198.51.100.7", 1))
    if answer is not None:
        made._resolve(answer)  # type: ignore[arg-type]
    return made


def holding(engine: Engine, issued: Issued) -> Handle:
    return handle(engine, Authenticated(session=issued.session))


ASKING: list[Callable[[Handle], object]] = [
    lambda h: h.session,
    lambda h: h.user_id,
    lambda h: h.is_authenticated,
]


async def test_a_handle_with_a_session_has_its_user(engine: Engine) -> None:
    """And requiring it gives it."""
    issued = await engine.login()
    made = holding(engine, issued)
    assert [ask(made) for ask in ASKING] == [issued.session, ALICE, True]
    assert made.require() == issued.session


async def test_a_handle_without_a_session_is_anonymous(engine: Engine) -> None:
    """And requiring one raises a 401."""
    for made in (handle(engine), handle(engine, Invalid(Reason.EXPIRED))):
        assert [ask(made) for ask in ASKING] == [None, None, False]
        with pytest.raises(AuthenticationRequired) as error:
            made.require()
        assert error.value.status == 401


@pytest.mark.parametrize("ask", [*ASKING, lambda h: h.require()])
async def test_p5_an_unknown_handle_raises(
    engine: Engine, ask: Callable[[Handle], object]
) -> None:
    """Whatever is asked of it, again and again."""
    made = handle(engine, Unknown("frozen"))
    for _ in range(2):
        with pytest.raises(SessionsUnavailable) as error:
            ask(made)
        assert (error.value.cause, error.value.status) == ("frozen", 503)


@pytest.mark.parametrize(
    "verb",
    [
        lambda h: h.logout(),
        lambda h: h.list_sessions(),
        lambda h: h.revoke("x"),
        lambda h: h.revoke_others(),
    ],
)
async def test_p5_no_method_of_an_unknown_handle_reports_success(
    engine: Engine, verb: Callable[[Handle], Any]
) -> None:
    """Nothing is done, and no cookie is cleared."""
    made = handle(engine, Unknown("frozen"))
    with pytest.raises(SessionsUnavailable):
        await verb(made)
    assert made.response_headers([]) == [(b"vary", b"Cookie")]


async def test_a_login_gives_an_unknown_handle_a_session(engine: Engine) -> None:
    """The database answered meanwhile, and the new session counts."""
    made = handle(engine, Unknown("frozen"))
    await made.login("bob")
    assert made.user_id == "bob"


async def test_a_fresh_login_is_counted_from_the_login(engine: Engine) -> None:
    """On the database's clock; a refresh is no sign-in."""
    issued = await engine.login()
    engine.clock.advance(timedelta(minutes=5))
    fresh = await engine.refreshed(issued)
    made = handle(engine, Authenticated(session=fresh.session))
    assert made.require(fresh_within=timedelta(minutes=5)) == fresh.session
    with pytest.raises(FreshLoginRequired) as error:
        made.require(fresh_within=timedelta(minutes=5) - seconds(1))
    assert error.value.age == timedelta(minutes=5)
    assert error.value.status == 401


async def test_a_session_without_a_level_has_the_lowest(engine: Engine) -> None:
    """Asking for any is a step up."""
    issued = await engine.login()
    session = replace(issued.session, level=None)
    made = holding(engine, replace(issued, session=session))
    with pytest.raises(StepUpRequired) as error:
        made.require(level=1)
    assert (error.value.required, error.value.level, error.value.status) == (1, None, 403)


async def test_a_user_sees_their_sessions_with_the_current_marked(engine: Engine) -> None:
    """And no other user's."""
    issued, other = await engine.login(), await engine.login()
    await engine.login("bob")
    listed = await holding(engine, issued).list_sessions()
    assert {s.id: s.current for s in listed} == {
        issued.session.id: True,
        other.session.id: False,
    }


async def test_c42_c49_a_user_ends_only_their_own(engine: Engine) -> None:
    """Another's id is not found."""
    issued, other, bob = (
        await engine.login(),
        await engine.login(),
        await engine.login("bob"),
    )
    made = holding(engine, issued)
    assert await made.revoke(bob.session.id) is False
    assert await made.revoke(other.session.id) is True
    assert engine.row(bob.session.id).is_active
    assert not engine.row(other.session.id).is_active


async def test_revoking_the_others_keeps_this_one(engine: Engine) -> None:
    """And tells how many there were."""
    issued, _, _ = [await engine.login() for _ in range(3)]
    assert await holding(engine, issued).revoke_others() == 2
    assert engine.row(issued.session.id).is_active


async def test_an_anonymous_user_has_no_sessions_to_end(engine: Engine) -> None:
    """Every verb that needs a session says so."""
    made = handle(engine)
    for verb in (made.list_sessions(), made.revoke("x"), made.revoke_others()):
        with pytest.raises(AuthenticationRequired):
            await verb


async def test_a_logout_is_over_at_once(engine: Engine) -> None:
    """The handle has no session any more."""
    made = holding(engine, await engine.login())
    await made.logout()
    assert made.is_authenticated is False


async def test_a_login_comes_before_the_response_starts(engine: Engine) -> None:
    """Its cookies could not leave any more, so there is no session either."""
    made = handle(engine)
    made.response_headers([])
    with pytest.raises(HandstampError, match="before the response"):
        await made.login("bob")
    assert engine.store.rows == {}


async def test_p12_a_handle_shows_nothing(engine: Engine) -> None:
    """Neither cookies nor tokens nor headers."""
    made = handle(engine)
    await made.login("bob")
    assert repr(made) == "Handle()"


async def test_the_client_is_parsed_only_when_it_is_read(engine: Engine) -> None:
    """Once, and goes into the row of a login."""
    made = handle(engine)
    assert made.client is made.client
    session = await made.login("bob")
    assert (session.address, made.client.user_agent) == (LAPTOP.address, "test")


async def test_a_browser_session_ends_with_the_browser_ttl() -> None:
    """Without `remember`, `browser_ttl` is the limit of the row itself."""
    async with running(policy=Policy(browser_ttl=timedelta(hours=2))) as engine:
        session = await handle(engine).login("bob")
        limit = engine.row(session.id).refresh_expires_at
        assert limit == engine.clock.now() + timedelta(hours=2)
