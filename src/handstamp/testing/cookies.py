"""The session's cookies in the jar of a test client: read, set and copied.

Rule 1. A cookie gets into a jar as the cookie of a response does, with the same name,
domain, path and attributes, written by the middleware's own writer. So a rotation replaces
it, a logout removes it, and no piece of an older cookie is left.
Rule 2. What is read from a jar is what the middleware would read from a request.
Rule 3. A cookie that the client would never send is refused at once with the reason, and
not found out by a 401 later. The client itself is never changed to make it fit.
Rule 4. Clients are recognised by how they keep cookies: no framework is imported.
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
        """Raise :class:`ConfigError` if the client would never send such cookies."""
        ...

    def put(self, set_cookie: Iterable[str]) -> None:
        """Apply the values of Set-Cookie headers; ``Max-Age=0`` removes a cookie."""
        ...

    def held(self) -> Pairs:
        """Every cookie in the jar: name and value, as they would be sent."""
        ...


def jar_of(client: Any) -> Jar:
    """The jar of a test client. Raises :class:`ConfigError` for an unknown kind."""
    if isinstance(getattr(client, "cookie_jar", None), CookieJar):
        return _QuartJar(client)
    if isinstance(getattr(client, "cookiejar", None), CookieJar):
        environ = client.extra_environ
        scheme = environ.get("wsgi.url_scheme", "http")
        url = f"{scheme}://{environ.get('HTTP_HOST', 'localhost')}"
        remedy = "make the client with extra_environ={'wsgi.url_scheme': 'https'}"
        return _BrowserLikeJar(client.cookiejar, url, remedy)
    if is_django(client):
        return _DjangoJar(client.cookies)
    if isinstance(getattr(getattr(client, "cookies", None), "jar", None), CookieJar):
        remedy = "make the client with base_url='https://testserver.local'"
        return _BrowserLikeJar(client.cookies.jar, str(client.base_url), remedy)
    if hasattr(client, "set_cookie") and hasattr(client, "get_cookie"):
        return _WerkzeugJar(client)
    if hasattr(client, "_default_headers"):
        return _FalconHeader(client)
    raise ConfigError(
        f"{type(client).__name__} is not a test client that handstamp knows, or it has no "
        "cookies"
    )


def is_django(client: object) -> bool:
    """Whether this is a test client of Django or Django REST framework."""
    return isinstance(getattr(client, "cookies", None), SimpleCookie)


def is_async(client: object) -> bool:
    """Whether this client's requests are awaited."""
    # Both, for Django 4.2 has a plain get, and Quart a plain request.
    methods = (getattr(type(client), name, None) for name in ("get", "request"))
    return any(map(iscoroutinefunction, methods))


class _BrowserLikeJar:
    """A jar with a browser's rules: httpx, Starlette, FastAPI, Litestar, WebTest."""

    def __init__(self, jar: CookieJar, url: str, remedy: str) -> None:
        self._jar = jar
        self._url = url
        self._remedy = remedy

    def check(self, cookies: Cookies) -> None:
        if "://" not in self._url:
            raise ConfigError(f"this client has no host yet: {self._remedy}")
        if cookies.secure and not self._url.startswith("https:"):
            raise ConfigError(
                f"this client sends to {self._url}, and never sends Secure cookies there: "
                f"{self._remedy}, or wrap the application with cookies=Cookies.insecure()"
            )
        trial = CookieJar()
        _respond(
            trial, self._url, [CookieWriter(cookies).session_cookie("x", None).decode()]
        )
        request = Request(self._url.rstrip("/") + cookies.path)  # noqa: S310 - not opened
        trial.add_cookie_header(request)
        if not request.has_header("Cookie"):
            raise ConfigError(_outside(self._url, cookies))

    def put(self, set_cookie: Iterable[str]) -> None:
        _respond(self._jar, self._url, set_cookie)

    def held(self) -> Pairs:
        return _pairs(self._jar)


class _QuartJar:
    """Quart's jar: it sends every cookie to every address."""

    def __init__(self, client: Any) -> None:
        self._jar: CookieJar = client.cookie_jar
        self._host = client.app.config.get("SERVER_NAME") or "localhost"

    def check(self, cookies: Cookies) -> None:
        _check_host(self._host, cookies)

    def put(self, set_cookie: Iterable[str]) -> None:
        _respond(self._jar, f"http://{self._host}/", set_cookie)

    def held(self) -> Pairs:
        return _pairs(self._jar)


