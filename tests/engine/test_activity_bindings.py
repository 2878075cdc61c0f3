"""Sessions that are used from elsewhere: reported, also while they are cached."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from handstamp import _handle as handles
from handstamp.asgi import SessionAuthMiddleware
from handstamp.blocking import call
from handstamp.config import Policy, TrustedProxies
from handstamp.core.models import Client, Issued, Session
from handstamp.core.requests import read_client
from handstamp.engine.activity import MAX_CHANGED, OBSERVE_INTERVAL, BindingTracker
from handstamp.events import BindingChanged
from handstamp.wsgi import SessionAuthMiddleware as WsgiMiddleware
from tests.support import asgi, wsgi
from tests.support.engines import Engine, running, seconds

HOME, AWAY = "198.51.100.7", "203.0.113.9"
LAPTOP, PHONE = "Mozilla/5.0 (Laptop)", "Mozilla/5.0 (Phone)"
TRUSTING = Policy(max_staleness=seconds(3600), longest_trust=seconds(3600))
"""Nothing is read again while a test lasts: what is seen is seen at a hit."""


def client_of(address: str | None, agent: str = LAPTOP) -> Client:
    """What a request from there shows."""
    return read_client((address, 1), [(b"user-agent", agent.encode())])


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """An engine that believes its cache."""
    async with running(policy=TRUSTING) as engine:
        yield engine


class Asgi:
    """Requests of one session through the ASGI middleware."""

    def __init__(self, engine: Engine, issued: Issued, **options: Any) -> None:
        self.engine = engine
        self.cookie = asgi.cookie_header(issued.session_token, issued.refresh_token)
        app = asgi.responding()
        self.app = SessionAuthMiddleware(app, engine.sessions, **options)

    async def get(
        self, address: str, agent: str = LAPTOP, *headers: tuple[bytes, bytes], **more: Any
    ) -> None:
        """One request, a second after the one before."""
        self.engine.clock.advance(seconds(OBSERVE_INTERVAL))
        named = [(b"user-agent", agent.encode()), self.cookie, *headers]
        answer = await asgi.get(self.app, "/", *named, client=(address, 1), **more)
        assert answer.status == 200


async def visitor(engine: Engine, **options: Any) -> Asgi:
    """A browser that has just signed in at home, on the laptop."""
    return Asgi(engine, await engine.login(client=client_of(HOME)), **options)


def changes(engine: Engine) -> list[tuple[str | None, bool, bool]]:
    """Where to, and what was different."""
    return [
        (event.now.address, event.address_changed, event.user_agent_changed)
        for event in engine.of(BindingChanged)
    ]


@pytest.mark.parametrize(
    ("way", "more"),
    [
        ([], {}),
        ([], {"method": "POST"}),
        ([(b"x-passive-request", b"1")], {}),
    ],
    ids=["fast", "slow", "passive"],
)
async def test_a_cached_session_that_is_used_from_elsewhere_is_reported(
    engine: Engine, way: list[tuple[bytes, bytes]], more: dict[str, Any]
) -> None:
    """Another network, another browser, both: once for each change, without a query."""
    browser = await visitor(engine)
    before = engine.store.queries
    for address, agent in (
        (HOME, LAPTOP),
        (AWAY, LAPTOP),
        (AWAY, LAPTOP),
        (AWAY, PHONE),
        (HOME, PHONE),
        (HOME, LAPTOP),
        (HOME, LAPTOP),
        (AWAY, LAPTOP),
    ):
        await browser.get(address, agent, *way, **more)
    assert changes(engine) == [
        (AWAY, True, False),
        (AWAY, True, True),
        (HOME, False, True),
        (AWAY, True, False),
    ]
    assert engine.store.queries == before


async def test_a_thief_who_comes_between_two_requests_is_reported(engine: Engine) -> None:
    """A single request is enough, unless another one came within the second before."""
    browser = await visitor(engine)
    await browser.get(HOME)
    await browser.get(AWAY, PHONE)
    await browser.get(HOME)
    assert changes(engine) == [(AWAY, True, True)]


async def test_a_cached_session_is_looked_at_once_a_second(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many requests come, and however they differ: so nobody can fill the log."""
    browser = await visitor(engine)
    await browser.get(HOME)
    for n in range(100):
        engine.clock.advance(-seconds(OBSERVE_INTERVAL) + seconds(0.001))
        await browser.get(AWAY, f"{PHONE} {n}", method="POST" if n % 2 else "GET")
    assert changes(engine) == []
    await browser.get(AWAY, PHONE)
    assert len(changes(engine)) == 1


