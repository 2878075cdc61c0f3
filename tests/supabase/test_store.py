"""What Supabase's tables do as a store, beside the contract suite that runs on them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest

from handstamp.core.lifetime import judge
from handstamp.core.models import LONG_AGO, Record, Session, Valid
from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.stores.base import (
    ActivityStore,
    Capabilities,
    CreatingStore,
    PlaintextStore,
    RotatingStore,
    StepUpStore,
)
from handstamp.supabase.store import SupabaseStore
from tests.support.supabase import new_store
from tests.support.supabase_table import CENTURY, SUPABASE, AuthTable, auth_table
from tests.support.tables import (
    POLICY,
    fresh_session,
    has,
)

FAR_AWAY = [ZoneInfo("America/Los_Angeles"), ZoneInfo("Pacific/Kiritimati")]


@pytest.fixture
async def table(supabase_dsn: str) -> AsyncIterator[AuthTable]:
    """Empty tables."""
    async with auth_table(supabase_dsn) as table:
        yield table


async def created(table: AuthTable) -> Record:
    new = await fresh_session(table, await table.add_user())
    return (await table.create(new, POLICY)).record


async def found(store: SupabaseStore, session_id: str) -> Record:
    record = await store.find_by_id(session_id)
    assert record is not None
    return record


# What it can do.


async def test_no_rule_is_skipped_that_the_tables_could_keep(table: AuthTable) -> None:
    """What the contract suite takes for lacking is lacking, and the rest is not."""
    able = await table.store.ready()
    assert able == Capabilities(
        refresh=False,
        activity=False,
        password_change=False,
        fingerprint=False,
        level=True,
    )
    switches = {k: v for k, v in asdict(able).items() if isinstance(v, bool)}
    assert {word: has("supabase", word) for word in switches} == switches
    assert not any(has("supabase", word) for word in SUPABASE.lacks)


@pytest.mark.parametrize(
    ("column", "lost"),
    [
        ("sessions drop column aal", "level"),
        ("users drop column banned_until, drop column deleted_at", "user_status"),
    ],
)
async def test_an_older_database_says_what_it_cannot_do(
    table: AuthTable, column: str, lost: str
) -> None:
    """As soon as somebody looked."""
    await table.auth.psql.execute(f"alter table auth.{column}")
    assert getattr(table.store.capabilities, lost)
    assert not getattr(await table.store.ready(), lost)
    assert not getattr(table.store.capabilities, lost)


async def test_a_store_that_cannot_read_is_not_ready(table: AuthTable) -> None:
    """It says what to mend, and needs no restart after that."""
    await table.auth.psql.execute("alter table auth.sessions rename to others")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"auth\.sessions is missing"):
            await table.store.ready()
    await table.auth.psql.execute("alter table auth.others rename to sessions")
    assert (await table.store.ready()).level


async def test_a_store_without_a_server_is_not_ready() -> None:
    """Whether it could read is not certain then; the driver's words are not passed on."""
    store = new_store("postgresql://127.0.0.1:1/none")
    with pytest.raises(SessionsUnavailable) as failure:
        await store.ready()
    assert "127.0.0.1" not in str(failure.value)
    await store.close()


# What it leaves to GoTrue.


@pytest.mark.parametrize(
    "feature", [CreatingStore, RotatingStore, StepUpStore, ActivityStore, PlaintextStore]
)
async def test_what_is_left_to_gotrue_is_no_feature_of_the_store(
    table: AuthTable, feature: type
) -> None:
    """The engine cannot open sessions, replace tokens or record activity here."""
    assert not isinstance(table.store, feature)


async def test_a_user_deleted_softly_may_not_go_on(table: AuthTable) -> None:
    """GoTrue deletes the sessions with it; whoever sets the date by hand means it too."""
    record = await created(table)
    assert record.user_is_active
    await table.auth.write_user(record.user_id, deleted_at=table.now)
    assert not (await found(table.store, record.id)).user_is_active


# Dates that GoTrue never writes.


async def test_a_row_without_a_birthday_lives_and_is_old(table: AuthTable) -> None:
    """Its date can be shown in every time zone, and no step-up takes it for fresh."""
    record = await created(table)
    store = table.auth.another()
    await table.auth.write(record.id, created_at=None)
    read = await found(store, record.id)
    assert isinstance(judge(read, POLICY), Valid)
    shown = Session.of(read).created_at
    assert shown == LONG_AGO
    assert all(shown.astimezone(zone) == shown for zone in FAR_AWAY)


@pytest.mark.parametrize("column", ["created_at", "refreshed_at", "not_after"])
async def test_no_date_of_a_row_leaves_the_calendar(table: AuthTable, column: str) -> None:
    """An infinite one neither raises, nor gives an end that cannot be shown."""
    record = await created(table)
    store = table.auth.another(inactivity=CENTURY)
    await table.auth.psql.execute(f"update auth.sessions set {column} = 'infinity'")
    read = await found(store, record.id)
    assert isinstance(judge(read, POLICY), Valid)
    assert all(read.expires_at.astimezone(zone) > table.now for zone in FAR_AWAY)


async def test_nothing_is_pruned(table: AuthTable) -> None:
    """GoTrue's own cleanup deletes rows; ours sends no statement."""
    await created(table)
    await table.advance(timedelta(days=400))
    sent = table.store.queries
    assert await table.store.prune(POLICY, batch=10) == 0
    assert table.store.queries == sent
    assert await table.count() == 1
