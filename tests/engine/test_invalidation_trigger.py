"""A trigger that is dropped or made while processes run: the bound holds all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from handstamp.config import Policy
from handstamp.engine.clocks import uptime
from handstamp.engine.sessions import Sessions
from handstamp.stores.install import install
from handstamp.stores.notify.sql import SKIP_TRIGGER
from tests.support.waiting import until

BRIEF = Policy(max_staleness=timedelta(seconds=0.4))
ADD = "insert into users (username, password_hash) values ('alice', '-') returning id"
END = "update user_sessions set is_active = false where id = $1"


@pytest.fixture
async def psql(dsn: str) -> AsyncIterator[Any]:
    """A connection that writes without handstamp."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def test_a_trigger_that_was_dropped_is_relied_on_no_longer(
    dsn: str, psql: Any
) -> None:
    """A plain UPDATE without a notification is bounded from then on."""
    await install(psql, "ulid", trigger=True)
    async with Sessions(dsn, secret="s" * 32, policy=BRIEF) as sessions:
        issued = await sessions.create(await psql.fetchval(ADD))
        await until(lambda: sessions.stats().all_writers_notify)
        await psql.execute("drop trigger handstamp_session_changed on user_sessions")
        await psql.execute("drop trigger handstamp_session_deleted on user_sessions")
        await psql.execute(END, issued.session.id)
        await until(lambda: not sessions.stats().all_writers_notify)
        await until(lambda: sessions.hit(issued.session_token.encode()) is None)


async def test_a_trigger_that_was_made_is_relied_on_without_a_restart(
    dsn: str, psql: Any
) -> None:
    """And what was cached before it came is read again first."""
    async with Sessions(dsn, secret="s" * 32) as sessions:
        await until(lambda: sessions.stats().listener == "listening")
        assert not sessions.stats().all_writers_notify
        issued = await sessions.create(await psql.fetchval(ADD))
        token = issued.session_token.encode()
        assert sessions.hit(token) is not None
        await psql.execute(END, issued.session.id)
        await install(psql, "ulid", trigger=True)
        await until(lambda: sessions.stats().all_writers_notify)
        assert sessions.hit(token) is None


async def test_p4_a_revocation_while_the_trigger_was_off_is_noticed(
    dsn: str, psql: Any
) -> None:
    """Off and on again in one transaction, which no heartbeat can see: everything
    is doubted, long before the bound that holds whatever was missed."""
    await install(psql, "ulid", trigger=True)
    patient = Policy(longest_trust=timedelta(days=1), session_ttl=timedelta(days=1))
    async with Sessions(dsn, secret="s" * 32, policy=patient) as sessions:
        await until(lambda: sessions.stats().listener == "listening")
        issued = await sessions.create(await psql.fetchval(ADD))
        token = issued.session_token.encode()
        assert sessions.stats().all_writers_notify
        assert sessions.hit(token) is not None
        async with psql.transaction():
            await psql.execute("alter table user_sessions disable trigger user")
            await psql.execute(END, issued.session.id)
            await psql.execute("alter table user_sessions enable trigger user")
        await until(lambda: sessions.hit(token) is None)
        await until(lambda: sessions.stats().all_writers_notify)


@pytest.mark.parametrize("how", ["replica", "skip_notify"])
async def test_p4_a_writer_that_skips_the_trigger_is_noticed_within_longest_trust(
    dsn: str, psql: Any, how: str
) -> None:
    """In a transaction that notifies nothing: its effect is bounded."""
    await install(psql, "ulid", trigger=True)
    policy = Policy(longest_trust=timedelta(hours=1), session_ttl=timedelta(days=1))
    silence = {
        "replica": "set local session_replication_role = replica",
        "skip_notify": SKIP_TRIGGER,
    }
    later = 0.0
    async with Sessions(
        dsn, secret="s" * 32, policy=policy, clock=lambda: uptime() + later
    ) as sessions:
        await until(lambda: sessions.stats().listener == "listening")
        issued = await sessions.create(await psql.fetchval(ADD))
        token = issued.session_token.encode()
        async with psql.transaction():
            await psql.execute(silence[how])
            await psql.execute(END, issued.session.id)
        await until(lambda: sessions.hit(token) is not None)  # it is still trusted
        later = policy.longest_trust.total_seconds()
        await until(lambda: sessions._listener.trusted_until > sessions.clock())
        assert sessions.hit(token) is None  # though the listener is trusted again
        assert sessions.stats().all_writers_notify
