"""Who a request comes from: the address behind trusted proxies, the user agent.

Rule 1. A forwarding header is believed only as far as trusted proxies vouch for it: the
list is walked from the right, from the peer, and the first address that is no trusted
proxy is the client. What stands further left is the client's own claim.
Rule 2. Garbage stops the walk at the last good address. Nothing here raises.
Rule 3. An address has one spelling: IPv4 in IPv6 is IPv4, zones and ports are dropped.
Rule 4. Text from a client is cut to length and freed of control characters before it
goes anywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address, ip_address

from handstamp.config import TrustedProxies
from handstamp.core.records import Client

MOST_HOPS = 32
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
    """The client's address in its one spelling, or None if nobody knows."""
    current = canonical_address(peer)
    if current is None or not proxies or current not in proxies:
        return current
    hops = b",".join(forwarded).decode("latin-1").split(",")
    for hop in reversed(hops[-MOST_HOPS:]):
        address = canonical_address(hop)
        if address is None:
            return current
        current = address
        if address not in proxies:
            return address
    return current


def canonical_address(text: str | None) -> str | None:
    """``text`` as an IP address in its one spelling, or None if it is none (rule 3)."""
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
