"""Refreshing in one process: reissue, replay, lost answers, races with revocation.

By number where the catalogue of attacks has one. C-83 and C-84 on real connections are in
`tests/stores/test_table.py`; several processes at once are in `tests/rotation`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256

import pytest

from handstamp.config import Policy
from handstamp.core.models import Authenticated, Invalid, Reason, Record, Rotation, Unknown
from handstamp.core.rotation import was_seen
from handstamp.engine.cache import NEGATIVE_LIFE
from handstamp.events import (
    DuplicateCookies,
    LateRefresh,
    Refreshed,
    Reissued,
    Replayed,
    Revoked,
)
from handstamp.stores.memory import MemoryStore, MemoryUser
from tests.support.clock import FakeClock
from tests.support.engines import (
    ALICE,
    LAPTOP,
    PHONE,
    SECRET,
    Engine,
    credentials_of,
    new_tokens,
    running,
    same_tokens,
    seconds,
    session_of,
)

GRACE = Policy().grace
LATER = GRACE + seconds(1)
DAY = timedelta(days=1)


class Counting(MemoryStore):
    """A store in memory that counts what it writes, and may lose an answer."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock.now)
        self.rotations = 0
        self.redatings = 0
        self.lose_answers = 0
        self.refuse_all = False
        self.gate: asyncio.Event | None = None

    async def find_by_id(self, session_id: str) -> Record | None:
        if self.gate is not None:
            await self.gate.wait()
        return await super().find_by_id(session_id)

    async def rotate(self, step: Rotation) -> Record | None:
        if self.refuse_all:
            return None
        record = await super().rotate(step)
        self.rotations += record is not None
        if self.lose_answers:
            self.lose_answers -= 1
            raise ConnectionResetError
        return record

    async def redate(self, step: Rotation) -> Record | None:
        record = await super().redate(step)
        self.redatings += record is not None
        return record


def counting(**options: object) -> Engine:
    clock = FakeClock()
    return Engine(clock=clock, store=Counting(clock), **options)


def writes(engine: Engine) -> tuple[int, int]:
    assert isinstance(engine.store, Counting)
    return engine.store.rotations, engine.store.redatings


async def used(engine: Engine, issued: object) -> None:
    """Present a session token, and let that be known."""
    engine.clock.advance(1)
    await engine.ask(issued)  # type: ignore[arg-type]
    await engine.sessions.flush()


async def test_a_dead_session_token_is_replaced() -> None:
    """The request is authenticated, and both tokens are new."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        answer = await engine.ask(issued)
        fresh = new_tokens(answer)
        assert session_of(answer).id == issued.session.id
        assert fresh.session_token != issued.session_token
        assert fresh.refresh_token != issued.refresh_token
        assert [e.session_id for e in engine.of(Refreshed)] == [issued.session.id]


async def test_a_live_session_token_rotates_nothing() -> None:
    """The refresh token beside it is not even looked at."""
    async with running() as engine:
        issued = await engine.login()
        answer = await engine.ask(issued)
        assert isinstance(answer, Authenticated)
        assert answer.issued is None
        assert engine.of(Refreshed) == []


async def test_the_new_tokens_work_and_the_old_ones_are_spent() -> None:
    """A session token lives once; its successor authenticates."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        fresh = await engine.refreshed(issued)
        assert session_of(await engine.ask(fresh)).id == issued.session.id
        assert isinstance(await engine.ask(issued, refresh=False), Invalid)


@pytest.mark.parametrize("remember", [True, False])
async def test_remember_survives_a_rotation(remember: bool) -> None:
    """It has no column; browser cookies stay browser cookies, and lasting ones lasting."""
    async with running() as engine:
        issued = await engine.login(remember=remember)
        await engine.expire()
        fresh = await engine.refreshed(issued)
        assert fresh.remember is remember
        assert (fresh.session_lifetime is not None) is remember
        assert (fresh.refresh_lifetime is not None) is remember


async def test_c75_tabs_at_once_get_one_successor() -> None:
    """A hundred requests with one dead session token: one write, one pair, all in."""
    engine = counting()
    async with engine.sessions:
        issued = await engine.login()
        await engine.expire()
        answers = await asyncio.gather(*(engine.ask(issued) for _ in range(100)))
        first = new_tokens(answers[0])
        assert all(same_tokens(new_tokens(answer), first) for answer in answers)
        assert writes(engine) == (1, 0)


async def test_c75_tabs_after_each_other_get_one_successor() -> None:
    """Within grace the old token is met with the very same pair, and no write."""
    engine = counting()
    async with engine.sessions:
        issued = await engine.login()
        await engine.expire()
        first = await engine.refreshed(issued)
        engine.clock.advance(GRACE)
        again = await engine.refreshed(issued)
        assert same_tokens(again, first)
        assert writes(engine) == (1, 0)
        assert [e.redated for e in engine.of(Reissued)] == [False]


