"""LISTEN and NOTIFY: how one process tells the others what is over.

A payload is a kind and an id, far below PostgreSQL's limit of 8000 bytes, and nothing
else: whoever listens learns ids and no secret. Anybody who may connect to the database
may send one, so a notice proves nothing: it says what to read again.

=========== ===============================================
``s:<id>``  the session with this id is over
``d:<id>``  it is not over, and what is known of it changed
``u:<id>``  sessions of the user with this id are over
``all``     anything may be over
``c:<text>`` a canary: nothing is over
=========== ===============================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from handstamp.core.ids import LONGEST_ID

CHANNEL = "handstamp"


@dataclass(frozen=True, slots=True)
class Notice:
    """What to read again: one session, a user's sessions, or everything (both None).

    ``understood`` is False where the payload is none of ours.
    """

    session_id: str | None = None
    user_id: str | None = None
    understood: bool = True


@dataclass(frozen=True, slots=True)
class Canary:
    """A payload that is said to see whether it is heard."""

    nonce: str

    @property
    def payload(self) -> str:
        """The text to say."""
        return f"c:{self.nonce}"


EVERYTHING = Notice()
UNKNOWN = Notice(understood=False)


def read_payload(payload: str) -> Notice | Canary:
    """What a payload says.

    Anything malformed is "everything": to read too much again is the harmless mistake, and
    a newer version may have a word that this one does not know. What is kept of a notice
    is bounded, as ids are.
    """
    kind, _, value = payload.partition(":")
    if kind == "c":
        return Canary(value)
    if 0 < len(value) <= LONGEST_ID:
        if kind in ("s", "d"):
            return Notice(session_id=value)
        if kind == "u":
            return Notice(user_id=value)
    return EVERYTHING if payload == "all" else UNKNOWN


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
