"""Tokens: one text each, known by their signature, and each leading to one successor."""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64decode
from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from itsdangerous import Signer

from handstamp.config import Cookies
from handstamp.core.cookies import LONGEST_TOKEN, CookieReader, CookieWriter
from handstamp.core.tokens import (
    ENTROPY,
    RefreshToken,
    TokenPair,
    Tokens,
    digest,
    normalize_text,
)
from handstamp.errors import ConfigError
from tests.core.samples import NEW_KEY, OLD_KEY, make_tokens

SID = "01JGGZ5Z8V0000000000000000"
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
TOKENS = make_tokens()
PAIR = TOKENS.mint(SID, bytes(range(64)), remember=True)
SESSION, REFRESH = PAIR.session.encode(), PAIR.refresh.encode()

entropies = st.binary(min_size=2 * ENTROPY, max_size=2 * ENTROPY)
secrets = st.binary(min_size=32, max_size=48)


def opened(tokens: Tokens, text: str) -> RefreshToken:
    """A refresh token of ours, past the gate."""
    token = tokens.read_refresh(text.encode())
    assert token is not None
    return token


def ends_of_a_part(text: bytes) -> list[int]:
    """Where the 43 characters of a base64 part end: they carry two unused bits."""
    return [m.end() - 1 for m in re.finditer(rb"[A-Za-z0-9_-]{43}(?=\.|$)", text)]


@given(entropy=entropies, remember=st.booleans())
def test_a_minted_pair_passes_the_gate(entropy: bytes, remember: bool) -> None:
    """Both texts are recognised, and the refresh token says what it was minted with."""
    pair = TOKENS.mint(SID, entropy, remember=remember)
    token = opened(TOKENS, pair.refresh)
    assert TOKENS.is_session(pair.session.encode())
    assert (SID, remember) == (token.session_id, token.remember)
    assert entropy[ENTROPY:] == token.state


@pytest.mark.parametrize("size", [0, 1, 32, 63, 65, 128])
def test_c48_mint_needs_64_bytes_of_entropy(size: int) -> None:
    """A source that gives fewer bytes makes no token at all."""
    with pytest.raises(ValueError, match="64 bytes"):
        TOKENS.mint(SID, bytes(size), remember=False)


def test_the_two_tokens_share_no_entropy() -> None:
    """The session token comes from the first half and the refresh token from the second."""
    same_first = TOKENS.mint(SID, bytes(32) + bytes([1]) * 32, remember=True)
    same_last = TOKENS.mint(SID, bytes([1]) * 32 + bytes(32), remember=True)
    base = TOKENS.mint(SID, bytes(64), remember=True)
    assert (base.session, same_last.refresh) == (same_first.session, base.refresh)
    assert base.refresh != same_first.refresh
    assert base.session != same_last.session


@pytest.mark.parametrize(
    "secrets", [[], [""], ["x" * 31], [OLD_KEY, "x" * 31], [b"x" * 31]]
)
def test_a_short_or_missing_secret_is_refused(secrets: list[str | bytes]) -> None:
    """Every secret has 32 bytes or more, and the refusal does not repeat it."""
    with pytest.raises(ConfigError, match="at least 32 bytes") as caught:
        Tokens(secrets)
    assert "x" * 31 not in str(caught.value)


def test_a_secret_may_be_text_or_bytes() -> None:
    """The same secret in both types is one key."""
    assert Tokens([OLD_KEY.encode()]).is_session(SESSION)


@given(
    at=st.integers(0, len(SESSION) - 1),
    byte=st.integers(0, 255),
    text=st.sampled_from("sr"),
)
def test_a_mutated_character_is_refused(at: int, byte: int, text: str) -> None:
    """No single byte of a token can be changed."""
    original = SESSION if text == "s" else REFRESH
    mutated = bytearray(original)
    mutated[at] = byte
    if bytes(mutated) != original:
        assert not TOKENS.is_session(bytes(mutated))
        assert TOKENS.read_refresh(bytes(mutated)) is None


