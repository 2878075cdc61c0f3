"""Cookies that no browser sends, over a raw socket: anonymous or refused, never a 5xx."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from handstamp import Cookies, Sessions
from handstamp.asgi import SCOPE_KEY, SessionAuthMiddleware
from handstamp.core.tokens import Tokens
from tests.examples.servers import EXAMPLES, SECRET, Example, Server, each, sign_in

ALIEN = Tokens(["another secret, not that of the server: 32 bytes"])
STRANGER = "01HZY3J8Z8Z8Z8Z8Z8Z8Z8Z8Z8"
NOBODY = "01HZY3J8Z8Z8Z8Z8Z8Z8Z8Z8Z9"


@pytest.fixture(params=each([e for e in EXAMPLES if e.shape != "supabase"]))
def example(request: pytest.FixtureRequest) -> Example:
    """Each example whose cookies are ours, in turn."""
    return request.param


def alien_pair(session_id: str = STRANGER) -> tuple[bytes, bytes]:
    """Tokens that are well made, under a key that is not ours."""
    pair = ALIEN.mint(session_id, os.urandom(64), remember=True)
    return pair.session.encode(), pair.refresh.encode()


Header = Callable[[bytes, bytes], list[bytes]]
"""A valid pair of another session than the client's -> values of Cookie headers."""

# What must come out anonymous, whatever a valid pair looks like.
BAD: dict[str, Header] = {
    "empty header": lambda s, r: [b""],
    "empty values": lambda s, r: [b"session=; refresh="],
    "names without a value": lambda s, r: [b"session; refresh"],
    "only separators": lambda s, r: [b";;; ; ,,, =; =="],
    "nameless": lambda s, r: [b"=session=" + s],
    "quoted": lambda s, r: [b'session="' + s + b'"; refresh="' + r + b'"'],
    "inside quotes": lambda s, r: [b'a="session=' + s + b'"'],
    "percent-encoded name": lambda s, r: [b"%73ession=" + s],
    "name in capitals": lambda s, r: [b"SESSION=" + s + b"; Refresh=" + r],
    "space in the name": lambda s, r: [b"session =" + s],
    "joined by commas": lambda s, r: [b"a=b,session=" + s],
    "trailing comma": lambda s, r: [b"session=" + s + b",; refresh=" + r + b","],
    "12 KiB": lambda s, r: [b"session=" + b"A" * 12 * 1024],
    "64 KiB": lambda s, r: [b"session=" + b"A" * 64 * 1024],
    "64 KiB before": lambda s, r: [b"a=" + b"A" * 64 * 1024 + b"; session=" + s],
    "2000 tiny cookies": lambda s, r: [b"a=;" * 2000],
    "500 of our name": lambda s, r: [b"; ".join(b"session=%d" % n for n in range(500))],
    "five of our name": lambda s, r: [
        b"; ".join([*(b"session=%d" % n for n in range(4)), b"session=" + s])
    ],
    "several headers": lambda s, r: [b"session=a", b"session=b", b"refresh=c", b""],
    "latin-1": lambda s, r: [b"session=\xe9\xff; refresh=\x80"],
    "utf-8": lambda s, r: ["session=☃; refresh=ål".encode()],
    "broken utf-8": lambda s, r: [b"session=\xc3\x28\xed\xa0\x80"],
    "latin-1 space before": lambda s, r: [b"a=b;\xa0session=" + s, b"\x85session=" + s],
    "NUL": lambda s, r: [b"session=\x00; refresh=\x00"],
    "NUL within": lambda s, r: [b"session=" + s[:20] + b"\x00" + s[20:]],
    "control characters": lambda s, r: [b"session=\x01\x1f\x7f" + s],
    "tab within": lambda s, r: [b"session=" + s[:20] + b"\t" + s[20:]],
    "truncated": lambda s, r: [b"session=" + s[:-1] + b"; refresh=" + r[:-1]],
    "no signature": lambda s, r: [
        b"session=" + s.split(b".")[0] + b"; refresh=" + r.rpartition(b".")[0]
    ],
    "longer by one": lambda s, r: [b"session=" + s + b"A; refresh=" + r + b"A"],
    "another spelling": lambda s, r: [b"session=" + s + b"=; refresh=" + r + b"="],
    "swapped": lambda s, r: [b"session=" + r + b"; refresh=" + s],
    "another key": lambda s, r: [b"session=%s; refresh=%s" % alien_pair()],
    "another key for this session": lambda s, r: [
        b"refresh=" + alien_pair(r.split(b".")[0].decode())[1]
    ],
    "another session in the refresh token": lambda s, r: [
        b"refresh=" + STRANGER.encode() + r[26:]
    ],
    "other remember": lambda s, r: [b"refresh=" + r.replace(b".b.", b".r.")],
    "sql": lambda s, r: [b"session='; drop table user_sessions; --"],
    "template": lambda s, r: [b"session=${jndi:ldap://x}; refresh={{7*7}}"],
}
GOOD: dict[str, Header] = {
    "as browsers do": lambda s, r: [b"session=" + s + b"; refresh=" + r],
    "twice the same": lambda s, r: [b"session=" + s + b"; session=" + s],
    "stray one first": lambda s, r: [b"session=stray; session=" + s],
    "stray one last": lambda s, r: [b"session=" + s + b"; session=stray"],
    "spaces around": lambda s, r: [b"  session=" + s + b"  ;"],
    "odd neighbours": lambda s, r: [b'a="; session=' + s + b"; b=[{(\\054; $Version=1"],
}
IN_TWO_HEADERS: dict[str, Header] = {
    "in the second header": lambda s, r: [b"theme=dark", b"session=" + s],
    "pair in two headers": lambda s, r: [b"refresh=" + r, b"session=" + s],
}


