"""One process of `revoke`: it knows every session, and says when one stops being good.

The parent says the number of a session; the witness answers ``WATCHING`` while it still
accepts it, and then with the moments at which it refused it for the first time and closed
its connection. Nobody polls in a busy loop: eight busy processes on a few cores would
measure how the system shares them out. The witness asks when a notice has been heard; for
one that is late or lost it asks every ``ASK_EVERY`` in any case. A refusal is ``hit()``
returning None, confirmed by a whole ``authenticate()``. The connection is what a WebSocket
registers: a closer that is called when the session is over. CLOCK_MONOTONIC is one clock
for all processes of a machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any

from benchmarks.database import SECRET
from benchmarks.hearing import PATIENCE, listening
from handstamp.config import Policy
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated, Client
from handstamp.engine.sessions import Sessions
from handstamp.stores.base import Notification

WATCHING = "watching"
ASK_EVERY = 0.005
AT_ONCE = 64
# Nothing may expire or be written meanwhile. `max_staleness` is what everybody gets.
POLICY = Policy(
    session_ttl=timedelta(days=2), grace=timedelta(hours=12), flush_every=timedelta(hours=6)
)


def work(pipe: Connection, dsn: str, tokens: Sequence[bytes]) -> None:
    """The whole life of a witness; it ends when the parent hangs up."""
    with suppress(EOFError, KeyboardInterrupt):
        asyncio.run(_work(pipe, dsn, tokens))


async def _work(pipe: Connection, dsn: str, tokens: Sequence[bytes]) -> None:
    async with Sessions(dsn, secret=SECRET, policy=POLICY) as sessions:
        witness = Witness(sessions, tokens)
        await listening(sessions)
        await witness.warm()
        pipe.send(WATCHING)
        while (number := await hear(pipe)) is not None:
            pipe.send(WATCHING)
            pipe.send(await witness.refusal(number))
        pipe.send(await witness.count_accepted())


async def hear(pipe: Connection) -> Any:
    """The next thing said at the other end; EOFError when nobody is there any more."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pipe.fileno(), readable.set)
    try:
        async with asyncio.timeout(PATIENCE):
            await readable.wait()
    finally:
        loop.remove_reader(pipe.fileno())
    return pipe.recv()


class Witness:
    """Asks one process's Sessions about sessions, by number."""

    def __init__(self, sessions: Sessions, tokens: Sequence[bytes]) -> None:
        self._sessions = sessions
        self._tokens = tokens
        self._accepted = 0

    async def warm(self) -> None:
        """Have every session in the cache."""
        if await self.count_accepted() != len(self._tokens):
            raise RuntimeError("a session was refused before it was revoked")
        if not all(map(self._sessions.hit, self._tokens)):
            raise RuntimeError("a session is not in the cache")

    async def refusal(self, number: int) -> tuple[float, float]:
        """When this session, accepted until now, was refused for the first time, and when
        its connection was closed."""
        token, loop = self._tokens[number], asyncio.get_running_loop()
        entry = self._sessions.hit(token)
        if entry is None:
            raise RuntimeError("a session left the cache before it was revoked")
        closed: asyncio.Future[float] = loop.create_future()
        closer = lambda: closed.set_result(monotonic())  # noqa: E731
        self._sessions.add_connection(entry.session, closer, self._sessions.ticket())
        refused = await self._first_refusal(token)
        async with asyncio.timeout(PATIENCE):
            closed_at = await closed
        self._accepted += await self._accepts(token)
        return refused, closed_at

    async def _first_refusal(self, token: bytes) -> float:
        with _told(self._sessions) as told:
            while self._sessions.hit(token) is not None:
                told.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(ASK_EVERY):
                        await told.wait()
            return monotonic()

    async def count_accepted(self) -> int:
        """How many of all sessions are accepted now, and were after their refusal."""
        queue = iter(self._tokens)

        async def ask() -> int:
            return sum([await self._accepts(token) for token in queue])

        found = await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
        return self._accepted + sum(found)

    async def _accepts(self, token: bytes) -> bool:
        credentials = Credentials(session=(token,), sent=True)
        answer = await self._sessions.authenticate(credentials, Client())
        return isinstance(answer, Authenticated)


@contextmanager
def _told(sessions: Sessions) -> Iterator[asyncio.Event]:
    """An event that is set whenever a notice has been worked off."""
    bus, told = sessions._listener, asyncio.Event()
    heard = bus._heard

    def tell(notice: Notification) -> None:
        heard(notice)
        told.set()

    bus._heard = tell
    try:
        yield told
    finally:
        bus._heard = heard
