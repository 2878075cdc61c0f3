"""The bus: what is proven, for how long, and what is doubted when nothing is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from handstamp.config import Policy
from handstamp.engine import invalidation as bus_module
from handstamp.engine.dispatch import ListenerState
from handstamp.engine.invalidation import NEVER, NotificationListener
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import Notification
from tests.support.clock import FakeClock
from tests.support.engines import Engine, running, seconds, session_of
from tests.support.fake_channel import FakeChannel
from tests.support.waiting import turns, until

STALENESS = 0.04
"""So the heart beats every hundredth of a second."""


class Ear:
    """A bus, and what it was told."""

    def __init__(self, channel: FakeChannel) -> None:
        self.channel = channel
        self.clock = FakeClock()
        self.notices: list[Notification] = []
        self.resets = 0
        self.listener = NotificationListener(
            channel,
            on_notification=self.notices.append,
            on_reset=self._reset,
            max_staleness=STALENESS,
            clock=self.clock,
        )

    def _reset(self) -> None:
        assert self.listener.trusted_until == NEVER
        self.resets += 1

    @property
    def state(self) -> ListenerState:
        return self.listener.state

    @property
    def trusts(self) -> bool:
        return self.clock() < self.listener.trusted_until

    async def until(self, state: ListenerState) -> None:
        await until(lambda: self.state is state)


@pytest.fixture
async def channel() -> FakeChannel:
    """A channel that works."""
    return FakeChannel()


@pytest.fixture
async def ear(channel: FakeChannel) -> AsyncIterator[Ear]:
    """A bus that has begun, on a channel of its own."""
    async with started(channel) as ear:
        yield ear


@asynccontextmanager
async def started(channel: FakeChannel) -> AsyncIterator[Ear]:
    ear = Ear(channel)
    ear.listener.start()
    try:
        yield ear
    finally:
        await ear.listener.stop()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets that are spent at once."""
    monkeypatch.setattr(bus_module, "PROOF_TIMEOUT", 0.01)
    monkeypatch.setattr(bus_module, "LISTEN_TIMEOUT", 0.01)
    monkeypatch.setattr(bus_module, "PROBE_TIMEOUT", 0.01)


def other_tasks() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


# What is proven.


async def test_nothing_is_trusted_before_the_bus_begins(channel: FakeChannel) -> None:
    """A bus that was not started is off and vouches for nothing."""
    ear = Ear(channel)
    assert (ear.state, ear.trusts) == (ListenerState.OFF, False)


async def test_a_store_without_a_channel_has_no_bus() -> None:
    """Nothing starts, nothing is trusted, and stopping is harmless."""
    bus = NotificationListener(
        None,
        on_notification=print,
        on_reset=print,
        max_staleness=STALENESS,
        clock=FakeClock(),
    )
    before = other_tasks()
    bus.start()
    assert (bus.state, bus.trusted_until) == (ListenerState.OFF, NEVER)
    assert other_tasks() == before
    await bus.stop()


async def test_p4_a_proof_counts_from_its_start(ear: Ear, channel: FakeChannel) -> None:
    """Trust reaches from the start of the round trip, however long that took."""
    await ear.until(ListenerState.LISTENING)
    channel.may_answer.clear()
    proofs = channel.proofs
    await until(lambda: channel.proofs > proofs)
    for number in range(2, 5):
        start = ear.clock()
        ear.clock.advance(seconds(1000))
        channel.may_answer.set()
        channel.may_answer.clear()  # this one round trip ends, and the next one begins
        await until(lambda number=number: channel.proofs == proofs + number)
        assert ear.listener.trusted_until == start + STALENESS


async def test_p4_trust_ends_by_itself(ear: Ear, channel: FakeChannel) -> None:
    """When no further proof comes the bound stands where it stood, and time passes it."""
    await ear.until(ListenerState.LISTENING)
    channel.may_answer.clear()
    proofs = channel.proofs
    await until(lambda: channel.proofs > proofs)
    assert ear.listener.trusted_until == ear.clock() + STALENESS
    ear.clock.advance(seconds(STALENESS))
    assert not ear.trusts


