"""Invalidator: which connections close, why, and what closes none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from handstamp.config import Policy
from handstamp.core.models import Issued, Record
from handstamp.engine import invalidation
from handstamp.engine.invalidation import BATCH
from handstamp.errors import SessionsUnavailable
from handstamp.stores.memory import MemoryUser
from tests.support.engines import (
    Engine,
    invalidated,
    listening,
    running,
    seconds,
    session_of,
)
from tests.support.waiting import turns, until

SLOW = Policy(max_staleness=seconds(3600), longest_trust=seconds(3600))
"""Connections are checked when a test asks for it, and not on their own."""


class Socket:
    """An open connection that counts how often it was closed."""

    def __init__(self, engine: Engine, issued: Issued) -> None:
        self.closed = 0
        engine.sessions.connections.add(issued.session, self._close)

    def _close(self) -> None:
        self.closed += 1


async def opened(engine: Engine, user: str = "alice") -> tuple[Issued, Socket]:
    issued = await engine.login(user)
    return issued, Socket(engine, issued)


def notify(engine: Engine, text: str) -> None:
    engine.store.channel.send(text)  # type: ignore[attr-defined]


async def check(engine: Engine, *, all_sessions: bool) -> int:
    """Check the due connections; returns the number of queries."""
    before = engine.store.queries
    await engine.sessions._invalidator.check_due(all_sessions=all_sessions)
    return engine.store.queries - before


def end_without_notification(engine: Engine, issued: Issued) -> None:
    """End a session in the table, without a notification."""
    row = engine.row(issued.session.id)
    engine.store.rows[row.id] = replace(row, is_active=False)


FORGED = ["s:{session}", "d:{session}", "u:{user}", "all", "", "s", "{session}", "nonsense"]


@pytest.mark.parametrize("text", FORGED)
async def test_c68_a_forged_notification_closes_no_connection(text: str) -> None:
    """Any role that may connect to the database can send one. It causes a query,
    which finds that the session is valid."""
    async with running(policy=SLOW) as engine:
        (issued, socket), (_, other) = await opened(engine), await opened(engine, "bob")
        notify(engine, text.format(session=issued.session.id, user=issued.session.user_id))
        await invalidated(engine)
        assert (socket.closed, other.closed) == (0, 0)
        assert session_of(await engine.ask(issued)).id == issued.session.id


@pytest.mark.parametrize("text", ["s:{session}", "d:{session}", "u:{user}", "all", "?"])
async def test_c109_a_notification_about_an_ended_session_closes_it(text: str) -> None:
    """Its connections close after one query, and no other's."""
    async with running(policy=SLOW) as engine:
        (issued, socket), (_, other) = await opened(engine), await opened(engine, "bob")
        end_without_notification(engine, issued)
        queries = engine.store.queries
        notify(engine, text.format(session=issued.session.id, user=issued.session.user_id))
        await until(lambda: socket.closed)
        assert (socket.closed, other.closed) == (1, 0)
        assert engine.store.queries == queries + 1


async def test_what_this_process_ended_itself_closes_without_a_query() -> None:
    """Its own commit is a verdict: the connection closes before the call returns."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        await engine.sessions.revoke(issued.session.id)
        queries = engine.store.queries
        engine.store.down = True
        assert (socket.closed, engine.store.queries) == (1, queries)


async def test_c109_a_session_revoked_in_another_process_closes_here() -> None:
    """Both by its own id and with all others of the user; the kept one stays."""
    async with (
        running(policy=SLOW) as one,
        running(policy=SLOW, store=one.store, clock=one.clock) as two,
    ):
        sockets = [await opened(one) for _ in range(3)]
        await two.sessions.revoke(sockets[0][0].session.id)
        await until(lambda: sockets[0][1].closed)
        assert [socket.closed for _, socket in sockets] == [1, 0, 0]
        await two.sessions.revoke_user("alice", keep=sockets[2][0].session.id)
        await until(lambda: sockets[1][1].closed)
        await turns()
        assert [socket.closed for _, socket in sockets] == [1, 1, 0]


async def test_a_notification_about_a_user_checks_each_session() -> None:
    """What ended is closed; the other sessions of the user stay open."""
    async with running(policy=SLOW) as engine:
        (dead, gone), (_, stays) = await opened(engine), await opened(engine)
        engine.store.rows[dead.session.id] = replace(
            engine.row(dead.session.id), is_active=False
        )
        notify(engine, "u:alice")
        await until(lambda: gone.closed)
        assert stays.closed == 0


async def test_c69_a_disabled_user_is_disconnected() -> None:
    """One notification about the user closes all connections of that user."""
    async with running(policy=SLOW) as engine:
        (_, one), (_, two) = await opened(engine), await opened(engine)
        _, bobs = await opened(engine, "bob")
        engine.store.users["alice"] = MemoryUser(is_active=False)
        notify(engine, "u:alice")
        await until(lambda: one.closed and two.closed)
        assert bobs.closed == 0


async def test_c55_a_lost_channel_checks_every_session() -> None:
    """What ended while nothing listened is closed after the reconnection."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        del engine.store.rows[issued.session.id]
        await turns()
        assert socket.closed == 0
        engine.store.channel.cut()  # type: ignore[attr-defined]
        await until(lambda: socket.closed)


