"""A higher trust level comes with new tokens, and any copy of the old ones is dead."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from handstamp.config import Policy
from handstamp.core.lifetime import is_remembered
from handstamp.core.models import Invalid, Issued, Reason, Record, StepUp
from handstamp.core.tokens import Tokens
from handstamp.errors import SessionsUnavailable
from handstamp.events import LateRefresh, Reissued, Replayed
from handstamp.stores.memory import MemoryStore, MemoryUser
from tests.support.clock import FakeClock
from tests.support.engines import (
    SECRET,
    Engine,
    new_tokens,
    running,
    seconds,
    session_of,
)

LATER = Policy().grace + seconds(1)


async def stepped_up(engine: Engine, issued: Issued, level: int = 2) -> Issued:
    """The tokens that come with a level the session did not have."""
    answer = await engine.sessions.step_up(issued.session.id, level)
    assert answer is not None
    return new_tokens(answer)


async def test_new_tokens_have_the_new_level() -> None:
    """Another pair for the same session, both halves good."""
    async with running() as engine:
        issued = await engine.login()
        fresh = await stepped_up(engine, issued)
        assert fresh.session.id == issued.session.id
        assert fresh.session.level == 2
        assert session_of(await engine.ask(fresh, refresh=False)).level == 2
        await engine.expire()
        again = new_tokens(await engine.ask(fresh))
        assert session_of(await engine.ask(again)).level == 2


@pytest.mark.parametrize("here", [True, False], ids=["same process", "another"])
async def test_an_old_session_token_is_dead_at_once(here: bool) -> None:
    """It was cached, and the process is told before anybody asks again."""
    clock = FakeClock()
    store = MemoryStore(clock.now)
    async with (
        running(clock=clock, store=store) as one,
        running(clock=clock, store=store) as two,
    ):
        issued = await one.login()
        for engine in (one, two):
            assert session_of(await engine.ask(issued))
        await stepped_up(one, issued)
        answer = await (one if here else two).ask(issued, refresh=False)
        assert answer == Invalid(Reason.NOT_FOUND)


async def test_an_old_refresh_token_is_late_within_grace() -> None:
    """A tab that was on its way: refused, counted, and the session stays."""
    async with running() as engine:
        issued = await engine.login()
        fresh = await stepped_up(engine, issued)
        engine.clock.advance(engine.policy.grace)
        assert await engine.ask(issued) == Invalid(Reason.LATE)
        assert len(engine.of(LateRefresh)) == 1
        assert session_of(await engine.ask(fresh)).level == 2


async def test_an_old_refresh_token_is_a_replay_after_grace() -> None:
    """Used or not, the new tokens are somebody else's: the session ends."""
    async with running() as engine:
        issued = await engine.login()
        fresh = await stepped_up(engine, issued)
        engine.clock.advance(LATER)
        assert await engine.ask(issued) == Invalid(Reason.REPLAYED)
        assert len(engine.of(Replayed)) == 1
        assert isinstance(await engine.ask(fresh), Invalid)


async def test_the_new_tokens_are_no_successors_of_the_old() -> None:
    """Neither the key and an old refresh token lead to them, nor is an old copy given
    them within grace."""
    async with running() as engine:
        issued = await engine.login()
        fresh = await stepped_up(engine, issued)
        tokens = Tokens([SECRET])
        old = tokens.read_refresh((issued.refresh_token or "").encode())
        assert old is not None
        derived = {pair.refresh for pair in tokens.successors(old, issued.session.id)}
        assert fresh.refresh_token not in derived
        assert isinstance(await engine.ask(issued, session=False), Invalid)
        assert engine.of(Reissued) == []


async def test_a_predecessor_of_the_old_tokens_is_not_given_the_new() -> None:
    """Within grace of a rotation and of the step-up, one step behind the old pair."""
    async with running() as engine:
        before = await engine.login()
        await engine.expire()
        issued = await engine.refreshed(before)
        await stepped_up(engine, issued)
        assert await engine.ask(before, session=False) == Invalid(Reason.LATE)


