"""The keys of Supabase's access tokens: the secret, or a set of JSON Web Keys.

Rule 1. A key has one algorithm, told by its own type, never by a token. A public key is
therefore never taken for the secret of an HMAC.
Rule 2. A token's ``kid`` picks the key. Without one, or with one that is not here, only
the secret is left, for HS256, as GoTrue has it.
Rule 3. A key too short for its algorithm is refused at the start.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handstamp.errors import ConfigError

try:
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError
except ImportError as missing:
    raise ImportError(
        "Supabase's access tokens need the package PyJWT: pip install 'handstamp[supabase]'"
    ) from missing

KeySet = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""JSON text, ``{"keys": […]}``, or the list itself, as ``GOTRUE_JWT_KEYS`` has it."""

_ALGORITHMS = {
    ("oct", None): ("HS256",),
    ("RSA", None): ("RS256", "RS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})
_SHORTEST_SECRET = 32
_SHORTEST_RSA = 2048


@dataclass(frozen=True, slots=True)
class Key:
    """One key and its only algorithm; ``signing`` is None where it can only verify."""

    kid: str | None
    algorithm: str
    verifying: PyJWK = field(repr=False)
    signing: PyJWK | None = field(repr=False)


class Keys:
    """All keys that are believed, and the one that signs.

    ``secret`` is ``GOTRUE_JWT_SECRET`` and ``secret_id`` is ``…_JWT_KEY_ID``; ``key_set``
    is ``…_JWT_KEYS``, or the public set of ``/.well-known/jwks.json`` where another
    server signs. The key whose ``key_ops`` have ``sign`` signs, else the secret does.
    Raises :class:`ConfigError` for keys that cannot work.
    """

    __slots__ = ("_by_kid", "_secret", "signing")

    def __init__(
        self,
        *,
        secret: str | bytes | None = None,
        secret_id: str | None = None,
        key_set: KeySet | None = None,
    ) -> None:
        self._secret = None if secret is None else _from_secret(secret, secret_id)
        self._by_kid: dict[str, Key] = {}
        for key in [*_from_key_set(key_set), *([self._secret] if self._secret else [])]:
            if key.kid is not None and self._by_kid.setdefault(key.kid, key) is not key:
                raise ConfigError(f"two keys have the kid {key.kid!r}")
        if not self._by_kid and self._secret is None:
            raise ConfigError(
                "access tokens need keys: give jwt_secret=, the project's JWT secret, or "
                "jwt_keys=, its JWK set"
            )
        self.signing = self._pick_signing()

    def __repr__(self) -> str:
        return f"Keys({sorted(self._by_kid)}, secret={self._secret is not None})"

    def pick(self, kid: str | None, algorithm: str) -> Key | None:
        """The key that a token's header points to, if it is of that algorithm."""
        key = None if kid is None else self._by_kid.get(kid)
        if key is None:
            key = self._secret
        return key if key is not None and key.algorithm == algorithm else None

    def _pick_signing(self) -> Key | None:
        able = [k for k in self._by_kid.values() if k.signing and k is not self._secret]
        if len(able) > 1:
            raise ConfigError("only one key may have the operation sign")
        return able[0] if able else self._secret


def _from_secret(secret: str | bytes, kid: str | None) -> Key:
    raw = secret.encode() if isinstance(secret, str) else bytes(secret)
    encoded = urlsafe_b64encode(raw).rstrip(b"=").decode()
    return _key({"kty": "oct", "k": encoded, "kid": kid, "key_ops": ["sign"]})


def _from_key_set(key_set: KeySet | None) -> Iterator[Key]:
    if key_set is None:
        return
    try:
        read = json.loads(key_set) if isinstance(key_set, str) else key_set
    except (ValueError, RecursionError):
        raise ConfigError("the key set is no JSON") from None
    members = read.get("keys") if isinstance(read, Mapping) else read
    if not isinstance(members, Sequence) or isinstance(members, str | bytes):
        raise ConfigError("the key set holds no list of keys")
    for member in members:
        if not isinstance(member, Mapping):
            raise ConfigError("a key in the key set is no object")
        if not isinstance(member.get("kid"), str) or not member["kid"]:
            raise ConfigError("a key in the key set has no kid")
        yield _key(dict(member))


def _key(member: dict[str, Any]) -> Key:
    algorithm = _algorithm(member)
    public = {name: value for name, value in member.items() if name not in _PRIVATE}
    verifying = _load(public, algorithm)
    signs = "sign" in (member.get("key_ops") or ())
    signing = _load(member, algorithm) if signs else None
    if signs and member["kty"] != "oct" and "d" not in member:
        raise ConfigError(f"the key {member['kid']!r} shall sign, but it is a public key")
    return Key(member.get("kid"), algorithm, verifying, signing)


def _algorithm(member: Mapping[str, Any]) -> str:
    """The key's one algorithm: what it says, if that fits what it is (rule 1)."""
    kty, named = member.get("kty"), member.get("alg")
    curve = member.get("crv") if kty in ("EC", "OKP") else None
    able: tuple[str, ...] = ()
    if isinstance(kty, str) and isinstance(curve, str | None):
        able = _ALGORITHMS.get((kty, curve), ())
    if not able or (named is not None and named not in able):
        raise ConfigError(
            f"the key {str(member.get('kid'))[:64]!r} is for none of HS256, RS256, RS512, "
            "ES256, ES512 and EdDSA, or names one that does not fit its type"
        )
    return named or able[0]


def _load(member: dict[str, Any], algorithm: str) -> PyJWK:
    name = str(member.get("kid"))[:64]
    try:
        loaded = PyJWK(member, algorithm=algorithm)
        loaded.Algorithm.prepare_key(loaded.key)
    except (PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        # From None: the cause may quote the key.
        raise ConfigError(f"the key {name!r} cannot be read") from None
    if algorithm == "HS256" and len(loaded.key) < _SHORTEST_SECRET:
        raise ConfigError(f"a secret for HS256 needs at least {_SHORTEST_SECRET} bytes")
    if algorithm in ("RS256", "RS512") and loaded.key.key_size < _SHORTEST_RSA:
        raise ConfigError(f"the key {name!r} needs at least {_SHORTEST_RSA} bits")
    return loaded