class _DjangoJar:
    """Django's jar, which has names only: no domains and no paths."""

    def __init__(self, jar: SimpleCookie) -> None:
        self._jar = jar

    def check(self, cookies: Cookies) -> None:
        """Every cookie is sent."""

    def put(self, set_cookie: Iterable[str]) -> None:
        _load(self._jar, set_cookie)

    def held(self) -> Pairs:
        return _morsels_of(self._jar)


class _WerkzeugJar:
    """The jar of Flask and Werkzeug, which finds cookies by domain and path."""

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


class _FalconHeader:
    """Falcon's clients have no jar: a default Cookie header, which no response changes."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def check(self, cookies: Cookies) -> None:
        """Every cookie is sent."""

    def put(self, set_cookie: Iterable[str]) -> None:
        jar = self._read()
        _load(jar, set_cookie)
        kept = {k: v for k, v in self._headers().items() if k.lower() != "cookie"}
        pairs = "; ".join(f"{name}={value}" for name, value in _morsels_of(jar))
        self._client._default_headers = {**kept, "Cookie": pairs} if pairs else kept

    def held(self) -> Pairs:
        return _morsels_of(self._read())

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
        f"this client sends to {where}, which is outside of the cookies' domain "
        f"{cookies.domain!r}: give the client a host of that domain"
    )


def _morsel(set_cookie: str) -> Morsel[str]:
    (morsel,) = SimpleCookie(set_cookie).values()
    return morsel


def _is_gone(morsel: Morsel[str]) -> bool:
    return str(morsel["max-age"]) == "0"


def _load(jar: SimpleCookie, set_cookie: Iterable[str]) -> None:
    """Set each as a new morsel: ``load`` would keep the attributes of the old one."""
    for morsel in map(_morsel, set_cookie):
        jar.pop(morsel.key, None)
        if not _is_gone(morsel):
            jar[morsel.key] = morsel


def _morsels_of(jar: SimpleCookie) -> Pairs:
    return [(morsel.key, morsel.coded_value) for morsel in jar.values()]


class _Response:
    """The part of a response that a :class:`CookieJar` reads."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCookies:
    """The tokens of one session in a jar, and the cookies that hold them.

    ``refresh_token`` is None if the table has none.
    """

    session_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    cookies: Mapping[str, str] = field(repr=False)


def check_client(client: object, transport: CookieTransport) -> None:
    """Raise :class:`ConfigError` if this client would never send such cookies."""
    jar_of(client).check(transport.cookies)


def set_tokens(client: object, issued: Issued, transport: CookieTransport) -> None:
    """Put the tokens into the jar, as the response to a login would."""
    jar = jar_of(client)
    _put(jar, transport.writer.deliver(issued, _present(jar, transport)))


def copy_cookies(
    client: object, copied: SessionCookies, transport: CookieTransport
) -> None:
    """Put a copy of the cookies into the jar of another client, instead of its own.

    The values are copied byte for byte. Raises :class:`ConfigError` if the client would
    never send them.
    """
    jar = jar_of(client)
    jar.check(transport.cookies)
    _put(jar, transport.writer.clear(_present(jar, transport)))
    for name, value in copied.cookies.items():
        one = replace(transport.cookies, session_name=name, refresh_name=f"{name}-")
        _put(jar, [CookieWriter(one).session_cookie(value, None)])


def read_session(client: object, transport: CookieTransport) -> SessionCookies | None:
    """The session that this client's requests would have; None without one."""
    pairs = jar_of(client).held()
    credentials = transport.reader.read(_headers(pairs), bearer=False)
    if not credentials.session:
        return None
    if credentials.claims:  # one cookie that holds both tokens
        claim = cast("CookieSession", credentials.claims[0])
        session_token, refresh_token = claim.access_token, claim.refresh_token or None
    else:
        session_token = credentials.session[0].decode("ascii")
        refresh = (text.decode("ascii") for text in credentials.refresh)
        refresh_token = next(refresh, None)
    names = transport.writer.names
    return SessionCookies(
        session_token=session_token,
        refresh_token=refresh_token,
        cookies={name: value for name, value in pairs if name.encode() in names},
    )


def _put(jar: Jar, lines: Iterable[bytes]) -> None:
    jar.put([line.decode("ascii") for line in lines])


def _present(jar: Jar, transport: CookieTransport) -> Mapping[str, str | None]:
    """The cookies in the jar that the writer must know of."""
    return transport.reader.received(_headers(jar.held()))


def _headers(pairs: Pairs) -> list[tuple[bytes, bytes]]:
    text = "; ".join(f"{name}={value}" for name, value in pairs)
    return [(b"cookie", text.encode("latin-1", "replace"))]
