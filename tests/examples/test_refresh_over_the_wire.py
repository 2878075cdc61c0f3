"""Rotation as a browser sees it, in every example."""

from __future__ import annotations

import os
import time

import httpx
import pytest

from handstamp.core.tokens import Tokens
from handstamp.supabase.cookies import decode_session
from tests.examples.servers import EXAMPLES, Example, Server, due, each, sign_in, until

Pair = dict[str, str]
"""The cookies of one session: two, or the one of Supabase."""
ROTATING = [one for one in EXAMPLES if one.rotates]
# The rules of rotation are the engine's. That every framework delivers the cookies is what
# the other tests show; these wait for seconds.
one_of_each_transport = pytest.mark.parametrize(
    "example",
    each([e for e in ROTATING if e.framework in ("starlette", "flask")]),
    indirect=True,
)


@pytest.fixture(params=each(ROTATING))
def example(request: pytest.FixtureRequest) -> Example:
    """Each example whose tokens rotate, in turn."""
    return request.param


@pytest.fixture
def hasty_pair_server(hasty_server: Server) -> Server:
    """The same, where the rules are those of our pair of tokens."""
    if not hasty_server.example.pairs:
        pytest.skip("Supabase's rules for old tokens are its own: tests/stores")
    return hasty_server


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


def worth(pair: Pair) -> object:
    """What two answers with the same successor have in common: Supabase's access token
    is minted for each."""
    [session] = [decode_session(v) for v in pair.values() if "base64-" in v] or [None]
    return pair if session is None else session.refresh_token


def let_grace_pass() -> None:
    """Wait until whatever the hasty server has just issued is older than grace."""
    start, grace = time.monotonic(), 1.0  # half of its HANDSTAMP_SESSION_TTL
    until(lambda: time.monotonic() - start > 2 * grace, "grace to pass")


def test_a_client_outlives_its_session_token(hasty_server: Server) -> None:
    """Every answer is a 200, and the cookies change along the way."""
    for form in ({}, {"remember": "1"}):
        with hasty_server.client() as client:
            sign_in(client, **form)
            name = hasty_server.cookie_names[-1]
            first = client.cookies[name]
            session = client.get("/me").json()["session_id"]

            def moved(
                client: httpx.Client = client, name: str = name, first: str = first
            ) -> bool:
                response = client.get("/me")
                assert response.status_code == 200
                return client.cookies[name] != first

            until(moved, "new cookies")
            assert client.get("/me").json()["session_id"] == session


def test_a_refreshed_answer_is_not_stored_and_keeps_the_attributes(server: Server) -> None:
    """New cookies come with the same attributes, and no cache keeps them."""
    for form in ({}, {"remember": "1"}):
        response, pair = present(server, due(login(server, **form)))
        values = response.headers.get_list("set-cookie")
        assert pair.keys() == set(server.cookie_names)
        aged = bool(server.example.ages(remember=bool(form)))
        assert [("Max-Age" in value) for value in values] == [aged] * len(pair)
        assert all("; Path=/; HttpOnly; SameSite=Lax" in value for value in values)
        assert response.headers["cache-control"] == server.example.no_store
        assert response.headers["vary"] == "Cookie"


def test_a_page_that_never_asks_delivers_new_cookies_too(server: Server) -> None:
    """Rotation does not depend on the route, so no pair is lost on /public."""
    pair = login(server)
    with server.client() as client:
        response = client.get("/public", headers={"Cookie": header(due(pair))})
        assert response.status_code == 200
        assert client.cookies[server.cookie_names[-1]] not in due(pair).values()
        assert client.get("/me").status_code == 200


def test_an_old_pair_gets_the_same_successor_within_grace(server: Server) -> None:
    """Tabs that refresh one after the other end up with one and the same pair."""
    pair = login(server)
    answers = [present(server, due(pair)) for _ in range(3)]
    assert [response.status_code for response, _ in answers] == [200] * 3
    assert answers[0][1].keys() == set(server.cookie_names)
    assert worth(answers[0][1]) == worth(answers[1][1]) == worth(answers[2][1])
    assert worth(answers[0][1]) != worth(pair)
    response, _ = present(server, pair)
    assert response.status_code == 200
    response, _ = present(server, answers[0][1])
    assert response.status_code == 200


@one_of_each_transport
def test_a_lost_answer_costs_nothing_also_after_grace(hasty_server: Server) -> None:
    """Until the new pair is used, the old one gets it again."""
    old = login(hasty_server)
    _, lost = present(hasty_server, due(old))
    let_grace_pass()
    response, found = present(hasty_server, old)
    assert response.status_code == 200
    assert worth(found) == worth(lost) != worth(old)


@one_of_each_transport
def test_a_replayed_refresh_token_ends_the_session(hasty_pair_server: Server) -> None:
    """Once the successor was used and grace is over, the old one is a thief's."""
    old = login(hasty_pair_server, "bob")
    _, new = present(hasty_pair_server, due(old))
    assert present(hasty_pair_server, new)[0].status_code == 200
    other = login(hasty_pair_server, "bob")

    def refused() -> bool:
        return present(hasty_pair_server, due(old))[0].status_code == 401

    until(refused, "the replay to be noticed")
    for pair in (new, due(new), old):
        response, cookies = present(hasty_pair_server, pair)
        assert (response.status_code, cookies) == (401, {})
    assert present(hasty_pair_server, other)[0].status_code == 200


@one_of_each_transport
def test_a_forged_refresh_token_ends_nothing(hasty_pair_server: Server) -> None:
    """A refresh token with another's session id, or of another key, is not even a replay,
    also when a genuine one of that age would be."""
    alice, bob = login(hasty_pair_server), login(hasty_pair_server, "bob")
    id = alice["refresh"].split(".")[0]
    alien = Tokens(["another secret, not that of the server: 32 bytes"])
    forgeries = [
        ".".join([id, *bob["refresh"].split(".")[1:]]),
        alien.mint(id, os.urandom(64), remember=False).refresh,
    ]
    let_grace_pass()
    for forged in forgeries:
        response, cookies = present(hasty_pair_server, {"refresh": forged})
        assert (response.status_code, cookies) == (401, {})
    for pair in (alice, bob):
        assert present(hasty_pair_server, due(pair))[0].status_code == 200
