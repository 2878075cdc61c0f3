"""Every example over the shapes that the whole contract suite runs over in two only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.examples.servers import SMOKED, Example, Server, each, sign_in, until

pytestmark = [pytest.mark.server, pytest.mark.slow]

Start = Callable[..., Server]


@pytest.fixture(params=each(SMOKED))
def example(request: pytest.FixtureRequest) -> Example:
    """Each of the others, in turn."""
    return request.param


@pytest.fixture(params=each([one for one in SMOKED if one.transport == "asgi"]))
def socket_example(request: pytest.FixtureRequest) -> Example:
    """Each of the others that has WebSockets."""
    return request.param


@pytest.fixture
def socket_server(start: Start, socket_example: Example) -> Iterator[Server]:
    """It on plain http; its log must stay clean."""
    server = start(socket_example, HANDSTAMP_INSECURE_COOKIES="1")
    yield server
    assert server.leaks() == []


def test_the_example_works_over_this_shape(server: Server) -> None:
    """Signed in twice, listed, one revoked, the others revoked, signed out."""
    with server.client() as phone, server.client() as laptop, server.client() as bob:
        laptops = whoever_signs_in(laptop)
        assert laptop.post("/sessions/revoke-others").status_code == 204  # of other tests
        phones = whoever_signs_in(phone)
        sign_in(bob, "bob")
        assert phones["user_id"] == laptops["user_id"]
        assert listed(laptop) == {phones["session_id"]: False, laptops["session_id"]: True}

        path = f"/sessions/{phones['session_id']}/revoke"
        assert bob.post(path).status_code == 404
        assert laptop.post(path).status_code == 204
        assert (phone.get("/me").status_code, laptop.post(path).status_code) == (401, 404)

        whoever_signs_in(phone)
        assert laptop.post("/sessions/revoke-others").status_code == 204
        statuses = [client.get("/me").status_code for client in (phone, laptop, bob)]
        assert statuses == [401, 200, 200]
        assert laptop.post("/sessions/%00/revoke").status_code == 404

        old = httpx.Cookies(laptop.cookies)
        assert laptop.post("/logout").status_code == 204
        assert dict(laptop.cookies) == {}
        laptop.cookies = old
        assert laptop.get("/me").status_code == 401


def test_the_example_answers_strangers_over_this_shape(server: Server) -> None:
    """A wrong password, the public page, and the health of the process."""
    well = {"status": "ok", "database": "ok", "bus": "listening", "bound": "pushed"}
    with server.client() as client:
        for form in ({"username": "alice", "password": "builder"}, {"username": "eve"}):
            response = client.post("/login", data={"password": "x", **form})
            assert (response.status_code, "set-cookie" in response.headers) == (401, False)
        assert [client.get(path).status_code for path in ("/me", "/public")] == [401, 200]
        until(lambda: client.get("/healthz").json() == well, "the listener to be ready")


def test_the_examples_socket_works_over_this_shape(socket_server: Server) -> None:
    """It says whose it is, echoes, and is closed by a sign-out."""
    with socket_server.client() as client:
        user = whoever_signs_in(client)["user_id"]
        cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        address = socket_server.url.replace("http", "ws") + "/ws"
        headers = {"Cookie": cookies}
        with connect(address, additional_headers=headers, proxy=None) as websocket:
            assert json.loads(websocket.recv()) == {"user_id": user}
            websocket.send("hello")
            assert websocket.recv(timeout=20) == "hello"
            assert client.post("/logout").status_code == 204
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(timeout=20)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4401


def whoever_signs_in(client: httpx.Client) -> dict[str, str]:
    """Sign alice in; what GET /me says then."""
    response = sign_in(client)
    assert response.content == b""
    me: dict[str, str] = client.get("/me").raise_for_status().json()
    assert me["username"] == "alice"
    return me


def listed(client: httpx.Client) -> dict[str, bool]:
    """The sessions of a client's user: id to whether it is the current one."""
    lines = client.get("/sessions").raise_for_status().json()
    return {line["id"]: line["current"] for line in lines}