async def test_an_outage_closes_nothing() -> None:
    """No answer is no verdict; the next check has one."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        del engine.store.rows[issued.session.id]
        engine.store.down = True
        await engine.sessions._invalidator.check_due(all_sessions=True)
        assert socket.closed == 0
        engine.store.down = False
        await engine.sessions._invalidator.check_due(all_sessions=True)
        assert socket.closed == 1


async def test_while_trusted_a_check_makes_no_query() -> None:
    """A session that was checked is not read again before its own limit."""
    async with running(policy=SLOW) as engine:
        await opened(engine)
        assert await check(engine, all_sessions=False) == 1
        assert await check(engine, all_sessions=False) == 0
        assert await check(engine, all_sessions=True) == 1
        engine.clock.advance(engine.policy.refresh_ttl)
        assert await check(engine, all_sessions=False) == 1


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
    """At its limit, while notifications are proven, and without a revocation."""
    async with running(
        policy=replace(policy, max_staleness=seconds(3600), longest_trust=seconds(3600))
    ) as engine:
        _, socket = await opened(engine)
        await check(engine, all_sessions=False)
        engine.clock.advance(limit - seconds(1))
        await check(engine, all_sessions=False)
        assert socket.closed == 0
        engine.clock.advance(seconds(1))
        await check(engine, all_sessions=False)
        assert socket.closed == 1


async def test_activity_that_is_not_written_yet_keeps_a_connection_open() -> None:
    """The row does not have it yet, in an outage of writes for example: a session that
    was active a moment ago is not idle."""
    policy = replace(SLOW, idle_ttl=timedelta(minutes=8))
    async with running(policy=policy) as engine:
        issued, socket = await opened(engine)
        engine.clock.advance(timedelta(minutes=7))
        session_of(await engine.ask(issued))
        engine.clock.advance(timedelta(minutes=2))
        await check(engine, all_sessions=True)
        assert socket.closed == 0
        engine.clock.advance(timedelta(minutes=6))
        await check(engine, all_sessions=True)
        assert socket.closed == 1


async def test_a_connection_outlives_its_session_token() -> None:
    """What counts is the session, which rotates while a socket stays open."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        await engine.expire()
        await check(engine, all_sessions=True)
        await engine.refreshed(issued)
        await check(engine, all_sessions=True)
        assert socket.closed == 0


@pytest.mark.parametrize("how", ["not listening", "no trigger"])
async def test_p4_without_proof_every_connection_is_checked(how: str) -> None:
    """A session that ended without a notification is closed within `max_staleness`."""
    async with running(policy=Policy(max_staleness=seconds(0.04))) as engine:
        issued, socket = await opened(engine)
        await check(engine, all_sessions=True)
        listener = engine.sessions._listener
        if how == "not listening":
            await listener.stop()
        else:
            listener.all_writers_notify = False
            engine.clock.advance(seconds(1))
        del engine.store.rows[issued.session.id]
        await until(lambda: socket.closed)


async def test_a_client_that_a_check_disconnected_is_refused() -> None:
    """The cache forgets the session with the connection, without any notification."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        token = issued.session_token.encode()
        assert engine.sessions.hit(token) is not None
        del engine.store.rows[issued.session.id]
        await check(engine, all_sessions=True)
        assert (socket.closed, engine.sessions.hit(token)) == (1, None)


async def test_a_check_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    """An exception in a store ends one check, and the next one works."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        find_many = engine.store.find_many
        checked = asyncio.Event()

        async def broken(ids: Sequence[str]) -> Sequence[Record]:
            checked.set()
            raise RuntimeError("in a store")

        engine.store.find_many = broken  # type: ignore[method-assign]
        notify(engine, "u:alice")
        await checked.wait()
        await turns()
        engine.store.find_many = find_many  # type: ignore[method-assign]
        del engine.store.rows[issued.session.id]
        notify(engine, "u:alice")
        await until(lambda: socket.closed)
    assert "in a store" in caplog.text