async def test_c75_processes_at_once_get_one_successor() -> None:
    """Two processes on one table derive the same pair; whoever is late reissues it."""
    clock = FakeClock()
    store = Counting(clock)
    engines = [Engine(clock=clock, store=store) for _ in range(2)]
    async with engines[0].sessions, engines[1].sessions:
        issued = await engines[0].login()
        clock.advance(Policy().session_ttl)
        store.gate = asyncio.Event()
        asking = [asyncio.create_task(e.ask(issued)) for e in engines for _ in range(5)]
        await asyncio.sleep(0)
        store.gate.set()
        answers = await asyncio.gather(*asking)
        first = new_tokens(answers[0])
        assert all(same_tokens(new_tokens(answer), first) for answer in answers)
        assert store.rotations == 1


async def test_c77_the_replaced_session_token_is_good_for_grace() -> None:
    """A request under way with the old token is served where the old one was cached."""
    async with running(
        policy=Policy(
            max_staleness=timedelta(minutes=10), longest_trust=timedelta(minutes=10)
        )
    ) as engine:
        issued = await engine.login()
        await engine.ask(issued)
        await engine.refreshed(issued)  # early: the session cookie was lost in this tab
        engine.clock.advance(GRACE - seconds(1))
        assert session_of(await engine.ask(issued, refresh=False)).id == issued.session.id
        engine.clock.advance(1)
        assert isinstance(await engine.ask(issued, refresh=False), Invalid)


@pytest.mark.parametrize("away", [timedelta(minutes=10), 3 * DAY, 29 * DAY], ids=str)
async def test_c78_a_lost_answer_is_given_again(away: timedelta) -> None:
    """As long as the successor was never seen, the old token gets it, at any age."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        lost = await engine.refreshed(issued)
        engine.clock.advance(away)
        again = await engine.refreshed(issued)
        assert same_tokens(again, lost)
        assert [e.redated for e in engine.of(Reissued)] == [True]
        assert engine.row(issued.session.id).last_activity_at == engine.clock.now()


async def test_c78_an_answer_may_be_lost_twice() -> None:
    """And a third time: never a second step."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        lost = await engine.refreshed(issued)
        for _ in range(3):
            engine.clock.advance(DAY)
            assert same_tokens(await engine.refreshed(issued), lost)
        await used(engine, lost)
        assert len(engine.of(Refreshed)) == 1
        assert engine.of(Replayed) == []


async def test_c78_grace_counts_from_the_answer_that_arrived() -> None:
    """Tabs that come with the old token right after a redated answer are met too."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        await engine.refreshed(issued)
        engine.clock.advance(DAY)
        again = await engine.refreshed(issued)
        await used(engine, again)
        engine.clock.advance(GRACE - seconds(1))
        assert same_tokens(await engine.refreshed(issued), again)


async def test_c78_the_limits_apply_to_a_lost_answer() -> None:
    """Past the refresh limit nothing is given again."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        await engine.refreshed(issued)
        engine.clock.advance(engine.policy.refresh_ttl)
        answer = await engine.ask(issued)
        assert answer == Invalid(Reason.REFRESH_EXPIRED)
        assert engine.row(issued.session.id).is_active


async def test_c79_a_replay_ends_the_session_and_names_both_parties() -> None:
    """The successor was seen and grace is over: revoked, everywhere, with an event."""
    async with running() as engine:
        issued = await engine.login(client=LAPTOP)
        await engine.expire()
        fresh = await engine.refreshed(issued)
        await used(engine, fresh)
        engine.clock.advance(LATER)
        answer = await engine.ask(issued, client=PHONE)
        assert answer == Invalid(Reason.REPLAYED)
        assert not engine.row(issued.session.id).is_active
        (event,) = engine.of(Replayed)
        assert event.presented_by == PHONE
        assert event.signed_in_by.address == LAPTOP.address
        assert event.signed_in_by.user_agent_hash == LAPTOP.user_agent_hash
        assert [e.session_id for e in engine.of(Revoked)] == [issued.session.id]
        assert isinstance(await engine.ask(fresh), Invalid)


async def test_c79_seen_by_a_passive_request_is_seen() -> None:
    """A page that only polls proves its new token as well as any other."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        fresh = await engine.refreshed(issued)
        await engine.ask(fresh, passive=True)
        await engine.sessions.flush()
        engine.clock.advance(LATER)
        assert await engine.ask(issued) == Invalid(Reason.REPLAYED)


@pytest.mark.parametrize("polls", [1, 3])
async def test_c79_a_thief_who_only_polls_with_the_refresh_token_is_found_out(
    polls: int,
) -> None:
    """One rotation ahead of its victim and passive ever since: the refresh token itself
    proves that its answer arrived, so the victim's old one is a replay."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        ahead = await engine.refreshed(issued, client=PHONE)
        await engine.expire()
        for _ in range(polls):
            assert session_of(await engine.ask(ahead, client=PHONE, passive=True))
            await engine.sessions.flush()
            engine.clock.advance(LATER)
        assert await engine.ask(issued) == Invalid(Reason.REPLAYED)
        assert isinstance(await engine.ask(ahead, passive=True), Invalid)


