"""Races between real processes for one row of a real PostgreSQL.

The processes share nothing but the database and the secret. Each waits until it has
connected everything it needs, reports that, and starts at the parent's signal: all at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from handstamp import Sessions
from handstamp.core.cookies import Credentials
from handstamp.core.models import (
    Authenticated,
    Client,
    Invalid,
    Issued,
    Reason,
    Record,
    Rotation,
)
from handstamp.events import Replayed
from handstamp.stores.table import TableStore

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(1800)]

PROCESSES = 4
REQUESTS = 16
ROUNDS = 25
USER = "01JGQ0000000000000000ALICE"
SECRET = secrets.token_urlsafe(48)
RACER = Path(__file__).with_name("racer.py")
LONG_AGO = timedelta(hours=1)
ELSEWHERE = Client(address="203.0.113.9")

# Counts every rotation that was written, one that changed nothing too.
AUDIT = """
create table audit (session char(26), digest char(64));
create function audit() returns trigger language plpgsql as $$
begin insert into audit values (new.id, new.refresh_token_hash); return null; end $$;
create trigger audit after update of refresh_token_hash on user_sessions
for each row execute function audit();
"""
AGE = """
update user_sessions set created_at = created_at - $1::interval,
expires_at = expires_at - $1::interval, last_activity_at = last_activity_at - $1::interval
"""


class Racer:
    """A process of its own with a `Sessions` of its own."""

    def __init__(self, dsn: str) -> None:
        environ = {**os.environ, "RACER_DSN": dsn, "RACER_SECRET": SECRET}
        self._process = subprocess.Popen(
            [sys.executable, str(RACER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
            text=True,
        )

    def tell(self, **order: Any) -> None:
        """Hand over an order; it is carried out at :meth:`go`."""
        self._write(json.dumps(order))

    def go(self) -> None:
        """Now."""
        self._write("go")

    def answer(self) -> Any:
        """What the last order ended in; what it says when it is ready."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"a racer died with {self._process.wait(10)}"
        return json.loads(line)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def racers(dsn: str, count: int = PROCESSES) -> Iterator[list[Racer]]:
    """Processes that are connected and ready."""
    with ExitStack() as stack:
        started = [Racer(dsn) for _ in range(count)]
        for racer in started:
            stack.callback(racer.kill)
        for racer in started:
            assert racer.answer() == "ready"
        yield started


def race(orders: list[tuple[Racer, dict[str, Any]]]) -> list[Any]:
    """Give every racer its order, start them at once, and wait for all answers."""
    for racer, order in orders:
        racer.tell(**order)
    for racer, _ in orders:
        assert racer.answer() == "set"
    for racer, _ in orders:
        racer.go()
    return [racer.answer() for racer, _ in orders]


@asynccontextmanager
async def engine(dsn: str) -> Any:
    """The test's own process, and a connection for its own SQL."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(AUDIT)
        await connection.execute(
            "insert into users (id, username, password_hash) values ($1, 'alice', '')",
            USER,
        )
        async with Sessions(dsn, secret=SECRET) as sessions:
            yield sessions, connection
    finally:
        await connection.close()


async def expired(sessions: Sessions, connection: asyncpg.Connection) -> Issued:
    """A session whose session token has expired, by moving its row back in time."""
    issued = await sessions.create(USER, remember=True)
    await age(connection)
    return issued


async def age(connection: asyncpg.Connection, by: timedelta = LONG_AGO) -> None:
    """Move every row back in time."""
    await connection.execute(AGE, by)


def tokens(issued: Issued) -> dict[str, str]:
    """The pair as an order carries it."""
    return {"session": issued.session_token, "refresh": issued.refresh_token}


async def in_thread(orders: list[tuple[Racer, dict[str, Any]]]) -> list[Any]:
    """Race without holding up this process's own event loop."""
    return await asyncio.to_thread(race, orders)


async def refused(sessions: Sessions, *texts: str) -> bool:
    """Whether none of these tokens, in either cookie, opens anything."""
    for text in texts:
        value = (text.encode(),)
        for claim in (Credentials(session=value), Credentials(refresh=value)):
            answer = await sessions.authenticate(claim, ELSEWHERE)
            if not isinstance(answer, Invalid):
                return False
    return True


def _texts(answers: list[Any]) -> set[str]:
    return {
        text
        for answer in answers
        for outcome in (answer if isinstance(answer, list) else [answer])
        if outcome
        for text in outcome.get("pair") or ()
    }


async def test_c75_four_processes_refresh_at_once_and_one_rotation_happens(
    dsn: str,
) -> None:
    """C-75, C-83, C-89: of 4 processes with 16 requests each, all are authenticated, all
    get the one successor, one UPDATE changes the row, and everyone goes on with it."""
    async with engine(dsn) as (sessions, connection):
        with racers(dsn) as processes:
            for _ in range(ROUNDS):
                await _one_round(sessions, connection, processes)


