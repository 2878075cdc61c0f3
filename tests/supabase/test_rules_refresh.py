"""The rules of Supabase's refresh tokens, at every boundary."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from handstamp.supabase.rules import (
    AuthSession,
    Count,
    HandOut,
    Misused,
    Refusal,
    StoredToken,
    SupabaseRules,
    Swap,
    judge_v1,
    judge_v2,
)

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
TEN = timedelta(seconds=10)
STEP = timedelta(microseconds=1)
RULES = SupabaseRules(reuse_interval=TEN)
DISABLED = SupabaseRules(reuse_interval=TEN, rotation_enabled=False)


def token(text: str = "presented123", **values: Any) -> StoredToken:
    known: dict[str, Any] = {
        "id": 1,
        "token": text,
        "user_id": "u",
        "session_id": "s",
        "parent": None,
        "revoked": False,
        "updated_at": NOW,
    }
    return StoredToken(**{**known, **values})


def session(**values: Any) -> AuthSession:
    known: dict[str, Any] = {
        "id": "s",
        "user_id": "u",
        "created_at": NOW,
        "read_at": NOW,
        "counter": 5,
        "refreshed_at": NOW,
    }
    return AuthSession(**{**known, **values})


@pytest.mark.parametrize("age", [timedelta(0), timedelta(days=1000)])
def test_an_unused_v1_token_is_swapped(age: timedelta) -> None:
    """At any age: only the session has limits."""
    assert judge_v1(token(), None, RULES, NOW + age) == Swap()


@pytest.mark.parametrize("age", [timedelta(0), TEN + STEP, timedelta(days=1000)])
@pytest.mark.parametrize("rules", [RULES, DISABLED, SupabaseRules()])
def test_the_parent_of_the_active_token_gets_it_again(
    age: timedelta, rules: SupabaseRules
) -> None:
    """At any age: the client did not save the last answer."""
    active = token("active123456", parent="presented123")
    verdict = judge_v1(token(revoked=True), active, rules, NOW + age)
    assert verdict == HandOut("active123456")


@pytest.mark.parametrize("active", [None, token("active123456", parent="another12345")])
@pytest.mark.parametrize(
    ("age", "within"),
    [(timedelta(0), True), (TEN, True), (TEN + STEP, False), (-TEN, True)],
)
def test_the_interval_of_v1_includes_its_end(
    active: StoredToken | None, age: timedelta, within: bool
) -> None:
    """Counted from the presented token's own last use."""
    verdict = judge_v1(token(revoked=True), active, RULES, NOW + age)
    assert verdict == (Swap(reused=True) if within else Misused(ends=True))


def test_a_revoked_token_of_unknown_age_is_old() -> None:
    """A NULL that GoTrue never writes is no reason to be lenient."""
    stale = token(revoked=True, updated_at=None)
    assert judge_v1(stale, None, RULES, NOW) == Misused(ends=True)


def test_without_rotation_a_misused_v1_token_ends_nothing() -> None:
    """The refusal is the same."""
    verdict = judge_v1(token(revoked=True), None, DISABLED, NOW + TEN + STEP)
    assert verdict == Misused(ends=False)


@pytest.mark.parametrize("rules", [RULES, DISABLED, SupabaseRules(allow_reuse=True)])
def test_the_current_counter_counts_one_on(rules: SupabaseRules) -> None:
    """Nothing else is a normal use."""
    assert judge_v2(session(), 5, rules, NOW) == Count(6)


@pytest.mark.parametrize("rules", [RULES, DISABLED, SupabaseRules(allow_reuse=True)])
@pytest.mark.parametrize("counter", [6, 7, 2**63 - 1])
def test_a_counter_ahead_was_not_issued_here(rules: SupabaseRules, counter: int) -> None:
    """It is refused whatever is allowed."""
    assert judge_v2(session(), counter, rules, NOW) is Refusal.AHEAD


INSIDE, OUTSIDE = TEN - STEP, TEN


@pytest.mark.parametrize(
    ("behind", "age"),
    [
        (1, INSIDE),
        (1, OUTSIDE),
        (1, timedelta(days=1000)),
        (2, INSIDE),
        (5, INSIDE),
        (2, -INSIDE),
    ],
)
def test_a_counter_behind_gets_the_current_token(behind: int, age: timedelta) -> None:
    """One behind always, further behind within the interval, which excludes its end."""
    verdict = judge_v2(session(), 5 - behind, RULES, NOW + age)
    assert verdict == Count(5, reused=True)


@pytest.mark.parametrize("behind", [2, 3, 5])
@pytest.mark.parametrize("age", [OUTSIDE, -OUTSIDE, timedelta(days=1)])
def test_a_counter_two_behind_is_theft(behind: int, age: timedelta) -> None:
    """Outside of the interval in either direction; what it ends depends on rotation."""
    assert judge_v2(session(), 5 - behind, RULES, NOW + age) == Misused(ends=True)
    assert judge_v2(session(), 5 - behind, DISABLED, NOW + age) == Misused(ends=False)


def test_without_an_interval_nothing_is_concurrent() -> None:
    """Not even at the same instant: the comparison is strict."""
    assert judge_v2(session(), 3, SupabaseRules(), NOW) == Misused(ends=True)
    assert judge_v2(session(), 4, SupabaseRules(), NOW) == Count(5, reused=True)


def test_a_session_that_was_never_refreshed_counts_from_its_creation() -> None:
    """A first refresh that was lost twice is still within the interval of that."""
    fresh = session(refreshed_at=None, counter=2)
    assert judge_v2(fresh, 0, RULES, NOW + INSIDE) == Count(2, reused=True)
    assert judge_v2(fresh, 0, RULES, NOW + OUTSIDE) == Misused(ends=True)


@pytest.mark.parametrize("behind", [1, 2, 5])
def test_where_reuse_is_allowed_nothing_is_theft(behind: int) -> None:
    """At any age, however far behind."""
    rules = SupabaseRules(reuse_interval=TEN, allow_reuse=True)
    for age in (timedelta(0), 2 * TEN):
        verdict = judge_v2(session(), 5 - behind, rules, NOW + age)
        assert verdict == Count(5, reused=True)


def test_verdicts_and_tokens_show_no_token() -> None:
    """Their repr is fit for a log."""
    assert "presented123" not in repr(token(parent="presented123"))
    assert "active123456" not in repr(HandOut("active123456"))
