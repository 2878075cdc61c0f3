"""LISTEN and NOTIFY on a real PostgreSQL: what is delivered, and how a loss shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from handstamp.engine.clocks import uptime
from handstamp.engine.dispatch import ListenerState
from handstamp.engine.invalidation import NotificationListener
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import ListenConnection, Notification
from handstamp.stores.notify.sql import CHANNEL
from handstamp.stores.table import TableStore
from tests.support.tcp_proxy import TcpProxy, tcp_proxy
from tests.support.waiting import until

LISTENERS = """
    select pid from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()
    and backend_type = 'client backend'"""
OTHERS = """
    select count(*) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()
    and backend_type = 'client backend'"""


@pytest.fixture
async def store(dsn: str) -> AsyncIterator[TableStore]:
    """A store on an empty table."""
    store = TableStore(dsn, budget=timedelta(seconds=20))
    yield store
    await store.close()


@pytest.fixture
async def psql(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Somebody else's connection."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def listen(
    store: TableStore, said: list[str], lost: list[int] | None = None
) -> ListenConnection:
    ends = [] if lost is None else lost
    return await store.channel.listen(said.append, lambda: ends.append(1))


async def test_p4_a_proof_delivers_what_was_committed_before(
    store: TableStore, psql: asyncpg.Connection
) -> None:
    """Whatever was committed when the round trip began is heard when it ends: always."""
    said: list[str] = []
    link = await listen(store, said)
    for n in range(300):
        await psql.execute("select pg_notify($1, $2)", CHANNEL, f"s:{n}")
        await link.prove()
        assert said[-1] == f"s:{n}"
    assert len(said) == 300
    link.drop()


async def test_another_channel_is_not_ours(
    store: TableStore, psql: asyncpg.Connection
) -> None:
    """Nothing that the application says elsewhere is heard."""
    said: list[str] = []
    link = await listen(store, said)
    await psql.execute("select pg_notify('handstamps', 's:1')")
    await link.prove()
    assert said == []
    link.drop()


async def test_c53_a_terminated_listener_knows_at_once(
    store: TableStore, psql: asyncpg.Connection
) -> None:
    """The loss is reported once, and proving is no answer from then on."""
    lost: list[int] = []
    link = await listen(store, [], lost)
    pid = await psql.fetchval(LISTENERS)
    await psql.execute("select pg_terminate_backend($1)", pid)
    await until(lambda: lost)
    with pytest.raises(SessionsUnavailable):
        await link.prove()
    with pytest.raises(SessionsUnavailable):
        await link.all_writers_notify()
    link.drop()
    assert lost == [1]


async def test_dropping_a_link_ends_its_connection(
    store: TableStore, psql: asyncpg.Connection
) -> None:
    """The server has no listener left, and a second drop is harmless."""
    link = await listen(store, [])
    assert await psql.fetchval(LISTENERS) is not None
    link.drop()
    link.drop()
    async with asyncio.timeout(15):
        while await psql.fetchval(OTHERS):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_c57_a_refused_listen_leaves_no_connection(
    psql: asyncpg.Connection, dsn: str
) -> None:
    """A server that refuses LISTEN, as a standby does, is no answer and leaks nothing."""
    store = TableStore(dsn)

    async def refuse(*_: object) -> None:
        raise asyncpg.ReadOnlySQLTransactionError("cannot execute LISTEN during recovery")

    class Standby(asyncpg.Connection):
        add_listener = refuse

    store._channel._listening._options["connection_class"] = Standby
    for _ in range(3):
        with pytest.raises(SessionsUnavailable):
            await listen(store, [])
    async with asyncio.timeout(15):
        while await psql.fetchval(OTHERS):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await store.close()


async def test_nobody_to_listen_to_is_no_answer() -> None:
    """A refused connection is :class:`SessionsUnavailable`, for listening and speaking."""
    store = TableStore("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(SessionsUnavailable):
        await listen(store, [])
    with pytest.raises(SessionsUnavailable):
        await store.channel.notify("s:1")
    await store.close()


class Hearer:
    """A bus on a wire that a test can freeze and cut."""

    def __init__(self, wire: TcpProxy, dsn: str) -> None:
        # It speaks past the wire, as other processes do.
        self.store = TableStore(dsn, listen_dsn=wire.dsn, budget=timedelta(seconds=1))
        self.notices: list[Notification] = []
        self.resets: list[int] = []
        self.listener = NotificationListener(
            self.store.channel,
            on_notification=self.notices.append,
            on_reset=lambda: self.resets.append(1),
            max_staleness=0.4,
            clock=uptime,
        )


@pytest.fixture
async def wire(dsn: str) -> AsyncIterator[TcpProxy]:
    """A wire to an empty table."""
    async with tcp_proxy(dsn) as wire:
        yield wire


@pytest.fixture
async def hearer(wire: TcpProxy, dsn: str) -> AsyncIterator[Hearer]:
    """A bus that listens."""
    hearer = Hearer(wire, dsn)
    hearer.listener.start()
    await until(lambda: hearer.listener.state is ListenerState.LISTENING)
    yield hearer
    wire.thaw()
    await hearer.listener.stop()
    await hearer.store.close()


async def test_c53_c55_a_cut_wire_is_noticed_and_doubts_everything(
    hearer: Hearer, wire: TcpProxy
) -> None:
    """Deaf at once, listening again by itself, and everything doubted once more."""
    await wire.stop()
    await until(lambda: hearer.listener.state is ListenerState.DISCONNECTED)
    await hearer.store.channel.notify("s:unheard")
    await wire.start()
    await until(lambda: hearer.listener.state is ListenerState.LISTENING)
    assert len(hearer.resets) == 2
    await hearer.store.channel.notify("s:heard")
    await until(lambda: hearer.notices)
    assert hearer.notices == [Notification(session_id="heard")]


async def test_c54_a_wire_that_is_silent_and_open_is_noticed(
    hearer: Hearer, wire: TcpProxy
) -> None:
    """No callback comes and no error: the missing proof alone says it."""
    wire.freeze()
    await until(lambda: hearer.listener.state is ListenerState.DISCONNECTED)
    wire.thaw()
    await until(lambda: hearer.listener.state is ListenerState.LISTENING)
    assert len(hearer.resets) >= 2


async def test_c56_a_channel_that_leads_elsewhere_is_mute(
    dsn: str, empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listening to another database than the one that is written to is noticed."""
    monkeypatch.setattr("handstamp.engine.invalidation.PROBE_TIMEOUT", 0.1)
    store = TableStore(dsn, listen_dsn=empty_dsn, budget=timedelta(seconds=20))
    bus = NotificationListener(
        store.channel,
        on_notification=print,
        on_reset=print,
        max_staleness=5.0,
        clock=uptime,
    )
    bus.start()
    await until(lambda: bus.state is ListenerState.NO_DELIVERY)
    assert bus.trusted_until < uptime()
    await bus.stop()
    await store.close()
