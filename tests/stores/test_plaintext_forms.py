"""The texts in a column of tokens: a possible digest is never taken for a token."""

from __future__ import annotations

import hashlib
import secrets
from base64 import b32encode, b64encode, urlsafe_b64encode
from collections.abc import Callable

import asyncpg
import pytest

from handstamp.stores.plaintext import (
    OTHER,
    OURS,
    form_of,
    is_ambiguous,
    is_form,
    read_forms,
    words_of,
)

TEXT = b"a token"
ALGORITHMS = ["md5", "sha1", "sha224", "sha256", "sha384", "sha512", "blake2b", "sha3_256"]
ENCODINGS: dict[str, Callable[[bytes], str]] = {
    "hex": bytes.hex,
    "hex in capitals": lambda raw: raw.hex().upper(),
    "hex in both": lambda raw: raw.hex().upper().replace("A", "a") + "",
    "base64": lambda raw: b64encode(raw).decode(),
    "base64 without padding": lambda raw: b64encode(raw).decode().rstrip("="),
    "base64url": lambda raw: urlsafe_b64encode(raw).decode(),
    "base64url without padding": lambda raw: urlsafe_b64encode(raw).decode().rstrip("="),
    "bytes as PostgreSQL writes them": lambda raw: "\\x" + raw.hex(),
    "0x": lambda raw: "0x" + raw.hex().upper(),
    "octets": lambda raw: raw.hex(":"),
    "with its name": lambda raw: "sha512:" + raw.hex(),
    "with its name, SRI": lambda raw: "sha384-" + b64encode(raw).decode(),
    "with its name in braces": lambda raw: "{SSHA}" + b64encode(raw).decode(),
    "with our prefix, and capitals": lambda raw: "sha256:" + raw.hex().upper() + "A",
    "with our prefix, in base64": lambda raw: "sha256:" + b64encode(raw).decode(),
    "a line": lambda raw: raw.hex() + "\n",
}
BASE32 = {
    "base32": lambda raw: b32encode(raw).decode(),
    "base32 in small letters, without padding": lambda raw: (
        b32encode(raw).decode().lower().rstrip("=")
    ),
}
MARKED = [
    "$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW",
    "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b9dWRWJTmaaJObG",
    "$6$rounds=5000$salt$digest",
    "$5$salt$digest",
    "pbkdf2_sha256$260000$salt$ffBBvZN2BPz2CIO8uiZaWVGwQYrPjsKmPTyP7r5NHjI=",
    "sha1$salt$2fd4e1c67a2d28fced849ee1bb76e7391b93eb12",
    "scrypt:32768:8:1$salt$digest",
    "hmac-sha256:abcdef",
    "MD5:ABCDEF",
    "blake3:abcdef",
    "{SHA-256}abc",
]
TOKENS = [
    "a token",
    "in plaintext 7",
    "6f50943b-461f-4c2e-8a57-f606eedfa45d",
    "x" * 11,
    "é" * 64,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c",
    "sessionid.17.abc",
    "",
    "a" * 48,
    "412e9d2183acfe8d96c609d224a08361651a6b40a7ea721f",
    "a" * 1000,
]


@pytest.fixture
async def form(empty_dsn: str) -> Callable[[str], object]:
    """The name that the database gives to the form of a text."""
    connection = await asyncpg.connect(empty_dsn)

    async def name(text: str) -> str:
        return str(await connection.fetchval(f"select {form_of('$1::text')}", text))

    yield name
    await connection.close()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_every_digest_in_every_encoding_is_ambiguous(
    form: Callable[..., object], algorithm: str
) -> None:
    """It may be a token as well, and only the operator can tell."""
    raw = hashlib.new(algorithm, TEXT).digest()
    encodings = ENCODINGS | (BASE32 if len(raw) > 16 else {})
    for encoding, encode in encodings.items():
        name = await form(encode(raw))
        assert is_ambiguous(name), (encoding, encode(raw), name)
        assert is_form(name)
        assert words_of(name)


async def test_the_form_says_how_it_is_written(form: Callable[..., object]) -> None:
    """So that an operator can name it."""
    raw = hashlib.sha256(TEXT).digest()
    assert await form(raw.hex()) == "hex-64"
    assert await form(raw.hex().upper()) == "hex-64-capitals"
    assert await form(b64encode(raw).decode()) == "base64-43"
    assert await form(secrets.token_urlsafe(32)) == "base64-43"
    assert await form(hashlib.md5(TEXT).hexdigest()) == "hex-32"
    assert await form("sha256:" + raw.hex()) == OURS
    assert await form("sha256:" + raw.hex() + "\n") == OURS


@pytest.mark.parametrize("text", MARKED)
async def test_a_text_with_the_mark_of_a_digest_is_marked(
    form: Callable[..., object], text: str
) -> None:
    """By its algorithm, in whatever notation."""
    assert await form(text) == "marked"
    assert is_ambiguous("marked")


@pytest.mark.parametrize("text", TOKENS, ids=ascii)
async def test_a_text_that_cannot_be_a_digest_is_other(
    form: Callable[..., object], text: str
) -> None:
    """As most tokens are."""
    assert await form(text) == OTHER
    assert not is_ambiguous(OTHER)


@pytest.mark.parametrize(
    "name", ["", "hex", "hex-63", "hex-64-", "base64-43-capitals", "base32-26", "HEX-64"]
)
def test_an_unknown_form_is_refused(name: str) -> None:
    """It would hash nothing, or something else."""
    assert not is_form(name)


async def test_reading_the_forms_shows_no_token(uuid_dsn: str) -> None:
    """A form is a name, a number of rows and lengths; of a sample only signs are left."""
    connection = await asyncpg.connect(uuid_dsn)
    texts = ["secret one/two: three", "é secret.2", "$2b$12$secret", "0123456789abcdef" * 4]
    await connection.executemany(
        "insert into user_sessions (user_id, session_token, expires_at)"
        " values (gen_random_uuid(), $1, now())",
        [(text,) for text in texts],
    )
    await connection.execute("alter table user_sessions alter session_token drop not null")
    await connection.execute(
        "insert into user_sessions (user_id, expires_at) values (gen_random_uuid(), now())"
    )
    found = {
        f.name: f for f in await read_forms(connection, "user_sessions", "session_token")
    }
    await connection.close()
    assert {name: (f.rows, f.shortest, f.longest) for name, f in found.items()} == {
        "other": (2, 10, 21),
        "marked": (1, 13, 13),
        "hex-64": (1, 64, 64),
    }
    assert found["other"].sample == "x(6) x(7): x(5)"
    assert found["hex-64"].sample == "x(64)"
    assert not any("secret" in form.sample for form in found.values())