def test_every_position_of_a_refresh_token_is_signed() -> None:
    """The id, the kind, the state and the signature: nothing can be exchanged."""
    for at in range(len(REFRESH)):
        other = b"b" if REFRESH[at : at + 1] == b"r" else b"r"
        assert TOKENS.read_refresh(REFRESH[:at] + other + REFRESH[at + 1 :]) is None
        assert TOKENS.read_refresh(REFRESH[:at] + REFRESH[at + 1 :]) is None


@pytest.mark.parametrize("original", [SESSION, REFRESH])
def test_c23_stray_low_bits_are_refused(original: bytes) -> None:
    """Of the four spellings of a last character, one is ours and three are refused."""
    ends = ends_of_a_part(original)
    assert len(ends) == 2
    for at in ends:
        place = ALPHABET.index(original[at])
        for stray in range(place & ~3, (place & ~3) + 4):
            text = original[:at] + ALPHABET[stray : stray + 1] + original[at + 1 :]
            part = text[at - 42 : at + 1] + b"="
            assert urlsafe_b64decode(part) == urlsafe_b64decode(
                original[at - 42 : at + 1] + b"="
            )
            is_ours = TOKENS.is_session(text) or TOKENS.read_refresh(text) is not None
            assert (text == original) == is_ours


@pytest.mark.parametrize("original", [SESSION, REFRESH])
@pytest.mark.parametrize(
    "stray", [b"=", b"==", b"\xff", b"\xc3\xa9", b"\n", b" ", b"!", b"\0"]
)
def test_c22_padding_and_inserted_bytes_are_refused(original: bytes, stray: bytes) -> None:
    """What a lenient decoder would skip is refused, wherever it stands."""
    for at in range(len(original) + 1):
        text = original[:at] + stray + original[at:]
        assert not TOKENS.is_session(text)
        assert TOKENS.read_refresh(text) is None


@pytest.mark.parametrize("length", [41, 42, 44])
def test_c22_only_43_characters_are_32_bytes(length: int) -> None:
    """A shorter or longer value is no session token, even if its signature were good."""
    value, _, signature = SESSION.partition(b".")
    assert not TOKENS.is_session((value * 2)[:length] + b"." + signature)


@given(text=st.binary(max_size=200))
@example(text=b"")
@example(text=b"." * 10_000)
def test_no_bytes_make_the_gate_raise(text: bytes) -> None:
    """Whatever we never made is refused, and nothing raises."""
    assert not TOKENS.is_session(text)
    assert TOKENS.read_refresh(text) is None


def test_c28_no_token_passes_for_the_other() -> None:
    """The two purposes are signed apart."""
    assert not TOKENS.is_session(REFRESH)
    assert TOKENS.read_refresh(SESSION) is None
    value = REFRESH.rpartition(b".")[0].rpartition(b".")[2]
    assert not TOKENS.is_session(value + b"." + REFRESH.rpartition(b".")[2])


@pytest.mark.parametrize("purpose", ["session", "refresh"])
def test_c28_each_purpose_has_a_key_of_its_own(purpose: str) -> None:
    """A signature counts for the one purpose it was made for, and stays good for ever."""
    signer = Signer(
        OLD_KEY,
        salt=f"handstamp.{purpose}",
        key_derivation="hmac",
        digest_method=hashlib.sha256,
    )
    session = signer.sign(SESSION.rpartition(b".")[0])
    refresh = signer.sign(REFRESH.rpartition(b".")[0])
    assert (purpose == "session") == TOKENS.is_session(session)
    assert (purpose == "refresh") == (TOKENS.read_refresh(refresh) is not None)


