"""Tokens of ours that the table does not know: few, briefly, and never in the way."""

from __future__ import annotations

from contextlib import suppress

import pytest

from handstamp.config import Policy
from handstamp.core.lifetime import Invalid, Reason, Unknown
from handstamp.core.tokens import ENTROPY, Tokens
from handstamp.engine.answers import Answer
from handstamp.engine.strangers import LIFE, MOST, Strangers
from tests.support.engines import (
    LAPTOP,
    SECRET,
    Engine,
    running,
    seconds,
    session_of,
    shown,
)

TOKENS = Tokens([SECRET])


def key(number: int) -> bytes:
    return number.to_bytes(32)


def genuine(number: int) -> str:
    """A session token with our signature and without a row."""
    return TOKENS.mint("01J", 2 * number.to_bytes(ENTROPY), remember=True).session


async def answer(engine: Engine, text: str) -> Answer:
    return await engine.sessions.authenticate(shown([text]), LAPTOP)


def test_a_stranger_is_known_for_its_life() -> None:
    """Up to the last moment, and not at it."""
    strangers = Strangers(life=2.0)
    strangers.meet(key(1), 100.0)
    assert strangers.knows(key(1), 101.999)
    assert not strangers.knows(key(1), 102.0)
    assert not strangers.knows(key(2), 100.0)


def test_meeting_again_counts_from_now() -> None:
    """The table has just not known it once more."""
    strangers = Strangers(life=2.0)
    strangers.meet(key(1), 100.0)
    strangers.meet(key(1), 101.5)
    assert strangers.knows(key(1), 103.0)
    assert len(strangers) == 1


def test_c37_strangers_are_few() -> None:
    """However many come, the oldest leave first, and the memory is bounded."""
    strangers = Strangers(most=100)
    for number in range(10_000):
        strangers.meet(key(number), 100.0)
    assert len(strangers) == 100
    assert [n for n in range(10_000) if strangers.knows(key(n), 100.0)] == list(
        range(9900, 10_000)
    )
    assert (LIFE, MOST) == (2.0, 10_000)


def test_what_became_a_session_is_no_stranger() -> None:
    """Forgetting works at once, and for what was never met as well."""
    strangers = Strangers()
    strangers.meet(key(1), 100.0)
    strangers.forget(key(1))
    strangers.forget(key(2))
    assert not strangers.knows(key(1), 100.0)


async def test_c36_an_unknown_token_is_asked_for_once_in_its_life() -> None:
    """A thousand requests with it cost one query, and two seconds later one more."""
    async with running() as engine:
        asked = engine.store.queries
        for _ in range(1000):
            assert await answer(engine, genuine(1)) == Invalid(Reason.NOT_FOUND)
        assert engine.store.queries == asked + 1
        engine.clock.advance(seconds(LIFE))
        await answer(engine, genuine(1))
        assert engine.store.queries == asked + 2


async def test_c37_strangers_evict_no_live_entry() -> None:
    """Twenty thousand unknown tokens leave a cache of one where it was."""
    async with running(cache_size=1) as engine:
        issued = await engine.login()
        for number in range(20_000):
            await answer(engine, genuine(number))
        assert len(engine.sessions._parts.strangers) == MOST
        assert engine.sessions.hit(issued.session_token.encode()) is not None


async def test_c38_a_stranger_does_not_shadow_a_session_created_here() -> None:
    """A login in this process is believed at once, from the table as from the cache."""
    async with running(entropy=lambda n: bytes(n)) as engine:
        async with running(entropy=lambda n: bytes(n)) as elsewhere:
            text = (await elsewhere.login()).session_token
        assert await answer(engine, text) == Invalid(Reason.NOT_FOUND)
        issued = await engine.login()
        assert issued.session_token == text
        assert session_of(await answer(engine, text)).id == issued.session.id
        engine.sessions._parts.cache.doubt()
        assert session_of(await answer(engine, text)).id == issued.session.id


async def test_c38_a_stranger_does_not_shadow_a_session_rotated_here() -> None:
    """A successor that was asked for too early is believed after its rotation."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        later = await engine.refreshed(issued)
        row = engine.row(issued.session.id)
        hidden = engine.store.rows.pop(row.id)
        engine.sessions._parts.cache.forget_session(row.id)
        assert isinstance(await answer(engine, later.session_token), Invalid)
        engine.store.rows[row.id] = hidden
        again = await engine.refreshed(issued)
        assert again.session_token == later.session_token
        engine.sessions._parts.cache.doubt()
        assert session_of(await answer(engine, later.session_token)).id == row.id


async def test_c38_a_session_created_elsewhere_is_found_after_its_life() -> None:
    """A slow commit or a lagging replica shadows it for two seconds and not longer."""
    async with running() as engine:
        async with running(store=engine.store, clock=engine.clock) as other:
            issued = await other.login()
        hidden = engine.store.rows.pop(issued.session.id)
        assert await answer(engine, issued.session_token) == Invalid(Reason.NOT_FOUND)
        engine.store.rows[hidden.id] = hidden
        engine.clock.advance(seconds(LIFE))
        found = await answer(engine, issued.session_token)
        assert session_of(found).id == hidden.id


async def test_c39_an_outage_makes_no_stranger() -> None:
    """ "No answer" is not "not found": the session is found as soon as there is one."""
    async with running() as engine:
        issued = await engine.login()
        engine.sessions._parts.cache.forget_session(issued.session.id)
        engine.store.down = True
        assert isinstance(await answer(engine, issued.session_token), Unknown)
        assert len(engine.sessions._parts.strangers) == 0
        engine.store.down = False
        assert (
            session_of(await answer(engine, issued.session_token)).id == issued.session.id
        )


@pytest.mark.parametrize("fault", [TimeoutError, RuntimeError])
async def test_c39_a_query_without_an_answer_makes_no_stranger(fault: type) -> None:
    """Neither the time budget nor a bug fills the set."""
    async with running(policy=Policy(time_budget=seconds(0.01))) as engine:

        async def find(digests: object) -> object:
            raise fault

        engine.store.find = find  # type: ignore[assignment,method-assign]
        with suppress(RuntimeError):
            await answer(engine, genuine(1))
        assert len(engine.sessions._parts.strangers) == 0
