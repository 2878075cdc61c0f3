"""Tokens and ids: how tokens are made, verified without I/O, and derived from each other.

Rule 1. A token is opaque and signed. The signature is no credential, it is a gate: a value
that we never made is refused before anything is looked up.
Rule 2. The table stores SHA-256 digests of the cookie's text as sent, nothing else. A
256-bit random value needs no salt and no slow hash.
Rule 3. A token has exactly one text. Base64 decoders accept several texts for the same
bytes, so both parts are matched as text, and every other text is refused.
Rule 4. The successor of a refresh token is a function of it and of a key (a keyed ratchet).
So every process that gets R(n) derives the same R(n+1) and S(n+1) without communication,
and the table needs no column for a previous token.

    R(n+1) = HMAC-SHA256(key, "refresh" ‖ R(n))    cookie R = signed(id . kind . R(n))
    S(n+1) = HMAC-SHA256(key, "session" ‖ R(n))    cookie S = signed(S(n))

The price: who has a key *and* one old refresh token can compute the current one. A key is
therefore never derived from anything public, and can be changed.
Rule 5. Keys are a list, oldest first: the newest signs and derives, all of them verify and
are tried for derivation. A successor is signed by the key that derived it, so its text, and
with it its digest, is the same in every process.
Rule 6. An application may bind a claim to a session: a short text that both tokens carry
inside their signature and every successor inherits. It has no meaning for this library.
Rule 7. An id has one text, which is the database's: a uuid in lower case with its hyphens,
a number without leading zeros. Ids are compared in this form only.
Rule 8. In a token, an id of at most 64 letters, digits, hyphens and underscores is written
as it is; every other id is ``~`` and the base64url of its UTF-8, without padding. No id of
the first kind has a ``~``, so no two ids have one text, and every id has exactly one. A
text that :func:`encode_id` would not have made is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from itsdangerous import Signer
from itsdangerous.signer import SigningAlgorithm

from handstamp.errors import ConfigError

LONGEST_ID = 255
"""Characters in an id of a session or of a user."""
LONGEST_ENCODED = 1 + -(-LONGEST_ID * 4 * 4 // 3)
"""Characters of the longest text that :func:`encode_id` makes of an id: a character has at
most four bytes, and three bytes are four characters of base64."""

_UUID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_BITS = {"int2": 15, "int4": 31, "int8": 63}
_PLAIN = re.compile(r"[0-9A-Za-z_-]{1,64}")
_MARK = "~"
_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")


def normalize(type: str, text: str) -> str | None:
    """``text`` as a column of this type of PostgreSQL spells it; None if the column could
    not hold it, or not as an id."""
    if type == "uuid":
        return normalize_uuid(text)
    if type in _BITS:
        return _normalize_integer(text, most=1 << _BITS[type])
    # Blanks at the end of a character(n) are no part of the value.
    return normalize_text(text.rstrip(" ") if type == "bpchar" else text)


def normalize_text(text: str) -> str | None:
    """``text`` itself, or None if no column of texts could hold it as an id.

    PostgreSQL takes no NUL and no half of a surrogate pair in any text.
    """
    return None if len(text) > LONGEST_ID or _UNSTORABLE.search(text) else text


def normalize_uuid(text: str) -> str | None:
    """A uuid in lower case with its hyphens, or None for what is no uuid.

    Capitals are allowed, and so are 32 digits without any hyphen.
    """
    if not text.isascii() or not _UUID.fullmatch(text.lower()):
        return None
    digits = text.lower().replace("-", "")
    cuts = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
    return "-".join(digits[start:end] for start, end in cuts)


def _normalize_integer(text: str, *, most: int) -> str | None:
    if not _INTEGER.fullmatch(text):
        return None
    number = int(text)
    return str(number) if -most <= number < most else None


def encode_id(session_id: str) -> str:
    """The text of an id in a token.

    Raises ``ValueError`` for what is no id, without quoting it.
    """
    if _PLAIN.fullmatch(session_id):
        return session_id
    if normalize_text(session_id) is None:
        raise ValueError("this text cannot be the id of a session")
    return _MARK + urlsafe_b64encode(session_id.encode()).rstrip(b"=").decode()


def decode_id(text: str) -> str | None:
    """The id of which ``text`` is the one encoding, or None if there is none."""
    if _PLAIN.fullmatch(text):
        return text
    if not text.startswith(_MARK):
        return None
    raw = text[len(_MARK) :]
    try:
        session_id = urlsafe_b64decode(raw + "=" * (-len(raw) % 4)).decode()
        return session_id if encode_id(session_id) == text else None
    except ValueError:  # no base64, no UTF-8, or no id
        return None


def ids_of(given: str | Iterable[str] | None) -> tuple[str, ...]:
    """One id, several or none, as a tuple."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)


