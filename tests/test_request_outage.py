"""What a request gets while the database does not answer."""

from __future__ import annotations

from typing import Any

import pytest

from handstamp._connections import Scope
from handstamp.asgi import SCOPE_KEY, SessionAuthMiddleware
from handstamp.errors import ConfigError
from tests.support.asgi import cookie_header, get, http_scope, responding, serve
from tests.support.engines import Engine, running


async def lost(engine: Engine) -> tuple[bytes, bytes]:
    """The cookies of a session that has to be read, while nothing can be."""
    issued = await engine.login()
    await engine.expire()
    engine.store.down = True
    return cookie_header(issued.session_token, issued.refresh_token)


async def show_user(scope: Scope, receive: Any, send: Any) -> None:
    """An application that reads the user."""
    body = repr(scope[SCOPE_KEY].user_id).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def log_out(scope: Scope, receive: Any, send: Any) -> None:
    """An application that signs out."""
    await scope[SCOPE_KEY].logout()


async def test_refuse_answers_before_the_application() -> None:
    """503 with Retry-After, also where the application would not read the session."""
    async with running() as engine:
        cookies = await lost(engine)
        app = SessionAuthMiddleware(responding(), engine.sessions, outage="refuse")
        answer = await get(app, "/", cookies)
        assert (answer.status, answer.one(b"retry-after")) == (503, b"1")
        assert answer.all(b"set-cookie") == []
        assert (await get(app)).status == 200  # a request without a cookie is not concerned


async def test_anonymous_is_signed_out_during_the_outage() -> None:
    """The application sees an anonymous request, and the cookies are not changed."""
    async with running() as engine:
        cookies = await lost(engine)
        app = SessionAuthMiddleware(show_user, engine.sessions, outage="anonymous")
        answer = await get(app, "/", cookies)
        assert (answer.status, answer.body) == (200, b"None")
        assert answer.all(b"set-cookie") == []
        engine.store.down = False
        assert (await get(app, "/", cookies)).body == b"'alice'"


async def test_anonymous_cannot_log_out() -> None:
    """The session would live on: 503, and the cookies stay."""
    async with running() as engine:
        cookies = await lost(engine)
        app = SessionAuthMiddleware(log_out, engine.sessions, outage="anonymous")
        scope = http_scope("/logout", headers=(cookies,), method="POST")
        answer = await serve(app, scope)
        assert (answer.status, answer.all(b"set-cookie")) == (503, [])


def test_another_policy_is_refused() -> None:
    """With the three that there are."""
    engine = Engine()
    with pytest.raises(ConfigError, match="anonymous"):
        SessionAuthMiddleware(responding(), engine.sessions, outage="stale")
