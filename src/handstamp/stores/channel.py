"""LISTEN and NOTIFY: how one process tells the others what is over.

A payload is a kind and an id, far below PostgreSQL's limit of 8000 bytes, and nothing
else: whoever listens learns ids and no secret. Whoever speaks can make caches forget, and
nothing worse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

CHANNEL = "handstamp"


@dataclass(frozen=True, slots=True)
class Notice:
    """What is over: one session, a user's sessions, or anything (both None).

    With ``doubt`` the session is not over: what is known of it has changed.
    """

    session_id: str | None = None
    user_id: str | None = None
    doubt: bool = False


def read_notice(payload: str) -> Notice | None:
    """The notice in a payload; None for a canary.

    Anything malformed is "anything": forgetting too much is the harmless mistake.
    """
    kind, _, value = payload.partition(":")
    if kind == "s" and value:
        return Notice(session_id=value)
    if kind == "d" and value:
        return Notice(session_id=value, doubt=True)
    if kind == "u" and value:
        return Notice(user_id=value)
    if kind == "c":
        return None
    return Notice()


class Link(Protocol):
    """One listening connection. Faults are :class:`SessionsUnavailable`."""

    async def prove(self) -> None:
        """A round trip: what was committed before it began is delivered when it ends."""
        ...

    async def covers_foreign_writers(self) -> bool:
        """Whether a trigger makes every writer notify."""
        ...

    def drop(self) -> None:
        """Let go at once, without a word to a server that may not answer."""
        ...


class Channel(Protocol):
    """Where notices come from, and where they are said."""

    async def listen(self, heard: Callable[[str], None], lost: Callable[[], None]) -> Link:
        """Listen from now on: ``heard`` gets every payload, ``lost`` is called once."""
        ...

    async def speak(self, payload: str) -> None:
        """Say something by the same way on which revocations are said."""
        ...
