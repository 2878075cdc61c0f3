"""The access tokens of Supabase Auth: the keys, reading them, and minting them as GoTrue
does.

A signature says only that a token was issued. Whether its session is still valid is in
``auth.sessions``.

Rule 1. A key has one algorithm, which its own type determines, never a token. A public key
is therefore never taken for the secret of an HMAC.
Rule 2. A token's ``kid`` selects the key. Without one, or with one that is unknown, the
secret is used, with HS256, as in GoTrue.
Rule 3. A key too short for its algorithm is refused at the start.
Rule 4. ``exp``, ``sub`` and ``session_id`` must be there, the last two uuids: stricter than
GoTrue. The API keys of a project are signed by the same key and name no session, so they
sign nobody in.
Rule 5. A header may select one of our keys, and nothing else. ``alg`` must be the one
algorithm of that key, ``crit`` is refused, ``jku``, ``jwk`` and ``x5u`` are not read, and
``none`` is no algorithm.
Rule 6. Anything else is None, not an exception, and a text that is too long is refused
before any key is used.
Rule 7. Reading does not depend on the time: a signature stays valid, so a token that was
read may be kept. Its times are judged at each use, by the caller's clock.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from handstamp.core.models import Issued, Session
from handstamp.errors import ConfigError
from handstamp.supabase.cookies import LONGEST_ACCESS_TOKEN
from handstamp.supabase.rows import NewTokens, limited_to_token, record_of
from handstamp.supabase.rules import (
    AAL1,
    AAL2,
    AmrEntry,
    AuthSession,
    AuthUser,
    SupabaseRules,
    access_token_ends,
)
from handstamp.supabase.tokens import canonical_uuid

_IS_INSTALLED = find_spec("jwt") is not None
# The command line and handstamp.testing import this room too, without that extra.
if TYPE_CHECKING or _IS_INSTALLED:
    from jwt import PyJWK, PyJWS
    from jwt.exceptions import PyJWTError

    _JWS = PyJWS()

KeySet = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""JSON text, ``{"keys": […]}``, or the list itself, as ``GOTRUE_JWT_KEYS`` has it."""

Claims = dict[str, Any]

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
_FORM = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_LATEST = 253_402_300_799  # the last second a datetime holds
_NO_SESSION = "00000000-0000-0000-0000-000000000000"
_SECOND_FACTORS = frozenset({"totp", "mfa/phone", "mfa/webauthn"})
_FIXED = ("sub", "session_id", "iat", "exp")
_TEXTS = ("email", "phone", "role", "aal")


@dataclass(frozen=True, slots=True)
class Key:
    """One key and its only algorithm; ``signing`` is None where it can only verify."""

    kid: str | None
    algorithm: str
    verifying: PyJWK = field(repr=False)
    signing: PyJWK | None = field(repr=False)


class Keys:
    """All keys that verify tokens, and the one that signs them.

    ``secret`` is ``GOTRUE_JWT_SECRET``; ``key_set`` is ``…_JWT_KEYS``, or the public set
    of ``/.well-known/jwks.json`` where another server signs. The key whose ``key_ops``
    have ``sign`` signs, else the secret does.
    Raises :class:`ConfigError` for keys that cannot work, or without PyJWT.
    """

    __slots__ = ("_by_kid", "_secret", "signing")

    def __init__(
        self,
        *,
        secret: str | bytes | None = None,
        key_set: KeySet | None = None,
    ) -> None:
        if not _IS_INSTALLED:
            raise ConfigError(
                "Supabase's access tokens need the package PyJWT: pip install"
                " 'handstamp[supabase]'"
            )
        self._secret = None if secret is None else _from_secret(secret)
        self._by_kid: dict[str, Key] = {}
        for key in _from_key_set(key_set):
            if self._by_kid.setdefault(str(key.kid), key) is not key:
                raise ConfigError(f"two keys have the kid {key.kid!r}")
        if not self._by_kid and self._secret is None:
            raise ConfigError(
                "access tokens need keys: give jwt_secret=, the project's JWT secret, or "
                "jwt_keys=, its JWK set"
            )
        signing = [key for key in self._by_kid.values() if key.signing]
        if len(signing) > 1:
            raise ConfigError("only one key may have the operation sign")
        self.signing = signing[0] if signing else self._secret

    def __repr__(self) -> str:
        return f"Keys({sorted(self._by_kid)}, secret={self._secret is not None})"

    def pick(self, kid: str | None, algorithm: str) -> Key | None:
        """Returns the key that a token's header names, if it is of that algorithm."""
        key = None if kid is None else self._by_kid.get(kid)
        if key is None:
            key = self._secret
        return key if key is not None and key.algorithm == algorithm else None


