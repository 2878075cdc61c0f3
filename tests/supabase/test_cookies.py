"""The cookie of `@supabase/ssr`, against values and lines its own code made."""

from __future__ import annotations

import json
import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handstamp.core.responses import cookie_name
from handstamp.errors import ConfigError
from handstamp.supabase.cookies import (
    LONGEST_ACCESS_TOKEN,
    LONGEST_REFRESH_TOKEN,
    MAX_CHARACTERS,
    NO_STORE,
    CookieSession,
    SupabaseCookie,
    SupabaseCookieWriter,
    cut,
    decode_session,
    encode_session,
    is_piece,
    storage_key,
)

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())["cookies"]
NAME = "sb-abcdefghijklmnop-auth-token"
OF_SSR = SupabaseCookie(name=NAME, http_only=False, secure=False)
WRITER = SupabaseCookieWriter(OF_SSR)
TAIL = b"; Max-Age=34560000; Path=/; SameSite=Lax"
GONE = b"; Max-Age=0; Path=/; SameSite=Lax"

texts = st.text(max_size=200)
sessions = st.fixed_dictionaries(
    {
        "access_token": st.text("abcXYZ019._-", min_size=1, max_size=5000),
        "token_type": st.just("bearer"),
        "expires_in": st.just(3600),
        "expires_at": st.integers(0, 2**33),
        "refresh_token": st.text("abcXYZ019_-", min_size=1, max_size=62),
        "user": st.dictionaries(texts, texts, max_size=5),
    }
)


def value_of(session: Mapping[str, Any], *, raw: bool = False) -> str:
    """The cookie's whole value; ``raw`` as older versions of the package wrote it."""
    return json.dumps(session) if raw else encode_session(session)


def ordinary(**changes: object) -> dict[str, object]:
    """A session object, small."""
    return {"access_token": "a.b.c", "refresh_token": "r", "expires_at": 1, **changes}


def sized(length: int) -> dict[str, object]:
    """A session whose value has exactly this many characters."""
    return {"k": "x" * ((length - 7) * 3 // 4 - len('{"k":""}'))}


def pairs(lines: list[bytes]) -> list[tuple[str, str]]:
    """Name and value of each Set-Cookie line."""
    split = [line.decode().partition("=") for line in lines]
    return [(name, rest.partition(";")[0]) for name, _, rest in split]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://abcd.supabase.co", "sb-abcd-auth-token"),
        ("https://ABCD.supabase.co/", "sb-abcd-auth-token"),
        ("http://localhost:54321", "sb-localhost-auth-token"),
        ("http://127.0.0.1", "sb-127-auth-token"),
        (" https://auth.example.com:8443/path?x=1#y ", "sb-auth-auth-token"),
        ("https://user:secret@a-b.example", "sb-a-b-auth-token"),
    ],
)
def test_the_name_comes_from_the_project_s_url(url: str, name: str) -> None:
    """The first label of the host, in small letters."""
    assert storage_key(url) == name


@pytest.mark.parametrize(
    "url",
    [
        *("", "abcd.supabase.co", "ftp://a.b", "https://", "https://[::1"),
        *("http://[::1]:1", "https://münchen.example", "https://a;b.example"),
        "postgresql://a/b",
    ],
)
def test_what_makes_no_name_is_refused(url: str) -> None:
    """A name that is not the clients' own would find no cookie, so there is none."""
    with pytest.raises(ConfigError):
        storage_key(url)


def test_a_session_is_encoded_to_the_byte() -> None:
    """The value is the one of the package for the same object, in the same order."""
    session = json.loads(VECTORS["json"])
    assert encode_session(session) == VECTORS["cookie_value"]


@given(session=sessions)
def test_what_is_encoded_is_decoded(session: dict[str, Any]) -> None:
    """The tokens survive, in the value of today and in the one of old."""
    expected = CookieSession(
        access_token=session["access_token"],
        refresh_token=session["refresh_token"],
    )
    assert decode_session(value_of(session)) == expected
    assert decode_session(value_of(session, raw=True)) == expected


def test_half_a_surrogate_pair_is_escaped() -> None:
    """JavaScript writes it so, and nothing else can: it has no UTF-8."""
    value = encode_session(ordinary(user={"name": "\ud800"}))
    assert decode_session(value) == decode_session(encode_session(ordinary()))
    raw = value.removeprefix("base64-")
    assert b"\\ud800" in urlsafe_b64decode(raw + "=" * (-len(raw) % 4))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_json_is_not_written(bad: float) -> None:
    """JavaScript could not read it back."""
    with pytest.raises(ValueError, match="JSON"):
        encode_session(ordinary(x=bad))


@pytest.mark.parametrize("ignored", [" ", "\t", "\r", "\n", "="])
def test_white_space_and_padding_are_ignored(ignored: str) -> None:
    """The package's decoder skips them anywhere."""
    value = encode_session(ordinary())
    assert decode_session(value[:20] + ignored + value[20:] + ignored) is not None


