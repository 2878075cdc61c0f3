"""EventDispatcher: subscribers, counters, and what a log line may hold of an event."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

import pytest

from handstamp import Cookies
from handstamp.asgi import SCOPE_KEY, SessionAuthMiddleware
from handstamp.core.models import Client
from handstamp.engine.dispatch import MAX_RUNNING, EventDispatcher
from handstamp.events import (
    BindingChanged,
    CookieOverridden,
    CrossSiteRefused,
    Event,
    Replayed,
    Revoked,
    SessionEvent,
)
from tests.support import asgi
from tests.support.clock import FakeClock
from tests.support.engines import running
from tests.support.waiting import until

REVOKED = Revoked(session_id="s", user_id="u", reason="r")
AT_HOME = Client(address="198.51.100.77", user_agent="Secret Agent", fingerprint="f" * 64)


def test_a_subscriber_gets_its_class_and_subclasses() -> None:
    """And nothing else, in the order of subscription."""
    dispatcher, received = EventDispatcher(), []
    dispatcher.on(Event, lambda e: received.append(("all", e)))
    dispatcher.on(SessionEvent, lambda e: received.append(("session", e)))
    dispatcher.on(Replayed, lambda e: received.append(("replayed", e)))
    dispatcher.publish(REVOKED)
    assert received == [("all", REVOKED), ("session", REVOKED)]
    assert dispatcher.counts == {"revoked": 1}


async def test_an_asynchronous_subscriber_runs_beside_the_request() -> None:
    """Publishing does not wait for it; draining does."""
    dispatcher, received = EventDispatcher(), []

    async def receive(event: Revoked) -> None:
        await asyncio.sleep(0)
        received.append(event)

    dispatcher.on(Revoked, receive)
    dispatcher.publish(REVOKED)
    assert received == []
    await dispatcher.drain()
    assert received == [REVOKED]


async def test_a_subscriber_may_return_anything(caplog: pytest.LogCaptureFixture) -> None:
    """A result that is not awaitable is ignored."""
    dispatcher = EventDispatcher()
    dispatcher.on(Revoked, lambda event: 42)  # type: ignore[arg-type, return-value]
    dispatcher.publish(REVOKED)
    await dispatcher.drain()
    assert [r for r in caplog.records if r.exc_info] == []


async def test_one_failing_subscriber_stops_no_other() -> None:
    """Whatever came before it in the list."""
    dispatcher, received = EventDispatcher(), []

    def fail(event: Event) -> None:
        raise ValueError

    dispatcher.on(Event, fail)
    dispatcher.on(Event, received.append)
    dispatcher.publish(REVOKED)
    assert received == [REVOKED]


async def test_p2_a_slow_subscriber_gets_a_bounded_number_of_events(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A flood of one kind waits for it up to a bound and drops what is beyond, with one
    log line, and takes nothing from the events of another kind."""
    dispatcher, free = EventDispatcher(), asyncio.Event()
    received: Counter[type[Event]] = Counter()

    async def slow(event: Event) -> None:
        await free.wait()
        received[type(event)] += 1

    dispatcher.on(Event, slow)
    rare = Replayed(session_id="s", user_id="u", presented_by=AT_HOME, signed_in_by=AT_HOME)
    for event in (*[REVOKED] * 3 * MAX_RUNNING, rare):
        dispatcher.publish(event)
    assert sum(map(len, dispatcher._tasks.values())) == MAX_RUNNING + 1
    assert dispatcher.counts["revoked"] == 3 * MAX_RUNNING
    assert dispatcher.counts["subscriber_dropped"] == 2 * MAX_RUNNING
    free.set()
    await until(lambda: not any(dispatcher._tasks.values()))
    assert received == {Revoked: MAX_RUNNING, Replayed: 1}
    assert [r.__dict__.get("action") for r in caplog.records].count(
        "subscriber_dropped"
    ) == 1
    dispatcher.publish(REVOKED)
    await dispatcher.drain()
    assert received[Revoked] == MAX_RUNNING + 1