async def test_c79_what_a_poll_proved_survives_a_repeated_answer() -> None:
    """The victim gets the repetition before the proof is written: it is not lost."""
    clock = FakeClock()
    store = MemoryStore(clock.now)
    async with (
        running(clock=clock, store=store) as one,
        running(clock=clock, store=store) as two,
    ):
        issued = await one.login()
        await one.expire()
        ahead = await one.refreshed(issued, client=PHONE)
        clock.advance(LATER)
        assert session_of(await one.ask(ahead, passive=True, session=False))
        assert same_tokens(await two.refreshed(issued), ahead)
        await one.sessions.flush()
        clock.advance(LATER)
        assert await two.ask(issued, session=False) == Invalid(Reason.REPLAYED)


async def test_c79_a_poll_with_the_old_token_proves_nothing() -> None:
    """It shows that the answer did not arrive, so the pair is handed out again."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        lost = await engine.refreshed(issued)
        for _ in range(3):
            assert session_of(await engine.ask(issued, session=False, passive=True))
            await engine.sessions.flush()
            engine.clock.advance(LATER)
        assert same_tokens(await engine.refreshed(issued), lost)


@pytest.mark.parametrize("cached", [False, True])
async def test_what_proves_a_token_is_no_activity(cached: bool) -> None:
    """The refresh token of a poll is recorded as seen, and extends no idle limit."""
    hour = timedelta(hours=1)
    async with running(policy=Policy(idle_ttl=hour)) as engine:
        issued = await engine.login()
        engine.clock.advance(hour - seconds(1))
        for _ in range(1 + cached):
            assert session_of(await engine.ask(issued, passive=True))
        assert await engine.sessions.flush() == 1
        row = engine.row(issued.session.id)
        assert row.last_activity_at == issued.session.created_at + timedelta(microseconds=1)
        assert was_seen(row, engine.policy.session_ttl)
        engine.clock.advance(1.001)
        assert await engine.ask(issued, passive=True) == Invalid(Reason.IDLE)


async def test_a_token_that_is_known_to_be_seen_is_not_recorded_again() -> None:
    """A page that polls for hours costs one write."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        written = []
        for _ in range(3):
            assert session_of(await engine.ask(issued, passive=True))
            written.append(await engine.sessions.flush())
            engine.clock.advance(engine.policy.max_staleness)
        assert written == [1, 0, 0]


async def test_c80_a_token_generations_old_ends_the_session() -> None:
    """Without a history table: its signature is ours, and its place is taken twice over."""
    async with running() as engine:
        first = issued = await engine.login()
        for _ in range(3):
            await engine.expire()
            issued = await engine.refreshed(issued)
        engine.clock.advance(LATER)
        assert await engine.ask(first) == Invalid(Reason.REPLAYED)
        assert not engine.row(first.session.id).is_active


async def test_c81_a_late_tab_is_refused_and_ends_nothing() -> None:
    """Generations old but within grace of a rotation: no new tokens, and an event."""
    async with running() as engine:
        first = await engine.login()
        await engine.expire()
        second = await engine.refreshed(first)
        await engine.expire()
        await engine.refreshed(second)
        engine.clock.advance(GRACE)
        assert await engine.ask(first) == Invalid(Reason.LATE)
        assert engine.row(first.session.id).is_active
        assert [e.session_id for e in engine.of(LateRefresh)] == [first.session.id]


async def test_c82_a_restart_forgets_no_theft() -> None:
    """Nothing about replay lives in memory."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        await used(engine, await engine.refreshed(issued))
        engine.clock.advance(LATER)
    async with running(clock=engine.clock, store=engine.store) as restarted:
        assert await restarted.ask(issued) == Invalid(Reason.REPLAYED)


@pytest.mark.parametrize("refresh_first", [True, False])
async def test_c84_a_revocation_and_a_refresh_in_either_order(refresh_first: bool) -> None:
    """Once both returned, no token of the family works."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        pairs = [issued]
        if refresh_first:
            pairs.append(await engine.refreshed(issued))
        await engine.sessions.revoke(issued.session.id)
        for pair in pairs:
            assert await engine.ask(pair, session=False) == Invalid(Reason.REVOKED)
            assert isinstance(await engine.ask(pair), Invalid)


