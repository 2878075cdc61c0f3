"""FastAPI: typed dependencies, an OpenAPI scheme, answers in its own language."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Response, WebSocket
from starlette.middleware import Middleware

from handstamp.config import Cookies
from handstamp.core.models import Session
from handstamp.fastapi import (
    CurrentSession,
    OptionalSession,
    SessionAuth,
    SessionAuthMiddleware,
    SessionScheme,
    current_session,
    wrap,
)
from handstamp.testing import login_as, outage
from tests.support.browsers import DENIED, TestClient, browser
from tests.support.engines import Engine

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def current_user(session: CurrentSession) -> str:
    return session.user_id.upper()


def application(**options: Any) -> FastAPI:
    app = FastAPI(**options)

    @app.post("/login", status_code=204)
    async def login(auth: SessionAuth) -> None:
        await auth.login("alice")

    @app.post("/logout", status_code=204)
    async def logout(auth: SessionAuth) -> None:
        await auth.logout()

    @app.get("/me")
    async def me(session: CurrentSession) -> dict[str, str]:
        return {"user_id": session.user_id}

    @app.get("/sync-me")
    def sync_me(session: CurrentSession) -> dict[str, str]:
        return {"user_id": session.user_id}

    @app.get("/maybe")
    async def maybe(session: OptionalSession) -> dict[str, str | None]:
        return {"user_id": session.user_id if session else None}

    @app.get("/fresh")
    async def fresh(auth: SessionAuth) -> dict[str, str]:
        return {"user_id": auth.require(fresh_within=timedelta(minutes=5)).user_id}

    @app.get("/public")
    async def public(response: Response) -> str:
        return "hello"

    @app.websocket("/ws")
    async def ws(websocket: WebSocket, session: CurrentSession) -> None:
        await websocket.accept()
        await websocket.send_json({"user_id": session.user_id})

    return app


def outside(engine: Engine) -> Any:
    return wrap(application(), engine.sessions)


def inside(engine: Engine) -> Any:
    return application(
        middleware=[Middleware(SessionAuthMiddleware, sessions=engine.sessions)]
    )


@pytest.fixture
def engine() -> Engine:
    """One process on a store in memory; the test client's loop opens it."""
    return Engine()


@pytest.fixture(params=[outside, inside])
def client(request: pytest.FixtureRequest, engine: Engine) -> Iterator[TestClient]:
    """A browser, for both ways of putting the middleware around the application."""
    with browser(request.param(engine)) as client:
        yield client


@pytest.mark.parametrize("path", ["/me", "/sync-me"])
def test_a_session_is_a_dependency(client: TestClient, path: str) -> None:
    """401 without one."""
    assert client.get(path).status_code == 401
    client.post("/login")
    assert client.get(path).json() == {"user_id": "alice"}
    client.post("/logout")
    assert client.get(path).status_code == 401


def test_a_401_is_fastapis_own(engine: Engine) -> None:
    """JSON with a detail, and the challenge that belongs to it."""
    with browser(outside(engine)) as client:
        response = client.get("/me")
    assert response.json() == {"detail": "sign in first"}
    assert response.headers["www-authenticate"] == "APIKey"


def test_a_session_may_be_optional(client: TestClient, engine: Engine) -> None:
    """None without a session."""
    assert client.get("/maybe").json() == {"user_id": None}
    login_as(client, "alice", sessions=engine.sessions)
    assert client.get("/maybe").json() == {"user_id": "alice"}


@pytest.mark.parametrize("path", ["/me", "/sync-me", "/maybe", "/fresh"])
def test_p5_reading_the_session_in_an_outage_is_a_503(
    client: TestClient, engine: Engine, path: str
) -> None:
    """For the optional session too: None would be a denial."""
    login_as(client, "alice", sessions=engine.sessions)
    cookies = dict(client.cookies)
    engine.clock.advance(engine.policy.session_ttl)
    with outage(engine.sessions):
        response = client.get(path)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert "set-cookie" not in response.headers
        assert client.get("/public").status_code == 200
    assert dict(client.cookies) == cookies


def test_a_503_is_fastapis_own(engine: Engine) -> None:
    """JSON with a detail that tells nothing of the cause."""
    with browser(outside(engine)) as client:
        login_as(client, "alice", sessions=engine.sessions)
        with outage(engine.sessions):
            assert client.get("/me").json() == {"detail": "temporarily unavailable"}


def test_an_old_sign_in_is_a_401(client: TestClient, engine: Engine) -> None:
    """For a route that wants a fresh one."""
    login_as(client, "alice", sessions=engine.sessions)
    assert client.get("/fresh").status_code == 200
    engine.clock.advance(timedelta(minutes=6))
    assert client.get("/fresh").status_code == 401
    assert client.get("/me").status_code == 200


def test_a_socket_takes_the_dependency(client: TestClient, engine: Engine) -> None:
    """And is denied without a session."""
    refused = pytest.raises(DENIED)
    with refused, client.websocket_connect("wss://testserver/ws"):
        pass
    login_as(client, "alice", sessions=engine.sessions)
    with client.websocket_connect("wss://testserver/ws") as ws:
        assert ws.receive_json() == {"user_id": "alice"}


def test_the_openapi_document_knows_the_cookie(client: TestClient) -> None:
    """Routes that ask for the session carry the scheme, others do not."""
    document = client.get("/openapi.json").json()
    scheme = document["components"]["securitySchemes"]["session"]
    assert (scheme["type"], scheme["in"], scheme["name"]) == (
        "apiKey",
        "cookie",
        "__Host-session",
    )
    paths = document["paths"]
    for path in ("/me", "/maybe"):
        assert paths[path]["get"]["security"] == [{"session": []}]
    assert "security" not in paths["/public"]["get"]
    assert "parameters" not in paths["/me"]["get"]


def test_the_scheme_names_the_cookie_in_use() -> None:
    """Also with another name."""
    model: Any = SessionScheme(Cookies.insecure()).model
    assert model.name == "session"


def test_a_dependency_can_be_overridden_in_tests() -> None:
    """Without a middleware and without a database."""
    app = application()
    stand_in = Session(
        id="s", user_id="carol", created_at=NOW, expires_at=NOW, last_activity_at=None
    )
    app.dependency_overrides[current_session] = lambda: stand_in
    with browser(app) as client:
        assert client.get("/me").json() == {"user_id": "carol"}


def test_a_dependency_of_the_application_builds_on_ours(engine: Engine) -> None:
    """As in FastAPI's own tutorial."""
    app = application()

    @app.get("/user")
    async def user(name: Annotated[str, Depends(current_user)]) -> str:
        return name

    with browser(wrap(app, engine.sessions)) as client:
        assert client.get("/user").status_code == 401
        login_as(client, "alice", sessions=engine.sessions)
        assert client.get("/user").json() == "ALICE"
