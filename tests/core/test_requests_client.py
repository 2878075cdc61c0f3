"""Who a request comes from: cases C-26 and C-113 to C-118."""

from __future__ import annotations

import hashlib
from ipaddress import ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handstamp.config import TrustedProxies
from handstamp.core.models import Client
from handstamp.core.requests import (
    LONGEST_USER_AGENT,
    MAX_HOPS,
    canonical_address,
    client_address,
    read_client,
)

PROXIES = TrustedProxies("10.0.0.0/8", "2001:db8:ffff::/48")


@pytest.mark.parametrize("proxies", [TrustedProxies(), PROXIES])
def test_c113_an_untrusted_peer_s_header_is_ignored(proxies: TrustedProxies) -> None:
    """Whoever connects directly is who they are, whatever they say."""
    assert client_address("203.0.113.9", [b"1.2.3.4"], proxies) == "203.0.113.9"


def test_c26_only_the_exact_header_name_counts() -> None:
    """An underscore makes another header, and the peer decides in any case."""
    headers = [(b"x_forwarded_for", b"1.2.3.4"), (b"forwarded", b"for=1.2.3.4")]
    client = read_client(("10.0.0.1", 1), headers, PROXIES)
    assert client.address == "10.0.0.1"


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ([], "10.0.0.1"),
        ([b""], "10.0.0.1"),
        ([b"203.0.113.9"], "203.0.113.9"),
        ([b"6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        ([b"6.6.6.6", b"203.0.113.9"], "203.0.113.9"),
        ([b"203.0.113.9, 10.0.0.2, 10.0.0.3"], "203.0.113.9"),
        ([b"203.0.113.9, 10.0.0.2", b"10.0.0.3"], "203.0.113.9"),
        ([b"10.0.0.9, 10.0.0.2"], "10.0.0.9"),
        ([b"203.0.113.9:4711"], "203.0.113.9"),
        ([b"[2001:DB8::1]:4711"], "2001:db8::1"),
        ([b"[2001:db8::1]"], "2001:db8::1"),
        ([b"2001:db8::1"], "2001:db8::1"),
        ([b"203.0.113.9, [2001:db8:ffff::7]:443"], "203.0.113.9"),
        ([b"::ffff:203.0.113.9"], "203.0.113.9"),
        ([b"203.0.113.9, ::ffff:10.0.0.5"], "203.0.113.9"),
        ([b"6.6.6.6, unknown"], "10.0.0.1"),
        ([b"6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
        ([b"6.6.6.6, _hidden, 10.0.0.2"], "10.0.0.2"),
        ([b"6.6.6.6, , 10.0.0.2"], "10.0.0.2"),
        ([b"6.6.6.6, 10.0.0.2,"], "10.0.0.1"),
        ([b"6.6.6.6, \xff\xfe"], "10.0.0.1"),
        ([b"6.6.6.6, 1.2.3.4:port"], "10.0.0.1"),
        ([b"6.6.6.6, 1.2.3.4%eth0"], "10.0.0.1"),
        ([b"6.6.6.6, 010.0.0.2"], "10.0.0.1"),
        ([b"6.6.6.6, [::1"], "10.0.0.1"),
        ([b'"203.0.113.9"'], "10.0.0.1"),
    ],
)
def test_c114_the_first_address_from_the_right_that_is_no_proxy_is_the_client(
    forwarded: list[bytes], address: str
) -> None:
    """What stands further left is a claim, and garbage stops at the last good hop."""
    assert address == client_address("10.0.0.1", forwarded, PROXIES)


def test_c114_at_most_32_hops_are_walked() -> None:
    """Ten thousand trusted hops hide whoever stands before them."""
    hops = [f"10.{n // 256}.{n % 256}.1" for n in range(10_000)]
    header = ", ".join(["203.0.113.9", *hops]).encode()
    assert hops[-MAX_HOPS] == client_address("10.0.0.1", [header], PROXIES)
    near = ", ".join(["203.0.113.9", *hops[: MAX_HOPS - 1]]).encode()
    assert client_address("10.0.0.1", [near], PROXIES) == "203.0.113.9"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("::FFFF:102:304", "1.2.3.4"),
        ("2001:DB8:0::0001", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%eth0]:443", "fe80::1"),
        ("1.2.3.4:5678", "1.2.3.4"),
        (" 1.2.3.4\t", "1.2.3.4"),
        ("01.02.03.04", None),
        ("1.2.3", None),
        ("1.2.3.4:", None),
        ("1.2.3.4:123456", None),
        ("16909060", None),
        ("١.٢.٣.٤", None),
        ("testclient", None),
        ("unix:", None),
        ("/run/app.sock", None),
        ("", None),
        ("[]", None),
        ("%", None),
        ("1.2.3.4\n", None),
        ("1" * 65, None),
        (None, None),
    ],
)
def test_c115_an_address_has_one_spelling(text: str | None, address: str | None) -> None:
    """IPv4 in IPv6 is IPv4, zones and ports go, and all else is no address."""
    assert address == canonical_address(text)


