"""One cookie, two readers and two writers: `@supabase/ssr` from npm, and we.

The package runs in a process of its own and asks a server of ours for tokens. Nothing of
it is imitated here; what both write is compared to the byte.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from handstamp.core.cookies import Credentials
from handstamp.supabase.cookies import (
    NO_STORE,
    SupabaseCookie,
    SupabaseCookieReader,
    SupabaseCookieWriter,
    cut,
    encode_session,
    storage_key,
)
from handstamp.supabase.tokens import read_v2
from tests.interop.auth_server import SESSION, SHORT, AuthServer, run_auth_server
from tests.interop.package_client import Missing, PackageClient, install, run_client

pytestmark = pytest.mark.npm

NAME = "sb-127-auth-token"
READER = SupabaseCookieReader(NAME)
SIZES = (0, 2500, 4500, 9000, 40_000)


@pytest.fixture(scope="module")
def package(request: pytest.FixtureRequest) -> Iterator[PackageClient]:
    """The real package, for all tests of this module."""
    assert request.config.cache is not None
    try:
        folder = install(request.config.cache.mkdir("handstamp-interop"))
    except Missing as reason:
        pytest.skip(str(reason))
    with run_client(folder) as client:
        yield client


@pytest.fixture
def auth() -> Iterator[AuthServer]:
    """A new server with one session."""
    with run_auth_server() as server:
        yield server


def make_writer(**attributes: Any) -> SupabaseCookieWriter:
    """A writer with the attributes the package has by default."""
    cookie = SupabaseCookie(
        name=NAME, **{"http_only": False, "secure": False, **attributes}
    )
    return SupabaseCookieWriter(cookie)


def as_header(cookies: dict[str, Any]) -> str:
    """A Cookie header."""
    return "; ".join(f"{name}={value}" for name, value in cookies.items())


def kept(lines: list[bytes], before: dict[str, str] | None = None) -> dict[str, str]:
    """What a browser has after these Set-Cookie lines."""
    jar = dict(before or {})
    for line in lines:
        name, _, rest = line.decode().partition("=")
        value, _, attributes = rest.partition(";")
        jar[name] = value
        if "Max-Age=0" in attributes:
            del jar[name]
    return jar


def read(cookies: dict[str, str]) -> Credentials:
    """What we read of a browser's cookies."""
    return READER.read([(b"cookie", as_header(cookies).encode())])


def lines_of(answer: dict[str, Any]) -> list[bytes]:
    """The Set-Cookie lines that the package wrote."""
    return [line.encode() for line in answer["lines"]]


def stored(cookies: dict[str, str]) -> dict[str, Any]:
    """The object in the package's own cookie, whatever its members."""
    value = cookies.get(NAME) or "".join(cookies[n] for n in sorted(cookies, key=len))
    text = value.removeprefix("base64-")
    loaded: dict[str, Any] = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return loaded


@pytest.mark.parametrize("padding", SIZES)
def test_the_package_reads_what_we_write(
    package: PackageClient, auth: AuthServer, padding: int
) -> None:
    """One cookie or many: the session is found, believed, and left as it is."""
    auth.padding = padding
    session = auth.session()
    cookies = kept(make_writer().session(session, {}))
    assert (len(cookies) > 1) == (padding > 0)
    answer = package.ask("session", auth.url, cookie=as_header(cookies))
    found = answer["data"]["session"]
    assert answer["error"] is None
    assert found["access_token"] == session["access_token"]
    assert found["refresh_token"] == session["refresh_token"]
    assert found["user"]["user_metadata"] == session["user"]["user_metadata"]
    assert (answer["lines"], auth.asked) == ([], [])


@pytest.mark.parametrize("padding", SIZES)
def test_we_read_what_the_package_writes(
    package: PackageClient, auth: AuthServer, padding: int
) -> None:
    """A session set by a client of theirs is a candidate of ours, the short way too."""
    auth.padding = padding
    tokens = auth.session()
    answer = package.ask("set", auth.url, argument=tokens)
    cookies = kept(lines_of(answer))
    assert (len(cookies) > 1) == (padding > 0)
    (found,) = read(cookies).claims
    assert found.access_token == tokens["access_token"]
    assert found.refresh_token == tokens["refresh_token"]
    assert READER.read_fast(as_header(cookies).encode()) is not None


@pytest.mark.parametrize("padding", [0, 9000])
def test_we_read_the_package_s_older_encoding(
    package: PackageClient, auth: AuthServer, padding: int
) -> None:
    """Plain JSON, percent-encoded, cut where no letter is cut."""
    auth.padding = padding
    tokens = auth.session()
    answer = package.ask("set", auth.url, argument=tokens, cookieEncoding="raw")
    (found,) = read(kept(lines_of(answer))).claims
    assert found.access_token == tokens["access_token"]


