"""The watch: whose connection closes, by which way, and what closes none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from handstamp.config import Policy
from handstamp.core.records import Record
from handstamp.engine.answers import Issued
from handstamp.engine.watch import GROUP
from handstamp.stores.memory import MemoryUser
from tests.support.engines import Engine, running, seconds
from tests.support.waiting import turns, until

SLOW = Policy(max_staleness=seconds(3600), longest_trust=seconds(3600))
"""So that the watch looks when it is called, and hardly ever by itself."""


class Socket:
    """An open connection that knows whether it was closed."""

    def __init__(self, engine: Engine, issued: Issued) -> None:
        self.closed = 0
        engine.sessions.connections.add(issued.session, self._close)

    def _close(self) -> None:
        self.closed += 1


async def opened(engine: Engine, user: str = "alice") -> tuple[Issued, Socket]:
    issued = await engine.login(user)
    return issued, Socket(engine, issued)


def said(engine: Engine, text: str) -> None:
    engine.store.channel.say(text)  # type: ignore[attr-defined]


async def look(engine: Engine, *, everyone: bool) -> int:
    """Look once; how many queries that took."""
    before = engine.store.queries
    await engine.sessions._watch.look(everyone=everyone)
    return engine.store.queries - before


async def test_c109_a_notice_about_a_session_closes_it_without_a_look() -> None:
    """Its connections close within the very call, and no other's."""
    async with running(policy=SLOW) as engine:
        (issued, socket), (_, other) = await opened(engine), await opened(engine)
        queries = engine.store.queries
        said(engine, f"s:{issued.session.id}")
        assert (socket.closed, other.closed) == (1, 0)
        assert engine.store.queries == queries


async def test_c109_a_session_revoked_in_another_process_closes_here() -> None:
    """Both by its own id and with all others of the user; the kept one stays."""
    async with (
        running(policy=SLOW) as one,
        running(policy=SLOW, store=one.store, clock=one.clock) as two,
    ):
        sockets = [await opened(one) for _ in range(3)]
        await two.sessions.revoke(sockets[0][0].session.id)
        assert [socket.closed for _, socket in sockets] == [1, 0, 0]
        await two.sessions.revoke_user("alice", keep=sockets[2][0].session.id)
        await until(lambda: sockets[1][1].closed)
        await turns()
        assert [socket.closed for _, socket in sockets] == [1, 1, 0]


async def test_a_notice_about_a_user_makes_the_watch_look() -> None:
    """Whoever no longer stands is closed; the user's other sessions stay open."""
    async with running(policy=SLOW) as engine:
        (dead, gone), (_, stays) = await opened(engine), await opened(engine)
        engine.store.rows[dead.session.id] = replace(
            engine.row(dead.session.id), is_active=False
        )
        said(engine, "u:alice")
        await until(lambda: gone.closed)
        assert stays.closed == 0


async def test_c69_a_disabled_user_is_disconnected() -> None:
    """One notice about the user closes every connection of theirs."""
    async with running(policy=SLOW) as engine:
        (_, one), (_, two) = await opened(engine), await opened(engine)
        _, bobs = await opened(engine, "bob")
        engine.store.users["alice"] = MemoryUser(is_active=False)
        said(engine, "u:alice")
        await until(lambda: one.closed and two.closed)
        assert bobs.closed == 0


async def test_c55_a_lost_channel_makes_the_watch_look() -> None:
    """What ended unheard is closed after the reconnection."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        del engine.store.rows[issued.session.id]
        await turns()
        assert socket.closed == 0
        engine.store.channel.cut()  # type: ignore[attr-defined]
        await until(lambda: socket.closed)


async def test_an_outage_closes_nothing() -> None:
    """No answer is no verdict, and the next look has one."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        del engine.store.rows[issued.session.id]
        engine.store.down = True
        await engine.sessions._watch.look(everyone=True)
        assert socket.closed == 0
        engine.store.down = False
        await engine.sessions._watch.look(everyone=True)
        assert socket.closed == 1


