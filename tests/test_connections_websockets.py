"""A WebSocket lives no longer than its session, whatever the application is doing."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from handstamp._connections import SESSION_ENDED, ASGIApp, Message, Receive, Scope, Send
from handstamp.asgi import SCOPE_KEY, SessionAuthMiddleware
from handstamp.config import Policy
from handstamp.core.models import Answer, Invalid, Issued, Reason, Record
from handstamp.events import Refreshed
from handstamp.stores.memory import MemoryStore
from tests.support.asgi import cookie_header, serve, socket_scope
from tests.support.clock import FakeClock
from tests.support.engines import ALICE, Engine, invalidated, new_tokens, running, seconds
from tests.support.engines import listening as bus_listening
from tests.support.waiting import turns, until

SLOW = Policy(max_staleness=seconds(3600), longest_trust=seconds(3600))
"""So that connections are looked at when there is a reason, and hardly ever in rounds."""
CLOSE = {"type": "websocket.close", "code": SESSION_ENDED}
ACCEPT = {"type": "websocket.accept"}


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """One process on a store in memory."""
    async with running() as engine:
        yield engine


class Socket:
    """A client and its server: what comes in, what went out, the task that serves it."""

    def __init__(
        self,
        engine: Engine,
        app: ASGIApp,
        issued: Issued | None,
        *headers: tuple[bytes, bytes],
        refresh: bool = False,
        **scope: Any,
    ) -> None:
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.outgoing: asyncio.Queue[Message] = asyncio.Queue()
        self.fails: type[BaseException] | None = None
        sent = list(headers)
        if issued:
            token = issued.refresh_token if refresh else None
            sent.append(cookie_header(issued.session_token, token))
        middleware = SessionAuthMiddleware(app, engine.sessions)
        handshake = socket_scope(headers=sent, **scope)
        serving = middleware(handshake, self.incoming.get, self._send)
        self.task = asyncio.ensure_future(serving)

    async def _send(self, message: Message) -> None:
        if self.fails:
            raise self.fails
        self.outgoing.put_nowait(dict(message))

    async def next(self) -> Message:
        """The next message that went out, without the headers of an accept."""
        message = await asyncio.wait_for(self.outgoing.get(), 30)
        headers = message.pop("headers", ())
        self.cookies = [value for name, value in headers if name == b"set-cookie"]
        return message

    def say(self, text: str) -> None:
        """A frame of the client."""
        self.incoming.put_nowait({"type": "websocket.receive", "text": text})

    def leave(self) -> None:
        """The client is gone."""
        self.incoming.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def served(self) -> None:
        """The application is done."""
        await asyncio.wait_for(self.task, 30)


async def accept(receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept", "headers": []})


async def listening(scope: Scope, receive: Receive, send: Send) -> None:
    """Only receives, and passes on what it received at the end."""
    await accept(receive, send)
    received = []
    while True:
        received.append(await receive())
        if received[-1]["type"] == "websocket.disconnect":
            scope["received"](received)
            return


async def test_a_socket_is_closed_while_the_app_only_waits(engine: Engine) -> None:
    """4401 at once, and the app sees a disconnect."""
    issued = await engine.login()
    received: list[list[Message]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await listening({**scope, "received": received.append}, receive, send)

    socket = Socket(engine, app, issued)
    assert await socket.next() == ACCEPT
    socket.incoming.put_nowait({"type": "websocket.receive", "text": "hello"})
    await engine.sessions.revoke(issued.session.id)
    assert await socket.next() == CLOSE
    await socket.served()
    assert received[0][-1] == {"type": "websocket.disconnect", "code": SESSION_ENDED}
    assert engine.sessions.stats().open_connections == 0


async def test_a_socket_is_closed_while_the_app_only_sends(engine: Engine) -> None:
    """4401, and the next send raises OSError, as ASGI asks of servers."""
    issued = await engine.login()
    raised = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        try:
            while True:
                await send({"type": "websocket.send", "text": "tick"})
                await asyncio.sleep(0)
        except OSError:
            raised.set()

    socket = Socket(engine, app, issued)
    assert await socket.next() == ACCEPT
    await engine.sessions.revoke(issued.session.id)
    await socket.served()
    assert raised.is_set()
    sent = [socket.outgoing.get_nowait() for _ in range(socket.outgoing.qsize())]
    assert sent[-1] == CLOSE
    assert [m["type"] for m in sent].count("websocket.close") == 1


@pytest.mark.parametrize("way", ["logout elsewhere", "user", "login", "replay"])
async def test_whichever_way_a_session_ends(engine: Engine, way: str) -> None:
    """By another device, by its user, by a new login, by a replay."""
    issued = await engine.login()
    socket = Socket(engine, listening_quietly, issued)
    assert await socket.next() == ACCEPT
    if way == "logout elsewhere":
        await engine.sessions.revoke(issued.session.id, user_id=ALICE)
    elif way == "user":
        await engine.sessions.revoke_user(ALICE)
    elif way == "login":
        await engine.login(replaces=issued.session.id)
    else:
        await engine.refreshed(await engine.refreshed(issued))
        engine.clock.advance(engine.policy.session_ttl)
        await engine.ask(issued)
    assert await socket.next() == CLOSE
    await socket.served()


async def listening_quietly(scope: Scope, receive: Receive, send: Send) -> None:
    await listening({**scope, "received": lambda received: None}, receive, send)


async def test_other_sockets_stay_open(engine: Engine) -> None:
    """Those of other sessions, of the same user too, and anonymous ones."""
    issued, kept, bob = (
        await engine.login(),
        await engine.login(),
        await engine.login("bob"),
    )
    sockets = [Socket(engine, listening_quietly, who) for who in (issued, kept, bob, None)]
    for socket in sockets:
        assert await socket.next() == ACCEPT
    assert engine.sessions.stats().open_connections == 3
    await engine.sessions.revoke_user(ALICE, keep=kept.session.id)
    assert await sockets[0].next() == CLOSE
    await sockets[0].served()
    for socket in sockets[1:]:
        assert (socket.task.done(), socket.outgoing.qsize()) == (False, 0)
        socket.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await socket.served()
    assert engine.sessions.stats().open_connections == 0


async def test_nothing_is_lost_or_reordered_on_the_way(engine: Engine) -> None:
    """An app that gives up waiting and waits again misses no message."""
    issued = await engine.login()
    received: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        waiting = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await send({"type": "websocket.send", "text": "ready"})
        while (message := await receive())["type"] == "websocket.receive":
            received.append(message["text"])

    socket = Socket(engine, app, issued)
    assert await socket.next() == ACCEPT
    assert (await socket.next())["text"] == "ready"
    for text in "abc":
        socket.incoming.put_nowait({"type": "websocket.receive", "text": text})
    socket.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await socket.served()
    assert received == ["a", "b", "c"]


async def test_a_client_that_left_is_not_closed_again(engine: Engine) -> None:
    """After its disconnect a revocation sends nothing."""
    issued = await engine.login()
    gone, over = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        assert (await receive())["type"] == "websocket.disconnect"
        gone.set()
        await over.wait()

    socket = Socket(engine, app, issued)
    assert await socket.next() == ACCEPT
    socket.incoming.put_nowait({"type": "websocket.disconnect", "code": 1001})
    await gone.wait()
    await engine.sessions.revoke(issued.session.id)
    await asyncio.sleep(0)
    over.set()
    await socket.served()
    assert socket.outgoing.empty()


@pytest.mark.parametrize("failure", [OSError, ConnectionResetError, RuntimeError])
async def test_a_client_that_closed_first_is_no_error(
    engine: Engine, failure: type[Exception]
) -> None:
    """The close finds the connection gone: nothing raises, no exception is left behind."""
    issued = await engine.login()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, it: complaints.append(it))
    socket = Socket(engine, listening_quietly, issued)
    assert await socket.next() == ACCEPT
    socket.fails = failure
    await engine.sessions.revoke(issued.session.id)
    await socket.served()
    del socket
    gc.collect()
    asyncio.get_running_loop().set_exception_handler(None)
    assert complaints == []


async def test_a_socket_that_the_app_closed_is_not_closed_again(engine: Engine) -> None:
    """The application's own code is kept, and sending afterwards raises."""
    issued = await engine.login()
    over = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.close", "code": 1000})
        with pytest.raises(OSError, match="closed"):
            await send({"type": "websocket.send", "text": "too late"})
        await over.wait()

    socket = Socket(engine, app, issued)
    assert await socket.next() == ACCEPT
    assert (await socket.next())["code"] == 1000
    await engine.sessions.revoke(issued.session.id)
    await asyncio.sleep(0)
    over.set()
    await socket.served()
    assert socket.outgoing.empty()