async def test_c84_a_refresh_overtaken_by_a_revocation() -> None:
    """Revoked between the read and the write: the write fails, the second read denies."""

    class Overtaken(MemoryStore):
        async def rotate(self, step: Rotation) -> Record | None:
            await self.revoke(step.id, reason="x")
            return await super().rotate(step)

    clock = FakeClock()
    async with running(clock=clock, store=Overtaken(clock.now)) as engine:
        issued = await engine.login()
        await engine.expire()
        assert await engine.ask(issued) == Invalid(Reason.REVOKED)


async def test_c85_a_disabled_user_gets_no_refresh() -> None:
    """Also when the user was disabled between the read and the write."""

    class Overtaken(MemoryStore):
        async def rotate(self, step: Rotation) -> Record | None:
            self.users[ALICE] = MemoryUser(is_active=False)
            return await super().rotate(step)

    clock = FakeClock()
    async with running(clock=clock, store=Overtaken(clock.now)) as engine:
        issued = await engine.login()
        await engine.expire()
        assert await engine.ask(issued) == Invalid(Reason.USER_DISABLED)
        assert await engine.ask(issued) == Invalid(Reason.USER_DISABLED)
        assert engine.row(issued.session.id).is_active


async def test_c85_a_user_enabled_again_is_back() -> None:
    """A disabled user's session is refused and not ended; what was read is forgotten
    within seconds."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        engine.store.users[ALICE] = MemoryUser(is_active=False)
        await engine.ask(issued)
        engine.store.users[ALICE].is_active = True
        engine.clock.advance(timedelta(seconds=NEGATIVE_LIFE))
        assert session_of(await engine.ask(issued)).id == issued.session.id


@pytest.mark.parametrize("remember", [True, False])
async def test_c86_the_absolute_limit_holds_whatever_is_refreshed(remember: bool) -> None:
    """Refreshing every ten minutes to the end: in at the last second, out at the limit."""
    policy = Policy(absolute_ttl=3 * DAY, browser_ttl=DAY, session_ttl=timedelta(hours=1))
    async with running(policy=policy) as engine:
        issued = await engine.login(remember=remember)
        limit = engine.clock.now() + policy.lifetime(remember=remember)
        while engine.clock.now() + policy.session_ttl < limit:
            await engine.expire()
            issued = await engine.refreshed(issued)
        engine.clock.advance(limit - engine.clock.now() - seconds(1))
        assert session_of(await engine.ask(issued))
        engine.clock.advance(1)
        assert isinstance(await engine.ask(issued), Invalid)


async def test_c86_no_session_token_outlives_its_family() -> None:
    """A rotation close to the limit gives a session that ends there, cached or not."""
    policy = Policy(absolute_ttl=DAY)
    async with running(policy=policy) as engine:
        issued = await engine.login()
        engine.clock.advance(DAY - seconds(100))
        fresh = await engine.refreshed(issued)
        engine.clock.advance(98)
        assert session_of(await engine.ask(fresh))
        engine.clock.advance(2)
        assert isinstance(await engine.ask(fresh), Invalid)


async def test_c87_the_thief_refreshes_first_and_both_are_out() -> None:
    """The victim's next request exposes it."""
    async with running() as engine:
        victim = await engine.login()
        await engine.expire()
        thief = await engine.refreshed(victim, PHONE)
        await used(engine, thief)
        engine.clock.advance(LATER)
        assert isinstance(await engine.ask(victim), Invalid)
        assert isinstance(await engine.ask(thief), Invalid)
        assert len(engine.of(Replayed)) == 1


async def test_c88_a_copy_taken_within_grace_exposes_itself() -> None:
    """Two hold one successor; the next rotation by either leaves the other behind."""
    async with running() as engine:
        victim = await engine.login()
        await engine.expire()
        copy = await engine.refreshed(victim, PHONE)
        mine = await engine.refreshed(victim)
        assert same_tokens(copy, mine)
        await engine.expire()
        await used(engine, await engine.refreshed(mine))
        engine.clock.advance(LATER)
        assert await engine.ask(copy, client=PHONE) == Invalid(Reason.REPLAYED)


async def test_c89_whoever_loses_the_race_is_signed_in() -> None:
    """A rotation by somebody else between the read and the write ends in a reissue."""

    class Overtaken(MemoryStore):
        def __init__(self, clock: FakeClock) -> None:
            super().__init__(clock.now)
            self.overtaken = False

        async def rotate(self, step: Rotation) -> Record | None:
            if not self.overtaken:
                self.overtaken = True
                await super().rotate(step)
            return await super().rotate(step)

    clock = FakeClock()
    async with running(clock=clock, store=Overtaken(clock)) as engine:
        issued = await engine.login()
        await engine.expire()
        fresh = await engine.refreshed(issued)
        assert engine.of(Refreshed) == []
        assert len(engine.of(Reissued)) == 1
        assert session_of(await engine.ask(fresh)).id == issued.session.id


