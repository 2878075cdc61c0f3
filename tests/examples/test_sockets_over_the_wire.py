"""The WebSocket of the example contract."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.examples.servers import (
    SOCKETS,
    Example,
    Server,
    each,
    execute,
    make_due,
    sign_in,
    until,
)


@pytest.fixture(params=each(SOCKETS))
def example(request: pytest.FixtureRequest) -> Example:
    """Each example that has WebSockets, in turn."""
    return request.param


def socket(server: Server, cookies: dict[str, str], **options: Any) -> ClientConnection:
    """A WebSocket with these cookies in its handshake; use as a context manager."""
    pairs = "; ".join(f"{name}={value}" for name, value in cookies.items())
    headers = {"Cookie": pairs} if pairs else {}
    url = server.url.replace("http", "ws") + "/ws"
    return connect(url, additional_headers=headers, proxy=None, **options)


def closed(websocket: ClientConnection) -> int | None:
    """The code that the server closes with."""
    with pytest.raises(ConnectionClosed) as caught:
        websocket.recv(timeout=20)
    return caught.value.rcvd.code if caught.value.rcvd else None


def test_a_socket_says_whose_it_is_and_echoes(server: Server) -> None:
    """The first message names the user; every text comes back."""
    with server.client() as client:
        sign_in(client)
        user_id = client.get("/me").json()["user_id"]
        with socket(server, dict(client.cookies)) as websocket:
            assert json.loads(websocket.recv()) == {"user_id": user_id}
            for text in ("hello", "", "☃", "x" * 100_000):
                websocket.send(text)
                assert websocket.recv(timeout=20) == text


REVOCATIONS: dict[str, Callable[[httpx.Client, str], httpx.Response]] = {
    "revoke": lambda other, id: other.post(f"/sessions/{id}/revoke"),
    "revoke-others": lambda other, _: other.post("/sessions/revoke-others"),
}


@pytest.mark.parametrize("how", REVOCATIONS)
def test_a_revocation_closes_the_socket_with_4401(server: Server, how: str) -> None:
    """A socket that only waits is closed when another device revokes its session."""
    with server.client() as client, server.client() as other:
        sign_in(client)
        sign_in(other)
        id = client.get("/me").json()["session_id"]
        with (
            socket(server, dict(client.cookies)) as websocket,
            socket(server, dict(other.cookies)) as surviving,
        ):
            websocket.recv()
            surviving.recv()
            assert REVOCATIONS[how](other, id).status_code == 204
            assert closed(websocket) == 4401
            surviving.send("still here")
            assert surviving.recv(timeout=20) == "still here"


def test_logout_closes_the_sockets_of_the_session(server: Server) -> None:
    """Signing out leaves nothing open."""
    with server.client() as client:
        sign_in(client)
        with (
            socket(server, dict(client.cookies)) as one,
            socket(server, dict(client.cookies)) as two,
        ):
            one.recv()
            two.recv()
            assert client.post("/logout").status_code == 204
            assert (closed(one), closed(two)) == (4401, 4401)


@pytest.mark.parametrize(
    "cookies",
    [{}, {"session": "forged"}, {"refresh": "forged"}, {"sb-127-auth-token": "forged"}],
    ids=str,
)
def test_an_anonymous_handshake_is_denied(server: Server, cookies: dict[str, str]) -> None:
    """Without a session there is no socket: a 403, as servers answer a close, or the 401
    of a framework that speaks the extension for denials."""
    with pytest.raises(InvalidStatus) as denied, socket(server, cookies):
        pass
    assert denied.value.response.status_code in (401, 403)


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_a_handshake_from_another_site_is_denied(server: Server, origin: str) -> None:
    """Another site's page opens no socket with our cookies."""
    with server.client() as client:
        sign_in(client)
        cookies = dict(client.cookies)
        with pytest.raises(InvalidStatus) as denied, socket(server, cookies, origin=origin):
            pass
        assert denied.value.response.status_code == 403
        with socket(server, cookies, origin=server.url) as websocket:
            assert "user_id" in websocket.recv()


def test_a_handshake_delivers_new_cookies(server: Server) -> None:
    """A handshake that rotates carries the new cookies on its answer."""
    delivered = server.cookie_names if server.example.rotates else ()
    with server.client() as client:
        sign_in(client)
        make_due(client)
        with socket(server, dict(client.cookies)) as websocket:
            values = websocket.response.headers.get_all("set-cookie")
            pair = dict(value.split(";")[0].split("=", 1) for value in values)
            server.tokens.update(pair.values())
            assert pair.keys() == set(delivered)
            assert "user_id" in websocket.recv()
        if delivered:
            client.cookies.clear()
        client.cookies.update(pair)
        assert client.get("/me").status_code == 200


SEEN = """
    select true from user_sessions
    where session_token_hash = $1 and last_activity_at > expires_at - interval '15 minutes'
"""


def test_the_first_frame_proves_that_the_new_cookies_arrived(server: Server) -> None:
    """Its server recorded it as the first use of the new tokens, so that who still has
    the old ones is a second party."""
    if not server.example.pairs:
        pytest.skip("no refresh token of ours in the row")
    with server.client() as client:
        sign_in(client)
        make_due(client)
        with socket(server, dict(client.cookies)) as websocket:
            values = websocket.response.headers.get_all("set-cookie")
            pair = dict(value.split(";")[0].split("=", 1) for value in values)
            server.tokens.update(pair.values())
            stored = sha256(pair["session"].encode()).hexdigest()
            assert not asyncio.run(execute(server.dsn, SEEN, stored))
            websocket.send("here I am")
            until(lambda: asyncio.run(execute(server.dsn, SEEN, stored)), "the first use")


def test_a_binary_frame_ends_the_socket_quietly(server: Server) -> None:
    """What is no text is not echoed, and leaves no traceback (see the fixture)."""
    with server.client() as client:
        sign_in(client)
        with socket(server, dict(client.cookies)) as websocket:
            websocket.recv()
            websocket.send(b"\x00\xff")
            assert closed(websocket) in (1000, 1006, None)


def test_a_client_that_vanishes_leaves_no_traceback(server: Server) -> None:
    """A broken connection is an ordinary end; the server goes on."""
    with server.client() as client:
        sign_in(client)
        with socket(server, dict(client.cookies)) as websocket:
            websocket.recv()
            websocket.socket.close()
        line = '"WebSocket /ws" [accepted]'
        until(lambda: line in server.log.read_text(), "the socket to be logged")
        assert client.get("/me").status_code == 200
