"""The rules of a Supabase session, at every boundary."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from handstamp.errors import ConfigError
from handstamp.supabase.rules import (
    Alive,
    AuthSession,
    Refusal,
    SupabaseRules,
    access_token_ends,
    effective_tag,
    judge_rivals,
    judge_session,
    judge_user,
)

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
STEP = timedelta(microseconds=1)
RULES = SupabaseRules()
FAR = datetime.max.replace(tzinfo=UTC)


def session(**values: Any) -> AuthSession:
    known: dict[str, Any] = {
        "id": "s",
        "user_id": "u",
        "created_at": NOW - 2 * HOUR,
        "read_at": NOW,
        "aal": "aal1",
    }
    return AuthSession(**{**known, **values})


def test_without_limits_a_session_lives_for_ever() -> None:
    """Nothing counts down where no rule does."""
    assert judge_session(session(), RULES) == Alive(None)


@pytest.mark.parametrize(
    ("rules", "values", "refusal"),
    [
        ({}, {"not_after": NOW}, Refusal.EXPIRED),
        ({"timebox": 2 * HOUR}, {}, Refusal.EXPIRED),
        ({"inactivity": 2 * HOUR}, {}, Refusal.INACTIVE),
        ({"inactivity": HOUR}, {"refreshed_at": NOW - HOUR}, Refusal.INACTIVE),
        ({"inactivity": HOUR}, {"token_updated_at": NOW - HOUR}, Refusal.INACTIVE),
        ({"allow_low_aal": 2 * HOUR}, {"has_verified_factor": True}, Refusal.LOW_AAL),
    ],
    ids=["not-after", "timebox", "inactivity", "refreshed", "token", "low-aal"],
)
def test_a_limit_has_passed_strictly_after_it(
    rules: dict[str, Any], values: dict[str, Any], refusal: Refusal
) -> None:
    """At the very instant a session is still valid; a microsecond later it is not."""
    known, settings = session(**values), SupabaseRules(**rules)
    assert judge_session(known, settings, NOW - HOUR) == Alive(HOUR)
    assert judge_session(known, settings) == Alive(timedelta(0))
    assert judge_session(known, settings, NOW + STEP) is refusal


def test_the_first_limit_in_the_order_of_the_rules_is_the_reason() -> None:
    """not_after and timebox come before inactivity, and that before the low level."""
    rules = SupabaseRules(timebox=HOUR, inactivity=HOUR, allow_low_aal=HOUR)
    known = session(has_verified_factor=True)
    assert judge_session(known, rules) is Refusal.EXPIRED
    rules = replace(rules, timebox=None)
    assert judge_session(known, rules) is Refusal.INACTIVE
    assert judge_session(replace(known, refreshed_at=NOW), rules) is Refusal.LOW_AAL


def test_the_nearest_limit_is_what_remains() -> None:
    """A session that many rules watch lives as long as the strictest lets it."""
    rules = SupabaseRules(timebox=5 * HOUR, inactivity=3 * HOUR)
    assert judge_session(session(), rules) == Alive(HOUR)
    soon = session(not_after=NOW + STEP)
    assert judge_session(soon, rules) == Alive(STEP)


@pytest.mark.parametrize("aal", ["aal2", "aal3"])
def test_a_high_level_has_no_limit(aal: str) -> None:
    """The low level's time runs for sessions below the user's highest only."""
    rules = SupabaseRules(allow_low_aal=HOUR)
    assert judge_session(session(aal=aal, has_verified_factor=True), rules) == Alive(None)
    assert judge_session(session(), rules) == Alive(None)


def test_no_level_is_the_lowest() -> None:
    """NULL is read as aal1."""
    rules = SupabaseRules(allow_low_aal=HOUR)
    known = session(aal=None, has_verified_factor=True)
    assert judge_session(known, rules) is Refusal.LOW_AAL


@pytest.mark.parametrize(
    ("values", "last"),
    [
        ({}, NOW - 2 * HOUR),
        ({"token_updated_at": NOW - HOUR}, NOW - HOUR),
        ({"token_updated_at": NOW - 3 * HOUR}, NOW - 2 * HOUR),
        ({"token_updated_at": NOW, "refreshed_at": NOW - HOUR}, NOW - HOUR),
        ({"refreshed_at": NOW - 3 * HOUR}, NOW - 3 * HOUR),
    ],
)
def test_the_last_refresh_is_the_best_that_is_known(
    values: dict[str, Any], last: datetime
) -> None:
    """refreshed_at; else the token's time if that is later than the creation; else that."""
    assert session(**values).last_refreshed_at == last


def test_a_session_without_a_creation_is_older_than_any_limit() -> None:
    """A NULL that GoTrue never writes counts as the beginning of time."""
    known = session(created_at=None)
    assert judge_session(known, RULES) == Alive(None)
    assert judge_session(known, SupabaseRules(timebox=HOUR)) is Refusal.EXPIRED


@pytest.mark.parametrize("far", [FAR, datetime.min.replace(tzinfo=UTC)])
def test_no_date_leaves_the_calendar(far: datetime) -> None:
    """Limits are compared as durations, so the ends of time raise nothing."""
    years = timedelta(days=36_500)
    rules = SupabaseRules(timebox=years, inactivity=years, allow_low_aal=years)
    known = session(
        created_at=far, not_after=far, refreshed_at=far, has_verified_factor=True
    )
    assert judge_session(known, rules) in (Refusal.EXPIRED, Alive(far - NOW))
    assert access_token_ends(known, "aal1", rules, NOW) <= NOW + HOUR


