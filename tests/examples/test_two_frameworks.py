"""Two frameworks in one deployment: Django and FastAPI on one table and one cookie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack

import httpx
import pytest

from tests.examples.servers import Example, Server, serving, sign_in, until

pytestmark = [pytest.mark.server, pytest.mark.slow]

Copy = Callable[[str], AbstractContextManager[str]]
DJANGO, DJANGO_WSGI, FASTAPI = (
    Example("django"),
    Example("django", "wsgi"),
    Example("fastapi"),
)
PAIRS = [
    (DJANGO, FASTAPI),
    (FASTAPI, DJANGO),
    (DJANGO_WSGI, FASTAPI),
    (FASTAPI, DJANGO_WSGI),
]


@pytest.fixture(scope="module")
def servers(
    copy_of: Copy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Example, Server]]:
    """All of them on one database, with one secret."""
    logs, settings = tmp_path_factory.mktemp("logs"), {"HANDSTAMP_INSECURE_COOKIES": "1"}
    with ExitStack() as stack:
        dsn = stack.enter_context(copy_of("ulid"))
        yield {
            one: stack.enter_context(serving(one, dsn, logs / str(one), **settings))
            for one in (DJANGO, DJANGO_WSGI, FASTAPI)
        }


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}-then-{pair[1]}")
def pair(
    request: pytest.FixtureRequest, servers: dict[Example, Server]
) -> Iterator[tuple[Server, Server]]:
    """Two of them."""
    one, other = (servers[example] for example in request.param)
    yield one, other
    assert one.leaks() == other.leaks() == []


def same_cookies(client: httpx.Client, cookies: dict[str, str]) -> None:
    """Give a client these cookies and no others."""
    client.cookies.clear()
    client.cookies.update(cookies)


def is_refused(client: httpx.Client) -> bool:
    """Whether this client is signed out."""
    return client.get("/me").status_code == 401


def test_a_sign_in_at_one_is_known_at_the_other(pair: tuple[Server, Server]) -> None:
    """The same user, the same session, from the same cookies; and so is a sign-out."""
    with pair[0].client() as here, pair[1].client() as there:
        sign_in(here)
        same_cookies(there, dict(here.cookies))
        assert there.get("/me").json() == here.get("/me").json()
        current = [s["id"] for s in there.get("/sessions").json() if s["current"]]
        assert current == [here.get("/me").json()["session_id"]]
        assert there.post("/logout").status_code == 204
        until(lambda: is_refused(here), "the sign-out to arrive")


def test_a_session_revoked_at_one_is_refused_at_the_other(
    pair: tuple[Server, Server],
) -> None:
    """From another device, at the other server; the first has it in its cache."""
    with pair[0].client() as phone, pair[1].client() as laptop:
        sign_in(phone)
        sign_in(laptop)
        phones = phone.get("/me").json()["session_id"]
        assert laptop.post(f"/sessions/{phones}/revoke").status_code == 204
        until(lambda: is_refused(phone), "the revocation to arrive")
        assert laptop.get("/me").status_code == 200


def test_a_pair_rotated_at_one_is_honoured_at_the_other(
    pair: tuple[Server, Server],
) -> None:
    """Both derive the same successor, and both accept it."""
    with pair[0].client() as here, pair[1].client() as there:
        sign_in(here)
        session = here.get("/me").json()["session_id"]
        old = here.cookies["refresh"]
        for client in (here, there):
            client.cookies.clear()
            response = client.get("/me", headers={"Cookie": f"refresh={old}"})
            assert response.json()["session_id"] == session
        assert dict(here.cookies) == dict(there.cookies)
        assert here.cookies["refresh"] != old
        for client in (here, there):
            assert client.get("/me").json()["session_id"] == session