def _from_secret(secret: str | bytes) -> Key:
    raw = secret.encode() if isinstance(secret, str) else bytes(secret)
    encoded = urlsafe_b64encode(raw).rstrip(b"=").decode()
    return _key({"kty": "oct", "k": encoded, "key_ops": ["sign"]})


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
    """Returns the key's one algorithm: the one it names, if that fits its type (rule 1)."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """The claims of a correctly signed access token that decide, valid or not.

    ``client_id`` is set for tokens of an OAuth client.
    """

    user_id: str
    session_id: str
    expires_at: datetime
    not_before: datetime | None
    aal: str
    client_id: str | None

    def is_live(self, now: datetime) -> bool:
        """Whether ``nbf`` has come and ``exp`` has not: no leeway, the end excluded."""
        begun = self.not_before is None or self.not_before <= now
        return begun and now < self.expires_at


def assurance_level(methods: Iterable[str]) -> str:
    """Returns the level that these methods of sign-in give: ``aal1`` or ``aal2``."""
    return AAL1 if _SECOND_FACTORS.isdisjoint(methods) else AAL2


class AccessTokens:
    """Reads and mints access tokens under a project's keys.

    ``issuer`` is ``GOTRUE_JWT_ISSUER``. ``claims`` is called with the claims of each
    token before it is signed, and returns those to sign. It replaces GoTrue's own access
    token hook, which is not called when this library mints.
    """

    __slots__ = ("_claims", "_issuer", "_keys")

    def __init__(
        self,
        keys: Keys,
        *,
        issuer: str = "",
        claims: Callable[[Claims], Claims] | None = None,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._claims = claims

    @property
    def can_mint(self) -> bool:
        """Whether there is a key to sign with."""
        return self._keys.signing is not None

    def read(self, token: str) -> AccessToken | None:
        """Returns the claims of ``token`` if one of our keys signed it, whatever the time;
        otherwise None."""
        if len(token) > LONGEST_ACCESS_TOKEN:
            return None
        match = _FORM.fullmatch(token)
        header = None if match is None else _read_header(match[1])
        if header is None:
            return None
        key = self._keys.pick(*header)
        if key is None:
            return None
        try:
            payload = _JWS.decode(token, key.verifying, algorithms=[key.algorithm])
        except (PyJWTError, ValueError, TypeError, RecursionError):
            return None  # older versions parse the header again, one call deeper than we do
        return _read_claims(payload)

    def mint(
        self,
        session: AuthSession,
        user: AuthUser,
        amr: Sequence[AmrEntry],
        *,
        issued_at: datetime,
        expires_at: datetime,
    ) -> str:
        """Returns a token with GoTrue's claims, changed only by the hook.

        ``amr`` are the rows of ``auth.mfa_amr_claims`` and determine the level. Raises
        :class:`ConfigError` where there is no key to sign with, or the hook leaves no
        token that GoTrue would take, or the token would be too long to be read again.
        """
        claims: Claims = {"iss": self._issuer} if self._issuer else {}
        claims |= {"sub": user.id, "aud": user.aud or ""}
        claims |= {"iat": _seconds(issued_at), "exp": _seconds(expires_at)}
        claims |= {
            "email": user.email,
            "phone": user.phone,
            "app_metadata": dict(user.app_metadata),
            "user_metadata": dict(user.user_metadata),
            "role": user.role or "",
            "is_anonymous": user.is_anonymous,
            "session_id": session.id,
            "aal": assurance_level(entry.method for entry in amr),
        }
        if amr:
            newest_first = sorted(amr, key=lambda entry: entry.at, reverse=True)
            claims["amr"] = [
                {"method": entry.method, "timestamp": _seconds(entry.at)}
                for entry in newest_first
            ]
        return self._sign(claims if self._claims is None else self._changed(claims))

    def _changed(self, claims: Claims) -> Claims:
        assert self._claims is not None  # noqa: S101 - asked by the only caller
        fixed = {name: claims[name] for name in _FIXED}
        changed: object = self._claims(claims)
        if not isinstance(changed, dict) or {n: changed.get(n) for n in _FIXED} != fixed:
            raise ConfigError(
                "the claims hook must return the claims, with "
                f"{', '.join(_FIXED)} as they were"
            )
        audience = isinstance(changed.get("aud"), str | list)
        texts = all(isinstance(changed.get(name), str) for name in _TEXTS)
        if not audience or not texts or "is_anonymous" not in changed:
            raise ConfigError(
                "the claims hook must keep aud and is_anonymous, and the texts "
                f"{', '.join(_TEXTS)}"
            )
        return changed

    def _sign(self, claims: Claims) -> str:
        key = self._keys.signing
        if key is None or key.signing is None:
            raise ConfigError(
                "no key signs access tokens: one must have the operation sign"
            )
        headers = None if key.kid is None else {"kid": key.kid}
        try:
            text = json.dumps(
                claims, ensure_ascii=False, separators=(",", ":"), allow_nan=False
            )
        except (TypeError, ValueError, RecursionError):
            raise ConfigError("the claims of an access token are no JSON") from None
        payload = text.encode("utf-8", "backslashreplace")  # half a surrogate pair: \udXXX
        minted = _JWS.encode(payload, key.signing, key.algorithm, headers)
        if len(minted) > LONGEST_ACCESS_TOKEN:
            raise ConfigError(
                f"an access token has more than {LONGEST_ACCESS_TOKEN} characters: leave "
                "metadata out by the claims hook"
            )
        return minted


def _seconds(at: datetime) -> int:
    return int(at.timestamp() // 1)


def _read_header(segment: str) -> tuple[str | None, str] | None:
    """Returns the ``kid`` and the ``alg`` in a token's header, or None for a header that is
    refused (rule 5)."""
    header = (
        _read_json(urlsafe_b64decode(segment + "==")) if len(segment) % 4 != 1 else None
    )
    if header is None or "crit" in header or "b64" in header:
        return None
    kid, algorithm = header.get("kid"), header.get("alg")
    if not isinstance(kid, str | None) or not isinstance(algorithm, str):
        return None
    return kid, algorithm


def _read_claims(payload: object) -> AccessToken | None:
    claims = _read_json(payload) if isinstance(payload, bytes) else None
    if claims is None:
        return None
    user_id, session_id = _uuid(claims.get("sub")), _uuid(claims.get("session_id"))
    expires_at, not_before = _time(claims.get("exp")), _time(claims.get("nbf"))
    if user_id is None or session_id is None or expires_at is None:
        return None
    if not_before is None and claims.get("nbf") is not None:
        return None
    aal, client_id = claims.get("aal"), claims.get("client_id")
    return AccessToken(
        user_id=user_id,
        session_id=session_id,
        expires_at=expires_at,
        not_before=not_before,
        aal=aal if isinstance(aal, str) else AAL1,
        client_id=client_id if isinstance(client_id, str) and client_id else None,
    )


def _read_json(raw: bytes) -> Claims | None:
    try:
        read = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def _uuid(value: object) -> str | None:
    try:
        uuid = canonical_uuid(value) if isinstance(value, str) else _NO_SESSION
    except ValueError:
        return None
    return None if uuid == _NO_SESSION else uuid


def _time(value: object) -> datetime | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return datetime.fromtimestamp(value, UTC) if 0 <= value <= _LATEST else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIssuer:
    """Makes the tokens of a session that was just written, as GoTrue's response has them.

    ``with_user`` adds the user to the body, for supabase-js in a browser.
    """

    tokens: AccessTokens
    rules: SupabaseRules
    with_user: bool

    def check(self) -> None:
        """Raises :class:`ConfigError` where no key can sign: before a row is written whose
        tokens could never be delivered."""
        if not self.tokens.can_mint:
            raise ConfigError(
                "no key signs access tokens: give jwt_secret=, or jwt_keys= with a "
                "private key, to sign in and to refresh here"
            )

    def issue(self, new: NewTokens, deliver_until: float) -> Issued:
        """Returns an access token of the session and its new refresh token.

        ``deliver_until`` is when a response may no longer deliver them. Raises what the
        claims hook raises.
        """
        session, user, now = new.session, new.user, new.session.read_at
        level = assurance_level(entry.method for entry in new.amr)
        ends = access_token_ends(session, level, self.rules, now)
        access = self.tokens.mint(session, user, new.amr, issued_at=now, expires_at=ends)
        body: dict[str, object] = {
            "access_token": access,
            "token_type": "bearer",
            "expires_in": int((ends - now).total_seconds()),
            "expires_at": int(ends.timestamp()),
            "refresh_token": new.refresh_token,
        }
        if self.with_user:
            body["user"] = _public(user)
        record = limited_to_token(record_of(session, self.rules), ends, level)
        return Issued(
            session=Session.of(record),
            session_token=access,
            refresh_token=new.refresh_token,
            remember=True,
            session_lifetime=None,
            refresh_lifetime=None,
            deliver_until=deliver_until,
            body=body,
        )


def _public(user: AuthUser) -> dict[str, object]:
    """The user as auth-js has it. A reader of the cookie must not believe it."""
    times = {
        name: at.isoformat().replace("+00:00", "Z")
        for name in ("created_at", "updated_at", "last_sign_in_at")
        if (at := getattr(user, name)) is not None
    }
    return {
        "id": user.id,
        "aud": user.aud or "",
        "role": user.role or "",
        "email": user.email,
        "phone": user.phone,
        "app_metadata": dict(user.app_metadata),
        "user_metadata": dict(user.user_metadata),
        "identities": [],
        "is_anonymous": user.is_anonymous,
        **times,
    }
