"""What `Policy.longest_trust` costs: how often a cached session is read again.

Counted on a clock that the benchmark moves, so it takes no time and gives the same figures
on every machine. Each session makes one request a second, notifications are trusted all
the time, and misses of the same moment share a query.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from benchmarks.database import SECRET
from handstamp.core.cookies import Credentials
from handstamp.core.models import Client
from handstamp.engine.sessions import Sessions
from handstamp.stores.memory import MemoryStore

SESSIONS, MINUTES = 300, 10


class _Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)


async def count_reads(*, quick: bool) -> dict[str, float | int]:
    """Reads and queries of sessions in use, under the default policy."""
    clock = _Clock()
    sessions = Sessions(MemoryStore(clock.now), secret=SECRET, clock=clock)
    number = SESSIONS // 3 if quick else SESSIONS
    async with sessions:
        tokens = [await _new_token(sessions, f"user{n}") for n in range(number)]
        await sessions._listener.stop()
        sessions._listener.trusted_until = float("inf")
        loader = sessions._authenticator._loader
        reads, queries = sessions.stats().misses, loader.batches
        for _ in range(60 * MINUTES):
            clock.seconds += 1
            missed = [token for token in tokens if sessions.hit(token) is None]
            await asyncio.gather(*(_authenticate(sessions, token) for token in missed))
        reads = sessions.stats().misses - reads
        queries = loader.batches - queries
    return {
        "reads_again_per_session_and_minute": reads / number / MINUTES,
        "reads_again_per_query": reads / queries,
    }


async def _new_token(sessions: Sessions, user: str) -> bytes:
    issued = await sessions.create(user, remember=True)
    return issued.session_token.encode()


async def _authenticate(sessions: Sessions, token: bytes) -> None:
    credentials = Credentials(session=(token,), sent=True, ambient=True)
    await sessions.authenticate(credentials, Client())
