"""Every rule of lifetime.py, at its boundary."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handstamp.config import Policy
from handstamp.core.lifetime import judge, judge_family, may_be_alive, sliding_expiry
from handstamp.core.models import Invalid, Reason, Record, Valid
from tests.core.samples import NOW, TICK, make_record

POLICY = Policy()
IDLE = Policy(idle_ttl=timedelta(hours=1))
DAY = timedelta(days=1)
FAR = NOW + timedelta(days=36_500)

instants = st.timedeltas(timedelta(days=-100), timedelta(days=100)).map(NOW.__add__)
records = st.builds(
    make_record,
    created_at=st.none() | instants,
    expires_at=instants,
    refresh_expires_at=st.none() | instants,
    last_activity_at=st.none() | instants,
    is_active=st.booleans(),
    user_is_active=st.booleans(),
)


def endless(**changes: Any) -> Record:
    """A record that no limit ends, but for the changes."""
    return make_record(**{"expires_at": FAR, "refresh_expires_at": FAR, **changes})


def test_a_fresh_session_is_valid_until_its_token_expires() -> None:
    """What remains is the time to the nearest limit."""
    assert Valid(timedelta(minutes=15)) == judge(make_record(), POLICY)
    assert Valid(timedelta(days=30)) == judge_family(make_record(), POLICY)


def test_rule_4_a_token_is_dead_at_the_instant_it_expires() -> None:
    """A microsecond before is alive, the instant itself is not."""
    expires = make_record().expires_at
    assert Valid(TICK) == judge(make_record(read_at=expires - TICK), POLICY)
    assert Invalid(Reason.EXPIRED) == judge(make_record(read_at=expires), POLICY)


def test_rule_2_a_family_outlives_its_token() -> None:
    """An expired session token ends nothing but itself."""
    late = make_record(read_at=NOW + DAY)
    assert Invalid(Reason.EXPIRED) == judge(late, POLICY)
    assert Valid(timedelta(days=29)) == judge_family(late, POLICY)


@pytest.mark.parametrize("judged", [judge, judge_family])
def test_rule_2_the_absolute_limit_counts_from_the_creation(judged: Any) -> None:
    """Whatever the row says of its expiry, the limit stands where it was created."""
    end = NOW + POLICY.absolute_ttl
    alive = endless(read_at=end - TICK, last_activity_at=end - TICK)
    assert Valid(TICK) == judged(alive, POLICY)
    assert Invalid(Reason.ABSOLUTE) == judged(replace(alive, read_at=end), POLICY)


@pytest.mark.parametrize("policy", [POLICY, IDLE])
def test_rule_2_a_row_without_a_creation_never_stands(policy: Policy) -> None:
    """There is no limit to count from, so there is no session."""
    record = endless(created_at=None)
    assert Invalid(Reason.ABSOLUTE) == judge(record, policy)
    assert Invalid(Reason.ABSOLUTE) == judge_family(record, policy)


@pytest.mark.parametrize("judged", [judge, judge_family])
def test_rule_2_the_refresh_limit_ends_the_family(judged: Any) -> None:
    """At the refresh limit both the token and the family are over."""
    record = endless(refresh_expires_at=NOW + DAY, read_at=NOW + DAY - TICK)
    assert Valid(TICK) == judged(record, POLICY)
    ended = replace(record, read_at=NOW + DAY)
    assert Invalid(Reason.REFRESH_EXPIRED) == judged(ended, POLICY)


def test_rule_3_a_session_token_never_outlives_the_refresh_limit() -> None:
    """The nearer of the two ends counts."""
    record = make_record(refresh_expires_at=NOW + timedelta(minutes=1))
    assert Valid(timedelta(minutes=1)) == judge(record, POLICY)


@pytest.mark.parametrize("missing", ["refresh_digest", "refresh_expires_at"])
def test_a_row_without_a_refresh_token_ends_with_its_own_expiry(missing: str) -> None:
    """Where nothing can refresh, the session token's end is the family's."""
    record = make_record(**{missing: None})
    assert Valid(timedelta(minutes=15)) == judge_family(record, POLICY)
    ended = replace(record, read_at=record.expires_at)
    assert Invalid(Reason.EXPIRED) == judge_family(ended, POLICY)


@pytest.mark.parametrize("judged", [judge, judge_family])
def test_rule_2_the_idle_limit_counts_from_the_last_activity(judged: Any) -> None:
    """Idle a microsecond short is alive, idle in full is not."""
    end = NOW + DAY + timedelta(hours=1)
    record = endless(last_activity_at=NOW + DAY, read_at=end - TICK)
    assert Valid(TICK, TICK) == judged(record, IDLE)
    assert Invalid(Reason.IDLE) == judged(replace(record, read_at=end), IDLE)
    assert isinstance(judged(replace(record, read_at=end), POLICY), Valid)


@pytest.mark.parametrize("last", [None, NOW - DAY])
def test_without_activity_the_idle_limit_counts_from_the_creation(last: Any) -> None:
    """A session that was never used is not idle before it could have been."""
    record = endless(last_activity_at=last)
    hour = timedelta(hours=1)
    assert Valid(hour, hour) == judge(record, IDLE)
    assert Invalid(Reason.IDLE) == judge(replace(record, read_at=NOW + hour), IDLE)


def test_the_idle_limit_is_told_apart_from_what_remains() -> None:
    """Activity can move the idle end, so it is reported by itself."""
    expected = Valid(timedelta(minutes=15), timedelta(hours=1))
    assert expected == judge(make_record(), IDLE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_active": False}, Reason.REVOKED),
        ({"revoked_at": NOW}, Reason.REVOKED),
        ({"revoked_at": FAR}, Reason.REVOKED),
        ({"user_is_active": False}, Reason.USER_DISABLED),
        ({"is_active": False, "user_is_active": False}, Reason.REVOKED),
        ({"is_active": False, "read_at": FAR}, Reason.REVOKED),
    ],
)
def test_rule_2_revoked_and_disabled_sessions_are_over(
    changes: dict[str, Any], reason: Reason
) -> None:
    """No limit needs to pass, and the strongest reason is given."""
    assert Invalid(reason) == judge(make_record(**changes), POLICY)
    assert Invalid(reason) == judge_family(make_record(**changes), POLICY)


@pytest.mark.parametrize(
    ("changed", "is_over"),
    [(None, False), (NOW - TICK, False), (NOW, False), (NOW + TICK, True)],
)
def test_a_password_change_ends_older_sessions_if_asked_to(
    changed: Any, is_over: bool
) -> None:
    """Only sessions created before the change end, and only with the option."""
    record = make_record(password_changed_at=changed)
    strict = Policy(end_on_password_change=True)
    assert isinstance(judge(record, POLICY), Valid)
    expected = Invalid(Reason.PASSWORD_CHANGED) if is_over else Valid(timedelta(minutes=15))
    assert expected == judge(record, strict)


def test_rule_5_a_locked_account_keeps_its_sessions() -> None:
    """A record does not even know of `locked_until`, so it cannot play a role."""
    assert not any("lock" in name for name in Record.__slots__)


def test_the_nearest_limit_gives_the_reason() -> None:
    """Of several limits that have passed, the one that passed first is named."""
    record = make_record(
        refresh_expires_at=NOW + DAY, last_activity_at=NOW + DAY / 2, read_at=FAR
    )
    assert Invalid(Reason.IDLE) == judge(record, IDLE)
    assert Invalid(Reason.REFRESH_EXPIRED) == judge(record, POLICY)
    endlessly = endless(read_at=FAR, last_activity_at=FAR)
    assert Invalid(Reason.ABSOLUTE) == judge(endlessly, IDLE)


@given(record=records, idle=st.none() | st.timedeltas(timedelta(minutes=1), 9 * DAY))
def test_a_valid_session_is_inside_every_limit(
    record: Record, idle: timedelta | None
) -> None:
    """Whatever the row says, valid means that nothing has passed, and until when."""
    policy = Policy(idle_ttl=idle)
    verdict = judge(record, policy)
    if isinstance(verdict, Valid):
        end = record.read_at + verdict.remaining
        assert record.is_active
        assert record.user_is_active
        assert record.created_at is not None
        assert record.read_at < end <= record.created_at + policy.absolute_ttl
        assert end <= record.expires_at
        assert end <= (record.refresh_expires_at or end)
        assert (idle is None) == (verdict.idle_remaining is None)


@given(record=records, later=st.timedeltas(timedelta(0), 200 * DAY))
def test_what_has_ended_never_begins_again(record: Record, later: timedelta) -> None:
    """Time alone makes no dead session live."""
    if isinstance(judge(record, POLICY), Invalid):
        aged = replace(record, read_at=record.read_at + later)
        assert isinstance(judge(aged, POLICY), Invalid)


# Rule 6: an expiry that slides.


def sliding(**changes: Any) -> Record:
    """A row of a table without refresh tokens, right after its login."""
    return make_record(
        **{
            "refresh_digest": None,
            "refresh_expires_at": None,
            "expires_at": NOW + POLICY.refresh_ttl,
            "slides": True,
            **changes,
        }
    )


@pytest.mark.parametrize("judged", [judge, judge_family])
def test_rule_6_activity_moves_the_expiry_ahead(judged: Any) -> None:
    """By `refresh_ttl`, counted from the activity."""
    record = sliding(read_at=NOW + 20 * DAY)
    assert Valid(10 * DAY) == judged(record, POLICY)
    assert Valid(29 * DAY) == judged(record, POLICY, active_at=NOW + 19 * DAY)


def test_rule_6_never_past_the_absolute_limit() -> None:
    """There the expiry and the limit are one."""
    end = NOW + POLICY.absolute_ttl
    record = sliding(expires_at=end - DAY, read_at=end - 2 * DAY)
    assert sliding_expiry(record, POLICY, end - 2 * DAY) == end
    assert Valid(2 * DAY) == judge(record, POLICY, active_at=end - 2 * DAY)


@pytest.mark.parametrize(
    "rounding", [timedelta(0), timedelta(milliseconds=500), timedelta(seconds=1)], ids=str
)
def test_rule_6_a_session_for_the_day_never_passes_the_day(rounding: timedelta) -> None:
    """Its first expiry tells it, also where two columns round differently."""
    ends = NOW + POLICY.browser_ttl + rounding
    record = sliding(expires_at=ends, read_at=ends - TICK)
    assert sliding_expiry(record, POLICY, ends - TICK) == ends
    assert Invalid(Reason.EXPIRED) == judge(
        replace(record, read_at=ends), POLICY, active_at=ends - TICK
    )


def test_rule_6_a_remembered_session_is_told_by_its_first_expiry() -> None:
    """Further away than a day's session can be."""
    ends = NOW + POLICY.browser_ttl + timedelta(seconds=1) + TICK
    record = sliding(expires_at=ends, read_at=NOW + DAY / 2)
    assert (
        sliding_expiry(record, POLICY, NOW + DAY / 2) == NOW + DAY / 2 + POLICY.refresh_ttl
    )


