"""Request headers -> Credentials: cases C-01 to C-30 as far as bytes decide them."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handstamp.config import Cookies
from handstamp.core.cookies import (
    LONGEST_TOKEN,
    MAX_BYTES,
    MAX_CANDIDATES,
    NO_CREDENTIALS,
    CookieReader,
    Credentials,
)
from tests.core.samples import make_tokens

READER = CookieReader(Cookies())
OURS = b"__Host-session="
THEIRS = b"__Host-refresh="
TOKENS = make_tokens()
PAIR = TOKENS.mint("01JGGZ5Z8V0000000000000000", bytes(64), remember=True)
TOKEN = PAIR.session.encode()
WELL_FORMED = re.compile(rb"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]{1,512}")

pieces = st.sampled_from(
    [OURS, THEIRS, b"; ", b";", b" ", b"\t", b"=", b"a", b"x=1", b'"', b",", b"\xa0", TOKEN]
)
crumbs = st.lists(pieces | st.binary(max_size=3), max_size=24).map(b"".join)


def read(*cookies: bytes) -> Credentials:
    """What the reader makes of these Cookie headers."""
    return READER.read([(b"cookie", cookie) for cookie in cookies])


def by_the_book(header: bytes, name: bytes) -> tuple[bytes, ...]:
    """A second reader, slow and plain: split at semicolons, trim, compare names."""
    values: dict[bytes, None] = {}
    for part in header[:MAX_BYTES].split(b";"):
        key, equals, value = part.lstrip(b" \t").partition(b"=")
        if equals and key == name:
            values[value.strip(b" \t")] = None
    if len(values) > MAX_CANDIDATES:
        return ()
    return tuple(v for v in values if WELL_FORMED.fullmatch(v))


def test_an_ordinary_request_yields_both_tokens() -> None:
    """Both cookies are read, whatever stands around them."""
    found = read(b"theme=dark; " + OURS + TOKEN + b"; " + THEIRS + b"r; lang=en")
    expected = Credentials(session=(TOKEN,), refresh=(b"r",), sent=True, ambient=True)
    assert expected == found


@pytest.mark.parametrize("headers", [[], [(b"host", b"a")], [(b"cookie", b"theme=dark")]])
def test_a_request_without_our_cookies_claims_nothing(
    headers: list[tuple[bytes, bytes]],
) -> None:
    """Nothing of ours means no credentials, and no sign that any were sent."""
    assert READER.read(headers) == NO_CREDENTIALS
    assert not NO_CREDENTIALS.sent


def test_c01_both_of_two_different_cookies_are_candidates() -> None:
    """Order decides nothing: two values of one name are both claims."""
    assert {b"one", b"two"} == set(read(OURS + b"one; " + OURS + b"two").session)
    assert {b"one", b"two"} == set(read(OURS + b"two; " + OURS + b"one").session)


def test_c03_identical_cookies_are_one_candidate() -> None:
    """The same value twice is one claim."""
    assert read(OURS + TOKEN + b"; " + OURS + TOKEN).session == (TOKEN,)


@pytest.mark.parametrize(("sent", "candidates"), [(4, 4), (5, 0), (500, 0)])
def test_c04_more_than_four_candidates_are_none(sent: int, candidates: int) -> None:
    """Four different values are looked at, and a fifth voids them all."""
    found = read(b"; ".join(OURS + b"%d" % n for n in range(sent)))
    assert candidates == len(found.session)
    assert found.sent


def test_c05_several_cookie_headers_are_one() -> None:
    """HTTP/2 crumbs count as if they were joined."""
    crumbs = [b"theme=dark", OURS + TOKEN, THEIRS + b"r"]
    assert read(b"; ".join(crumbs)) == read(*crumbs)
    assert read(*crumbs).session == (TOKEN,)


def test_c06_a_comma_ends_no_cookie() -> None:
    """A proxy that joined headers by comma has made another value of ours."""
    assert read(OURS + TOKEN + b", theme=dark").session == ()
    assert read(b"theme=dark, " + OURS + TOKEN) == NO_CREDENTIALS


def test_c07_only_the_first_16_kib_are_looked_at() -> None:
    """What stands beyond the cap is not there, by the short way and by the long one."""
    filler = b"a=" + b"x" * MAX_BYTES
    header = filler + b"; " + OURS + TOKEN
    assert read(header) == NO_CREDENTIALS
    assert READER.read_fast(header) is None


@pytest.mark.parametrize("pair", [b"a=;", OURS + b";", b";" + b" " * 9, b"=" * 9, OURS])
def test_c07_a_megabyte_of_pairs_yields_at_most_four(pair: bytes) -> None:
    """A flood of tiny pairs is cut off, whatever it repeats."""
    flood = (pair * (1 + 1_000_000 // len(pair)))[:1_000_000]
    assert read(flood).session == ()
    assert READER.read_fast(flood) is None


@pytest.mark.parametrize("length", [LONGEST_TOKEN + 1, 4096, 65_536])
def test_c08_a_value_too_long_for_a_token_is_no_candidate(length: int) -> None:
    """An overlong value is dropped before anything hashes it."""
    assert read(OURS + b"x" * length).session == ()
    assert read(OURS + b"x" * LONGEST_TOKEN).session == (b"x" * LONGEST_TOKEN,)


@pytest.mark.parametrize(
    "header",
    [
        b"__Host-session",
        b"=" + OURS + TOKEN,
        b"theme=dark; =" + OURS + TOKEN,
        b"theme=" + OURS + TOKEN,
        b"x" + OURS + TOKEN,
        b"theme=dark;x" + OURS + TOKEN,
    ],
)
def test_c09_a_nameless_cookie_never_becomes_named(header: bytes) -> None:
    """Our name inside a value, or without its equals sign, is not our cookie."""
    assert read(header) == NO_CREDENTIALS
    assert READER.read_fast(header) is None


def test_c09_an_empty_value_is_no_candidate() -> None:
    """An empty cookie was sent, and claims nothing."""
    found = read(OURS)
    assert found.session == ()
    assert found.sent


@pytest.mark.parametrize("space", [bytes([n]) for n in range(256) if n not in b" \t;"])
def test_c10_only_space_and_tab_are_trimmed(space: bytes) -> None:
    """Any other byte before a name makes it another name."""
    for header in (space + OURS + TOKEN, b"a=b; " + space + OURS + TOKEN):
        assert read(header) == NO_CREDENTIALS
        assert READER.read_fast(header) is None
    assert read(b"a=b; \t " + OURS + TOKEN).session == (TOKEN,)


@pytest.mark.parametrize(
    "name",
    [
        b"__%48ost-session",
        b"..Host-session",
        b"_ Host-session",
        b"__Host_session",
        b"__host-session",
        b"__HOST-SESSION",
        b"__Host-session ",
        b"__Host-session2",
    ],
)
def test_c11_c12_a_name_is_ours_only_to_the_byte(name: bytes) -> None:
    """Encoded, mangled and differently cased names are other names."""
    assert read(name + b"=" + TOKEN) == NO_CREDENTIALS


def test_c13_quotes_are_part_of_a_value() -> None:
    """Nothing is unquoted, so a quoted token is no candidate."""
    assert read(OURS + b'"' + TOKEN + b'"').session == ()


def test_c14_a_semicolon_ends_a_pair_inside_quotes_too() -> None:
    """A quote that another cookie opened does not swallow ours."""
    header = b'$Version=1; theme="dark; ' + OURS + TOKEN + b'; end="'
    assert read(header).session == (TOKEN,)
    assert READER.read_fast(header) == TOKEN


def test_c15_dollar_names_are_plain_names() -> None:
    """RFC 2965 means nothing here."""
    header = b"$Version=1; " + OURS + TOKEN + b"; $Path=/; $Domain=a"
    assert read(header).session == (TOKEN,)


def test_c16_backslashes_are_no_escapes() -> None:
    """An octal escape and fifty thousand backslashes are no token."""
    assert read(OURS + b'"a\\054b"').session == ()
    assert read(OURS + b"\\" * 50_000).session == ()


@given(noise=st.binary(max_size=40).filter(lambda b: b";" not in b))
@example(noise=b"[](),/@")
def test_c17_other_cookies_do_not_disturb_ours(noise: bytes) -> None:
    """Whatever another cookie holds, ours is read."""
    assert read(b"other=" + noise + b"; " + OURS + TOKEN).session == (TOKEN,)
    assert read(OURS + TOKEN + b"; other=" + noise).session == (TOKEN,)


@pytest.mark.parametrize(
    "bad", [bytes([n]) for n in [*range(0x21), *range(0x7F, 0x100), *b'",\\'] if n != 0x3B]
)
def test_c18_c19_a_forbidden_byte_voids_a_value(bad: bytes) -> None:
    """Control characters, non-ASCII, quotes, commas and backslashes are in no token."""
    assert read(OURS + b"ab" + bad + b"cd").session == ()
    if bad not in b" \t":
        assert read(OURS + bad + b"ab").session == ()
        assert read(OURS + b"ab" + bad).session == ()


@pytest.mark.parametrize(
    "bad", [b"\xff\xfe", b"\xc0\xaf", "\ud800".encode("utf-8", "surrogatepass")]
)
def test_c20_invalid_utf8_is_refused_without_decoding(bad: bytes) -> None:
    """Broken encodings are bytes like others: no candidate, no error."""
    assert read(OURS + TOKEN[:-1] + bad).session == ()


def test_c21_percent_signs_are_not_decoded() -> None:
    """A percent-encoded token is a text of its own, and the gate does not know it."""
    encoded = b"%" + TOKEN[:1].hex().encode() + TOKEN[1:]
    assert (encoded,) == read(OURS + encoded).session
    assert not TOKENS.is_session(encoded)


def test_c24_space_around_a_value_is_trimmed() -> None:
    """Optional white space belongs to the header, not to the token."""
    assert read(OURS + b" \t" + TOKEN + b"\t ; a=b").session == (TOKEN,)


@pytest.mark.parametrize("name", [b"cookie", b"Cookie", b"COOKIE"])
def test_c25_the_header_name_has_no_case(name: bytes) -> None:
    """Servers that do not lower header names are understood."""
    assert READER.read([(name, OURS + TOKEN)]).session == (TOKEN,)


def test_c27_headers_may_be_views_and_may_be_read_only_once() -> None:
    """A generator of memory views is read like a list of bytes."""
    pairs = [(b"host", b"a"), (b"cookie", OURS + TOKEN)]
    once = ((memoryview(name), memoryview(value)) for name, value in pairs)
    found = READER.read(once)  # type: ignore[arg-type]
    assert found.session == (TOKEN,)
    assert type(found.session[0]) is bytes


@pytest.mark.parametrize("name", [b"cookie2", b"set-cookie", b"cookie_", b"x-cookie"])
def test_c29_c30_only_the_cookie_header_counts(name: bytes) -> None:
    """Neighbours of the Cookie header are no credentials."""
    assert READER.read([(name, OURS + TOKEN)]) == NO_CREDENTIALS


def test_c34_a_bearer_header_counts_only_where_it_is_switched_on() -> None:
    """Authorization is ignored by default, and replaces the cookies when it is not."""
    headers = [(b"authorization", b"Bearer " + TOKEN), (b"cookie", OURS + b"other")]
    assert READER.read(headers).session == (b"other",)
    expected = Credentials(session=(TOKEN,), sent=True, ambient=False)
    assert expected == READER.read(headers, bearer=True)


@pytest.mark.parametrize("value", [b"Basic abc", b"Bearer", b"Bearer ", b"Bearer a b"])
def test_a_malformed_bearer_header_leaves_the_cookies(value: bytes) -> None:
    """What is no bearer token does not hide the cookies."""
    headers = [(b"authorization", value), (b"cookie", OURS + TOKEN)]
    assert READER.read(headers, bearer=True).session == (TOKEN,)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (OURS + b"v", b"v"),
        (OURS + b"v; a=b", b"v"),
        (b"a=b; " + OURS + b"v", b"v"),
        (b"a=b;" + OURS + b"v", None),
        (b" " + OURS + b"v", None),
        (b";" + OURS + b"v", None),
        (b"x" + OURS + b"v", None),
        (b"; " + OURS + b"v", b"v"),
        (b"a=" + OURS + b"v", None),
        (OURS + b"v; a=" + OURS, None),
        (OURS + b"v; " + OURS + b"v", None),
        (b"", None),
    ],
)
def test_the_short_way_takes_only_the_usual(header: bytes, value: bytes | None) -> None:
    """Anything unusual about the cookie is left to the long way."""
    assert value == READER.read_fast(header)


@given(header=crumbs)
@example(header=b" " + OURS + b"v")
@example(header=b"a=b;" + OURS + b"v")
@example(header=b"a=" + OURS + b"v")
def test_the_short_way_finds_what_the_long_way_finds(header: bytes) -> None:
    """A well-formed value of the short way is the one candidate of the long way."""
    value = READER.read_fast(header)
    if value is not None and WELL_FORMED.fullmatch(value):
        assert (value,) == read(header).session


@given(before=st.sampled_from([b"", b"a=b; "]), value=st.binary(max_size=40))
def test_the_short_way_finds_a_usual_cookie(before: bytes, value: bytes) -> None:
    """Where one cookie stands in its usual place, the short way reads it."""
    if OURS not in value:
        assert value.partition(b";")[0] == READER.read_fast(before + OURS + value)


@given(header=crumbs)
def test_the_reader_agrees_with_a_plain_one(header: bytes) -> None:
    """Splitting at semicolons and comparing names finds the same candidates."""
    found = read(header)
    assert by_the_book(header, b"__Host-session") == found.session
    assert by_the_book(header, b"__Host-refresh") == found.refresh


@given(
    headers=st.lists(
        st.tuples(st.sampled_from([b"cookie", b"authorization"]) | st.binary(), st.binary())
    ),
    bearer=st.booleans(),
)
def test_no_bytes_raise_and_candidates_are_bounded(
    headers: list[tuple[bytes, bytes]], bearer: bool
) -> None:
    """Whatever a client sends, there are a few well-formed candidates or none."""
    found = READER.read(headers, bearer=bearer)
    for candidates in (found.session, found.refresh):
        assert len(candidates) <= MAX_CANDIDATES
        assert all(map(WELL_FORMED.fullmatch, candidates))


@given(header=st.binary())
def test_no_bytes_raise_on_the_short_way(header: bytes) -> None:
    """The short way returns bytes or None, whatever it is given."""
    assert isinstance(READER.read_fast(header), bytes | None)


@pytest.mark.parametrize("padding", [b"", b"x=" + b"x" * MAX_BYTES + b"; "])
def test_every_cookie_is_read_in_order_to_end_sessions(padding: bytes) -> None:
    """However many there are, and however long the header is: a neighbour who plants
    cookies must not keep a session alive that is to end."""
    planted = b"; ".join(OURS + b"%d; " % n + THEIRS + b"%d" % n for n in range(50))
    header = padding + planted + b"; " + OURS + TOKEN + b"; " + THEIRS + b"r"
    headers = [(b"cookie", header)]
    assert not READER.read(headers)
    found = READER.read(headers, every=True)
    assert (len(found.session), len(found.refresh)) == (51, 51)
    assert TOKEN in found.session
    assert b"r" in found.refresh
    assert (found.sent, found.ambient) == (True, True)