@pytest.mark.parametrize("level", [2, 1, 0])
async def test_a_level_that_is_there_brings_no_new_tokens(level: int) -> None:
    """Nobody gains anything, so the tokens go on, and a second click does no harm."""
    async with running() as engine:
        fresh = await stepped_up(engine, await engine.login())
        answer = await engine.sessions.step_up(fresh.session.id, level)
        assert answer is not None
        assert (answer.session.level, answer.issued) == (2, None)
        assert session_of(await engine.ask(fresh, refresh=False)).level == 2


async def test_two_confirmations_at_once_make_one_pair() -> None:
    """The one that loses finds the level there; whichever answer comes last, the browser
    has tokens that live."""

    class Together(MemoryStore):
        """Both have read the row before either writes."""

        def __init__(self, clock: FakeClock) -> None:
            super().__init__(clock.now)
            self.read = asyncio.Barrier(2)

        async def replace_tokens(self, step: StepUp) -> Record | None:
            await self.read.wait()
            return await super().replace_tokens(step)

    clock = FakeClock()
    async with running(clock=clock, store=Together(clock)) as engine:
        issued = await engine.login()
        answers = await asyncio.gather(
            *(engine.sessions.step_up(issued.session.id, 2) for _ in range(2))
        )
        assert [answer and answer.session.level for answer in answers] == [2, 2]
        (pair,) = [answer.issued for answer in answers if answer and answer.issued]
        assert session_of(await engine.ask(pair)).level == 2


async def test_a_rotation_in_between_loses_nothing() -> None:
    """A tab rotates after the row was read: the level comes all the same, and of both new
    pairs the one with the level counts."""

    class Rotating(MemoryStore):
        async def replace_tokens(self, step: StepUp) -> Record | None:
            rotated.append(await engine.refreshed(issued))
            return await super().replace_tokens(step)

    clock, rotated = FakeClock(), list[Issued]()
    async with running(clock=clock, store=Rotating(clock.now)) as engine:
        issued = await engine.login()
        fresh = await stepped_up(engine, issued)
        assert session_of(await engine.ask(fresh)).level == 2
        assert await engine.ask(*rotated) == Invalid(Reason.LATE)


async def test_a_session_that_ended_does_not_step_up() -> None:
    """Whatever ended it, also between the read and the write."""

    class Ending(MemoryStore):
        async def replace_tokens(self, step: StepUp) -> Record | None:
            await engine.sessions.revoke(step.id)
            return await super().replace_tokens(step)

    clock = FakeClock()
    async with running(clock=clock, store=Ending(clock.now)) as engine:
        revoked, disabled, expired, racing = [
            await engine.login(user) for user in ("a", "b", "c", "d")
        ]
        await engine.sessions.revoke(revoked.session.id)
        engine.store.users["b"] = MemoryUser(is_active=False)
        for issued in (revoked, disabled, racing):
            assert await engine.sessions.step_up(issued.session.id, 2) is None
        engine.clock.advance(engine.policy.refresh_ttl)
        assert await engine.sessions.step_up(expired.session.id, 2) is None
        assert await engine.sessions.step_up("nobody", 2) is None


async def test_activity_that_is_not_written_yet_counts() -> None:
    """An active user is not idle because the flush has not come."""
    hour = seconds(3600)
    async with running(policy=Policy(idle_ttl=hour)) as engine:
        issued = await engine.login()
        engine.clock.advance(hour - seconds(1))
        assert session_of(await engine.ask(issued))
        engine.clock.advance(2)
        assert await engine.sessions.step_up(issued.session.id, 2) is not None


@pytest.mark.parametrize("remember", [True, False])
@pytest.mark.parametrize("shown", [True, False], ids=["by its token", "by its row"])
async def test_a_session_stays_remembered_or_not(remember: bool, shown: bool) -> None:
    """Its refresh token says so, or else its row; and its limit stays its own."""
    async with running() as engine:
        issued = await engine.login(remember=remember)
        engine.clock.advance(600)
        refresh = [(issued.refresh_token or "").encode()] if shown else []
        answer = await engine.sessions.step_up(issued.session.id, 2, refresh=refresh)
        assert answer is not None
        fresh = new_tokens(answer)
        assert fresh.remember is remember
        assert (fresh.session_lifetime is not None) is remember
        row, policy = engine.row(issued.session.id), engine.policy
        assert is_remembered(row, policy) is remember
        assert row.created_at is not None
        assert row.refresh_expires_at is not None
        if not remember:
            assert row.refresh_expires_at == row.created_at + policy.browser_ttl
        token = Tokens([SECRET]).read_refresh((fresh.refresh_token or "").encode())
        assert token is not None
        assert token.remember is remember


