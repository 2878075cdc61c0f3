"""Django's session auth hash, as a claim that the tokens of a session carry.

Rule 1. A session that :func:`handstamp.django.login` opens carries a digest of
``user.get_session_auth_hash()`` in its signed tokens. It is compared whenever the user of
a request is loaded: no column, and no query beside that one.
Rule 2. As in Django, a hash under a key of ``SECRET_KEY_FALLBACKS`` is good, and a model
without ``get_session_auth_hash`` is not checked.
Rule 3. Django hashes a password anew where the parameters of its hasher have changed, when
the user shows it. Other sessions know the older hash, and stay, which in Django they would
not: where the hash is Django's own (of the password field and nothing else), and the one
stored now has other parameters, those of today.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from typing import Any

from django.contrib.auth.hashers import get_hasher, identify_hasher

_VERSION = "d1"
_PARAMETERS, _DIGEST = 3, 16
"""Bytes of each part of a claim."""
_UNUSABLE = "----"
_CLAIM = re.compile(r"d1(.{4})(.{22})")
_OF_EACH_HASH = frozenset({"hash", "salt", "checksum"})


def is_checked(user: Any) -> bool:
    """Whether this is a user whose password can be compared at all."""
    return hasattr(user, "get_session_auth_hash")


def claim_of(user: Any) -> str | None:
    """What a session of this user is to carry; None where there is nothing to compare."""
    if not is_checked(user):
        return None
    return _VERSION + _parameters_of(user) + _digest_of(user.get_session_auth_hash())


def is_of(claim: str | None, user: Any) -> bool:
    """Whether the user's password is still the one for which a session was opened.

    Yes for a session that carries nothing of ours.
    """
    parts = None if claim is None else _CLAIM.fullmatch(claim)
    if parts is None or not is_checked(user):
        return True
    return _verifies(parts[2], user) or _was_upgraded(parts[1], user)


def differs(claim: str | None, auth_hash: str) -> bool:
    """Whether a claim of ours carries another hash than this one."""
    parts = None if claim is None else _CLAIM.fullmatch(claim)
    return parts is not None and not hmac.compare_digest(parts[2], _digest_of(auth_hash))


def is_upgrade(before: Any, after: Any) -> bool:
    """Whether the hash of the same password may have been made anew (rule 3)."""
    return _was_upgraded(_parameters_of(before), after)


def _verifies(digest: str, user: Any) -> bool:
    hashes = [user.get_session_auth_hash()]
    if hasattr(user, "get_session_auth_fallback_hash"):
        hashes += user.get_session_auth_fallback_hash()
    return any(hmac.compare_digest(digest, _digest_of(each)) for each in hashes)


def _was_upgraded(before: str, user: Any) -> bool:
    if not has_own_hash(user) or _UNUSABLE in (before, now := _parameters_of(user)):
        return False
    encoded: str = user.password
    preferred: Any = get_hasher()
    current: Any = identify_hasher(encoded)
    if current.algorithm != preferred.algorithm:
        return False
    return before != now and not preferred.must_update(encoded)


def has_own_hash(user: Any) -> bool:
    """Whether the hash is of the password field alone, as Django makes it."""
    from django.contrib.auth.base_user import AbstractBaseUser

    own = AbstractBaseUser.get_session_auth_hash
    return getattr(type(user), "get_session_auth_hash", None) is own


def _digest_of(auth_hash: str) -> str:
    raw = hashlib.sha256(f"handstamp.django.auth:{auth_hash}".encode()).digest()
    return _text(raw[:_DIGEST])


def _parameters_of(user: Any) -> str:
    """What the password was hashed with, without the salt: its length is one of them."""
    encoded = getattr(user, "password", None) or ""
    hasher: Any = None
    try:
        hasher = identify_hasher(encoded)
        parts = dict(hasher.decode(encoded))
    except NotImplementedError:  # a hasher of the application's own
        parts = {"algorithm": hasher.algorithm}
    except Exception:  # no password at all, or whatever a hasher makes of a damaged one
        return _UNUSABLE
    plain = {k: v for k, v in parts.items() if k not in _OF_EACH_HASH}
    said = sorted((k, v) for k, v in plain.items() if isinstance(v, str | int))
    size = len(str(parts.get("salt", "")))
    raw = hashlib.sha256(repr((said, size)).encode()).digest()
    return _text(raw[:_PARAMETERS])


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
