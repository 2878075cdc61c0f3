"""During an outage: how long a cached session is believed, and what ends that at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from handstamp.config import Policy
from handstamp.core.models import Answer, Authenticated, Issued, Unknown
from handstamp.errors import SessionsUnavailable
from tests.support.engines import Engine, running, seconds
from tests.support.waiting import until

BOUND = seconds(5)
STALE = seconds(30)
STEP = seconds(0.001)


async def ask(engine: Engine, *issued: Issued) -> Answer:
    return await engine.ask(*issued, refresh=False)


async def outage(engine: Engine) -> None:
    """Take the database away, as the bus notices too."""
    engine.store.down = True
    engine.store.channel.cut()  # type: ignore[attr-defined]
    await until(lambda: engine.sessions.stats().listener == "disconnected")


async def test_c119_inside_the_bound_a_session_is_believed() -> None:
    """From its read for `max_staleness`, and not a moment longer."""
    async with running() as engine:
        issued = await engine.login()
        await engine.sessions._listener.stop()
        engine.sessions._listener.proven_until = float("-inf")
        engine.store.down = True
        engine.clock.advance(BOUND - STEP)
        assert isinstance(await ask(engine, issued), Authenticated)
        engine.clock.advance(STEP)
        assert isinstance(await ask(engine, issued), Unknown)


async def test_c119_what_was_proven_counts_through_the_silence() -> None:
    """An old entry is believed for `max_staleness` after the last proof."""
    async with running() as engine:
        issued = await engine.login()
        engine.clock.advance(seconds(60))
        await until(lambda: engine.sessions._listener.proven_until == engine.clock() + 5)
        await outage(engine)
        engine.clock.advance(BOUND - STEP)
        assert isinstance(await ask(engine, issued), Authenticated)
        engine.clock.advance(STEP)
        assert isinstance(await ask(engine, issued), Unknown)


async def test_stale_while_down_is_counted_on_top() -> None:
    """So many seconds after the bound, and not a moment longer."""
    async with running(policy=Policy(stale_while_down=STALE)) as engine:
        issued = await engine.login()
        await outage(engine)
        engine.clock.advance(BOUND + STALE - STEP)
        assert isinstance(await ask(engine, issued), Authenticated)
        engine.clock.advance(STEP)
        assert isinstance(await ask(engine, issued), Unknown)


async def test_stale_while_down_is_for_an_outage_only() -> None:
    """While there are answers, an entry past the bound is read again."""
    async with running(policy=Policy(stale_while_down=STALE)) as engine:
        issued = await engine.login()
        await engine.sessions._listener.stop()
        engine.clock.advance(BOUND)
        del engine.store.rows[issued.session.id]
        assert not isinstance(await ask(engine, issued), (Authenticated, Unknown))


async def test_p4_nothing_is_believed_after_a_reset() -> None:
    """Once anything may have been missed, no staleness is short enough."""
    async with running(policy=Policy(stale_while_down=STALE)) as engine:
        issued = await engine.login()
        engine.sessions._invalidator.reset()
        engine.store.down = True
        assert isinstance(await ask(engine, issued), Unknown)


@pytest.mark.parametrize("notice", ["s:{0.id}", "u:{0.user_id}", "nonsense"])
async def test_p4_nothing_is_believed_after_a_notice(notice: str) -> None:
    """What another process ended just before the outage stays ended."""
    async with running(policy=Policy(stale_while_down=STALE)) as engine:
        issued = await engine.login()
        engine.store.channel.send(notice.format(issued.session))  # type: ignore[attr-defined]
        engine.store.down = True
        assert isinstance(await ask(engine, issued), Unknown)


async def test_a_revocation_without_an_answer_ends_the_belief() -> None:
    """It may have been committed: this process believes its own request at least."""
    async with running(policy=Policy(stale_while_down=STALE)) as engine:
        issued = await engine.login()
        engine.store.down = True
        with pytest.raises(SessionsUnavailable):
            await engine.sessions.revoke(issued.session.id)
        assert isinstance(await ask(engine, issued), Unknown)


@pytest.mark.parametrize("limit", ["session", "absolute", "idle"])
async def test_c59_no_outage_extends_a_life(limit: str) -> None:
    """A limit of the session's own ends the belief, however long that may last."""
    lives = {
        "session": Policy(stale_while_down=timedelta(days=9)),
        "absolute": Policy(
            stale_while_down=timedelta(days=9), absolute_ttl=timedelta(minutes=15)
        ),
        "idle": Policy(stale_while_down=timedelta(days=9), idle_ttl=timedelta(minutes=15)),
    }
    async with running(policy=lives[limit]) as engine:
        issued = await engine.login()
        await outage(engine)
        engine.clock.advance(timedelta(minutes=15) - STEP)
        assert isinstance(await ask(engine, issued), Authenticated)
        engine.clock.advance(STEP)
        assert isinstance(await ask(engine, issued), Unknown)


async def test_two_sessions_are_still_nobody_during_an_outage() -> None:
    """Two believable cookies of two sessions decide nothing."""
    async with running(policy=Policy(stale_while_down=STALE)) as engine:
        one, two = await engine.login(), await engine.login("bob")
        await outage(engine)
        engine.clock.advance(BOUND)
        assert isinstance(await ask(engine, one, two), Unknown)


async def test_p16_a_spent_budget_is_an_outage() -> None:
    """A query that never ends costs the budget, and what may be believed is."""
    policy = Policy(stale_while_down=STALE, time_budget=seconds(0.01))
    async with running(policy=policy) as engine:
        issued, unknown = await engine.login(), await engine.login("bob")
        await engine.sessions._listener.stop()
        engine.clock.advance(BOUND)
        engine.sessions._state.cache.doubt_user("bob")
        engine.store.find = lambda _: asyncio.Event().wait()  # type: ignore[assignment,method-assign]
        assert isinstance(await ask(engine, issued), Authenticated)
        assert isinstance(await ask(engine, unknown), Unknown)
