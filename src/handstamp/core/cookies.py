"""Request headers -> Credentials: which of the bytes a client sent are claims at all.

Rule 1. Cookies are parsed as bytes. Only space and tab are trimmed: whatever else
stands before a name makes it another name, so no whitespace trick can smuggle one past
its ``__Host-`` prefix. Quotes, escapes and percent signs mean nothing here; ``;`` always
ends a pair (RFC 6265, section 5.2).
Rule 2. Order decides nothing (RFC 6265bis, section 4.2.2): every cookie of our names is a
candidate. At most four different ones of a name are looked at. Where there are more, none
of either name counts: what is not looked at may be the user's own.
Rule 3. Several Cookie headers are one, joined by ``; `` (HTTP/2 crumbs). It is looked at
in linear time; one above 64 KiB is not looked at, for what is cut off would decide.
Whoever reads in order to end sessions reads every cookie, however many there are: what is
too much to let in is not too much to sign out.
Rule 4. Nothing but these cookies, and a bearer header where it is switched on, is ever a
credential: no query string, form, path or other header.

Writing Set-Cookie: one renderer for setting and clearing, checked to the byte.

The attributes are rendered once, when the writer is made. A cookie is cleared with the
very attributes it was set with, for otherwise browsers keep it.

How the tokens of a kind of session travel: which cookies are read, and which written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from handstamp.config import Cookies
from handstamp.core.models import Issued
from handstamp.core.tokens import LONGEST_REFRESH, refresh_prefix

MOST_BYTES = 64 * 1024
"""Of the Cookie headers: servers take no more."""
MOST_CANDIDATES = 4
LONGEST_TOKEN = LONGEST_REFRESH
"""The longest token of ours, and enough for what applications issued before."""

RawHeaders = Iterable[tuple[bytes, bytes]]
_TOKEN_TEXT = re.compile(rb"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]+")
_BEARER = re.compile(rb"bearer +([A-Za-z0-9._~+/=-]+) *", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a request claims: texts that may be tokens, none of them checked.

    ``sent`` says that the request carried one of our cookies, well formed or not.
    ``ambient`` says that a browser attached them by itself, so that another site's
    page could have caused the request. ``claims`` are what a cookie with an inside holds,
    one for each of ``session``; ``came`` are the cookies by which it came. ``incomplete``
    says that these may not be all that the request holds.
    """

    session: tuple[bytes, ...] = field(default=(), repr=False)
    refresh: tuple[bytes, ...] = field(default=(), repr=False)
    sent: bool = False
    ambient: bool = False
    claims: tuple[object, ...] = field(default=(), repr=False)
    came: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    incomplete: bool = False

    def __bool__(self) -> bool:
        return bool(self.session or self.refresh)

    def agrees(self, session_id: str) -> bool:
        """Whether no refresh token is of another session than this one, by what it says."""
        prefix = refresh_prefix(session_id)
        return all(text.startswith(prefix) for text in self.refresh)


NOTHING = Credentials()


class CookieReader:
    """Reads our two cookies out of raw request headers; compiled once per name."""

    __slots__ = ("_needle", "_refresh", "_refresh_needle", "_session", "agrees")

    def __init__(self, cookies: Cookies) -> None:
        self._session = _pattern(cookies.session_name)
        self._refresh = _pattern(cookies.refresh_name)
        self._needle = cookies.session_name.encode() + b"="
        self._refresh_needle = cookies.refresh_name.encode() + b"="
        is_exclusive = cookies.session_name.startswith("__Host-")
        self.agrees = None if is_exclusive else self._agrees
        """Whether no refresh cookie in a header is of another session than this one, by
        what it says; None where no other host can set the session cookie."""

    def sole(self, header: bytes) -> bytes | None:
        """The session cookie where nothing about it is unusual, else None.

        The short way for the request of every day; whatever it does not take goes
        through :meth:`read`, which finds the same value.
        """
        if len(header) > MOST_BYTES:
            return None
        parts = header.split(self._needle, 2)
        if len(parts) != 2:
            return None
        before, after = parts
        if before and before[-2:] != b"; ":
            return None
        return after.partition(b";")[0]

    def _agrees(self, header: bytes, session_id: str) -> bool:
        needle = self._refresh_needle
        at = header.find(needle)
        if at < 0:
            return True
        value = at + len(needle)
        if not header.startswith(refresh_prefix(session_id), value):
            return False
        return header.find(needle, value) < 0  # several are looked at at length

    def read(
        self, headers: RawHeaders, *, bearer: bool = False, every: bool = False
    ) -> Credentials:
        """Everything in ``headers`` that claims to be a credential of ours.

        ``headers`` are pairs of bytes, names in any case. With ``bearer``, an
        ``Authorization: Bearer`` header replaces the cookies altogether. ``every`` cookie
        is read, without the limits of rules 2 and 3, in order to end sessions.
        """
        cookie, authorization = pick(headers, None if every else MOST_BYTES)
        if bearer and authorization is not None:
            match = _BEARER.fullmatch(authorization)
            if match is not None:
                return Credentials(session=_well_formed([match[1]]), sent=True)
        if not cookie:
            return NOTHING
        session = _trimmed(self._session.findall(cookie))
        refresh = _trimmed(self._refresh.findall(cookie))
        if not session and not refresh:
            return NOTHING
        if not every and max(len(session), len(refresh)) > MOST_CANDIDATES:
            return Credentials(sent=True, ambient=True)
        return Credentials(
            session=_well_formed(session),
            refresh=_well_formed(refresh),
            sent=True,
            ambient=True,
        )

    def came(self, headers: RawHeaders) -> Mapping[str, str | None]:
        """The cookies that a writer has to know of: none, ours are written over."""
        return {}


