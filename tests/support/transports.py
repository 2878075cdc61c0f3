"""One request to one world, through each transport: what came back and what it left.

Two worlds alike in every byte, their tokens included: the same clock, the same entropy,
the same ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from handstamp.asgi import SCOPE_KEY
from handstamp.asgi import SessionAuthMiddleware as AsgiMiddleware
from handstamp.blocking import call
from handstamp.core.models import Issued
from handstamp.errors import HandstampError
from handstamp.stores.memory import MemoryUser
from handstamp.wsgi import ENVIRON_KEY
from handstamp.wsgi import SessionAuthMiddleware as WsgiMiddleware
from tests.support import asgi, engines, wsgi
from tests.support.engines import Engine

Seen = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One request, to a world that was prepared, and what the application does with it.

    ``headers`` may hold ``{session}`` and ``{refresh}`` of the session ``alice`` has, and
    ``{other_session}`` and ``{other_refresh}`` of another one of hers. ``act`` is a method
    of the handle and its arguments, or an attribute; None: nothing. ``meanwhile`` happens
    between the middleware and that.
    """

    name: str
    headers: Mapping[str, str] = field(default_factory=dict)
    act: tuple[Any, ...] | None = ("user_id",)
    method: str = "GET"
    path: str = "/"
    prepare: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    answer: tuple[tuple[str, str], ...] = (("content-type", "text/plain"),)
    meanwhile: Callable[[Engine], None] = lambda engine: None

    def __str__(self) -> str:
        return self.name


def world() -> Engine:
    """An engine that is the same in every byte whenever it is made."""
    ids = iter(f"{number:026d}" for number in range(100))
    drawn = iter(range(1, 100))
    return Engine(
        entropy=lambda size: bytes([next(drawn)]) * size, new_id=lambda: next(ids)
    )


async def prepare(engine: Engine, what: str) -> dict[str, str]:
    """Two sessions of alice, and what happens before the request comes; their tokens."""
    await engines.listening(engine)
    issued = await engine.login()
    other = await engine.login("alice")
    await happen(engine, what, issued)
    engine.store.users["locked"] = MemoryUser(is_active=False)
    return {
        "session": issued.session_token,
        "refresh": issued.refresh_token or "",
        "other_session": other.session_token,
        "other_refresh": other.refresh_token or "",
    }


async def happen(engine: Engine, what: str, issued: Issued) -> None:
    """One of the things that happen to a session."""
    match what:
        case "forget":
            engine.sessions._state.cache.reset_after_fork()
        case "expire":
            await engine.expire()
        case "revoke":
            await engine.sessions.revoke(issued.session.id)
        case "down":
            await engine.expire()
            engine.store.down = True
        case "disable":
            engine.store.users["alice"] = MemoryUser(is_active=False)
        case "rotate" | "late" | "replay":
            await engine.expire()
            issued = await engine.refreshed(issued)
            if what == "late":
                await engine.expire()
                await engine.refreshed(issued)
            if what == "replay":
                engine.clock.advance(1)
                await engine.ask(issued)
                await engine.sessions.flush()
                engine.clock.advance(engine.policy.grace)


def headers(case: Case, tokens: Mapping[str, str]) -> dict[str, str]:
    return {name: value.format(**tokens) for name, value in case.headers.items()}


def over_asgi(case: Case) -> Seen:
    """What the ASGI middleware answers."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard = None
        case.meanwhile(engine)
        if case.act is not None:
            heard = getattr(scope[SCOPE_KEY], case.act[0])
            heard = heard(*case.act[1:]) if callable(heard) else heard
            heard = await heard if hasattr(heard, "__await__") else heard
        answer = [(k.encode(), v.encode()) for k, v in case.answer]
        body = b"" if case.method == "HEAD" else repr(heard).encode()
        await asgi.responding(headers=answer, body=body)(scope, receive, send)

    engine = world()

    async def run() -> Seen:
        async with engine.sessions:
            tokens = await prepare(engine, case.prepare)
            asked = engine.store.queries
            raw = [
                (name.encode(), value.encode("latin-1"))
                for name, value in {"host": "app.example", **headers(case, tokens)}.items()
            ]
            middleware = AsgiMiddleware(app, engine.sessions, **case.options)
            scope = asgi.http_scope(case.path, method=case.method, headers=raw)
            try:
                answer = await asgi.serve(middleware, scope)
            except HandstampError as exc:
                return {"raised": repr(exc), **after(engine, asked)}
            start = answer.start
            found = [(k.decode(), v.decode("latin-1")) for k, v in start["headers"]]
            body = b"" if case.method == "HEAD" else answer.body
            return {**shown(answer.status, found, body), **after(engine, asked)}

    return asyncio.run(run())


def over_wsgi(case: Case) -> Seen:
    """What the WSGI middleware answers."""

    def app(environ: Any, start_response: Any) -> Any:
        heard = None
        case.meanwhile(engine)
        if case.act is not None:
            heard = getattr(environ[ENVIRON_KEY], case.act[0])
            heard = heard(*case.act[1:]) if callable(heard) else heard
        start_response("200 OK", list(case.answer))
        return [] if case.method == "HEAD" else [repr(heard).encode()]

    engine = world()
    call(engine.sessions.open)
    try:
        tokens = call(prepare, engine, case.prepare)
        asked = engine.store.queries
        raw = {
            "HTTP_" + name.upper().replace("-", "_"): value
            for name, value in headers(case, tokens).items()
        }
        middleware = WsgiMiddleware(app, engine.sessions, **case.options)
        environ = wsgi.environ(case.path, method=case.method, **raw)
        try:
            answer = wsgi.serve(middleware, environ)
        except HandstampError as exc:
            return {"raised": repr(exc), **call(settled, engine, asked)}
        return {
            **shown(answer.status, answer.headers, answer.body),
            **call(settled, engine, asked),
        }
    finally:
        engine.store.down = False
        call(engine.sessions.close)


async def settled(engine: Engine, asked: int) -> Seen:
    return after(engine, asked)


def shown(status: int, found: list[tuple[str, str]], body: bytes) -> Seen:
    """An answer, without the header that says how long it is."""
    lowered = sorted((name.lower(), value) for name, value in found)
    return {
        "status": status,
        "headers": [header for header in lowered if header[0] != "content-length"],
        "body": body,
    }


def after(engine: Engine, asked: int) -> Seen:
    """What the request left behind: rows, events, activity and queries of its own."""
    return {
        "rows": engine.store.rows,
        "events": [type(event).__name__ for event in engine.events],
        "pending": engine.sessions.stats().pending_touches,
        "queries": engine.store.queries - asked,
    }
