"""P4 without notifications: no process gets one, and the staleness bound holds.

Each way of losing it ends with a revocation without a notification. A request that begins
``max_staleness`` after it was committed is refused: trust reaches that far from the start
of a proof, and a proof that began after the commit delivers the notification.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import asyncpg
import pytest
from anyio import to_thread

from handstamp.core.models import Issued
from handstamp.testing.postgres import EmbeddedPostgres
from tests.faults.conftest import Wires
from tests.faults.fleet import (
    Fleet,
    Worker,
    everywhere,
    frozen,
    traffic,
)

pytestmark = pytest.mark.multiprocess

Loss = Callable[[Fleet, Wires, EmbeddedPostgres], AbstractAsyncContextManager[None]]

_TERMINATE = "select pg_terminate_backend(pid) from pg_stat_activity where pid = any($1)"


@asynccontextmanager
async def terminated(
    fleet: Fleet, wires: Wires, server: EmbeddedPostgres
) -> AsyncIterator[None]:
    """The listening backends are ended, and the way back is closed (N4)."""
    pids = await fleet.listeners()
    await fleet.sql(_TERMINATE, pids)
    wires.listener.cut()
    yield


@asynccontextmanager
async def silent(
    fleet: Fleet, wires: Wires, server: EmbeddedPostgres
) -> AsyncIterator[None]:
    """The listening connections stay open and nothing gets through (N6)."""
    wires.listener.stall()
    yield


@asynccontextmanager
async def half_silent(
    fleet: Fleet, wires: Wires, server: EmbeddedPostgres
) -> AsyncIterator[None]:
    """The server hears the workers, and they hear nothing (N6)."""
    wires.listener.withhold_answers()
    yield


@asynccontextmanager
async def reset(
    fleet: Fleet, wires: Wires, server: EmbeddedPostgres
) -> AsyncIterator[None]:
    """The listening connections are reset, and so is every new one (N8)."""
    wires.listener.reset()
    yield


@asynccontextmanager
async def frozen_listeners(
    fleet: Fleet, wires: Wires, server: EmbeddedPostgres
) -> AsyncIterator[None]:
    """The listening backends stand still (N5)."""
    with frozen(*await fleet.listeners()):
        yield


@asynccontextmanager
async def restarted(
    fleet: Fleet, wires: Wires, server: EmbeddedPostgres
) -> AsyncIterator[None]:
    """The server crashed and runs again, before any process listens again (N1)."""
    wires.listener.cut()
    await to_thread.run_sync(server.restart, "immediate")
    yield


LOSSES = [terminated, silent, half_silent, reset, frozen_listeners, restarted]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
async def test_P4_C53_C54_C55_without_notifications_the_staleness_bound_holds(
    wired: Fleet, wires: Wires, own_postgres: EmbeddedPostgres, loss: Loss
) -> None:
    """However the listener is lost, a revoked session is refused within the bound, also one
    without requests meanwhile, and no other session is affected."""
    ended, quiet, other = [await wired.sign_in() for _ in range(3)]
    await wired.warm(ended, quiet, other)
    async with traffic(wired.workers, ended, other, None) as flow:
        await flow.flows_on(3)
        async with loss(wired, wires, own_postgres):
            await wired.revoke_by_sql(quiet)
            committed = await wired.revoke_by_sql(ended)
            await everywhere(wired.workers, Worker.refuses, "to refuse", ended)
            await flow.flows_on()
        wires.listener.heal()
        await wired.listening()
        assert await _statuses(wired, quiet) == {401}
        await flow.flows_on()
    for worker in wired.workers:
        served = [seen.began for seen in flow.of(worker, ended) if seen.status == 200]
        assert max(served) < committed + wired.policy.max_staleness.total_seconds()
        assert {seen.status for seen in flow.of(worker, None)} == {200}
        assert all(seen.honest for seen in flow.of(worker, other))
        if loss is not restarted:
            assert {seen.status for seen in flow.of(worker, other)} == {200}
    assert not any(seen.sets_cookie for seen in flow.everything())


async def _statuses(fleet: Fleet, session: Issued) -> set[int]:
    return {(await worker.ask(session)).status for worker in fleet.workers}


async def test_P4_N5_a_frozen_server_serves_a_revoked_session_only_inside_the_bound(
    wired: Fleet, own_postgres: EmbeddedPostgres
) -> None:
    """A session that was revoked without a notification just before the whole server froze
    is served no longer than the bound; then it is unknown, and refused after the thaw."""
    ended, other = await wired.sign_in(), await wired.sign_in()
    await wired.warm(ended, other)
    async with traffic(wired.workers, ended, other, None) as flow:
        await flow.flows_on(3)
        with frozen(*await wired.listeners()):
            committed = await wired.revoke_by_sql(ended)
            with frozen(own_postgres.pid):
                await everywhere(wired.workers, _is_unavailable, "to answer 503", other)
        await everywhere(wired.workers, Worker.refuses, "to refuse", ended)
        await everywhere(wired.workers, Worker.accepts, "to serve again", other)
        await flow.flows_on()
    bound = committed + wired.policy.max_staleness.total_seconds()
    for worker in wired.workers:
        served = [seen.began for seen in flow.of(worker, ended) if seen.status == 200]
        assert max(served) < bound
        assert all(seen.honest for seen in flow.of(worker, other))
        assert {seen.status for seen in flow.of(worker, None)} == {200}


async def _is_unavailable(worker: Worker, session: Issued) -> bool:
    return (await worker.ask(session)).status == 503


async def test_N16_a_worker_that_stood_still_serves_nothing_that_was_revoked_meanwhile(
    wired: Fleet,
) -> None:
    """A process that was stopped for longer than the bound refuses at its first answer,
    although the notification is unread on its socket."""
    session = await wired.sign_in()
    await wired.warm(session)
    stopped, awake = wired.workers[0], wired.workers[1]
    with frozen(stopped.process.pid):
        committed = await wired.revoke_by_sql(session)
        bound = committed + wired.policy.max_staleness.total_seconds()
        await everywhere([awake], _answers_after, "to outlive the bound", bound)
    assert (await stopped.ask(session)).status == 401


async def _answers_after(worker: Worker, moment: float) -> bool:
    return (await worker.ask(path="/public")).began > moment


async def test_C67_N13_a_full_notification_queue_keeps_no_revoked_session_alive(
    wired: Fleet,
) -> None:
    """With the queue full a revocation is committed without a notification; it holds at
    once where it was made, within the bound elsewhere, and affects no other session."""
    ended, other = await wired.sign_in(), await wired.sign_in()
    await wired.warm(ended, other)
    async with traffic(wired.workers, ended, other) as flow:
        await flow.flows_on(3)
        async with _full_queue(wired):
            assert await wired.admin.revoke(ended.session.id)
            committed = wired.admin.clock()
            row = await wired.sql(
                "select is_active from user_sessions where id = $1", ended.session.id
            )
            assert [tuple(r) for r in row] == [(False,)]
            await everywhere(wired.workers, Worker.refuses, "to refuse", ended)
            await flow.flows_on()
        await wired.listening()
        await flow.flows_on()
    bound = committed + wired.policy.max_staleness.total_seconds()
    for worker in wired.workers:
        served = [seen.began for seen in flow.of(worker, ended) if seen.status == 200]
        assert max(served) < bound
        assert {seen.status for seen in flow.of(worker, other)} == {200}


@asynccontextmanager
async def _full_queue(fleet: Fleet) -> AsyncIterator[None]:
    """One connection listens and never reads, and another one keeps sending."""
    listener, sender = [await asyncpg.connect(fleet.dsn) for _ in range(2)]
    try:
        await listener.execute("listen elsewhere")
        await listener.execute("begin; select 1")
        with suppress(asyncpg.ProgramLimitExceededError):
            while True:
                await sender.execute("select pg_notify('elsewhere', repeat('x', 7900))")
        yield
    finally:
        await listener.close()
        await sender.close()