@pytest.mark.parametrize(
    "peer",
    [None, (), [], "", "1.2.3.4", 7, (None, 1), (b"1.2.3.4", 1), ("", 0), {}, ("h",)],
)
def test_c116_a_peer_that_is_none_has_no_address(peer: object) -> None:
    """Servers make up all sorts of peers; none of them raises."""
    assert read_client(peer, [(b"x-forwarded-for", b"1.2.3.4")], PROXIES).address is None


@pytest.mark.parametrize("peer", [("1.2.3.4", None), ["1.2.3.4", 1], ("1.2.3.4", 1, 0, 0)])
def test_c116_an_odd_peer_with_a_host_has_an_address(peer: object) -> None:
    """Lists, missing ports and IPv6 tuples are understood."""
    assert read_client(peer, []).address == "1.2.3.4"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"", None),
        (b"Firefox", "Firefox"),
        (b"a\x00b\r\nc\x1b[31md\x7f", "abc[31md"),
        ("a\u2028b\u2029c\x85d".encode(), "abcd"),
        (b"a\xffb", "a\ufffdb"),
        (b"x" * 1_000_000, "x" * LONGEST_USER_AGENT),
        (b"\x00\x01", None),
    ],
)
def test_c117_a_user_agent_is_printable_and_short(sent: bytes, kept: str | None) -> None:
    """Control characters go, broken bytes are marked, length is cut."""
    client = read_client(None, [(b"User-Agent", sent)])
    assert kept == client.user_agent
    assert hashlib.sha256(sent).hexdigest() == client.user_agent_hash


def test_c117_a_missing_user_agent_is_an_empty_one() -> None:
    """Without the header the client is the default client."""
    assert Client() == read_client(None, [])


@given(agent=st.binary(max_size=4096))
def test_c117_no_user_agent_poisons_a_row(agent: bytes) -> None:
    """What is kept fits a PostgreSQL text: UTF-8 without NUL, at most 512 characters."""
    kept = read_client(None, [(b"user-agent", agent)]).user_agent
    assert kept is None or 1 <= len(kept) <= LONGEST_USER_AGENT
    assert b"\x00" not in (kept or "").encode("utf-8")


hops = st.sampled_from(
    [
        b"10.0.0.1",
        b"1.2.3.4",
        b"::1",
        b"[::1]:1",
        b"fe80::1%a",
        b"::ffff:10.0.0.2",
        b",",
        b" ",
    ]
)


@given(
    peer=st.none() | st.text() | st.sampled_from(["10.0.0.1", "::ffff:10.0.0.1"]),
    forwarded=st.lists(st.lists(hops | st.binary(max_size=4)).map(b",".join), max_size=4),
)
@example(peer="10.0.0.1", forwarded=[b"\xb9.2.3.4"])
def test_c114_the_walk_never_raises_and_ends_at_one_spelling(
    peer: str | None, forwarded: list[bytes]
) -> None:
    """Whatever is sent, the result is a canonical address or None."""
    address = client_address(peer, forwarded, PROXIES)
    if address is not None:
        assert address == str(ip_address(address))
        assert address == canonical_address(address)


@given(text=st.text(max_size=70) | st.ip_addresses().map(str))
def test_a_canonical_address_is_a_fixed_point(text: str) -> None:
    """Canonical once is canonical for good."""
    address = canonical_address(text)
    assert address is None or address == canonical_address(address)


def test_the_fingerprint_is_the_application_s() -> None:
    """What the application computed of a device is passed on as it is."""
    assert read_client(None, [], fingerprint="f").fingerprint == "f"
