"""Refresh tokens of both generations, against strings that GoTrue's own code made.

The percentages of GoTrue's upgrade from v1 to v2 have no vectors here: only none and all
are offered, and those need no bucket.
"""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.supabase.tokens import (
    HIGHEST_COUNTER,
    LONGEST_TEXT,
    KeyRing,
    canonical_uuid,
    is_v1,
    mint_v1,
    new_key,
    read_v2,
    write_v2,
)

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
TOKENS = VECTORS["tokens"] + VECTORS["more_tokens"]
SEQUENCE = VECTORS["sequence"]
SESSION = SEQUENCE["session_id"]
KEY = bytes.fromhex(SEQUENCE["hmac_key"])
MASTER = urlsafe_b64decode(VECTORS["encrypted_hmac_key"][0]["master_key_b64url"] + "=")
SEALING = KeyRing("abc", {"abc": MASTER}, encrypt=True)
PLAIN = KeyRing()

uuids = st.uuids().map(str)
keys = st.binary(min_size=32, max_size=32)
counters = st.integers(0, HIGHEST_COUNTER)


def raw(text: str) -> bytes:
    """The bytes of unpadded base64url."""
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.mark.parametrize("vector", TOKENS, ids=lambda v: f"{v['counter']}")
def test_a_v2_token_is_written_to_the_byte(vector: Mapping[str, Any]) -> None:
    """The text is the one that GoTrue writes for the session, counter and key."""
    key = bytes.fromhex(vector["hmac_key"])
    assert vector["token"] == write_v2(vector["session_id"], vector["counter"], key)


@pytest.mark.parametrize("vector", TOKENS, ids=lambda v: f"{v['counter']}")
def test_a_v2_token_is_read(vector: Mapping[str, Any]) -> None:
    """Session and counter are found, and the session's key made the signature."""
    token = read_v2(vector["token"])
    assert token is not None
    assert (token.session_id, token.counter) == (vector["session_id"], vector["counter"])
    assert token.is_signed_by(bytes.fromhex(vector["hmac_key"]))


def test_the_sequence_of_a_session_is_the_one_of_gotrue() -> None:
    """The stored key opens to the bytes that sign the first twelve tokens."""
    key = PLAIN.open(SEQUENCE["stored_key"], SESSION)
    assert SEQUENCE["tokens"] == [write_v2(SESSION, n, key) for n in range(12)]


def test_a_token_signed_with_another_key_is_not_signed() -> None:
    """A right checksum is no signature: anyone can compute that."""
    forged = read_v2(SEQUENCE["counter0_signed_with_zero_key"])
    assert forged is not None
    assert (forged.session_id, forged.counter) == (SESSION, 0)
    assert not forged.is_signed_by(KEY)
    assert forged.is_signed_by(bytes(32))


@pytest.mark.parametrize(
    "vector", VECTORS["negative"] + VECTORS["more_negative"], ids=lambda v: v["name"]
)
def test_what_gotrue_does_not_read_is_none(vector: Mapping[str, Any]) -> None:
    """Version, length, checksum and counter are all checked."""
    assert read_v2(vector["token"]) is None


@pytest.mark.parametrize("vector", VECTORS["lax_accepted"], ids=lambda v: repr(v["token"]))
def test_what_gotrue_s_lax_reader_takes_is_taken(vector: Mapping[str, Any]) -> None:
    """Line breaks and stray bits change the text and not the token."""
    token = read_v2(vector["token"])
    assert token is not None
    assert (token.session_id, token.counter) == (vector["session_id"], vector["counter"])
    assert token.is_signed_by(KEY)
    assert token == read_v2(SEQUENCE["tokens"][5])


@pytest.mark.parametrize("vector", VECTORS["lax_rejected"], ids=lambda v: repr(v["token"]))
def test_what_gotrue_s_lax_reader_refuses_is_refused(vector: Mapping[str, Any]) -> None:
    """Padding and spaces are not ignored."""
    assert read_v2(vector["token"]) is None


@given(session_id=uuids, counter=counters, key=keys)
@example(session_id=SESSION, counter=0, key=KEY)
@example(session_id=SESSION, counter=HIGHEST_COUNTER, key=KEY)
def test_what_is_written_is_read(session_id: str, counter: int, key: bytes) -> None:
    """Session, counter and signature survive the way through text."""
    text = write_v2(session_id, counter, key)
    token = read_v2(text)
    assert token is not None
    assert (token.session_id, token.counter) == (session_id, counter)
    assert token.is_signed_by(key)
    assert 51 <= len(text) <= 62


