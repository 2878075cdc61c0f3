"""What the examples answer in every framework alike."""

from __future__ import annotations

from asyncio import timeout
from datetime import timedelta

from handstamp import Session, Sessions, SessionsUnavailable

PATIENCE = 2.0
"""Seconds to wait for the database: whoever asks for health wants an answer."""


async def health(sessions: Sessions) -> dict[str, str]:
    """Whether the database answers now, what the bus does, and how late a revocation by
    somebody else may be noticed here: "pushed", or after so many seconds."""
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
        async with timeout(PATIENCE):
            await sessions.ping()
    except (SessionsUnavailable, TimeoutError):
        return "down"
    return "ok"


def _seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():g} s"


def summary(session: Session) -> dict[str, object]:
    """One line of "your sessions", as JSON knows it."""
    seen = session.last_activity_at
    return {
        "id": session.id,
        "created_at": session.created_at.isoformat(),
        "last_activity_at": seen and seen.isoformat(),
        "address": session.address,
        "current": session.current,
    }
