"""The cookie jars of test clients: what Set-Cookie puts in and takes out.

Rule 1. A cookie enters a jar the way a response's would, with the same name, domain, path
and attributes. So a rotation replaces it and a logout removes it.
Rule 2. A cookie that the client would never send is refused with the reason at once, not
found out by a 401 three lines later. The client itself is never changed to make it fit.
Rule 3. Clients are known by how they keep cookies: no framework is imported.

The tokens of a session in a test client's jar, in whichever cookies they travel.

Rule 1. What goes in is what the middleware itself would send, over what is in the jar: its
own writer makes the lines. So a cookie in pieces leaves no old piece behind.
Rule 2. What comes out is what the middleware itself would read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from email.message import Message
from http.cookiejar import CookieJar
from http.cookies import Morsel, SimpleCookie
from inspect import iscoroutinefunction
from typing import Any, Protocol, cast
from urllib.request import Request

from handstamp.config import Cookies
from handstamp.core.cookies import CookieTransport, CookieWriter
from handstamp.core.models import Issued
from handstamp.errors import ConfigError
from handstamp.supabase.cookies import CookieSession

Pairs = list[tuple[str, str]]


class Jar(Protocol):
    """Where one test client keeps its cookies."""

    def check(self, cookies: Cookies) -> None:
        """Raise :class:`ConfigError` where the client would never send them."""
        ...

    def put(self, set_cookie: Iterable[str]) -> None:
        """Take the values of Set-Cookie headers; what has no age left goes."""
        ...

    def held(self) -> Pairs:
        """Every cookie in it: name and value, as they would be sent."""
        ...


def jar_of(client: Any) -> Jar:
    """The jar of a test client. Raises :class:`ConfigError` for an unknown kind."""
    if isinstance(getattr(client, "cookie_jar", None), CookieJar):
        return _Unconditional(client)
    if isinstance(getattr(client, "cookiejar", None), CookieJar):
        return _Strict(client.cookiejar, _webtest_url(client), _WEBTEST)
    if isinstance(getattr(client, "cookies", None), SimpleCookie):
        return _Simple(client.cookies)
    if isinstance(getattr(getattr(client, "cookies", None), "jar", None), CookieJar):
        return _Strict(client.cookies.jar, str(client.base_url), _HTTPX)
    if hasattr(client, "set_cookie") and hasattr(client, "get_cookie"):
        return _Werkzeug(client)
    if hasattr(client, "_default_headers"):
        return _Header(client)
    raise ConfigError(
        f"{type(client).__name__} is no test client that handstamp knows, or it keeps no "
        "cookies"
    )


def is_async(client: object) -> bool:
    """Whether this client's requests are awaited."""
    # Both, for Django 4.2 has a plain get, and Quart a plain request.
    methods = (getattr(type(client), name, None) for name in ("get", "request"))
    return any(map(iscoroutinefunction, methods))


_HTTPX = "make the client with base_url='https://testserver.local'"
_WEBTEST = "make the client with extra_environ={'wsgi.url_scheme': 'https'}"


class _Strict:
    """A jar that judges like a browser: httpx, Starlette, FastAPI, Litestar, WebTest."""

    def __init__(self, jar: CookieJar, url: str, remedy: str) -> None:
        self._jar = jar
        self._url = url
        self._remedy = remedy

    def check(self, cookies: Cookies) -> None:
        if "://" not in self._url:
            raise ConfigError(f"this client is for no host yet: {self._remedy}")
        if cookies.secure and not self._url.startswith("https:"):
            raise ConfigError(
                f"this client speaks {self._url} and would never send Secure cookies: "
                f"{self._remedy}, or wrap the application with cookies=Cookies.insecure()"
            )
        trial = CookieJar()
        _respond(trial, self._url, [CookieWriter(cookies).session("x", None).decode()])
        request = Request(self._url.rstrip("/") + cookies.path)  # noqa: S310 - not opened
        trial.add_cookie_header(request)
        if not request.has_header("Cookie"):
            raise ConfigError(_outside(self._url, cookies))

    def put(self, set_cookie: Iterable[str]) -> None:
        _respond(self._jar, self._url, set_cookie)

    def held(self) -> Pairs:
        return _pairs(self._jar)


