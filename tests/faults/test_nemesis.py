"""P4 and P5 against an adversary who picks faults at random, one on top of the other.

Four workers serve the same sessions while connections are cut, packets are lost, processes
stand still and the server crashes, and while sessions are revoked by plain SQL.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import asyncpg
import pytest
from anyio import to_thread

from handstamp.core.models import Issued
from handstamp.engine.clocks import uptime
from handstamp.testing.postgres import EmbeddedPostgres
from tests.faults.conftest import Wires
from tests.faults.fleet import (
    LISTENER,
    Fleet,
    Traffic,
    Worker,
    everywhere,
    frozen,
    traffic,
)

pytestmark = pytest.mark.multiprocess

LASTING = 9.0
RECOVERY = 10.0
_NO_ANSWER = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
_TERMINATE = (
    "select pg_terminate_backend(pid) from pg_stat_activity where"
    " datname = current_database() and pid <> pg_backend_pid() and application_name"
)


@dataclass
class Nemesis:
    """Does harm, and undoes it; ``done`` says what, for the message of a failure."""

    fleet: Fleet
    wires: Wires
    server: EmbeddedPostgres
    random: random.Random
    done: list[str] = field(default_factory=list)

    async def rage(self, until: float) -> None:
        """One fault after the other, some of which last while others come."""
        faults: list[Callable[[], Awaitable[None]]] = [
            self.lose_listeners,
            self.lose_queries,
            self.silence_the_bus,
            self.silence_answers,
            self.reset_everything,
            self.slow_down,
            self.freeze_the_server,
            self.freeze_a_worker,
            self.crash,
        ]
        while uptime() < until:
            fault = self.random.choice(faults)
            self.done.append(fault.__name__)
            try:
                await fault()
            except _NO_ANSWER as exc:
                self.done.append(type(exc).__name__)
            if self.random.random() < 0.5:
                self.heal()
        self.heal()

    def heal(self) -> None:
        """Let the network pass again."""
        self.wires.queries.heal()
        self.wires.listener.heal()

    async def lose_listeners(self) -> None:
        await self.fleet.sql(f"{_TERMINATE} = $1", LISTENER)

    async def lose_queries(self) -> None:
        await self.fleet.sql(f"{_TERMINATE} <> $1", LISTENER)

    async def silence_the_bus(self) -> None:
        self.wires.listener.stall()
        await self.some_time()

    async def silence_answers(self) -> None:
        self.wires.queries.withhold_answers()
        await self.some_time()

    async def reset_everything(self) -> None:
        self.wires.queries.reset()
        self.wires.listener.reset()
        await self.some_time()
        self.heal()

    async def slow_down(self) -> None:
        self.wires.queries.delay(0.1)
        self.wires.listener.delay(0.1)
        await self.some_time()

    async def freeze_the_server(self) -> None:
        with frozen(self.server.pid):
            await self.some_time()

    async def freeze_a_worker(self) -> None:
        with frozen(self.random.choice(self.fleet.workers).process.pid):
            await self.some_time()

    async def crash(self) -> None:
        await to_thread.run_sync(self.server.restart, "immediate")

    async def some_time(self) -> None:
        """How long a fault lasts, which is nothing that could be awaited."""
        await asyncio.sleep(self.random.uniform(0.1, 1.5))


async def _keep_revoking(
    fleet: Fleet, victims: list[Issued], until: float
) -> dict[str, float]:
    """Revoke one session after the other; when each of them was certainly committed."""
    committed: dict[str, float] = {}
    pause = (until - uptime()) / len(victims)
    for victim in victims:
        while victim.session.id not in committed:
            try:
                await fleet.sql(
                    "update user_sessions set is_active = false where id = $1",
                    victim.session.id,
                )
                committed[victim.session.id] = uptime()
            except _NO_ANSWER:
                await asyncio.sleep(0.05)
        await asyncio.sleep(pause)
    return committed


async def test_P4_P5_no_sequence_of_faults_breaks_the_bound_or_signs_anybody_out(
    wired: Fleet, wires: Wires, own_postgres: EmbeddedPostgres
) -> None:
    """Whatever happens, a revoked session is not served beyond the bound, everybody else
    is served or asked to come back, public routes notice nothing, and all of it passes."""
    victims = [await wired.sign_in() for _ in range(4)]
    others = [await wired.sign_in() for _ in range(2)]
    await wired.warm(*victims, *others)
    seed = random.random()  # reproducible, for the run as a whole is seeded
    nemesis = Nemesis(wired, wires, own_postgres, random.Random(seed))
    end = uptime() + LASTING
    async with traffic(wired.workers, *victims, *others, None) as flow:
        revoking = asyncio.create_task(_keep_revoking(wired, victims, end))
        await nemesis.rage(end)
        committed = await revoking
        for other in others:
            await everywhere(
                wired.workers, Worker.accepts, "to serve", other, patience=RECOVERY
            )
        await wired.listening()
        await flow.flows_on()
    assert _offences(wired, flow, committed) == [], nemesis.done
    for worker in wired.workers:
        assert {seen.status for seen in flow.of(worker, None)} == {200}, nemesis.done
        assert [s for o in others for s in flow.of(worker, o) if not s.honest] == []
        assert [(await worker.ask(victim)).status for victim in victims] == [401] * 4


def _offences(fleet: Fleet, flow: Traffic, committed: dict[str, float]) -> list[str]:
    """What no worker may do to a session that was revoked."""
    found = []
    for (port, session_id), all_seen in flow.seen.items():
        bound = committed.get(session_id, float("inf"))
        bound += fleet.policy.max_staleness.total_seconds()
        late = [seen for seen in all_seen if seen.status == 200 and seen.began > bound]
        if late:
            found.append(f"{port} served {len(late)} times, to {late[-1].began - bound} s")
    return found