async def test_the_heart_beats_faster_than_the_bound() -> None:
    """Four proofs fit into `max_staleness`, so that one slow one costs no trust."""
    for staleness in (0.04, 1.0, 4.0, 5.0, 3600.0):
        bus = NotificationListener(
            None,
            on_notification=print,
            on_reset=print,
            max_staleness=staleness,
            clock=FakeClock(),
        )
        assert bus._heartbeat <= min(1.0, staleness / 4)


async def test_c56_a_mute_channel_is_never_trusted(
    channel: FakeChannel, hasty: None, caplog: pytest.LogCaptureFixture
) -> None:
    """LISTEN succeeds and nothing arrives: no proof is even asked for, and it is said."""
    channel.loses_notifications = True
    with caplog.at_level(logging.WARNING, "handstamp"):
        async with started(channel) as ear:
            await ear.until(ListenerState.NO_DELIVERY)
            assert not ear.trusts
    assert (channel.proofs, ear.resets) == (0, 0)
    assert "listen_dsn" in caplog.text


async def test_c58_somebody_elses_canary_proves_nothing(
    channel: FakeChannel, hasty: None
) -> None:
    """Only the bus's own nonce counts, and a foreign one disturbs nobody."""
    channel.loses_notifications = True
    async with started(channel) as ear:
        await until(lambda: channel.connections)
        channel.deliver("c:")
        channel.deliver("c:0123456789abcdef")
        await ear.until(ListenerState.NO_DELIVERY)
    assert ear.notices == []


async def test_p4_without_the_trigger_nothing_is_trusted(channel: FakeChannel) -> None:
    """Where foreign writers are not heard, every entry is read again by its own age."""
    channel.all_writers_notify = False
    async with started(channel) as ear:
        await ear.until(ListenerState.LISTENING)
        proofs = channel.proofs
        await until(lambda: channel.proofs > proofs + 3)
        assert (ear.listener.trusted_until, ear.listener.proven_until) == (NEVER, NEVER)
        assert ear.listener.all_writers_notify is False


# What is lost.


async def test_c55_everything_is_doubted_once_listening_is_confirmed(
    ear: Ear, channel: FakeChannel
) -> None:
    """At the first connection and at each later one, before anything is trusted again."""
    await ear.until(ListenerState.LISTENING)
    assert ear.resets == 1
    channel.disconnect()
    await until(lambda: ear.resets == 2)
    await ear.until(ListenerState.LISTENING)
    assert (channel.listens, len(channel.connections)) == (2, 1)


async def test_c53_a_lost_connection_is_deaf_at_once(
    ear: Ear, channel: FakeChannel
) -> None:
    """Trust ends with the connection, whatever was proven, and a refusal keeps it so."""
    await ear.until(ListenerState.LISTENING)
    channel.fault = SessionsUnavailable("gone")
    channel.disconnect()
    await ear.until(ListenerState.DISCONNECTED)
    assert not ear.trusts
    assert channel.connections == []


async def test_c54_a_silent_connection_is_given_up(
    channel: FakeChannel, hasty: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A proof that takes longer than its budget ends the connection, without a callback."""
    with caplog.at_level(logging.WARNING, "handstamp"):
        async with started(channel) as ear:
            await ear.until(ListenerState.LISTENING)
            channel.may_answer.clear()
            await ear.until(ListenerState.DISCONNECTED)
            assert not ear.trusts
            await until(lambda: channel.listens > 1)
    assert "does not answer" in caplog.text


async def test_c54_a_server_that_never_confirms_is_given_up(
    channel: FakeChannel, hasty: None
) -> None:
    """Connecting and LISTEN have a budget too, or a bus would hang there for good."""
    channel.may_listen.clear()
    async with started(channel) as ear:
        await until(lambda: channel.listens > 1)
        assert ear.state is ListenerState.DISCONNECTED
        channel.may_listen.set()
        await ear.until(ListenerState.LISTENING)


@pytest.mark.parametrize("fault", [SessionsUnavailable("no"), RuntimeError("a bug")])
async def test_no_fault_ends_the_listening(channel: FakeChannel, fault: Exception) -> None:
    """Whatever goes wrong, the bus tries again and recovers by itself."""
    channel.fault = fault
    async with started(channel) as ear:
        await until(lambda: channel.listens > 1)
        channel.fault = None
        await ear.until(ListenerState.LISTENING)
        await until(lambda: ear.trusts)


async def test_a_refused_bus_does_not_spin(
    channel: FakeChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pause is longer than the last one up to a limit, and has some chance in it."""
    pauses: list[tuple[float, float]] = []
    enough = asyncio.Event()

    def note(low: float, high: float) -> float:
        pauses.append((low, high))
        if len(pauses) == 9:
            enough.set()
            return 3600.0
        return 0.0

    monkeypatch.setattr(bus_module, "uniform", note)
    channel.fault = SessionsUnavailable("no")
    async with started(channel):
        await enough.wait()
        await turns()
        assert channel.listens == 9
    assert [high for _, high in pauses] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0]
    assert all(low == high / 2 for low, high in pauses)