def as_text(token: bytes) -> str:
    """Unpadded base64url."""
    return urlsafe_b64encode(token).rstrip(b"=").decode()


def mended(body: bytes) -> str:
    """The text of a token with this body, and the checksum that fits it."""
    return as_text(body + sha256(body).digest()[:4])


@given(counter=counters, bit=st.integers(0, 8 * 34 - 1))
def test_no_flipped_bit_goes_unnoticed(counter: int, bit: int) -> None:
    """What was changed is unreadable, and with a checksum made to fit it is not signed."""
    changed = bytearray(raw(write_v2(SESSION, counter, KEY)))
    changed[bit // 8] ^= 1 << bit % 8
    assert read_v2(as_text(bytes(changed))) is None
    token = read_v2(mended(bytes(changed[:-4])))
    assert token is None or not token.is_signed_by(KEY)


@given(signature=st.binary(max_size=24), counter=st.binary(max_size=12))
@example(signature=bytes(16), counter=b"\xff" * 9 + b"\x01")
@example(signature=bytes(16), counter=b"\xff" * 9 + b"\x02")
@example(signature=bytes(16), counter=b"\x80\x00")
def test_a_forged_counter_is_within_its_bounds(signature: bytes, counter: bytes) -> None:
    """Whoever makes a checksum gets no number out of range, and no signature."""
    token = read_v2(mended(bytes(17) + counter + signature))
    if token is not None:
        assert 0 <= token.counter <= HIGHEST_COUNTER
        assert not token.is_signed_by(KEY)


def test_counters_above_the_column_s_range_are_its_highest() -> None:
    """Ten bytes hold 64 bits, and a bigint has 63."""
    token = read_v2(mended(bytes(17) + b"\xff" * 9 + b"\x01" + bytes(16)))
    assert token is not None
    assert token.counter == HIGHEST_COUNTER
    over = bytes(17) + b"\xff" * 9 + b"\x02" + bytes(16)
    assert read_v2(mended(over)) is None


def test_a_counter_in_more_bytes_than_it_needs_is_read() -> None:
    """Go reads it, so it says the same as the shorter one, and the signature decides."""
    token = read_v2(mended(bytes(17) + b"\x80\x00" + bytes(16)))
    assert token is not None
    assert token.counter == 0
    assert token == read_v2(mended(bytes(17) + b"\x00" + bytes(16)))


def test_a_later_version_is_not_read() -> None:
    """Nobody knows what it says, though its checksum is right."""
    assert read_v2(mended(bytes(34))) is not None
    assert read_v2(mended(b"\x01" + bytes(33))) is None


@given(text=st.text() | st.text("ABCabc019-_=\r\n", max_size=80))
def test_no_text_makes_the_reader_raise(text: str) -> None:
    """Garbage is None."""
    token = read_v2(text)
    assert token is None or token.counter >= 0
    assert is_v1(text) in (True, False)


def test_what_is_far_too_long_is_not_decoded() -> None:
    """A token hidden in line breaks is read up to a limit, and no further."""
    text = SEQUENCE["tokens"][0]
    assert read_v2(text + "\n" * (LONGEST_TEXT - len(text))) is not None
    assert read_v2(text + "\n" * (LONGEST_TEXT - len(text) + 1)) is None


def test_a_token_shows_neither_its_bytes_nor_its_signature() -> None:
    """Its repr names the session and the counter."""
    token = read_v2(SEQUENCE["tokens"][5])
    assert repr(token) == f"CounterToken(session_id='{SESSION}', counter=5)"


@pytest.mark.parametrize("counter", [-1, HIGHEST_COUNTER + 1])
def test_no_token_of_an_impossible_counter_is_written(counter: int) -> None:
    """The column holds 0 to 2^63 - 1."""
    with pytest.raises(ValueError, match="2\\^63"):
        write_v2(SESSION, counter, KEY)


def test_nothing_is_signed_with_a_short_key() -> None:
    """An empty key would make every token forgeable."""
    with pytest.raises(ValueError, match="32 bytes"):
        write_v2(SESSION, 0, b"")


def test_an_id_that_is_no_uuid_is_refused() -> None:
    """An id in capitals is one, a shorter one is none."""
    assert write_v2(SESSION.upper(), 0, KEY) == SEQUENCE["tokens"][0]
    assert canonical_uuid(SESSION.upper()) == SESSION
    for bad in ("", SESSION[:-1], SESSION.replace("-", ""), SESSION + "\n", "x" * 36):
        with pytest.raises(ValueError, match="no uuid"):
            write_v2(bad, 0, KEY)


@given(entropy=st.binary(min_size=8, max_size=8))
@example(entropy=bytes(8))
@example(entropy=b"\xff" * 8)
def test_a_minted_v1_token_has_the_form_of_one(entropy: bytes) -> None:
    """Twelve characters that GoTrue's own check takes."""
    token = mint_v1(entropy)
    assert is_v1(token)
    assert set(token) <= set("abcdefghijklmnopqrstuvwxyz234567")


def test_v1_tokens_hold_60_random_bits() -> None:
    """Each of the first 60 bits changes the token; the last four are left over."""
    ordinary = mint_v1(bytes(8))
    changed = [mint_v1((1 << bit).to_bytes(8, "big")) for bit in range(64)]
    assert len(set(changed)) == 61
    assert ordinary == "aaaaaaaaaaaa"
    assert [ordinary] * 4 == changed[:4]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("abcdefghijkl", True),
        ("0123456789ab", True),
        ("abcdefghijk", False),
        ("abcdefghijklm", False),
        ("ABCDEFGHIJKL", False),
        ("abcdefghijk-", False),
        ("abcdefghijkl\n", False),
        ("abcdefghijk١", False),
        ("", False),
    ],
)
def test_v1_tokens_are_known_by_their_form(text: str, verdict: bool) -> None:
    """Twelve small letters and digits, nothing more."""
    assert is_v1(text) is verdict


