"""``request.user``: the user of the session, as long as the password is the same.

Rule 1. A session that :func:`handstamp.django.login` opens carries a claim in its signed
tokens: a digest of ``user.get_session_auth_hash()``. It is compared whenever a request
loads its user. This needs no column, and no query besides the one for the user.
Rule 2. If the claim does not match, the request has no user, and the session is ended. So
every change of a password is noticed, also one that was written past Django.
Rule 3. As in Django, a hash under a key of ``SECRET_KEY_FALLBACKS`` matches, and a model
without ``get_session_auth_hash`` is not checked.
Rule 4. Django hashes a password again when the parameters of its hasher have changed and
the user enters it. Other sessions carry the older hash. They go on (in Django they would
not) if the hash is Django's own, of the password field alone, and the stored password has
the parameters of today and other ones than the claim.
Rule 5. The user comes from ``GET_USER`` of the settings, else from ``get_user_model()``,
else it is a :class:`SessionUser`, which only has an id.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Awaitable
from hashlib import sha256
from inspect import iscoroutinefunction
from typing import Any, ClassVar, cast

from asgiref.sync import async_to_sync, sync_to_async
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import get_hasher, identify_hasher
from django.core.exceptions import ImproperlyConfigured, ValidationError

from handstamp.core.models import Session
from handstamp.django.handles import AnyHandle, run_in_background
from handstamp.django.settings import configuration
from handstamp.engine.sessions import Sessions

_VERSION = "d1"
_PARAMETERS, _DIGEST = 3, 16
"""Bytes of each part of a claim."""
_UNUSABLE = "----"
_CLAIM = re.compile(r"d1(.{4})(.{22})")
_NOT_PARAMETERS = frozenset({"hash", "salt", "checksum"})
PASSWORD_CHANGED = "password changed"  # noqa: S105 - the reason of an end
"""The reason with which a session is ended."""


def has_auth_hash(user: Any) -> bool:
    """Whether the password of this user, or of this model, can be compared (rule 3)."""
    return hasattr(user, "get_session_auth_hash")


def make_claim(user: Any) -> str | None:
    """The claim for a session of this user; None if there is nothing to compare."""
    if not has_auth_hash(user):
        return None
    return _VERSION + _parameters_of(user) + _digest_of(user.get_session_auth_hash())


def claim_matches(claim: str | None, user: Any) -> bool:
    """Whether the user's password is the one for which a session was opened (rules 3, 4).

    True for a session that carries no claim of ours.
    """
    parts = None if claim is None else _CLAIM.fullmatch(claim)
    if parts is None or not has_auth_hash(user):
        return True
    hashes = [user.get_session_auth_hash()]
    if hasattr(user, "get_session_auth_fallback_hash"):
        hashes += user.get_session_auth_fallback_hash()
    if any(hmac.compare_digest(parts[2], _digest_of(each)) for each in hashes):
        return True
    return _was_rehashed(parts[1], user)


def claim_differs(claim: str | None, auth_hash: str) -> bool:
    """Whether a claim of ours carries another hash than this one."""
    parts = None if claim is None else _CLAIM.fullmatch(claim)
    return parts is not None and not hmac.compare_digest(parts[2], _digest_of(auth_hash))


def is_rehash(before: Any, after: Any) -> bool:
    """Whether the same password may have been hashed again (rule 4)."""
    return _was_rehashed(_parameters_of(before), after)


def _was_rehashed(before: str, user: Any) -> bool:
    now = _parameters_of(user)
    if not has_default_auth_hash(user) or _UNUSABLE in (before, now):
        return False
    encoded: str = user.password
    preferred: Any = get_hasher()
    current: Any = identify_hasher(encoded)
    if current.algorithm != preferred.algorithm:
        return False
    return before != now and not preferred.must_update(encoded)


def has_default_auth_hash(user: Any) -> bool:
    """Whether the hash is Django's own: of the password field alone."""
    from django.contrib.auth.base_user import AbstractBaseUser

    own = AbstractBaseUser.get_session_auth_hash
    return getattr(type(user), "get_session_auth_hash", None) is own


def _digest_of(auth_hash: str) -> str:
    raw = sha256(f"handstamp.django.auth:{auth_hash}".encode()).digest()
    return _text(raw[:_DIGEST])


