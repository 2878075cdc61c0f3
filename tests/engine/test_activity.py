"""ActivityBuffer: one statement for many uses, kept when it cannot be written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from handstamp.config import Policy
from handstamp.core.models import Session, Touch
from handstamp.engine.activity import ActivityBuffer
from handstamp.engine.cache import NEVER, CacheEntry
from handstamp.errors import SessionsUnavailable
from handstamp.stores.memory import MemoryStore
from tests.support.engines import running, seconds, session_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TTL = Policy().session_ttl


def entry(session_id: str = "one", digest: str = "aa", read: float = 0.0) -> CacheEntry:
    session = Session(
        id=session_id, user_id="alice", created_at=NOW, expires_at=NOW, last_activity_at=NOW
    )
    return CacheEntry(
        key=bytes.fromhex(digest),
        digest=digest,
        session=session,
        hard=1e9,
        deadline=1e9,
        confirmed=1e9,
        read=read,
        read_at=NOW + timedelta(seconds=read),
        touched=NEVER,
        used=NEVER,
        seen=False,
    )


def pending(activity: ActivityBuffer) -> list[Touch]:
    return list(activity._pending.values())


class Recording(MemoryStore):
    """A store in memory that keeps the batches it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Touch]] = []
        self.during = lambda: None

    async def touch(self, touches: object, session_ttl: timedelta) -> int:
        self.during()
        self._count_query()
        self.batches.append(list(touches))  # type: ignore[call-overload]
        return len(self.batches[-1])


async def test_p10_many_requests_are_one_touch() -> None:
    """The newest time per session counts, and a flush is one statement."""
    activity, store, one = ActivityBuffer(), Recording(), entry()
    for now in (1.0, 2.0, 3.0):
        activity.touch(one, now)
    activity.touch(entry("two", "bb"), 4.0)
    assert await activity.flush(store, TTL) == 2
    assert [{t.session_id: t.at for t in batch} for batch in store.batches] == [
        {"one": NOW + timedelta(seconds=3), "two": NOW + timedelta(seconds=4)}
    ]


async def test_an_empty_buffer_sends_no_statement() -> None:
    """A flush of an idle process sends no statement."""
    activity, store = ActivityBuffer(), Recording()
    assert await activity.flush(store, TTL) == 0
    assert (store.batches, activity.flushes) == ([], 0)


def test_generations_of_a_token_are_counted_apart() -> None:
    """Use of an old token says nothing about the new one."""
    activity = ActivityBuffer()
    activity.touch(entry(digest="aa"), 1.0)
    activity.touch(entry(digest="bb"), 2.0)
    assert {t.token_digest for t in pending(activity)} == {"aa", "bb"}


def test_a_touch_marks_the_entry() -> None:
    """The entry knows when it was touched and that its token was seen."""
    activity, one = ActivityBuffer(), entry()
    activity.touch(one, 7.0)
    assert (one.touched, one.seen) == (7.0, True)


def test_a_token_that_is_only_seen_has_no_time() -> None:
    """The client has its token, and that is no activity."""
    activity = ActivityBuffer()
    activity.mark_seen("one", "aa")
    assert [touch.at for touch in pending(activity)] == [None]


@pytest.mark.parametrize("passive_first", [True, False])
def test_seen_alone_never_replaces_a_time(passive_first: bool) -> None:
    """A poll between an active request and the flush does not lose that request."""
    activity = ActivityBuffer()
    if passive_first:
        activity.mark_seen("one", "aa")
    activity.touch(entry(), 2.0)
    activity.mark_seen("one", "aa")
    assert [touch.at for touch in pending(activity)] == [NOW + timedelta(seconds=2)]


def test_an_earlier_time_never_replaces_a_later_one() -> None:
    """Two entries of one token may date by two reads, in any order."""
    activity = ActivityBuffer()
    activity.touch(entry(), 9.0)
    activity.touch(entry(), 2.0)
    assert [touch.at for touch in pending(activity)] == [NOW + timedelta(seconds=9)]


async def test_p10_a_failed_flush_keeps_the_batch() -> None:
    """What could not be written is written the next time."""
    activity, store = ActivityBuffer(), Recording()
    activity.touch(entry(), 1.0)
    store.down = True
    with pytest.raises(SessionsUnavailable):
        await activity.flush(store, TTL)
    assert len(activity) == 1
    store.down = False
    assert await activity.flush(store, TTL) == 1
    assert (activity.flushes, activity.written, activity.dropped) == (1, 1, 0)