@pytest.mark.parametrize("how", ["returns", "raises", "is cancelled"])
async def test_no_task_is_left_behind(engine: Engine, how: str) -> None:
    """However the application ends, with a receive that is still waiting."""
    issued = await engine.login()
    before = asyncio.all_tasks()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        waiting = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        if how == "raises":
            raise ValueError
        if how == "is cancelled":
            await asyncio.Future()

    socket = Socket(engine, app, issued)
    assert await socket.next() == ACCEPT
    if how == "is cancelled":
        socket.task.cancel()
    await asyncio.wait([socket.task])
    assert asyncio.all_tasks() == before
    assert engine.sessions.stats().open_connections == 0


async def test_a_session_revoked_during_the_handshake_closes_its_socket() -> None:
    """The read found it alive; the revocation came before the socket was known."""

    class Racing(MemoryStore):
        async def find(self, digests: Sequence[str]) -> Sequence[Record]:
            found = await super().find(digests)
            await engine.sessions.revoke(found[0].id)
            return found

    clock = FakeClock()
    async with running(clock=clock, store=Racing(clock.now)) as engine:
        issued = await engine.login()
        engine.sessions._state.cache.doubt()
        socket = Socket(engine, listening_quietly, issued)
        messages = [await socket.next() for _ in range(2)]
        assert messages == [ACCEPT, CLOSE]
        await socket.served()


