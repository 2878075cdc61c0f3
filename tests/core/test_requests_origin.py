"""Did another site's page make this request?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handstamp.core.requests import (
    is_cross_site,
    is_prefetch,
    is_subresource_of_other_site,
    is_write,
    parse_origin,
)
from handstamp.errors import ConfigError

HOST = (b"host", b"app.example")


@pytest.mark.parametrize(
    ("site", "is_foreign"),
    [
        (b"same-origin", False),
        (b"none", False),
        (b"same-site", True),
        (b"cross-site", True),
        (b"", True),
        (b"something-new", True),
    ],
)
def test_sec_fetch_site_decides(site: bytes, is_foreign: bool) -> None:
    """Only our own pages and the user are no other site; a sibling subdomain is one."""
    headers = [(b"Sec-Fetch-Site", site), HOST]
    assert is_foreign == is_cross_site(headers)


def test_sec_fetch_site_outweighs_origin() -> None:
    """The browser's word counts more than Origin, in both directions."""
    null, own = (b"origin", b"null"), (b"origin", b"https://app.example")
    assert not is_cross_site([(b"sec-fetch-site", b"same-origin"), null, HOST])
    assert is_cross_site([(b"sec-fetch-site", b"cross-site"), own, HOST])


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        (b"sec-fetch-site", b"same-origin", b"cross-site"),
        (b"origin", b"https://app.example", b"https://evil.example"),
        (b"origin", b"https://friend.example", b"https://evil.example"),
        (b"host", b"app.example", b"evil.example"),
    ],
)
def test_a_header_that_came_twice_is_ours_only_with_both_values(
    name: bytes, ours: bytes, theirs: bytes
) -> None:
    """In any order: nobody can say which of them a proxy means."""
    trusted = {b"https://friend.example"}
    origin = [(b"origin", b"https://app.example")] if name == b"host" else []
    host = [] if name == b"host" else [HOST]
    for values in ([ours, theirs], [theirs, ours]):
        headers = [*origin, *((name, value) for value in values), *host]
        assert is_cross_site(headers, trusted)
    assert not is_cross_site([*origin, (name, ours), (name, ours), *host], trusted)


@pytest.mark.parametrize(
    ("origin", "host", "is_foreign"),
    [
        (b"https://app.example", b"app.example", False),
        (b"https://APP.example", b"app.EXAMPLE", False),
        (b"https://app.example", b"app.example:443", False),
        (b"https://app.example:443", b"app.example", False),
        (b"http://app.example", b"app.example:80", False),
        (b"http://app.example:8000", b"app.example:8000", False),
        (b"https://[2001:db8::1]", b"[2001:db8::1]", False),
        (b"https://[2001:db8::1]", b"[2001:db8::1]:443", False),
        (b"http://[::1]:8000", b"[::1]:8000", False),
        (b"https://app.example", b"app.example:8443", True),
        (b"https://app.example", b"app.example:80", True),
        (b"http://app.example", b"app.example:443", True),
        (b"https://app.example:8443", b"app.example", True),
        (b"https://[2001:db8::443]", b"[2001:db8:]", True),
        (b"https://other.example", b"app.example", True),
        (b"https://sub.app.example", b"app.example", True),
        (b"https://app.example.evil", b"app.example", True),
        (b"https://app.example/", b"app.example", True),
        (b"https://user@app.example", b"app.example", True),
        (b"null", b"app.example", True),
        (b"null", b"null", True),
        (b"", b"app.example", True),
        (b"", b"", True),
        (b"://app.example", b"app.example", True),
        (b"file://", b"", True),
        (b"app.example", b"app.example", True),
        (b"capacitor://localhost", b"localhost", True),
        (b"chrome-extension://app.example", b"app.example", True),
    ],
)
def test_without_it_origin_must_name_the_host(
    origin: bytes, host: bytes, is_foreign: bool
) -> None:
    """Names have no case, default ports are none, and `null` names nobody."""
    assert is_foreign == is_cross_site([(b"origin", origin), (b"host", host)])


def test_an_origin_without_a_host_is_another_site_s() -> None:
    """Where nobody says what was asked for, no origin can name it."""
    assert is_cross_site([(b"origin", b"https://app.example")])


def test_without_either_header_it_is_no_browser() -> None:
    """A client that sends neither is not a page of another site."""
    assert not is_cross_site([HOST])