def test_calls_of_a_closed_loop_do_not_count() -> None:
    """The loop ended before them; the next loop has a bound of its own."""
    dispatcher, received = EventDispatcher(), []
    stuck = True

    async def receive(event: Event) -> None:
        if stuck:
            await asyncio.Event().wait()
        received.append(event)

    async def publish(count: int) -> None:
        for _ in range(count):
            dispatcher.publish(REVOKED)

    dispatcher.on(Event, receive)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(publish(MAX_RUNNING))
    loop.close()
    stuck = False

    async def publish_and_drain() -> None:
        await publish(3)
        await dispatcher.drain()

    asyncio.run(publish_and_drain())
    assert received == [REVOKED] * 3


async def test_events_are_counted_by_action() -> None:
    """Whatever ids the events bear."""
    dispatcher = EventDispatcher()
    for number in range(1000):
        dispatcher.publish(
            Revoked(session_id=f"s{number}", user_id=f"u{number}", reason="r")
        )
    assert dict(dispatcher.counts) == {"revoked": 1000}


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (REVOKED, logging.INFO),
        (
            Replayed(
                session_id="s", user_id="u", presented_by=AT_HOME, signed_in_by=AT_HOME
            ),
            logging.WARNING,
        ),
    ],
    ids=["plain", "alarming"],
)
def test_an_event_is_one_line_in_the_log(
    event: Event, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Under its stable name, alarming ones as warnings, with its facts as fields."""
    caplog.set_level(logging.DEBUG)
    EventDispatcher().publish(event)
    (record,) = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == (
        "handstamp",
        level,
        event.action,
    )
    assert record.__dict__["action"] == event.action
    assert record.__dict__["handstamp_session_id"] == "s"


@pytest.mark.parametrize("event", [CrossSiteRefused(), CookieOverridden(dropped=True)])
def test_an_unauthenticated_event_is_one_line_a_second(
    event: Event, caplog: pytest.LogCaptureFixture
) -> None:
    """The first at once, then one a second with the number of those left out; counters and
    subscribers miss nothing, and no other kind waits for it."""
    caplog.set_level(logging.DEBUG)
    clock, received = FakeClock(), []
    dispatcher = EventDispatcher(clock)
    dispatcher.on(Event, received.append)
    for pause in (0.5, 0.5, 60.0, 0.0):
        for _ in range(100):
            dispatcher.publish(event)
        dispatcher.publish(REVOKED)
        clock.advance(pause)
    lines = [r.__dict__ for r in caplog.records if r.message == event.action]
    assert [line.get("handstamp_suppressed") for line in lines] == [None, 199, 99]
    assert [r.message for r in caplog.records].count("revoked") == 4
    assert (dispatcher.counts[event.action], received.count(event)) == (400, 400)


async def test_refused_cross_site_logouts_are_one_line_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A form on another site's page that tries to sign out its visitors."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await scope[SCOPE_KEY].logout()

    caplog.set_level(logging.DEBUG)
    async with running() as engine:
        site = SessionAuthMiddleware(app, engine.sessions, cookies=Cookies.insecure())
        scope = asgi.http_scope(
            "/logout", method="POST", headers=[(b"sec-fetch-site", b"cross-site")]
        )
        for _ in range(20):
            assert (await asgi.serve(site, dict(scope))).status == 403
        actions = [r.__dict__.get("action") for r in caplog.records]
        assert actions.count("cross_site_refused") == 1
        assert len(engine.of(CrossSiteRefused)) == 20
        assert engine.sessions.stats().events["cross_site_refused"] == 20


def test_p12_a_client_is_logged_by_its_network(caplog: pytest.LogCaptureFixture) -> None:
    """No full address, no user agent, no fingerprint, in no field."""
    caplog.set_level(logging.DEBUG)
    EventDispatcher().publish(
        BindingChanged(
            session_id="s",
            user_id="u",
            was=AT_HOME,
            now=AT_HOME,
            address_changed=True,
            user_agent_changed=False,
        )
    )
    shown = repr(vars(caplog.records[0]))
    assert "198.51." in shown
    assert not any(s in shown for s in ("198.51.100.77", "Secret Agent", "ffff"))
