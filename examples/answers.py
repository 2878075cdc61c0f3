"""What the examples answer in every framework alike."""

from __future__ import annotations

from asyncio import timeout

from handstamp import Session, Sessions, SessionsUnavailable

PATIENCE = 2.0
"""Seconds to wait for the database: whoever asks for health wants an answer."""


async def health(sessions: Sessions) -> dict[str, str]:
    """Whether the database answers now; there is no bus yet."""
    try:
        async with timeout(PATIENCE):
            await sessions.ping()
    except (SessionsUnavailable, TimeoutError):
        return {"status": "degraded", "database": "down", "bus": "off"}
    return {"status": "ok", "database": "ok", "bus": "off"}


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
