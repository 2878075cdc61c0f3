"""NotificationListener: what is proven, for how long, and what is doubted without it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from handstamp.config import Policy
from handstamp.engine import invalidation
from handstamp.engine.dispatch import ListenerState
from handstamp.engine.invalidation import NEVER, NotificationListener
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import Notification
from tests.support.clock import FakeClock
from tests.support.engines import Engine, running, seconds, session_of
from tests.support.fake_channel import FakeChannel
from tests.support.waiting import turns, until

STALENESS = 0.04
"""Seconds; the heartbeat is then a hundredth of a second."""


class Recorder:
    """A listener, and the calls that it made."""

    def __init__(self, channel: FakeChannel) -> None:
        self.channel = channel
        self.clock = FakeClock()
        self.notified: list[Notification] = []
        self.resets = 0
        self.listener = NotificationListener(
            channel,
            on_notification=self.notified.append,
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
async def recorder(channel: FakeChannel) -> AsyncIterator[Recorder]:
    """A listener that was started, on a channel of its own."""
    async with started(channel) as recorder:
        yield recorder


@asynccontextmanager
async def started(channel: FakeChannel) -> AsyncIterator[Recorder]:
    recorder = Recorder(channel)
    recorder.listener.start()
    try:
        yield recorder
    finally:
        await recorder.listener.stop()


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timeouts that pass at once."""
    monkeypatch.setattr(invalidation, "PROOF_TIMEOUT", 0.01)
    monkeypatch.setattr(invalidation, "LISTEN_TIMEOUT", 0.01)
    monkeypatch.setattr(invalidation, "PROBE_TIMEOUT", 0.01)


def other_tasks() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


# What is proven.


async def test_nothing_is_trusted_before_the_start(channel: FakeChannel) -> None:
    """A listener that was not started is OFF, and nothing is trusted."""
    recorder = Recorder(channel)
    assert (recorder.state, recorder.trusts) == (ListenerState.OFF, False)


async def test_a_store_without_a_channel_starts_no_listener() -> None:
    """Nothing starts, nothing is trusted, and stopping is harmless."""
    listener = NotificationListener(
        None,
        on_notification=print,
        on_reset=print,
        max_staleness=STALENESS,
        clock=FakeClock(),
    )
    before = other_tasks()
    listener.start()
    assert (listener.state, listener.trusted_until) == (ListenerState.OFF, NEVER)
    assert other_tasks() == before
    await listener.stop()


async def test_p4_a_proof_counts_from_its_start(
    recorder: Recorder, channel: FakeChannel
) -> None:
    """Trust reaches from the start of the round trip, however long that took."""
    await recorder.until(ListenerState.LISTENING)
    channel.may_answer.clear()
    proofs = channel.proofs
    await until(lambda: channel.proofs > proofs)
    for number in range(2, 5):
        start = recorder.clock()
        recorder.clock.advance(seconds(1000))
        channel.may_answer.set()
        channel.may_answer.clear()  # this one round trip ends, and the next one begins
        await until(lambda number=number: channel.proofs == proofs + number)
        assert recorder.listener.trusted_until == start + STALENESS


async def test_p4_trust_ends_by_itself(recorder: Recorder, channel: FakeChannel) -> None:
    """Without another proof the bound stays where it was, and time passes it."""
    await recorder.until(ListenerState.LISTENING)
    channel.may_answer.clear()
    proofs = channel.proofs
    await until(lambda: channel.proofs > proofs)
    assert recorder.listener.trusted_until == recorder.clock() + STALENESS
    recorder.clock.advance(seconds(STALENESS))
    assert not recorder.trusts


async def test_the_heartbeat_is_shorter_than_the_bound() -> None:
    """Four proofs fit into `max_staleness`, so that one slow one costs no trust."""
    for staleness in (0.04, 1.0, 4.0, 5.0, 3600.0):
        listener = NotificationListener(
            None,
            on_notification=print,
            on_reset=print,
            max_staleness=staleness,
            clock=FakeClock(),
        )
        assert listener._heartbeat <= min(1.0, staleness / 4)


async def test_c56_a_channel_without_delivery_is_never_trusted(
    channel: FakeChannel, short_timeouts: None, caplog: pytest.LogCaptureFixture
) -> None:
    """LISTEN succeeds and nothing arrives: no proof is asked for, and the log says why."""
    channel.loses_notifications = True
    with caplog.at_level(logging.WARNING, "handstamp"):
        async with started(channel) as recorder:
            await recorder.until(ListenerState.NO_DELIVERY)
            assert not recorder.trusts
    assert (channel.proofs, recorder.resets) == (0, 0)
    assert "listen_dsn" in caplog.text