async def test_a_proven_connection_resets_the_pause(
    channel: FakeChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that worked and was lost is replaced at once, not after the longest pause."""
    pauses: list[float] = []
    monkeypatch.setattr(bus_module, "uniform", lambda low, high: pauses.append(high) or 0.0)
    channel.fault = SessionsUnavailable("no")
    async with started(channel) as ear:
        await until(lambda: len(pauses) > 5)
        channel.fault = None
        await ear.until(ListenerState.LISTENING)
        pauses.clear()
        channel.disconnect()
        await until(lambda: ear.resets == 2)
    assert pauses[0] == 0.05


async def test_stopping_leaves_nothing(channel: FakeChannel) -> None:
    """No task, no connection, no trust; a second stop and a new start are fine."""
    ear = Ear(channel)
    before = other_tasks()
    for _ in range(2):
        ear.listener.start()
        await ear.until(ListenerState.LISTENING)
        await ear.listener.stop()
        await ear.listener.stop()
        assert (ear.state, ear.trusts) == (ListenerState.OFF, False)
        assert (channel.connections, other_tasks()) == ([], before)


async def test_starting_twice_listens_once(ear: Ear, channel: FakeChannel) -> None:
    """The second start changes nothing."""
    ear.listener.start()
    await ear.until(ListenerState.LISTENING)
    assert channel.listens == 1


# What is said.


async def test_c68_a_flood_of_nonsense_is_counted_and_logged_once_in_a_while(
    ear: Ear, channel: FakeChannel, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten thousand malformed payloads raise nothing into the driver, end no trust, and are
    one line in the log, which quotes none of them; a minute later there is another one."""
    await ear.until(ListenerState.LISTENING)
    for n in range(10_000):
        channel.deliver(f"?nonsense{n}")
    await until(lambda: ear.trusts)
    assert ear.notices == [Notification(understood=False)] * 10_000
    assert (ear.listener.notifications, ear.listener.unknown_notifications) == (
        10_000,
        10_000,
    )
    ear.clock.advance(seconds(bus_module.REPORT_INTERVAL))
    channel.deliver("?nonsense")
    channel.deliver("all")
    assert (ear.listener.notifications, ear.listener.unknown_notifications) == (
        10_002,
        10_001,
    )
    lines = [r.getMessage() for r in caplog.records if "does not send" in r.message]
    assert [line.split()[0] for line in lines] == ["1", "10001"]
    assert "nonsense" not in caplog.text


async def test_notices_come_as_they_were_said(ear: Ear, channel: FakeChannel) -> None:
    """In their order, each once, and without the canaries."""
    await ear.until(ListenerState.LISTENING)
    for payload in ("s:one", "c:foreign", "u:alice", "s:two"):
        channel.deliver(payload)
    assert ear.notices == [
        Notification(session_id="one"),
        Notification(user_id="alice"),
        Notification(session_id="two"),
    ]


async def test_c55_a_notice_that_comes_before_anything_is_proven_is_worked_off(
    channel: FakeChannel, hasty: None
) -> None:
    """Between LISTEN and the canary, and where no canary ever arrives: it can only make
    this process read more."""
    channel.loses_notifications = True
    async with started(channel) as ear:
        await until(lambda: channel.connections)
        channel.deliver("s:early")
        await ear.until(ListenerState.NO_DELIVERY)
        channel.deliver("u:late")
        channel.deliver("junk")
        assert ear.notices == [
            Notification(session_id="early"),
            Notification(user_id="late"),
            Notification(understood=False),
        ]
        assert not ear.trusts


async def test_c68_canaries_of_a_stranger_change_nothing(
    ear: Ear, channel: FakeChannel
) -> None:
    """Neither before the bus has heard its own nor after; they are no notices either."""
    await ear.until(ListenerState.LISTENING)
    for number in range(1000):
        channel.deliver(f"c:{number}")
    assert (ear.notices, ear.resets, ear.listener.notifications) == ([], 1, 0)


# What an engine makes of it.


def payload(engine: Engine, text: str) -> None:
    engine.store.channel.send(text)  # type: ignore[attr-defined]


async def test_p4_a_trusted_entry_is_not_read_again() -> None:
    """While proofs come, an entry older than `max_staleness` is a hit; a cut ends that."""
    async with running(policy=Policy(max_staleness=seconds(STALENESS))) as engine:
        issued = await engine.login()
        engine.clock.advance(seconds(29))
        await until(lambda: engine.sessions._listener.trusted_until > engine.clock())
        assert engine.sessions.hit(issued.session_token.encode()) is not None
        engine.store.channel.cut()  # type: ignore[attr-defined]
        await until(lambda: engine.sessions.stats().listener != "listening")
        assert engine.sessions.hit(issued.session_token.encode()) is None


@pytest.mark.parametrize("text", ["s", "nonsense", "all", ""])
async def test_c68_a_malformed_payload_doubts_everything(text: str) -> None:
    """Entries are read again before they are believed, and nobody is signed out."""
    async with running(
        policy=Policy(max_staleness=seconds(3600), longest_trust=seconds(3600))
    ) as engine:
        issued = await engine.login()
        payload(engine, text)
        assert engine.sessions.hit(issued.session_token.encode()) is None
        assert session_of(await engine.ask(issued)).id == issued.session.id
        assert engine.sessions.hit(issued.session_token.encode()) is not None


async def test_c66_a_payload_of_a_user_doubts_that_user() -> None:
    """All of that user's entries are read again, and no other's."""
    async with running(
        policy=Policy(max_staleness=seconds(3600), longest_trust=seconds(3600))
    ) as engine:
        one, two, other = (
            await engine.login(),
            await engine.login(),
            await engine.login("bob"),
        )
        payload(engine, "u:alice")
        hits = [engine.sessions.hit(i.session_token.encode()) for i in (one, two, other)]
        assert [hit is not None for hit in hits] == [False, False, True]


async def test_an_echo_is_harmless() -> None:
    """Hearing of one's own revocation changes nothing for a session that came after it."""
    async with running(
        policy=Policy(max_staleness=seconds(3600), longest_trust=seconds(3600))
    ) as engine:
        old = await engine.login()
        await engine.sessions.revoke(old.session.id)
        new = await engine.login()
        payload(engine, f"s:{old.session.id}")
        assert engine.sessions.hit(old.session_token.encode()) is None
        assert engine.sessions.hit(new.session_token.encode()) is not None


async def test_c52_a_revocation_is_heard_in_the_other_process() -> None:
    """It is out of that cache before `max_staleness`, and without a look at the clock."""
    policy = Policy(max_staleness=seconds(3600), longest_trust=seconds(3600))
    async with (
        running(policy=policy) as one,
        running(policy=policy, store=one.store, clock=one.clock) as two,
    ):
        issued = await one.login()
        session_of(await two.ask(issued))
        await one.sessions.revoke(issued.session.id)
        assert two.sessions.hit(issued.session_token.encode()) is None


async def test_p4_a_trigger_that_goes_takes_the_trust_along(
    ear: Ear, channel: FakeChannel
) -> None:
    """What was proven while it stood counts to its end, and nothing is added."""
    await until(lambda: ear.trusts)
    channel.all_writers_notify = False
    await until(lambda: not ear.listener.all_writers_notify)
    proofs = channel.proofs
    ear.clock.advance(seconds(STALENESS))
    await until(lambda: channel.proofs > proofs + 3)
    assert not ear.trusts


async def test_p4_a_trigger_that_comes_doubts_everything_first(
    channel: FakeChannel,
) -> None:
    """Nobody said what was written before it came; from then on there is trust."""
    channel.all_writers_notify = False
    async with started(channel) as ear:
        await ear.until(ListenerState.LISTENING)
        assert ear.resets == 1
        channel.all_writers_notify = True
        await until(lambda: ear.trusts)
        assert ear.resets == 2