class _Unconditional:
    """Quart's: it sends whatever it holds, to any address."""

    def __init__(self, client: Any) -> None:
        self._jar: CookieJar = client.cookie_jar
        self._host = client.app.config.get("SERVER_NAME") or "localhost"

    def check(self, cookies: Cookies) -> None:
        _check_host(self._host, cookies)

    def put(self, set_cookie: Iterable[str]) -> None:
        _respond(self._jar, f"http://{self._host}/", set_cookie)

    def held(self) -> Pairs:
        return _pairs(self._jar)


class _Simple:
    """Django's, which knows names only."""

    def __init__(self, jar: SimpleCookie) -> None:
        self._jar = jar

    def check(self, cookies: Cookies) -> None:
        """It sends whatever it holds."""

    def put(self, set_cookie: Iterable[str]) -> None:
        _load(self._jar, set_cookie)

    def held(self) -> Pairs:
        return _crumbs(self._jar)


class _Werkzeug:
    """Flask's, which goes by domain and path."""

    def __init__(self, client: Any) -> None:
        self._client = client
        config = getattr(client.application, "config", {})
        self._host = (config.get("SERVER_NAME") or "localhost").partition(":")[0]

    def check(self, cookies: Cookies) -> None:
        _check_host(self._host, cookies)

    def put(self, set_cookie: Iterable[str]) -> None:
        for morsel in map(_morsel, set_cookie):
            domain = (morsel["domain"] or self._host).removeprefix(".")
            place = {"domain": domain, "path": morsel["path"] or "/"}
            if _is_gone(morsel):
                self._client.delete_cookie(morsel.key, **place)
                continue
            self._client.set_cookie(
                morsel.key,
                morsel.coded_value,
                origin_only=not morsel["domain"],
                **place,
            )

    def held(self) -> Pairs:
        return [(c.key, c.value) for c in (self._client._cookies or {}).values()]


class _Header:
    """Falcon's clients keep headers only: theirs is a Cookie header, never replaced."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def check(self, cookies: Cookies) -> None:
        """It sends whatever it holds."""

    def put(self, set_cookie: Iterable[str]) -> None:
        jar = self._read()
        _load(jar, set_cookie)
        kept = {k: v for k, v in self._headers().items() if k.lower() != "cookie"}
        pairs = "; ".join(f"{name}={value}" for name, value in _crumbs(jar))
        self._client._default_headers = {**kept, "Cookie": pairs} if pairs else kept

    def held(self) -> Pairs:
        return _crumbs(self._read())

    def _headers(self) -> dict[str, str]:
        return dict(self._client._default_headers or {})

    def _read(self) -> SimpleCookie:
        sent = (v for k, v in self._headers().items() if k.lower() == "cookie")
        return SimpleCookie(next(sent, ""))


def _check_host(host: str, cookies: Cookies) -> None:
    domain = (cookies.domain or host).removeprefix(".")
    name = host.partition(":")[0]
    if name != domain and not name.endswith(f".{domain}"):
        raise ConfigError(_outside(host, cookies))


def _outside(where: str, cookies: Cookies) -> str:
    return (
        f"this client speaks to {where}, which is outside of the cookies' domain "
        f"{cookies.domain!r}: let it speak to a host of that domain"
    )


def _morsel(set_cookie: str) -> Morsel[str]:
    (morsel,) = SimpleCookie(set_cookie).values()
    return morsel


def _is_gone(morsel: Morsel[str]) -> bool:
    return str(morsel["max-age"]) == "0"


def _load(jar: SimpleCookie, set_cookie: Iterable[str]) -> None:
    """Each as a new morsel: `load` would leave it the attributes of the one before."""
    for morsel in map(_morsel, set_cookie):
        jar.pop(morsel.key, None)
        if not _is_gone(morsel):
            jar[morsel.key] = morsel


def _crumbs(jar: SimpleCookie) -> Pairs:
    return [(morsel.key, morsel.coded_value) for morsel in jar.values()]


class _Response:
    """As much of a response as a jar looks at."""

    def __init__(self, set_cookie: Iterable[str]) -> None:
        self._message = Message()
        for text in set_cookie:
            self._message["Set-Cookie"] = text

    def info(self) -> Message:
        return self._message


def _respond(jar: CookieJar, url: str, set_cookie: Iterable[str]) -> None:
    request = Request(url)  # noqa: S310 - nothing is opened
    jar.extract_cookies(_Response(set_cookie), request)  # type: ignore[arg-type]


def _pairs(jar: CookieJar) -> Pairs:
    return [(cookie.name, cookie.value or "") for cookie in jar]


def _webtest_url(client: Any) -> str:
    environ = client.extra_environ
    scheme = environ.get("wsgi.url_scheme", "http")
    return f"{scheme}://{environ.get('HTTP_HOST', 'localhost')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What a jar holds of one session: both tokens, and the cookies they are in.

    ``refresh_token`` is None where the table has none.
    """

    session_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    cookies: Mapping[str, str] = field(repr=False)


