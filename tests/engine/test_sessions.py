"""The engine's verbs: open and close, create, revoke, list, and what they leave behind.

By number where the catalogue of attacks has one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest
from ulid import ULID

from handstamp.config import Policy
from handstamp.core.models import Invalid, Reason
from handstamp.engine import dispatch
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError, LoginRefused, SessionsUnavailable
from handstamp.events import Event, LoggedIn, LoginWasRefused, Revoked
from handstamp.stores.base import Ended
from handstamp.stores.memory import MemoryStore, MemoryUser
from handstamp.stores.table import TableStore
from tests.support.clock import FakeClock
from tests.support.engines import (
    ALICE,
    LAPTOP,
    SECRET,
    Engine,
    running,
    seconds,
    session_of,
)

NOBODY = "01J00000000000000000000000"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"secret": "too short"},
        {"secret": SECRET, "secrets": [SECRET]},
        {"secrets": []},
        {"secrets": SECRET},
        {"secrets": [SECRET, "too short"]},
        {"secret": SECRET, "cache_size": 0},
        {"secret": SECRET, "shape": "uuid"},
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_at_construction(options: dict[str, Any]) -> None:
    """A secret that is missing, short, or given twice; a cache without room; the name of
    a shape."""
    with pytest.raises(ConfigError) as refusal:
        Sessions(MemoryStore(), **options)
    assert SECRET not in str(refusal.value)


def test_a_uri_makes_a_table_store() -> None:
    """Nothing is connected by it, and neither secret nor password shows."""
    sessions = Sessions("postgresql://me:hunter2@nowhere.invalid/x", secret=SECRET)
    assert isinstance(sessions.store, TableStore)
    assert "hunter2" not in repr(sessions)
    assert SECRET not in repr(vars(sessions))


async def test_opening_and_closing_twice_is_once() -> None:
    """And whatever was closed can be opened again."""
    engine = Engine()
    for _ in range(2):
        await engine.sessions.open()
        await engine.sessions.open()
        issued = await engine.login()
        await engine.sessions.close()
        await engine.sessions.close()
    assert issued.session.id in engine.store.rows


async def test_c135_the_first_call_opens() -> None:
    """A server without lifespan needs no other start."""
    engine = Engine()
    issued = await engine.login()
    assert session_of(await engine.ask(issued))
    await engine.sessions.close()


def test_c141_one_loop_after_another() -> None:
    """A loop that is closed, cleanly or not, is no obstacle to the next one."""
    engine = Engine()

    async def use(close: bool) -> None:
        issued = await engine.login()
        assert session_of(await engine.ask(issued))
        if close:
            await engine.sessions.close()

    for close in (True, False, True):
        asyncio.run(use(close))


def test_c142_two_loops_at_once_are_refused() -> None:
    """Rather than mixed up."""
    engine = Engine()
    other = asyncio.new_event_loop()
    other.run_until_complete(engine.sessions.open())
    try:
        with pytest.raises(ConfigError, match="another event loop"):
            asyncio.run(engine.sessions.open())
    finally:
        other.run_until_complete(engine.sessions.close())
        other.close()


# Create.


async def test_a_login_is_an_event_with_its_client() -> None:
    """And every session has an id, tokens and a life of its own."""
    async with running() as engine:
        one, two = await engine.login(), await engine.login()
        (event, _) = engine.of(LoggedIn)
        assert (event.session_id, event.user_id) == (one.session.id, ALICE)
        assert (event.client, event.remember) == (LAPTOP, True)
        assert len({one.session_token, two.session_token}) == 2
        assert ULID.from_str(one.session.id) != ULID.from_str(two.session.id)


async def test_c31_a_login_takes_nothing_from_what_was_presented() -> None:
    """A planted live session is replaced: new id, new tokens, and the old one is dead."""
    async with running() as engine:
        planted = await engine.login("mallory")
        issued = await engine.login(replaces=planted.session.id)
        assert issued.session.id != planted.session.id
        assert session_of(await engine.ask(issued)).user_id == ALICE
        assert await engine.ask(planted) == Invalid(Reason.REVOKED)
        (event,) = engine.of(Revoked)
        assert event.session_id == planted.session.id


async def test_c48_without_randomness_there_is_no_login() -> None:
    """Nothing predictable takes its place."""

    def broken(size: int) -> bytes:
        raise OSError("no entropy")

    async with running(entropy=broken) as engine:
        with pytest.raises(OSError, match="no entropy"):
            await engine.login()
        assert engine.store.rows == {}


async def test_a_refused_login_is_an_event() -> None:
    """With the reason, for the throttle of the application."""
    async with running() as engine:
        engine.store.users[ALICE] = MemoryUser(is_active=False)
        with pytest.raises(LoginRefused):
            await engine.login()
        assert [(e.user_id, e.reason) for e in engine.of(LoginWasRefused)] == [
            (ALICE, "user_disabled")
        ]


async def test_an_evicted_session_is_out_at_once() -> None:
    """At `max_sessions` the oldest goes, from the cache too."""
    async with running(policy=Policy(max_sessions=2)) as engine:
        issued = []
        for _ in range(3):
            engine.clock.advance(1)
            issued.append(await engine.login())
        assert isinstance(await engine.ask(issued[0]), Invalid)
        assert session_of(await engine.ask(issued[1]))
        assert [e.reason for e in engine.of(Revoked)] == ["replaced by a new login"]


async def test_one_login_too_many_can_be_refused() -> None:
    """And then the sessions there are live on."""
    policy = Policy(max_sessions=1, on_limit="refuse")
    async with running(policy=policy) as engine:
        issued = await engine.login()
        with pytest.raises(LoginRefused):
            await engine.login()
        assert session_of(await engine.ask(issued))


@pytest.mark.parametrize(
    ("remember", "session", "refresh"),
    [(True, timedelta(minutes=15), timedelta(days=30)), (False, None, None)],
)
async def test_cookies_last_as_long_as_they_may(
    remember: bool, session: timedelta | None, refresh: timedelta | None
) -> None:
    """Without `remember` they end with the browser."""
    async with running() as engine:
        issued = await engine.login(remember=remember)
        assert (issued.session_lifetime, issued.refresh_lifetime) == (session, refresh)


async def test_an_outage_at_a_login_is_an_exception() -> None:
    """And no session comes of it."""
    async with running() as engine:
        engine.store.down = True
        with pytest.raises(SessionsUnavailable):
            await engine.login()
        engine.store.down = False
        assert engine.store.rows == {}


# Revoke.


async def test_a_revoked_session_is_out_at_once() -> None:
    """In this process without any staleness, with an event and the reason in the row."""
    async with running() as engine:
        issued = await engine.login()
        assert await engine.sessions.revoke(issued.session.id, reason="stolen phone")
        assert await engine.ask(issued) == Invalid(Reason.REVOKED)
        assert [e.reason for e in engine.of(Revoked)] == ["stolen phone"]
        assert engine.row(issued.session.id).revoked_reason == "stolen phone"


async def test_revoking_twice_is_once() -> None:
    """The second time there was none to end, and no event."""
    async with running() as engine:
        issued = await engine.login()
        assert await engine.sessions.revoke(issued.session.id) is True
        assert await engine.sessions.revoke(issued.session.id) is False
        assert len(engine.of(Revoked)) == 1


@pytest.mark.parametrize(
    ("nonsense", "asked"),
    [
        *(("x" * 256, False), ("\x00", False), ("\ud800", False)),
        *((text, True) for text in ("", "x" * 255, "a b", "a\nb", "../x", "é", NOBODY)),
    ],
    ids=ascii,
)
async def test_revoking_nonsense_finds_nothing(nonsense: str, asked: bool) -> None:
    """What no session can be called is not even asked for."""
    async with running() as engine:
        before = engine.store.queries
        assert await engine.sessions.revoke(nonsense, user_id=ALICE) is False
        assert engine.store.queries == before + asked


async def test_c49_an_id_of_another_user_is_not_found() -> None:
    """With `user_id`, nothing of anybody else's ends."""
    async with running() as engine:
        issued = await engine.login()
        assert await engine.sessions.revoke(issued.session.id, user_id="bob") is False
        assert session_of(await engine.ask(issued))