async def test_with_proven_notices_a_look_asks_nothing() -> None:
    """A session that was checked is not asked for again before its own limit."""
    async with running(policy=SLOW) as engine:
        await opened(engine)
        assert await look(engine, everyone=False) == 1
        assert await look(engine, everyone=False) == 0
        assert await look(engine, everyone=True) == 1
        engine.clock.advance(engine.policy.refresh_ttl)
        assert await look(engine, everyone=False) == 1


@pytest.mark.parametrize(
    ("policy", "limit"),
    [
        (Policy(absolute_ttl=timedelta(days=2)), timedelta(days=2)),
        (Policy(refresh_ttl=timedelta(days=3)), timedelta(days=3)),
        (Policy(idle_ttl=timedelta(hours=1)), timedelta(hours=1)),
    ],
    ids=["absolute", "refresh", "idle"],
)
async def test_c109_a_session_that_runs_out_closes(
    policy: Policy, limit: timedelta
) -> None:
    """At its limit, with proven notices and without anybody revoking it."""
    async with running(
        policy=replace(policy, max_staleness=seconds(3600), longest_trust=seconds(3600))
    ) as engine:
        _, socket = await opened(engine)
        await look(engine, everyone=False)
        engine.clock.advance(limit - seconds(1))
        await look(engine, everyone=False)
        assert socket.closed == 0
        engine.clock.advance(seconds(1))
        await look(engine, everyone=False)
        assert socket.closed == 1


async def test_a_connection_outlives_its_session_token() -> None:
    """What counts is the session, which rotates while a socket stays open."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        await engine.expire()
        await look(engine, everyone=True)
        await engine.refreshed(issued)
        await look(engine, everyone=True)
        assert socket.closed == 0


@pytest.mark.parametrize("how", ["deaf", "bounded"])
async def test_p4_without_proof_the_watch_looks_at_all(how: str) -> None:
    """A session that ended without a word is closed inside `max_staleness`, unasked."""
    async with running(policy=Policy(max_staleness=seconds(0.04))) as engine:
        issued, socket = await opened(engine)
        await look(engine, everyone=True)
        bus = engine.sessions._bus
        if how == "deaf":
            await bus.stop()
        else:
            bus.covers_foreign_writers = False
            engine.clock.advance(seconds(1))
        del engine.store.rows[issued.session.id]
        await until(lambda: socket.closed)


async def test_a_client_that_was_closed_by_a_look_is_not_let_in_again() -> None:
    """The cache forgets with the connection, though nobody has said a word."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        token = issued.session_token.encode()
        assert engine.sessions.hit(token) is not None
        del engine.store.rows[issued.session.id]
        await look(engine, everyone=True)
        assert (socket.closed, engine.sessions.hit(token)) == (1, None)


async def test_a_look_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a store ends one look, and the next one does its work."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        find_many = engine.store.find_many
        looked = asyncio.Event()

        async def broken(ids: Sequence[str]) -> Sequence[Record]:
            looked.set()
            raise RuntimeError("in a store")

        engine.store.find_many = broken  # type: ignore[method-assign]
        said(engine, "u:alice")
        await looked.wait()
        await turns()
        engine.store.find_many = find_many  # type: ignore[method-assign]
        del engine.store.rows[issued.session.id]
        said(engine, "u:alice")
        await until(lambda: socket.closed)
    assert "in a store" in caplog.text


async def test_c111_ten_thousand_connections_are_checked_in_groups() -> None:
    """One query for a thousand sessions, and the loop has turns between them."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        asked: list[int] = []
        standing = engine.row(issued.session.id)

        async def find_many(ids: Sequence[str]) -> Sequence[Record]:
            asked.append(len(ids))
            await asyncio.sleep(0)
            return [replace(standing, id=id) for id in ids if id != "9999"]

        engine.store.find_many = find_many  # type: ignore[method-assign]
        closed: list[int] = []
        for n in range(10_000):
            session = replace(issued.session, id=f"{n}")
            engine.sessions.connections.add(session, lambda n=n: closed.append(n))
        await engine.sessions._watch.look(everyone=True)
        assert asked == [GROUP] * 10 + [1]
        assert (closed, socket.closed) == ([9999], 0)