@pytest.mark.parametrize("text", ["s:{}", "u:alice", "all"])
async def test_a_session_that_ends_during_a_check_is_checked_again(text: str) -> None:
    """The check read it before it ended, as valid; the notification that arrived
    meanwhile is not lost."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        find_many = engine.store.find_many
        asked, answered = asyncio.Event(), asyncio.Event()

        async def slow(ids: Sequence[str]) -> Sequence[Record]:
            found = await find_many(ids)
            asked.set()
            await answered.wait()
            return found

        engine.store.find_many = slow  # type: ignore[method-assign]
        notify(engine, f"s:{issued.session.id}")
        await asked.wait()
        end_without_notification(engine, issued)
        notify(engine, text.format(issued.session.id))
        answered.set()
        await until(lambda: socket.closed)


@pytest.mark.parametrize("fault", [SessionsUnavailable("no"), RuntimeError("a bug")])
@pytest.mark.parametrize("text", ["s:{}", "u:alice", "all"])
async def test_a_doubt_without_an_answer_is_checked_again(
    text: str, fault: Exception
) -> None:
    """It closes nothing, and the next round reads it, though the session's own limit is
    far away."""
    async with running(policy=Policy(max_staleness=seconds(0.05))) as engine:
        issued, socket = await opened(engine)
        await engine.sessions._invalidator.check_due(all_sessions=True)
        find_many = engine.store.find_many
        asked: list[int] = []

        async def failing(ids: Sequence[str]) -> Sequence[Record]:
            asked.append(socket.closed)
            if len(asked) < 3:
                raise fault
            return await find_many(ids)

        engine.store.find_many = failing  # type: ignore[method-assign]
        end_without_notification(engine, issued)
        notify(engine, text.format(issued.session.id))
        await until(lambda: socket.closed)
        assert asked == [0, 0, 0]


@pytest.mark.parametrize("order", ["round first", "doubt first"])
async def test_a_round_that_read_too_early_hides_no_doubt(order: str) -> None:
    """The round found the session valid, it ended, and the check of the notification had
    no answer: whichever returns first, the next round checks it."""
    async with running(policy=Policy(max_staleness=seconds(0.05))) as engine:
        issued, socket = await opened(engine)
        find_many = engine.store.find_many
        gates = [asyncio.Event(), asyncio.Event()]
        asked: list[int] = []

        async def slow(ids: Sequence[str]) -> Sequence[Record]:
            number, found = len(asked), await find_many(ids)
            asked.append(number)
            if number < 2:
                await gates[number].wait()
            if number == 1:
                raise SessionsUnavailable("no")
            return found

        engine.store.find_many = slow  # type: ignore[method-assign]
        await until(lambda: asked)
        end_without_notification(engine, issued)
        notify(engine, f"s:{issued.session.id}")
        await until(lambda: len(asked) == 2)
        for gate in gates if order == "round first" else reversed(gates):
            gate.set()
            await turns()
        await until(lambda: socket.closed)


async def test_what_was_doubted_before_the_start_is_checked() -> None:
    """A connection of the loop before, or one that was registered as it began."""
    async with running(policy=SLOW) as before:
        issued = await before.login()
        end_without_notification(before, issued)
    after = Engine(policy=SLOW, store=before.store, clock=before.clock)
    socket = Socket(after, issued)
    after.sessions._invalidator.check_soon(issued.session.id)
    async with after.sessions:
        await until(lambda: socket.closed)


# Floods.


async def test_c68_notifications_of_one_loop_turn_are_one_query() -> None:
    """Two thousand of them, about a session, its user and everything, true or not."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        _, other = await opened(engine, "bob")
        end_without_notification(engine, issued)
        queries = engine.store.queries
        for number in range(500):
            for text in (f"s:{issued.session.id}", "u:alice", "all", f"junk {number}"):
                notify(engine, text)
        await until(lambda: socket.closed)
        assert engine.store.queries == queries + 1
        assert other.closed == 0


async def test_c68_notifications_about_unknown_ids_cause_no_query() -> None:
    """Neither about unknown ids, nor about sessions without connections."""
    async with running(policy=SLOW) as engine:
        _, socket = await opened(engine)
        cached = await engine.login("bob")
        await invalidated(engine)
        queries = engine.store.queries
        for number in range(1000):
            notify(engine, f"s:{number}")
            notify(engine, f"u:{number}")
        notify(engine, f"s:{cached.session.id}")
        notify(engine, "u:bob")
        await turns()
        assert (engine.store.queries, socket.closed) == (queries, 0)


async def test_c68_a_flood_causes_one_query_at_a_time() -> None:
    """While one is under way all else waits for the next one, whatever arrives."""
    async with running(policy=SLOW) as engine:
        issued, _ = await opened(engine)
        find_many = engine.store.find_many
        under_way = most = 0

        async def slow(ids: Sequence[str]) -> Sequence[Record]:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await turns()
            under_way -= 1
            return await find_many(ids)

        engine.store.find_many = slow  # type: ignore[method-assign]
        for _ in range(300):
            notify(engine, f"s:{issued.session.id}")
            notify(engine, "all")
            await asyncio.sleep(0)
        await invalidated(engine)
        assert most == 1


