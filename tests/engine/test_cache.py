"""The cache: bounded, ordered, indexed, and fenced against reads that raced."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from handstamp.core.records import Session
from handstamp.engine.cache import NEVER, Cache, Entry
from handstamp.errors import ConfigError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def entry(key: bytes, session_id: str = "one", user_id: str = "alice") -> Entry:
    session = Session(
        id=session_id, user_id=user_id, created_at=NOW, expires_at=NOW, last_activity_at=NOW
    )
    return Entry(
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


def put(cache: Cache, *entries: Entry) -> None:
    for each in entries:
        assert cache.put(cache.ticket(), each)


def is_empty_inside(cache: Cache) -> bool:
    """Whether nothing is left anywhere, in the indices neither."""
    return not (cache._live or cache._order or cache._by_session or cache._by_user)


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
    sizes = [len(x) for x in (cache._live, cache._order, cache._by_session, cache._by_user)]
    assert sizes == [10, 10, 10, 10]


def test_the_least_recently_used_leaves() -> None:
    """An entry that was freshened stays before one that was not."""
    cache, one, two = Cache(2), entry(b"a", "one"), entry(b"b", "two")
    put(cache, one, two)
    cache.freshen(one, 5.0)
    put(cache, entry(b"c", "three"))
    assert cache.get(b"a") is one
    assert cache.get(b"b") is None
    assert one.ordered == 5.0


def test_an_entry_that_left_can_be_freshened() -> None:
    """A request may hold an entry that was evicted meanwhile."""
    cache, one = Cache(1), entry(b"a")
    put(cache, one, entry(b"b", "two"))
    cache.freshen(one, 5.0)
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


def test_a_user_is_forgotten_with_all_sessions() -> None:
    """Other users' stay."""
    cache = Cache(10)
    put(cache, entry(b"a", "one"), entry(b"b", "two"), entry(b"c", "three", "bob"))
    cache.forget_user("alice")
    assert [cache.get(key) for key in (b"a", b"b")] == [None, None]
    assert cache.get(b"c") is not None


@pytest.mark.parametrize(
    "forget",
    [
        lambda cache: cache.forget_user("alice"),
        lambda cache: cache.forget_session("one"),
        lambda cache: cache.drop(b"a"),
    ],
    ids=["user", "session", "drop"],
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
    cache.forget_user("nobody")
    cache.drop(b"none")
    cache.retire("nobody's", keep=b"", until=1.0)
    assert is_empty_inside(cache)


# The fence.


@pytest.mark.parametrize(
    ("forget", "admitted"),
    [
        (lambda cache: cache.forget_session("one"), False),
        (lambda cache: cache.forget_user("alice"), False),
        (lambda cache: cache.doubt(), False),
        (lambda cache: cache.forget_session("two"), True),
        (lambda cache: cache.forget_user("bob"), True),
        (lambda cache: cache.drop(b"a"), True),
    ],
    ids=["its session", "its user", "everything", "another", "another user", "drop"],
)
def test_c51_a_read_that_raced_a_revocation_is_not_cached(
    forget: object, admitted: bool
) -> None:
    """A ticket from before the invalidation is refused, for what it concerned only."""
    cache = Cache(10)
    ticket = cache.ticket()
    forget(cache)  # type: ignore[operator]
    one = entry(b"a")
    assert cache.admits(ticket, one.session) is admitted
    assert cache.put(ticket, one) is admitted
    assert (cache.get(b"a") is one) is admitted


def test_a_read_that_began_afterwards_is_cached() -> None:
    """An invalidation is a moment and no state."""
    cache = Cache(10)
    cache.forget_session("one")
    cache.forget_user("alice")
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
    cache = Cache(10, marks=3)
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
    cache = Cache(10, marks=2)
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


def test_one_session_is_thinned_and_no_other() -> None:
    """At most so many entries, with room for the one that is to stay."""
    cache = Cache(100)
    put(cache, *(entry(str(n).encode()) for n in range(10)), entry(b"b", "two", "bob"))
    cache.thin("one", keep=b"0", most=3)
    assert (len(cache), cache.get(b"0") is None, cache.get(b"b") is None) == (
        4,
        False,
        False,
    )
    cache.thin("one", keep=b"new", most=3)
    put(cache, entry(b"new"))
    assert len(cache) == 4
    cache.thin("nobody", keep=b"x", most=3)
    cache.forget_user("alice")
    cache.forget_user("bob")
    assert is_empty_inside(cache)


def test_p12_an_entry_shows_no_digest() -> None:
    """Neither as bytes nor in hex."""
    shown = repr(entry(b"\xaa\xbb\xcc\xdd"))
    assert "aabbccdd" not in shown
    assert "\\xaa" not in shown


def test_a_cache_without_room_is_refused() -> None:
    """At construction, not at the first request."""
    with pytest.raises(ConfigError):
        Cache(0)