def test_a_v1_token_is_no_v2_token() -> None:
    """The length alone tells them apart."""
    assert read_v2("abcdefghijkl") is None
    assert not any(is_v1(token) for token in SEQUENCE["tokens"])


@pytest.mark.parametrize("length", [0, 7, 9])
def test_too_little_entropy_is_refused(length: int) -> None:
    """A token is never made of anything but what it was made for."""
    with pytest.raises(ValueError, match="8 bytes"):
        mint_v1(bytes(length))
    with pytest.raises(ValueError, match="32 bytes"):
        new_key(bytes(length))


@given(entropy=keys, session_id=uuids)
def test_a_new_key_opens_to_its_entropy(entropy: bytes, session_id: str) -> None:
    """43 characters, of which the column holds nothing else."""
    stored = new_key(entropy)
    assert len(stored) == 43
    assert PLAIN.open(stored, session_id) == entropy
    assert PLAIN.seal(stored, session_id, b"") == stored


@pytest.mark.parametrize(
    "vector", VECTORS["encrypted_hmac_key"], ids=lambda v: v["session_id"]
)
def test_a_sealed_key_is_opened_and_sealed_to_the_byte(vector: Mapping[str, Any]) -> None:
    """The envelope is GoTrue's own, under the key derived for that session."""
    session_id, stored = vector["session_id"], vector["stored"]
    plain = vector["plaintext_b64url"]
    assert SEALING.open(stored, session_id) == raw(plain)
    assert SEALING.seal(plain, session_id, bytes(range(12))) == stored
    assert SEALING.seal(plain, session_id.upper(), bytes(range(12))) == stored


@given(entropy=keys, session_id=uuids, nonce=st.binary(min_size=12, max_size=12))
def test_what_is_sealed_is_opened(entropy: bytes, session_id: str, nonce: bytes) -> None:
    """Sealing hides the key, and opening finds it."""
    stored = SEALING.seal(new_key(entropy), session_id, nonce)
    assert new_key(entropy) not in stored
    assert SEALING.open(stored, session_id) == entropy


def test_a_sealed_key_belongs_to_its_session() -> None:
    """Copied into another row it does not open, and that is nobody's sign-out."""
    stored = VECTORS["encrypted_hmac_key"][1]["stored"]
    with pytest.raises(SessionsUnavailable) as caught:
        SEALING.open(stored, "f47ac10b-58cc-4372-a567-0e02b2c3d479")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("text", VECTORS["not_encrypted"])
def test_what_is_no_envelope_is_taken_for_a_plain_key(text: str) -> None:
    """GoTrue does so, and finds no key in it either."""
    assert SEALING.needs_resealing(text)
    with pytest.raises(SessionsUnavailable, match="damaged"):
        SEALING.open(text, SESSION)


@given(text=st.text(max_size=60) | st.text('{}":,abc', max_size=60))
@example(text='{"a":' * 5000)
@example(
    text='{"key_id":"abc","alg":"aes-gcm-hkdf","data":"AAAA","nonce":"AAECAwQFBgcICQoL"}'
)
@example(text="{" + "[" * 100_000)
@example(text="")
def test_a_damaged_key_is_unknown_and_never_something_else(text: str) -> None:
    """Whatever the column holds, the answer is a key or no answer."""
    with pytest.raises(SessionsUnavailable):
        SEALING.open(text, SESSION)