async def test_c58_a_foreign_probe_proves_nothing(
    channel: FakeChannel, short_timeouts: None
) -> None:
    """Only the listener's own nonce counts; another one has no effect."""
    channel.loses_notifications = True
    async with started(channel) as recorder:
        await until(lambda: channel.connections)
        channel.deliver("c:")
        channel.deliver("c:0123456789abcdef")
        await recorder.until(ListenerState.NO_DELIVERY)
    assert recorder.notified == []


async def test_p4_without_the_trigger_nothing_is_trusted(channel: FakeChannel) -> None:
    """If not all writers notify, every entry is read again by its own age."""
    channel.all_writers_notify = False
    async with started(channel) as recorder:
        await recorder.until(ListenerState.LISTENING)
        proofs = channel.proofs
        await until(lambda: channel.proofs > proofs + 3)
        assert (recorder.listener.trusted_until, recorder.listener.proven_until) == (
            NEVER,
            NEVER,
        )
        assert recorder.listener.all_writers_notify is False


# What is lost.


async def test_c55_everything_is_doubted_once_listening_is_confirmed(
    recorder: Recorder, channel: FakeChannel
) -> None:
    """At the first connection and at each later one, before anything is trusted again."""
    await recorder.until(ListenerState.LISTENING)
    assert recorder.resets == 1
    channel.disconnect()
    await until(lambda: recorder.resets == 2)
    await recorder.until(ListenerState.LISTENING)
    assert (channel.listens, len(channel.connections)) == (2, 1)


async def test_c53_a_lost_connection_ends_the_trust_at_once(
    recorder: Recorder, channel: FakeChannel
) -> None:
    """Trust ends with the connection, whatever was proven, and a refusal keeps it so."""
    await recorder.until(ListenerState.LISTENING)
    channel.fault = SessionsUnavailable("gone")
    channel.disconnect()
    await recorder.until(ListenerState.DISCONNECTED)
    assert not recorder.trusts
    assert channel.connections == []


