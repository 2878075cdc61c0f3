"""The cache: bounded, ordered, indexed, and fenced against reads that raced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import pytest

from handstamp.core.models import Session
from handstamp.engine.cache import MAX_COPIES, NEVER, Cache, CacheEntry
from handstamp.errors import ConfigError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def entry(key: bytes, session_id: str = "one", user_id: str = "alice") -> CacheEntry:
    session = Session(
        id=session_id, user_id=user_id, created_at=NOW, expires_at=NOW, last_activity_at=NOW
    )
    return CacheEntry(
        key=key,
        digest=key.hex(),
        session=session,
        hard=100.0,
        deadline=50.0,
        confirmed=50.0,
        read=0.0,
        read_at=NOW,
        touched=NEVER,
        used=NEVER,
        seen=True,
    )


def put(cache: Cache, *entries: CacheEntry) -> None:
    for each in entries:
        assert cache.put(cache.ticket(), each)


def is_empty_inside(cache: Cache) -> bool:
    """Whether nothing is left anywhere, in the indices neither."""
    return not any(indices(cache))


def indices(cache: Cache) -> list[dict[Any, Any]]:
    """Everything in it that grows with its entries."""
    held = {**cache._live, **cache._doubted}
    return [held, dict(cache._order), cache._by_session, cache._by_user]


def lines_run(work: Callable[[], object]) -> int:
    """How many lines of Python a call runs: its work, whatever the machine does."""
    lines = 0

    def count(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines


def test_what_was_put_is_found_by_its_digest() -> None:
    """And nothing is found by another one."""
    cache, one = Cache(10), entry(b"a")
    put(cache, one)
    assert cache.get(b"a") is one
    assert cache.get(b"b") is None
    assert len(cache) == 1


def test_the_cache_is_bounded() -> None:
    """A thousand entries in a cache of ten leave ten, here and in the indices."""
    cache = Cache(10)
    for n in range(1000):
        put(cache, entry(str(n).encode(), f"s{n}", f"u{n}"))
    assert len(cache) == 10
    assert cache.get(b"999") is not None
    assert [len(each) for each in indices(cache)] == [10, 10, 10, 10]


def test_the_least_recently_used_leaves() -> None:
    """An entry that was freshened stays before one that was not."""
    cache, one, two = Cache(2), entry(b"a", "one"), entry(b"b", "two")
    put(cache, one, two)
    cache.mark_used(one)
    put(cache, entry(b"c", "three"))
    assert cache.get(b"a") is one
    assert cache.get(b"b") is None


def test_an_entry_that_left_can_be_freshened() -> None:
    """A request may hold an entry that was evicted meanwhile."""
    cache, one = Cache(1), entry(b"a")
    put(cache, one, entry(b"b", "two"))
    cache.mark_used(one)
    assert len(cache) == 1


def test_putting_again_replaces() -> None:
    """The newest entry of a digest counts, and takes one place."""
    cache, old, new = Cache(10), entry(b"a"), entry(b"a")
    put(cache, old, new)
    assert cache.get(b"a") is new
    assert len(cache) == 1


def test_a_session_is_forgotten_with_all_its_digests() -> None:
    """Others stay, those of the same user too."""
    cache = Cache(10)
    put(cache, entry(b"a", "one"), entry(b"b", "one"), entry(b"c", "two"))
    cache.forget_session("one")
    assert [cache.get(key) for key in (b"a", b"b")] == [None, None]
    assert cache.get(b"c") is not None


def test_a_user_is_doubted_with_all_sessions() -> None:
    """Other users' are believed, and so is what is read again."""
    cache = Cache(10)
    put(cache, entry(b"a", "one"), entry(b"b", "two"), entry(b"c", "three", "bob"))
    cache.doubt_user("alice")
    assert [cache.get(key) for key in (b"a", b"b")] == [None, None]
    assert cache.get(b"c") is not None
    put(cache, again := entry(b"a", "one"))
    assert cache.get(b"a") is again


@pytest.mark.parametrize(
    "forget",
    [
        lambda cache: cache.forget_session("one"),
        lambda cache: cache.drop(b"a"),
        lambda cache: (cache.doubt(), cache.drop(b"a")),
        lambda cache: (cache.doubt_user("alice"), cache.forget_session("one")),
        lambda cache: (cache.doubt_session("one"), cache.forget_session("one")),
        lambda cache: cache.reset_after_fork(),
        lambda cache: (cache.doubt(), cache.reset_after_fork()),
    ],
    ids=["session", "drop", "doubt", "doubt of a user", "doubt of it", "fork", "both"],
)
def test_the_indices_are_left_empty(forget: object) -> None:
    """Whichever way the last entry goes, nothing grows in its place."""
    cache = Cache(10)
    put(cache, entry(b"a"))
    forget(cache)  # type: ignore[operator]
    assert is_empty_inside(cache)


