"""Two frameworks in one deployment: Django and FastAPI on one table and one cookie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.examples.serving import Example, Server, serving, sign_in, until

PAIRS = [
    (Example("django"), Example("fastapi")),
    (Example("fastapi"), Example("django")),
    (Example("django", "wsgi"), Example("fastapi")),
    (Example("fastapi"), Example("django", "wsgi")),
]


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}-then-{pair[1]}")
def pair(
    request: pytest.FixtureRequest, seeded_copy: str, tmp_path: Path
) -> Iterator[tuple[Server, Server]]:
    """Two servers on one database, with one secret."""
    settings = {"HANDSTAMP_INSECURE_COOKIES": "1"}
    here, there = request.param
    with (
        serving(here, seeded_copy, tmp_path / "here", **settings) as one,
        serving(there, seeded_copy, tmp_path / "there", **settings) as other,
    ):
        yield one, other
        assert one.leaks() == other.leaks() == []


def same_cookies(client: httpx.Client, cookies: dict[str, str]) -> None:
    """Give a client these cookies and no others."""
    client.cookies.clear()
    client.cookies.update(cookies)


def is_refused(client: httpx.Client) -> bool:
    """Whether this client is nobody."""
    return client.get("/me").status_code == 401


def test_a_sign_in_at_one_is_known_at_the_other(pair: tuple[Server, Server]) -> None:
    """The same user, the same session, from the same cookies; and so is a sign-out."""
    with pair[0].client() as here, pair[1].client() as there:
        sign_in(here)
        same_cookies(there, dict(here.cookies))
        assert there.get("/me").json() == here.get("/me").json()
        assert there.get("/sessions").json()[0]["current"] is True
        assert there.post("/logout").status_code == 204
        until(lambda: is_refused(here), "the sign-out to be heard")


def test_a_session_revoked_at_one_is_refused_at_the_other(
    pair: tuple[Server, Server],
) -> None:
    """From another device, at the other server; the first has it in its cache."""
    with pair[0].client() as phone, pair[1].client() as laptop:
        sign_in(phone)
        sign_in(laptop)
        phones = phone.get("/me").json()["session_id"]
        assert laptop.post(f"/sessions/{phones}/revoke").status_code == 204
        until(lambda: is_refused(phone), "the revocation to be heard")
        assert laptop.get("/me").status_code == 200


def test_a_pair_rotated_at_one_is_honoured_at_the_other(
    pair: tuple[Server, Server],
) -> None:
    """The successor is the same, whoever derives it, and both know the session by it."""
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
