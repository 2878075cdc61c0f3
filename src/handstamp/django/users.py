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

Whose session it is, as a user: the application's own, or one that only has an id.

``request.user``: whose session it is, as long as it is of their present password.

The hash that a session carries is compared with the user's own whenever a request loads
the user (:mod:`handstamp.django.users`). Where it is another one, the request is
nobody's and the session is ended: this holds for every writer of the password, whatever
Django knows of it.
"""

from __future__ import annotations

import hashlib
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
from handstamp.django.handles import AnyHandle, later
from handstamp.django.settings import configuration
from handstamp.engine.sessions import Sessions

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


class SessionUser:
    """A signed-in user where the application has no model of them."""

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
        """The id: names are the application's business."""
        return self.id

    def has_perm(self, perm: str, obj: object = None) -> bool:
        """No: permissions come with a model."""
        return False

    def has_perms(self, perms: list[str], obj: object = None) -> bool:
        """No, unless none is asked for."""
        return not perms

    def has_module_perms(self, module: str) -> bool:
        """No."""
        return False


class AnonymousSessionUser(SessionUser):
    """Nobody, where ``django.contrib.auth`` is not installed."""

    is_authenticated = False
    is_anonymous = True
    is_active = False

    def __init__(self) -> None:
        super().__init__("")


def anonymous() -> Any:
    """Nobody: Django's own where that is installed."""
    if not apps.is_installed("django.contrib.auth"):
        return AnonymousSessionUser()
    from django.contrib.auth.models import AnonymousUser

    return AnonymousUser()


def user_of(user_id: str | None) -> Any:
    """The user of this id; nobody if there is none, or they are not active.

    The user comes from ``GET_USER`` of the settings, else from ``get_user_model()``, else
    it is a :class:`SessionUser`.
    """
    if user_id is None:
        return anonymous()
    find = configuration().own.get("get_user")
    if find is None:
        user = _model_user(user_id)
    elif iscoroutinefunction(find):
        user = async_to_sync(find)(user_id)
    else:
        user = find(user_id)
    return _admitted(user)


async def auser_of(user_id: str | None) -> Any:
    """The same in an async view."""
    find = configuration().own.get("get_user")
    if user_id is not None and find is not None and iscoroutinefunction(find):
        return _admitted(await find(user_id))
    return await cast(Awaitable[Any], sync_to_async(user_of)(user_id))


def _admitted(user: Any) -> Any:
    if user is None or not getattr(user, "is_active", True):
        return anonymous()
    return user


def _model_user(user_id: str) -> Any:
    try:
        model: Any = get_user_model()
    except ImproperlyConfigured:  # it is not installed
        return SessionUser(user_id)
    try:
        key = model._meta.pk.to_python(user_id)
    except (ValidationError, ValueError, TypeError):
        return None
    return model._default_manager.filter(pk=key).first()


PASSWORD_CHANGED = "password changed"  # noqa: S105 - the reason of an end
"""The reason by which a session is ended."""


def get_user(request: Any) -> Any:
    """``request.user``, looked up once."""
    if not hasattr(request, "_session_user"):
        request._session_user = _checked(request, user_of(request.handstamp.user_id))
    return request._session_user


async def aget_user(request: Any) -> Any:
    """``await request.auser()``, looked up once, together with the other."""
    if not hasattr(request, "_session_user"):
        user = await auser_of(request.handstamp.user_id)
        request._session_user = _checked(request, user)
    return request._session_user


def _checked(request: Any, user: Any) -> Any:
    handle: AnyHandle = request.handstamp
    session = handle._session
    if session is None or not user.is_authenticated or is_of(session.claim, user):
        return user
    handle._session = None
    later(handle.sessions, _end, handle.sessions, session, _tokens(handle))
    return anonymous()


def _tokens(handle: AnyHandle) -> tuple[bytes, ...]:
    """The session tokens of this request: those it has got, or else those it came with."""
    if handle._issued is not None:
        return (handle._issued.session_token.encode(),)
    return handle._options.reader.read(
        handle._headers, bearer=handle._options.bearer
    ).session


async def _end(sessions: Sessions, session: Session, tokens: tuple[bytes, ...]) -> None:
    """End a session, unless these are tokens that were replaced: a request that was on its
    way when the password changed here ends nothing."""
    digests = [sha256(token).hexdigest() for token in tokens]
    found = await sessions.store.find(digests) if digests else []
    if any(record.id == session.id for record in found):
        await sessions.revoke(session.id, reason=PASSWORD_CHANGED)
