"""Whether a session was ended, and for which reason: by its row and by its event."""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import Iterator

import pytest

from handstamp import ConfigError, MemoryStore, Sessions
from handstamp.events import Event, LoggedIn, Revoked, SessionEvent
from handstamp.testing import (
    FrozenClock,
    Recorded,
    SignedIn,
    aassert_revoked,
    add_user,
    assert_revoked,
    call,
    login_as,
)
from tests.support.apps import over_asgi
from tests.support.browsers import TestClient, browser
from tests.support.engines import SECRET


@pytest.fixture
def client(handstamp_sessions: Sessions) -> Iterator[TestClient]:
    """A client that is not signed in."""
    with browser(over_asgi(handstamp_sessions)) as client:
        yield client


@pytest.fixture
def alice(
    handstamp_events: Recorded, client: TestClient, handstamp_sessions: Sessions
) -> SignedIn:
    """A signed-in user, whose events are recorded."""
    return login_as(client, "alice", sessions=handstamp_sessions)


def test_a_live_session_is_not_revoked(alice: SignedIn, handstamp_events: Recorded) -> None:
    """The assertion fails, for the row and for the events."""
    with pytest.raises(AssertionError, match="is not revoked"):
        assert_revoked(alice)
    with pytest.raises(AssertionError, match="no event"):
        assert_revoked(alice, events=handstamp_events)


def test_an_expired_session_is_not_revoked(
    alice: SignedIn, handstamp_clock: FrozenClock, client: TestClient
) -> None:
    """The assertion fails."""
    handstamp_clock.advance(alice.sessions.policy.absolute_ttl)
    assert client.get("/me").status_code == 401
    with pytest.raises(AssertionError, match="is not revoked"):
        assert_revoked(alice)


def test_the_reason_counts(
    alice: SignedIn, client: TestClient, handstamp_events: Recorded
) -> None:
    """Another reason fails, and the message names it."""
    client.post("/logout")
    assert_revoked(alice)
    assert_revoked(alice, reason="logout")
    assert_revoked(alice, reason="logout", events=handstamp_events)
    for events in (None, handstamp_events):
        with pytest.raises(AssertionError, match="'logout', not for 'theft'"):
            assert_revoked(alice, reason="theft", events=events)


def test_a_session_or_an_id_is_accepted(
    alice: SignedIn, handstamp_sessions: Sessions, handstamp_events: Recorded
) -> None:
    """Together with the engine or the events."""
    alice.revoke(reason="gone")
    for named in (alice.session, alice.session.id):
        assert_revoked(named, reason="gone", sessions=handstamp_sessions)
        assert_revoked(named, reason="gone", events=handstamp_events)
        with pytest.raises(ConfigError, match="sessions="):
            assert_revoked(named)


def test_the_middleware_names_the_engine(alice: SignedIn, client: TestClient) -> None:
    """As for `login_as`."""
    alice.revoke(reason="gone")
    assert_revoked(alice.session.id, reason="gone", sessions=client.app)  # type: ignore[arg-type]


def test_the_end_of_another_session_is_not_enough(
    alice: SignedIn,
    client: TestClient,
    handstamp_events: Recorded,
    handstamp_sessions: Sessions,
) -> None:
    """Each session has its own end."""
    other = login_as(client, "alice", sessions=handstamp_sessions)
    alice.revoke(reason="gone")
    with pytest.raises(AssertionError):
        assert_revoked(other)
    with pytest.raises(AssertionError):
        assert_revoked(other, events=handstamp_events)


def test_a_deleted_row_is_revoked_without_a_reason(alice: SignedIn) -> None:
    """If a reason is asked for, the message points to the events."""
    store = alice.sessions.store
    assert isinstance(store, MemoryStore)
    store.rows.clear()
    assert_revoked(alice)
    with pytest.raises(AssertionError, match="events="):
        assert_revoked(alice, reason="logout")


async def test_the_row_of_a_real_table_decides(handstamp_dsn: str) -> None:
    """With `await`, and from a thread without it."""
    user = await to_thread(add_user, handstamp_dsn, "alice")
    async with Sessions(handstamp_dsn, secret=SECRET) as sessions:
        session = (await sessions.create(user)).session
        with pytest.raises(AssertionError):
            await aassert_revoked(session, sessions=sessions)
        await sessions.revoke(session.id, reason="gone")
        await aassert_revoked(session, reason="gone", sessions=sessions)
        await to_thread(assert_revoked, session.id, reason="gone", sessions=sessions)


def test_events_are_kept_in_order_and_by_kind(
    alice: SignedIn, handstamp_events: Recorded
) -> None:
    """Until they are cleared. A kind includes the kinds below it."""
    alice.revoke()
    kinds: list[type[Event]] = [type(event) for event in handstamp_events]
    assert kinds == [LoggedIn, Revoked]
    assert len(handstamp_events.of(SessionEvent)) == 2
    assert [e.session_id for e in handstamp_events.of(Revoked)] == [alice.session.id]
    assert repr(handstamp_events) == "Recorded(['logged_in', 'revoked'])"
    handstamp_events.clear()
    assert list(handstamp_events) == []


def test_all_sessions_of_a_user_can_be_revoked(alice: SignedIn, client: TestClient) -> None:
    """`call` runs any method of the engine."""
    assert call(alice.sessions.revoke_user, "alice", reason="left") == 1
    assert client.get("/me").status_code == 401
    assert_revoked(alice, reason="left")
