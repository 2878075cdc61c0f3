"""The table of rotation.py, to the letter and to the microsecond."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handstamp.config import Policy
from handstamp.core.models import Reason, Record
from handstamp.core.rotation import (
    RefreshVerdict,
    Refuse,
    Reissue,
    Replay,
    Rotate,
    judge_refresh,
    rotated_at,
    seen_at,
    was_seen,
)
from handstamp.core.tokens import TokenPair
from tests.core.samples import NEW_KEY, NOW, OLD_KEY, TICK, make_record, make_tokens

POLICY = Policy()
GRACE = POLICY.grace
TTL = POLICY.session_ttl
TOKENS = make_tokens()
SECOND = timedelta(seconds=1)


def lineage(length: int) -> list[TokenPair]:
    """A session's pairs, from the login on."""
    pairs = [TOKENS.mint("x", bytes(64), remember=True)]
    while len(pairs) < length:
        pairs.append(successors(pairs[-1])[0])
    return pairs


def successors(pair: TokenPair, *keys: str) -> list[TokenPair]:
    """What the refresh token of a pair leads to."""
    tokens = make_tokens(*keys)
    token = tokens.read_refresh(pair.refresh.encode())
    assert token is not None
    return list(tokens.successors(token, "x"))


FIRST, SECOND_PAIR, THIRD = lineage(3)
SEEN = NOW + timedelta(seconds=5, microseconds=1)


def row(current: TokenPair, age: timedelta, **changes: Any) -> Record:
    """A row that rotated to `current` at NOW and is read when that is `age` ago."""
    fresh = make_record(
        token_digest=current.session_digest, refresh_digest=current.refresh_digest
    )
    return replace(fresh, created_at=NOW - timedelta(days=1), read_at=NOW + age, **changes)


def judged(record: Record, presented: TokenPair, policy: Policy = POLICY) -> RefreshVerdict:
    """The verdict on presenting this pair's refresh token."""
    return judge_refresh(record, presented.refresh_digest, successors(presented), policy)


@pytest.mark.parametrize("age", [timedelta(0), GRACE, GRACE + TICK, timedelta(days=29)])
@pytest.mark.parametrize("last", [NOW, SEEN, None])
def test_the_row_s_own_token_rotates(age: timedelta, last: datetime | None) -> None:
    """The current refresh token leads to its successor, early or late, seen or not."""
    record = row(FIRST, age, last_activity_at=last)
    assert Rotate(SECOND_PAIR) == judged(record, FIRST)


@pytest.mark.parametrize("age", [timedelta(0), GRACE - TICK, GRACE])
@pytest.mark.parametrize("last", [NOW, SEEN])
def test_one_step_behind_within_grace_is_reissued(age: timedelta, last: datetime) -> None:
    """Concurrent tabs get the same successor, seen or not, and nothing is written."""
    record = row(SECOND_PAIR, age, last_activity_at=last)
    assert Reissue(SECOND_PAIR, NOW, redate=False) == judged(record, FIRST)


@pytest.mark.parametrize(
    "age", [GRACE + TICK, timedelta(days=1), timedelta(days=30) - TICK]
)
@pytest.mark.parametrize("last", [NOW, None])
def test_one_step_behind_and_unseen_is_reissued_and_redated(
    age: timedelta, last: datetime | None
) -> None:
    """A lost response is repeated at any age within the refresh limit."""
    record = row(SECOND_PAIR, age, last_activity_at=last)
    assert Reissue(SECOND_PAIR, NOW, redate=True) == judged(record, FIRST)


@pytest.mark.parametrize(
    "age", [GRACE + TICK, timedelta(days=1), timedelta(days=30) - TICK]
)
@pytest.mark.parametrize("last", [NOW + TICK, SEEN])
def test_one_step_behind_and_seen_is_a_replay(age: timedelta, last: datetime) -> None:
    """Past grace, a holder of the old token beside one of the new one is a second party."""
    record = row(SECOND_PAIR, age, last_activity_at=last)
    assert Replay(steps_behind_one=True) == judged(record, FIRST)


