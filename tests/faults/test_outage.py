"""P5 and P16: a database that gives no answer signs nobody out, keeps nobody waiting, and
is forgiven as soon as it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

import asyncpg
import pytest
from anyio import to_thread

from handstamp.core.models import Issued
from handstamp.engine.clocks import uptime
from handstamp.testing.postgres import EmbeddedPostgres
from tests.faults.conftest import Wires
from tests.faults.fleet import Fleet, Worker, everywhere, frozen, traffic, until

pytestmark = pytest.mark.multiprocess

RECOVERY = 10.0
Silence = Callable[
    [Fleet, Wires, EmbeddedPostgres], AbstractAsyncContextManager[AsyncExitStack]
]


async def test_P5_P10_C119_C120_N2_a_database_that_is_down_signs_nobody_out(
    wired: Fleet,
    own_postgres: EmbeddedPostgres,
    record_property: Callable[[str, object], None],
) -> None:
    """While the server is down warm sessions are served inside the bound and are unknown
    after it, nobody loses a cookie, open sockets stay, and no activity is lost."""
    busy = [await wired.sign_in() for _ in range(4)]
    quiet = [await wired.sign_in() for _ in range(10)]
    cold = await wired.sign_in()
    await wired.warm(*busy, *quiet)
    only_vouched_for = uptime() + wired.policy.max_staleness.total_seconds()
    async with (
        wired.workers[1].socket(busy[0]) as opened,
        traffic(wired.workers, *busy, None) as flow,
    ):
        await until(lambda: _everybody_saw(flow.seen, only_vouched_for), "entries to age")
        stopped_at = datetime.now(UTC)
        await to_thread.run_sync(own_postgres.stop)
        down = uptime()
        active = await _who_is_served(wired, quiet)
        await everywhere(wired.workers, _is_told_to_come_back, "to have no answer", busy[0])
        await flow.flows_on(100)
        starting = uptime()
        await to_thread.run_sync(own_postgres.start)
        waited = await everywhere(
            wired.workers, Worker.accepts, "to serve again", cold, patience=RECOVERY
        )
        record_property("seconds from the start to the first answer everywhere", waited)
        await flow.flows_on()
        await opened.send("still there")
        assert await opened.recv() == "still there"
    bound = down + wired.policy.max_staleness.total_seconds()
    for worker in wired.workers:
        assert {seen.status for seen in flow.of(worker, None)} == {200}
        served = [
            seen.began
            for session in busy
            for seen in flow.of(worker, session)
            if seen.status == 200 and down < seen.began < starting
        ]
        assert served
        assert max(served) < bound
    assert [seen for seen in flow.everything() if not seen.honest] == []
    assert active
    await until(
        lambda: _were_active_since(wired, active, stopped_at), "every touch to arrive"
    )


async def _who_is_served(fleet: Fleet, sessions: list[Issued]) -> list[Issued]:
    """The sessions that are served at one worker each, in their last request."""
    return [
        session
        for n, session in enumerate(sessions)
        if await fleet.workers[n % len(fleet.workers)].accepts(session)
    ]


async def _were_active_since(
    fleet: Fleet, sessions: list[Issued], moment: datetime
) -> bool:
    rows = await fleet.sql(
        "select 1 from user_sessions where id = any($1) and last_activity_at > $2",
        [session.session.id for session in sessions],
        moment,
    )
    return len(rows) == len(sessions)


async def _is_told_to_come_back(worker: Worker, session: Issued) -> bool:
    seen = await worker.ask(session)
    assert seen.honest
    return seen.status == 503


@asynccontextmanager
async def frozen_server(
    fleet: Fleet, wires: Wires, server: EmbeddedPostgres
) -> AsyncIterator[None]:
    """Every process of the server stands still (N5)."""
    with frozen(server.pid):
        yield


@asynccontextmanager
async def black_hole(
    fleet: Fleet, wires: Wires, server: EmbeddedPostgres
) -> AsyncIterator[None]:
    """Questions get lost on the way, and nothing is closed (N6)."""
    wires.queries.stall()
    yield
    wires.queries.heal()


@asynccontextmanager
async def locked_table(
    fleet: Fleet, wires: Wires, server: EmbeddedPostgres
) -> AsyncIterator[None]:
    """Somebody migrates the table (C-127, N10)."""
    connection = await asyncpg.connect(fleet.dsn)
    try:
        await connection.execute("begin; lock table user_sessions in access exclusive mode")
        yield
    finally:
        await connection.close()


SILENCES = [frozen_server, black_hole, locked_table]


@pytest.mark.parametrize("silence", SILENCES, ids=lambda silence: silence.__name__)
async def test_P16_C123_a_database_without_an_answer_costs_a_request_its_budget_at_most(
    wired: Fleet, wires: Wires, own_postgres: EmbeddedPostgres, silence: Silence
) -> None:
    """A session that is not cached is unknown within the time budget, routes that never
    ask notice nothing, and the database is asked again by itself afterwards."""
    cold, other = await wired.sign_in(), await wired.sign_in()
    budget = wired.policy.time_budget.total_seconds()
    async with silence(wired, wires, own_postgres):
        for seen in await asyncio.gather(*(w.ask(cold) for w in wired.workers)):
            assert (seen.status, seen.honest) == (503, True)
            assert seen.ended - seen.began < budget + 2
        for worker in wired.workers:
            assert (await worker.ask(path="/public")).status == 200
    await everywhere(wired.workers, Worker.accepts, "to serve", cold, patience=RECOVERY)
    await everywhere(wired.workers, Worker.accepts, "to serve", other, patience=RECOVERY)


@pytest.mark.parametrize("silence", SILENCES[:2], ids=lambda silence: silence.__name__)
async def test_P16_after_the_first_request_a_silent_database_is_not_asked_again(
    wired: Fleet, wires: Wires, own_postgres: EmbeddedPostgres, silence: Silence
) -> None:
    """Once a request had no answer, the following ones cost no query until a probe, which
    belongs to no request, has been answered."""
    cold = [await wired.sign_in() for _ in range(5)]
    async with silence(wired, wires, own_postgres):
        await everywhere(wired.workers, _is_told_to_come_back, "to have no answer", cold[0])
        await everywhere(wired.workers, _spares_the_database, "to open its breaker")
        before = [await worker.stats() for worker in wired.workers]
        for worker in wired.workers:
            assert [(await worker.ask(session)).status for session in cold] == [503] * 5
        after = [await worker.stats() for worker in wired.workers]
        for name in ("queries", "trips"):
            assert [one[name] for one in before] == [one[name] for one in after]
    await everywhere(wired.workers, Worker.accepts, "to serve", cold[0], patience=RECOVERY)


async def _spares_the_database(worker: Worker) -> bool:
    return bool((await worker.stats())["breaker_is_open"])


async def test_C127_N10_a_locked_table_takes_nothing_from_a_warm_session(
    wired: Fleet,
) -> None:
    """While the listener proves that nothing ended, a cached session needs no query."""
    session = await wired.sign_in()
    await wired.warm(session)
    connection = await asyncpg.connect(wired.dsn)
    try:
        await connection.execute("begin; lock table user_sessions in access exclusive mode")
        async with traffic(wired.workers, session) as flow:
            end = uptime() + wired.policy.max_staleness.total_seconds() + 1
            await until(lambda: _everybody_saw(flow.seen, end), "the bound to pass")
    finally:
        await connection.close()
    assert {seen.status for seen in flow.everything()} == {200}
    await everywhere(wired.workers, Worker.accepts, "to serve", await wired.sign_in())


async def _everybody_saw(seen: dict[tuple[int, str], list], moment: float) -> bool:
    return all(some and some[-1].began > moment for some in seen.values())


async def test_C125_N3_N8_lost_connections_are_replaced_before_anybody_notices(
    wired: Fleet, wires: Wires
) -> None:
    """A look-up whose connection was ended by the server or reset on the way is asked
    again on a fresh one: every request is served at its first try."""
    ended, reset = await wired.sign_in(), await wired.sign_in()
    await _end_all_connections(wired)
    for worker in wired.workers:
        assert (await worker.ask(ended)).status == 200
    await wired.listening()
    wires.queries.withhold_answers()
    asked = [asyncio.create_task(worker.ask(reset)) for worker in wired.workers]
    await until(lambda: _withholds(wires), "answers to withhold")
    wires.queries.reset_once()
    assert [200] * len(asked) == [(await one).status for one in asked]


async def test_C125_a_write_that_lost_its_connection_keeps_no_look_up_from_the_database(
    wired: Fleet, wires: Wires
) -> None:
    """A login whose connection breaks is unknown; whoever comes next is served, for a
    broken connection does not say that the database is down."""
    session, user, worker = await wired.sign_in(), await wired.user(), wired.workers[0]
    assert (await worker.post(f"/login/{user}")).status == 200
    wires.queries.withhold_answers()
    login = asyncio.create_task(worker.post(f"/login/{user}"))
    await until(lambda: _withholds(wires), "an answer to withhold")
    wires.queries.reset_once()
    assert (await login).honest
    assert (await worker.ask(session)).status == 200


async def _withholds(wires: Wires) -> bool:
    return wires.queries.withheld > 0


async def _end_all_connections(fleet: Fleet) -> None:
    await fleet.sql(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )


async def test_N7_a_slow_network_costs_time_and_nothing_else(
    wired: Fleet, wires: Wires
) -> None:
    """With 50 ms in either direction every session is still served."""
    session = await wired.sign_in()
    await wired.warm(session)  # a new connection takes six round trips of its second
    wires.queries.delay(0.05)
    wires.listener.delay(0.05)
    async with traffic(wired.workers, session, None) as flow:
        await flow.flows_on(5)
    assert {seen.status for seen in flow.everything()} == {200}


async def test_P5_C121_N9_a_read_only_database_serves_and_refuses_nothing(
    wired: Fleet, own_postgres: EmbeddedPostgres
) -> None:
    """Reads are served, a refresh and a login are unknown and leave the cookies alone;
    both work again, and the activity is written, once the database takes writes."""
    session, refreshing = await wired.sign_in(), await wired.sign_in()
    user, worker = await wired.user(), wired.workers[0]
    async with _read_only(wired, own_postgres):
        began = datetime.now(UTC)
        await everywhere(wired.workers, Worker.accepts, "to serve", session)
        for one in wired.workers:
            seen = await one.ask(refreshing, refresh=True)
            assert (seen.status, seen.honest) == (503, True)
        seen = await worker.post(f"/login/{user}")
        assert (seen.status, seen.honest) == (503, True)
        assert (await worker.ask(session)).status == 200
    seen = await worker.ask(refreshing, refresh=True)
    assert (seen.status, seen.sets_cookie) == (200, True)
    assert (await worker.post(f"/login/{user}")).status == 200
    await until(lambda: _were_active_since(wired, [session], began), "the touch to arrive")


@asynccontextmanager
async def _read_only(fleet: Fleet, server: EmbeddedPostgres) -> AsyncIterator[None]:
    name = fleet.dsn.rpartition("/")[2]
    admin = await asyncpg.connect(server.dsn())
    try:
        sql = f"alter database {name} set default_transaction_read_only = on"
        await admin.execute(sql)
        await _end_all_connections(fleet)
        yield
    finally:
        await admin.execute(f"alter database {name} reset default_transaction_read_only")
        await admin.close()
        await _end_all_connections(fleet)