OF_PLAIN_IDS = {
    SID: "b4Z3HYHFhlJXqQvdqjR10X087DiCMVO90BF6yoEgIXk",
    "7": "3GM6c6tSIIL764-IczZt7fMw8VBS1KZRdKEHBi0AYIU",
    "-5": "IZcuGuTYd_O4hOur0jAri9Z4TaJtSM_GrF7ahceUQK0",
    "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d": "8pVvgzy7QccQyIoAmvivtFndmjUcCF3aVWEH6lieUFo",
    "_" * 64: "XBQLtQaOV5GbSBX_Yhy5jesz7VbtPXCmjcCbdTPBLxA",
}
"""Signatures of refresh tokens as they were before other ids were carried."""


@pytest.mark.parametrize("sid", OF_PLAIN_IDS)
def test_the_token_of_a_plain_id_has_the_text_it_always_had(sid: str) -> None:
    """Browsers hold such tokens, and tables their digests."""
    state = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8"
    text = f"{sid}.r.{state}.{OF_PLAIN_IDS[sid]}"
    assert TOKENS.mint(sid, bytes(range(64)), remember=True).refresh == text
    assert opened(TOKENS, text).session_id == sid


@given(sid=st.text(max_size=255).filter(normalize_text))
@example(sid="")
@example(sid="\U0001f98a" * 255)
@example(sid="~YTpi")
@example(sid="a.r.b")
def test_a_refresh_token_carries_any_id(sid: str) -> None:
    """Whatever a column of texts can hold, in a cookie that every browser keeps."""
    text = TOKENS.mint(sid, bytes(64), remember=False).refresh
    assert opened(TOKENS, text).session_id == sid
    assert len(text) <= LONGEST_TOKEN
    written = CookieWriter(Cookies()).refresh_cookie(text, timedelta(days=30))
    assert len(written) < 4096
    read = CookieReader(Cookies()).read([(b"cookie", written.partition(b"; ")[0])])
    assert read.refresh == (text.encode(),)


@pytest.mark.parametrize(
    "carried",
    [
        *("", "~YWJj", "~YTpi=", "~YTpj\n", "~YTpi~", "~~YTpi", "YTpi~", "~YTpi.r", "a~b"),
        *("~YTpjZB", "~YTpjZC", "~_w", "~7aCA", "~AA", "~YQBi", "a:b", "é", "a" * 65),
        "~" + "YTph" * 400,
    ],
    ids=ascii,
)
def test_another_spelling_of_an_id_is_refused_even_with_a_good_signature(
    carried: str,
) -> None:
    """Plain ids in base64, stray bits, padding, broken UTF-8, NUL, and what is too long:
    an id has one text, so a row has one refresh token."""
    key = next(iter(TOKENS._keys))
    state = REFRESH.decode().split(".")[2]
    signed = key.refresh.sign(f"{carried}.r.{state}".encode())
    assert TOKENS.read_refresh(signed) is None
    good = key.refresh.sign(f"~YTpi.r.{state}".encode())
    assert opened(TOKENS, good.decode()).session_id == "a:b"


@pytest.mark.parametrize("sid", ["a" * 256, "a\x00b", "\ud800"], ids=ascii)
def test_no_token_is_made_for_what_is_no_id(sid: str) -> None:
    """A refresh token that could not be read again would sign its holder out."""
    with pytest.raises(ValueError, match="cannot be the id") as caught:
        TOKENS.mint(sid, bytes(64), remember=True)
    assert sid not in str(caught.value)


def test_c41_a_digest_is_the_whole_sha256_of_the_text() -> None:
    """32 bytes, nothing truncated, over the text as sent."""
    assert hashlib.sha256(SESSION).digest() == digest(SESSION)
    assert hashlib.sha256(SESSION).hexdigest() == PAIR.session_digest
    assert hashlib.sha256(REFRESH).hexdigest() == PAIR.refresh_digest
    assert PAIR.refresh_digest == opened(TOKENS, PAIR.refresh).digest