async def test_the_refresh_token_of_another_session_says_nothing() -> None:
    """Nor does one that is forged: the row does."""
    async with running() as engine:
        issued = await engine.login(remember=False)
        other = await engine.login("bob", remember=True)
        refresh = [(other.refresh_token or "").encode(), b"forged"]
        answer = await engine.sessions.step_up(issued.session.id, 2, refresh=refresh)
        assert answer is not None
        assert new_tokens(answer).remember is False


async def test_a_read_that_raced_a_step_up_is_not_cached() -> None:
    """It found the row with the old token, and came back after the notice."""

    class Slow(MemoryStore):
        async def find(self, digests: Sequence[str]) -> Sequence[Record]:
            found = await super().find(digests)
            if self.slow:
                asked.set()
                await answered.wait()
            return found

        slow = False

    clock, asked, answered = FakeClock(), asyncio.Event(), asyncio.Event()
    store = Slow(clock.now)
    async with (
        running(clock=clock, store=store) as one,
        running(clock=clock, store=store) as two,
    ):
        issued = await one.login()
        store.slow = True
        reading = asyncio.create_task(two.ask(issued, refresh=False))
        await asked.wait()
        store.slow = False
        await stepped_up(one, issued)
        answered.set()
        await reading  # it began before: either answer is right
        assert isinstance(await two.ask(issued, refresh=False), Invalid)


async def test_a_step_up_without_an_answer_may_have_been_made() -> None:
    """It was committed and its answer lost: the cache does not believe the old token."""

    class Losing(MemoryStore):
        async def replace_tokens(self, step: StepUp) -> Record | None:
            await super().replace_tokens(step)
            raise SessionsUnavailable("lost")

    clock = FakeClock()
    async with running(clock=clock, store=Losing(clock.now)) as engine:
        issued = await engine.login()
        assert session_of(await engine.ask(issued))
        with pytest.raises(SessionsUnavailable):
            await engine.sessions.step_up(issued.session.id, 2)
        assert isinstance(await engine.ask(issued, refresh=False), Invalid)


async def test_open_connections_stay_open() -> None:
    """The session is not over, in no process; they have the level that they began with."""
    clock = FakeClock()
    store = MemoryStore(clock.now)
    async with (
        running(clock=clock, store=store) as one,
        running(clock=clock, store=store) as two,
    ):
        issued = await one.login()
        closed: list[str] = []
        for engine in (one, two):
            engine.sessions.connections.add(issued.session, lambda: closed.append("one"))
        await stepped_up(one, issued)
        for engine in (one, two):
            await engine.sessions._invalidator.check_due(all_sessions=True)
        assert closed == []


async def test_an_answer_withheld_for_nothing_is_given_again() -> None:
    """Anything may have changed, and nothing had: the next request brings the same pair."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        withheld = await engine.refreshed(issued)
        engine.sessions._invalidator.reset()
        assert not engine.sessions.may_deliver(withheld)
        engine.clock.advance(LATER)
        again = await engine.refreshed(issued)
        assert engine.sessions.may_deliver(again)
        assert again.session_token == withheld.session_token


@pytest.mark.parametrize("how", ["step up", "revoke", "login"])
async def test_an_answer_that_was_overtaken_may_not_be_delivered(how: str) -> None:
    """A slow request rotated; meanwhile its session got other tokens, or ended. In each
    process that heard of it."""
    clock = FakeClock()
    store = MemoryStore(clock.now)
    async with (
        running(clock=clock, store=store) as one,
        running(clock=clock, store=store) as two,
    ):
        issued = await one.login()
        await one.expire()
        slow, other = await one.refreshed(issued), await two.refreshed(issued)
        assert one.sessions.may_deliver(slow)
        assert two.sessions.may_deliver(other)
        if how == "step up":
            latest = await stepped_up(two, issued)
        elif how == "login":
            latest = await two.login(replaces=issued.session.id)
        else:
            latest = await two.login("bob")
            await two.sessions.revoke(issued.session.id)
        assert not one.sessions.may_deliver(slow)
        assert not two.sessions.may_deliver(other)
        assert two.sessions.may_deliver(latest)
