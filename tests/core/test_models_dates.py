"""Whatever date a record holds, no rule raises on it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import example, given
from hypothesis import strategies as st

from handstamp.config import Policy
from handstamp.core.lifetime import judge, judge_family, sliding_expiry
from handstamp.core.models import EARLIEST, LATEST, Record, shift
from handstamp.core.rotation import judge_refresh, rotated_at, seen_at, was_seen
from handstamp.core.tokens import TokenPair
from handstamp.engine.cache import Read, make_entry
from handstamp.stores.memory import MemoryStore
from tests.core.samples import NOW, make_record

FIRST, LAST = (each.replace(tzinfo=UTC) for each in (datetime.min, datetime.max))
CENTURY = timedelta(days=36_500)
LONG = Policy(
    session_ttl=CENTURY,
    refresh_ttl=CENTURY,
    absolute_ttl=CENTURY,
    browser_ttl=CENTURY,
    idle_ttl=CENTURY,
    retention=CENTURY,
    end_on_password_change=True,
)
PAIR = TokenPair(session="s", refresh="r")

dates = st.datetimes(timezones=st.just(UTC)) | st.sampled_from([FIRST, LAST])
records = st.builds(
    make_record,
    created_at=st.none() | dates,
    expires_at=dates,
    refresh_expires_at=st.none() | dates,
    refresh_digest=st.none() | st.sampled_from(["b" * 64, PAIR.refresh_digest]),
    last_activity_at=st.none() | dates,
    password_changed_at=st.none() | dates,
    slides=st.booleans(),
)


@given(record=records, at=dates, policy=st.sampled_from([Policy(), LONG]))
@example(make_record(created_at=LAST, expires_at=FIRST, last_activity_at=LAST), LAST, LONG)
def test_no_date_is_an_error(record: Record, at: datetime, policy: Policy) -> None:
    """A row is judged beside others, and must not take them along."""
    judge(record, policy, active_at=at)
    judge_family(record, policy, active_at=at)
    sliding_expiry(record, policy, at)
    for presented in ("b" * 64, "c" * 64):
        judge_refresh(record, presented, [PAIR], policy, active_at=at)
    rotated_at(record, policy.session_ttl)
    was_seen(record, policy.session_ttl)
    for moment in (at, None):
        seen_at(moment, record, policy.session_ttl)
    make_entry(record, policy, b"key", Read(1.0, 2.0))


@given(rows=st.lists(records, max_size=4), policy=st.sampled_from([Policy(), LONG]))
async def test_no_date_is_an_error_to_the_store_in_memory(
    rows: list[Record], policy: Policy
) -> None:
    """It is what the others are compared with."""
    store = MemoryStore(lambda: NOW)
    for number, row in enumerate(rows):
        store.rows[str(number)] = replace(row, id=str(number))
    await store.list_for_user("alice")
    await store.prune(policy, batch=10)


@given(time=dates, by=st.timedeltas(-10 * CENTURY, 10 * CENTURY))
def test_a_sum_stops_at_the_ends_of_the_calendar(time: datetime, by: timedelta) -> None:
    """And is the sum everywhere else."""
    moved = shift(time, by)
    if moved not in (EARLIEST, LATEST):
        assert moved - time == by
    assert FIRST <= moved <= LAST
