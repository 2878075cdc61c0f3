"""Response bodies that are the same in the examples of all frameworks."""

from __future__ import annotations

from asyncio import timeout
from datetime import timedelta

from handstamp import Session, Sessions, SessionsUnavailable

TIMEOUT = 2.0
"""Seconds that a health check waits for the database."""


async def health(sessions: Sessions) -> dict[str, str]:
    """Returns whether the database answers, the state of the listener (``bus``), and how
    late a revocation by another writer may be noticed here (``bound``): "pushed", or a
    number of seconds."""
    database = await _database(sessions)
    stats = sessions.stats()
    pushed = stats.listener == "listening" and stats.all_writers_notify
    return {
        "status": "ok" if database == "ok" else "degraded",
        "database": database,
        "bus": stats.listener,
        "bound": "pushed" if pushed else _seconds(sessions.policy.max_staleness),
    }


async def _database(sessions: Sessions) -> str:
    try:
        async with timeout(TIMEOUT):
            await sessions.ping()
    except (SessionsUnavailable, TimeoutError):
        return "down"
    return "ok"


def _seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():g} s"


def summary(session: Session) -> dict[str, object]:
    """Returns one entry of "your sessions", for JSON."""
    seen = session.last_activity_at
    return {
        "id": session.id,
        "created_at": session.created_at.isoformat(),
        "last_activity_at": seen and seen.isoformat(),
        "address": session.address,
        "current": session.current,
    }