def test_forgetting_a_stranger_leaves_nothing_behind() -> None:
    """An id that was never cached makes no entry in an index."""
    cache = Cache(10)
    cache.forget_session("nobody's")
    cache.doubt_session("nobody's")
    cache.doubt_user("nobody")
    cache.drop(b"none")
    cache.retire("nobody's", keep=b"", until=1.0)
    assert is_empty_inside(cache)


# The fence.


@pytest.mark.parametrize(
    ("forget", "admitted"),
    [
        (lambda cache: cache.forget_session("one"), False),
        (lambda cache: cache.doubt_session("one"), False),
        (lambda cache: cache.doubt_user("alice"), False),
        (lambda cache: cache.doubt(), False),
        (lambda cache: cache.reset_after_fork(), False),
        (lambda cache: cache.forget_session("two"), True),
        (lambda cache: cache.doubt_session("two"), True),
        (lambda cache: cache.doubt_user("bob"), True),
        (lambda cache: cache.drop(b"a"), True),
    ],
    ids=[
        *("its end", "its session", "its user", "everything", "a fork"),
        *("another's end", "another", "another user", "drop"),
    ],
)
def test_c51_a_read_that_raced_a_revocation_is_not_cached(
    forget: object, admitted: bool
) -> None:
    """A ticket from before the invalidation is refused, for what it concerned only."""
    cache = Cache(10)
    ticket = cache.ticket()
    forget(cache)  # type: ignore[operator]
    one = entry(b"a")
    assert cache.allows(ticket, one.session) is admitted
    assert cache.put(ticket, one) is admitted
    assert (cache.get(b"a") is one) is admitted


def test_a_read_that_began_afterwards_is_cached() -> None:
    """An invalidation is a moment and no state."""
    cache = Cache(10)
    cache.forget_session("one")
    cache.doubt_user("alice")
    cache.doubt()
    put(cache, entry(b"a"))
    assert cache.get(b"a") is not None


def test_a_ticket_stays_refused() -> None:
    """However many invalidations of others follow, and however often it is tried."""
    cache = Cache(10)
    ticket = cache.ticket()
    cache.forget_session("one")
    for n in range(100):
        cache.forget_session(f"other{n}")
        assert cache.put(ticket, entry(b"a")) is False


def test_marks_that_are_pushed_out_raise_the_floor() -> None:
    """What is no longer remembered counts as invalidated: never the other way."""
    cache = Cache(10, max_marks=3)
    early = cache.ticket()
    cache.forget_session("one")
    between = cache.ticket()
    for n in range(3):
        cache.forget_session(f"other{n}")
    assert len(cache._fence._marks) == 3
    assert cache.put(early, entry(b"a")) is False
    assert cache.put(early, entry(b"z", "never invalidated")) is False
    assert cache.put(between, entry(b"a")) is True


def test_a_mark_that_is_renewed_is_remembered_longest() -> None:
    """A session invalidated twice is not pushed out by its first time."""
    cache = Cache(10, max_marks=2)
    cache.forget_session("one")
    cache.forget_session("two")
    ticket = cache.ticket()
    cache.forget_session("one")
    cache.forget_session("three")
    assert cache.put(ticket, entry(b"a", "one")) is False
    assert cache.put(ticket, entry(b"b", "four")) is True


# Rotation.


def test_c77_replaced_tokens_are_retired_and_not_forgotten() -> None:
    """Requests under way may use them until grace is over; the new one is untouched."""
    cache, old, new = Cache(10), entry(b"a"), entry(b"b")
    put(cache, old, new)
    cache.retire("one", keep=b"b", until=7.0)
    assert (old.hard, old.deadline) == (7.0, 7.0)
    assert (new.hard, new.deadline) == (100.0, 50.0)


def test_retiring_never_extends_a_life() -> None:
    """A token that ends earlier than grace ends then."""
    cache, old = Cache(10), entry(b"a")
    put(cache, old)
    cache.retire("one", keep=b"", until=70.0)
    assert (old.hard, old.deadline) == (70.0, 50.0)


# The holder of one session.


def test_one_session_has_a_few_entries_and_takes_nobody_elses_place() -> None:
    """Its oldest leaves for its newest, also while they are in doubt."""
    cache = Cache(MAX_COPIES + 1)
    put(cache, entry(b"bob's", "two", "bob"))
    for number in range(100):
        put(cache, entry(str(number).encode()))
        if number % 7 == 0:
            cache.doubt_session("one")
    assert len(cache) == MAX_COPIES + 1
    assert cache.get(b"bob's") is not None
    held = {key.decode() for key in cache._by_session["one"]}
    assert held == {str(n) for n in range(100 - MAX_COPIES, 100)}