def exchange(server: Server, cookies: list[bytes], path: bytes = b"/me") -> int | None:
    """The status of a GET with these Cookie headers, byte for byte.

    None if the server closed the connection on a request that it would not read.
    """
    lines = [b"GET %s HTTP/1.1" % path, b"Host: 127.0.0.1", b"Connection: close"]
    request = b"\r\n".join([*lines, *(b"Cookie: " + c for c in cookies), b"", b""])
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        try:
            connection.sendall(request)
            with connection.makefile("rb") as answer:
                status = answer.readline()
                answer.read()
        except ConnectionError:
            return None
    return int(status.split()[1]) if status else None


def cookie_pair_transport(client: httpx.Client) -> tuple[bytes, bytes]:
    """A client's cookies. Where the shape has no refresh cookie, one that an example of
    another shape under the same secret could have set."""
    genuine = Tokens([SECRET]).mint(NOBODY, os.urandom(64), remember=False)
    refresh = client.cookies.get("refresh", genuine.refresh)
    return client.cookies["session"].encode(), refresh.encode()


def is_no_http(cookies: list[bytes]) -> bool:
    """Whether a server may refuse these headers before any application sees them."""
    text = b"".join(cookies)
    return len(text) > 16 * 1024 or any(c in text for c in b"\x00\x01\x1f\x7f")


def test_bad_cookies_are_anonymous_or_refused(server: Server) -> None:
    """A malformed or forged cookie is a 401, or a 400 where HTTP itself is broken; the
    session it was made from stays alive, and the public page stays open."""
    wrong: dict[str, object] = {}
    with server.client() as client:
        sign_in(client)
        for name, make in BAD.items():
            cookies = make(*cookie_pair_transport(client))
            refusals = {400, 431, None} if is_no_http(cookies) else set()
            mine, public = exchange(server, cookies), exchange(server, cookies, b"/public")
            if mine not in {401} | refusals or public not in {200} | refusals:
                wrong[name] = mine, public
            elif client.get("/me").status_code != 200:
                wrong[name] = "the session has ended"
    assert wrong == {}


def test_unusual_but_sound_cookies_are_honoured(server: Server) -> None:
    """Order, repetition and foreign cookies around do not matter. HTTP/2 may split the
    header: a WSGI server joins it with a comma, which is no separator of cookies, so there
    it may come out anonymous instead."""
    two_headers = {200, 401} if server.example.transport == "wsgi" else {200}
    with server.client() as client:
        sign_in(client)
        pair = cookie_pair_transport(client)
        answers = {name: exchange(server, make(*pair)) for name, make in GOOD.items()}
        split = {exchange(server, make(*pair)) for make in IN_TWO_HEADERS.values()}
    assert answers == dict.fromkeys(GOOD, 200)
    assert split <= two_headers


def test_two_valid_cookies_of_different_sessions_are_none(server: Server) -> None:
    """Nobody can tell which one the browser means, so it is anonymous."""
    with server.client() as alice, server.client() as bob:
        sign_in(alice)
        sign_in(bob, "bob")
        ours, theirs = cookie_pair_transport(alice)[0], cookie_pair_transport(bob)[0]
        for one, two in ((ours, theirs), (theirs, ours)):
            assert exchange(server, [b"session=" + one + b"; session=" + two]) == 401
        assert exchange(server, [b"session=" + ours, b"session=" + theirs]) == 401


def test_a_token_elsewhere_is_no_credential(server: Server) -> None:
    """Neither the query nor a header nor a form carries a session."""
    with server.client() as client, server.client() as thief:
        sign_in(client)
        token = client.cookies["session"]
        headers = {"Authorization": f"Bearer {token}", "Cookie2": f"session={token}"}
        assert thief.get("/me", headers=headers).status_code == 401
        form = {"session": token}
        assert thief.post("/sessions/revoke-others", data=form).status_code == 401


def test_bad_input_leaves_no_traceback_and_no_token_in_the_log(server: Server) -> None:
    """After all of the above in a row, the log holds requests and nothing else."""
    with server.client() as client:
        sign_in(client)
        pair = cookie_pair_transport(client)
        for make in (BAD | GOOD | IN_TWO_HEADERS).values():
            exchange(server, make(*pair))
        client.post("/login", data={"username": "alice", "password": pair[0].decode()})
        client.post("/login", content=b"\xff\x00%zz&&==;", headers=FORM)
        assert client.get("/me").status_code == 200
    assert pair[0].decode() in server.tokens
    server.tokens |= {token.decode() for token in pair}
    assert server.leaks() == []
    assert "GET /me" in server.log.read_text()


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def test_what_we_never_signed_causes_no_query(dsn: str) -> None:
    """The signature check refuses a forged value before any query."""

    async def ask(scope: Any, receive: Any, send: Any) -> None:
        known = str(scope[SCOPE_KEY].is_authenticated).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": known})

    genuine = Tokens([SECRET]).mint(NOBODY, os.urandom(64), remember=False)
    pair = (genuine.session.encode(), genuine.refresh.encode())
    answers = {}
    async with Sessions(dsn, secret=SECRET) as sessions:
        site = SessionAuthMiddleware(ask, sessions, cookies=Cookies.insecure())
        transport = httpx.ASGITransport(site)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for name, make in BAD.items():
                headers = [(b"cookie", value) for value in make(*pair)]
                response = await client.get("/", headers=headers)
                answers[name] = (response.text, sessions.stats().queries)
            assert answers == dict.fromkeys(BAD, ("False", 0))
            await client.get("/", headers=[(b"cookie", b"session=" + pair[0])])
            assert sessions.stats().queries == 1