@pytest.mark.parametrize("last", [NOW, SEEN])
def test_several_steps_behind_is_late_within_grace_and_stale_after(last: datetime) -> None:
    """A token of an older generation is refused first, and proof of theft later."""
    record = row(THIRD, GRACE, last_activity_at=last)
    assert Refuse(Reason.LATE) == judged(record, FIRST)
    over = replace(record, read_at=NOW + GRACE + TICK)
    assert Replay(steps_behind_one=False) == judged(over, FIRST)


def test_a_stranger_s_genuine_token_is_a_stale_lineage() -> None:
    """A signed token that leads nowhere near the row is judged like an old one."""
    other = TOKENS.mint("x", bytes([7]) * 64, remember=True)
    record = row(FIRST, GRACE + TICK)
    assert Replay(steps_behind_one=False) == judged(record, other)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_active": False}, Reason.REVOKED),
        ({"user_is_active": False}, Reason.USER_DISABLED),
        ({"created_at": NOW - timedelta(days=90)}, Reason.ABSOLUTE),
        ({"refresh_expires_at": NOW + GRACE + TICK}, Reason.REFRESH_EXPIRED),
    ],
)
@pytest.mark.parametrize("presented", [FIRST, SECOND_PAIR, THIRD])
def test_rule_1_a_dead_family_refuses_everything(
    changes: dict[str, Any], reason: Reason, presented: TokenPair
) -> None:
    """Neither rotation nor replay: the family's own end is the answer."""
    record = replace(row(SECOND_PAIR, GRACE + TICK, last_activity_at=SEEN), **changes)
    assert Refuse(reason) == judged(record, presented)


def test_rule_1_an_idle_family_refuses_too() -> None:
    """The idle limit ends the family before any rotation."""
    policy = Policy(idle_ttl=timedelta(hours=1))
    record = row(FIRST, timedelta(hours=1))
    assert Refuse(Reason.IDLE) == judged(record, FIRST, policy)


@pytest.mark.parametrize("missing", ["refresh_digest", "refresh_expires_at"])
def test_a_row_without_a_refresh_token_knows_none(missing: str) -> None:
    """There is nothing to compare with, so nothing is found and nothing revoked."""
    record = row(FIRST, timedelta(minutes=1), **{missing: None})
    assert Refuse(Reason.NOT_FOUND) == judged(record, FIRST)


def test_a_successor_of_an_older_key_is_recognised() -> None:
    """A pair derived under the old key is reissued as it is after a new key came."""
    derived = successors(FIRST, OLD_KEY, NEW_KEY)
    record = row(SECOND_PAIR, GRACE)
    verdict = judge_refresh(record, FIRST.refresh_digest, derived, POLICY)
    assert derived[1] == SECOND_PAIR
    assert Reissue(SECOND_PAIR, NOW, redate=False) == verdict


def test_the_newest_key_s_successor_is_the_next_pair() -> None:
    """A rotation after a key came goes on under the new key."""
    derived = successors(FIRST, OLD_KEY, NEW_KEY)
    verdict = judge_refresh(row(FIRST, GRACE), FIRST.refresh_digest, derived, POLICY)
    assert Rotate(derived[0]) == verdict


def test_successors_are_derived_only_as_far_as_needed() -> None:
    """A plain rotation derives one pair, and a dead family none."""
    asked: list[TokenPair] = []

    def counted() -> Iterator[TokenPair]:
        for pair in successors(FIRST, OLD_KEY, NEW_KEY):
            asked.append(pair)
            yield pair

    dead = row(FIRST, GRACE, is_active=False)
    judge_refresh(dead, FIRST.refresh_digest, counted(), POLICY)
    assert asked == []
    judge_refresh(row(FIRST, GRACE), FIRST.refresh_digest, counted(), POLICY)
    assert len(asked) == 1


changed_ttls = [
    timedelta(minutes=1),
    TTL - SECOND,
    TTL + SECOND,
    timedelta(minutes=60),
    timedelta(days=2),
]


@pytest.mark.parametrize("ttl", changed_ttls)
@pytest.mark.parametrize("age", [GRACE + TICK, timedelta(days=2)])
def test_rule_5_a_changed_session_ttl_makes_no_lost_answer_a_replay(
    ttl: timedelta, age: timedelta
) -> None:
    """An unseen successor is reissued under longer and shorter lives alike."""
    record = row(SECOND_PAIR, age)
    verdict = judged(record, FIRST, Policy(session_ttl=ttl))
    assert Reissue(SECOND_PAIR, NOW, redate=True) == verdict


