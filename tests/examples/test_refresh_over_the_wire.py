"""Rotation as a browser sees it, in every example."""

from __future__ import annotations

import os
import time

import httpx

from handstamp.core.tokens import Tokens
from tests.examples.serving import Server, sign_in, until

Pair = dict[str, str]


def present(server: Server, pair: Pair) -> tuple[httpx.Response, Pair]:
    """GET /me with just these cookies; the answer, and what it sets."""
    with server.client() as client:
        response = client.get("/me", headers={"Cookie": header(pair)})
        return response, dict(client.cookies)


def header(pair: Pair) -> str:
    """These cookies as a browser sends them."""
    return "; ".join(f"{name}={value}" for name, value in pair.items())


def login(server: Server, username: str = "alice", **form: str) -> Pair:
    """The pair of a new session."""
    with server.client() as client:
        sign_in(client, username, **form)
        return dict(client.cookies)


def refresh_only(pair: Pair) -> Pair:
    """What is left when the session cookie has run out."""
    return {"refresh": pair["refresh"]}


def let_grace_pass() -> None:
    """Wait until whatever the hasty server has just issued is older than grace."""
    start, grace = time.monotonic(), 1.0  # half of its HANDSTAMP_SESSION_TTL
    until(lambda: time.monotonic() - start > 2 * grace, "grace to pass")


def test_a_client_outlives_its_session_token(hasty_server: Server) -> None:
    """Every answer is a 200, and the cookies change along the way."""
    for form in ({}, {"remember": "1"}):
        with hasty_server.client() as client:
            sign_in(client, **form)
            first = client.cookies["refresh"]
            session = client.get("/me").json()["session_id"]

            def moved(client: httpx.Client = client, first: str = first) -> bool:
                response = client.get("/me")
                assert response.status_code == 200
                return client.cookies["refresh"] != first

            until(moved, "new cookies")
            assert client.get("/me").json()["session_id"] == session


def test_a_refreshed_answer_is_not_stored_and_keeps_the_attributes(server: Server) -> None:
    """New cookies come with the same attributes, and no cache keeps them."""
    for form, aged in (({}, False), ({"remember": "1"}, True)):
        response, pair = present(server, refresh_only(login(server, **form)))
        values = response.headers.get_list("set-cookie")
        assert pair.keys() == {"session", "refresh"}
        assert [("Max-Age" in value) for value in values] == [aged, aged]
        assert all("; Path=/; HttpOnly; SameSite=Lax" in value for value in values)
        assert response.headers["cache-control"] == "private, no-store"
        assert response.headers["vary"] == "Cookie"


def test_a_page_that_never_asks_delivers_new_cookies_too(server: Server) -> None:
    """Rotation does not depend on the route, so no pair is lost on /public."""
    pair = login(server)
    with server.client() as client:
        response = client.get("/public", headers={"Cookie": header(refresh_only(pair))})
        assert response.status_code == 200
        assert client.cookies["refresh"] != pair["refresh"]
        assert client.get("/me").status_code == 200


def test_an_old_pair_gets_the_same_successor_within_grace(server: Server) -> None:
    """Tabs that refresh one after the other end up with one and the same pair."""
    pair = login(server)
    answers = [present(server, refresh_only(pair)) for _ in range(3)]
    assert [response.status_code for response, _ in answers] == [200] * 3
    assert answers[0][1].keys() == {"session", "refresh"}
    assert answers[0][1] == answers[1][1] == answers[2][1]
    response, _ = present(server, pair)
    assert response.status_code == 200
    response, _ = present(server, answers[0][1])
    assert response.status_code == 200


def test_a_lost_answer_costs_nothing_also_after_grace(hasty_server: Server) -> None:
    """While nobody has used the new pair, the old one gets it again."""
    old = login(hasty_server)
    _, lost = present(hasty_server, refresh_only(old))
    let_grace_pass()
    response, found = present(hasty_server, old)
    assert (response.status_code, found) == (200, lost)


def test_a_replayed_refresh_token_ends_the_session(hasty_server: Server) -> None:
    """Once the successor was used and grace is over, the old one is a thief's."""
    old = login(hasty_server, "bob")
    _, new = present(hasty_server, refresh_only(old))
    assert present(hasty_server, new)[0].status_code == 200
    other = login(hasty_server, "bob")

    def refused() -> bool:
        return present(hasty_server, refresh_only(old))[0].status_code == 401

    until(refused, "the replay to be noticed")
    for pair in (new, refresh_only(new), old):
        response, cookies = present(hasty_server, pair)
        assert (response.status_code, cookies) == (401, {})
    assert present(hasty_server, other)[0].status_code == 200


def test_a_forged_refresh_token_ends_nothing(hasty_server: Server) -> None:
    """A refresh token with another's session id, or of another key, is not even a replay,
    also when a genuine one of that age would be."""
    alice, bob = login(hasty_server), login(hasty_server, "bob")
    id = alice["refresh"].split(".")[0]
    alien = Tokens(["the secret of somebody else: 32 bytes and more"])
    forgeries = [
        ".".join([id, *bob["refresh"].split(".")[1:]]),
        alien.mint(id, os.urandom(64), remember=False).refresh,
    ]
    let_grace_pass()
    for forged in forgeries:
        response, cookies = present(hasty_server, {"refresh": forged})
        assert (response.status_code, cookies) == (401, {})
    for pair in (alice, bob):
        assert present(hasty_server, refresh_only(pair))[0].status_code == 200


def test_a_failed_authentication_clears_no_cookie(server: Server) -> None:
    """Its answer could arrive after another tab's sign-in and wipe it."""
    pair = login(server)
    with server.client() as client:
        client.post("/logout", headers={"Cookie": header(pair)})
    response, _ = present(server, pair)
    assert response.status_code == 401
    assert "set-cookie" not in response.headers
