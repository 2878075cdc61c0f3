"""WebSockets under WSGI, by flask-sock on real servers: who may open one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.wsgi.serving import Server, serving

pytestmark = [pytest.mark.server, pytest.mark.slow]

SITE = "tests.wsgi.socket_site"


def gunicorn(port: int, *options: str) -> list[str]:
    """gunicorn with threads, which flask-sock asks for."""
    bind = ["--bind", f"127.0.0.1:{port}", "--threads", "8"]
    return [sys.executable, "-m", "gunicorn", f"{SITE}:app", *bind]


def werkzeug(port: int, *options: str) -> list[str]:
    """The development server of Flask."""
    return [sys.executable, "-m", SITE]


@pytest.fixture(params=[gunicorn, werkzeug])
def server(request: pytest.FixtureRequest, dsn: str, tmp_path: Path) -> Iterator[Server]:
    with serving(request.param, [], dsn, tmp_path / "server.log") as server:
        yield server


def shake(
    server: Server, client: httpx.Client, origin: str | None, **headers: str
) -> ClientConnection:
    """A handshake with the cookies of ``client``, made by a page of ``origin``."""
    sent = {f"{name}={value}" for name, value in client.cookies.items()}
    if sent:
        headers["Cookie"] = "; ".join(sent)
    url = server.url.replace("http://", "ws://") + "/ws"
    return connect(url, origin=origin, additional_headers=headers, proxy=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"]
)
def test_a_page_of_another_site_opens_no_socket_under_wsgi(
    server: Server, origin: str
) -> None:
    """The handshake is a GET, and a write: with our cookies from elsewhere it is a 403,
    cached or not."""
    with server.signed_in() as client:
        for _ in range(2):
            with pytest.raises(InvalidStatus) as refused:
                shake(server, client, origin)
            assert refused.value.response.status_code == 403
            assert "Set-Cookie" not in refused.value.response.headers
        assert client.get("/").status_code == 200
    assert "Traceback" not in server.text


def test_our_own_page_opens_its_socket_under_wsgi(server: Server) -> None:
    """And may write through it; no Origin is no browser."""
    with server.signed_in() as client, server.signed_in():
        for origin in (server.url, None):
            with shake(server, client, origin) as socket:
                assert socket.recv(timeout=20) == server.user
                socket.send("sign out everywhere")
                assert socket.recv(timeout=20) == f"ended {int(origin is not None)}"


def test_an_anonymous_socket_is_anonymous_under_wsgi(server: Server) -> None:
    """Without our cookies another site opens what anybody may open, and no more."""
    with server.client() as client, shake(server, client, "https://evil.example") as socket:
        assert socket.recv(timeout=20) == "anonymous"