@pytest.mark.parametrize("ttl", changed_ttls)
def test_rule_5_grace_counts_from_the_rotation_under_any_session_ttl(
    ttl: timedelta,
) -> None:
    """While nothing was seen, the mark tells the date whatever the setting says."""
    record = row(THIRD, GRACE)
    assert rotated_at(record, ttl) == NOW
    assert not was_seen(record, ttl)
    assert Refuse(Reason.LATE) == judged(record, FIRST, Policy(session_ttl=ttl))


@pytest.mark.parametrize(
    ("last", "date", "seen"),
    [
        (None, NOW, False),
        (NOW, NOW, False),
        (NOW + TICK, NOW, True),
        (NOW - TICK, NOW, False),
        (NOW + TTL, NOW, True),
        (NOW + TTL + SECOND, NOW, True),
    ],
)
def test_rule_2_and_3_the_row_tells_when_it_rotated_and_whether_that_was_seen(
    last: datetime | None, date: datetime, seen: bool
) -> None:
    """Activity after the rotation means seen; at or before it, or none, does not."""
    record = make_record(last_activity_at=last)
    assert date == rotated_at(record, TTL)
    assert seen == was_seen(record, TTL)


@pytest.mark.parametrize(
    ("at", "stamp"),
    [
        (None, NOW + TICK),
        (NOW - timedelta(days=1), NOW + TICK),
        (NOW, NOW + TICK),
        (NOW + TICK, NOW + TICK),
        (NOW + SECOND, NOW + SECOND + TICK),
        (NOW + SECOND + TICK, NOW + SECOND + TICK),
        (NOW + TTL, NOW + TTL + TICK),
        (NOW + TTL + SECOND, NOW + TTL + SECOND + TICK),
    ],
)
def test_activity_is_written_after_the_rotation_and_off_the_second(
    at: datetime | None, stamp: datetime
) -> None:
    """The smallest step after the rotation, and a microsecond off any whole second."""
    assert stamp == seen_at(at, make_record(), TTL)


@given(
    at=st.none() | st.timedeltas(timedelta(days=-2), timedelta(days=2)).map(NOW.__add__),
    whole=st.booleans(),
    ttl=st.integers(60, 10_000).map(lambda n: timedelta(seconds=n)),
)
def test_recorded_activity_is_always_seen(
    at: datetime | None, whole: bool, ttl: timedelta
) -> None:
    """Whatever the clocks say, what is recorded comes after the rotation and says so."""
    if at is not None and whole:
        at = at.replace(microsecond=NOW.microsecond)
    record = make_record(expires_at=NOW + ttl)
    stamp = seen_at(at, record, ttl)
    assert stamp > NOW
    assert (record.expires_at - stamp) % SECOND
    assert was_seen(replace(record, last_activity_at=stamp), ttl)
    assert stamp - max(at or NOW, NOW) <= 2 * TICK


@pytest.mark.parametrize("ttl", changed_ttls)
@pytest.mark.parametrize("at", [None, NOW + SECOND])
def test_rule_5_a_first_use_is_seen_under_any_session_ttl(
    ttl: timedelta, at: datetime | None
) -> None:
    """What is recorded comes after the rotation that the row shows, and after the one
    that a changed setting makes of it: stores take no time that goes back."""
    record = make_record(read_at=NOW + timedelta(hours=1))
    stamp = seen_at(at, record, ttl)
    assert record.last_activity_at == NOW
    if at is None or ttl < TTL:
        assert stamp > NOW
    assert was_seen(replace(record, last_activity_at=stamp), ttl)


def test_rule_5_a_passive_first_use_is_never_dated_before_the_rotation() -> None:
    """A `session_ttl` that is longer today would date the rotation back, to before what
    the row already says."""
    hour = timedelta(hours=1)
    record = make_record(read_at=NOW + hour)
    assert seen_at(None, record, TTL + hour) == NOW + TICK


def test_no_verdict_shows_its_tokens() -> None:
    """The verdicts that carry a pair keep it out of their repr."""
    for verdict in (Rotate(FIRST), Reissue(FIRST, NOW, redate=True)):
        assert FIRST.refresh not in repr(verdict)
        assert FIRST.session not in repr(verdict)
