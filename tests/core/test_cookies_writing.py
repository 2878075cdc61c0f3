"""Set-Cookie: every line that leaves is checked against the grammar of RFC 6265."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handstamp.config import Cookies
from handstamp.core.cookies import LONGEST_AGE, CookieWriter
from handstamp.core.responses import cookie_name
from tests.core.samples import make_tokens

WRITER = CookieWriter(Cookies())
OCTETS = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]"
LINE = re.compile(
    r"(?P<name>[!#$%&'*+\-.^_`|~0-9A-Za-z]+)=(?P<value>" + OCTETS + r"*)"
    r"(; Max-Age=(?P<age>0|[1-9][0-9]*))?; Path=/[\x21-\x3a\x3c-\x7e]*; HttpOnly"
    r"; SameSite=(Lax|Strict|None)(; Secure)?(; Domain=[0-9A-Za-z.-]+)?"
)

names = st.text("!#$%&'*+-.^_`|~abcXYZ019", min_size=1, max_size=40)
paths = st.text("".join(map(chr, range(0x21, 0x7F))).replace(";", ""), max_size=40)
settings = st.builds(
    Cookies,
    session_name=names.map("s".__add__),
    refresh_name=names.map("r".__add__),
    same_site=st.sampled_from(["Lax", "Strict", "None"]),
    path=paths.map("/".__add__),
    domain=st.none() | st.just("example.com"),
)


@given(
    cookies=settings,
    entropy=st.binary(min_size=64, max_size=64),
    life=st.timedeltas(timedelta(0)),
)
def test_every_cookie_that_leaves_keeps_the_grammar(
    cookies: Cookies, entropy: bytes, life: timedelta
) -> None:
    """Set, cleared, lasting or not: names, octets, sizes and ages are within the RFCs."""
    pair = make_tokens().mint("x" * 64, entropy, remember=True)
    writer = CookieWriter(cookies)
    lines = [
        writer.session_cookie(pair.session, life),
        writer.refresh_cookie(pair.refresh, life),
    ]
    lines += [writer.session_cookie(pair.session, None), *writer.clear()]
    for line in lines:
        match = LINE.fullmatch(line.decode("ascii"))
        assert match is not None
        assert len(match["name"]) + len(match["value"]) <= 4096
        assert int(match["age"] or 0) <= 34_560_000


def test_the_default_cookie_to_the_byte() -> None:
    """The default is host-only, https-only, unreadable for scripts and Lax."""
    expected = b"__Host-session=t; Max-Age=60; Path=/; HttpOnly; SameSite=Lax; Secure"
    assert expected == WRITER.session_cookie("t", timedelta(seconds=60))


def test_without_a_lifetime_a_cookie_ends_with_the_browser() -> None:
    """No Max-Age and no Expires: the browser forgets it."""
    line = WRITER.refresh_cookie("t", None)
    assert line == b"__Host-refresh=t; Path=/; HttpOnly; SameSite=Lax; Secure"


def test_a_fraction_of_a_second_is_rounded_down() -> None:
    """A cookie never outlives its token."""
    assert b"; Max-Age=59;" in WRITER.session_cookie(
        "t", timedelta(seconds=59, milliseconds=999)
    )


def test_no_cookie_is_asked_to_live_longer_than_browsers_allow() -> None:
    """400 days are the cap."""
    assert b"; Max-Age=34560000;" in WRITER.session_cookie("t", LONGEST_AGE * 2)


def test_clearing_repeats_the_attributes_of_setting() -> None:
    """A cookie is cleared by the very name, path, domain and flags it was set with."""
    cookies = Cookies(
        session_name="s",
        refresh_name="r",
        path="/app",
        domain="a.example",
        same_site="None",
    )
    writer = CookieWriter(cookies)
    zero = timedelta(0)
    assert (
        writer.session_cookie("", zero),
        writer.refresh_cookie("", zero),
    ) == writer.clear()
    tail = writer.session_cookie("t", None).removeprefix(b"s=t")
    assert [b"s=; Max-Age=0" + tail, b"r=; Max-Age=0" + tail] == list(writer.clear())


@pytest.mark.parametrize(
    "bad", ["a;b", "a\r\nb", "a b", "a,b", 'a"b', "a\\b", "é", "\x7f", "\0"]
)
def test_c105_no_value_breaks_out_of_its_attribute(bad: str) -> None:
    """A value that is no cookie value is never rendered, and the error does not hold it."""
    with pytest.raises(ValueError, match="__Host-session") as caught:
        WRITER.session_cookie(bad, None)
    assert bad not in str(caught.value)


@given(value=st.text(max_size=20))
def test_c105_a_value_is_rendered_as_it_is_or_refused(value: str) -> None:
    """There is no third way: nothing is escaped, cut or encoded."""
    allowed = re.fullmatch(OCTETS + "*", value) is not None
    try:
        line = WRITER.session_cookie(value, None)
    except ValueError:
        assert not allowed
    else:
        assert allowed
        assert line.startswith(f"__Host-session={value}; Path=/".encode())


def test_c154_secure_does_not_depend_on_the_request() -> None:
    """Secure is a setting of the writer: nothing a request says can take it away."""
    lines = [
        WRITER.session_cookie("t", None),
        WRITER.refresh_cookie("t", None),
        *WRITER.clear(),
    ]
    assert all(line.endswith(b"; Secure") for line in lines)


def test_c155_plain_http_has_names_without_prefix() -> None:
    """Not every browser accepts `__Host-` cookies on plain http: the names differ there."""
    writer = CookieWriter(Cookies.insecure())
    assert writer.session_cookie("t", None) == b"session=t; Path=/; HttpOnly; SameSite=Lax"
    assert frozenset({b"session", b"refresh"}) == writer.names


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (b"a=b; Path=/", b"a"),
        (b" a\t =b", b"a"),
        (b"a=b=c", b"a"),
        (b"=a=b", b""),
        (b"A=b", b"A"),
    ],
)
def test_the_name_in_a_set_cookie_is_found(line: bytes, name: bytes) -> None:
    """The name ends at the first equals sign, and white space is not part of it."""
    assert name == cookie_name(line)
