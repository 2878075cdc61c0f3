"""Open connections, by session: each closer is called once, or never."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from handstamp.core.models import Session
from handstamp.engine.connections import Connections

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Doubt = Callable[[Connections], bool]


def session(session_id: str, user_id: str = "u") -> Session:
    """A session of user u, or of another one."""
    return Session(
        id=session_id,
        user_id=user_id,
        created_at=NOW,
        expires_at=NOW,
        last_activity_at=NOW,
    )


def checked(connections: Connections, *ids: str) -> None:
    """These sessions were checked, and are valid for a while."""
    connections.take_due(0.0, all_sessions=True)
    for session_id in ids:
        connections.mark_checked(session_id, 10.0)


def test_a_session_that_ends_closes_its_connections() -> None:
    """All of its own, once, and no others."""
    connections, closed = Connections(), []
    one, two, other = (lambda name=n: closed.append(name) for n in ("one", "two", "other"))
    for session_id, closer in (("s", one), ("s", two), ("t", other)):
        connections.add(session(session_id), closer)
    connections.close("s")
    connections.close("s")
    assert sorted(closed) == ["one", "two"]
    assert len(connections) == 1


def test_a_connection_that_left_is_not_closed() -> None:
    """And leaves nothing behind, however often it leaves."""
    connections, closed = Connections(), []
    closer = lambda: closed.append(1)  # noqa: E731
    connections.add(session("s"), closer)
    for _ in range(2):
        connections.remove("s", closer)
    connections.close("s")
    assert closed == []
    assert connections._entries == {}


def test_a_closer_may_leave_while_it_is_called() -> None:
    """A connection that goes away at once disturbs none of the others."""
    connections, closed = Connections(), []

    def make(name: int) -> object:
        def closer() -> None:
            closed.append(name)
            for other in closers:
                connections.remove("s", other)  # type: ignore[arg-type]

        return closer

    closers = [make(n) for n in range(3)]
    for closer in closers:
        connections.add(session("s"), closer)  # type: ignore[arg-type]
    connections.close("s")
    assert sorted(closed) == [0, 1, 2]


def test_a_closer_that_fails_keeps_no_other_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The fault is logged and goes no further."""
    connections, closed = Connections(), []

    def fails() -> None:
        raise RuntimeError("in a closer")

    for closer in (lambda: closed.append(1), fails, lambda: closed.append(2)):
        connections.add(session("s"), closer)
    connections.close("s")
    assert sorted(closed) == [1, 2]
    assert "in a closer" in caplog.text
    assert len(connections) == 0


def test_a_new_connection_is_due_until_it_was_checked() -> None:
    """Then not before its session's own limit comes, unless everybody is wanted."""
    connections = Connections()
    connections.add(session("s"), print)
    assert connections.take_due(0.0, all_sessions=False) == ["s"]
    connections.mark_checked("s", 10.0)
    assert connections.take_due(9.9, all_sessions=False) == []
    assert connections.take_due(9.9, all_sessions=True) == ["s"]
    assert connections.take_due(10.0, all_sessions=False) == ["s"]


def test_a_check_of_a_connection_that_left_is_harmless() -> None:
    """It brings nothing back."""
    connections = Connections()
    connections.mark_checked("s", 10.0)
    assert connections.take_due(0.0, all_sessions=True) == []


DOUBTS = [
    lambda connections: connections.doubt_session("s"),
    lambda connections: connections.doubt_user("u"),
    lambda connections: connections.doubt(),
]
doubting = pytest.mark.parametrize("doubt", DOUBTS, ids=["session", "user", "everything"])


@doubting
def test_a_doubt_is_taken_once(doubt: Doubt) -> None:
    """A session that was then found valid is not due again."""
    connections = Connections()
    connections.add(session("s"), print)
    checked(connections, "s")
    assert connections.take_doubted() == []
    assert doubt(connections) is True
    assert connections.take_doubted() == ["s"]
    assert connections.take_doubted() == []
    connections.mark_checked("s", 10.0)
    assert connections.take_due(9.9, all_sessions=False) == []


@doubting
def test_a_doubt_that_was_taken_and_not_answered_is_due(doubt: Doubt) -> None:
    """The check failed, and the next round has to check again."""
    connections = Connections()
    connections.add(session("s"), print)
    checked(connections, "s")
    doubt(connections)
    assert connections.take_doubted() == ["s"]
    assert connections.take_due(0.0, all_sessions=False) == ["s"]


@doubting
def test_a_doubt_during_a_look_outlives_that_look(doubt: Doubt) -> None:
    """What was read before it says nothing about it."""
    connections = Connections()
    connections.add(session("s"), print)
    checked(connections, "s")
    doubt(connections)
    assert connections.take_doubted() == ["s"]
    doubt(connections)
    connections.mark_checked("s", 10.0)
    assert connections.take_due(0.0, all_sessions=False) == ["s"]


def test_a_doubt_concerns_no_other_session() -> None:
    """Neither of a session, nor of a user; a doubt of all is everybody's."""
    connections = Connections()
    for session_id, user_id in (("s", "u"), ("t", "u"), ("other", "v")):
        connections.add(session(session_id, user_id), print)
    checked(connections, "s", "t", "other")
    connections.doubt_session("t")
    assert connections.take_doubted() == ["t"]
    connections.doubt_user("u")
    assert sorted(connections.take_doubted()) == ["s", "t"]
    connections.doubt()
    assert sorted(connections.take_doubted()) == ["other", "s", "t"]


def test_c68_a_doubt_of_an_unknown_id_leaves_nothing() -> None:
    """However many ids are invented: nothing grows, and nothing is to be checked."""
    connections = Connections()
    assert connections.doubt() is False
    connections.add(session("s"), print)
    checked(connections, "s")
    for number in range(1000):
        assert connections.doubt_session(f"{number}") is False
        assert connections.doubt_user(f"{number}") is False
    assert connections._doubts == type(connections._doubts)()
    assert connections.take_doubted() == []


@doubting
def test_nothing_is_left_of_a_connection_that_went(doubt: Doubt) -> None:
    """Neither in an index nor among the doubts, whichever way it went."""
    closer = lambda: None  # noqa: E731
    for leave in (
        lambda connections: connections.remove("s", closer),
        lambda connections: connections.close("s"),
        lambda connections: connections.reset_after_fork(),
    ):
        connections = Connections()
        connections.add(session("s"), closer)
        doubt(connections)
        leave(connections)
        assert (connections._entries, connections._by_user) == ({}, {})
        assert connections.take_doubted() == []