def test_we_read_a_cookie_of_tokens_only(package: PackageClient, auth: AuthServer) -> None:
    """`encode: "tokens-only"` leaves the user out."""
    tokens = auth.session()
    how = {"encode": "tokens-only"}
    answer = package.ask("set", auth.url, argument=tokens, cookies=how)
    (found,) = read(kept(lines_of(answer))).claims
    assert found.access_token == tokens["access_token"]


def test_the_package_takes_a_cookie_of_tokens_only(
    package: PackageClient, auth: AuthServer
) -> None:
    """A session we write without a user is one to it."""
    session = {k: v for k, v in auth.session().items() if k != "user"}
    cookies = kept(make_writer().session(session, {}))
    answer = package.ask("session", auth.url, cookie=as_header(cookies))
    assert answer["data"]["session"]["access_token"] == session["access_token"]


@pytest.mark.parametrize("before", SIZES)
@pytest.mark.parametrize("after", SIZES)
@pytest.mark.parametrize("domain", [None, "example.com"])
def test_a_refresh_writes_the_same_lines(
    package: PackageClient, auth: AuthServer, before: int, after: int, domain: str | None
) -> None:
    """Grown, shrunk or as large as before, with a stale piece: to the byte, in order."""
    auth.padding = before
    writer = make_writer(domain=domain)
    old = kept(writer.session(auth.session(SHORT), {}), {f"{NAME}.77": "stale"})
    auth.padding = after
    attributes = {"domain": domain} if domain else {}
    answer = package.ask(
        "session", auth.url, cookie=as_header(old), cookieOptions=attributes
    )
    assert auth.asked == ["POST /auth/v1/token"]
    new = kept(lines_of(answer), old)
    assert lines_of(answer) == list(writer.session(stored(new), read(old).received))
    (found,) = read(new).claims
    token = read_v2(found.refresh_token)
    assert token is not None
    assert (token.session_id, token.counter) == (SESSION, 1)
    assert {k.lower().encode(): v.encode() for k, v in answer["headers"].items()} == dict(
        NO_STORE
    )


def test_what_we_refreshed_is_not_refreshed_again(
    package: PackageClient, auth: AuthServer
) -> None:
    """The package takes over where we left the session, and we where it did."""
    jar = kept(make_writer().session(auth.session(SHORT), {}))
    jar = kept(lines_of(package.ask("session", auth.url, cookie=as_header(jar))), jar)
    auth.counter, auth.padding = 7, 5000
    jar = kept(make_writer().session(auth.session(), read(jar).received), jar)
    answer = package.ask("session", auth.url, cookie=as_header(jar))
    token = read_v2(answer["data"]["session"]["refresh_token"])
    assert token is not None
    assert token.counter == 7
    assert (answer["lines"], len(auth.asked)) == ([], 1)


@pytest.mark.parametrize(
    "attributes",
    [
        {"secure": True, "httpOnly": True, "sameSite": "strict", "path": "/app"},
        {"secure": True, "sameSite": "none", "domain": "example.com"},
    ],
)
def test_attributes_are_written_alike(
    package: PackageClient, auth: AuthServer, attributes: dict[str, Any]
) -> None:
    """Every option of the package's has the same text in ours."""
    ours = {"http_only": attributes.get("httpOnly", False), "secure": True}
    ours |= {"same_site": attributes["sameSite"].title()}
    ours |= {key: attributes[key] for key in ("path", "domain") if key in attributes}
    answer = package.ask("set", auth.url, argument=auth.session(), cookieOptions=attributes)
    theirs = lines_of(answer)
    assert theirs == list(make_writer(**ours).session(stored(kept(theirs)), {}))