def test_the_bits_left_over_are_dropped() -> None:
    """One character more makes no byte, and a stray bit in the last one changes none."""
    value = encode_session(ordinary(user={}))
    while len(value[7:]) % 4:
        value = encode_session(ordinary(user={"x": "x" * len(value)}))
    assert decode_session(value + "A") == decode_session(value)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "base64-",
        "base64-!",
        "base64-e30",
        "base64-A",
        "base64-gICA",
        "{",
        "null",
        "[]",
        "1",
        '"x"',
        "{}",
        '["access_token","refresh_token","expires_at"]',
        "undefined",
        "base64-" + "A" * 4000,
        "[" * 60_000,
        "1" * 60_000,
    ],
)
def test_what_is_no_session_is_absent(value: str) -> None:
    """Undecodable, no JSON, no object or without tokens: None, and no exception."""
    assert decode_session(value) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"access_token": None},
        {"access_token": 5},
        {"access_token": ""},
        {"access_token": "é"},
        {"access_token": "\ud800"},
        {"access_token": "a" * (LONGEST_ACCESS_TOKEN + 1)},
        {"refresh_token": None},
        {"refresh_token": ["a"]},
        {"refresh_token": ""},
        {"refresh_token": "a" * (LONGEST_REFRESH_TOKEN + 1)},
    ],
)
def test_a_session_without_two_tokens_is_none(changes: dict[str, object]) -> None:
    """Both must be texts that could be tokens."""
    assert decode_session(encode_session(ordinary(**changes))) is None
    assert decode_session(json.dumps(ordinary(**changes))) is None


@pytest.mark.parametrize("missing", ["access_token", "refresh_token", "expires_at"])
def test_auth_js_and_we_agree_on_what_a_session_is(missing: str) -> None:
    """It has three members."""
    session = ordinary()
    del session[missing]
    assert decode_session(encode_session(session)) is None


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_python_s_own_numbers_are_no_json(constant: str) -> None:
    """JavaScript's reader would not take them."""
    text = json.dumps(ordinary()).replace(": 1", f": {constant}")
    assert constant in text
    assert decode_session(text) is None


@given(
    value=st.text(max_size=300) | st.binary(max_size=300).map(lambda b: b.decode("latin-1"))
)
@example(value="base64-" + urlsafe_b64encode(b"[" * 40_000).decode())
def test_no_value_makes_the_reader_raise(value: str) -> None:
    """Garbage is absent."""
    for text in (value, "base64-" + value):
        assert decode_session(text) is None or isinstance(text, str)


def test_a_session_shows_no_token() -> None:
    """Nor the user it came with."""
    session = decode_session(encode_session(ordinary(user={"email": "a@b"})))
    assert repr(session) == "CookieSession()"


@pytest.mark.parametrize("length", [3180, 3181, 6360, 6361])
def test_values_are_cut_at_the_package_s_boundaries(length: int) -> None:
    """3180 characters stay whole, and one more begins a second piece."""
    pieces = cut("k", "x" * length)
    assert [len(piece) for piece in pieces.values()] == VECTORS["chunk_lengths"][
        str(length)
    ]
    assert "".join(pieces.values()) == "x" * length
    expected = VECTORS["chunk_names"].get(str(length))
    assert expected is None or list(pieces) == expected


@given(length=st.integers(0, 40_000))
def test_pieces_make_the_whole(length: int) -> None:
    """Numbered from zero, none empty, none too long."""
    value = "".join(chr(97 + n % 26) for n in range(length))
    pieces = cut("k", value)
    assert "".join(pieces.values()) == value
    assert all(0 < len(piece) <= MAX_CHARACTERS for piece in pieces.values()) or not length
    assert list(pieces) in (["k"], [f"k.{n}" for n in range(len(pieces))])


@pytest.mark.parametrize(("cookie", "verdict"), VECTORS["is_chunk_like"].items())
def test_pieces_are_known_by_their_names(cookie: str, verdict: bool) -> None:
    """A number has no leading zero, and a neighbour is no piece."""
    assert is_piece(cookie, "k") is verdict
    assert not is_piece("kx", "k")
    assert not is_piece("a1", "a.")


def test_set_cookie_lines_are_the_package_s_to_the_byte() -> None:
    """Set and removed, with its attributes in its order."""
    removed = WRITER.clear({f"{NAME}.0": "x"})
    assert list(removed) == [VECTORS["set_cookie"][1].encode()]
    line = WRITER.session({}, {})[0].replace(b"base64-e30", b"base64-eyJh")
    assert line == VECTORS["set_cookie"][0].encode()


def test_the_headers_beside_a_cookie_are_the_package_s() -> None:
    """Three of them, against every cache."""
    assert dict(NO_STORE) == {
        b"cache-control": b"private, no-cache, no-store, must-revalidate, max-age=0",
        b"expires": b"0",
        b"pragma": b"no-cache",
    }


def test_our_own_attributes_are_stricter() -> None:
    """Unreadable for scripts and https only, unless said otherwise."""
    line = SupabaseCookieWriter(SupabaseCookie(name="k")).session({}, {})[0]
    assert line == (
        b"k=base64-e30; Max-Age=34560000; Path=/; HttpOnly; Secure; SameSite=Lax"
    )


