"""What an engine published, kept for a test to look at; and whether a session was ended."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TypeVar

from handstamp.core.models import Issued, Record, Session
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError
from handstamp.events import Event, Revoked
from handstamp.testing.concurrency import across, cross
from handstamp.testing.sign_in import SignedIn

E = TypeVar("E", bound=Event)


class Recorded:
    """The events of one engine, oldest first, from the moment this was made."""

    def __init__(self, sessions: Sessions) -> None:
        self._events: list[Event] = []
        sessions.on(Event, self._events.append)

    def __iter__(self) -> Iterator[Event]:
        return iter(list(self._events))

    def __len__(self) -> int:
        return len(self._events)

    def __repr__(self) -> str:
        return f"Recorded({[event.action for event in self._events]})"

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self if isinstance(event, kind)]

    def clear(self) -> None:
        """Forget what was published so far."""
        self._events.clear()


def assert_revoked(
    session: Session | Issued | str,
    *,
    reason: str | None = None,
    sessions: Sessions | None = None,
    events: Recorded | None = None,
) -> None:
    """Fail unless this session was ended, and for this reason where one is given.

    ``session`` is what :func:`login_as` returned, a :class:`Session`, or an id; for the
    last two give ``sessions`` too. The row is asked; with ``events`` it is what was
    published that counts, also for tables that delete the row or keep no reason. An
    expired session is not a revoked one. Raises :class:`AssertionError`.
    """
    __tracebackhide__ = True
    session_id = _id_of(session)
    if events is not None:
        _judge_events(session_id, reason, events)
        return
    engine = _engine_of(session, sessions)
    _judge_row(
        session_id, reason, cross(engine, partial(engine.store.find_by_id, session_id))
    )


async def aassert_revoked(
    session: Session | Issued | str,
    *,
    reason: str | None = None,
    sessions: Sessions | None = None,
    events: Recorded | None = None,
) -> None:
    """The same for a test with await."""
    __tracebackhide__ = True
    session_id = _id_of(session)
    if events is not None:
        _judge_events(session_id, reason, events)
        return
    engine = _engine_of(session, sessions)
    _judge_row(
        session_id,
        reason,
        await across(engine, partial(engine.store.find_by_id, session_id)),
    )


def _id_of(session: Session | Issued | str) -> str:
    if isinstance(session, Issued):
        session = session.session
    return session if isinstance(session, str) else session.id


def _engine_of(session: object, sessions: Sessions | None) -> Sessions:
    if sessions is None and isinstance(session, SignedIn):
        return session.sessions
    if sessions is None:
        raise ConfigError("give sessions= or events=: this alone does not name its engine")
    return sessions


def _judge_events(session_id: str, reason: str | None, events: Recorded) -> None:
    __tracebackhide__ = True
    reasons = [e.reason for e in events.of(Revoked) if e.session_id == session_id]
    if not reasons:
        raise AssertionError(f"no event says that session {session_id} was revoked")
    if reason is not None and reason not in reasons:
        raise AssertionError(_other_reason(session_id, reasons[-1], reason))


def _judge_row(session_id: str, reason: str | None, row: Record | None) -> None:
    __tracebackhide__ = True
    if row is not None and row.is_active and row.revoked_at is None:
        raise AssertionError(f"session {session_id} is not revoked")
    if reason is None:
        return
    if row is None or row.revoked_reason is None:
        raise AssertionError(
            f"the table holds no reason for the end of session {session_id}: "
            "look at the events with events="
        )
    if row.revoked_reason != reason:
        raise AssertionError(_other_reason(session_id, row.revoked_reason, reason))


def _other_reason(session_id: str, found: str, expected: str) -> str:
    return f"session {session_id} was revoked for {found!r}, not for {expected!r}"
