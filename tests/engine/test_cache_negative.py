"""NegativeCache: invalid tokens, remembered briefly and with the reason."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from handstamp.config import Policy
from handstamp.core.lifetime import FINAL
from handstamp.core.models import Answer, Invalid, Issued, Reason, Unknown
from handstamp.core.tokens import ENTROPY, Tokens
from handstamp.engine.cache import MAX_NEGATIVE, NEGATIVE_LIFE, NegativeCache
from handstamp.events import LateRefresh, Replayed
from handstamp.stores.memory import MemoryUser
from tests.support.engines import (
    LAPTOP,
    SECRET,
    Engine,
    credentials_of,
    new_tokens,
    running,
    same_tokens,
    seconds,
    session_of,
)

TOKENS = Tokens([SECRET])


def key(number: int) -> bytes:
    return number.to_bytes(32)


def genuine(number: int) -> str:
    """A session token with our signature and without a row."""
    return TOKENS.mint("01J", 2 * number.to_bytes(ENTROPY), remember=True).session


async def answer(engine: Engine, text: str) -> Answer:
    return await engine.sessions.authenticate(credentials_of([text]), LAPTOP)


def test_a_digest_is_kept_for_its_life() -> None:
    """Up to the last moment, and not at it."""
    negative_cache = NegativeCache(life=2.0)
    negative_cache.add(key(1), 100.0)
    assert negative_cache.get(key(1), 101.999)
    assert not negative_cache.get(key(1), 102.0)
    assert not negative_cache.get(key(2), 100.0)


def test_a_digest_has_its_reason() -> None:
    """The last one that was given; without one, it is that there is no row."""
    negative_cache = NegativeCache()
    negative_cache.add(key(1), 100.0)
    negative_cache.add(key(2), 100.0, Reason.IDLE)
    negative_cache.add(key(2), 100.0, Reason.REVOKED)
    why = [negative_cache.get(key(n), 101.0) for n in (1, 2, 3)]
    assert why == [Reason.NOT_FOUND, Reason.REVOKED, None]


def test_adding_again_counts_from_now() -> None:
    """Fresh data has just denied it once more."""
    negative_cache = NegativeCache(life=2.0)
    negative_cache.add(key(1), 100.0)
    negative_cache.add(key(1), 101.5)
    assert negative_cache.get(key(1), 103.0)
    assert len(negative_cache) == 1


def test_c37_the_negative_cache_is_bounded() -> None:
    """However many are added, the oldest are removed first."""
    negative_cache = NegativeCache(max_digests=100)
    for number in range(10_000):
        negative_cache.add(key(number), 100.0)
    assert len(negative_cache) == 100
    assert [n for n in range(10_000) if negative_cache.get(key(n), 100.0)] == list(
        range(9900, 10_000)
    )
    assert (NEGATIVE_LIFE, MAX_NEGATIVE) == (2.0, 10_000)


def test_a_digest_that_became_a_session_is_removed() -> None:
    """Removing works at once, also for a digest that was never added."""
    negative_cache = NegativeCache()
    negative_cache.add(key(1), 100.0)
    negative_cache.remove(key(1))
    negative_cache.remove(key(2))
    assert not negative_cache.get(key(1), 100.0)


async def test_c36_an_unknown_token_is_asked_for_once_in_its_life() -> None:
    """A thousand requests with it cost one query, and two seconds later one more."""
    async with running() as engine:
        asked = engine.store.queries
        for _ in range(1000):
            assert await answer(engine, genuine(1)) == Invalid(Reason.NOT_FOUND)
        assert engine.store.queries == asked + 1
        engine.clock.advance(seconds(NEGATIVE_LIFE))
        await answer(engine, genuine(1))
        assert engine.store.queries == asked + 2


async def test_c37_unknown_tokens_evict_no_live_entry() -> None:
    """Twenty thousand unknown tokens leave a cache of one where it was."""
    async with running(cache_size=1) as engine:
        issued = await engine.login()
        for number in range(20_000):
            await answer(engine, genuine(number))
        assert len(engine.sessions._state.negative_cache) == MAX_NEGATIVE
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
        engine.sessions._state.cache.doubt()
        assert session_of(await answer(engine, text)).id == issued.session.id


async def test_c38_a_stranger_does_not_shadow_a_session_rotated_here() -> None:
    """A successor that was asked for too early is believed after its rotation."""
    async with running() as engine:
        issued = await engine.login()
        await engine.expire()
        later = await engine.refreshed(issued)
        row = engine.row(issued.session.id)
        hidden = engine.store.rows.pop(row.id)
        engine.sessions._state.cache.forget_session(row.id)
        assert isinstance(await answer(engine, later.session_token), Invalid)
        engine.store.rows[row.id] = hidden
        again = await engine.refreshed(issued)
        assert again.session_token == later.session_token
        engine.sessions._state.cache.doubt()
        assert session_of(await answer(engine, later.session_token)).id == row.id


async def test_c38_a_session_created_elsewhere_is_found_after_its_life() -> None:
    """A slow commit or a lagging replica shadows it for two seconds and not longer."""
    async with running() as engine:
        async with running(store=engine.store, clock=engine.clock) as other:
            issued = await other.login()
        hidden = engine.store.rows.pop(issued.session.id)
        assert await answer(engine, issued.session_token) == Invalid(Reason.NOT_FOUND)
        engine.store.rows[hidden.id] = hidden
        engine.clock.advance(seconds(NEGATIVE_LIFE))
        found = await answer(engine, issued.session_token)
        assert session_of(found).id == hidden.id


async def test_c39_an_outage_makes_no_stranger() -> None:
    """ "No answer" is not "not found": the session is found as soon as there is one."""
    async with running() as engine:
        issued = await engine.login()
        engine.sessions._state.cache.forget_session(issued.session.id)
        engine.store.down = True
        assert isinstance(await answer(engine, issued.session_token), Unknown)
        assert len(engine.sessions._state.negative_cache) == 0
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
        assert len(engine.sessions._state.negative_cache) == 0


# The tokens of sessions that are over.

ENDS = [
    Reason.REVOKED,
    Reason.USER_DISABLED,
    Reason.PASSWORD_CHANGED,
    Reason.ABSOLUTE,
    Reason.REFRESH_EXPIRED,
    Reason.NOT_FOUND,
]


async def ended(engine: Engine, reason: Reason) -> Issued:
    """The tokens of a session that is over for this reason, in this process and the
    table."""
    issued = await engine.login()
    row = engine.row(issued.session.id)
    match reason:
        case Reason.REVOKED:
            await engine.sessions.revoke(row.id)
        case Reason.USER_DISABLED:
            engine.store.users[row.user_id] = MemoryUser(is_active=False)
        case Reason.PASSWORD_CHANGED:
            later = engine.clock.now() + seconds(1)
            engine.store.users[row.user_id] = MemoryUser(password_changed_at=later)
        case Reason.ABSOLUTE:
            long_ago = row.read_at - engine.policy.absolute_ttl
            engine.store.rows[row.id] = replace(row, created_at=long_ago)
        case Reason.REFRESH_EXPIRED:
            engine.store.rows[row.id] = replace(row, refresh_expires_at=row.read_at)
        case Reason.NOT_FOUND:
            del engine.store.rows[row.id]
    engine.sessions._state.cache.forget_session(row.id)
    return issued


STRICT = Policy(end_on_password_change=True)


@pytest.mark.parametrize("passive", [True, False])
@pytest.mark.parametrize(
    ("session", "refresh"), [(True, True), (True, False), (False, True)]
)
@pytest.mark.parametrize("reason", ENDS)
async def test_the_tokens_of_a_signed_out_user_cost_one_query_in_their_life(
    reason: Reason, session: bool, refresh: bool, passive: bool
) -> None:
    """Each token one; not one for each request. Every request is told the reason."""
    async with running(policy=STRICT) as engine:
        issued = await ended(engine, reason)
        before = engine.store.queries
        for _ in range(100):
            answer = await engine.ask(
                issued, session=session, refresh=refresh, passive=passive
            )
            assert answer == Invalid(reason)
        assert engine.store.queries == before + session + refresh
        engine.clock.advance(seconds(NEGATIVE_LIFE))
        await engine.ask(issued, session=session, refresh=refresh, passive=passive)
        assert engine.store.queries == before + 2 * (session + refresh)


async def test_a_replayed_token_costs_no_more_queries_either() -> None:
    """The session that it ended is over for it as well."""
    async with running() as engine:
        issued = await engine.login()
        first = await engine.refreshed(issued)
        await engine.ask(first, refresh=False)
        await engine.sessions.flush()
        engine.clock.advance(engine.policy.grace + seconds(1))
        replayed = await engine.ask(issued, session=False)
        assert replayed == Invalid(Reason.REPLAYED)
        before = engine.store.queries
        for _ in range(100):
            assert isinstance(await engine.ask(issued, session=False), Invalid)
        assert engine.store.queries == before + 1
        assert len(engine.of(Replayed)) == 1


async def test_the_refresh_token_of_a_session_that_is_over_costs_code_no_query_either() -> (
    None
):
    """Outside of cookies, for a client that tries again and again."""
    async with running() as engine:
        issued = await ended(engine, Reason.REVOKED)
        assert issued.refresh_token is not None
        before = engine.store.queries
        for _ in range(100):
            assert await engine.sessions.refresh(issued.refresh_token) is None
        assert engine.store.queries == before + 1


async def test_several_dead_refresh_cookies_cost_one_query_each() -> None:
    """And a live one among them is found, whatever is known of the others."""
    async with running() as engine:
        dead = [await ended(engine, Reason.REVOKED) for _ in range(3)]
        before = engine.store.queries
        for _ in range(10):
            assert isinstance(await engine.ask(*dead, session=False), Invalid)
        assert engine.store.queries == before + 4  # one is read again before it is refused
        live = await engine.login()
        answer = await engine.ask(*dead, live, session=False)
        assert new_tokens(answer).session.id == live.session.id


async def test_a_row_that_an_operator_makes_valid_again_is_shadowed_briefly() -> None:
    """For the life of a stranger, and not longer."""
    async with running() as engine:
        issued = await ended(engine, Reason.REVOKED)
        row = engine.row(issued.session.id)
        assert await engine.ask(issued) == Invalid(Reason.REVOKED)
        engine.store.rows[row.id] = replace(row, is_active=True, revoked_at=None)
        engine.clock.advance(seconds(NEGATIVE_LIFE))
        assert session_of(await engine.ask(issued)).id == row.id


async def test_a_token_that_a_redated_rotation_revives_is_no_stranger() -> None:
    """Its expiry was read; then the client that had missed it is given it again."""
    async with running() as engine:
        issued = await engine.login()
        lost = await engine.refreshed(issued)
        await engine.expire()
        assert await engine.ask(lost, refresh=False) == Invalid(Reason.EXPIRED)
        again = await engine.refreshed(issued)
        assert same_tokens(again, lost)
        engine.sessions._state.cache.forget_session(lost.session.id)
        answer = await engine.ask(lost, refresh=False)
        assert session_of(answer).id == lost.session.id


async def test_an_idle_session_that_was_active_elsewhere_is_no_stranger() -> None:
    """Another process had not written its activity when this one read."""
    async with running(policy=Policy(idle_ttl=timedelta(minutes=5))) as engine:
        issued = await engine.login()
        engine.clock.advance(timedelta(minutes=5))
        engine.sessions._state.cache.forget_session(issued.session.id)
        assert await engine.ask(issued) == Invalid(Reason.IDLE)
        row = engine.row(issued.session.id)
        active = engine.clock.now() - seconds(1)
        engine.store.rows[row.id] = replace(row, last_activity_at=active)
        assert session_of(await engine.ask(issued)).id == row.id


async def test_a_late_tab_is_no_stranger() -> None:
    """Refused within grace, it is judged again at every request."""
    async with running() as engine:
        issued = await engine.login()
        later = await engine.refreshed(await engine.refreshed(issued))
        for _ in range(2):
            answer = await engine.ask(issued, session=False)
            assert answer == Invalid(Reason.LATE)
        assert len(engine.of(LateRefresh)) == 2
        assert session_of(await engine.ask(later)).id == later.session.id


async def test_unsigned_refresh_tokens_that_no_row_has_cost_two_queries_in_their_life() -> (
    None
):
    """One for the token, one for what it would have led to."""
    async with running(policy=Policy(accept_unsigned=True)) as engine:
        before = engine.store.queries
        for _ in range(100):
            answer = await engine.sessions.authenticate(
                credentials_of([], ["theirs"]), LAPTOP
            )
            assert answer == Invalid(Reason.NOT_FOUND)
        assert engine.store.queries == before + 2


def test_a_final_end_is_one_that_no_client_can_undo() -> None:
    """Whoever adds a reason says on which side it is."""
    revocable = {Reason.EXPIRED, Reason.IDLE, Reason.LATE}
    no_row = {Reason.ABSENT, Reason.FORGED, Reason.CONFLICT}
    assert set(Reason) - revocable - no_row == FINAL