@pytest.mark.parametrize("domain", [None, "example.com"])
@pytest.mark.parametrize("padding", [0, 9000])
def test_signing_out_removes_the_same_cookies(
    package: PackageClient, auth: AuthServer, padding: int, domain: str | None
) -> None:
    """Every piece, and what auth-js keeps beside them."""
    auth.padding = padding
    writer = make_writer(domain=domain)
    jar = {f"{NAME}-code-verifier": "x", f"{NAME}-user": "x", f"{NAME}.9": "x"}
    jar = kept(writer.session(auth.session(), {}), jar)
    attributes = {"domain": domain} if domain else {}
    answer = package.ask(
        "signOut", auth.url, cookie=as_header(jar), cookieOptions=attributes
    )
    assert answer["error"] is None
    assert sorted(lines_of(answer)) == sorted(writer.clear(read(jar).received))
    assert kept(writer.clear(read(jar).received), jar) == {}


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
def test_our_tokens_pass_the_package_s_own_check(
    package: PackageClient, auth: AuthServer, algorithm: str
) -> None:
    """Checked by WebCrypto against the key set, with the claims as they should be."""
    token = auth.mint(algorithm)
    answer = package.ask("claims", auth.url, argument=token)
    assert answer["error"] is None
    claims = answer["data"]["claims"]
    assert answer["data"]["header"] == {"alg": algorithm, "kid": algorithm, "typ": "JWT"}
    assert claims == jwt.decode(token, options={"verify_signature": False})
    assert (claims["session_id"], claims["aal"]) == (SESSION, "aal1")
    assert "GET /auth/v1/user" not in auth.asked  # nobody had to be asked about it


def test_a_token_that_was_changed_fails_both_checks(
    package: PackageClient, auth: AuthServer
) -> None:
    """So the check above is one."""
    head, payload, signature = auth.mint().split(".")
    changed = f"{head}.{payload}.{signature[:20]}{'A' * (len(signature) - 20)}"
    assert package.ask("claims", auth.url, argument=changed)["error"] is not None
    assert auth.tokens["ES256"].read(changed) is None


def test_a_token_under_the_secret_is_confirmed_by_the_server(
    package: PackageClient, auth: AuthServer
) -> None:
    """The package cannot check HS256 and asks, and we who are asked believe our own."""
    token = auth.mint("HS256")
    answer = package.ask("claims", auth.url, argument=token)
    assert answer["error"] is None
    assert auth.asked == ["GET /auth/v1/user"]


@pytest.mark.parametrize(
    "url",
    [
        "https://abcd.supabase.co",
        "https://ABCD.supabase.co/",
        "http://localhost:54321",
        "http://127.0.0.1",
        "https://auth.example.com:8443/path",
        "https://a_b-c.example",
    ],
)
def test_both_find_the_same_name(package: PackageClient, url: str) -> None:
    """The cookie's name for a project's URL."""
    assert package.ask("key", url)["data"] == storage_key(url)


FUTURE = {"expires_at": 9_999_999_999, "access_token": "a.b.c", "refresh_token": "r"}
WHOLE = encode_session({**FUTURE, "user": {"id": "x", "name": "Ž" * 1500}})
SMALL = encode_session({**FUTURE, "user": {"id": "y"}})
PIECES = list(cut(NAME, WHOLE).values())
STRAY = encode_session({**FUTURE, "user": ""}) + "A"  # six bits that make no byte
values = st.sampled_from(
    [
        *(
            *PIECES,
            SMALL,
            SMALL[:40],
            SMALL[40:],
            "",
            "base64-",
            "base64-e30",
            "null",
            "{}",
        ),
        *(json.dumps(FUTURE), '"x"', "%7B%7D", "%", "%zz", SMALL + "=", SMALL + "A"),
        *(SMALL.replace("6", "%36"), SMALL.upper(), "[1]", " " + SMALL, "x" * 4000),
        encode_session({**FUTURE, "access_token": "other"}),
        encode_session({"access_token": "a", "refresh_token": "b"}),
    ]
)
cookie_names = st.sampled_from(
    [NAME, *(f"{NAME}.{n}" for n in (0, 1, 2, "01", "00", "x")), f"{NAME}-user", "other"]
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example(cookies={NAME: SMALL, **cut(NAME, WHOLE)})
@example(cookies={NAME: "", **cut(NAME, WHOLE)})
@example(cookies={NAME: "base64-!", **cut(NAME, WHOLE)})
@example(cookies={NAME: STRAY})
@given(cookies=st.dictionaries(cookie_names, values, max_size=5))
def test_what_the_package_reads_is_a_candidate(
    package: PackageClient, cookies: dict[str, str]
) -> None:
    """Whatever the cookies are, whole, mixed up, broken or in the wrong place. It is the
    only one, unless a whole cookie and pieces came together, or a piece too many: the
    package then takes one of them, and somebody else may have set it."""
    answer = package.ask("session", "http://127.0.0.1:1", cookie=as_header(cookies))
    theirs = answer["data"]["session"]
    ours = [s.access_token for s in read(cookies).claims]
    assert not theirs or theirs["access_token"] in ours
    if f"{NAME}.0" not in cookies or (theirs and not cookies.get(NAME)):
        assert ours == ([theirs["access_token"]] if theirs else [])