def check(client: object, cookie_transport: CookieTransport) -> None:
    """Raise :class:`ConfigError` where this client would never send such cookies."""
    jar_of(client).check(cookie_transport.cookies)


def give(client: object, issued: Issued, cookie_transport: CookieTransport) -> None:
    """Put the tokens into the jar, as the response to a sign-in would."""
    jar = jar_of(client)
    _put(jar, cookie_transport.writer.deliver(issued, _came(jar, cookie_transport)))


def copy_to(client: object, carried: Carried, cookie_transport: CookieTransport) -> None:
    """Put the very same cookies into the jar of another client, in place of its own.

    Raises :class:`ConfigError` where it would never send them.
    """
    jar = jar_of(client)
    jar.check(cookie_transport.cookies)
    _put(jar, cookie_transport.writer.clear(_came(jar, cookie_transport)))
    _put(jar, (_line(*pair, cookie_transport.cookies) for pair in carried.cookies.items()))


def carried_by(client: object, cookie_transport: CookieTransport) -> Carried | None:
    """What this client would be known by; None where it holds no session."""
    pairs = jar_of(client).held()
    credentials = cookie_transport.reader.read(_headers(pairs), bearer=False)
    ours = {
        name: value
        for name, value in pairs
        if name.encode() in cookie_transport.writer.names
    }
    if not credentials.session:
        return None
    if credentials.claims:  # a cookie with an inside
        claim = cast("CookieSession", credentials.claims[0])
        session_token, refresh_token = claim.access_token, claim.refresh_token or None
    else:
        session_token = credentials.session[0].decode("ascii")
        refresh = (text.decode("ascii") for text in credentials.refresh)
        refresh_token = next(refresh, None)
    return Carried(session_token=session_token, refresh_token=refresh_token, cookies=ours)


def _put(jar: Jar, lines: Iterable[bytes]) -> None:
    jar.put([line.decode("ascii") for line in lines])


def _came(jar: Jar, cookie_transport: CookieTransport) -> Mapping[str, str | None]:
    return cookie_transport.reader.came(_headers(jar.held()))


def _headers(pairs: Pairs) -> list[tuple[bytes, bytes]]:
    text = "; ".join(f"{name}={value}" for name, value in pairs)
    return [(b"cookie", text.encode("latin-1", "replace"))]


def _line(name: str, value: str, cookies: Cookies) -> bytes:
    """One cookie as it was, byte for byte: a thief copies and reads nothing."""
    alone = replace(cookies, session_name=name, refresh_name=f"{name}-")
    return CookieWriter(alone).session(value, None)
