"""Open connections, by session: each closer is called once, or never."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from handstamp.core.records import Session
from handstamp.engine.connections import Connections

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def session(session_id: str) -> Session:
    """A session of user u."""
    return Session(
        id=session_id, user_id="u", created_at=NOW, expires_at=NOW, last_activity_at=NOW
    )


def test_a_session_that_ends_closes_its_connections() -> None:
    """All of its own, once, and nobody else's."""
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
    assert connections._watched == {}


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
    assert connections.due(0.0, everyone=False) == ["s"]
    connections.stands("s", 10.0)
    assert connections.due(9.9, everyone=False) == []
    assert connections.due(9.9, everyone=True) == ["s"]
    assert connections.due(10.0, everyone=False) == ["s"]


def test_a_check_of_a_connection_that_left_is_harmless() -> None:
    """It brings nothing back."""
    connections = Connections()
    connections.stands("s", 10.0)
    assert connections.due(0.0, everyone=True) == []


def test_a_doubt_of_one_user_is_nobody_elses() -> None:
    """Only that user's connections are due; a doubt of all makes all due."""
    connections = Connections()
    for session_id in ("s", "t"):
        connections.add(session(session_id), print)
        connections.stands(session_id, 10.0)
    connections.doubt("somebody else")
    assert connections.due(0.0, everyone=False) == []
    connections.doubt("u")
    assert connections.due(0.0, everyone=False) == ["s", "t"]
    for session_id in ("s", "t"):
        connections.stands(session_id, 10.0)
    connections.doubt()
    assert connections.due(0.0, everyone=False) == ["s", "t"]