async def test_a_race_that_is_always_lost_is_no_verdict() -> None:
    """Nobody is signed out, and nothing spins for ever."""
    engine = counting()
    assert isinstance(engine.store, Counting)
    async with engine.sessions:
        issued = await engine.login()
        await engine.expire()
        engine.store.refuse_all = True
        assert isinstance(await engine.ask(issued), Unknown)
        engine.store.refuse_all = False
        assert session_of(await engine.ask(issued)).id == issued.session.id


async def test_c96_an_outage_at_the_refresh_is_no_verdict() -> None:
    """Unknown, nothing written, and afterwards the same tokens still work."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        engine.store.down = True
        assert isinstance(await engine.ask(issued), Unknown)
        engine.store.down = False
        assert session_of(await engine.ask(issued)).id == issued.session.id


async def test_c97_a_commit_whose_answer_was_lost() -> None:
    """The next try finds itself one step behind and gets the pair that was committed."""
    engine = counting()
    assert isinstance(engine.store, Counting)
    async with engine.sessions:
        issued = await engine.login()
        await engine.expire()
        engine.store.lose_answers = 1
        with pytest.raises(ConnectionResetError):
            await engine.ask(issued)
        fresh = await engine.refreshed(issued)
        assert writes(engine) == (1, 0)
        assert session_of(await engine.ask(fresh)).id == issued.session.id


async def test_c98_a_client_that_keeps_no_cookies_costs_no_writes() -> None:
    """Refused cookies: the same pair again and again, and one write per grace at most."""
    engine = counting()
    async with engine.sessions:
        issued = await engine.login()
        await engine.expire()
        first = await engine.refreshed(issued)
        for _ in range(60):
            engine.clock.advance(1)
            assert same_tokens(await engine.refreshed(issued), first)
        assert writes(engine) == (1, 1)


async def test_c99_a_storm_with_one_dead_token_writes_once() -> None:
    """A thousand requests, one flight, one read and one write."""
    engine = counting()
    async with engine.sessions:
        issued = await engine.login()
        await engine.expire()
        before = engine.store.queries
        await asyncio.gather(*(engine.ask(issued, session=False) for _ in range(1000)))
        assert writes(engine) == (1, 0)
        assert engine.store.queries - before <= 3


async def test_c64_a_leader_that_goes_away_fails_nobody() -> None:
    """The request that started the flight is cancelled; those that joined get in."""
    engine = counting()
    assert isinstance(engine.store, Counting)
    async with engine.sessions:
        issued = await engine.login()
        await engine.expire()
        engine.store.gate = asyncio.Event()
        leader = asyncio.create_task(engine.ask(issued))
        others = [asyncio.create_task(engine.ask(issued)) for _ in range(3)]
        await asyncio.sleep(0)
        leader.cancel()
        await asyncio.wait([leader])
        engine.store.gate.set()
        answers = await asyncio.gather(*others)
        assert leader.cancelled()
        assert {session_of(answer).id for answer in answers} == {issued.session.id}
        assert writes(engine) == (1, 0)


async def test_c64_a_flight_that_all_have_left_lands() -> None:
    """Every passenger cancelled: the rotation is carried out, and the pair is not lost."""
    engine = counting()
    assert isinstance(engine.store, Counting)
    async with engine.sessions:
        issued = await engine.login()
        await engine.expire()
        engine.store.gate = asyncio.Event()
        leader = asyncio.create_task(engine.ask(issued))
        await asyncio.sleep(0)
        leader.cancel()
        await asyncio.wait([leader])
        engine.store.gate.set()
        fresh = await engine.refreshed(issued)
        assert writes(engine) == (1, 0)
        assert session_of(await engine.ask(fresh)).id == issued.session.id
        assert engine.sessions._refresher._single_flight == {}


# What P9 promises, and what tokens of other making do.


@pytest.mark.parametrize(
    "forge",
    [
        lambda t: t[:-1] + ("A" if t[-1] != "A" else "E"),
        lambda t: "0" + t[1:] if t[0] != "0" else "1" + t[1:],
        lambda t: t.replace(".r.", ".b."),
        lambda t: t + "=",
        lambda t: t.rpartition(".")[0],
        lambda t: "x" * 200,
    ],
    ids=["signature", "id", "kind", "padding", "unsigned", "noise"],
)
async def test_p9_a_forged_refresh_token_reaches_nothing(forge: object) -> None:
    """No query, no write, no event; the session stands."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        before, events = engine.store.queries, len(engine.events)
        forged = forge(issued.refresh_token)  # type: ignore[operator]
        answer = await engine.sessions.authenticate(credentials_of(refresh=[forged]), PHONE)
        assert answer == Invalid(Reason.FORGED)
        assert (engine.store.queries, len(engine.events)) == (before, events)
        assert engine.row(issued.session.id).is_active


