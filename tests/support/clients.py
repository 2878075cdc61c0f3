"""Every supported test client, each with an application of its framework.

Each application answers `/me` with the user's id or a 401, and `/logout` with 204.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from handstamp import Sessions
from tests.support.apps import over_asgi, over_wsgi
from tests.support.browsers import TestClient

HTTPS = "https://testserver.local"
Make = Callable[[Sessions], Any]


def starlette(sessions: Sessions) -> Any:
    return TestClient(over_asgi(sessions), base_url=HTTPS)


def starlette_inside(sessions: Sessions) -> Any:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware

    from handstamp.starlette import SessionAuthMiddleware
    from tests.support.apps import ROUTES

    middleware = [Middleware(SessionAuthMiddleware, sessions=sessions)]
    return TestClient(Starlette(routes=ROUTES, middleware=middleware), base_url=HTTPS)


def fastapi(sessions: Sessions) -> Any:
    pytest.importorskip("fastapi")
    from fastapi import Depends, FastAPI
    from fastapi.responses import PlainTextResponse

    from handstamp.fastapi import current_session, session_scheme, wrap

    app = FastAPI()
    current, auth = Depends(current_session), Depends(session_scheme)

    @app.get("/me", response_class=PlainTextResponse)
    async def me(session: Any = current) -> str:
        return str(session.user_id)

    @app.get("/logout", status_code=204)
    async def logout(auth: Any = auth) -> None:
        await auth.logout()

    return TestClient(wrap(app, sessions), base_url=HTTPS)


def litestar_app(sessions: Sessions, *, plugged: bool = False) -> Any:
    litestar = pytest.importorskip("litestar")
    from handstamp.litestar import (
        CurrentSession,
        SessionAuth,
        SessionAuthPlugin,
        dependencies,
        wrap,
    )

    async def me(current_session: Any) -> str:
        return str(current_session.user_id)

    async def logout(session_auth: Any) -> None:
        await session_auth.logout()

    me.__annotations__["current_session"] = CurrentSession
    logout.__annotations__["session_auth"] = SessionAuth
    routes = [litestar.get("/me")(me), litestar.get("/logout", status_code=204)(logout)]
    if plugged:
        return litestar.Litestar(routes, plugins=[SessionAuthPlugin(sessions)])
    return wrap(litestar.Litestar(routes, dependencies=dependencies), sessions)


def litestar(sessions: Sessions) -> Any:
    app = litestar_app(sessions)
    from litestar.testing import TestClient

    return TestClient(app, base_url=HTTPS)


def litestar_plugin(sessions: Sessions) -> Any:
    app = litestar_app(sessions, plugged=True)
    from litestar.testing import TestClient

    return TestClient(app, base_url=HTTPS)


def litestar_async(sessions: Sessions) -> Any:
    app = litestar_app(sessions)
    from litestar.testing import AsyncTestClient

    return AsyncTestClient(app, base_url=HTTPS)


def flask(sessions: Sessions) -> Any:
    flask = pytest.importorskip("flask")
    from handstamp.flask import (
        SessionAuth,
        current_session,
        login_required,
        session_auth,
    )

    app = flask.Flask("tests", root_path=".")
    SessionAuth(app, sessions)

    @app.get("/me")
    @login_required
    def me() -> str:
        return str(current_session.user_id)

    @app.get("/logout")
    def logout() -> tuple[str, int]:
        session_auth.logout()
        return "", 204

    return app.test_client()


def quart(sessions: Sessions) -> Any:
    quart = pytest.importorskip("quart")
    from handstamp.quart import (
        SessionAuth,
        current_session,
        login_required,
        session_auth,
    )

    app = quart.Quart("tests", root_path=".")
    SessionAuth(app, sessions)

    @app.get("/me")
    @login_required
    async def me() -> str:
        return str(current_session.user_id)

    @app.get("/logout")
    async def logout() -> tuple[str, int]:
        await session_auth.logout()
        return "", 204

    return app.test_client()


def falcon_wsgi(sessions: Sessions) -> Any:
    pytest.importorskip("falcon")
    import falcon.testing

    from handstamp.falcon import session_auth, wrap

    class Me:
        def on_get(self, req: Any, resp: Any) -> None:
            resp.text = session_auth(req).require().user_id

    class Logout:
        def on_get(self, req: Any, resp: Any) -> None:
            session_auth(req).logout()
            resp.status = 204

    app = falcon.App()
    app.add_route("/me", Me())
    app.add_route("/logout", Logout())
    return falcon.testing.TestClient(wrap(app, sessions), headers={"Accept": "text/plain"})


def falcon_asgi_app(sessions: Sessions) -> Any:
    pytest.importorskip("falcon")
    import falcon.asgi

    from handstamp.falcon import session_auth, wrap

    class Me:
        async def on_get(self, req: Any, resp: Any) -> None:
            resp.text = session_auth(req).require().user_id

    class Logout:
        async def on_get(self, req: Any, resp: Any) -> None:
            await session_auth(req).logout()
            resp.status = 204

    app: Any = falcon.asgi.App()
    app.add_route("/me", Me())
    app.add_route("/logout", Logout())
    return wrap(app, sessions)


def falcon_asgi(sessions: Sessions) -> Any:
    app = falcon_asgi_app(sessions)
    import falcon.testing

    return falcon.testing.TestClient(app)


def falcon_conductor(sessions: Sessions) -> Any:
    app = falcon_asgi_app(sessions)
    import falcon.testing

    return falcon.testing.ASGIConductor(app)


def webtest(app: Any) -> Any:
    webtest = pytest.importorskip("webtest")
    environ = {"wsgi.url_scheme": "https", "HTTP_HOST": "app.example"}
    return webtest.TestApp(app, extra_environ=environ)


def pyramid(sessions: Sessions) -> Any:
    pytest.importorskip("pyramid")
    from pyramid.config import Configurator
    from pyramid.response import Response

    def me(request: Any) -> Any:
        return Response(request.session_auth.require().user_id)

    def logout(request: Any) -> Any:
        request.session_auth.logout()
        return Response(status=204)

    with Configurator() as config:
        config.include("handstamp.pyramid")
        config.set_session_auth(sessions)  # type: ignore[attr-defined]
        config.add_route("me", "/me")
        config.add_view(me, route_name="me")
        config.add_route("logout", "/logout")
        config.add_view(logout, route_name="logout")
        return webtest(config.make_wsgi_app())


def bottle(sessions: Sessions) -> Any:
    bottle = pytest.importorskip("bottle")
    from handstamp.bottle import SessionAuthPlugin

    app = bottle.Bottle()
    app.install(SessionAuthPlugin(sessions))

    @app.get("/me", login=True)
    def me(session: Any) -> str:
        return str(session.user_id)

    @app.get("/logout")
    def logout(auth: Any) -> Any:
        auth.logout()
        return bottle.HTTPResponse(status=204)

    return webtest(app)


def bare_wsgi(sessions: Sessions) -> Any:
    return webtest(over_wsgi(sessions))


def httpx_wsgi(sessions: Sessions) -> Any:
    transport = httpx.WSGITransport(over_wsgi(sessions))  # type: ignore[arg-type]
    return httpx.Client(transport=transport, base_url=HTTPS)


def httpx_asgi(sessions: Sessions) -> Any:
    transport = httpx.ASGITransport(over_asgi(sessions))
    return httpx.AsyncClient(transport=transport, base_url=HTTPS)


SYNC: list[Make] = [
    starlette,
    starlette_inside,
    fastapi,
    litestar,
    litestar_plugin,
    flask,
    falcon_wsgi,
    falcon_asgi,
    pyramid,
    bottle,
    bare_wsgi,
    httpx_wsgi,
]
ASYNC: list[Make] = [httpx_asgi, litestar_async, quart, falcon_conductor]


@dataclass
class Seen:
    """What a client was answered."""

    status: int
    text: str


def seen(response: Any, text: Any = None) -> Seen:
    status = getattr(response, "status_code", None) or response.status_int
    return Seen(int(status), str(text if text is not None else response.text))


def get(client: Any, path: str = "/me") -> Seen:
    if type(client).__name__ == "TestApp":
        return seen(client.get(path, status="*"))
    return seen(client.get(path))


async def aget(client: Any, path: str = "/me") -> Seen:
    response = await client.get(path)
    text = await response.get_data(as_text=True) if hasattr(response, "get_data") else None
    return seen(response, text)


class quarted:
    """Quart's client with its application served around it."""

    def __init__(self, sessions: Sessions) -> None:
        self._client = quart(sessions)
        self._served = self._client.app.test_app()

    async def __aenter__(self) -> Any:
        await self._served.__aenter__()
        return self._client

    async def __aexit__(self, *raised: object) -> None:
        await self._served.__aexit__(*raised)
