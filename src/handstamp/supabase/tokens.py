"""The refresh tokens of GoTrue, v1 and v2, byte for byte, and the keys of v2.

A v1 token is a random word of 12 characters, in a row of ``auth.refresh_tokens``. A v2
token is in no row: it holds the id of its session and the number of its refreshes, signed
with the session's own key.

    byte 0       version, zero
    bytes 1-16   the session's id
    byte 17…     the counter, as unsigned LEB128
    16 bytes     the first half of HMAC-SHA256(key, everything before)
    4 bytes      the first of SHA-256(everything before): a checksum, without a key

Rule 1. GoTrue's base64 decoder is lax (line breaks, stray bits at the end), so several
texts are one token. Their contents are compared, never the texts.
Rule 2. A session's key is stored plain, or sealed with AES-256-GCM under a master key.
GoTrue opens every key for which it has the master key, and so does this; sealing is a
setting.
Rule 3. A key that cannot be opened says nothing about the token: the result is *unknown*,
for the operator to correct, and no reason to sign anybody out.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from base64 import b32encode, b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from handstamp.errors import ConfigError, SessionsUnavailable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HIGHEST_COUNTER = 2**63 - 1
KEY_BYTES = 32
NONCE_BYTES = 12
LONGEST_TEXT = 256
"""Four times the longest token. A longer text is not decoded."""

_V1 = re.compile(r"[a-z0-9]{12}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_ID_ENDS = 17
_MAC = 16
_CHECKSUM = 4
_SHORTEST = _ID_ENDS + 1 + _MAC + _CHECKSUM
_LONGEST_COUNTER = 10
_ALGORITHM = "aes-gcm-hkdf"


def mint_v1(entropy: bytes) -> str:
    """Returns a v1 token of 12 characters, from 8 bytes of fresh randomness.

    Raises ValueError for any other number of bytes.
    """
    if len(entropy) != 8:
        raise ValueError("a v1 token takes 8 bytes of entropy")
    return b32encode(entropy).decode()[:12].lower()


def is_v1(text: str) -> bool:
    """Whether ``text`` has the form of a v1 token; only the table says if it is one."""
    return _V1.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class CounterToken:
    """The contents of a v2 token: claims, until :meth:`is_signed_by` is true."""

    session_id: str
    counter: int
    signed: bytes = field(repr=False, compare=False)
    signature: bytes = field(repr=False, compare=False)

    def is_signed_by(self, key: bytes) -> bool:
        """Whether the session's ``key`` signed it, compared in constant time."""
        expected = hmac.digest(key, self.signed, "sha256")[:_MAC]
        return hmac.compare_digest(self.signature, expected)


def read_v2(text: str) -> CounterToken | None:
    """Returns the contents of a v2 token, or None. Accepts what GoTrue accepts."""
    raw = _lax_base64url(text)
    if raw is None or len(raw) < _SHORTEST or raw[0] != 0:
        return None
    body, checksum = raw[:-_CHECKSUM], raw[-_CHECKSUM:]
    if not hmac.compare_digest(checksum, hashlib.sha256(body).digest()[:_CHECKSUM]):
        return None
    number = _read_uvarint(body[_ID_ENDS:])
    if number is None:
        return None
    counter, length = number
    signed, mac = body[: _ID_ENDS + length], body[_ID_ENDS + length :]
    if len(mac) != _MAC:
        return None
    session_id = _hyphenated(signed[1:_ID_ENDS])
    return CounterToken(session_id, min(counter, HIGHEST_COUNTER), signed, mac)


def write_v2(session_id: str, counter: int, key: bytes) -> str:
    """Returns the one text that GoTrue writes for this session and counter.

    Raises ValueError for an id that is no uuid, a counter outside 0 to 2^63 - 1, or a
    key that is not 32 bytes.
    """
    if not 0 <= counter <= HIGHEST_COUNTER:
        raise ValueError("a counter is between 0 and 2^63 - 1")
    if len(key) != KEY_BYTES:
        raise ValueError(f"a session's key has {KEY_BYTES} bytes")
    identity = bytes.fromhex(canonical_uuid(session_id).replace("-", ""))
    signed = b"\0" + identity + _uvarint(counter)
    body = signed + hmac.digest(key, signed, "sha256")[:_MAC]
    return _base64url(body + hashlib.sha256(body).digest()[:_CHECKSUM])


def new_key(entropy: bytes) -> str:
    """Returns a session's key as it is stored plain: 43 characters, of 32 random bytes.

    Raises ValueError for any other number of bytes.
    """
    if len(entropy) != KEY_BYTES:
        raise ValueError(f"a session's key takes {KEY_BYTES} bytes of entropy")
    return _base64url(entropy)


def canonical_text(text: str) -> str:
    """Returns one text for all texts of the same token (rule 1), to use as a key."""
    raw = _lax_base64url(text)
    return text if raw is None or is_v1(text) else _base64url(raw)


