"""Sends one request through the ASGI and the WSGI middleware, to compare the results.

Both have an engine of their own with the same clock, entropy and ids, so even the tokens
are equal.
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
    """One request to a prepared engine, and what the application does with it.

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


def make_engine() -> Engine:
    """A new engine that makes the same ids and tokens each time."""
    ids = iter(f"{number:026d}" for number in range(100))
    drawn = iter(range(1, 100))
    return Engine(
        entropy=lambda size: bytes([next(drawn)]) * size, new_id=lambda: next(ids)
    )


async def prepare(engine: Engine, what: str) -> dict[str, str]:
    """Create two sessions of alice and do ``what``. Returns their tokens by name."""
    await engines.listening(engine)
    issued = await engine.login()
    other = await engine.login("alice")
    await apply(engine, what, issued)
    engine.store.users["locked"] = MemoryUser(is_active=False)
    return {
        "session": issued.session_token,
        "refresh": issued.refresh_token or "",
        "other_session": other.session_token,
        "other_refresh": other.refresh_token or "",
    }


async def apply(engine: Engine, what: str, issued: Issued) -> None:
    """Do to the session what the word says."""
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
    """The response of the ASGI middleware, and its effects."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        result = None
        case.meanwhile(engine)
        if case.act is not None:
            result = getattr(scope[SCOPE_KEY], case.act[0])
            result = result(*case.act[1:]) if callable(result) else result
            result = await result if hasattr(result, "__await__") else result
        answer = [(k.encode(), v.encode()) for k, v in case.answer]
        body = b"" if case.method == "HEAD" else repr(result).encode()
        await asgi.responding(headers=answer, body=body)(scope, receive, send)

    engine = make_engine()

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
                return {"raised": repr(exc), **effects(engine, asked)}
            start = answer.start
            found = [(k.decode(), v.decode("latin-1")) for k, v in start["headers"]]
            body = b"" if case.method == "HEAD" else answer.body
            return {**response_of(answer.status, found, body), **effects(engine, asked)}

    return asyncio.run(run())


def over_wsgi(case: Case) -> Seen:
    """The response of the WSGI middleware, and its effects."""

    def app(environ: Any, start_response: Any) -> Any:
        result = None
        case.meanwhile(engine)
        if case.act is not None:
            result = getattr(environ[ENVIRON_KEY], case.act[0])
            result = result(*case.act[1:]) if callable(result) else result
        start_response("200 OK", list(case.answer))
        return [] if case.method == "HEAD" else [repr(result).encode()]

    engine = make_engine()
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
            return {"raised": repr(exc), **call(effects_on_loop, engine, asked)}
        return {
            **response_of(answer.status, answer.headers, answer.body),
            **call(effects_on_loop, engine, asked),
        }
    finally:
        engine.store.down = False
        call(engine.sessions.close)


async def effects_on_loop(engine: Engine, asked: int) -> Seen:
    return effects(engine, asked)


def response_of(status: int, found: list[tuple[str, str]], body: bytes) -> Seen:
    """A response without its Content-Length."""
    lowered = sorted((name.lower(), value) for name, value in found)
    return {
        "status": status,
        "headers": [header for header in lowered if header[0] != "content-length"],
        "body": body,
    }


def effects(engine: Engine, asked: int) -> Seen:
    """The effects of the request: rows, events, activity and its number of queries."""
    return {
        "rows": engine.store.rows,
        "events": [type(event).__name__ for event in engine.events],
        "pending": engine.sessions.stats().pending_touches,
        "queries": engine.store.queries - asked,
    }
