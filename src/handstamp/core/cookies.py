"""Writing Set-Cookie: one renderer for setting and clearing, checked to the byte.

The attributes are rendered once, when the writer is made. A cookie is cleared with the
very attributes it was set with, for otherwise browsers keep it.
"""

from __future__ import annotations

import re
from datetime import timedelta

from handstamp.config import Cookies

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