@pytest.mark.parametrize(
    ("values", "refusal"),
    [
        ({}, None),
        ({"user_found": False}, Refusal.USER_NOT_FOUND),
        ({"banned_until": NOW + STEP}, Refusal.BANNED),
        ({"banned_until": NOW}, None),
        ({"deleted_at": NOW + HOUR}, Refusal.USER_NOT_FOUND),
        ({"deleted_at": NOW - HOUR}, Refusal.USER_NOT_FOUND),
        ({"banned_until": FAR, "deleted_at": NOW}, Refusal.BANNED),
    ],
    ids=["fine", "gone", "banned", "ban-over", "deleted-ahead", "deleted", "both"],
)
def test_what_speaks_against_a_user(
    values: dict[str, Any], refusal: Refusal | None
) -> None:
    """A ban ends at its instant; a deletion counts whatever its date."""
    assert judge_user(session(**values), NOW) is refusal


ONE_EACH = SupabaseRules(single_per_user=True)


@pytest.mark.parametrize(
    ("ahead", "refusal"),
    [(STEP, Refusal.SUPERSEDED), (timedelta(0), None), (-STEP, None)],
    ids=["later", "same-time", "earlier"],
)
def test_a_session_refreshed_strictly_later_supersedes(
    ahead: timedelta, refusal: Refusal | None
) -> None:
    """Two of the same instant leave each other alone."""
    mine = session(refreshed_at=NOW)
    other = session(id="o", refreshed_at=NOW + ahead)
    assert judge_rivals(mine, [mine, other], ONE_EACH, NOW) is refusal


def test_the_own_token_s_time_counts_for_the_own_session() -> None:
    """A session that was never refreshed is as young as the token that is presented."""
    mine = session(token_updated_at=NOW)
    other = session(id="o", refreshed_at=NOW - HOUR)
    assert judge_rivals(mine, [other], ONE_EACH, NOW) is None
    assert judge_rivals(session(), [other], ONE_EACH, NOW) is Refusal.SUPERSEDED


def test_a_rival_that_is_over_supersedes_nobody() -> None:
    """Only sessions that are valid by the rules of time count."""
    other = session(id="o", refreshed_at=NOW, not_after=NOW)
    rules = replace(ONE_EACH, inactivity=5 * HOUR)
    assert judge_rivals(session(), [other], rules, NOW) is Refusal.SUPERSEDED
    assert judge_rivals(session(), [other], rules, NOW + STEP) is None


def test_without_the_rule_there_are_no_rivals() -> None:
    """A user may have as many sessions as they like."""
    other = session(id="o", refreshed_at=NOW)
    assert judge_rivals(session(), [other], RULES, NOW) is None


@pytest.mark.parametrize(
    ("mine", "other", "superseded"),
    [
        ("web", "web", True),
        ("web", "app", False),
        (None, "web", True),
        ("", "web", True),
        ("unknown", "web", True),
        ("unknown", "app", False),
        ("app", None, False),
    ],
)
def test_tags_part_the_sessions_of_a_user(
    mine: str | None, other: str | None, superseded: bool
) -> None:
    """Whatever is not configured counts as the first tag."""
    rules = replace(ONE_EACH, tags=("web", "app"))
    rival = session(id="o", refreshed_at=NOW, tag=other)
    verdict = judge_rivals(session(tag=mine), [rival], rules, NOW)
    assert (verdict is Refusal.SUPERSEDED) is superseded


def test_without_tags_all_tags_are_one() -> None:
    """The column means nothing then."""
    assert effective_tag("web", ()) == effective_tag(None, ()) == ""


@pytest.mark.parametrize(
    ("created", "aal", "lasts"),
    [
        (timedelta(0), "aal1", HOUR),
        (timedelta(0), "aal2", HOUR),
        (2 * HOUR - STEP, "aal1", STEP),
        (2 * HOUR - STEP, "aal2", HOUR),
    ],
)
def test_a_low_level_shortens_access_tokens(
    created: timedelta, aal: str, lasts: timedelta
) -> None:
    """They end where the level's time does, and no token outlives JWT_EXP."""
    rules = SupabaseRules(allow_low_aal=2 * HOUR)
    known = session(created_at=NOW - created, has_verified_factor=True)
    assert access_token_ends(known, aal, rules, NOW) == NOW + lasts
    assert access_token_ends(known, aal, RULES, NOW) == NOW + HOUR


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("timebox", timedelta(0)),
        ("timebox", -HOUR),
        ("timebox", 3600),
        ("inactivity", timedelta(0)),
        ("allow_low_aal", timedelta(days=40_000)),
        ("reuse_interval", -HOUR),
        ("reuse_interval", timedelta(milliseconds=1500)),
        ("access_token_ttl", timedelta(0)),
        ("access_token_ttl", STEP),
        ("retry_budget", timedelta(0)),
        ("algorithm_version", 3),
        ("upgrade", 50),
        ("tags", ["web"]),
        ("tags", "web"),
        ("tags", ("web", "")),
    ],
)
def test_a_setting_that_cannot_work_is_refused(setting: str, value: Any) -> None:
    """At construction, by its name."""
    with pytest.raises(ConfigError, match=setting):
        SupabaseRules(**{setting: value})


@pytest.mark.parametrize(
    ("version", "upgrade", "upgrades"),
    [(0, 100, False), (1, 100, False), (2, 0, False), (2, 100, True)],
)
def test_sessions_are_upgraded_only_to_what_is_in_use(
    version: Any, upgrade: Any, upgrades: bool
) -> None:
    """It takes both settings."""
    rules = SupabaseRules(algorithm_version=version, upgrade=upgrade)
    assert rules.upgrades is upgrades


def test_a_session_shows_no_secret_and_no_address() -> None:
    """Its repr is fit for a log."""
    known = session(key="K" * 43, address="198.51.100.7", user_agent="Laptop")
    assert not {"K" * 43, "198.51.100.7", "Laptop"} & set(repr(known).split("'"))