ENTROPY = 32
"""Bytes of randomness in a token."""
_SHORTEST_SECRET = 32

# 32 bytes are 43 base64 characters, of which the last carries only 4 bits: of the 64
# characters only these 16 can end the one canonical spelling.
_B64 = rb"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]"
_CLAIM = rb"[A-Za-z0-9_-]{1,64}"
_SESSION = re.compile(_B64 + rb"(?:\.(" + _CLAIM + rb"))?\." + _B64)
_REFRESH = re.compile(
    rb"(~?[0-9A-Za-z_-]*)\.([rb])(" + _CLAIM + rb")?\.(" + _B64 + rb")\." + _B64
)
LONGEST_REFRESH = LONGEST_ENCODED + len(".r") + 64 + len(".") + 43 + len(".") + 43
"""Bytes of the longest refresh token; with a cookie's name and attributes far below the
4096 that browsers keep."""


def digest(text: bytes) -> bytes:
    """SHA-256 of a token's text: the key it is cached under, in hex the key it is
    stored under."""
    return hashlib.sha256(text).digest()


@lru_cache(maxsize=1024)  # a hit asks, where cookies have no __Host- names
def refresh_prefix(session_id: str) -> bytes:
    """What every refresh token of this session begins with."""
    return f"{encode_id(session_id)}.".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """A session token and its refresh token, as text for two cookies, and the claim that
    both carry."""

    session: str = field(repr=False)
    refresh: str = field(repr=False)
    claim: str | None = field(default=None, repr=False)

    @property
    def session_digest(self) -> str:
        """What the table stores of the session token."""
        return digest(self.session.encode()).hex()

    @property
    def refresh_digest(self) -> str:
        """What the table stores of the refresh token."""
        return digest(self.refresh.encode()).hex()


@dataclass(frozen=True, kw_only=True)
class RefreshToken:
    """A refresh token that passed the gate.

    ``session_id`` is None for one that the application issued before handstamp.
    ``remember`` and ``claim`` have no column in the table, so they ride in the signed
    text.
    """

    text: bytes = field(repr=False)
    session_id: str | None
    state: bytes = field(repr=False)
    remember: bool
    claim: str | None = field(default=None, repr=False)

    @property
    def digest(self) -> str:
        """What the table stores of this token while it is the current one."""
        return digest(self.text).hex()