class Interrupted(MemoryStore):
    """A store in which something happens between a handshake's query and its answer."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(now)
        self.meanwhile: Callable[[Record], Awaitable[object]] | None = None

    async def find(self, digests: Sequence[str]) -> Sequence[Record]:
        found = await super().find(digests)
        if self.meanwhile is not None:
            await self.meanwhile(found[0])
        return found


@asynccontextmanager
async def interrupted(
    meanwhile: Callable[[Engine, Record], Awaitable[object]], policy: Policy = SLOW
) -> AsyncIterator[tuple[Engine, Socket]]:
    """An engine, and a socket whose handshake was read before ``meanwhile``."""
    clock = FakeClock()
    store = Interrupted(clock.now)
    async with running(clock=clock, store=store, policy=policy) as engine:
        issued = await engine.login()
        engine.sessions._state.cache.doubt()
        store.meanwhile = lambda record: meanwhile(engine, record)
        socket = Socket(engine, listening_quietly, issued)
        assert await socket.next() == ACCEPT
        yield engine, socket
        socket.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await socket.served()


async def relisten(engine: Engine, record: Record) -> None:
    """The listening connection is lost and made anew."""
    engine.store.channel.cut()  # type: ignore[attr-defined]
    await until(lambda: engine.sessions.stats().listener == "disconnected")
    await until(lambda: engine.sessions.stats().listener == "listening")


async def forge(engine: Engine, record: Record) -> None:
    """Somebody else sends what handstamp would send, and more than it remembers."""
    said = engine.store.channel.send  # type: ignore[attr-defined]
    for text in ("all", "?", f"u:{record.user_id}", f"s:{record.id}"):
        said(text)
    for number in range(5000):
        said(f"s:{number}")


@pytest.mark.parametrize("meanwhile", [relisten, forge], ids=lambda way: way.__name__)
async def test_a_doubted_handshake_is_checked_and_not_closed(
    meanwhile: Callable[[Engine, Record], Awaitable[object]],
) -> None:
    """Anything may have ended since the read, and the table says that nothing did."""
    async with interrupted(meanwhile) as (engine, socket):
        queries = engine.store.queries
        await until(lambda: engine.store.queries > queries)
        await turns()
        assert (socket.outgoing.empty(), socket.task.done()) == (True, False)


@pytest.mark.parametrize("notice", ["s:{0.id}", "u:{0.user_id}", "all", "?"])
async def test_a_session_ended_elsewhere_during_the_handshake_closes_its_socket(
    notice: str,
) -> None:
    """The notice came before anybody knew of the socket, so the table is asked at once."""

    async def end(engine: Engine, record: Record) -> None:
        engine.store.rows[record.id] = replace(record, is_active=False)
        engine.store.channel.send(notice.format(record))  # type: ignore[attr-defined]

    async with interrupted(end) as (_, socket):
        assert await socket.next() == CLOSE


async def test_an_undisturbed_handshake_costs_no_further_query() -> None:
    """One query for the session, and none for its socket."""

    async def nothing(engine: Engine, record: Record) -> None:
        """Nothing happens."""

    async with interrupted(nothing) as (engine, _):
        queries = engine.store.queries
        await turns()
        assert engine.store.queries == queries


async def test_p5_four_hundred_handshakes_at_a_deploy_stay_open() -> None:
    """They were read before this process listened for the first time, which doubts
    everything; one look later all of them are known to stand."""
    clock = FakeClock()
    async with running(clock=clock, store=Interrupted(clock.now)) as before:
        issued = [await before.login(f"user{number}") for number in range(400)]
    store = before.store
    assert isinstance(store, Interrupted)
    after = Engine(clock=clock, store=store, policy=SLOW)
    store.meanwhile = lambda record: bus_listening(after)
    sockets = [Socket(after, listening_quietly, one) for one in issued]
    async with after.sessions:
        for socket in sockets:
            assert await socket.next() == ACCEPT
        await invalidated(after)
        assert [socket.outgoing.qsize() for socket in sockets] == [0] * 400
        for socket in sockets:
            socket.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
            await socket.served()


# A handshake that rotates.


async def echoing(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers every frame, so that a test can wait for it."""
    await accept(receive, send)
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def rotated_by_socket(
    engine: Engine, app: ASGIApp, *headers: tuple[bytes, bytes], **scope: Any
) -> tuple[Issued, Socket]:
    """A session whose token has expired, and a socket that was opened with both of its
    cookies since."""
    issued = await engine.login()
    await engine.expire()
    socket = Socket(engine, app, issued, *headers, refresh=True, **scope)
    assert await socket.next() == ACCEPT
    return issued, socket


