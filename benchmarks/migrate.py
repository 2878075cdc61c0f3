"""`handstamp migrate-tokens` under load: a table full of plaintext tokens.

The command runs in a process of its own, as in production. Meanwhile this process
authenticates random sessions of the table, far more than its cache holds, and writes their
activity; every request must be answered with the right session. ``before`` is the same load
without the command, for comparison.
"""

from __future__ import annotations

import asyncio
import random
import sys
import uuid
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import timedelta
from time import perf_counter

import asyncpg

from benchmarks.database import POOL_SIZE, SECRET, database
from benchmarks.environment import environment
from benchmarks.report import Report, Row
from benchmarks.rounds import Options, percentile
from handstamp.config import Policy
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated, Client
from handstamp.engine.sessions import Sessions
from handstamp.stores.shapes import UUID_PLAIN

ABOUT = "hashing every token of a table while requests are answered from it"
ROWS, FEW_ROWS = 1_000_000, 20_000
WORKERS = 8
BEFORE = 5.0
CACHE_SIZE = 512
POLICY = Policy(
    touch_every=timedelta(seconds=1),
    flush_every=timedelta(seconds=1),
    grace=timedelta(seconds=30),
)
_SEED = """
    insert into user_sessions (id, user_id, session_token, expires_at)
    select lpad(to_hex(n), 32, '0')::uuid, gen_random_uuid(),
        'a plaintext token, number ' || n, now() + interval '1 day'
    from generate_series(1, $1::int) as n"""
_LEFT = "select count(*) from user_sessions where session_token not like 'sha256:%'"


@dataclass(slots=True)
class Load:
    """Requests one after the other in each of the workers, until ``stopped``."""

    sessions: Sessions
    rows: int
    latencies: list[float] = field(default_factory=list)
    failed: int = 0
    stopped: bool = False

    async def run(self) -> None:
        """Send requests until stopped."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while not self.stopped:
            start = perf_counter()
            self.failed += not await self._ask(random.randint(1, self.rows))
            self.latencies.append(perf_counter() - start)

    async def _ask(self, number: int) -> bool:
        token = f"a plaintext token, number {number}".encode()
        credentials = Credentials(session=(token,), sent=True)
        answer = await self.sessions.authenticate(credentials, Client())
        right = str(uuid.UUID(int=number))
        return isinstance(answer, Authenticated) and answer.session.id == right

    def figures(self, name: str, seconds: float) -> Row:
        """One row of the table."""
        return {
            "load": name,
            "requests": len(self.latencies),
            "failed": self.failed,
            "per_second": len(self.latencies) / seconds,
            "p50_ms": 1000 * percentile(self.latencies, 50),
            "p99_ms": 1000 * percentile(self.latencies, 99),
            "worst_ms": 1000 * max(self.latencies),
        }


def run(options: Options) -> Report:
    """Fill a table, load it, and migrate it under the load."""
    with database(shape="uuid") as dsn:
        return asyncio.run(_run(dsn, FEW_ROWS if options.quick else ROWS))


async def _run(dsn: str, count: int) -> Report:
    connection = await asyncpg.connect(dsn)
    await connection.execute(_SEED, count, timeout=1200)
    await connection.execute("vacuum analyze user_sessions", timeout=1200)
    rows = []
    async with Sessions(
        dsn,
        secret=SECRET,
        shape=UUID_PLAIN,
        policy=POLICY,
        cache_size=CACHE_SIZE,
        pool_size=POOL_SIZE,
    ) as sessions:
        rows.append(await _under_load(sessions, count, "before", asyncio.sleep(BEFORE)))
        start = perf_counter()
        rows.append(await _under_load(sessions, count, "migrating", _migrate(dsn)))
        seconds = perf_counter() - start
        stats = sessions.stats()
    left = int(await connection.fetchval(_LEFT))
    version = str(await connection.fetchval("show server_version"))
    await connection.close()
    facts = {
        "rows": count,
        "seconds": seconds,
        "rows_per_second": count / seconds,
        "left_in_plaintext": left,
        "touches_written": stats.written_touches,
        "cache_hits": stats.hits,
    }
    return Report(
        benchmark="migrate",
        about=ABOUT,
        environment=environment(version),
        settings={"workers": WORKERS, "cache_size": CACHE_SIZE, "pool_size": POOL_SIZE},
        rows=rows,
        facts=facts,
    )


async def _under_load(
    sessions: Sessions, count: int, name: str, work: Awaitable[None]
) -> Row:
    load, start = Load(sessions, count), perf_counter()
    running = asyncio.create_task(load.run())
    try:
        await work
    finally:
        load.stopped = True
        await running
    return load.figures(name, perf_counter() - start)


async def _migrate(dsn: str) -> None:
    command = (
        "-m",
        "handstamp",
        "migrate-tokens",
        "--dsn",
        dsn,
        "--form",
        "other",
        "--apply",
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=sys.stderr
    )
    if await process.wait():
        raise RuntimeError("migrate-tokens failed")