async def _one_round(
    sessions: Sessions, connection: asyncpg.Connection, processes: list[Racer]
) -> None:
    issued = await expired(sessions, connection)
    first = await _all_ask(processes, tokens(issued))
    assert len(first) == 1, f"{len(first)} different successors"
    session, refresh = pair = next(iter(first))
    assert await _audited(connection, issued) == [_sha256(refresh)]
    onward = await _all_ask(processes, {"session": session, "refresh": refresh})
    assert onward == {()}, "the successor did not simply work"
    await age(connection)
    second = await _all_ask(processes, {"refresh": refresh})
    assert len(second) == 1, f"{len(second)} different second successors"
    assert second != {pair}
    assert len(await _audited(connection, issued)) == 2


async def _all_ask(processes: list[Racer], pair: dict[str, str]) -> set[tuple[str, ...]]:
    """The distinct pairs that all requests of all processes were answered with."""
    order = {"do": "ask", "times": REQUESTS, **pair}
    answers = await in_thread([(racer, order) for racer in processes])
    outcomes = [outcome for answer in answers for outcome in answer]
    assert len(outcomes) == PROCESSES * REQUESTS
    assert {outcome["answer"] for outcome in outcomes} == {"authenticated"}
    return {tuple(outcome["pair"] or ()) for outcome in outcomes}


async def _audited(connection: asyncpg.Connection, issued: Issued) -> list[str]:
    rows = await connection.fetch(
        "select digest from audit where session = $1", issued.session.id
    )
    return [row["digest"] for row in rows]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def test_c84_a_refresh_that_races_a_revocation_leaves_nothing_alive(
    dsn: str,
) -> None:
    """C-84: in whichever order a refresh and a revocation happen, no token of the family
    works once both have returned."""
    async with engine(dsn) as (sessions, connection):
        with racers(dsn) as processes:
            for _ in range(ROUNDS):
                issued = await expired(sessions, connection)
                ask = {"do": "ask", "times": 4, **tokens(issued)}
                end = {"do": "revoke", "id": issued.session.id}
                orders = [(p, ask) for p in processes[:-1]] + [(processes[-1], end)]
                answers = await in_thread(orders)
                assert answers[-1] == [{"answer": "True", "pair": None}]
                given = _texts(answers) | set(tokens(issued).values())
                async with Sessions(dsn, secret=SECRET) as fresh:
                    assert await refused(fresh, *given)
                assert not await connection.fetchval(
                    "select is_active from user_sessions where id = $1", issued.session.id
                )


async def test_c85_a_refresh_that_races_the_end_of_its_user_leaves_nothing_alive(
    dsn: str,
) -> None:
    """C-85: a user who is disabled during a refresh is out, and the row is not rotated
    after the disabling was committed."""
    async with engine(dsn) as (sessions, connection):
        with racers(dsn) as processes:
            for _ in range(ROUNDS):
                await connection.execute("update users set is_active = true")
                issued = await expired(sessions, connection)
                ask = {"do": "ask", "times": 4, **tokens(issued)}
                end = {"do": "disable", "id": USER}
                orders = [(p, ask) for p in processes[:-1]] + [(processes[-1], end)]
                answers = await in_thread(orders)
                given = _texts(answers) | set(tokens(issued).values())
                rotations = len(await _audited(connection, issued))
                async with Sessions(dsn, secret=SECRET) as fresh:
                    assert await refused(fresh, *given)
                assert len(await _audited(connection, issued)) == rotations <= 1