async def came_back(engine: Engine, issued: Issued) -> Answer:
    """What the holder of the old cookies is answered once grace is over."""
    await engine.sessions.flush()
    engine.clock.advance(engine.policy.grace + seconds(1))
    return await engine.ask(issued, session=False)


async def test_a_thief_who_only_opens_sockets_is_detected(engine: Engine) -> None:
    """The first frame shows that the handshake's cookies arrived: the old token is a
    replay from then on, and the socket is closed."""
    issued, socket = await rotated_by_socket(engine, echoing)
    assert len(socket.cookies) == 2
    socket.say("hello")
    assert (await socket.next())["text"] == "hello"
    assert await came_back(engine, issued) == Invalid(Reason.REPLAYED)
    assert await socket.next() == CLOSE
    await socket.served()


async def test_a_thief_who_opens_one_socket_after_another_is_detected(
    engine: Engine,
) -> None:
    """Each handshake presents the token of the one before, whether a frame came or not."""
    issued, first = await rotated_by_socket(engine, listening_quietly)
    named = [cookie.partition(b";")[0] for cookie in first.cookies]
    await engine.expire()
    second = Socket(engine, listening_quietly, None, (b"cookie", b"; ".join(named)))
    assert await second.next() == ACCEPT
    assert await came_back(engine, issued) == Invalid(Reason.REPLAYED)
    for socket in (first, second):
        assert await socket.next() == CLOSE
        await socket.served()


