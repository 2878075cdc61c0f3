"""Request headers -> the session in the cookie of `@supabase/ssr`."""

from __future__ import annotations

import json
from typing import cast
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handstamp.core.cookies import NO_CREDENTIALS, Credentials
from handstamp.supabase.cookies import (
    MAX_BYTES,
    MAX_NAMES,
    CookieSession,
    SupabaseCookie,
    SupabaseCookieReader,
    SupabaseCookieWriter,
    cut,
    decode_session,
    encode_session,
)

NAME = "sb-abcd-auth-token"
READER = SupabaseCookieReader(NAME)


def session(access: str = "a.b.c", size: int = 0) -> dict[str, object]:
    """A session object, padded to about this many bytes."""
    user = {"n": "x" * size}
    return {"access_token": access, "refresh_token": "r", "expires_at": 1, "user": user}


def header(cookies: dict[str, str]) -> bytes:
    """A Cookie header as a browser sends it."""
    return "; ".join(f"{name}={value}" for name, value in cookies.items()).encode()


def read(*cookies: bytes) -> Credentials:
    """What the reader makes of these Cookie headers."""
    return READER.read([(b"cookie", cookie) for cookie in cookies])


def tokens(found: Credentials) -> list[str]:
    """The access tokens that are candidates."""
    claims = cast("tuple[CookieSession, ...]", found.claims)
    return [claim.access_token for claim in claims]


VALUE = encode_session(session())
LARGE = encode_session(session("large", 9000))
ONE = f"{NAME}={VALUE}".encode()
PIECES = header(cut(NAME, LARGE))


def test_a_single_cookie_is_read() -> None:
    """Whatever stands around it."""
    found = read(b"theme=dark; " + ONE + b"; lang=en")
    assert found.claims == (decode_session(VALUE),)
    assert found.received == {NAME: VALUE}
    assert found.sent
    assert found.ambient
    assert found


def test_pieces_are_joined() -> None:
    """In the order of their numbers, not of the header."""
    parts = PIECES.split(b"; ")
    assert len(parts) > 2
    assert tokens(read(b"; ".join(reversed(parts)))) == ["large"]
    assert set(read(PIECES).received) == {f"{NAME}.{n}" for n in range(len(parts))}


def test_more_than_ten_pieces_are_joined_by_number() -> None:
    """`.10` follows `.9`."""
    value = encode_session(session("many", 30_000))
    assert len(cut(NAME, value)) > 11
    assert tokens(read(header(cut(NAME, value)))) == ["many"]


def test_several_headers_are_one() -> None:
    """HTTP/2 may send each cookie alone."""
    assert tokens(read(*PIECES.split(b"; "))) == ["large"]


def test_the_name_itself_and_its_pieces_are_two_candidates() -> None:
    """One of them may be somebody else's; an empty one does not count."""
    for cookie in (PIECES + b"; " + ONE, ONE + b"; " + PIECES):
        assert set(tokens(read(cookie))) == {"a.b.c", "large"}
    assert tokens(read(PIECES + b"; " + NAME.encode() + b"=")) == ["large"]


def test_a_piece_too_many_is_left_out() -> None:
    """Another number behind the last one makes no other session of it."""
    last = len(PIECES.split(b"; "))
    for junk in (b"junk", VALUE.encode(), b"base64-"):
        tossed = f"{NAME}.{last}=".encode() + junk
        assert tokens(read(PIECES + b"; " + tossed)) == ["large"]


def test_every_combination_of_pieces_is_a_candidate() -> None:
    """A tossed piece of the same number hides nothing, in any order."""
    parts = PIECES.split(b"; ")
    for number in range(len(parts)):
        tossed = f"{NAME}.{number}=".encode() + b"A" * 3180
        for cookies in ([tossed, *parts], [*parts, tossed]):
            assert tokens(read(b"; ".join(cookies))) == ["large"]


def test_each_candidate_has_a_key_of_its_own() -> None:
    """The value itself where it is the only one, so that the fast path finds its entry."""
    found = read(PIECES + b"; " + ONE)
    assert set(found.claims) == {decode_session(LARGE), decode_session(VALUE)}
    assert set(found.session) == {b"a.b.c\nr", b"large\nr"}
    assert read(ONE).session == (VALUE.encode(),)
    assert read(PIECES).session == (LARGE.encode(),)