def successors(tokens: Tokens, text: str) -> list[TokenPair]:
    """What a refresh token leads to under each key."""
    return list(tokens.successors(opened(tokens, text), SID))


@given(keys=st.lists(secrets, min_size=1, max_size=3, unique=True), entropy=entropies)
def test_the_ratchet_is_a_function(keys: list[bytes], entropy: bytes) -> None:
    """Two processes with the same keys derive the same successors to the byte."""
    one, other = Tokens(keys), Tokens(list(keys))
    first = one.mint(SID, entropy, remember=True)
    assert successors(one, first.refresh) == successors(other, first.refresh)
    second = next(one.successors(opened(one, first.refresh), SID))
    assert successors(one, second.refresh) == successors(other, second.refresh)


@given(entropy=entropies, remember=st.booleans())
def test_a_successor_is_a_genuine_other_pair(entropy: bytes, remember: bool) -> None:
    """It passes the gate, keeps the session and `remember`, and repeats no text."""
    first = TOKENS.mint(SID, entropy, remember=remember)
    (second,) = successors(TOKENS, first.refresh)
    token = opened(TOKENS, second.refresh)
    assert TOKENS.is_session(second.session.encode())
    assert (SID, remember) == (token.session_id, token.remember)
    texts = {first.session, first.refresh, second.session, second.refresh}
    assert len(texts) == 4


def test_the_session_token_of_a_successor_is_not_its_ratchet_state() -> None:
    """The two halves of a step are derived apart: one reveals nothing of the other."""
    (second,) = successors(TOKENS, PAIR.refresh)
    state = urlsafe_b64decode(second.session.partition(".")[0] + "=")
    assert state != opened(TOKENS, second.refresh).state


def test_another_key_derives_another_successor() -> None:
    """Without the key, an old refresh token leads nowhere."""
    rotated = make_tokens(OLD_KEY, NEW_KEY)
    new, old = successors(rotated, PAIR.refresh)
    assert new != old
    assert [old] == successors(TOKENS, PAIR.refresh)


def test_a_successor_of_an_old_key_is_found_under_old_and_new() -> None:
    """After a key is added, what the old one derived is still the row's own."""
    (current,) = successors(make_tokens(OLD_KEY), PAIR.refresh)
    digests = [
        p.refresh_digest for p in successors(make_tokens(OLD_KEY, NEW_KEY), PAIR.refresh)
    ]
    assert current.refresh_digest == digests[1]


def test_the_newest_key_signs_and_derives() -> None:
    """New tokens and first successors are the newest key's."""
    rotated, new = make_tokens(OLD_KEY, NEW_KEY), make_tokens(NEW_KEY)
    minted = rotated.mint(SID, bytes(64), remember=True)
    assert new.mint(SID, bytes(64), remember=True) == minted
    first = next(rotated.successors(opened(rotated, PAIR.refresh), SID))
    assert new.is_session(first.session.encode())
    assert new.read_refresh(first.refresh.encode()) is not None


def test_tokens_of_an_old_key_verify_until_it_is_removed() -> None:
    """Every key of the list opens the gate, and no other does."""
    for tokens, is_known in [
        (make_tokens(OLD_KEY, NEW_KEY), True),
        (make_tokens(NEW_KEY, OLD_KEY), True),
        (make_tokens(NEW_KEY), False),
    ]:
        assert is_known == tokens.is_session(SESSION)
        assert is_known == (tokens.read_refresh(REFRESH) is not None)


def test_a_key_may_be_taught_before_it_signs() -> None:
    """A key put first verifies and derives for others, and signs nothing yet."""
    taught = make_tokens(NEW_KEY, OLD_KEY)
    assert TOKENS.mint(SID, bytes(64), remember=True) == taught.mint(
        SID, bytes(64), remember=True
    )
    assert taught.is_session(
        make_tokens(NEW_KEY).mint(SID, bytes(64), remember=True).session.encode()
    )