async def test_c50_tokens_of_another_site_are_noise() -> None:
    """Another secret on the same table: neither token is looked up."""
    async with running() as engine:
        issued = await engine.login()
    async with running(clock=engine.clock, store=engine.store, secret="x" * 32) as other:
        before = other.store.queries
        assert await other.ask(issued) == Invalid(Reason.FORGED)
        assert other.store.queries == before


async def test_a_secret_can_be_changed() -> None:
    """Tokens under the old secret live on, rotate to the new one, and then need no old."""
    async with running() as engine:
        issued = await engine.login()
    table = {"clock": engine.clock, "store": engine.store}
    async with running(**table, secrets=[SECRET, "n" * 32]) as both:
        assert session_of(await both.ask(issued))
        await both.expire()
        fresh = await both.refreshed(issued)
        again = await both.refreshed(issued)
        assert same_tokens(fresh, again)
    async with running(**table, secret="n" * 32) as new:
        assert session_of(await new.ask(fresh)).id == issued.session.id


async def test_a_rotation_by_a_process_with_the_old_secret_is_recognised() -> None:
    """During a deployment, whichever key derived the successor, all give that one."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        fresh = await engine.refreshed(issued)
    table = {"clock": engine.clock, "store": engine.store}
    async with running(**table, secrets=[SECRET, "n" * 32]) as both:
        assert same_tokens(await both.refreshed(issued), fresh)


# Several refresh tokens in one request.


async def test_a_forgotten_cookie_beside_the_current_one_is_no_theft() -> None:
    """A stale and a current token of one session: the current one rotates."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        fresh = await engine.refreshed(issued)
        await used(engine, fresh)
        await engine.expire()
        answer = await engine.ask(issued, fresh, session=False)
        assert new_tokens(answer).session.id == issued.session.id
        assert engine.of(Replayed) == []
        assert [e.conflict for e in engine.of(DuplicateCookies)] == [False]


async def test_the_current_one_of_two_cookies_goes_before_a_repetition() -> None:
    """Within grace both stand; the newer one is what the client holds."""
    async with running() as engine:
        issued = await engine.login()
        fresh = await engine.refreshed(issued)
        answer = new_tokens(await engine.ask(issued, fresh, session=False))
        assert not same_tokens(answer, fresh)
        assert engine.of(Reissued) == []


@pytest.mark.parametrize("first", [True, False], ids=["stale first", "stale last"])
async def test_a_repetition_beside_a_token_that_stands_no_more(first: bool) -> None:
    """The order of the cookies decides nothing: the one that stands is answered."""
    async with running() as engine:
        gone, issued = await engine.login("bob"), await engine.login()
        await engine.sessions.revoke(gone.session.id)
        await engine.expire()
        fresh = await engine.refreshed(issued)
        cookies = [gone, issued] if first else [issued, gone]
        assert same_tokens(new_tokens(await engine.ask(*cookies, session=False)), fresh)


@pytest.mark.parametrize("first", [True, False], ids=["stale first", "stale last"])
async def test_a_replay_is_not_hidden_by_another_cookie(first: bool) -> None:
    """A cookie of a session that is over, planted beside the stolen one's predecessor."""
    async with running() as engine:
        gone, issued = await engine.login("mallory"), await engine.login()
        await engine.sessions.revoke(gone.session.id)
        await engine.expire()
        await used(engine, await engine.refreshed(issued))
        engine.clock.advance(LATER)
        cookies = [gone, issued] if first else [issued, gone]
        answer = await engine.ask(*cookies, session=False)
        assert answer == Invalid(Reason.REPLAYED)
        assert not engine.row(issued.session.id).is_active


async def test_of_several_cookies_none_of_which_stands_none_counts() -> None:
    """The answer is a reason, not a conflict, and nothing is written."""
    engine = counting()
    async with engine.sessions:
        one, two = await engine.login(), await engine.login("bob")
        for issued in (one, two):
            await engine.sessions.revoke(issued.session.id)
        assert await engine.ask(one, two, session=False) == Invalid(Reason.REVOKED)
        assert writes(engine) == (0, 0)


async def test_a_repetition_and_another_session_s_token_are_a_conflict() -> None:
    """Both stand, so they contradict each other like any two sessions."""
    async with running() as engine:
        one, two = await engine.login(), await engine.login("bob")
        await engine.expire()
        await engine.refreshed(one)
        assert await engine.ask(one, two, session=False) == Invalid(Reason.CONFLICT)
        assert await engine.ask(two, one, session=False) == Invalid(Reason.CONFLICT)


async def test_refresh_tokens_of_two_sessions_count_for_none() -> None:
    """Anonymous, with an event, and nothing is written."""
    engine = counting()
    async with engine.sessions:
        one, two = await engine.login(), await engine.login("bob")
        await engine.expire()
        answer = await engine.ask(one, two, session=False)
        assert answer == Invalid(Reason.CONFLICT)
        assert writes(engine) == (0, 0)
        assert [e.conflict for e in engine.of(DuplicateCookies)] == [True]


