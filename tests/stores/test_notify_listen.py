"""LISTEN and NOTIFY on a real PostgreSQL: what is delivered, and how a loss is noticed."""

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
    """The connection of another program."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def listen(
    store: TableStore, received: list[str], lost: list[int] | None = None
) -> ListenConnection:
    ends = [] if lost is None else lost
    return await store.channel.listen(received.append, lambda: ends.append(1))


async def test_p4_a_proof_delivers_what_was_committed_before(
    store: TableStore, psql: asyncpg.Connection
) -> None:
    """Everything committed before the round trip began has arrived when it ends."""
    received: list[str] = []
    link = await listen(store, received)
    for n in range(300):
        await psql.execute("select pg_notify($1, $2)", CHANNEL, f"s:{n}")
        await link.prove()
        assert received[-1] == f"s:{n}"
    assert len(received) == 300
    link.drop()


async def test_another_channel_is_not_delivered(
    store: TableStore, psql: asyncpg.Connection
) -> None:
    """A notification of the application on another channel does not arrive."""
    received: list[str] = []
    link = await listen(store, received)
    await psql.execute("select pg_notify('handstamps', 's:1')")
    await link.prove()
    assert received == []
    link.drop()


async def test_c53_a_terminated_connection_is_reported_at_once(
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


async def test_dropping_a_listen_connection_closes_it(
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


async def test_a_refused_connection_is_sessions_unavailable() -> None:
    """A refused connection raises :class:`SessionsUnavailable`, in both directions."""
    store = TableStore("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(SessionsUnavailable):
        await listen(store, [])
    with pytest.raises(SessionsUnavailable):
        await store.channel.notify("s:1")
    await store.close()


class Listener:
    """A listener on a wire that a test can freeze and cut."""

    def __init__(self, wire: TcpProxy, dsn: str) -> None:
        # It sends past the wire, as other processes do.
        self.store = TableStore(dsn, listen_dsn=wire.dsn, budget=timedelta(seconds=1))
        self.notified: list[Notification] = []
        self.resets: list[int] = []
        self.listener = NotificationListener(
            self.store.channel,
            on_notification=self.notified.append,
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
async def listening(wire: TcpProxy, dsn: str) -> AsyncIterator[Listener]:
    """A listener in the state LISTENING."""
    listening = Listener(wire, dsn)
    listening.listener.start()
    await until(lambda: listening.listener.state is ListenerState.LISTENING)
    yield listening
    wire.thaw()
    await listening.listener.stop()
    await listening.store.close()


async def test_c53_c55_a_cut_wire_is_noticed_and_doubts_everything(
    listening: Listener, wire: TcpProxy
) -> None:
    """Disconnected at once, listening again without help, and everything doubted again."""
    await wire.stop()
    await until(lambda: listening.listener.state is ListenerState.DISCONNECTED)
    await listening.store.channel.notify("s:missed")
    await wire.start()
    await until(lambda: listening.listener.state is ListenerState.LISTENING)
    assert len(listening.resets) == 2
    await listening.store.channel.notify("s:received")
    await until(lambda: listening.notified)
    assert listening.notified == [Notification(session_id="received")]


async def test_c54_a_wire_that_is_silent_and_open_is_noticed(
    listening: Listener, wire: TcpProxy
) -> None:
    """There is no callback and no error: only the missing proof shows it."""
    wire.freeze()
    await until(lambda: listening.listener.state is ListenerState.DISCONNECTED)
    wire.thaw()
    await until(lambda: listening.listener.state is ListenerState.LISTENING)
    assert len(listening.resets) >= 2


async def test_c56_listening_to_another_database_is_noticed(
    dsn: str, empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listening to another database than the one that is written to is noticed."""
    monkeypatch.setattr("handstamp.engine.invalidation.PROBE_TIMEOUT", 0.1)
    store = TableStore(dsn, listen_dsn=empty_dsn, budget=timedelta(seconds=20))
    listener = NotificationListener(
        store.channel,
        on_notification=print,
        on_reset=print,
        max_staleness=5.0,
        clock=uptime,
    )
    listener.start()
    await until(lambda: listener.state is ListenerState.NO_DELIVERY)
    assert listener.trusted_until < uptime()
    await listener.stop()
    await store.close()
