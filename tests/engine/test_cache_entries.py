"""From database time to our clock: never late, never ahead."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from handstamp.config import Policy
from handstamp.core.models import Invalid, Reason, Record
from handstamp.engine.cache import NEVER, CacheEntry, Read, as_passive, make_entry

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = b"k" * 32
READ = Read(before=100.0, after=102.0)
MINUTE = timedelta(minutes=1)
LAZY = Policy(max_staleness=timedelta(days=1), longest_trust=timedelta(days=90))


def record(**changes: object) -> Record:
    made = Record(
        id="s",
        user_id="u",
        token_digest=KEY.hex(),
        refresh_digest="r",
        created_at=NOW - 5 * MINUTE,
        expires_at=NOW + 10 * MINUTE,
        refresh_expires_at=NOW + timedelta(days=30),
        last_activity_at=NOW - 5 * MINUTE,
        is_active=True,
        read_at=NOW,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def entry(
    policy: Policy = LAZY, known: CacheEntry | None = None, **changes: object
) -> CacheEntry:
    made = make_entry(record(**changes), policy, KEY, READ, known)
    assert isinstance(made, CacheEntry)
    return made


def test_what_is_left_counts_from_before_the_query() -> None:
    """An entry ends early by a round trip, never late."""
    assert entry().hard == 100.0 + 600
    assert entry().deadline == 100.0 + 600


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        (replace(LAZY, idle_ttl=6 * MINUTE), 60),
        (replace(LAZY, idle_ttl=timedelta(hours=9)), 600),
    ],
    ids=["idle", "neither"],
)
def test_the_nearest_deadline_counts(policy: Policy, seconds: int) -> None:
    """The end of the token, or of the idle limit."""
    assert entry(policy).deadline == 100.0 + seconds


def test_belief_by_age_alone_ends_after_max_staleness() -> None:
    """Counted from before the query, as the limits are."""
    assert entry(Policy(max_staleness=timedelta(seconds=7))).confirmed == 100.0 + 7


def test_activity_is_dated_behind_the_database() -> None:
    """From the end of the query, so that it never lies ahead of a rotation."""
    assert entry().database_time(READ.after) == NOW
    assert entry().database_time(READ.after + 3) == NOW + timedelta(seconds=3)


def test_what_the_row_knows_of_its_activity_throttles() -> None:
    """Another process wrote a touch a minute ago: this one counts from there."""
    seen = NOW - MINUTE + timedelta(microseconds=1)
    made = entry(last_activity_at=seen)
    assert made.seen is True
    assert made.touched == pytest.approx(READ.after - 60)


@pytest.mark.parametrize("activity", [NOW - 5 * MINUTE, None], ids=["mark", "null"])
def test_a_new_token_was_never_touched(activity: datetime | None) -> None:
    """Neither the mark of a rotation nor NULL is activity."""
    made = entry(last_activity_at=activity)
    assert (made.seen, made.touched) == (False, NEVER)


def test_a_dead_row_makes_no_entry() -> None:
    """The reason is the verdict's."""
    dead = make_entry(record(is_active=False), LAZY, KEY, READ)
    assert dead == Invalid(Reason.REVOKED)


def test_what_the_old_entry_knew_is_kept() -> None:
    """A row read again does not forget touches that are not written yet."""
    known = entry()
    known.touched, known.used, known.seen = 101.0, 101.5, True
    made = entry(known=known)
    assert (made.touched, made.used, made.seen) == (101.0, 101.5, True)


def test_activity_that_is_not_written_extends_an_idle_limit() -> None:
    """And never beyond what the read itself could have seen."""
    policy = replace(LAZY, idle_ttl=6 * MINUTE)
    known = entry(policy)
    known.used = 102.0
    idle = record(read_at=NOW + 3 * MINUTE, last_activity_at=NOW - 5 * MINUTE)
    assert make_entry(idle, policy, KEY, Read(282.0, 282.0)) == Invalid(Reason.IDLE)
    made = make_entry(idle, policy, KEY, Read(282.0, 282.0), known)
    assert isinstance(made, CacheEntry)
    assert made.deadline == 282.0 + 180


@pytest.mark.parametrize("used", [NEVER, 101.0], ids=["unused", "used before"])
def test_activity_that_left_the_cache_extends_an_idle_limit(used: float) -> None:
    """What waits for the next flush counts, whether or not there is an older entry."""
    policy = replace(LAZY, idle_ttl=6 * MINUTE)
    known = entry(policy)
    known.used = used
    idle = record(read_at=NOW + 3 * MINUTE)
    noted = NOW + MINUTE
    made = make_entry(idle, policy, KEY, Read(282.0, 282.0), known, noted)
    assert isinstance(made, CacheEntry)
    assert made.deadline == 282.0 + 240


def test_a_used_entry_from_the_future_counts_as_now() -> None:
    """Its own clock may be ahead by a round trip."""
    policy = replace(LAZY, idle_ttl=6 * MINUTE)
    known = entry(policy)
    known.used = 1e6
    made = entry(policy, known)
    assert made.deadline == 100.0 + 360


def test_a_passive_request_sees_the_family() -> None:
    """With the session token long dead."""
    assert isinstance(make_entry(record(expires_at=NOW), LAZY, KEY, READ), Invalid)
    made = make_entry(as_passive(record(expires_at=NOW)), LAZY, KEY, READ)
    assert isinstance(made, CacheEntry)
    assert made.hard == 100.0 + timedelta(days=30).total_seconds()
