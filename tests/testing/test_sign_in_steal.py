"""A thief with a copy of both cookies: what the library promises, seen from outside."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import httpx
import pytest
from werkzeug.test import Client as WerkzeugClient

from handstamp import ConfigError, Sessions
from handstamp.events import Reissued, Replayed
from handstamp.stores.shapes import UUID_PLAIN
from handstamp.testing import (
    FrozenClock,
    Recorded,
    alogin_as,
    assert_revoked,
    login_as,
    steal,
)
from handstamp.testing.engines import close
from tests.support.apps import over_asgi, over_wsgi
from tests.support.browsers import TestClient, browser
from tests.support.engines import SECRET


@pytest.fixture
def victim(
    handstamp_sessions: Sessions, handstamp_events: Recorded
) -> Iterator[TestClient]:
    """A client whose events are recorded."""
    with browser(over_asgi(handstamp_sessions)) as client:
        yield client


def test_a_replay_ends_the_session_and_is_reported(
    victim: TestClient,
    handstamp_sessions: Sessions,
    handstamp_clock: FrozenClock,
    handstamp_events: Recorded,
) -> None:
    """P8: the victim was refreshed, used the new cookies, and grace is over."""
    alice = login_as(victim, "alice", sessions=handstamp_sessions)
    stolen = steal(victim, sessions=handstamp_sessions)
    handstamp_clock.advance(handstamp_sessions.policy.session_ttl)
    assert [victim.get("/me").text for _ in range(2)] == ["alice", "alice"]
    handstamp_clock.advance(handstamp_sessions.policy.grace + timedelta(seconds=1))
    assert stolen.replay() is None
    assert_revoked(alice, reason="refresh token replayed")
    assert [e.session_id for e in handstamp_events.of(Replayed)] == [alice.session.id]
    assert victim.get("/me").status_code == 401


def test_the_event_names_the_thief(
    victim: TestClient,
    handstamp_sessions: Sessions,
    handstamp_clock: FrozenClock,
    handstamp_events: Recorded,
) -> None:
    """By an address that is reserved for examples."""
    login_as(victim, "alice", sessions=handstamp_sessions)
    stolen = steal(victim, sessions=handstamp_sessions)
    handstamp_clock.advance(handstamp_sessions.policy.session_ttl)
    victim.get("/me")
    victim.get("/me")
    handstamp_clock.advance(2 * handstamp_sessions.policy.grace)
    stolen.replay()
    assert [e.presented_by.address for e in handstamp_events.of(Replayed)] == [
        "203.0.113.66"
    ]


def test_a_thief_s_browser_is_signed_out_too(
    victim: TestClient,
    handstamp_sessions: Sessions,
    handstamp_clock: FrozenClock,
    handstamp_events: Recorded,
) -> None:
    """The copy works in another client until the replay is detected."""
    login_as(victim, "alice", sessions=handstamp_sessions)
    thief = TestClient(victim.app, base_url="https://testserver.local")
    thief.portal = victim.portal  # the same server: one event loop
    steal(victim, sessions=handstamp_sessions).into(thief)
    assert thief.get("/me").text == "alice"
    handstamp_clock.advance(handstamp_sessions.policy.session_ttl)
    assert [victim.get("/me").text for _ in range(2)] == ["alice", "alice"]
    victim.portal.call(handstamp_sessions.flush)  # type: ignore[union-attr]
    handstamp_clock.advance(2 * handstamp_sessions.policy.grace)
    assert thief.get("/me").status_code == 401
    assert len(handstamp_events.of(Replayed)) == 1
    assert victim.get("/me").status_code == 401


def test_a_lost_response_is_no_theft(
    victim: TestClient,
    handstamp_sessions: Sessions,
    handstamp_clock: FrozenClock,
    handstamp_events: Recorded,
) -> None:
    """P7: while the new token was not used, the old one returns the same successor."""
    login_as(victim, "alice", sessions=handstamp_sessions)
    stolen = steal(victim, sessions=handstamp_sessions)
    handstamp_clock.advance(handstamp_sessions.policy.session_ttl)
    victim.get("/me")
    handstamp_clock.advance(2 * handstamp_sessions.policy.grace)
    again = stolen.replay()
    assert again is not None
    assert len(handstamp_events.of(Reissued)) == 1
    assert handstamp_events.of(Replayed) == []


async def test_a_replay_with_await(
    handstamp_sessions: Sessions, handstamp_clock: FrozenClock
) -> None:
    """The same for an async test."""
    transport = httpx.ASGITransport(over_asgi(handstamp_sessions))
    base_url = "https://testserver.local"
    async with (
        handstamp_sessions,
        httpx.AsyncClient(transport=transport, base_url=base_url) as victim,
    ):
        await alogin_as(victim, "alice", sessions=handstamp_sessions)
        stolen = steal(victim, sessions=handstamp_sessions)
        handstamp_clock.advance(handstamp_sessions.policy.session_ttl)
        await victim.get("/me")
        await victim.get("/me")
        handstamp_clock.advance(2 * handstamp_sessions.policy.grace)
        assert await stolen.areplay() is None
        assert (await victim.get("/me")).status_code == 401


def test_the_victim_keeps_what_was_copied(
    victim: TestClient, handstamp_sessions: Sessions
) -> None:
    """`steal` does not change the jar, and its repr has no token."""
    login_as(victim, "alice", sessions=handstamp_sessions)
    before = dict(victim.cookies)
    stolen = steal(victim, sessions=handstamp_sessions)
    assert dict(victim.cookies) == before
    assert set(before.values()) == {stolen.session_token, stolen.refresh_token}
    assert not any(token in repr(stolen) for token in before.values())


def test_a_client_that_is_not_signed_in_has_nothing_to_steal(
    victim: TestClient, handstamp_sessions: Sessions
) -> None:
    """The error says to sign it in first."""
    with pytest.raises(ConfigError, match="sign it in"):
        steal(victim, sessions=handstamp_sessions)


def test_without_refresh_tokens_there_is_a_copy_and_no_replay(uuid_dsn: str) -> None:
    """The one cookie is copied. `replay` is an error that says what to do instead."""
    sessions = Sessions(uuid_dsn, secret=SECRET, shape=UUID_PLAIN)
    app = over_wsgi(sessions)
    victim, thief = WerkzeugClient(app), WerkzeugClient(app)
    user = "7d1c1a6e-3f0e-4b0a-9d7e-2f5d6a1b8c90"
    login_as(victim, user, sessions=sessions)
    stolen = steal(victim, sessions=sessions)
    assert stolen.refresh_token is None
    stolen.into(thief)
    assert thief.get("/me").text == user
    with pytest.raises(ConfigError, match=r"into\(client\)"):
        stolen.replay()
    close(sessions)
