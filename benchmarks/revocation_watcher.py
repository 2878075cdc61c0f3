"""One process of the benchmark `revoke`: it reports when it refuses a revoked session.

The parent sends the number of a session. The worker answers ``WATCHING`` while it still
accepts that session, and later two moments: when it refused the session for the first
time, and when it closed the session's connection. It does not poll in a busy loop: eight
busy processes on a few cores would measure how the system schedules them. It checks after
each notification, and every ``CHECK_EVERY`` seconds in case one is late or lost. A refusal
is ``hit()`` returning None, confirmed by a complete ``authenticate()``. The connection is
what a WebSocket registers: a function that is called when the session ends.
CLOCK_MONOTONIC is one clock for all processes of a machine.
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
from benchmarks.listener import TIMEOUT, wait_until_listening
from handstamp.config import Policy
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated, Client
from handstamp.engine.sessions import Sessions
from handstamp.stores.base import Notification

WATCHING = "watching"
CHECK_EVERY = 0.005
CONCURRENCY = 64
# Nothing may expire or be written during a run. `max_staleness` is the default.
POLICY = Policy(
    session_ttl=timedelta(days=2), grace=timedelta(hours=12), flush_every=timedelta(hours=6)
)


def run_worker(pipe: Connection, dsn: str, tokens: Sequence[bytes]) -> None:
    """Run the worker until the parent closes the pipe or sends None."""
    with suppress(EOFError, KeyboardInterrupt):
        asyncio.run(_run_worker(pipe, dsn, tokens))


async def _run_worker(pipe: Connection, dsn: str, tokens: Sequence[bytes]) -> None:
    async with Sessions(dsn, secret=SECRET, policy=POLICY) as sessions:
        watcher = RevocationWatcher(sessions, tokens)
        await wait_until_listening(sessions)
        await watcher.fill_cache()
        pipe.send(WATCHING)
        while (number := await receive(pipe)) is not None:
            pipe.send(WATCHING)
            pipe.send(await watcher.wait_for_refusal(number))
        pipe.send(await watcher.count_accepted())


async def receive(pipe: Connection) -> Any:
    """The next object from the other end. Raises EOFError when that is closed."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pipe.fileno(), readable.set)
    try:
        async with asyncio.timeout(TIMEOUT):
            await readable.wait()
    finally:
        loop.remove_reader(pipe.fileno())
    return pipe.recv()


class RevocationWatcher:
    """Authenticates sessions, which have numbers, by the engine of this process."""

    def __init__(self, sessions: Sessions, tokens: Sequence[bytes]) -> None:
        self._sessions = sessions
        self._tokens = tokens
        self._accepted = 0

    async def fill_cache(self) -> None:
        """Read every session into the cache. Raises RuntimeError if one is refused."""
        if await self.count_accepted() != len(self._tokens):
            raise RuntimeError("a session was refused before it was revoked")
        if not all(map(self._sessions.hit, self._tokens)):
            raise RuntimeError("a session is not in the cache")

    async def wait_for_refusal(self, number: int) -> tuple[float, float]:
        """When this session was refused for the first time, and when its connection was
        closed. Raises RuntimeError if it is not in the cache at first."""
        token, loop = self._tokens[number], asyncio.get_running_loop()
        entry = self._sessions.hit(token)
        if entry is None:
            raise RuntimeError("a session left the cache before it was revoked")
        closed: asyncio.Future[float] = loop.create_future()
        closer = lambda: closed.set_result(monotonic())  # noqa: E731
        self._sessions.add_connection(entry.session, closer, self._sessions.ticket())
        refused_at = await self._first_refusal(token)
        async with asyncio.timeout(TIMEOUT):
            closed_at = await closed
        self._accepted += await self._accepts(token)
        return refused_at, closed_at

    async def _first_refusal(self, token: bytes) -> float:
        with _notifications(self._sessions) as notified:
            while self._sessions.hit(token) is not None:
                notified.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_EVERY):
                        await notified.wait()
            return monotonic()

    async def count_accepted(self) -> int:
        """How many sessions are accepted now, plus those accepted after their refusal."""
        queue = iter(self._tokens)

        async def check() -> int:
            return sum([await self._accepts(token) for token in queue])

        found = await asyncio.gather(*(check() for _ in range(CONCURRENCY)))
        return self._accepted + sum(found)

    async def _accepts(self, token: bytes) -> bool:
        credentials = Credentials(session=(token,), sent=True)
        answer = await self._sessions.authenticate(credentials, Client())
        return isinstance(answer, Authenticated)


@contextmanager
def _notifications(sessions: Sessions) -> Iterator[asyncio.Event]:
    """An event that is set after each notification that the engine has handled."""
    listener, notified = sessions._listener, asyncio.Event()
    handle = listener._on_notification

    def handle_and_set(notification: Notification) -> None:
        handle(notification)
        notified.set()

    listener._on_notification = handle_and_set
    try:
        yield notified
    finally:
        listener._on_notification = handle
