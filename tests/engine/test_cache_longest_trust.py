"""What no notification tells: noticed within `longest_trust`, however much is trusted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from handstamp.config import Policy
from handstamp.core.models import Answer, Authenticated, Invalid, Issued, Unknown
from handstamp.engine import invalidation as bus
from handstamp.engine.cache import trusted_for
from handstamp.engine.invalidation import BATCH
from handstamp.errors import SessionsUnavailable
from tests.support.engines import Engine, running, seconds, session_of
from tests.support.waiting import until

STEP = 0.5


@pytest.fixture(autouse=True)
def quick_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's clock is moved by hand, and nobody waits a second for a proof."""
    monkeypatch.setattr(bus, "HEARTBEAT", 0.001)


async def trusted(engine: Engine) -> None:
    """Return when the bus vouches for everything at this reading of the clock."""
    await until(lambda: engine.sessions._listener.trusted_until > engine.clock())


async def later(engine: Engine, by: float) -> None:
    """Let time pass during which every heartbeat was answered."""
    engine.clock.advance(by)
    await trusted(engine)


def end_unheard(engine: Engine, issued: Issued) -> None:
    """What the trigger misses: the row is over and nobody says so."""
    row = engine.row(issued.session.id)
    engine.store.rows[issued.session.id] = replace(row, is_active=False)


async def ask(engine: Engine, *issued: Issued) -> Answer:
    return await engine.ask(*issued, refresh=False)


@pytest.mark.parametrize("longest", [20.0, 60.0])
async def test_p4_a_session_ended_unheard_is_refused_within_longest_trust(
    longest: float,
) -> None:
    """With a listener that is trusted the whole time, and a request every half second."""
    async with running(policy=Policy(longest_trust=seconds(longest))) as engine:
        issued = [await engine.login() for _ in range(20)]
        for one in issued:
            end_unheard(engine, one)
        for _ in range(int(longest / STEP)):
            for one in issued:
                engine.sessions.hit(one.session_token.encode())
            await later(engine, STEP)
        answers = [await ask(engine, one) for one in issued]
        assert all(isinstance(answer, Invalid) for answer in answers)


async def test_p4_the_default_bound_is_a_minute() -> None:
    """Long before the session token itself ends."""
    async with running() as engine:
        issued = await engine.login()
        end_unheard(engine, issued)
        await later(engine, 60)
        assert isinstance(await ask(engine, issued), Invalid)


async def test_until_then_a_trusted_session_costs_nothing() -> None:
    """For half of it at least; the rest is different for each session."""
    async with running() as engine:
        issued = [await engine.login() for _ in range(50)]
        for _ in range(29):
            await later(engine, 1)
            for one in issued:
                assert isinstance(await ask(engine, one), Authenticated)
        assert engine.sessions.stats().misses == 0


async def test_sessions_read_together_do_not_come_back_together() -> None:
    """Of a thousand that were read at once, no second brings back more than a twelfth."""
    policy = Policy()
    keys = [n.to_bytes(2) * 16 for n in range(0, 0x10000, 64)]
    ends = [trusted_for(key, policy) for key in keys]
    assert min(ends) == 30
    assert 59.9 < max(ends) <= 60
    seconds_of = [int(end) for end in ends]
    assert max(seconds_of.count(second) for second in range(30, 61)) <= len(keys) / 12


async def test_those_that_come_back_together_share_a_query() -> None:
    """Reading again is a look-up as any other: whoever asks at once is one group."""
    async with running() as engine:
        issued = [await engine.login() for _ in range(100)]
        await later(engine, 60)
        before = engine.store.queries
        answers = await asyncio.gather(*(ask(engine, one) for one in issued))
        assert all(isinstance(answer, Authenticated) for answer in answers)
        assert engine.store.queries - before <= 2


@pytest.mark.parametrize("staleness", [5, 30, 60])
def test_it_is_never_shorter_than_max_staleness(staleness: int) -> None:
    """Within that no proof is needed, so there is nothing to read again for."""
    policy = Policy(max_staleness=seconds(staleness))
    for first in (0, 1, 0x7F, 0xFF):
        assert staleness <= trusted_for(bytes([first] * 32), policy) <= 60


async def test_a_refresh_token_that_vouches_is_bounded_too() -> None:
    """A passive request by a refresh token alone is no way around it."""
    policy = Policy(max_staleness=seconds(60))
    async with running(policy=policy) as engine:
        issued = await engine.login()
        await engine.expire()
        assert session_of(await engine.ask(issued, passive=True))
        end_unheard(engine, issued)
        await later(engine, 60)
        assert isinstance(await engine.ask(issued, passive=True), Invalid)