def test_rule_6_an_expiry_never_moves_back() -> None:
    """Neither for old news nor under shorter settings."""
    record = sliding()
    assert sliding_expiry(record, POLICY, NOW - DAY) == record.expires_at
    brief = Policy(refresh_ttl=2 * DAY, absolute_ttl=3 * DAY)
    assert sliding_expiry(record, brief, NOW + DAY) == record.expires_at


@pytest.mark.parametrize(
    "record",
    [
        sliding(slides=False),
        sliding(created_at=None),
        sliding(created_at=None, undated=True),
    ],
    ids=["fixed", "no birthday", "no column"],
)
def test_rule_6_not_everything_slides(record: Record) -> None:
    """Neither a table's that rotates, nor a row without a sign-in to count from."""
    assert sliding_expiry(record, POLICY, NOW + DAY) == record.expires_at


def test_rule_6_activity_after_the_end_is_no_resurrection() -> None:
    """At the expiry it is over."""
    record = sliding(expires_at=NOW + 2 * DAY, read_at=NOW + 2 * DAY)
    assert Invalid(Reason.EXPIRED) == judge(record, POLICY, active_at=record.expires_at)


def test_rule_2_a_table_without_birthdays_goes_by_its_expiry() -> None:
    """No limit can be counted from what the table does not keep."""
    record = sliding(created_at=None, undated=True, slides=False, read_at=NOW + 29 * DAY)
    assert Valid(DAY) == judge(record, POLICY)
    late = replace(record, read_at=NOW + 30 * DAY)
    assert Invalid(Reason.EXPIRED) == judge(late, POLICY)