def _pattern(name: str) -> re.Pattern[bytes]:
    return re.compile(rb"(?:^|;)[ \t]*" + re.escape(name.encode()) + rb"=([^;]*)")


def pick(headers: RawHeaders, most: int | None) -> tuple[bytes, bytes | None]:
    """The Cookie headers as one (rule 3), and the Authorization; no cookie where they are
    longer than ``most`` bytes, if that is a limit."""
    crumbs: list[bytes] = []
    authorization = None
    for name, value in headers:
        lowered = bytes(name).lower()
        if lowered == b"cookie":
            crumbs.append(bytes(value))
        elif lowered == b"authorization":
            authorization = bytes(value)
    cookie = b"; ".join(crumbs)
    return cookie if most is None or len(cookie) <= most else b"", authorization


def _trimmed(values: Iterable[bytes]) -> Collection[bytes]:
    """The different ones among these values, in their order."""
    return dict.fromkeys(value.strip(b" \t") for value in values)


def _well_formed(values: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(v for v in values if len(v) <= LONGEST_TOKEN and _TOKEN_TEXT.fullmatch(v))


LONGEST_AGE = timedelta(days=400)
"""Browsers cap a longer life to this (RFC 6265bis, section 5.5)."""
_VALUE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")


class CookieWriter:
    """Renders the values of Set-Cookie headers, as bytes."""

    __slots__ = ("_refresh", "_session", "_tail", "names")

    def __init__(self, cookies: Cookies) -> None:
        self._session = cookies.session_name
        self._refresh = cookies.refresh_name
        self._tail = _attributes(cookies)
        self.names = frozenset(
            name.encode() for name in (cookies.session_name, cookies.refresh_name)
        )

    def session(self, token: str, lifetime: timedelta | None) -> bytes:
        """The session cookie; ``lifetime`` None makes it end with the browser."""
        return self._render(self._session, token, lifetime)

    def refresh(self, token: str, lifetime: timedelta | None) -> bytes:
        """The refresh cookie; ``lifetime`` as in :meth:`session`."""
        return self._render(self._refresh, token, lifetime)

    def clear(self) -> tuple[bytes, bytes]:
        """Both cookies, gone."""
        gone = timedelta(0)
        return (
            self._render(self._session, "", gone),
            self._render(self._refresh, "", gone),
        )

    def _render(self, name: str, value: str, lifetime: timedelta | None) -> bytes:
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the value for cookie {name} has a forbidden character")
        age = ""
        if lifetime is not None:
            age = f"; Max-Age={int(min(lifetime, LONGEST_AGE).total_seconds())}"
        return f"{name}={value}{age}{self._tail}".encode("ascii")


def cookie_name(set_cookie: bytes) -> bytes:
    """The name in the value of a Set-Cookie header."""
    return set_cookie.partition(b"=")[0].strip(b" \t")


def _attributes(cookies: Cookies) -> str:
    parts = [f"Path={cookies.path}", "HttpOnly", f"SameSite={cookies.same_site}"]
    if cookies.secure:
        parts.append("Secure")
    if cookies.domain:
        parts.append(f"Domain={cookies.domain}")
    return "; " + "; ".join(parts)


NO_STORE = ((b"cache-control", b"private, no-store"),)
Came = Mapping[str, str | None]


class Reader(Protocol):
    """Request headers -> credentials."""

    @property
    def agrees(self) -> Callable[[bytes, str], bool] | None:
        """Whether a header that has the token of this session has none of another; for
        whoever looked at the session token alone. None where that needs no look."""
        ...

    def sole(self, header: bytes) -> bytes | None:
        """What identifies the session, where nothing about the header is unusual."""
        ...

    def read(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        *,
        bearer: bool = False,
        every: bool = False,
    ) -> Credentials:
        """Everything in the headers that claims to be a credential; ``every`` one, to end
        its session, where others are limited in number."""
        ...

    def came(self, headers: Iterable[tuple[bytes, bytes]]) -> Came:
        """The cookies that a writer has to know of, by name."""
        ...


class Writer(Protocol):
    """Tokens -> the values of Set-Cookie headers, over the cookies that came."""

    @property
    def names(self) -> Container[bytes]:
        """The cookies that are ours to set."""
        ...

    @property
    def no_store(self) -> Collection[tuple[bytes, bytes]]:
        """The headers that go with them, so that no cache keeps them."""
        ...

    def deliver(self, issued: Issued, came: Came) -> tuple[bytes, ...]:
        """The lines that hand out these tokens."""
        ...

    def clear(self, came: Came) -> tuple[bytes, ...]:
        """The lines that remove whatever there may be."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CookieTransport:
    """Both, and the settings of the cookies they speak of."""

    cookies: Cookies
    reader: Reader
    writer: Writer


class CookiePairWriter:
    """Two cookies, or one where there is no refresh token."""

    __slots__ = ("_writer", "names", "no_store")

    def __init__(self, cookies: Cookies) -> None:
        self._writer = CookieWriter(cookies)
        self.names = self._writer.names
        self.no_store = NO_STORE

    def deliver(self, issued: Issued, came: Came) -> tuple[bytes, ...]:
        """See :meth:`Writer.deliver`."""
        session = self._writer.session(issued.session_token, issued.session_lifetime)
        if issued.refresh_token is None:
            return (session,)
        refresh = self._writer.refresh(issued.refresh_token, issued.refresh_lifetime)
        return session, refresh

    def clear(self, came: Came) -> tuple[bytes, ...]:
        """See :meth:`Writer.clear`; both, for a browser does not always say."""
        return self._writer.clear()


def pair_of(cookies: Cookies) -> CookieTransport:
    """The speech of tokens of our own."""
    return CookieTransport(
        cookies=cookies, reader=CookieReader(cookies), writer=CookiePairWriter(cookies)
    )
