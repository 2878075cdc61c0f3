"""The two cookies of a session: reading them from a request, writing them to a response.

Rule 1. Cookies are parsed as bytes. Only space and tab are trimmed: any other byte before a
name makes it another name, so no whitespace can bring a cookie past its ``__Host-`` prefix.
Quotes, escapes and percent signs have no meaning here; ``;`` always ends a pair (RFC 6265,
section 5.2).
Rule 2. The order of cookies decides nothing (RFC 6265bis, section 4.2.2): every cookie of
our names is a candidate. At most four different ones of a name are read. Where there are
more, none of either name counts, because the user's own may be one that is not read.
Rule 3. Several Cookie headers are one, joined by ``; `` (HTTP/2 crumbs). It is parsed in
linear time. One above 64 KiB is not parsed, because the part that is cut off could decide.
A login and a logout read every cookie, however many there are, in order to end all their
sessions: what is too much to sign in is not too much to sign out.
Rule 4. Only these cookies, and a bearer header where it is switched on, are credentials: no
query string, form, path or other header.
Rule 5. A cookie is cleared with the attributes that it was set with; otherwise browsers
keep it. The attributes are rendered once, when the writer is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Protocol

from handstamp.config import Cookies
from handstamp.core.models import Issued
from handstamp.core.tokens import LONGEST_REFRESH, refresh_prefix

MAX_BYTES = 64 * 1024
"""Bytes of all Cookie headers of a request: servers take no more."""
MAX_CANDIDATES = 4
"""Different cookies of one name that are read."""
LONGEST_TOKEN = LONGEST_REFRESH
"""The longest token of ours; tokens that an application issued before are shorter."""

LONGEST_AGE = timedelta(days=400)
"""Browsers reduce a longer lifetime to this (RFC 6265bis, section 5.5)."""
NO_STORE = ((b"cache-control", b"private, no-store"),)
RawHeaders = Iterable[tuple[bytes, bytes]]
ReceivedCookies = Mapping[str, str | None]
"""Cookies of a request by name; the value is None where there were several."""
_TOKEN_TEXT = re.compile(rb"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]+")
_VALUE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
_BEARER = re.compile(rb"bearer +([A-Za-z0-9._~+/=-]+) *", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What may be tokens in a request. Nothing is checked yet.

    ``sent`` is whether the request has one of our cookies, well formed or not. ``ambient``
    is whether the browser attached them by itself, so that a page of another site may have
    caused the request. ``claims`` are the decoded contents, one for each of ``session``,
    where a cookie is more than a token; ``received`` are the cookies that they were read
    from. ``incomplete`` is whether the request may hold more than these.
    """

    session: tuple[bytes, ...] = field(default=(), repr=False)
    refresh: tuple[bytes, ...] = field(default=(), repr=False)
    sent: bool = False
    ambient: bool = False
    claims: tuple[object, ...] = field(default=(), repr=False)
    received: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    incomplete: bool = False

    def __bool__(self) -> bool:
        return bool(self.session or self.refresh)

    def refresh_matches(self, session_id: str) -> bool:
        """Whether every refresh token names this session; signatures are not checked."""
        prefix = refresh_prefix(session_id)
        return all(text.startswith(prefix) for text in self.refresh)


NO_CREDENTIALS = Credentials()


class CookieReader:
    """Reads our two cookies from raw request headers."""

    __slots__ = ("_needle", "_refresh", "_refresh_needle", "_session", "refresh_matches")

    def __init__(self, cookies: Cookies) -> None:
        self._session = _pattern(cookies.session_name)
        self._refresh = _pattern(cookies.refresh_name)
        self._needle = cookies.session_name.encode() + b"="
        self._refresh_needle = cookies.refresh_name.encode() + b"="
        is_exclusive = cookies.session_name.startswith("__Host-")
        self.refresh_matches = None if is_exclusive else self._refresh_matches
        """Whether a header has no refresh cookie that names another session; None where no
        other host can set the session cookie, so that no check is needed."""

    def read_fast(self, header: bytes) -> bytes | None:
        """Return the session cookie of a usual header, or None.

        For the fast path. :meth:`read` finds the same value, and reads every other header.
        """
        if len(header) > MAX_BYTES:
            return None
        parts = header.split(self._needle, 2)
        if len(parts) != 2:
            return None
        before, after = parts
        if before and before[-2:] != b"; ":
            return None
        return after.partition(b";")[0]

    def _refresh_matches(self, header: bytes, session_id: str) -> bool:
        needle = self._refresh_needle
        at = header.find(needle)
        if at < 0:
            return True
        value = at + len(needle)
        if not header.startswith(refresh_prefix(session_id), value):
            return False
        return header.find(needle, value) < 0  # several: the slow path decides

    def read(
        self, headers: RawHeaders, *, bearer: bool = False, every: bool = False
    ) -> Credentials:
        """Return all credentials in ``headers``.

        ``headers`` are pairs of bytes, with names in any case. With ``bearer``, an
        ``Authorization: Bearer`` header replaces the cookies. With ``every``, the limits of
        rules 2 and 3 do not count; use it only to end sessions.
        """
        cookie, authorization = read_headers(headers, None if every else MAX_BYTES)
        if bearer and authorization is not None:
            match = _BEARER.fullmatch(authorization)
            if match is not None:
                return Credentials(session=_well_formed([match[1]]), sent=True)
        if not cookie:
            return NO_CREDENTIALS
        session = _unique(self._session.findall(cookie))
        refresh = _unique(self._refresh.findall(cookie))
        if not session and not refresh:
            return NO_CREDENTIALS
        if not every and max(len(session), len(refresh)) > MAX_CANDIDATES:
            return Credentials(sent=True, ambient=True)
        return Credentials(
            session=_well_formed(session),
            refresh=_well_formed(refresh),
            sent=True,
            ambient=True,
        )

    def received(self, headers: RawHeaders) -> Mapping[str, str | None]:
        """Return the cookies that the writer needs: none, because it overwrites ours."""
        return {}


