"""ASGI and WSGI give the same answer to the same request, header by header.

Two worlds alike in every byte, their tokens included: the same clock, the same entropy,
the same ids. What one middleware answers, the other answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from handstamp.asgi import SCOPE_KEY
from handstamp.asgi import SessionAuthMiddleware as AsgiMiddleware
from handstamp.blocking import call
from handstamp.config import Cookies
from handstamp.engine.answers import Issued
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

    ``headers`` may hold ``{session}`` and ``{refresh}`` of the session ``alice`` has.
    ``act`` is a method of the handle and its arguments, or an attribute; None: nothing.
    """

    name: str
    headers: Mapping[str, str] = field(default_factory=dict)
    act: tuple[str, ...] | None = ("user_id",)
    method: str = "GET"
    path: str = "/"
    prepare: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    answer: tuple[tuple[str, str], ...] = (("content-type", "text/plain"),)

    def __str__(self) -> str:
        return self.name


BOTH = {"cookie": "theme=dark; __Host-session={session}; __Host-refresh={refresh}"}
SESSION = {"cookie": "__Host-session={session}"}
REFRESH = {"cookie": "__Host-refresh={refresh}"}
FORGED = {"cookie": "__Host-session=" + "A" * 80}
CROSS = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
PUBLIC = (("cache-control", "public, max-age=3600"), ("vary", "Accept"))
CASES = [
    Case("anonymous"),
    Case("anonymous, never asked", act=None),
    Case("anonymous, required", act=("require",)),
    Case("another's cookies", {"cookie": "theme=dark"}, act=None),
    Case("cached", BOTH),
    Case("cached, never asked", BOTH, act=None),
    Case("cached, HEAD", BOTH, method="HEAD"),
    Case("cached, POST", BOTH, method="POST"),
    Case("cached, OPTIONS", BOTH, method="OPTIONS"),
    Case("cached, a method in small letters", BOTH, method="get"),
    Case("cached, PURGE of another site", {**BOTH, **CROSS}, method="PURGE"),
    Case("cached, varies already", BOTH, answer=PUBLIC),
    Case("cached, varies on everything", BOTH, answer=(("vary", "*"),)),
    Case("cached, sets our cookie", BOTH, answer=(("set-cookie", "__Host-session=x"),)),
    Case("uncached", SESSION, prepare="forget"),
    Case("expired", BOTH, prepare="expire"),
    Case("expired, public", BOTH, prepare="expire", answer=PUBLIC),
    Case("expired, never asked", BOTH, prepare="expire", act=None),
    Case("expired, POST", BOTH, prepare="expire", method="POST"),
    Case("expired, HEAD", BOTH, prepare="expire", method="HEAD"),
    Case("expired, session alone", SESSION, prepare="expire"),
    Case("refresh alone", REFRESH, prepare="expire"),
    Case("expired, passive", {**BOTH, "x-passive-request": "1"}, prepare="expire"),
    Case("expired, active after all", {**BOTH, "x-passive-request": "0"}, prepare="expire"),
    Case("expired, prefetch", {**BOTH, "sec-purpose": "prefetch"}, prepare="expire"),
    Case("expired, part of another site", {**BOTH, **CROSS}, prepare="expire"),
    Case("revoked", BOTH, prepare="revoke"),
    Case("revoked, required", BOTH, prepare="revoke", act=("require",)),
    Case("forged", FORGED),
    Case("forged, never asked", FORGED, act=None),
    Case(
        "twice the same", {"cookie": "__Host-session={session}; __Host-session={session}"}
    ),
    Case("one of two", {"cookie": "__Host-session=old; __Host-session={session}"}),
    Case("swapped", {"cookie": "__Host-session={refresh}; __Host-refresh={session}"}),
    Case("in quotes", {"cookie": '__Host-session="{session}"'}),
    Case("behind no blank", {"cookie": "a=b;__Host-session={session}"}),
    Case("behind a comma", {"cookie": "a=b,__Host-session={session}"}),
    Case("another name", {"cookie": "\xa0__Host-session={session}"}),
    Case("blanks around", {"cookie": "__Host-session= {session}\t"}),
    Case("in bytes beyond ASCII", {"cookie": "__Host-session=\xff{session}"}),
    Case("huge", {"cookie": "__Host-session=" + "A" * 100_000}),
    Case("bearer, not asked for", {"authorization": "Bearer {session}"}),
    Case("bearer", {"authorization": "Bearer {session}"}, options={"bearer": True}),
    Case(
        "bearer, POST of another site",
        {"authorization": "Bearer {session}", **CROSS},
        method="POST",
        options={"bearer": True},
    ),
    Case("write of another site", {**BOTH, **CROSS}, method="POST"),
    Case("write of nobody from there", CROSS, method="POST"),
    Case("write of a sibling", {**BOTH, "sec-fetch-site": "same-site"}, method="POST"),
    Case(
        "write, allowed", {**BOTH, **CROSS}, method="POST", options={"cross_site": "allow"}
    ),
    Case(
        "write of a friend",
        {**BOTH, **CROSS},
        method="POST",
        options={"trusted_origins": ["https://evil.example"]},
    ),
    Case("excluded", BOTH, path="/open", options={"exclude": ["/open"]}),
    Case("nearly excluded", BOTH, path="/open/", options={"exclude": ["/open"]}),
    Case(
        "a passive path",
        BOTH,
        prepare="expire",
        path="/poll",
        options={"passive": ["/poll"]},
    ),
    Case("down", BOTH, prepare="down"),
    Case("down, never asked", BOTH, prepare="down", act=None),
    Case("down, required", BOTH, prepare="down", act=("require",)),
    Case("down, out", BOTH, prepare="down", act=("logout",)),
    Case("down, in", prepare="down", act=("login", "bob")),
    Case("down, refused", BOTH, prepare="down", act=None, options={"outage": "refuse"}),
    Case(
        "down, POST refused",
        BOTH,
        prepare="down",
        method="POST",
        options={"outage": "refuse"},
    ),
    Case(
        "down, HEAD refused",
        BOTH,
        prepare="down",
        method="HEAD",
        options={"outage": "refuse"},
    ),
    Case("down, as nobody", BOTH, prepare="down", options={"outage": "anonymous"}),
    Case(
        "down, nobody logs out",
        BOTH,
        ("logout",),
        prepare="down",
        options={"outage": "anonymous"},
    ),
    Case("in", act=("login", "bob"), method="POST"),
    Case("in, with a session", BOTH, act=("login", "bob"), method="POST"),
    Case("in, public", act=("login", "bob"), method="POST", answer=PUBLIC),
    Case("in, from another site", CROSS, act=("login", "bob"), method="POST"),
    Case("in, locked", act=("login", "locked"), method="POST"),
    Case("in, over http", act=("login", "bob"), options={"cookies": Cookies.insecure()}),
    Case("out", BOTH, act=("logout",), method="POST"),
    Case("out, as nobody", act=("logout",), method="POST"),
    Case("out, after a refresh", BOTH, prepare="expire", act=("logout",), method="POST"),
    Case("list", BOTH, act=("list_sessions",)),
    Case("list, as nobody", act=("list_sessions",)),
    Case("revoke", BOTH, act=("revoke", "1" * 26), method="POST"),
    Case("revoke others", BOTH, act=("revoke_others",), method="POST"),
    Case("an address", {"x-forwarded-for": "203.0.113.9"}, act=("client",)),
    Case("an agent", {"user-agent": "A\xff\x01gent"}, act=("client",)),
]