async def test_a_refresh_token_merges_no_two_sessions() -> None:
    """Beside a live session token of another session it is a conflict while it would be
    accepted, and nothing at all after that; it is never used."""
    async with running() as engine:
        one, two = await engine.login(), await engine.login("bob")
        credentials = credentials_of([one.session_token], [two.refresh_token])
        answer = await engine.sessions.authenticate(credentials, LAPTOP)
        assert answer == Invalid(Reason.CONFLICT)
        assert [e.conflict for e in engine.of(DuplicateCookies)] == [True]
        await engine.sessions.revoke(two.session.id)
        answer = await engine.sessions.authenticate(credentials, LAPTOP)
        assert session_of(answer).id == one.session.id
        assert engine.of(Refreshed) == []


# Passive requests.


async def test_a_passive_request_never_rotates() -> None:
    """A dead session token: it is authenticated by the refresh token as it stands, which
    is recorded as seen."""
    engine = counting()
    async with engine.sessions:
        issued = await engine.login()
        await engine.expire()
        answer = await engine.ask(issued, passive=True)
        assert isinstance(answer, Authenticated)
        assert (answer.session.id, answer.issued) == (issued.session.id, None)
        assert writes(engine) == (0, 0)
        assert engine.sessions.stats().pending_touches == 1


async def test_a_polling_page_is_cached_too() -> None:
    """The second poll with the same refresh token asks nothing; later ones ask again."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        await engine.ask(issued, passive=True, session=False)
        before = engine.store.queries
        await engine.ask(issued, passive=True, session=False)
        assert engine.store.queries == before
        engine.clock.advance(engine.policy.max_staleness)
        await engine.ask(issued, passive=True, session=False)
        assert engine.store.queries == before + 1


async def test_a_polling_page_is_out_when_its_session_is() -> None:
    """What vouches for polls is forgotten with the session."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        await engine.ask(issued, passive=True)
        await engine.sessions.revoke(issued.session.id)
        assert isinstance(await engine.ask(issued, passive=True), Invalid)


@pytest.mark.parametrize("early", [True, False])
async def test_p8_a_replaced_refresh_token_serves_no_poll_beyond_grace(early: bool) -> None:
    """A poll just before the end of grace is believed until then: the next one is a replay,
    also where the cache would still believe the row for a while. So is one in a process
    that had read the row before its successor was used elsewhere."""
    clock = FakeClock()
    store, policy = MemoryStore(clock.now), Policy(max_staleness=DAY, longest_trust=DAY)
    async with (
        running(clock=clock, store=store, policy=policy) as here,
        running(clock=clock, store=store, policy=policy) as there,
    ):
        issued = await here.login()
        clock.advance(policy.session_ttl)
        fresh = await here.refreshed(issued)
        if early:
            await here.ask(fresh)
            await here.sessions.flush()
            clock.advance(policy.grace - seconds(1))
        else:
            clock.advance(policy.grace + seconds(1))
        queries = store.queries
        for _ in range(2):
            assert session_of(await there.ask(issued, passive=True, session=False))
        assert store.queries - queries == (1 if early else 2)
        if not early:
            await here.ask(fresh)
            await here.sessions.flush()
        clock.advance(seconds(1.001))
        answer = await there.ask(issued, passive=True, session=False)
        assert answer == Invalid(Reason.REPLAYED)
        assert [e.session_id for e in there.of(Replayed)] == [issued.session.id]