@given(
    record=records,
    active=st.none() | instants,
    policy=st.sampled_from([POLICY, IDLE]),
)
def test_rule_6_is_bounded_whatever_the_row(
    record: Record, active: Any, policy: Policy
) -> None:
    """Never before the row's own expiry, never past both it and the absolute limit."""
    row = replace(record, slides=True)
    end = sliding_expiry(row, policy, active)
    assert end >= row.expires_at
    if row.created_at is not None:
        assert end <= max(row.expires_at, row.created_at + policy.absolute_ttl)


@pytest.mark.parametrize("judged", [judge, judge_family])
@pytest.mark.parametrize("policy", [POLICY, IDLE])
def test_an_unlimited_record_has_no_limit_but_its_expiry(
    judged: Any, policy: Policy
) -> None:
    """Neither age nor idleness nor a refresh limit of ours ends it."""
    years = timedelta(days=3650)
    record = make_record(
        unlimited=True,
        created_at=NOW - years,
        last_activity_at=NOW - years,
        refresh_expires_at=NOW - years,
        expires_at=NOW + TICK,
    )
    assert Valid(TICK) == judged(record, policy)
    ended = Invalid(Reason.EXPIRED)
    assert ended == judged(replace(record, expires_at=NOW), policy)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"is_active": False}, Reason.REVOKED),
        ({"revoked_at": NOW}, Reason.REVOKED),
        ({"user_is_active": False}, Reason.USER_DISABLED),
        ({"created_at": None}, Reason.ABSOLUTE),
    ],
)
def test_an_unlimited_record_still_ends_by_what_is_no_limit(
    change: dict[str, Any], reason: Reason
) -> None:
    """A revocation, its user, and not knowing when it began."""
    record = make_record(unlimited=True, expires_at=FAR, **change)
    assert Invalid(reason) == judge(record, POLICY)
    assert Invalid(reason) == judge_family(record, POLICY)


@pytest.mark.parametrize(
    ("changes", "policy", "may"),
    [
        ({}, POLICY, True),
        ({"read_at": NOW + DAY}, POLICY, True),  # its refresh token stands
        ({"user_is_active": False}, POLICY, True),
        ({"read_at": NOW + DAY}, IDLE, True),  # activity may be known elsewhere
        (
            {"password_changed_at": NOW + TICK},
            Policy(end_on_password_change=True),
            True,
        ),
        ({"is_active": False}, POLICY, False),
        ({"revoked_at": NOW, "is_active": True}, POLICY, False),
        ({"read_at": FAR}, POLICY, False),
        ({"refresh_expires_at": NOW}, POLICY, False),
        ({"refresh_digest": None, "expires_at": NOW}, POLICY, False),
    ],
)
def test_rule_7_what_may_live_again_is_not_over(
    changes: dict[str, Any], policy: Policy, may: bool
) -> None:
    """Refused is one thing; a session whose user is enabled again goes on."""
    assert may_be_alive(make_record(**changes), policy) == may
