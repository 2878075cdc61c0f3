"""Misses: the batch loader, and the engine's whole answer, compared with a pool.

All sides send the same SELECT by digest. ``pool`` is ``pool.fetchrow`` as applications
write it: one query for each miss, and asyncpg's reset whenever a connection is released.
``lookup`` is the batch loader alone, from digests to records. ``handstamp`` is everything
from the cookie's bytes to an entry in the cache: signature, lookup, verdict. A ratio is the
number of misses per second of a side, divided by that of the pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import cycle, islice
from time import perf_counter
from typing import TYPE_CHECKING, cast

import asyncpg

from benchmarks.database import (
    POOL_SIZE,
    SECRET,
    Seeded,
    database,
    seed,
)
from benchmarks.environment import environment, server_version
from benchmarks.report import Report, Row
from benchmarks.rounds import Options, percentile, ratio, turns
from handstamp.config import Policy
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated, Client
from handstamp.engine.batching import BatchLoader
from handstamp.engine.sessions import Sessions
from handstamp.stores.table import TableStore

if TYPE_CHECKING:
    from benchmarks.database import Pool

ABOUT = "authenticating sessions that are not in the cache, beside pool.fetchrow"
CONCURRENCIES = (1, 8, 64, 512)
ROUNDS, MISSES, FEW_MISSES = 9, 2048, 512
CACHE_SIZE = 64
"""So small that each session has left the cache before it is requested again."""

# No flush of activity during the measurement: `touch` measures that.
POLICY = Policy(
    session_ttl=timedelta(days=2), grace=timedelta(hours=12), flush_every=timedelta(hours=6)
)
Ask = Callable[[Seeded], Awaitable[None]]


@dataclass(slots=True)
class Side:
    """One of the three sides, and its times: seconds a round, seconds a session.

    Each side cycles through the sessions by itself, so the next session is one that it
    has not asked for in a long time.
    """

    name: str
    ask: Ask
    supply: Iterator[Seeded]
    rounds: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    async def load(self, count: int, concurrency: int) -> None:
        """Ask for the next ``count`` sessions, so many at a time."""
        queue = iter(list(islice(self.supply, count)))
        start = perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(self._worker(queue))
        self.rounds.append(perf_counter() - start)

    async def _worker(self, queue: Iterator[Seeded]) -> None:
        for session in queue:
            start = perf_counter()
            await self.ask(session)
            self.latencies.append(perf_counter() - start)

    def figures(self, count: int) -> Row:
        """The columns of this side."""
        return {
            f"{self.name}_per_second": count * len(self.rounds) / sum(self.rounds),
            f"{self.name}_p50_ms": 1000 * percentile(self.latencies, 50),
            f"{self.name}_p99_ms": 1000 * percentile(self.latencies, 99),
        }


def run(options: Options) -> Report:
    """Measure every side in turns, at each concurrency."""
    with database() as dsn:
        return asyncio.run(_run(dsn, options))


async def _run(dsn: str, options: Options) -> Report:
    rounds = options.rounds or ROUNDS
    count = FEW_MISSES if options.quick else MISSES
    sessions = Sessions(
        dsn, secret=SECRET, policy=POLICY, cache_size=CACHE_SIZE, pool_size=POOL_SIZE
    )
    async with _pool(dsn) as pool, sessions:
        seeded = await seed(pool, 2 * count, POLICY)
        find = (await cast(TableStore, sessions.store).statements()).find
        asks = _asks(sessions, pool, find)
        supplies = [cycle(seeded) for _ in asks]
        await _warm(_sides(asks, supplies))
        rows = []
        for concurrency in CONCURRENCIES:
            sides = _sides(asks, supplies)
            sent = -sessions.store.queries
            await _take_turns(sides, concurrency, rounds, count)
            sent += sessions.store.queries
            rows.append(_row(sides, concurrency, count, sent / (2 * rounds * count)))
        stats, version = sessions.stats(), await server_version(pool)
    if stats.hits:
        raise RuntimeError(f"{stats.hits} sessions were in the cache")
    return Report(
        benchmark="miss",
        about=ABOUT,
        environment=environment(version),
        settings={"rounds": rounds, "misses_per_round": count, "pool_size": POOL_SIZE},
        rows=rows,
        facts={"hits": stats.hits, "misses": stats.misses, "queries": stats.queries},
    )


def _pool(dsn: str) -> Pool:
    """A pool as an application would make it."""
    return asyncpg.create_pool(dsn, min_size=POOL_SIZE, max_size=POOL_SIZE)


def _asks(sessions: Sessions, pool: Pool, find: str) -> dict[str, Ask]:
    return {
        "handstamp": _engine(sessions),
        "lookup": _loader(sessions),
        "pool": _query(pool, find),
    }


def _sides(asks: dict[str, Ask], supplies: Sequence[Iterator[Seeded]]) -> list[Side]:
    pairs = zip(asks.items(), supplies, strict=True)
    return [Side(name, ask, supply) for (name, ask), supply in pairs]


async def _warm(sides: list[Side]) -> None:
    """Open every connection and prepare the statement on it, uncounted."""
    for side in sides:
        await side.load(20 * POOL_SIZE, POOL_SIZE)


async def _take_turns(sides: list[Side], concurrency: int, rounds: int, count: int) -> None:
    for turn in turns(sides, rounds):
        for side in turn:
            await side.load(count, concurrency)


def _row(sides: list[Side], concurrency: int, count: int, sent: float) -> Row:
    ours, lookup, pool = sides
    return {
        "concurrency": concurrency,
        **ours.figures(count),
        **lookup.figures(count),
        **pool.figures(count),
        "handstamp_ratio": ratio(pool.rounds, ours.rounds),
        "lookup_ratio": ratio(pool.rounds, lookup.rounds),
        "queries_per_miss": sent,
    }


def _engine(sessions: Sessions) -> Ask:
    client = Client()

    async def ask(session: Seeded) -> None:
        credentials = Credentials(session=(session.pair.session.encode(),), sent=True)
        answer = await sessions.authenticate(credentials, client)
        if not isinstance(answer, Authenticated) or answer.session.id != session.id:
            raise RuntimeError(f"not authenticated: {answer!r}")

    return ask


def _loader(sessions: Sessions) -> Ask:
    lookup = BatchLoader(sessions.store)

    async def ask(session: Seeded) -> None:
        (record,) = await lookup.load([session.pair.session_digest])
        if record.id != session.id:
            raise RuntimeError("the lookup found another row")

    return ask


def _query(pool: Pool, sql: str) -> Ask:

    async def ask(session: Seeded) -> None:
        row = await pool.fetchrow(sql, [session.pair.session_digest])
        if row is None or row["id"] != session.id:
            raise RuntimeError("the query found another row, or none")

    return ask