async def test_what_vouches_for_polls_is_no_session_token() -> None:
    """The cached refresh token does not count where a session token is asked for."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        await engine.ask(issued, passive=True)
        assert engine.sessions.hit(issued.refresh_token.encode()) is None
        key = sha256(issued.refresh_token.encode()).digest() + b"r"
        assert engine.sessions.hit(key) is None


async def test_a_passive_request_ends_with_the_family() -> None:
    """At the refresh limit the refresh token vouches no more, cached or not."""
    async with running(policy=Policy(max_staleness=DAY, longest_trust=DAY)) as engine:
        issued = await engine.login()
        engine.clock.advance(engine.policy.refresh_ttl - seconds(1))
        assert session_of(await engine.ask(issued, passive=True))
        engine.clock.advance(1)
        assert isinstance(await engine.ask(issued, passive=True), Invalid)


# Tokens from before handstamp.

THEIRS = "0123456789abcdef-a-token-the-application-made"
THEIR_REFRESH = "fedcba9876543210-its-refresh-token"


async def adopted(engine: Engine) -> str:
    """A session that the application opened itself, with plain random tokens."""
    issued = await engine.login()
    engine.store.rows[issued.session.id] = replace(
        engine.row(issued.session.id),
        token_digest=sha256(THEIRS.encode()).hexdigest(),
        refresh_digest=sha256(THEIR_REFRESH.encode()).hexdigest(),
    )
    engine.sessions._state.cache.doubt()
    return issued.session.id


def unsigned() -> Policy:
    return Policy(accept_unsigned=True)


async def with_theirs(engine: Engine, *, session: bool = False) -> object:
    sessions: Sequence[str] = [THEIRS] if session else []
    return await engine.sessions.authenticate(
        credentials_of(sessions, [THEIR_REFRESH]), LAPTOP
    )


async def test_an_unsigned_token_is_refused_by_default() -> None:
    """Without a query."""
    async with running() as engine:
        await adopted(engine)
        before = engine.store.queries
        assert await with_theirs(engine, session=True) == Invalid(Reason.FORGED)
        assert engine.store.queries == before


async def test_an_unsigned_session_token_is_accepted_on_demand() -> None:
    """By its digest, and from the cache the second time."""
    async with running(policy=unsigned()) as engine:
        session_id = await adopted(engine)
        assert session_of(await with_theirs(engine, session=True)).id == session_id  # type: ignore[arg-type]
        before = engine.store.queries
        await with_theirs(engine, session=True)
        assert engine.store.queries == before


async def test_an_unsigned_session_becomes_ours_at_its_first_rotation() -> None:
    """The new pair is signed, and works where unsigned ones are no more accepted."""
    async with running(policy=unsigned()) as engine:
        session_id = await adopted(engine)
        await engine.expire()
        fresh = new_tokens(await with_theirs(engine))  # type: ignore[arg-type]
    async with running(clock=engine.clock, store=engine.store) as strict:
        assert session_of(await strict.ask(fresh)).id == session_id
        await strict.expire()
        assert new_tokens(await strict.ask(fresh)).session.id == session_id


@pytest.mark.parametrize("away", [seconds(1), 3 * DAY], ids=str)
async def test_the_first_rotation_of_an_unsigned_token_may_be_lost(away: timedelta) -> None:
    """The old token names no session, and still gets the same successor again."""
    async with running(policy=unsigned()) as engine:
        session_id = await adopted(engine)
        await engine.expire()
        lost = new_tokens(await with_theirs(engine))  # type: ignore[arg-type]
        engine.clock.advance(away)
        again = new_tokens(await with_theirs(engine))  # type: ignore[arg-type]
        assert again.session.id == session_id
        assert same_tokens(again, lost)


async def test_an_unsigned_token_replayed_ends_the_session() -> None:
    """Its successor was seen and grace is over."""
    async with running(policy=unsigned()) as engine:
        session_id = await adopted(engine)
        await engine.expire()
        await used(engine, new_tokens(await with_theirs(engine)))  # type: ignore[arg-type]
        engine.clock.advance(LATER)
        assert await with_theirs(engine) == Invalid(Reason.REPLAYED)
        assert not engine.row(session_id).is_active


async def test_p9_an_unknown_unsigned_token_reaches_nothing() -> None:
    """It is not found, and no session ends."""
    async with running(policy=unsigned()) as engine:
        session_id = await adopted(engine)
        answer = await engine.sessions.authenticate(
            credentials_of(["no"], ["no, too"]), PHONE
        )
        assert answer == Invalid(Reason.NOT_FOUND)
        assert engine.row(session_id).is_active


# Delivery.


async def test_tokens_are_to_be_delivered_within_grace() -> None:
    """After that a newer pair may be on its way."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        fresh = await engine.refreshed(issued)
        assert fresh.deliver_until == engine.clock() + GRACE.total_seconds()
        engine.clock.advance(10)
        again = await engine.refreshed(issued)
        assert again.deliver_until == fresh.deliver_until


async def test_a_redated_answer_has_its_own_time() -> None:
    """Its grace begins anew."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        await engine.refreshed(issued)
        engine.clock.advance(DAY)
        again = await engine.refreshed(issued)
        assert again.deliver_until == engine.clock() + GRACE.total_seconds()


async def test_p7_the_last_rotation_is_unseen_until_its_token_comes_back() -> None:
    """The request that rotates proves nothing about what its client received."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        fresh = await engine.refreshed(issued)
        await engine.sessions.flush()
        assert not was_seen(engine.row(issued.session.id), engine.policy.session_ttl)
        await engine.ask(fresh)
        await engine.sessions.flush()
        assert was_seen(engine.row(issued.session.id), engine.policy.session_ttl)


# Outside of cookies.


async def test_a_refresh_token_is_exchanged_outside_of_cookies() -> None:
    """For bearer tokens: the next pair, or None without a reason for the client."""
    async with running() as engine:
        issued = await engine.login()
        fresh = await engine.sessions.refresh(issued.refresh_token, client=PHONE)
        assert fresh is not None
        assert session_of(await engine.ask(fresh)).id == issued.session.id
        for nonsense in ("", "ü", "\ud800", "x" * 5000, issued.session_token):
            assert await engine.sessions.refresh(nonsense) is None