def test_all_attributes_have_the_order_of_the_cookie_package() -> None:
    """Max-Age, Domain, Path, HttpOnly, Secure, SameSite."""
    cookie = SupabaseCookie(name="k", same_site="None", path="/app", domain="a.example")
    assert list(SupabaseCookieWriter(cookie).session({}, {})) == [
        b"k=base64-e30; Max-Age=34560000; Domain=a.example; Path=/app; HttpOnly; Secure;"
        b" SameSite=None"
    ]


def test_a_session_that_grows_leaves_its_single_cookie() -> None:
    """Removals stand before what is set."""
    session = sized(4000)
    lines = WRITER.session(session, {NAME: "old"})
    value = encode_session(session)
    assert pairs(lines) == [
        (NAME, ""),
        (f"{NAME}.0", value[:3180]),
        (f"{NAME}.1", value[3180:]),
    ]
    assert lines[0].endswith(GONE)
    assert lines[1].endswith(TAIL)


def test_a_session_that_shrinks_leaves_no_piece() -> None:
    """Stale pieces go, whatever their number; a name that is no piece stays."""
    received = dict.fromkeys([f"{NAME}.0", f"{NAME}.1", f"{NAME}.5", f"{NAME}-user"], "old")
    lines = WRITER.session({}, received)
    assert pairs(lines) == [
        (f"{NAME}.0", ""),
        (f"{NAME}.1", ""),
        (f"{NAME}.5", ""),
        (NAME, "base64-e30"),
    ]


def test_a_cookie_that_did_not_change_is_not_written() -> None:
    """Nothing to say is no line at all; the piece that changed is the only one."""
    session = sized(7000)
    received: dict[str, str | None] = {**cut(NAME, encode_session(session))}
    assert WRITER.session(session, received) == ()
    received[f"{NAME}.1"] = "old"
    assert [f"{NAME}.1"] == [name for name, _ in pairs(WRITER.session(session, received))]


def test_a_cookie_that_came_with_two_values_is_written() -> None:
    """Which of them the browser keeps is not known."""
    assert pairs(WRITER.session({}, {NAME: None})) == [(NAME, "base64-e30")]


def test_with_a_domain_each_removal_is_written_twice() -> None:
    """First for this host alone, where the cookie was before there was a domain."""
    writer = SupabaseCookieWriter(
        SupabaseCookie(name="k", http_only=False, secure=False, domain="a.example")
    )
    wide = b"; Max-Age=0; Domain=a.example; Path=/; SameSite=Lax"
    expected = (b"k.0=" + GONE, b"k.1=" + GONE, b"k.0=" + wide, b"k.1=" + wide)
    received = {"k.0": "x", "k.1": "y"}
    assert writer.clear(received) == expected
    lines = writer.session({}, received)
    assert lines[:4] == expected
    (kept,) = lines[4:]
    assert kept == b"k=base64-e30; Max-Age=34560000; Domain=a.example; Path=/; SameSite=Lax"


def test_with_a_domain_a_name_with_several_values_is_removed_without_it() -> None:
    """One of them is of this host alone, and would shadow what is set."""
    writer = SupabaseCookieWriter(
        SupabaseCookie(name="k", http_only=False, secure=False, domain="a.example")
    )
    (gone, kept) = writer.session({}, {"k": None})
    assert gone == b"k=" + GONE
    assert kept.startswith(b"k=base64-e30; ")
    assert len(writer.session({}, {"k": "x"})) == 1


def test_clearing_removes_what_came_and_nothing_else() -> None:
    """The neighbours of auth-js too; a request without any gets no line."""
    received = dict.fromkeys(
        [NAME, f"{NAME}.0", f"{NAME}-code-verifier", f"{NAME}-user"], "x"
    )
    lines = WRITER.clear(received)
    assert list(received) == [cookie_name(line).decode() for line in lines]
    assert all(line.endswith(b"=" + GONE) for line in lines)
    assert WRITER.clear({}) == ()


@given(session=sessions, before=sessions)
def test_a_browser_ends_up_with_the_session_alone(
    session: dict[str, Any], before: dict[str, Any]
) -> None:
    """Whatever was there, what is kept afterwards is exactly the new value."""
    jar: dict[str, str | None] = {**cut(NAME, encode_session(before)), f"{NAME}.9": "x"}
    jar.update(pairs(WRITER.session(session, dict(jar))))
    kept = {name: value for name, value in jar.items() if value}
    assert kept == cut(NAME, encode_session(session))


@pytest.mark.parametrize(
    "settings",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "a;b"},
        {"name": "k", "same_site": "none"},
        {"name": "k", "same_site": "None", "secure": False},
        {"name": "k", "path": "x"},
        {"name": "k", "path": "/;x"},
        {"name": "k", "domain": "a b"},
        {"name": "__Host-k", "domain": "a.example"},
        {"name": "__Secure-k", "secure": False},
    ],
)
def test_settings_that_browsers_would_drop_are_refused(settings: dict[str, Any]) -> None:
    """Found before the first request."""
    with pytest.raises(ConfigError):
        SupabaseCookie(**settings)
