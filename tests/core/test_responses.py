"""What a response's headers say because of us: cases C-100 to C-102."""

from __future__ import annotations

import pytest

from handstamp.core.responses import Headers, sets_cookie, vary_on_cookie, with_cookies

NAMES = frozenset({b"session", b"refresh"})
OURS = [b"session=s; Path=/", b"refresh=r; Path=/"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], [(b"vary", b"Cookie")]),
        ([(b"vary", b"Accept")], [(b"vary", b"Accept, Cookie")]),
        (
            [(b"Vary", b"Accept"), (b"VARY", b"Origin")],
            [(b"vary", b"Accept, Origin, Cookie")],
        ),
        ([(b"vary", b"Accept, cookie")], [(b"vary", b"Accept, cookie")]),
        ([(b"vary", b"COOKIE")], [(b"vary", b"COOKIE")]),
        ([(b"vary", b"*")], [(b"vary", b"*")]),
        (
            [(b"vary", b"Accept"), (b"vary", b" * ")],
            [(b"vary", b"Accept"), (b"vary", b" * ")],
        ),
        ([(b"vary", b"Cookie2")], [(b"vary", b"Cookie2, Cookie")]),
    ],
)
def test_c102_vary_is_merged_once(before: Headers, after: Headers) -> None:
    """Cookie joins the Vary that is there, never twice, and a star stays alone."""
    assert after == vary_on_cookie(before)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"Accept", b"Accept, Authorization, Cookie"),
        (b"cookie", b"cookie, Authorization"),
        (b"Cookie, authorization", b"Cookie, authorization"),
        (b"*", b"*"),
    ],
)
def test_c102_the_answer_to_a_bearer_token_varies_by_it(
    before: bytes, after: bytes
) -> None:
    """And by the cookie too, which counts where there is no token."""
    assert vary_on_cookie([(b"vary", before)], bearer=True) == [(b"vary", after)]


def test_c102_other_headers_keep_their_order() -> None:
    """Only Vary is touched."""
    headers = [(b"b", b"1"), (b"vary", b"Accept"), (b"a", b"2"), (b"b", b"3")]
    assert vary_on_cookie(headers)[:3] == [(b"b", b"1"), (b"a", b"2"), (b"b", b"3")]


@pytest.mark.parametrize(
    "name",
    [
        b"Cache-Control",
        b"cache-control",
        b"Expires",
        b"Pragma",
        b"Surrogate-Control",
        b"CDN-Cache-Control",
        b"Cloudflare-CDN-Cache-Control",
        b"Vercel-CDN-Cache-Control",
        b"Akamai-Cache-Control",
        b"Edge-Control",
        b"X-Accel-Expires",
    ],
)
def test_c100_nothing_lets_a_cache_keep_our_cookie(name: bytes) -> None:
    """Whatever the application told caches is replaced by `private, no-store`."""
    edited = with_cookies([(name, b"public, max-age=3600")], OURS[:1], NAMES)
    expected = [(b"cache-control", b"private, no-store"), (b"set-cookie", OURS[0])]
    assert expected == edited


def test_c101_a_response_that_says_nothing_is_not_stored_either() -> None:
    """A heuristically cacheable answer with our cookie is made uncacheable."""
    edited = with_cookies([(b"content-type", b"text/plain")], OURS, NAMES)
    assert (b"cache-control", b"private, no-store") in edited
    assert (b"content-type", b"text/plain") in edited


def test_set_cookie_lines_stay_separate() -> None:
    """Two cookies are two header lines: they cannot be joined by a comma."""
    theirs = (b"set-cookie", b"theme=dark")
    edited = with_cookies([theirs, theirs], OURS, NAMES)
    lines = [value for name, value in edited if name == b"set-cookie"]
    assert [b"theme=dark", b"theme=dark", *OURS] == lines


@pytest.mark.parametrize("line", [b"session=evil; Path=/", b" session =x", b"refresh="])
def test_c93_an_application_cookie_of_our_name_gives_way(line: bytes) -> None:
    """One Set-Cookie of a name in one response, and it is ours."""
    edited = with_cookies([(b"Set-Cookie", line)], OURS, NAMES)
    assert [value for name, value in edited if name.lower() == b"set-cookie"] == OURS


@pytest.mark.parametrize(
    ("header", "is_ours"),
    [
        ((b"set-cookie", b"session=1"), True),
        ((b"SET-COOKIE", b"refresh=1"), True),
        ((b"set-cookie", b"Session=1"), False),
        ((b"set-cookie", b"session2=1"), False),
        ((b"set-cookie", b"a=session=1"), False),
        ((b"x-set-cookie", b"session=1"), False),
    ],
)
def test_a_cookie_is_ours_by_its_exact_name(
    header: tuple[bytes, bytes], is_ours: bool
) -> None:
    """Header names have no case, cookie names have one."""
    assert is_ours == sets_cookie(header, NAMES)


def test_the_application_s_list_is_not_changed() -> None:
    """The edit makes a new list: the application may reuse its own."""
    headers = [(b"vary", b"Accept"), (b"cache-control", b"public")]
    before = list(headers)
    vary_on_cookie(headers)
    with_cookies(headers, OURS, NAMES)
    assert before == headers