def test_an_entry_that_is_read_again_pushes_none_out() -> None:
    """It takes its own place."""
    cache = Cache(100)
    for _ in range(2):
        for number in range(MAX_COPIES):
            put(cache, entry(str(number).encode()))
    assert len(cache) == MAX_COPIES


def test_a_session_that_changed_hands_is_its_new_owners() -> None:
    """A doubt of either user finds what is theirs, and no index keeps the old one."""
    cache = Cache(10)
    put(cache, entry(b"a", "one", "alice"), entry(b"a", "one", "bob"))
    cache.doubt_user("alice")
    assert cache.get(b"a") is not None
    cache.doubt_user("bob")
    assert cache.get(b"a") is None
    cache.drop(b"a")
    assert is_empty_inside(cache)


# Doubt.


@pytest.mark.parametrize(
    "doubt",
    [
        lambda cache: cache.doubt_session("one"),
        lambda cache: cache.doubt_user("alice"),
        lambda cache: cache.doubt(),
    ],
    ids=["session", "user", "everything"],
)
@pytest.mark.parametrize("times", [1, 3])
def test_c68_what_is_doubted_is_not_believed_and_still_known(
    doubt: Callable[[Cache], None], times: int
) -> None:
    """Until it was read again; what it knows of activity is not lost, however often
    somebody sends the same."""
    cache, one = Cache(10), entry(b"a")
    put(cache, one)
    for _ in range(times):
        doubt(cache)
    assert (cache.get(b"a"), cache.get_any(b"a"), len(cache)) == (None, one, 1)
    put(cache, again := entry(b"a"))
    assert (cache.get(b"a"), cache.get_any(b"a"), len(cache)) == (again, again, 1)


def test_what_was_read_between_two_doubts_is_doubted_by_the_second() -> None:
    """With what was doubted before, whichever of them are more."""
    for before, between in ((1, 5), (5, 1)):
        cache = Cache(100)
        for number in range(before):
            put(cache, entry(b"before%d" % number, f"b{number}"))
        cache.doubt()
        for number in range(between):
            put(cache, entry(b"between%d" % number, f"a{number}"))
        cache.doubt()
        assert not cache._live
        assert len(cache) == before + between
        put(cache, entry(b"before0", "b0"))
        assert cache.get(b"before0") is not None


def test_c143_a_hit_in_another_thread_finds_nothing_that_was_doubted_before_it() -> None:
    """It has taken its ``get`` and not called it yet: what is doubted with everything
    else may be found, what was in doubt already may not."""
    cache = Cache(100)
    put(cache, entry(b"doubted", "gone"))
    cache.doubt_session("gone")
    put(cache, *(entry(b"%d" % number, f"s{number}") for number in range(10)))
    get = cache.get
    cache.doubt()
    assert get(b"doubted") is None
    put(cache, entry(b"again", "again"))
    cache.doubt()
    assert (get(b"doubted"), cache.get(b"again")) == (None, None)


def test_c68_doubting_everything_costs_the_same_however_much_is_cached() -> None:
    """And so does a notice about a session or a user, the first as the thousandth."""
    small, large = Cache(10_000), Cache(10_000)
    put(small, entry(b"a"))
    for number in range(10_000):
        put(large, entry(str(number).encode(), f"s{number}", "alice"))
    alices = lines_run(lambda: large.doubt_user("alice"))
    assert lines_run(lambda: large.doubt_user("alice")) < 10 < alices
    for number in range(10_000):
        put(large, entry(str(number).encode(), f"s{number}", "alice"))
    assert [lines_run(each) for each in doubts(small)] == [
        lines_run(each) for each in doubts(large)
    ]


def doubts(cache: Cache) -> list[Callable[[], None]]:
    """Everything twice, and two strangers."""
    return [
        cache.doubt,
        cache.doubt,
        lambda: cache.doubt_session("unknown"),
        lambda: cache.doubt_user("unknown"),
    ]


def test_c68_a_flood_of_unknown_ids_leaves_a_bounded_number_of_marks() -> None:
    """A read that is under way then is asked again, and nothing grows."""
    cache = Cache(10, max_marks=100)
    ticket = cache.ticket()
    for number in range(1000):
        cache.doubt_session(f"s{number}")
        cache.doubt_user(f"u{number}")
    assert len(cache._fence._marks) == 100
    assert cache.put(ticket, entry(b"a")) is False
    put(cache, entry(b"a"))


def test_p12_an_entry_shows_no_digest() -> None:
    """Neither as bytes nor in hex."""
    shown = repr(entry(b"\xaa\xbb\xcc\xdd"))
    assert "aabbccdd" not in shown
    assert "\\xaa" not in shown


def test_a_cache_without_room_is_refused() -> None:
    """At construction, not at the first request."""
    with pytest.raises(ConfigError):
        Cache(0)