@pytest.mark.parametrize("passive", [True, False])
async def test_what_is_noted_during_a_failing_flush_wins(passive: bool) -> None:
    """The batch goes back under newer times, and over a bare "seen"."""
    activity, store = ActivityBuffer(), Recording()
    activity.touch(entry(), 1.0)
    store.down = True
    store.during = lambda: (
        activity.mark_seen("one", "aa") if passive else activity.touch(entry(), 5.0)
    )
    with pytest.raises(SessionsUnavailable):
        await activity.flush(store, TTL)
    newest = NOW + timedelta(seconds=1 if passive else 5)
    assert [touch.at for touch in pending(activity)] == [newest]


def test_p10_the_collection_is_bounded_and_counts_what_it_drops() -> None:
    """The oldest go first; a session that is active again is not old."""
    activity = ActivityBuffer(max_touches=3)
    for n in range(3):
        activity.touch(entry(f"s{n}"), float(n))
    activity.touch(entry("s0"), 3.0)
    activity.touch(entry("s3"), 4.0)
    assert [touch.session_id for touch in pending(activity)] == ["s2", "s0", "s3"]
    assert activity.dropped == 1


async def test_a_batch_that_comes_back_is_bounded_too() -> None:
    """After a failure no more is kept than before, and the newest of it."""
    activity, store = ActivityBuffer(max_touches=2), Recording()
    activity.touch(entry("s0"), 0.0)
    activity.touch(entry("s1"), 1.0)
    store.down = True
    store.during = lambda: activity.touch(entry("s2"), 2.0)
    with pytest.raises(SessionsUnavailable):
        await activity.flush(store, TTL)
    assert [touch.session_id for touch in pending(activity)] == ["s1", "s2"]
    assert activity.dropped == 1


# In the engine.


async def test_the_first_use_of_a_new_token_is_touched_at_once() -> None:
    """Whatever the throttle: "seen" must be known before grace is over."""
    async with running() as engine:
        issued = await engine.login()
        await engine.ask(issued)
        assert engine.sessions.stats().pending_touches == 1
        await engine.sessions.flush()
        row = engine.row(issued.session.id)
        assert row.last_activity_at is not None
        assert row.last_activity_at > (row.created_at or NOW)


async def test_touches_are_throttled() -> None:
    """Within `touch_every` a session is touched once, after it again."""
    async with running() as engine:
        issued = await engine.login()
        engine.clock.advance(1)
        await engine.ask(issued)
        await engine.sessions.flush()
        first = engine.row(issued.session.id).last_activity_at
        engine.clock.advance(engine.policy.touch_every - seconds(0.5))
        await engine.ask(issued)
        assert engine.sessions.stats().pending_touches == 0
        engine.clock.advance(0.6)
        await engine.ask(issued)
        assert await engine.sessions.flush() == 1
        last = engine.row(issued.session.id).last_activity_at
        assert first is not None
        assert last is not None
        assert last - first == seconds(60.1) - seconds(1e-6)  # both off the whole second


async def test_an_idle_limit_makes_touches_finer() -> None:
    """The throttle is never coarser than a quarter of the idle limit."""
    async with running(policy=Policy(idle_ttl=seconds(40))) as engine:
        issued = await engine.login()
        await engine.ask(issued)
        await engine.sessions.flush()
        engine.clock.advance(10.1)
        await engine.ask(issued)
        assert engine.sessions.stats().pending_touches == 1


async def test_p10_closing_writes_what_is_pending() -> None:
    """A graceful stop loses nothing."""
    async with running() as engine:
        issued = await engine.login()
        engine.clock.advance(2)
        await engine.ask(issued)
    row = engine.row(issued.session.id)
    assert row.last_activity_at == (row.created_at or NOW) + seconds(2) + seconds(1e-6)


async def test_a_touch_is_never_ahead_of_the_database() -> None:
    """Use of a token is dated by the database's clock, whatever ours shows."""
    async with running() as engine:
        issued = await engine.login()
        engine.clock.advance(2)
        session_of(await engine.ask(issued))
        (touch,) = pending(engine.sessions._state.activity)
        assert touch.at is not None
        assert touch.at <= engine.clock.now()