async def test_c54_a_silent_connection_is_given_up(
    channel: FakeChannel, short_timeouts: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A proof that takes longer than its budget ends the connection, without a callback."""
    with caplog.at_level(logging.WARNING, "handstamp"):
        async with started(channel) as recorder:
            await recorder.until(ListenerState.LISTENING)
            channel.may_answer.clear()
            await recorder.until(ListenerState.DISCONNECTED)
            assert not recorder.trusts
            await until(lambda: channel.listens > 1)
    assert "does not answer" in caplog.text


async def test_c54_a_server_that_never_confirms_is_given_up(
    channel: FakeChannel, short_timeouts: None
) -> None:
    """Connecting and LISTEN have a timeout too, or the listener would wait for ever."""
    channel.may_listen.clear()
    async with started(channel) as recorder:
        await until(lambda: channel.listens > 1)
        assert recorder.state is ListenerState.DISCONNECTED
        channel.may_listen.set()
        await recorder.until(ListenerState.LISTENING)


@pytest.mark.parametrize("fault", [SessionsUnavailable("no"), RuntimeError("a bug")])
async def test_no_fault_ends_the_listening(channel: FakeChannel, fault: Exception) -> None:
    """Whatever goes wrong, the listener tries again and recovers."""
    channel.fault = fault
    async with started(channel) as recorder:
        await until(lambda: channel.listens > 1)
        channel.fault = None
        await recorder.until(ListenerState.LISTENING)
        await until(lambda: recorder.trusts)


async def test_a_refused_listener_pauses_longer_each_time(
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

    monkeypatch.setattr(invalidation, "uniform", note)
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
    monkeypatch.setattr(
        invalidation, "uniform", lambda low, high: pauses.append(high) or 0.0
    )
    channel.fault = SessionsUnavailable("no")
    async with started(channel) as recorder:
        await until(lambda: len(pauses) > 5)
        channel.fault = None
        await recorder.until(ListenerState.LISTENING)
        pauses.clear()
        channel.disconnect()
        await until(lambda: recorder.resets == 2)
    assert pauses[0] == 0.05


async def test_stopping_leaves_nothing(channel: FakeChannel) -> None:
    """No task, no connection, no trust; a second stop and a new start are fine."""
    recorder = Recorder(channel)
    before = other_tasks()
    for _ in range(2):
        recorder.listener.start()
        await recorder.until(ListenerState.LISTENING)
        await recorder.listener.stop()
        await recorder.listener.stop()
        assert (recorder.state, recorder.trusts) == (ListenerState.OFF, False)
        assert (channel.connections, other_tasks()) == ([], before)


async def test_starting_twice_listens_once(
    recorder: Recorder, channel: FakeChannel
) -> None:
    """The second start changes nothing."""
    recorder.listener.start()
    await recorder.until(ListenerState.LISTENING)
    assert channel.listens == 1


# What arrives.


async def test_c68_a_flood_of_unknown_payloads_is_counted_and_logged_once_a_minute(
    recorder: Recorder, channel: FakeChannel, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten thousand malformed payloads raise nothing into the driver, end no trust, and are
    one line in the log, which quotes none of them; a minute later there is another one."""
    await recorder.until(ListenerState.LISTENING)
    for n in range(10_000):
        channel.deliver(f"?nonsense{n}")
    await until(lambda: recorder.trusts)
    assert recorder.notified == [Notification(understood=False)] * 10_000
    assert (recorder.listener.notifications, recorder.listener.unknown_notifications) == (
        10_000,
        10_000,
    )
    recorder.clock.advance(seconds(invalidation.REPORT_INTERVAL))
    channel.deliver("?nonsense")
    channel.deliver("all")
    assert (recorder.listener.notifications, recorder.listener.unknown_notifications) == (
        10_002,
        10_001,
    )
    lines = [r.getMessage() for r in caplog.records if "does not send" in r.message]
    assert [line.split()[0] for line in lines] == ["1", "10001"]
    assert "nonsense" not in caplog.text


async def test_notifications_arrive_in_the_order_of_sending(
    recorder: Recorder, channel: FakeChannel
) -> None:
    """In their order, each once, and without the probes."""
    await recorder.until(ListenerState.LISTENING)
    for payload in ("s:one", "c:foreign", "u:alice", "s:two"):
        channel.deliver(payload)
    assert recorder.notified == [
        Notification(session_id="one"),
        Notification(user_id="alice"),
        Notification(session_id="two"),
    ]


async def test_c55_a_notification_before_the_first_proof_is_handled(
    channel: FakeChannel, short_timeouts: None
) -> None:
    """Between LISTEN and the probe, and if no probe ever arrives: it can only make
    this process read more."""
    channel.loses_notifications = True
    async with started(channel) as recorder:
        await until(lambda: channel.connections)
        channel.deliver("s:early")
        await recorder.until(ListenerState.NO_DELIVERY)
        channel.deliver("u:late")
        channel.deliver("junk")
        assert recorder.notified == [
            Notification(session_id="early"),
            Notification(user_id="late"),
            Notification(understood=False),
        ]
        assert not recorder.trusts


async def test_c68_foreign_probes_change_nothing(
    recorder: Recorder, channel: FakeChannel
) -> None:
    """Neither before the own probe nor after it; they do not count as notifications."""
    await recorder.until(ListenerState.LISTENING)
    for number in range(1000):
        channel.deliver(f"c:{number}")
    assert (recorder.notified, recorder.resets, recorder.listener.notifications) == (
        [],
        1,
        0,
    )


# What it causes in an engine.


def deliver(engine: Engine, text: str) -> None:
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
        deliver(engine, text)
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
        deliver(engine, "u:alice")
        hits = [engine.sessions.hit(i.session_token.encode()) for i in (one, two, other)]
        assert [hit is not None for hit in hits] == [False, False, True]


async def test_a_notification_about_an_own_revocation_is_harmless() -> None:
    """It changes nothing for a session that was created after it."""
    async with running(
        policy=Policy(max_staleness=seconds(3600), longest_trust=seconds(3600))
    ) as engine:
        old = await engine.login()
        await engine.sessions.revoke(old.session.id)
        new = await engine.login()
        deliver(engine, f"s:{old.session.id}")
        assert engine.sessions.hit(old.session_token.encode()) is None
        assert engine.sessions.hit(new.session_token.encode()) is not None


async def test_c52_a_revocation_reaches_the_other_process() -> None:
    """It is out of that cache before `max_staleness`, whatever the clock says."""
    policy = Policy(max_staleness=seconds(3600), longest_trust=seconds(3600))
    async with (
        running(policy=policy) as one,
        running(policy=policy, store=one.store, clock=one.clock) as two,
    ):
        issued = await one.login()
        session_of(await two.ask(issued))
        await one.sessions.revoke(issued.session.id)
        assert two.sessions.hit(issued.session_token.encode()) is None


async def test_p4_trust_ends_after_the_trigger_is_dropped(
    recorder: Recorder, channel: FakeChannel
) -> None:
    """What was proven before counts to its end, and nothing is added."""
    await until(lambda: recorder.trusts)
    channel.all_writers_notify = False
    await until(lambda: not recorder.listener.all_writers_notify)
    proofs = channel.proofs
    recorder.clock.advance(seconds(STALENESS))
    await until(lambda: channel.proofs > proofs + 3)
    assert not recorder.trusts


async def test_p4_a_new_trigger_doubts_everything_first(
    channel: FakeChannel,
) -> None:
    """What was written before it came notified nothing; from then on there is trust."""
    channel.all_writers_notify = False
    async with started(channel) as recorder:
        await recorder.until(ListenerState.LISTENING)
        assert recorder.resets == 1
        channel.all_writers_notify = True
        await until(lambda: recorder.trusts)
        assert recorder.resets == 2