def _pattern(name: str) -> re.Pattern[bytes]:
    return re.compile(rb"(?:^|;)[ \t]*" + re.escape(name.encode()) + rb"=([^;]*)")


def read_headers(headers: RawHeaders, max_bytes: int | None) -> tuple[bytes, bytes | None]:
    """Return the Cookie headers as one (rule 3), and the Authorization header.

    The cookie is empty where the headers are longer than ``max_bytes``.
    """
    crumbs: list[bytes] = []
    authorization = None
    for name, value in headers:
        lowered = bytes(name).lower()
        if lowered == b"cookie":
            crumbs.append(bytes(value))
        elif lowered == b"authorization":
            authorization = bytes(value)
    cookie = b"; ".join(crumbs)
    if max_bytes is not None and len(cookie) > max_bytes:
        cookie = b""
    return cookie, authorization


def _unique(values: Iterable[bytes]) -> Collection[bytes]:
    """Return the different values without blanks, in their order."""
    return dict.fromkeys(value.strip(b" \t") for value in values)


def _well_formed(values: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(v for v in values if len(v) <= LONGEST_TOKEN and _TOKEN_TEXT.fullmatch(v))


class Reader(Protocol):
    """Reads credentials from request headers."""

    @property
    def refresh_matches(self) -> Callable[[bytes, str], bool] | None:
        """Whether a header that has the token of this session has none of another; for the
        fast path, which reads the session token alone. None where no check is needed."""
        ...

    def read_fast(self, header: bytes) -> bytes | None:
        """Return the text that identifies the session in a usual header, or None."""
        ...

    def read(
        self, headers: RawHeaders, *, bearer: bool = False, every: bool = False
    ) -> Credentials:
        """Return all credentials in the headers; with ``every`` without limits of number,
        to end their sessions."""
        ...

    def received(self, headers: RawHeaders) -> ReceivedCookies:
        """Return the cookies that the writer needs, by name."""
        ...


class Writer(Protocol):
    """Renders the values of the Set-Cookie headers of a response."""

    @property
    def names(self) -> Container[bytes]:
        """The names of the cookies that are ours to set."""
        ...

    @property
    def no_store(self) -> Collection[tuple[bytes, bytes]]:
        """The headers that keep a response with our cookies out of every cache."""
        ...

    def deliver(self, issued: Issued, received: ReceivedCookies) -> tuple[bytes, ...]:
        """Return the headers that set these tokens."""
        ...

    def clear(self, received: ReceivedCookies) -> tuple[bytes, ...]:
        """Return the headers that remove all our cookies."""
        ...


class CookieWriter:
    """Writes two cookies, or one where the table has no refresh token."""

    __slots__ = ("_cookies", "_tail", "names", "no_store")

    def __init__(self, cookies: Cookies) -> None:
        self._cookies = cookies
        parts = ["", f"Path={cookies.path}", "HttpOnly", f"SameSite={cookies.same_site}"]
        if cookies.secure:
            parts.append("Secure")
        if cookies.domain:
            parts.append(f"Domain={cookies.domain}")
        self._tail = "; ".join(parts)
        names = (cookies.session_name, cookies.refresh_name)
        self.names = frozenset(name.encode() for name in names)
        self.no_store = NO_STORE

    def deliver(self, issued: Issued, received: ReceivedCookies) -> tuple[bytes, ...]:
        """See :meth:`Writer.deliver`."""
        session = self.session_cookie(issued.session_token, issued.session_lifetime)
        if issued.refresh_token is None:
            return (session,)
        refresh = self.refresh_cookie(issued.refresh_token, issued.refresh_lifetime)
        return session, refresh

    def clear(self, received: ReceivedCookies = MappingProxyType({})) -> tuple[bytes, ...]:
        """See :meth:`Writer.clear`; always both, for a browser may hide one of them."""
        gone = timedelta(0)
        return self.session_cookie("", gone), self.refresh_cookie("", gone)

    def session_cookie(self, token: str, lifetime: timedelta | None) -> bytes:
        """Return the session cookie. With None as ``lifetime`` it ends with the browser.

        Raises ``ValueError`` for a text that no cookie can have.
        """
        return self._render(self._cookies.session_name, token, lifetime)

    def refresh_cookie(self, token: str, lifetime: timedelta | None) -> bytes:
        """Return the refresh cookie; as :meth:`session_cookie`."""
        return self._render(self._cookies.refresh_name, token, lifetime)

    def _render(self, name: str, value: str, lifetime: timedelta | None) -> bytes:
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the value for cookie {name} has a forbidden character")
        age = ""
        if lifetime is not None:
            age = f"; Max-Age={int(min(lifetime, LONGEST_AGE).total_seconds())}"
        return f"{name}={value}{age}{self._tail}".encode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class CookieTransport:
    """How the tokens of one kind of session are carried: the settings of its cookies, and
    what reads and writes them."""

    cookies: Cookies
    reader: Reader
    writer: Writer


def cookie_pair_transport(cookies: Cookies) -> CookieTransport:
    """Return the transport of our own tokens: two cookies."""
    return CookieTransport(
        cookies=cookies, reader=CookieReader(cookies), writer=CookieWriter(cookies)
    )