def _parameters_of(user: Any) -> str:
    """A digest of the parameters of the hash; the length of the salt is one of them."""
    encoded = getattr(user, "password", None) or ""
    hasher: Any = None
    try:
        hasher = identify_hasher(encoded)
        parts = dict(hasher.decode(encoded))
    except NotImplementedError:  # a hasher of the application may not decode
        parts = {"algorithm": hasher.algorithm}
    except Exception:  # no password, or a damaged one, for which a hasher raises anything
        return _UNUSABLE
    plain = {k: v for k, v in parts.items() if k not in _NOT_PARAMETERS}
    parameters = sorted((k, v) for k, v in plain.items() if isinstance(v, str | int))
    size = len(str(parts.get("salt", "")))
    raw = sha256(repr((parameters, size)).encode()).digest()
    return _text(raw[:_PARAMETERS])


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


class SessionUser:
    """A user who is logged in, where the application has no model of users."""

    is_authenticated: ClassVar[bool] = True
    is_anonymous: ClassVar[bool] = False
    is_active: ClassVar[bool] = True
    is_staff: ClassVar[bool] = False
    is_superuser: ClassVar[bool] = False

    def __init__(self, id: str) -> None:
        self.id = self.pk = id

    def __str__(self) -> str:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SessionUser) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def get_username(self) -> str:
        """The id."""
        return self.id

    def has_perm(self, perm: str, obj: object = None) -> bool:
        """False: permissions need a model."""
        return False

    def has_perms(self, perms: list[str], obj: object = None) -> bool:
        """False, unless the list is empty."""
        return not perms

    def has_module_perms(self, module: str) -> bool:
        """False."""
        return False


class AnonymousSessionUser(SessionUser):
    """The user of a request without a session, without ``django.contrib.auth``."""

    is_authenticated = False
    is_anonymous = True
    is_active = False

    def __init__(self) -> None:
        super().__init__("")


def anonymous_user() -> Any:
    """The user of a request without a session: Django's own where that is installed."""
    if not apps.is_installed("django.contrib.auth"):
        return AnonymousSessionUser()
    from django.contrib.auth.models import AnonymousUser

    return AnonymousUser()


def load_user(user_id: str | None) -> Any:
    """The user of this id (rule 5); the anonymous user if there is none, or if that one is
    not active."""
    if user_id is None:
        return anonymous_user()
    find = configuration().own.get("get_user")
    if find is None:
        user = _load_from_model(user_id)
    elif iscoroutinefunction(find):
        user = async_to_sync(find)(user_id)
    else:
        user = find(user_id)
    return _active_or_anonymous(user)


async def aload_user(user_id: str | None) -> Any:
    """See :func:`load_user`."""
    find = configuration().own.get("get_user")
    if user_id is not None and find is not None and iscoroutinefunction(find):
        return _active_or_anonymous(await find(user_id))
    return await cast(Awaitable[Any], sync_to_async(load_user)(user_id))


def _active_or_anonymous(user: Any) -> Any:
    if user is None or not getattr(user, "is_active", True):
        return anonymous_user()
    return user


def _load_from_model(user_id: str) -> Any:
    try:
        model: Any = get_user_model()
    except ImproperlyConfigured:  # django.contrib.auth is not installed
        return SessionUser(user_id)
    try:
        key = model._meta.pk.to_python(user_id)
    except (ValidationError, ValueError, TypeError):
        return None
    return model._default_manager.filter(pk=key).first()


def get_user(request: Any) -> Any:
    """``request.user``, loaded once."""
    if not hasattr(request, "_session_user"):
        request._session_user = _checked(request, load_user(request.handstamp.user_id))
    return request._session_user


async def aget_user(request: Any) -> Any:
    """``await request.auser()``, loaded once for both."""
    if not hasattr(request, "_session_user"):
        user = await aload_user(request.handstamp.user_id)
        request._session_user = _checked(request, user)
    return request._session_user


def _checked(request: Any, user: Any) -> Any:
    handle: AnyHandle = request.handstamp
    session = handle._session
    if session is None or not user.is_authenticated or claim_matches(session.claim, user):
        return user
    handle._session = None
    if handle._issued is not None:
        tokens: tuple[bytes, ...] = (handle._issued.session_token.encode(),)
    else:
        options = handle._options
        tokens = options.reader.read(handle._headers, bearer=options.bearer).session
    run_in_background(handle.sessions, _end, handle.sessions, session, tokens)
    return anonymous_user()


async def _end(sessions: Sessions, session: Session, tokens: tuple[bytes, ...]) -> None:
    """End a session, unless its tokens were replaced: a request that was sent before the
    password changed in another one must not end the session that goes on."""
    digests = [sha256(token).hexdigest() for token in tokens]
    found = await sessions.store.find(digests) if digests else []
    if any(record.id == session.id for record in found):
        await sessions.revoke(session.id, reason=PASSWORD_CHANGED)