class Tokens:
    """Mints, recognises and derives tokens under a list of secrets, oldest first.

    Raises :class:`ConfigError` when there is no secret or one shorter than 32 bytes.
    """

    def __init__(self, secrets: Sequence[str | bytes]) -> None:
        keys = [s.encode() if isinstance(s, str) else bytes(s) for s in secrets]
        if not keys or any(len(key) < _SHORTEST_SECRET for key in keys):
            raise ConfigError(
                f"a secret needs at least {_SHORTEST_SECRET} bytes; make one with: "
                'python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        self._keys = [_Key(key) for key in reversed(keys)]

    def __repr__(self) -> str:
        return f"Tokens(keys={len(self._keys)})"

    def mint(
        self,
        session_id: str,
        entropy: bytes,
        *,
        remember: bool,
        claim: str | None = None,
    ) -> TokenPair:
        """The first pair of a session, from 64 bytes of fresh randomness.

        Raises ``ValueError`` for other entropy, for what is no id (rule 8), and for a
        claim that is not 1 to 64 letters, digits, ``-`` and ``_``.
        """
        if len(entropy) != 2 * ENTROPY:
            raise ValueError(f"entropy must be {2 * ENTROPY} bytes")
        if claim is not None and not re.fullmatch(_CLAIM, claim.encode()):
            raise ValueError("a claim is 1 to 64 letters, digits, - and _")
        session, refresh = entropy[:ENTROPY], entropy[ENTROPY:]
        return self._keys[0].pair(session_id, session, refresh, remember, claim)

    def is_session(self, text: bytes) -> bool:
        """Whether we made this session token. No I/O, linear time."""
        if not _SESSION.fullmatch(text):
            return False
        value, _, signature = text.rpartition(b".")
        return any(key.session.verify_signature(value, signature) for key in self._keys)

    def claim(self, text: bytes) -> str | None:
        """The claim that a session token of ours carries, if it does."""
        match = _SESSION.fullmatch(text)
        if match is None or match[1] is None or not self.is_session(text):
            return None
        return match[1].decode()

    def read_refresh(self, text: bytes) -> RefreshToken | None:
        """What this refresh token says, or None if we did not make it. No I/O."""
        match = _REFRESH.fullmatch(text) if len(text) <= LONGEST_REFRESH else None
        session_id = None if match is None else decode_id(match[1].decode())
        if match is None or session_id is None:
            return None
        value, _, signature = text.rpartition(b".")
        if not any(k.refresh.verify_signature(value, signature) for k in self._keys):
            return None
        return RefreshToken(
            text=text,
            session_id=session_id,
            state=urlsafe_b64decode(match[4] + b"="),
            remember=match[2] == b"r",
            claim=None if match[3] is None else match[3].decode(),
        )

    def successors(self, token: RefreshToken, session_id: str) -> Iterator[TokenPair]:
        """What ``token`` leads to under each key, newest key first (rule 5)."""
        for key in self._keys:
            session = key.step(b"session", token.state)
            refresh = key.step(b"refresh", token.state)
            yield key.pair(session_id, session, refresh, token.remember, token.claim)


class _Key:
    """One secret: its two signers, a salt per purpose, and its ratchet."""

    __slots__ = ("_ratchet", "refresh", "session")

    def __init__(self, secret: bytes) -> None:
        self.session = _signer(secret, b"handstamp.session")
        self.refresh = _signer(secret, b"handstamp.refresh")
        self._ratchet = hmac.digest(secret, b"handstamp.ratchet", "sha256")

    def step(self, purpose: bytes, state: bytes) -> bytes:
        return hmac.digest(self._ratchet, purpose + state, "sha256")

    def pair(
        self, sid: str, session: bytes, refresh: bytes, remember: bool, claim: str | None
    ) -> TokenPair:
        kind = ("r" if remember else "b") + (claim or "")
        text = _b64(session) + (f".{claim}" if claim else "")
        return TokenPair(
            session=self.session.sign(text).decode(),
            refresh=self.refresh.sign(f"{encode_id(sid)}.{kind}.{_b64(refresh)}").decode(),
            claim=claim,
        )


class _HmacSha256(SigningAlgorithm):
    """HMAC-SHA256 in one call, which takes a third of the time of ``hmac.new``."""

    def get_signature(self, key: bytes, value: bytes) -> bytes:
        return hmac.digest(key, value, "sha256")


def _signer(secret: bytes, salt: bytes) -> Signer:
    """itsdangerous with ``key_derivation="hmac"``, which it would do for every value."""
    derived = hmac.digest(secret, salt, "sha256")
    return Signer(derived, key_derivation="none", algorithm=_HmacSha256())


def _b64(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def list_secrets(
    secret: str | bytes | None, secrets: Sequence[str | bytes] | None
) -> Sequence[str | bytes]:
    """The secrets that were given in either way. Raises :class:`ConfigError`."""
    if secret is not None and secrets is None:
        return [secret]
    if secrets is not None and secret is None and not isinstance(secrets, (str, bytes)):
        return secrets
    raise ConfigError("give either secret= or secrets=[oldest, …, newest]")