# While nothing can be read.


async def outage(engine: Engine) -> None:
    """Take the database away, as the bus notices too."""
    engine.store.down = True
    engine.store.channel.cut()  # type: ignore[attr-defined]
    await until(lambda: engine.sessions.stats().listener == "disconnected")


@pytest.mark.parametrize("age", [0, 20, 29, 60])
async def test_an_outage_is_not_shortened_by_it(age: int) -> None:
    """A session in use goes on for `max_staleness` and `stale_while_down` after the last
    proof, however soon it was to be read again."""
    policy = Policy(stale_while_down=timedelta(minutes=10))
    async with running(policy=policy) as engine:
        issued = await engine.login()
        if age:
            await later(engine, age)
        await outage(engine)
        engine.clock.advance(605 - 0.001)
        assert isinstance(await ask(engine, issued), Authenticated)
        engine.clock.advance(0.001)
        assert isinstance(await ask(engine, issued), Unknown)


async def test_p4_a_bus_that_proves_on_extends_no_outage_of_the_look_ups() -> None:
    """A table that is locked answers nobody, and its notifications arrive all the same."""
    async with running() as engine:
        issued = await engine.login()
        before, find = engine.clock(), engine.store.find

        async def locked(*_: object) -> object:
            raise SessionsUnavailable("TimeoutError")

        engine.store.find = locked  # type: ignore[method-assign,assignment]
        while engine.clock() < before + 64.5:
            await later(engine, STEP)
            assert isinstance(await ask(engine, issued), Authenticated)
        await later(engine, STEP)
        assert isinstance(await ask(engine, issued), Unknown)
        engine.store.find = find  # type: ignore[method-assign]
        assert isinstance(await ask(engine, issued), Authenticated)


async def test_c59_no_trust_and_no_outage_extends_a_life() -> None:
    """The session's own limits hold, with trust and without an answer."""
    limits = Policy(stale_while_down=timedelta(days=1), idle_ttl=seconds(40))
    async with running(policy=limits) as engine:
        issued = await engine.login()
        await outage(engine)
        engine.clock.advance(40 - 0.001)
        assert isinstance(await ask(engine, issued), Authenticated)
        engine.clock.advance(0.001)
        assert isinstance(await ask(engine, issued), Unknown)


async def test_a_doubted_session_is_not_believed_in_an_outage() -> None:
    """What its own limits say counts only for an entry that nobody doubts."""
    async with running(policy=Policy(stale_while_down=timedelta(days=1))) as engine:
        issued = await engine.login()
        engine.sessions._state.cache.doubt_session(issued.session.id)
        await outage(engine)
        assert isinstance(await ask(engine, issued), Unknown)


# Open connections.


async def test_p4_an_open_connection_whose_session_ended_unheard_is_closed() -> None:
    """Within `longest_trust`, by looks that come every half `max_staleness`."""
    async with running() as engine:
        closed: list[int] = []
        issued = [await engine.login() for _ in range(20)]
        for n, one in enumerate(issued):
            engine.sessions.connections.add(one.session, lambda n=n: closed.append(n))
        watch, started = engine.sessions._invalidator, engine.clock()
        await watch.check_due(all_sessions=False)
        for one in issued:
            end_unheard(engine, one)
        while engine.clock() + 2.5 <= started + 60:
            await later(engine, 2.5)
            await watch.check_due(all_sessions=False)
        assert sorted(closed) == [*range(20)]


async def test_looks_at_open_connections_are_spread_and_in_groups() -> None:
    """Each is asked for again once in that time, and not all of them at once."""
    async with running() as engine:
        issued = await engine.login()
        row, asked = engine.row(issued.session.id), list[int]()

        async def find_many(ids: list[str]) -> object:
            asked.append(len(ids))
            return [replace(row, id=id, read_at=engine.clock.now()) for id in ids]

        engine.store.find_many = find_many  # type: ignore[method-assign,assignment]
        for n in range(3 * BATCH):
            session = replace(issued.session, id=f"{n}")
            engine.sessions.connections.add(session, lambda: None)
        watch = engine.sessions._invalidator
        await watch.check_due(all_sessions=False)
        assert asked == [BATCH] * 3
        asked.clear()
        for _ in range(23):
            engine.clock.advance(2.5)
            await watch.check_due(all_sessions=False)
        assert 3 * BATCH <= sum(asked) <= 2 * 3 * BATCH
        assert max(asked) <= BATCH