class Hesitant(TableStore):
    """Stops before the conditional write, so that something can come in between."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.arrived, self.proceed = asyncio.Event(), asyncio.Event()

    async def rotate(self, step: Rotation) -> Record | None:
        """As the table store, after the signal to proceed."""
        await self._hesitate()
        return await super().rotate(step)

    async def redate(self, step: Rotation) -> Record | None:
        """As the table store, after the signal to proceed."""
        await self._hesitate()
        return await super().redate(step)

    async def _hesitate(self) -> None:
        self.arrived.set()
        await self.proceed.wait()


@asynccontextmanager
async def overtaken(dsn: str, issued: Issued) -> AsyncIterator[asyncio.Task[Any]]:
    """A refresh that has judged the row as it was, and writes after the body has run."""
    store = Hesitant(dsn)
    async with Sessions(store, secret=SECRET) as slow:
        claim = Credentials(refresh=(issued.refresh_token.encode(),))
        task = asyncio.create_task(slow.authenticate(claim, ELSEWHERE))
        await store.arrived.wait()
        yield task
        store.proceed.set()
        await task


@pytest.mark.parametrize("end", ["revoked", "user_disabled"])
async def test_c84_c85_an_end_between_the_judgement_and_the_rotation_wins(
    dsn: str, end: str
) -> None:
    """C-84, C-85: a row judged alive and ended before it is rotated is not rotated."""
    async with engine(dsn) as (sessions, connection):
        issued = await expired(sessions, connection)
        async with overtaken(dsn, issued) as task:
            if end == "revoked":
                assert await sessions.revoke(issued.session.id)
            else:
                await connection.execute("update users set is_active = false")
        assert task.result() == Invalid(Reason(end))
        assert await _audited(connection, issued) == []


async def test_c83_a_refresh_that_was_overtaken_gets_the_successor_of_the_winner(
    dsn: str,
) -> None:
    """C-83: the condition of the UPDATE finds the row changed, nothing is written twice,
    and the loser hands out what the winner made."""
    async with engine(dsn) as (sessions, connection):
        issued = await expired(sessions, connection)
        async with overtaken(dsn, issued) as task:
            winner = await sessions.refresh(issued.refresh_token)
        assert winner is not None
        loser = task.result()
        assert isinstance(loser, Authenticated)
        assert loser.issued is not None
        assert loser.issued.refresh_token == winner.refresh_token
        assert len(await _audited(connection, issued)) == 1


async def test_c79_a_successor_seen_while_the_old_token_is_judged_makes_it_a_replay(
    dsn: str,
) -> None:
    """C-79: an old token that is about to be answered as a lost response is a replay
    after all when its successor is seen before the rotation is dated anew."""
    async with engine(dsn) as (sessions, connection):
        issued = await expired(sessions, connection)
        following = await sessions.refresh(issued.refresh_token)
        assert following is not None
        await age(connection, timedelta(minutes=1))
        async with overtaken(dsn, issued) as task:
            use = Credentials(session=(following.session_token.encode(),))
            assert isinstance(await sessions.authenticate(use, ELSEWHERE), Authenticated)
            assert await sessions.flush() == 1
        assert task.result() == Invalid(Reason.REPLAYED)


async def test_c82_a_replay_is_caught_right_after_every_process_was_killed(
    dsn: str,
) -> None:
    """C-82: what tells a replay is in the row, so a stale token presented to a process
    that has just started ends the session, and the report names both parties."""
    async with engine(dsn) as (sessions, connection):
        issued = await expired(sessions, connection)
        with racers(dsn, 2) as processes:
            pairs = await in_thread(
                [(p, {"do": "ask", "times": 2, **tokens(issued)}) for p in processes]
            )
            session, refresh = _pair(pairs)
            seen = {"do": "use", "session": session, "refresh": refresh}
            await in_thread([(p, seen) for p in processes])
        await age(connection, timedelta(minutes=1))
        dispatcher: list[Replayed] = []
        async with Sessions(dsn, secret=SECRET) as fresh:
            fresh.on(Replayed, dispatcher.append)
            stale = Credentials(refresh=(issued.refresh_token.encode(),))
            answer = await fresh.authenticate(stale, ELSEWHERE)
            assert isinstance(answer, Invalid)
            assert await refused(fresh, session, refresh)
        assert [(r.session_id, r.presented_by) for r in dispatcher] == [
            (issued.session.id, ELSEWHERE)
        ]


def _pair(answers: list[Any]) -> tuple[str, str]:
    pairs = {tuple(o["pair"]) for answer in answers for o in answer if o["pair"]}
    assert len(pairs) == 1
    return next(iter(pairs))


async def test_c97_a_rotation_whose_answer_was_lost_is_repeated_by_another_process(
    dsn: str,
) -> None:
    """C-97: the process that rotated is killed before it answers; days later the
    old token gets the very successor that is in the row, and no second step is made."""
    async with engine(dsn) as (sessions, connection):
        issued = await expired(sessions, connection)
        with racers(dsn, 1) as processes:
            await in_thread([(processes[0], {"do": "ask", "times": 1, **tokens(issued)})])
        await age(connection, timedelta(days=3))
        old = Credentials(
            session=(issued.session_token.encode(),),
            refresh=(issued.refresh_token.encode(),),
        )
        async with Sessions(dsn, secret=SECRET) as fresh:
            answer = await fresh.authenticate(old, ELSEWHERE)
        assert isinstance(answer, Authenticated)
        assert answer.issued is not None
        digest = _sha256(answer.issued.refresh_token)
        assert await _audited(connection, issued) == [digest]


async def test_c99_a_flood_with_one_expired_token_costs_one_rotation(dsn: str) -> None:
    """C-99: a thousand requests of one process with one expired token share one call:
    one write, and far fewer queries than requests."""
    async with engine(dsn) as (sessions, connection):
        issued = await expired(sessions, connection)
        old = Credentials(refresh=(issued.refresh_token.encode(),))
        async with Sessions(dsn, secret=SECRET) as fresh:
            answers = await asyncio.gather(
                *(fresh.authenticate(old, ELSEWHERE) for _ in range(1000))
            )
            queries = fresh.stats().queries
        pairs = {a.issued.refresh_token for a in answers if isinstance(a, Authenticated)}
        assert len(pairs) == 1
        assert all(isinstance(answer, Authenticated) for answer in answers)
        assert len(await _audited(connection, issued)) == 1
        assert queries == 2