def world() -> Engine:
    """An engine that is the same in every byte whenever it is made."""
    ids = iter(f"{number:026d}" for number in range(100))
    drawn = iter(range(1, 100))
    return Engine(
        entropy=lambda size: bytes([next(drawn)]) * size, new_id=lambda: next(ids)
    )


async def prepare(engine: Engine, what: str) -> Issued:
    """A session of alice, and what happens before the request comes."""
    await engines.listening(engine)
    issued = await engine.login()
    await engine.login("alice")
    match what:
        case "forget":
            engine.sessions._parts.cache.start_over()
        case "expire":
            await engine.expire()
        case "revoke":
            await engine.sessions.revoke(issued.session.id)
        case "down":
            await engine.expire()
            engine.store.down = True
    engine.store.users["locked"] = MemoryUser(is_active=False)
    return issued


def headers(case: Case, issued: Issued) -> dict[str, str]:
    tokens = {"session": issued.session_token, "refresh": issued.refresh_token}
    return {name: value.format(**tokens) for name, value in case.headers.items()}


def over_asgi(case: Case) -> Seen:
    """What the ASGI middleware answers."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard = None
        if case.act is not None:
            heard = getattr(scope[SCOPE_KEY], case.act[0])
            heard = heard(*case.act[1:]) if callable(heard) else heard
            heard = await heard if hasattr(heard, "__await__") else heard
        answer = [(k.encode(), v.encode()) for k, v in case.answer]
        body = b"" if case.method == "HEAD" else repr(heard).encode()
        await asgi.responding(headers=answer, body=body)(scope, receive, send)

    async def run() -> Seen:
        engine = world()
        async with engine.sessions:
            issued = await prepare(engine, case.prepare)
            raw = [
                (name.encode(), value.encode("latin-1"))
                for name, value in {"host": "app.example", **headers(case, issued)}.items()
            ]
            middleware = AsgiMiddleware(app, engine.sessions, **case.options)
            scope = asgi.http_scope(case.path, method=case.method, headers=raw)
            try:
                answer = await asgi.serve(middleware, scope)
            except HandstampError as exc:
                return {"raised": repr(exc), **after(engine)}
            start = answer.start
            found = [(k.decode(), v.decode("latin-1")) for k, v in start["headers"]]
            body = b"" if case.method == "HEAD" else answer.body
            return {**shown(answer.status, found, body), **after(engine)}

    return asyncio.run(run())


def over_wsgi(case: Case) -> Seen:
    """What the WSGI middleware answers."""

    def app(environ: Any, start_response: Any) -> Any:
        heard = None
        if case.act is not None:
            heard = getattr(environ[ENVIRON_KEY], case.act[0])
            heard = heard(*case.act[1:]) if callable(heard) else heard
        start_response("200 OK", list(case.answer))
        return [] if case.method == "HEAD" else [repr(heard).encode()]

    engine = world()
    call(engine.sessions.open)
    try:
        issued = call(prepare, engine, case.prepare)
        raw = {
            "HTTP_" + name.upper().replace("-", "_"): value
            for name, value in headers(case, issued).items()
        }
        middleware = WsgiMiddleware(app, engine.sessions, **case.options)
        environ = wsgi.environ(case.path, method=case.method, **raw)
        try:
            answer = wsgi.serve(middleware, environ)
        except HandstampError as exc:
            return {"raised": repr(exc), **call(settled, engine)}
        return {
            **shown(answer.status, answer.headers, answer.body),
            **call(settled, engine),
        }
    finally:
        engine.store.down = False
        call(engine.sessions.close)


async def settled(engine: Engine) -> Seen:
    return after(engine)


def shown(status: int, found: list[tuple[str, str]], body: bytes) -> Seen:
    """An answer, without the header that says how long it is."""
    lowered = sorted((name.lower(), value) for name, value in found)
    return {
        "status": status,
        "headers": [header for header in lowered if header[0] != "content-length"],
        "body": body,
    }


def after(engine: Engine) -> Seen:
    """What the request left behind: rows, events, activity and queries."""
    return {
        "rows": engine.store.rows,
        "events": [type(event).__name__ for event in engine.events],
        "pending": engine.sessions.stats().pending_touches,
        "queries": engine.store.queries,
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_transports_give_the_same_answer(case: Case) -> None:
    """Status, every header, body; and the same rows, events and queries behind it."""
    assert over_wsgi(case) == over_asgi(case)
