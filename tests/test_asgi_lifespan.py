"""The engine opens and closes with the server, whatever the application makes of it."""

from __future__ import annotations

import asyncio

import pytest

from handstamp._connections import ASGIApp, Message, Receive, Scope, Send
from handstamp.asgi import SessionAuthMiddleware
from tests.support.asgi import cookie_header, get, responding
from tests.support.engines import Engine


def is_open(engine: Engine) -> bool:
    return engine.sessions._loop is not None


class Server:
    """The server's side of one lifespan."""

    def __init__(self, engine: Engine, app: ASGIApp) -> None:
        self.engine = engine
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.outgoing: asyncio.Queue[Message] = asyncio.Queue()
        self.app = SessionAuthMiddleware(app, engine.sessions)
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        serving = self.app(scope, self.incoming.get, self.outgoing.put)
        self.task = asyncio.ensure_future(serving)

    async def tell(self, event: str) -> str:
        """Send an event; what is answered, without the prefix."""
        self.incoming.put_nowait({"type": f"lifespan.{event}"})
        message = await asyncio.wait_for(self.outgoing.get(), 30)
        return str(message["type"]).removeprefix("lifespan.")

    async def ended(self) -> None:
        await asyncio.wait_for(self.task, 30)


async def supporting(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def ignoring(scope: Scope, receive: Receive, send: Send) -> None:
    return


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("this app knows only http")


@pytest.mark.parametrize("app", [supporting, ignoring, refusing])
async def test_the_engine_is_open_between_startup_and_shutdown(app: ASGIApp) -> None:
    """Also around an app that does not implement the protocol, and without calling it."""
    server = Server(Engine(), app)
    assert await server.tell("startup") == "startup.complete"
    assert is_open(server.engine)
    assert await server.tell("shutdown") == "shutdown.complete"
    assert not is_open(server.engine)
    await server.ended()


@pytest.mark.parametrize("app", [supporting, ignoring, refusing])
async def test_c133_pending_activity_is_written_before_the_stop_is_confirmed(
    app: ASGIApp,
) -> None:
    """A server may kill the process right after the confirmation."""
    server = Server(Engine(), app)
    await server.tell("startup")
    issued = await server.engine.login()
    await server.engine.ask(issued)
    await server.tell("shutdown")
    assert server.engine.sessions.stats().written_touches == 1
    await server.ended()


async def test_the_engine_is_open_while_the_app_starts() -> None:
    """A startup of the application's may use it."""
    engine = Engine()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert is_open(engine)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        assert is_open(engine)
        await send({"type": "lifespan.shutdown.complete"})

    server = Server(engine, app)
    await server.tell("startup")
    await server.tell("shutdown")
    await server.ended()


async def test_a_startup_that_fails_is_the_apps_to_report() -> None:
    """Its message and its exception pass, and nothing stays open."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})
        raise ValueError

    server = Server(Engine(), app)
    assert await server.tell("startup") == "startup.failed"
    with pytest.raises(ValueError):
        await server.ended()
    assert not is_open(server.engine)


async def test_an_app_that_crashes_while_it_runs_leaves_nothing_open() -> None:
    """The server gets the exception, and pending activity is written."""
    crash = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await crash.wait()
        raise ValueError

    server = Server(Engine(), app)
    await server.tell("startup")
    await server.engine.ask(await server.engine.login())
    crash.set()
    with pytest.raises(ValueError):
        await server.ended()
    assert not is_open(server.engine)
    assert server.engine.sessions.stats().written_touches == 1


async def test_the_middleware_implements_the_lifespan_for_an_app_that_does_not() -> None:
    """What an app raises on a scope it does not know is no failed startup."""
    server = Server(Engine(), refusing)
    assert await server.tell("startup") == "startup.complete"
    await server.tell("shutdown")
    await server.ended()


async def test_c135_without_lifespan_the_first_request_opens() -> None:
    """As under a server that has none, or a test client that is not entered."""
    engine = Engine()
    app = SessionAuthMiddleware(responding(), engine.sessions)
    assert (await get(app)).status == 200
    assert not is_open(engine)  # no request needed it
    assert (await get(app, "/", cookie_header("anything"))).status == 200
    assert is_open(engine)
    await engine.sessions.close()


async def test_one_sessions_around_two_apps_closes_once() -> None:
    """Nested middleware of the same Sessions speak one lifespan."""
    engine = Engine()
    server = Server(engine, SessionAuthMiddleware(supporting, engine.sessions))
    await server.tell("startup")
    await server.tell("shutdown")
    await server.ended()
    assert not is_open(engine)


def test_c141_an_app_serves_one_loop_after_another() -> None:
    """As in a test suite that makes a loop for every test."""
    engine = Engine()

    async def life(close: bool) -> None:
        app = SessionAuthMiddleware(responding(), engine.sessions)
        issued = await engine.login()
        engine.sessions._state.cache.doubt()
        answer = await get(app, "/", cookie_header(issued.session_token))
        assert answer.status == 200
        if close:
            await engine.sessions.close()

    for close in (False, True, False):
        asyncio.run(life(close))


async def test_a_lifespan_that_its_server_dropped_ends_without_an_error() -> None:
    """Test clients of Falcon before 4.4 leave it to the garbage collector, loop and all."""
    serving = SessionAuthMiddleware(supporting, Engine().sessions)
    waiting = asyncio.Event()
    scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0"}}
    lifespan = serving(scope, waiting.wait, asyncio.Queue().put)  # type: ignore[arg-type]
    lifespan.send(None)
    await asyncio.to_thread(lifespan.close)
