"""Did another site's page make this request? The browser itself says.

Rule 1. ``Sec-Fetch-Site`` decides where it is sent: a page cannot forge it. Only
``same-origin`` and ``none`` (the user, not a page) are ours; a sibling subdomain is not.
Rule 2. Without it, ``Origin`` must name the host that was asked; ``null`` names nobody.
Rule 3. Without either it is no browser of this decade, or no browser: not cross-site.
Rule 4. Origins the application lists are ours.
Where a header came several times, each of its values must be ours: a browser sends one, and
which of them a proxy means nobody can say.
Rule 5. Methods that are safe by definition (RFC 9110, section 9.2.1) change nothing, so
another site may cause them. A WebSocket handshake opens a channel in which anything may be
written, so it is a write: a request with ``Upgrade: websocket`` whatever its method is
(RFC 6455, section 4.1), and CONNECT (RFC 8441, section 4), which is no safe method.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from handstamp.errors import ConfigError

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_OURS = frozenset({b"same-origin", b"none"})
_ORIGIN = re.compile(r"https?://([0-9a-z_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_DEFAULT_PORT = {b"http": b":80", b"https": b":443"}


def is_cross_site(
    headers: Iterable[tuple[bytes, bytes]], trusted: Collection[bytes] = ()
) -> bool:
    """Whether these request headers say that a page of another site is behind them."""
    found: dict[bytes, set[bytes]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), set()).add(value)
    sites, origins = found.get(b"sec-fetch-site"), found.get(b"origin", set())
    if origins and all(origin.lower() in trusted for origin in origins):
        return False
    if sites is not None:
        return not sites <= _OURS
    hosts: Iterable[bytes | None] = found.get(b"host") or [None]
    return not all(_same_host(origin, host) for origin in origins for host in hosts)


def is_write(method: str | None, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request may change something (rule 5); ``method`` is None where a server
    has told that it is a WebSocket handshake."""
    return method not in SAFE_METHODS or is_handshake(headers)


def is_handshake(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether these request headers ask for a WebSocket, among other protocols or alone."""
    return any(
        b"websocket" in value.lower()
        for name, value in headers
        if name.lower() == b"upgrade"
    )


def is_subresource_of_other_site(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a page of another site loads this as a part of itself.

    Its answer cannot set a SameSite cookie (RFC 6265bis, section 4.1.2.7), so nothing
    that must reach the browser may happen here. A top-level navigation is no part.
    """
    found = {name.lower(): value for name, value in headers}
    if found.get(b"sec-fetch-site") != b"cross-site":
        return False
    return found.get(b"sec-fetch-mode") != b"navigate" or (
        found.get(b"sec-fetch-dest") not in (None, b"document")
    )


def is_prefetch(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a browser fetches this ahead of a need that may never come."""
    return any(
        b"prefetch" in value.lower() or b"prerender" in value.lower()
        for name, value in headers
        if name.lower() in (b"sec-purpose", b"purpose", b"x-moz")
    )


def read_origin(text: str) -> bytes:
    """A trusted origin as configured, in the spelling browsers send.

    Raises :class:`ConfigError` unless it is http or https, a host, perhaps a port, and
    nothing more. Browsers send an international name in its ``xn--`` form.
    """
    origin = text.removesuffix("/").lower()
    if not _ORIGIN.fullmatch(origin):
        raise ConfigError(f"{text!r} is no origin such as https://app.example.com")
    scheme, _, host = origin.encode().partition(b"://")
    return scheme + b"://" + host.removesuffix(_DEFAULT_PORT[scheme])


def _same_host(origin: bytes, host: bytes | None) -> bool:
    scheme, _, asked = origin.lower().partition(b"://")
    port = _DEFAULT_PORT.get(scheme)
    if host is None or port is None:
        return False
    # A proxy may name the default port in Host, and a browser never does in Origin.
    return asked.removesuffix(port) == host.lower().removesuffix(port)