async def test_all_of_a_users_sessions_end_but_one() -> None:
    """The kept one goes on; other users notice nothing."""
    async with running() as engine:
        kept, *others = [await engine.login() for _ in range(4)]
        bob = await engine.login("bob")
        assert await engine.sessions.revoke_user(ALICE, keep=kept.session.id) == 3
        for issued in others:
            assert isinstance(await engine.ask(issued), Invalid)
        assert session_of(await engine.ask(kept))
        assert session_of(await engine.ask(bob)).user_id == "bob"
        assert {e.session_id for e in engine.of(Revoked)} == {i.session.id for i in others}


async def test_c150_a_revocation_that_failed_says_so() -> None:
    """It raises, and the table is asked again before the cache is believed."""
    async with running() as engine:
        issued = await engine.login()
        engine.store.down = True
        for call in (
            lambda: engine.sessions.revoke(issued.session.id),
            lambda: engine.sessions.revoke_user(ALICE),
        ):
            with pytest.raises(SessionsUnavailable):
                await call()
            assert engine.sessions.hit(issued.session_token.encode()) is None
            engine.store.down = False
            assert session_of(await engine.ask(issued))
            engine.store.down = True
        engine.store.down = False
        assert engine.of(Revoked) == []


async def test_a_session_that_another_process_ended_first_is_read_again() -> None:
    """There is nothing to end, and its notice may still be on the way: what is cached and
    what is open is looked at now."""
    slow = Policy(max_staleness=seconds(3600), longest_trust=seconds(3600))
    async with running(policy=slow) as engine:
        issued, closed = await engine.login(), asyncio.Event()
        engine.sessions.connections.add(issued.session, closed.set)
        row = engine.row(issued.session.id)
        engine.store.rows[row.id] = replace(row, is_active=False)
        assert engine.sessions.hit(issued.session_token.encode()) is not None
        assert await engine.sessions.revoke(issued.session.id) is False
        assert engine.sessions.hit(issued.session_token.encode()) is None
        async with asyncio.timeout(15):
            await closed.wait()


