"""Recording activity: one UPDATE for each flush, compared with one for each request.

``handstamp`` is one cached request of each session, and one flush. ``updates`` is what
applications do without handstamp: one UPDATE for each request, as many at a time as the
pool has connections. ``single`` is the same, one after the other: what the UPDATE adds to a
request on an idle server. ``updates`` and ``single`` share sessions. The time in the
database comes from pg_stat_statements, where the server has it, without the commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from time import perf_counter
from typing import TYPE_CHECKING

import asyncpg

from benchmarks.database import (
    POOL_SIZE,
    SECRET,
    Seeded,
    connect_pool,
    database,
    seed,
)
from benchmarks.environment import environment, server_version
from benchmarks.report import Report, Row
from benchmarks.rounds import Options, ratio, turns
from handstamp.config import Policy
from handstamp.core.cookies import Credentials
from handstamp.core.models import Client
from handstamp.engine.sessions import Sessions

if TYPE_CHECKING:
    from benchmarks.database import Pool

ABOUT = "recording activity, microseconds for each session"
SIZES, FEW_SIZES = (1, 10, 100, 1_000, 10_000), (1, 10, 100)
ROUNDS = 7
WARM_UPS = 6
"""PostgreSQL decides on a plan at the sixth execution of a prepared statement."""
# Every request counts as activity, and only the benchmark flushes.
POLICY = Policy(
    session_ttl=timedelta(days=2),
    grace=timedelta(hours=12),
    flush_every=timedelta(hours=6),
    touch_every=timedelta(microseconds=1),
    max_staleness=timedelta(days=1),
    longest_trust=timedelta(days=1),
)
_UPDATE = "update user_sessions set last_activity_at = now() where id = $1"
_SPENT = """
    select coalesce(sum(calls), 0)::bigint, coalesce(sum(total_exec_time), 0)::float8
    from pg_stat_statements
    where dbid = (select oid from pg_database where datname = current_database())
    and query ilike '%update%last_activity_at%' and query not like '%pg_stat%'"""


class Meter:
    """How many statements recorded activity, and their milliseconds in the server."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.works = True

    async def open(self) -> None:
        """Find out whether this server has pg_stat_statements."""
        try:
            await self._pool.execute("create extension if not exists pg_stat_statements")
            await self._pool.execute(_SPENT)
        except asyncpg.PostgresError:
            self.works = False

    async def read(self) -> tuple[int, float]:
        """The totals so far: statements and milliseconds."""
        row = await self._pool.fetchrow(_SPENT) if self.works else None
        return (row[0], row[1]) if row is not None else (0, 0.0)


@dataclass(slots=True)
class Side:
    """One side, and its times: seconds a round, seconds in the database."""

    name: str
    record: Callable[[list[Seeded]], Awaitable[None]]
    sessions: list[Seeded]
    meter: Meter
    rounds: list[float] = field(default_factory=list)
    statements: int = 0
    database: float = 0.0

    async def take(self, size: int) -> None:
        """Record the activity of this many sessions."""
        calls, spent = await self.meter.read()
        start = perf_counter()
        await self.record(self.sessions[:size])
        self.rounds.append(perf_counter() - start)
        now_calls, now_spent = await self.meter.read()
        self.statements += now_calls - calls
        self.database += (now_spent - spent) / 1000

    def figures(self, size: int) -> Row:
        """The columns of this side."""
        activities, counts = size * len(self.rounds), self.meter.works
        return {
            f"{self.name}_statements": (
                self.statements / len(self.rounds) if counts else None
            ),
            f"{self.name}_wall_us": 1e6 * sum(self.rounds) / activities,
            f"{self.name}_database_us": (
                1e6 * self.database / activities if counts else None
            ),
        }


def run(options: Options) -> Report:
    """Measure both sides in turns, for every number of sessions."""
    with database() as dsn:
        return asyncio.run(_run(dsn, options))