@pytest.mark.parametrize("twice", [3, 4])
def test_two_cookies_of_four_pieces_can_be_distinguished(twice: int) -> None:
    """Whatever the order of the pieces; more combinations than 32 are none."""
    size = 3180 * twice // 4 - 150
    both = [{**session(who), "user": {"n": who * size}} for who in ("one", "two")]
    cookies = [cut(NAME, encode_session(each)) for each in both]
    assert {len(cookie) for cookie in cookies} == {twice}
    lines = [header({name: value}) for cookie in cookies for name, value in cookie.items()]
    for order in (lines, lines[::-1], lines[::2] + lines[1::2]):
        assert set(tokens(read(b"; ".join(order)))) == {"one", "two"}
    third = header(dict.fromkeys(cookies[0], "x"))
    assert tokens(read(b"; ".join([*lines, third]))) == []


def test_what_one_request_makes_us_decode_is_bounded() -> None:
    """Long pieces that make no session, in many combinations: none, and no work."""
    piece = "x" * 7500
    many = [f"{NAME}.{n}={t}{piece}".encode() for n in range(4) for t in "ab"]
    assert tokens(read(b"; ".join([ONE, *many]))) == []


def test_a_missing_piece_ends_the_value() -> None:
    """What is left makes no session, so there is none, and the pieces stay known."""
    parts = PIECES.split(b"; ")
    for broken in (parts[:1] + parts[2:], parts[1:], parts[:-1]):
        found = read(b"; ".join(broken))
        assert found.claims == ()
        assert found.sent
        assert len(found.received) == len(broken)


def test_an_empty_piece_ends_the_value_too() -> None:
    """A removed cookie that a client sends back is no piece."""
    whole = header({f"{NAME}.0": VALUE, f"{NAME}.1": "", f"{NAME}.2": "!!"})
    assert tokens(read(whole)) == ["a.b.c"]


@pytest.mark.parametrize("name", ["x" + NAME, NAME + "x", NAME + ".01", NAME + ".a"])
def test_a_cookie_of_another_name_is_none_of_ours(name: str) -> None:
    """Neither a longer name nor a number with a leading zero."""
    assert read(f"{name}={VALUE}".encode()) == NO_CREDENTIALS


def test_a_name_is_no_pattern() -> None:
    """The dots in a name are dots."""
    reader = SupabaseCookieReader("a.b")
    found = reader.read([(b"cookie", f"axb={VALUE}; a.b.0={VALUE}".encode())])
    assert list(found.received) == ["a.b.0"]


@pytest.mark.parametrize("space", [b"\xa0", b"\x0b", b"\x0c", b"\r"])
def test_only_space_and_tab_are_trimmed(space: bytes) -> None:
    """Anything else makes it another name."""
    assert not read(b"a=b;" + space + ONE).sent
    assert tokens(read(b"a=b; \t" + ONE + b" \t")) == ["a.b.c"]
    assert read(ONE + space).received == {NAME: VALUE + space.decode("latin-1")}


def test_raw_json_is_read_percent_encoded_and_plain() -> None:
    """Older versions wrote it so, and the cookie package escaped it."""
    text = json.dumps({**session("raw"), "user": {"n": "é €"}}, ensure_ascii=False)
    found = read(f"{NAME}={quote(text, safe='')}".encode())
    assert tokens(found) == ["raw"]
    plain = json.dumps({**session("raw"), "user": {"n": "é"}}, ensure_ascii=False)
    assert tokens(read(f"{NAME}={plain}".encode("latin-1"))) == ["raw"]


def test_a_raw_value_in_pieces_is_unescaped_before_it_is_joined() -> None:
    """The package never cuts an escape, so each piece stands alone."""
    text = quote(json.dumps(session("raw", 10)), safe="")
    first, second = text[:30], text[30:]
    assert not first.endswith("%")
    assert tokens(read(header({f"{NAME}.0": first, f"{NAME}.1": second}))) == ["raw"]


@pytest.mark.parametrize("escape", ["%", "%4", "%zz", "%ff", "%ed%a0%80", "%c3"])
def test_a_wrong_escape_leaves_all_as_they_are(escape: str) -> None:
    """JavaScript gives such a value back untouched."""
    assert read(f"{NAME}=%7B{escape}".encode()).received == {NAME: f"%7B{escape}"}


def test_two_values_of_one_name_are_two_candidates() -> None:
    """Order decides nothing: both are claims, and the same one twice is one."""
    other = f"{NAME}={encode_session(session('other'))}".encode()
    assert set(tokens(read(ONE + b"; " + other))) == {"a.b.c", "other"}
    assert tokens(read(ONE + b"; " + ONE)) == ["a.b.c"]
    assert read(ONE + b"; " + other).received == {NAME: None}
    assert read(ONE + b"; " + ONE).received == {NAME: VALUE}