def test_no_error_tells_the_key() -> None:
    """The message names the trouble and none of the bytes."""
    short = new_key(KEY)[:-4]
    with pytest.raises(SessionsUnavailable) as caught:
        PLAIN.open(short, SESSION)
    assert short not in str(caught.value)


def test_a_key_under_a_master_key_that_is_not_here_is_unknown() -> None:
    """The operator has to give it; nobody is signed out for it."""
    stored = VECTORS["encrypted_hmac_key"][0]["stored"]
    with pytest.raises(SessionsUnavailable, match="not configured"):
        KeyRing("new", {"new": bytes(32)}, encrypt=True).open(stored, SESSION)
    with pytest.raises(SessionsUnavailable, match="not configured"):
        PLAIN.open(stored, SESSION)


def test_sealed_keys_are_opened_while_sealing_is_off() -> None:
    """A listed key opens what was sealed with it, and new keys are stored plain."""
    vector = VECTORS["encrypted_hmac_key"][0]
    ring = KeyRing("abc", {"abc": MASTER}, encrypt=False)
    assert ring.open(vector["stored"], vector["session_id"]) == bytes(32)
    assert ring.seal(new_key(KEY), SESSION, bytes(12)) == new_key(KEY)
    assert not ring.needs_resealing(vector["stored"])
    assert not ring.needs_resealing(new_key(KEY))


def test_keys_are_sealed_anew_from_plain_and_from_an_older_master_key() -> None:
    """Sealing on: whatever is not under the current master key is written again."""
    stored = SEALING.seal(new_key(KEY), SESSION, bytes(12))
    newer = KeyRing("new", {"abc": MASTER, "new": bytes(32)}, encrypt=True)
    assert newer.needs_resealing(stored)
    assert newer.needs_resealing(new_key(KEY))
    again = newer.reseal(stored, SESSION, bytes(12))
    assert not newer.needs_resealing(again)
    assert json.loads(again)["key_id"] == "new"
    assert newer.open(again, SESSION) == KEY


@pytest.mark.parametrize(
    ("keys", "current", "message"),
    [
        ({"abc": bytes(31)}, "abc", "32 bytes"),
        ({"": bytes(32)}, "", "name"),
        ({"abc": bytes(32)}, "other", "name one of"),
        ({"abc": bytes(32)}, None, "name one of"),
        ({}, "abc", "name one of"),
    ],
)
def test_master_keys_that_cannot_work_are_refused(
    keys: Mapping[str, bytes], current: str | None, message: str
) -> None:
    """They are refused at the start, not at the first refresh."""
    with pytest.raises(ConfigError, match=message):
        KeyRing(current, keys, encrypt=True)


def test_a_nonce_of_another_length_is_refused() -> None:
    """Nothing is sealed with less than 12 random bytes."""
    with pytest.raises(ValueError, match="12 bytes"):
        SEALING.seal(new_key(KEY), SESSION, bytes(11))


def test_a_key_ring_shows_no_key() -> None:
    """Its repr counts them."""
    assert repr(SEALING) == "KeyRing(keys=1, encrypt=True)"


WITHOUT = """
import sys
sys.modules["cryptography"] = None
from handstamp.errors import ConfigError
from handstamp.supabase.tokens import KeyRing, new_key
session = "123e4567-e89b-42d3-a456-426614174000"
assert KeyRing().open(new_key(bytes(32)), session) == bytes(32)
try:
    KeyRing("a", {"a": bytes(32)})
except ConfigError as refused:
    print(refused)
"""


def test_plain_keys_need_no_package() -> None:
    """Without `cryptography` plain keys work, and sealed ones are refused at the start."""
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert ran.stderr == ""
    assert "handstamp[supabase]" in ran.stdout


def test_a_sealed_key_without_the_package_or_its_master_key_is_unknown() -> None:
    """A row that another server sealed is no reason to raise anything else."""
    code = WITHOUT.split("try:")[0] + (
        "from handstamp.errors import SessionsUnavailable\n"
        f"stored = {VECTORS['encrypted_hmac_key'][0]['stored']!r}\n"
        "try:\n    KeyRing().open(stored, session)\n"
        "except SessionsUnavailable as unknown:\n    print(unknown)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stderr == ""
    assert "not configured" in ran.stdout