@pytest.mark.parametrize("many", [True, False])
async def test_a_revocation_whose_caller_went_away_is_not_forgotten(many: bool) -> None:
    """Committed, but cancelled before the answer: the cached session is read again."""

    class Stuck(MemoryStore):
        async def revoke(self, *args: Any, **kwargs: Any) -> Ended | None:
            await super().revoke(*args, **kwargs)
            return await asyncio.Future()

        async def revoke_user(self, *args: Any, **kwargs: Any) -> Sequence[Ended]:
            await super().revoke_user(*args, **kwargs)
            return await asyncio.Future()

    clock = FakeClock()
    async with running(clock=clock, store=Stuck(clock.now)) as engine:
        issued = await engine.login()
        call = (
            engine.sessions.revoke_user(ALICE)
            if many
            else engine.sessions.revoke(issued.session.id)
        )
        revoking = asyncio.create_task(call)
        await asyncio.sleep(0)
        revoking.cancel()
        await asyncio.wait([revoking])
        assert await engine.ask(issued) == Invalid(Reason.REVOKED)


# Hooks.


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_c149_a_subscriber_that_fails_undoes_nothing(
    asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The state changes first; what a hook raises is logged and contained."""

    def fail(event: Event) -> None:
        raise ValueError("a bug in a hook")

    async def fail_later(event: Event) -> None:
        raise ValueError("a bug in a hook")

    async with running() as engine:
        engine.sessions.on(Event, fail_later if asynchronous else fail)
        issued = await engine.login()
        assert await engine.sessions.revoke(issued.session.id)
        assert await engine.ask(issued) == Invalid(Reason.REVOKED)
    failures = [r for r in caplog.records if r.exc_info]
    assert len(failures) == 2


async def test_a_subscriber_that_never_ends_is_cancelled_at_the_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is cancelled when the time for it is over, and the store is closed."""
    monkeypatch.setattr(dispatch, "DRAIN_TIMEOUT", 0.01)
    cancelled = asyncio.Event()

    async def hang(event: LoggedIn) -> None:
        try:
            await asyncio.Future()
        finally:
            cancelled.set()

    async with running() as engine:
        engine.sessions.on(LoggedIn, hang)
        await engine.login()
    await asyncio.wait_for(cancelled.wait(), 30)


def test_a_subscriber_of_a_closed_loop_is_forgotten() -> None:
    """The next loop's stop does not wait for it."""
    engine = Engine()

    async def hang(event: LoggedIn) -> None:
        await asyncio.Future()

    engine.sessions.on(LoggedIn, hang)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.login())
    loop.close()  # with the hook, and the flusher, still pending

    async def stop() -> None:
        await engine.sessions.open()
        await engine.sessions.close()

    asyncio.run(stop())


# List, prune, figures.


async def test_a_list_shows_the_living_and_marks_the_current() -> None:
    """Neither a token nor a digest is in it."""
    async with running() as engine:
        expired = await engine.login(remember=False)
        engine.clock.advance(timedelta(hours=30))
        dead, one, two = [await engine.login() for _ in range(3)]
        await engine.login("bob")
        await engine.sessions.revoke(dead.session.id)
        listed = await engine.sessions.list_for_user(ALICE, current=one.session.id)
        assert {s.id: s.current for s in listed} == {
            one.session.id: True,
            two.session.id: False,
        }
        names = {f.name for f in fields(listed[0])}
        assert not any("digest" in name or "token" in name for name in names)
        assert expired.session.id not in {s.id for s in listed}


async def test_pruning_goes_on_until_nothing_is_left() -> None:
    """Batch by batch, the dead and only the dead."""
    async with running() as engine:
        for _ in range(3):
            await engine.login(remember=False)
        engine.clock.advance(timedelta(days=32))
        alive = await engine.login()
        assert await engine.sessions.prune() == 3
        assert set(engine.store.rows) == {alive.session.id}


async def test_stats_count_what_happened() -> None:
    """By plain numbers; events by their action."""
    async with running() as engine:
        issued = await engine.login()
        await engine.ask(issued)
        await engine.sessions.flush()
        await engine.sessions.revoke(issued.session.id)
        await engine.ask(issued, refresh=False)
        stats = engine.sessions.stats()
        assert (stats.cached, stats.hits, stats.misses) == (0, 1, 1)
        assert (stats.flushes, stats.written_touches, stats.pending_touches) == (1, 1, 0)
        assert stats.events == {"logged_in": 1, "revoked": 1}
        assert stats.queries == engine.store.queries


async def test_a_ping_is_one_round_trip() -> None:
    """Or SessionsUnavailable."""
    async with running() as engine:
        await engine.sessions.ping()
        assert engine.store.queries == 1
        engine.store.down = True
        with pytest.raises(SessionsUnavailable):
            await engine.sessions.ping()


async def test_the_databases_clock_goes_on_between_its_answers() -> None:
    """Counted on ours."""
    async with running() as engine:
        await engine.login()
        engine.clock.advance(100)
        assert engine.sessions.database_now() == engine.clock.now()