class KeyRing:
    """The master keys that seal the sessions' keys, with GoTrue's settings for them.

    ``encryption_key_id`` and ``encrypt`` are ``SECURITY_DB_ENCRYPTION_ENCRYPTION_KEY_ID``
    and ``…_ENCRYPT``; ``keys`` are all of ``…_DECRYPTION_KEYS``, 32 raw bytes by name.
    Without keys, plain storage is all there is, and ``cryptography`` is not needed.
    Raises :class:`ConfigError` for keys that cannot work.
    """

    __slots__ = ("_current", "_keys")

    def __init__(
        self,
        encryption_key_id: str | None = None,
        keys: Mapping[str, bytes] | None = None,
        encrypt: bool = False,
    ) -> None:
        self._keys = dict(keys or {})
        if any(len(key) != KEY_BYTES for key in self._keys.values()):
            raise ConfigError(f"a master key has {KEY_BYTES} bytes: decode its base64url")
        if "" in self._keys:
            raise ConfigError("a master key needs a name")
        if encrypt and encryption_key_id not in self._keys:
            raise ConfigError("encryption_key_id must name one of the master keys")
        if self._keys:
            _aes(bytes(KEY_BYTES))
        self._current = encryption_key_id if encrypt else None

    def __repr__(self) -> str:
        return f"KeyRing(keys={len(self._keys)}, encrypt={self._current is not None})"

    def open(self, stored: str, session_id: str) -> bytes:
        """Returns the 32 bytes of a session's key, from the text in its row.

        Raises :class:`SessionsUnavailable` when the master key is not here or the
        value is damaged (rule 3).
        """
        envelope = _read_envelope(stored)
        plain = stored if envelope is None else self._decrypt(envelope, session_id)
        raw = _lax_base64url(plain)
        if raw is None or len(raw) != KEY_BYTES:
            raise SessionsUnavailable("a session's refresh token key is damaged")
        return raw

    def seal(self, plain: str, session_id: str, nonce: bytes) -> str:
        """Returns what to store for the key ``plain`` (43 characters).

        ``nonce`` are 12 fresh random bytes, unused where nothing is sealed.
        """
        if self._current is None:
            return plain
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"sealing takes {NONCE_BYTES} bytes of entropy")
        cipher = _aes(_derived(self._keys[self._current], session_id))
        data = cipher.encrypt(nonce, plain.encode("ascii"), None)
        envelope = {
            "key_id": self._current,
            "alg": _ALGORITHM,
            "data": b64encode(data).decode(),
            "nonce": b64encode(nonce).decode(),
        }
        return json.dumps(envelope, separators=(",", ":"), ensure_ascii=False)

    def reseal(self, stored: str, session_id: str, nonce: bytes) -> str:
        """Returns what to store in place of ``stored``. Raises as :meth:`open` does."""
        return self.seal(_base64url(self.open(stored, session_id)), session_id, nonce)

    def needs_resealing(self, stored: str) -> bool:
        """Whether GoTrue would write this key again: sealing is on, and it is plain or
        sealed under another master key."""
        if self._current is None:
            return False
        envelope = _read_envelope(stored)
        return envelope is None or envelope.key_id != self._current

    def _decrypt(self, envelope: _Envelope, session_id: str) -> str:
        master = self._keys.get(envelope.key_id)
        if master is None:
            raise SessionsUnavailable("the master key of a session's key is not configured")
        from cryptography.exceptions import InvalidTag

        try:
            cipher = _aes(_derived(master, session_id))
            return cipher.decrypt(envelope.nonce, envelope.data, None).decode("ascii")
        except (InvalidTag, ValueError):
            # From None: what failed to decrypt may be quoted in the cause.
            raise SessionsUnavailable("a session's sealed key is damaged") from None


@dataclass(frozen=True, slots=True)
class _Envelope:
    key_id: str
    data: bytes = field(repr=False)
    nonce: bytes = field(repr=False)


def _read_envelope(stored: str) -> _Envelope | None:
    """Returns a sealed key, or None for a text that GoTrue takes for a plain one."""
    if not stored.startswith("{"):
        return None
    try:
        fields = json.loads(stored)
        key_id, alg = fields["key_id"], fields["alg"]
        data, nonce = (b64decode(fields[k], validate=True) for k in ("data", "nonce"))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(key_id, str) or not key_id or not data:
        return None
    if alg != _ALGORITHM or len(nonce) != NONCE_BYTES:
        return None
    return _Envelope(key_id, data, nonce)


def _derived(master: bytes, session_id: str) -> bytes:
    """HKDF-SHA256 without a salt; one block is 32 bytes, which is all that is taken."""
    extracted = hmac.digest(bytes(32), master, "sha256")
    return hmac.digest(extracted, canonical_uuid(session_id).encode() + b"\x01", "sha256")


def _aes(key: bytes) -> AESGCM:
    # Imported here, so that plain keys need no package.
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as missing:
        raise ConfigError(
            "sealed refresh token keys need the package cryptography: "
            "pip install 'handstamp[supabase]'"
        ) from missing
    return AESGCM(key)


def canonical_uuid(text: str) -> str:
    """Returns a uuid in lower case with hyphens. Raises ValueError for anything else."""
    lowered = text.lower()
    if not _UUID.fullmatch(lowered):
        raise ValueError("this is no uuid")
    return lowered


def mint_uuid(entropy: bytes) -> str:
    """Returns a random uuid (version 4) of 16 fresh random bytes."""
    raw = bytearray(entropy)
    raw[6], raw[8] = raw[6] & 0x0F | 0x40, raw[8] & 0x3F | 0x80
    return _hyphenated(bytes(raw))


def _hyphenated(raw: bytes) -> str:
    digits = raw.hex()
    cuts = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
    return "-".join(digits[start:end] for start, end in cuts)


def _base64url(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _lax_base64url(text: str) -> bytes | None:
    """Decodes as Go's ``RawURLEncoding``: with line breaks and stray bits, without
    padding."""
    if len(text) > LONGEST_TEXT:
        return None
    text = text.replace("\r", "").replace("\n", "")
    if not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        return None
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _uvarint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _read_uvarint(raw: bytes) -> tuple[int, int] | None:
    """Returns a number and its length in bytes; None above 64 bits, as Go's ``Uvarint``."""
    number = 0
    for length, byte in enumerate(raw[:_LONGEST_COUNTER], 1):
        number |= (byte & 0x7F) << 7 * (length - 1)
        if byte < 0x80:
            return (number, length) if number < 2**64 else None
    return None