async def test_requests_of_one_client_are_compared_without_reading_who_it_is(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hit builds no client; what is looked at once a second costs a tenth of that."""
    built: list[Client] = []

    def reading(*arguments: Any) -> Client:
        built.append(read_client(*arguments))
        return built[-1]

    monkeypatch.setattr(handles, "read_client", reading)
    browser = await visitor(engine)
    for _ in range(100):
        await browser.get(HOME)
    assert len(built) == 1


async def test_behind_a_proxy_the_client_is_compared_and_not_the_proxy(
    engine: Engine,
) -> None:
    """The peer is always the same."""
    browser = await visitor(engine, trusted_proxies=TrustedProxies("10.0.0.0/8"))
    for address in (HOME, AWAY, AWAY):
        forwarded = (b"x-forwarded-for", address.encode())
        await browser.get("10.0.0.1", LAPTOP, forwarded)
    assert changes(engine) == [(AWAY, True, False)]


async def test_a_refresh_from_elsewhere_is_reported_at_once_and_once(
    engine: Engine,
) -> None:
    """By the request that rotates; the hits that follow are of the same client."""
    issued = await engine.login(client=client_of(HOME))
    await engine.expire()
    away = client_of(AWAY, PHONE)
    new = await engine.refreshed(issued, client=away)
    assert changes(engine) == [(AWAY, True, True)]
    browser = Asgi(engine, new)
    for _ in range(3):
        await browser.get(AWAY, PHONE)
    assert len(changes(engine)) == 1
    await browser.get(HOME)
    await browser.get(AWAY, PHONE)
    assert len(changes(engine)) == 2


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_under_wsgi_the_event_is_published_on_the_event_loop(method: str) -> None:
    """The hit is in another thread, and subscribers need not be made for that."""
    engine = Engine(policy=TRUSTING)
    try:
        issued = call(engine.login, client=client_of(HOME))
        threads: list[threading.Thread] = []

        def subscriber(event: BindingChanged) -> None:
            threads.append(threading.current_thread())

        engine.sessions.on(BindingChanged, subscriber)

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [])
            return [b""]

        middleware = WsgiMiddleware(app, engine.sessions)
        for address in (HOME, AWAY, AWAY):
            engine.clock.advance(seconds(OBSERVE_INTERVAL))
            shown = {"REMOTE_ADDR": address, "HTTP_USER_AGENT": LAPTOP}
            sent = {**shown, "HTTP_COOKIE": wsgi.cookie(issued)}
            wsgi.serve(middleware, wsgi.environ("/", method=method, **sent))
        call(_turn)
        assert changes(engine) == [(AWAY, True, False)]
        assert [thread.name for thread in threads] == ["handstamp"]
    finally:
        call(engine.sessions.close)


async def _turn() -> None:
    """What was begun on the loop before is done."""


SESSION = Session(
    id="1",
    user_id="alice",
    created_at=Engine().clock.now(),
    expires_at=Engine().clock.now(),
    last_activity_at=None,
)
KNOWN = client_of(HOME)
NOBODY = Client()


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (KNOWN, client_of("198.51.7.100")),
        (NOBODY, client_of(AWAY, PHONE)),
        (replace(KNOWN, address=None), client_of(AWAY)),
        # A table without a user agent, or with a column that is short.
        (replace(NOBODY, address=HOME), client_of(HOME, PHONE)),
        (Client(address=HOME, user_agent="Mozilla", user_agent_hash="0"), KNOWN),
    ],
    ids=["same network", "nothing known", "no address", "no agent", "short agent"],
)
def test_what_the_row_does_not_know_is_no_change(was: Client, now: Client) -> None:
    """Nor is another address of the same network."""
    assert BindingTracker().changed(SESSION, was, now) is None


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (KNOWN, client_of(None)),
        (KNOWN, client_of("2001:db8::1")),
        (KNOWN, client_of(HOME, "")),
        (KNOWN, client_of(HOME, LAPTOP.lower())),
        (Client(user_agent="Mozilla", user_agent_hash="0"), client_of(HOME, "Opera")),
    ],
    ids=["no address", "IPv6", "no agent", "another case", "a text alone"],
)
def test_what_differs_from_what_the_row_knows_is_a_change(was: Client, now: Client) -> None:
    """It is a signal and no verdict, so rather one too many."""
    assert BindingTracker().changed(SESSION, was, now) is not None


def test_sessions_that_moved_are_few() -> None:
    """However many move, the oldest are forgotten first; those at home take no room."""
    bindings = BindingTracker(max_changed=100)
    for n in range(1000):
        session = replace(SESSION, id=str(n))
        assert bindings.changed(session, KNOWN, KNOWN) is None
        assert bindings.changed(session, KNOWN, client_of(AWAY)) is not None
    assert len(bindings) == 100
    assert bindings.changed(replace(SESSION, id="999"), KNOWN, client_of(AWAY)) is None
    assert bindings.changed(replace(SESSION, id="0"), KNOWN, client_of(AWAY)) is not None
    assert MAX_CHANGED == 10_000
