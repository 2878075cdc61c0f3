"""Engines on a store in memory, with one clock for both and their events in a list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from handstamp.config import Policy
from handstamp.core.cookies import Credentials
from handstamp.core.models import Answer, Authenticated, Client, Issued, Record, Session
from handstamp.engine.sessions import Sessions
from handstamp.events import Event
from handstamp.stores.memory import MemoryStore
from tests.support.clock import FakeClock
from tests.support.waiting import PATIENCE

SECRET = "the secret of the tests: at least 32 bytes"
ALICE = "alice"
LAPTOP = Client(address="198.51.100.7", user_agent="Laptop", user_agent_hash="1" * 64)
PHONE = Client(address="203.0.113.9", user_agent="Phone", user_agent_hash="2" * 64)

E = TypeVar("E", bound=Event)


class Engine:
    """The engine of one process: ``sessions`` on ``store``, and the events it published.

    Another engine with the same ``clock`` and ``store`` stands for another process.
    """

    def __init__(
        self,
        *,
        policy: Policy | None = None,
        clock: FakeClock | None = None,
        store: MemoryStore | None = None,
        **options: Any,
    ) -> None:
        self.clock = clock or FakeClock()
        self.store = store or MemoryStore(self.clock.now)
        if not {"secret", "secrets"} & set(options):
            options["secret"] = SECRET
        self.sessions = Sessions(self.store, policy=policy, clock=self.clock, **options)
        self.events: list[Event] = []
        self.sessions.on(Event, self.events.append)

    @property
    def policy(self) -> Policy:
        return self.sessions.policy

    def of(self, kind: type[E]) -> list[E]:
        """The published events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def row(self, session_id: str) -> Record:
        """The row of this session in the table."""
        return self.store.rows[session_id]

    async def login(self, user: str = ALICE, **options: Any) -> Issued:
        """Create a session; by default from the laptop, with ``remember``."""
        options = {"client": LAPTOP, "remember": True, **options}
        return await self.sessions.create(user, **options)

    async def ask(
        self,
        *issued: Issued,
        client: Client = LAPTOP,
        passive: bool = False,
        session: bool = True,
        refresh: bool = True,
    ) -> Answer:
        """Authenticate a request with the cookies of these sessions."""
        credentials = credentials_of(
            [i.session_token for i in issued] if session else (),
            [i.refresh_token for i in issued] if refresh else (),
        )
        return await self.sessions.authenticate(credentials, client, passive=passive)

    async def expire(self) -> None:
        """Move the clock so that every session token has expired, and no refresh token."""
        self.clock.advance(self.policy.session_ttl)

    async def refreshed(self, issued: Issued, client: Client = LAPTOP) -> Issued:
        """The new tokens of a request that presents the refresh token only."""
        return new_tokens(await self.ask(issued, session=False, client=client))


def credentials_of(session: Iterable[str] = (), refresh: Iterable[str] = ()) -> Credentials:
    """The credentials of a request with these cookies."""
    return Credentials(
        session=tuple(text.encode() for text in session),
        refresh=tuple(text.encode() for text in refresh),
        sent=True,
        ambient=True,
    )


def session_of(answer: Answer) -> Session:
    """The session of an answer, which must have one."""
    assert isinstance(answer, Authenticated), answer
    return answer.session


def new_tokens(answer: Answer) -> Issued:
    """The new tokens of an answer, which must have some."""
    assert isinstance(answer, Authenticated), answer
    assert answer.issued is not None
    return answer.issued


def same_tokens(one: Issued, other: Issued) -> bool:
    """Whether two answers carry the same pair."""
    return (one.session_token, one.refresh_token) == (
        other.session_token,
        other.refresh_token,
    )


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Engine]:
    """An open engine, closed at the end."""
    engine = Engine(**options)
    async with engine.sessions:
        await listening(engine)
        yield engine


async def listening(engine: Engine) -> None:
    """Return when notifications are known to be delivered, or at once in an outage."""
    while not engine.store.down and engine.sessions.stats().listener != "listening":  # noqa: ASYNC110
        await asyncio.sleep(0)


async def invalidated(engine: Engine) -> None:
    """Return when the invalidator has handled every notification so far."""
    session = (await engine.login()).session
    marker, gone = replace(session, id="without a row"), asyncio.Event()
    engine.sessions.connections.add(marker, gone.set)
    engine.sessions._invalidator.check_soon(marker.id)
    async with asyncio.timeout(PATIENCE):
        await gone.wait()


def seconds(number: float) -> timedelta:
    """A duration of so many seconds."""
    return timedelta(seconds=number)