async def test_c68_a_query_that_a_notification_caused_is_followed_by_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many notifications arrive then, and however fast the table answers."""
    monkeypatch.setattr(invalidation, "PAUSE", 3600.0)
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        queries = engine.store.queries
        for _ in range(300):
            notify(engine, f"s:{issued.session.id}")
            await asyncio.sleep(0)
        assert engine.store.queries == queries + 1
        assert socket.closed == 0


async def test_c111_more_doubts_than_one_query_takes_are_all_checked() -> None:
    """In batches, each once; a notification that arrives meanwhile waits in the line."""
    async with running(policy=SLOW) as engine:
        issued, _ = await opened(engine)
        asked: list[int] = []
        ended: set[str] = set()
        valid = engine.row(issued.session.id)

        async def find_many(ids: Sequence[str]) -> Sequence[Record]:
            asked.append(len(ids))
            if len(asked) == 1:
                notify(engine, "s:0")
            return [replace(valid, id=id) for id in ids if id not in ended]

        closed: list[int] = []
        for n in range(2 * BATCH + 10):
            session = replace(issued.session, id=f"{n}")
            engine.sessions.connections.add(session, lambda n=n: closed.append(n))
        engine.store.find_many = find_many  # type: ignore[method-assign]
        ended.update(["0", "5", str(BATCH + 5), str(2 * BATCH + 5)])
        notify(engine, "all")
        await until(lambda: len(closed) == len(ended))
        assert {str(n) for n in closed} == ended
        assert max(asked) == BATCH
        assert sum(asked) <= 2 * BATCH + 10 + 2


async def test_c68_everything_is_doubted_at_once_and_then_once_an_interval() -> None:
    """What was read again meanwhile is doubted at the end of the interval: no
    notification is lost, and none is handled separately."""
    async with running(policy=SLOW) as engine:
        issued = await engine.login()
        token = issued.session_token.encode()
        notify(engine, "all")
        assert engine.sessions.hit(token) is None
        for _ in range(1000):
            notify(engine, "all")
            session_of(await engine.ask(issued))
        assert engine.store.queries < 10
        assert engine.sessions.hit(token) is not None
        await until(lambda: engine.sessions.hit(token) is None)
        session_of(await engine.ask(issued))
        notify(engine, "junk")
        await until(lambda: engine.sessions.hit(token) is None)


async def test_p4_what_ended_inside_the_interval_is_closed_at_its_end() -> None:
    """A second doubt of everything counts, however soon after the first it comes."""
    async with running(policy=SLOW) as engine:
        (_, first), (issued, socket) = await opened(engine), await opened(engine)
        notify(engine, "all")
        await invalidated(engine)
        end_without_notification(engine, issued)
        notify(engine, "all")
        await until(lambda: socket.closed)
        assert first.closed == 0


async def test_p4_a_reconnection_doubts_at_once() -> None:
    """What the listener may have missed waits for no interval: no client can cause it."""
    async with running(policy=SLOW) as engine:
        issued = await engine.login()
        for _ in range(3):
            session_of(await engine.ask(issued))
            engine.sessions._invalidator.reset()
            assert engine.sessions.hit(issued.session_token.encode()) is None


async def test_closing_forgets_a_doubt_that_was_planned() -> None:
    """It does not happen afterwards, and the next start has none."""
    engine = Engine(policy=SLOW)
    for _ in range(2):
        async with engine.sessions:
            await listening(engine)
            notify(engine, "all")
            notify(engine, "all")
            planned = engine.sessions._invalidator._planned
            assert planned is not None
        assert planned.cancelled()
        assert engine.sessions._invalidator._planned is None


async def test_c111_ten_thousand_connections_are_checked_in_batches() -> None:
    """One query for a thousand sessions, and the loop has turns in between."""
    async with running(policy=SLOW) as engine:
        issued, socket = await opened(engine)
        asked: list[int] = []
        valid = engine.row(issued.session.id)

        async def find_many(ids: Sequence[str]) -> Sequence[Record]:
            asked.append(len(ids))
            await asyncio.sleep(0)
            return [replace(valid, id=id) for id in ids if id != "9999"]

        engine.store.find_many = find_many  # type: ignore[method-assign]
        closed: list[int] = []
        for n in range(10_000):
            session = replace(issued.session, id=f"{n}")
            engine.sessions.connections.add(session, lambda n=n: closed.append(n))
        await engine.sessions._invalidator.check_due(all_sessions=True)
        assert asked == [BATCH] * 10 + [1]
        assert (closed, socket.closed) == ([9999], 0)