def test_pieces_of_two_cookies_are_two_candidates() -> None:
    """A cookie of before the domain changed is sent along with that of today."""
    older = header(cut(NAME, encode_session(session("older", 9000))))
    assert set(tokens(read(PIECES + b"; " + older))) == {"large", "older"}
    pairs = zip(PIECES.split(b"; "), older.split(b"; "), strict=True)
    mixed = b"; ".join(piece for pair in pairs for piece in pair)
    assert set(tokens(read(mixed))) == {"large", "older"}


@pytest.mark.parametrize(("sent", "candidates"), [(4, 4), (5, 0), (300, 0)])
def test_more_than_four_candidates_are_none(sent: int, candidates: int) -> None:
    """Nobody has so many, and each would cost a signature check."""
    values = [encode_session(session(f"t{n}")) for n in range(sent)]
    single = "; ".join(f"{NAME}={value}" for value in values).encode()
    assert len(read(single).claims) == candidates
    pieces = "; ".join(f"{NAME}.0={value}" for value in values).encode()
    assert len(read(pieces).claims) == candidates


def test_a_bad_candidate_is_no_candidate() -> None:
    """It is left out, and the good one stays."""
    assert tokens(read(f"{NAME}=base64-!; ".encode() + ONE)) == ["a.b.c"]


def test_a_bad_single_one_does_not_hide_the_pieces() -> None:
    """The package looks no further there; but anybody may have set it."""
    assert tokens(read(f"{NAME}=base64-!; ".encode() + PIECES)) == ["large"]


def test_the_neighbours_of_auth_js_are_known_and_not_read() -> None:
    """Signing out removes them; none of them is a session."""
    names = [f"{NAME}-code-verifier", f"{NAME}-user", f"{NAME}-flows-code-verifier"]
    names += [f"{NAME}-flow-abcdefgh-code-verifier", f"{NAME}-user.0", f"{NAME}-user.1"]
    found = read(header(dict.fromkeys(names, VALUE)))
    assert list(found.received) == names
    assert found.claims == ()


def test_foreign_cookies_make_no_large_response() -> None:
    """At most 32 names are remembered, the lowest numbers among them."""
    junk = {f"{NAME}.{n}": "x" for n in range(5000, 6800)}
    found = read(header({**junk, **cut(NAME, LARGE)}))
    assert tokens(found) == ["large"]
    assert len(found.received) == MAX_NAMES
    assert set(cut(NAME, LARGE)) <= set(found.received)
    writer = SupabaseCookieWriter(SupabaseCookie(name=NAME, domain="a.example"))
    assert sum(map(len, writer.clear(found.received))) < 8192


def test_of_what_is_longer_than_the_limit_nothing_is_read() -> None:
    """64 KiB are looked at; what is cut off would decide."""
    padding = b"a=" + b"x" * (MAX_BYTES - len(ONE) - 4) + b"; "
    assert tokens(read(padding + ONE)) == ["a.b.c"]
    assert tokens(read(b"x" + padding + ONE)) == []
    assert tokens(read(ONE + b"; x" + padding[:-2])) == []