async def test_a_frame_after_a_repeated_pair_counts_too(engine: Engine) -> None:
    """Two tabs open a socket with the same old cookies: both answers carry one pair."""
    issued, first = await rotated_by_socket(engine, listening_quietly)
    second = Socket(engine, echoing, issued, refresh=True)
    assert await second.next() == ACCEPT
    assert len(second.cookies) == 2
    second.say("hello")
    await second.next()
    assert await came_back(engine, issued) == Invalid(Reason.REPLAYED)
    for socket in (first, second):
        assert await socket.next() == CLOSE
        await socket.served()


@pytest.mark.parametrize("left", [False, True], ids=["silent", "left"])
async def test_p7_a_socket_without_a_frame_proves_nothing(
    engine: Engine, left: bool
) -> None:
    """Its answer may have been lost on the way, and the end of a connection is no frame."""
    issued, socket = await rotated_by_socket(engine, echoing)
    if left:
        socket.leave()
        await socket.served()
    again = new_tokens(await came_back(engine, issued))
    assert again.session.id == issued.session.id
    socket.leave()
    await socket.served()


async def test_p7_a_frame_proves_no_cookies_that_were_not_sent(engine: Engine) -> None:
    """The handshake was accepted after grace, hence without cookies: the old token goes
    on."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        engine.clock.advance(engine.policy.grace + seconds(1))
        await echoing(scope, receive, send)

    issued, socket = await rotated_by_socket(engine, slow)
    assert socket.cookies == []
    socket.say("hello")
    await socket.next()
    assert new_tokens(await came_back(engine, issued))
    socket.leave()
    await socket.served()


@pytest.mark.parametrize(
    "asgi",
    [{}, {"version": "3.0"}, {"spec_version": "2.0"}, {"spec_version": "two"}],
    ids=str,
)
async def test_a_handshake_whose_response_cannot_have_headers_rotates_nothing(
    engine: Engine, asgi: dict[str, str]
) -> None:
    """A server of ASGI 2.0 would drop the cookies: the refresh token counts as it
    stands."""
    seen_users: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen_users.append(scope[SCOPE_KEY].user_id)
        await listening_quietly(scope, receive, send)

    issued, socket = await rotated_by_socket(engine, app, asgi=asgi)
    assert (seen_users, socket.cookies, engine.of(Refreshed)) == ([ALICE], [], [])
    socket.leave()
    await socket.served()
    assert new_tokens(await engine.ask(issued, session=False))


@pytest.mark.parametrize(
    "header", [(b"x-passive-request", b"1"), (b"sec-purpose", b"prefetch")]
)
async def test_a_client_cannot_declare_a_handshake_passive(
    engine: Engine, header: tuple[bytes, bytes]
) -> None:
    """It is judged as a write."""
    _, socket = await rotated_by_socket(engine, listening_quietly, header)
    assert len(socket.cookies) == 2
    socket.leave()
    await socket.served()


async def test_a_session_can_be_ended_from_another_thread(engine: Engine) -> None:
    """The socket is closed on its own loop."""
    issued = await engine.login()
    socket = Socket(engine, listening_quietly, issued)
    assert await socket.next() == ACCEPT
    closing = engine.sessions.connections.close
    await asyncio.to_thread(closing, issued.session.id)
    assert await socket.next() == CLOSE
    await socket.served()


async def test_an_anonymous_socket_is_not_wrapped(engine: Engine) -> None:
    """Only the headers of its accept message are edited."""
    given: list[Receive] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given.append(receive)
        assert scope[SCOPE_KEY].user_id is None

    socket = Socket(engine, app, None)
    await socket.served()
    assert given == [socket.incoming.get]


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
async def test_a_handshake_is_a_write_whatever_method_the_server_names(
    engine: Engine, method: str
) -> None:
    """The scope of a WebSocket has no method by the specification; some servers add one,
    and no header says that it is a handshake (HTTP/2)."""
    issued = await engine.login()
    headers = [(b"sec-fetch-site", b"cross-site"), cookie_header(issued.session_token)]
    scope = {**socket_scope(headers=headers), "method": method}
    answer = await serve(SessionAuthMiddleware(listening, engine.sessions), scope)
    assert [m["code"] for m in answer.messages] == [1008]