def test_a_listed_origin_is_ours() -> None:
    """What the application trusts is ours, whatever else the browser says."""
    trusted = frozenset({parse_origin("https://Login.Example:443/")})
    headers = [(b"origin", b"https://login.example"), (b"sec-fetch-site", b"cross-site")]
    assert is_cross_site([*headers, HOST])
    assert not is_cross_site([*headers, HOST], trusted)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://app.example", b"https://app.example"),
        ("HTTPS://App.Example/", b"https://app.example"),
        ("https://app.example:443", b"https://app.example"),
        ("http://app.example:80", b"http://app.example"),
        ("https://app.example:80", b"https://app.example:80"),
        ("http://localhost:5173", b"http://localhost:5173"),
        ("http://[::1]:5173", b"http://[::1]:5173"),
        ("https://xn--mnchen-3ya.example", b"https://xn--mnchen-3ya.example"),
    ],
)
def test_a_trusted_origin_is_kept_as_browsers_send_it(text: str, origin: bytes) -> None:
    """Lower case, no slash, no default port."""
    assert origin == parse_origin(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "*",
        "app.example",
        "//app.example",
        "https://",
        "ftp://app.example",
        "https://app.example/path",
        "https://app.example?x",
        "https://app.example#x",
        "https://user@app.example",
        "https://app.example:abc",
        "https://[::1",
        "https://*",
        "https://münchen.example",
        "https://app.example\n",
        "https://app.example//",
    ],
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    """A setting that could never match, or could match too much, is no setting."""
    with pytest.raises(ConfigError, match="is no origin"):
        parse_origin(text)


@pytest.mark.parametrize(
    ("site", "mode", "dest", "is_part"),
    [
        (b"cross-site", b"no-cors", b"image", True),
        (b"cross-site", b"cors", b"empty", True),
        (b"cross-site", b"navigate", b"iframe", True),
        (b"cross-site", b"websocket", b"websocket", True),
        (b"cross-site", None, None, True),
        (b"cross-site", b"navigate", b"document", False),
        (b"cross-site", b"navigate", None, False),
        (b"same-site", b"no-cors", b"image", False),
        (b"same-origin", b"no-cors", b"image", False),
        (b"none", b"navigate", b"document", False),
        (None, b"no-cors", b"image", False),
    ],
)
def test_c70_c71_only_a_foreign_part_of_a_page_is_one(
    site: bytes | None, mode: bytes | None, dest: bytes | None, is_part: bool
) -> None:
    """Another site's images, frames and fetches are parts; its links are not."""
    values = {b"Sec-Fetch-Site": site, b"sec-fetch-mode": mode, b"sec-fetch-dest": dest}
    headers = [(name, value) for name, value in values.items() if value is not None]
    assert is_part == is_subresource_of_other_site(headers)


UPGRADE = (b"Upgrade", b"websocket")


@pytest.mark.parametrize(
    ("method", "headers", "writes"),
    [
        ("GET", [], False),
        ("HEAD", [], False),
        ("POST", [], True),
        ("get", [], True),
        ("CONNECT", [(b":protocol", b"websocket")], True),
        (None, [], True),
        ("GET", [UPGRADE], True),
        ("HEAD", [UPGRADE], True),
        ("GET", [(b"UPGRADE", b"h2c,\tWebSocket;q=1")], True),
        ("GET", [(b"upgrade", b"h2c"), UPGRADE], True),
        ("GET", [UPGRADE, (b"upgrade", b"")], True),
        ("GET", [(b"upgrade", b"h2c, TLS/1.3")], False),
        ("GET", [(b"upgrade-insecure-requests", b"1")], False),
        ("GET", [(b"connection", b"Upgrade"), (b"upgrade", b"")], False),
        ("GET", [(b"sec-websocket-protocol", b"websocket")], False),
    ],
)
def test_a_handshake_is_a_write(
    method: str | None, headers: list[tuple[bytes, bytes]], writes: bool
) -> None:
    """Whatever its method, and whatever else it would be upgraded to."""
    assert is_write(method, headers) == writes


@pytest.mark.parametrize(
    ("headers", "is_early"),
    [
        ([(b"sec-purpose", b"prefetch")], True),
        ([(b"Sec-Purpose", b"prefetch;prerender")], True),
        ([(b"purpose", b"Prefetch")], True),
        ([(b"x-moz", b"prefetch")], True),
        ([(b"purpose", b"other"), (b"sec-purpose", b"prefetch")], True),
        ([(b"sec-purpose", b"")], False),
        ([(b"x-other", b"prefetch")], False),
        ([], False),
    ],
)
def test_c72_a_prefetch_is_known_by_its_headers(
    headers: list[tuple[bytes, bytes]], is_early: bool
) -> None:
    """The header and its two ancestors count, in any order."""
    assert is_early == is_prefetch(headers)


names = st.sampled_from(
    [b"origin", b"host", b"sec-fetch-site", b"sec-fetch-mode", b"purpose"]
)


@given(headers=st.lists(st.tuples(names | st.binary(), st.binary())))
def test_no_header_makes_a_verdict_raise(headers: list[tuple[bytes, bytes]]) -> None:
    """Every list of headers has an answer."""
    for verdict in (is_cross_site, is_subresource_of_other_site, is_prefetch):
        assert verdict(headers) in (True, False)