@pytest.mark.parametrize(
    "hostile",
    [
        b";" * MAX_BYTES,
        b"; " * (MAX_BYTES // 2),
        b";" + b" " * MAX_BYTES,
        f"{NAME}.".encode() * (MAX_BYTES // 20),
        f"{NAME}-flow-".encode() + b"a" * MAX_BYTES,
        f"; {NAME}.0=x".encode() * (MAX_BYTES // 24),
        f"; {NAME}-flow-aaaaaaaaaaaaaaaa".encode() * (MAX_BYTES // 44),
        f"{NAME}.".encode() + b"1" * MAX_BYTES,
        f"{NAME}=".encode() + b"%" * MAX_BYTES,
        f"{NAME}=".encode() + b"%41" * (MAX_BYTES // 3),
        f"{NAME}=".encode() + b"[" * MAX_BYTES,
        f"{NAME}=".encode() + b"1" * MAX_BYTES,
    ],
    ids=range(12),
)
def test_hostile_headers_are_no_session(hostile: bytes) -> None:
    """Whatever fills the header, the answer is that there is none."""
    assert read(hostile).claims == ()
    assert READER.read_fast(hostile) is None


def test_a_bearer_replaces_the_cookie() -> None:
    """Nothing a browser attached by itself counts beside it."""
    headers = [(b"Cookie", ONE), (b"Authorization", b"Bearer  a.b-c._x ")]
    for found in (READER.read(headers), READER.read(headers, bearer=False)):
        assert found.claims == (CookieSession(access_token="a.b-c._x", refresh_token=""),)
        assert found.sent
        assert not found.ambient
        assert found.received == {}
    assert READER.received(headers) == {NAME: VALUE}


@pytest.mark.parametrize("other", [b"Basic YTpi", b"Bearer", b"Bearer a b", b"Bearer \xff"])
def test_another_authorization_leaves_the_cookie(other: bytes) -> None:
    """What is no bearer token claims nothing."""
    found = READER.read([(b"authorization", other), (b"cookie", ONE)])
    assert tokens(found) == ["a.b.c"]


def test_a_request_without_our_cookie_claims_nothing() -> None:
    """And needs no answer about it."""
    for headers in ([], [(b"cookie", b"theme=dark")], [(b"host", b"a")]):
        assert READER.read(headers) == NO_CREDENTIALS
    assert not NO_CREDENTIALS
    assert not NO_CREDENTIALS.sent


def test_credentials_show_nothing() -> None:
    """Neither a token nor a cookie is in their repr."""
    shown = repr(read(ONE)) + repr(READER.read([(b"authorization", b"Bearer x.y.z")]))
    assert VALUE not in shown
    assert "a.b.c" not in shown
    assert "x.y.z" not in shown


def test_the_fast_path_accepts_ordinary_requests() -> None:
    """One cookie or its pieces in order, anywhere in the header."""
    assert READER.read_fast(ONE) == VALUE.encode()
    assert READER.read_fast(b"a=b; " + ONE + b"; c=d") == VALUE.encode()
    assert READER.read_fast(PIECES) == LARGE.encode()
    assert READER.read_fast(b"a=b; " + PIECES + b"; c=d") == LARGE.encode()


@pytest.mark.parametrize(
    "unusual",
    [
        b"",
        b"theme=dark",
        b"a=" + ONE,
        b"x" + ONE,
        ONE + b"; " + ONE,
        ONE + b"; " + PIECES,
        PIECES + b"; " + ONE,
        b"; ".join(reversed(PIECES.split(b"; "))),
        f"{NAME}.1={VALUE}".encode(),
        f"{NAME}=".encode(),
        f"{NAME}.0=base64-e30; {NAME}.1=; {NAME}.2=x".encode(),
        f"{NAME}=base64-%41".encode(),
        f"{NAME}=%7B".encode(),
        ONE + f"; {NAME}-user={VALUE}".encode(),
        b"a=" + b"x" * MAX_BYTES + b"; " + ONE,
        ONE + b" ; a=b",
        ONE + b"\t",
    ],
    ids=range(17),
)
def test_the_fast_path_leaves_unusual_cookies_to_the_slow_path(unusual: bytes) -> None:
    """What it does not take is None, never a guess."""
    assert READER.read_fast(unusual) is None


bits = st.sampled_from(
    [
        *(ONE, PIECES, *PIECES.split(b"; "), NAME.encode(), b"; ", b";", b"=", b" "),
        *(b".0=", b".1=", b"a=b", b"base64-", b"%", b"%41", b"\xe9", b"-user="),
        VALUE.encode(),
    ]
)


@given(pieces=st.lists(bits | st.binary(max_size=3), max_size=12).map(b"".join))
@example(pieces=ONE + b" ")
@example(pieces=PIECES.replace(b"; ", b" ; "))
def test_both_ways_see_the_same_session(pieces: bytes) -> None:
    """Where the short way takes a value that is a session, the long way finds that
    session and no other."""
    found = read(pieces)
    assert len(found.claims) <= 4
    value = READER.read_fast(pieces)
    if value is not None:
        alone = decode_session(value.decode("latin-1"))
        assert alone is None or found.claims == (alone,)
        assert found.sent


@given(
    size=st.integers(0, 20_000),
    around=st.binary(max_size=20).filter(lambda b: b";" not in b),
)
def test_what_is_written_is_read(size: int, around: bytes) -> None:
    """The lines of our writer, sent back by a browser, are the session again."""
    writer = SupabaseCookieWriter(SupabaseCookie(name=NAME))
    lines = writer.session(session("x", size), {})
    cookies = b"; ".join(line.partition(b";")[0] for line in lines)
    assert tokens(read(b"z=" + around + b"; " + cookies)) == ["x"]
    assert READER.read_fast(cookies) is not None
