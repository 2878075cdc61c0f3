"""The time from a revocation to its refusal in several other processes.

Every process has every session in its cache. The parent ends one session at a time, in
turns by ``Sessions.revoke`` and by a plain UPDATE without handstamp, and continues when
every process has refused it. The time starts when the call has returned. Each process
reports when it refused for the first time (:mod:`benchmarks.revocation_watcher`); one that
was faster than the answer to the parent counts as zero. ``call`` counts from before the
call, so it includes the commit and its disk. ``all`` is over every revocation in every
process, ``slowest`` over the last process of each revocation, ``closed`` over every
connection of a session that ended. At the end every process checks every session once
more, and counts those that are accepted after a refusal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import monotonic

import asyncpg

from benchmarks.database import SECRET, Seeded, connect_pool, database, seed
from benchmarks.environment import environment, server_version
from benchmarks.listener import wait_until_listening
from benchmarks.report import Report, Row
from benchmarks.revocation_watcher import POLICY, WATCHING, receive, run_worker
from benchmarks.rounds import Options, percentile, turns
from handstamp.engine.sessions import Sessions

ABOUT = "from a revocation to its refusal in other processes, in milliseconds"
ROUNDS, FEW_ROUNDS = 500, 10
PROCESSES = 8
_UPDATE = "update user_sessions set is_active = false where id = $1"


@dataclass(slots=True)
class Way:
    """One way to end a session, and how long each process took to refuse it."""

    name: str
    end: Callable[[str], Awaitable[object]]
    since_commit: list[list[float]] = field(default_factory=list)
    until_closed: list[float] = field(default_factory=list)
    since_call: list[float] = field(default_factory=list)

    async def take(self, number: int, session: Seeded, pipes: Sequence[Connection]) -> None:
        """End one session, which every process watches."""
        await _watch(pipes, number)
        called = monotonic()
        await self.end(session.id)
        returned = monotonic()
        answers = [await receive(pipe) for pipe in pipes]
        refused = [at for at, _ in answers]
        self.since_commit.append([max(0.0, 1000 * (at - returned)) for at in refused])
        self.until_closed += [max(0.0, 1000 * (at - returned)) for _, at in answers]
        self.since_call.append(1000 * (max(refused) - called))

    def figures(self) -> Row:
        """The row of this way."""
        everyone = [delay for delays in self.since_commit for delay in delays]
        slowest = [max(delays) for delays in self.since_commit]
        return {
            "way": self.name,
            "revocations": len(slowest),
            **_spread("all", everyone),
            **_spread("slowest", slowest),
            **_spread("closed", self.until_closed),
            "call_p99_ms": percentile(self.since_call, 99),
        }


def _spread(name: str, values: Sequence[float]) -> Row:
    return {
        f"{name}_p50_ms": percentile(values, 50),
        f"{name}_p99_ms": percentile(values, 99),
        f"{name}_max_ms": max(values),
    }


def run(options: Options) -> Report:
    """Measure both ways in turns."""
    with database(trigger=True) as dsn:
        return asyncio.run(_run(dsn, options))


async def _run(dsn: str, options: Options) -> Report:
    rounds = options.rounds or (FEW_ROUNDS if options.quick else ROUNDS)
    processes = options.processes or PROCESSES
    async with connect_pool(dsn) as pool, Sessions(dsn, secret=SECRET) as sessions:
        seeded = await seed(pool, 2 * rounds, POLICY)
        await wait_until_listening(sessions)
        with _workers(dsn, seeded, processes) as pipes:
            _check([await receive(pipe) for pipe in pipes])
            ways = _ways(sessions, pool)
            await _take_turns(ways, seeded, pipes, rounds)
            for pipe in pipes:
                pipe.send(None)
            accepted = sum([await receive(pipe) for pipe in pipes])
        version = await server_version(pool)
    return Report(
        benchmark="revoke",
        about=ABOUT,
        environment=environment(version),
        settings={"rounds": rounds, "processes": processes},
        rows=[way.figures() for way in ways],
        facts={"revocations": 2 * rounds, "accepted_after_a_refusal": accepted},
    )


def _ways(sessions: Sessions, pool: asyncpg.Pool[asyncpg.Record]) -> list[Way]:
    async def by_sql(session_id: str) -> None:
        await pool.execute(_UPDATE, session_id)

    return [Way("Sessions.revoke", sessions.revoke), Way("plain SQL", by_sql)]


async def _take_turns(
    ways: list[Way], seeded: list[Seeded], pipes: Sequence[Connection], rounds: int
) -> None:
    queue = iter(enumerate(seeded))
    for turn in turns(ways, rounds):
        for way in turn:
            await way.take(*next(queue), pipes)


async def _watch(pipes: Sequence[Connection], number: int) -> None:
    for pipe in pipes:
        pipe.send(number)
    _check([await receive(pipe) for pipe in pipes])


def _check(answers: list[object]) -> None:
    if any(answer != WATCHING for answer in answers):
        raise RuntimeError("a process does not watch the session")


@contextmanager
def _workers(dsn: str, seeded: list[Seeded], count: int) -> Iterator[list[Connection]]:
    """Start ``count`` processes that have every token; they end with the block."""
    context = get_context("spawn")
    tokens = [session.pair.session.encode() for session in seeded]
    pairs = [context.Pipe() for _ in range(count)]
    workers = [
        context.Process(target=run_worker, args=(theirs, dsn, tokens), daemon=True)
        for _, theirs in pairs
    ]
    for worker, (_, theirs) in zip(workers, pairs, strict=True):
        worker.start()
        theirs.close()
    pipes = [ours for ours, _ in pairs]
    try:
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for worker in workers:
            worker.join(10)