async def _run(dsn: str, options: Options) -> Report:
    rounds, sizes = options.rounds or ROUNDS, FEW_SIZES if options.quick else SIZES
    sessions = Sessions(dsn, secret=SECRET, policy=POLICY, pool_size=POOL_SIZE)
    async with connect_pool(dsn) as pool, sessions:
        meter = Meter(pool)
        await meter.open()
        seeded = await seed(pool, 2 * sizes[-1], POLICY)
        ours, theirs = seeded[: sizes[-1]], seeded[sizes[-1] :]
        await _cache(sessions, ours)
        queries, flushes = sessions.store.queries, sessions.stats().flushes
        rows = []
        for size in sizes:
            sides = [
                Side("handstamp", _flush(sessions), ours, meter),
                Side("updates", _update_each(pool), theirs, meter),
                Side("single", _update_in_turn(pool), theirs, meter),
            ]
            await _take_turns(sides, pool, size, rounds)
            rows.append(_row(sides, size))
        facts = {
            "flushes": sessions.stats().flushes - flushes,
            "queries": sessions.store.queries - queries,
            "written": sessions.stats().written_touches,
        }
        version = await server_version(pool)
    return Report(
        benchmark="touch",
        about=ABOUT,
        environment=environment(version),
        settings={"rounds": rounds, "pool_size": POOL_SIZE},
        rows=rows,
        facts=facts,
    )


async def _cache(sessions: Sessions, seeded: list[Seeded]) -> None:
    """Read every session into the cache, and write its first use."""

    async def authenticate(session: Seeded) -> None:
        text = session.pair.session.encode()
        await sessions.authenticate(Credentials(session=(text,), sent=True), Client())

    await _in_parallel(authenticate, seeded)
    await sessions.flush()


async def _take_turns(sides: list[Side], pool: Pool, size: int, rounds: int) -> None:
    await pool.execute("vacuum analyze user_sessions")
    for side in sides * WARM_UPS:
        await side.record(side.sessions[:size])
    for turn in turns(sides, rounds):
        for side in turn:
            await side.take(size)


def _flush(sessions: Sessions) -> Callable[[list[Seeded]], Awaitable[None]]:
    async def record(seeded: list[Seeded]) -> None:
        for session in seeded:
            if sessions.hit(session.pair.session.encode()) is None:
                raise RuntimeError("a session left the cache")
        moved = await sessions.flush()
        if moved != len(seeded):
            raise RuntimeError(f"{moved} of {len(seeded)} rows were written")

    return record


def _update_each(pool: Pool) -> Callable[[list[Seeded]], Awaitable[None]]:
    async def update(session: Seeded) -> None:
        await pool.execute(_UPDATE, session.id)

    return lambda seeded: _in_parallel(update, seeded)


def _update_in_turn(pool: Pool) -> Callable[[list[Seeded]], Awaitable[None]]:
    async def record(seeded: list[Seeded]) -> None:
        for session in seeded:
            await pool.execute(_UPDATE, session.id)

    return record


async def _in_parallel(
    work: Callable[[Seeded], Awaitable[None]], seeded: Iterable[Seeded]
) -> None:
    """Run ``work`` for each session, as many at a time as the pool has connections."""
    queue = iter(seeded)

    async def worker() -> None:
        for session in queue:
            await work(session)

    async with asyncio.TaskGroup() as group:
        for _ in range(POOL_SIZE):
            group.create_task(worker())


def _row(sides: list[Side], size: int) -> Row:
    ours, theirs, single = sides
    has_figures = ours.meter.works and ours.database > 0
    return {
        "sessions": size,
        **ours.figures(size),
        **theirs.figures(size),
        "single_wall_us": single.figures(size)["single_wall_us"],
        "wall_ratio": ratio(theirs.rounds, ours.rounds),
        "single_ratio": ratio(single.rounds, ours.rounds),
        "database_ratio": theirs.database / ours.database if has_figures else None,
    }
