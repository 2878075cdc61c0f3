"""Supabase's cookie as no browser sends it: anonymous or refused, never a 5xx."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import Callable

import httpx
import jwt
import pytest

from handstamp.supabase.cookies import encode_session
from tests.examples.servers import EXAMPLES, SECRET, Example, Server, each, sign_in
from tests.examples.test_bad_input_over_the_wire import exchange

ALIEN = "the secret of another project: 32 bytes and more"


@pytest.fixture(params=each([e for e in EXAMPLES if e.shape == "supabase"]))
def example(request: pytest.FixtureRequest) -> Example:
    """Each example that reads this cookie, in turn."""
    return request.param


Held = dict[str, object]
Forge = Callable[[Held], object]
"""What a genuine cookie holds -> what a forged one holds."""


def held_by(value: str) -> Held:
    """The decoded value of a cookie."""
    held: Held = json.loads(urlsafe_b64decode(value.removeprefix("base64-") + "==="))
    return held


def signed_anew(held: Held, key: str, algorithm: str = "HS256", **claims: object) -> Held:
    """The same with an access token of another key or other claims."""
    genuine = jwt.decode(str(held["access_token"]), options={"verify_signature": False})
    made = jwt.encode({**genuine, **claims}, key, algorithm)
    return {**held, "access_token": made}


def flipped(held: Held) -> Held:
    """The same with one bit of the signature turned."""
    head, _, signature = str(held["access_token"]).rpartition(".")
    other = "A" if signature[0] != "A" else "B"
    return {**held, "access_token": f"{head}.{other}{signature[1:]}"}


FORGED: dict[str, Forge] = {
    "another key": lambda held: signed_anew(held, ALIEN),
    "another key, long expired": lambda held: signed_anew(held, ALIEN, exp=1),
    "no algorithm": lambda held: signed_anew(held, "", "none"),
    "a bit turned": flipped,
    "no session": lambda held: signed_anew(held, SECRET, session_id=None),
    "a session that there is not": lambda held: signed_anew(
        held, SECRET, session_id="018f3c1e-6d2b-7c44-9a51-0f6e2d9b7a10"
    ),
    "a session that is no id": lambda held: signed_anew(
        held, SECRET, session_id="'; drop table auth.sessions; --"
    ),
    "another user": lambda held: signed_anew(
        held, SECRET, sub="018f3c1e-6d2b-7c44-9a51-0f6e2d9b7a10"
    ),
    "expired, with a made-up refresh token": lambda held: {
        **signed_anew(held, SECRET, exp=1),
        "refresh_token": "abcdefghijkl",
    },
    "expired, without a refresh token": lambda held: {
        **signed_anew(held, SECRET, exp=1),
        "refresh_token": "",
    },
    "only a refresh token": lambda held: {**held, "access_token": ""},
    "tokens that are no texts": lambda held: {**held, "access_token": [1], "user": 2},
    "no object": lambda held: [held],
    "a number": lambda held: 7,
    "deep": lambda held: json.loads("[" * 500 + "]" * 500),
    "NUL": lambda held: {**held, "access_token": "\0", "refresh_token": "\0"},
    "half a surrogate pair": lambda held: {**held, "access_token": "\ud800"},
}

BAD: dict[str, Callable[[bytes], list[bytes]]] = {
    "nothing": lambda value: [b"sb-127-auth-token="],
    "no name": lambda value: [b"=" + value],
    "another project": lambda value: [b"sb-128-auth-token=" + value],
    "name in capitals": lambda value: [b"SB-127-AUTH-TOKEN=" + value],
    "quoted": lambda value: [b'sb-127-auth-token="' + value + b'"'],
    "cut off": lambda value: [b"sb-127-auth-token=" + value[:-1]],
    "first piece missing": lambda value: [b"sb-127-auth-token.1=" + value],
    "pieces in capitals": lambda value: [b"sb-127-auth-token.0=" + value.upper()],
    "hole in the middle": lambda value: [
        b"sb-127-auth-token.0=" + value[:9] + b"; sb-127-auth-token.2=" + value[9:]
    ],
    "many pieces": lambda value: [
        b"; ".join(b"sb-127-auth-token.%d=A" % n for n in range(500))
    ],
    "no base64": lambda value: [b"sb-127-auth-token=base64-\xff\xfe%%%"],
    "no JSON": lambda value: [b"sb-127-auth-token={"],
    "NaN": lambda value: [b'sb-127-auth-token={"expires_at":NaN}'],
}
GOOD: dict[str, Callable[[bytes], list[bytes]]] = {
    "as it came": lambda value: [b"sb-127-auth-token=" + value],
    "in two pieces": lambda value: [
        b"sb-127-auth-token.0=" + value[:99] + b"; sb-127-auth-token.1=" + value[99:]
    ],
    "stray one first": lambda value: [
        b"sb-127-auth-token=x; sb-127-auth-token=" + value + b"; a=b"
    ],
    "percent-encoded": lambda value: [b"sb-127-auth-token=" + value.replace(b"-", b"%2D")],
}


def value_of(client: httpx.Client) -> str:
    """The client's cookie."""
    return str(client.cookies["sb-127-auth-token"])


@pytest.mark.parametrize("name", FORGED)
def test_forged_supabase_cookies_are_anonymous(server: Server, name: str) -> None:
    """A well-formed cookie with tokens that are not genuine is a 401 without a cookie,
    and takes nothing from the session that it was made from."""
    with server.client() as client, server.client() as thief:
        sign_in(client)
        forged = FORGED[name](held_by(value_of(client)))
        text = encode_session(forged)  # type: ignore[arg-type]
        response = thief.get("/me", headers={"Cookie": f"sb-127-auth-token={text}"})
        assert (response.status_code, dict(thief.cookies)) == (401, {})
        assert client.get("/me").status_code == 200


@pytest.mark.parametrize("name", BAD)
def test_broken_supabase_cookies_are_anonymous(server: Server, name: str) -> None:
    """What is no session is none, byte for byte, and no page fails over it."""
    with server.client() as client:
        sign_in(client)
        cookies = BAD[name](value_of(client).encode())
        assert exchange(server, cookies) == 401
        assert exchange(server, cookies, b"/public") == 200
        assert client.get("/me").status_code == 200


@pytest.mark.parametrize("name", GOOD)
def test_unusual_but_sound_supabase_cookies_are_honoured(server: Server, name: str) -> None:
    """Pieces, escapes and other cookies in the header do not matter."""
    with server.client() as client:
        sign_in(client)
        assert exchange(server, GOOD[name](value_of(client).encode())) == 200


def test_two_supabase_cookies_of_different_sessions_are_none(server: Server) -> None:
    """Nobody can tell which one the browser means, so it is anonymous."""
    with server.client() as alice, server.client() as bob:
        sign_in(alice)
        sign_in(bob, "bob")
        values = [value_of(client).encode() for client in (alice, bob)]
        both = b"; ".join(b"sb-127-auth-token=" + value for value in values)
        assert exchange(server, [both]) == 401
