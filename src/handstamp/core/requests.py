"""What the headers of a request say: its client, and whether another site caused it.

The client: the address behind trusted proxies, and the user agent.

Rule 1. A forwarding header counts only as far as trusted proxies wrote it: the list is read
from the right, from the peer, and the first address that is no trusted proxy is the client.
What is further left is the client's own claim.
Rule 2. Invalid text ends the reading at the last good address. Nothing here raises.
Rule 3. An address has one text: IPv4 in IPv6 is IPv4, zones and ports are removed.
Rule 4. Text from a client is shortened, and control characters are removed, before it is
used anywhere.

Cross-site requests: whether the page of another site caused this request.

Rule 5. ``Sec-Fetch-Site`` decides where it is sent, because a page cannot forge it. Only
``same-origin`` and ``none`` (the user, no page) are ours; a sibling subdomain is not.
Rule 6. Without it, ``Origin`` must be the host of the request; ``null`` never is.
Rule 7. Without either, the request is of no browser, or of a very old one: not cross-site.
Rule 8. Origins that the application lists are ours. Where a header came several times, each
of its values must be ours: a browser sends one, and a proxy may mean any of them.
Rule 9. Safe methods (RFC 9110, section 9.2.1) change nothing, so another site may cause
them. A WebSocket handshake opens a channel in which anything may be written, so it is a
write: a request with ``Upgrade: websocket``, whatever its method is (RFC 6455, section
4.1), and CONNECT (RFC 8441, section 4), which is no safe method.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from ipaddress import IPv6Address, ip_address

from handstamp.config import TrustedProxies
from handstamp.core.models import Client
from handstamp.errors import ConfigError

MAX_HOPS = 32
LONGEST_USER_AGENT = 512
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PORT = re.compile(r"(?:\[([^\]]*)\]|([0-9.]+))(?::[0-9]{1,5})?")
NO_PROXIES = TrustedProxies()


def read_client(
    peer: object,
    headers: Iterable[tuple[bytes, bytes]],
    proxies: TrustedProxies = NO_PROXIES,
    *,
    fingerprint: str | None = None,
) -> Client:
    """The client of one request.

    ``peer`` is what the server says of the connection: in ASGI a (host, port) pair,
    None, or something a server made up. ``headers`` are raw pairs.
    """
    forwarded: list[bytes] = []
    agent: bytes | None = None
    for name, value in headers:
        lowered = bytes(name).lower()
        if lowered == b"x-forwarded-for":
            forwarded.append(value)
        elif lowered == b"user-agent":
            agent = value
    return Client(
        address=client_address(_host(peer), forwarded, proxies),
        user_agent=_printable(agent),
        user_agent_hash=hashlib.sha256(agent or b"").hexdigest(),
        fingerprint=fingerprint,
    )


def client_address(
    peer: str | None, forwarded: Sequence[bytes], proxies: TrustedProxies
) -> str | None:
    """Return the client's address in its one text, or None if it is unknown."""
    current = canonical_address(peer)
    if current is None or not proxies or current not in proxies:
        return current
    hops = b",".join(forwarded).decode("latin-1").split(",")
    for hop in reversed(hops[-MAX_HOPS:]):
        address = canonical_address(hop)
        if address is None:
            return current
        current = address
        if address not in proxies:
            return address
    return current


def canonical_address(text: str | None) -> str | None:
    """``text`` as an IP address in its one text, or None if it is none (rule 3)."""
    if text is None or len(text) > 64:
        return None
    host = text.strip(" \t")
    ported = _PORT.fullmatch(host)
    if ported is not None:
        host = ported[1] or ported[2] or ""
    try:
        address = ip_address(host.partition("%")[0] if ":" in host else host)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def _host(peer: object) -> str | None:
    if not isinstance(peer, (tuple, list)) or not peer:
        return None
    return peer[0] if isinstance(peer[0], str) else None


def _printable(agent: bytes | None) -> str | None:
    if not agent:
        return None
    text = agent[: 4 * LONGEST_USER_AGENT].decode("utf-8", "replace")
    return _CONTROL.sub("", text)[:LONGEST_USER_AGENT] or None


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
    """Whether a request may change something (rule 9); ``method`` is None for what the
    server calls a WebSocket connection."""
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


def parse_origin(text: str) -> bytes:
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
