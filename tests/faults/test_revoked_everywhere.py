"""P4: what one process ends, every process refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from handstamp.core.models import Issued
from handstamp.engine.clocks import uptime
from tests.faults.conftest import Launch, Wires
from tests.faults.fleet import Fleet, Worker, everywhere, traffic, until

pytestmark = pytest.mark.multiprocess


async def by_api(fleet: Fleet, session: Issued) -> None:
    assert (await fleet.workers[0].post(f"/revoke/{session.session.id}")).status == 200


async def by_api_of_the_user(fleet: Fleet, session: Issued) -> None:
    await fleet.admin.revoke_user(session.session.user_id)


async def by_sql(fleet: Fleet, session: Issued) -> None:
    await fleet.revoke_by_sql(session)


async def by_deletion(fleet: Fleet, session: Issued) -> None:
    await fleet.sql("delete from user_sessions where id = $1", session.session.id)


async def by_disabling_the_user(fleet: Fleet, session: Issued) -> None:
    sql = "update users set is_active = false where id = $1"
    await fleet.sql(sql, session.session.user_id)


async def by_deletion_of_the_user(fleet: Fleet, session: Issued) -> None:
    await fleet.sql("delete from users where id = $1", session.session.user_id)


WAYS = [
    by_api,
    by_api_of_the_user,
    by_sql,
    by_deletion,
    by_disabling_the_user,
    by_deletion_of_the_user,
]


@pytest.mark.parametrize("end", WAYS, ids=lambda way: way.__name__)
async def test_P4_C52_C69_an_ended_session_is_refused_by_every_process_for_good(
    prompt: Fleet, end: Callable[[Fleet, Issued], Awaitable[None]]
) -> None:
    """However a session is ended, every process refuses it long before its
    staleness bound, accepts it never again, and goes on serving everybody else."""
    ended, other = await prompt.sign_in(), await prompt.sign_in()
    await prompt.warm(ended, other)
    began = uptime()
    async with traffic(prompt.workers, ended, other) as flow:
        await flow.flows_on(3)
        await end(prompt, ended)
        await everywhere(prompt.workers, Worker.refuses, "to refuse", ended)
        refused_everywhere = uptime()
        await flow.flows_on()
    assert refused_everywhere - began < prompt.policy.max_staleness.total_seconds()
    for worker in prompt.workers:
        statuses = [seen.status for seen in flow.of(worker, ended)]
        first = statuses.index(401)
        assert set(statuses[:first]) == {200}
        assert set(statuses[first:]) == {401}
        assert {seen.status for seen in flow.of(worker, other)} == {200}
    assert not any(seen.sets_cookie for seen in flow.everything())


async def test_P4_a_warm_session_costs_no_query_while_the_bus_vouches_for_it(
    prompt: Fleet,
) -> None:
    """What was refused above had been believed without asking the database."""
    session = await prompt.sign_in()
    await prompt.warm(session)
    before = [(await worker.stats())["misses"] for worker in prompt.workers]
    await prompt.warm(session)
    assert before == [(await worker.stats())["misses"] for worker in prompt.workers]


@pytest.fixture(scope="session")
def no_trigger_workers(launch: Launch) -> Fleet:
    """Two workers on tables without the trigger."""
    return launch(trigger=False, count=2, max_staleness=1)


@pytest.fixture
async def no_trigger(no_trigger_workers: Fleet) -> AsyncIterator[Fleet]:
    """The same, listening."""
    async with no_trigger_workers.ready() as fleet:
        yield fleet


async def test_P4_without_the_trigger_a_foreign_writer_is_bounded_by_max_staleness(
    no_trigger: Fleet,
) -> None:
    """No request that begins ``max_staleness`` after a plain UPDATE is served any more."""
    session = await no_trigger.sign_in()
    await no_trigger.warm(session)
    assert not (await no_trigger.workers[0].stats())["all_writers_notify"]
    async with traffic(no_trigger.workers, session) as flow:
        await flow.flows_on(3)
        committed = await no_trigger.revoke_by_sql(session)
        await everywhere(no_trigger.workers, Worker.refuses, "to refuse", session)
        await flow.flows_on()
    bound = committed + no_trigger.policy.max_staleness.total_seconds()
    served = [seen.began for seen in flow.everything() if seen.status == 200]
    assert max(served) < bound


@pytest.fixture(scope="session")
def no_trigger_slow_workers(launch: Launch) -> Fleet:
    """The same with a `max_staleness` of a minute."""
    return launch(trigger=False, count=2, max_staleness=60)


@pytest.fixture
async def no_trigger_slow(no_trigger_slow_workers: Fleet) -> AsyncIterator[Fleet]:
    """The same, listening."""
    async with no_trigger_slow_workers.ready() as fleet:
        yield fleet


async def test_P4_without_the_trigger_the_api_is_still_notified_at_once(
    no_trigger_slow: Fleet,
) -> None:
    """handstamp's own revocations need no trigger to reach every process."""
    session = await no_trigger_slow.sign_in()
    await no_trigger_slow.warm(session)
    await by_api(no_trigger_slow, session)
    await everywhere(no_trigger_slow.workers, Worker.refuses, "to refuse", session)


async def test_C51_a_session_revoked_during_its_own_lookup_never_enters_the_cache(
    wired: Fleet, wires: Wires
) -> None:
    """A row that was read alive, and whose notification arrived before the row, is not
    kept: the next request is refused."""
    worker = wired.workers[0]
    racing, known = [await wired.sign_in() for _ in range(2)]
    await worker.ask(known)  # a connection is open: no handshake is needed below
    received = (await worker.stats())["notifications"]
    wires.queries.withhold_answers()
    asked = asyncio.create_task(worker.ask(racing))
    await _until_withheld(wires)
    await wired.revoke_by_sql(racing)

    async def notified() -> bool:
        return bool((await worker.stats())["notifications"] > received)

    await until(notified, "a notification")
    wires.queries.heal()
    assert (await asked).status == 200  # the row was read alive
    assert (await worker.ask(racing)).status == 401


async def _until_withheld(wires: Wires) -> None:
    async def withheld() -> bool:
        return wires.queries.withheld > 200  # a row, and not just "UPDATE 1"

    await until(withheld, "an answer to withhold")
