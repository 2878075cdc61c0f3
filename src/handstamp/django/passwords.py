"""What a change of password does to the user's sessions: it ends them, as in Django.

Rule 1. A change that is saved through the user model ends the sessions when it is
committed: also those that carry no hash, and where nobody asks for the user. What no save
tells is noticed by :mod:`handstamp.django.users`.
Rule 2. The session in which ``update_session_auth_hash`` is called goes on. It gets new
tokens, as Django gives it another session key: a copy of the old ones is dead.
Rule 3. Django's own ``update_session_auth_hash`` leaves its trace in ``request.session``,
and that is where it is seen; no function of Django's is replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from django.conf import settings
from django.contrib.auth import HASH_SESSION_KEY, get_user_model
from django.contrib.sessions.backends.signed_cookies import SessionStore as SignedCookies
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.db.models.signals import post_save, pre_save

from handstamp.core.models import Session
from handstamp.django.handles import acall, adone, call, done, later
from handstamp.django.settings import configuration, get_sessions
from handstamp.django.users import (
    PASSWORD_CHANGED,
    auser_of,
    claim_of,
    differs,
    has_own_hash,
    is_checked,
    is_of,
    is_upgrade,
    user_of,
)

_BEFORE = "_handstamp_before"
_request: ContextVar[Any] = ContextVar("handstamp_request", default=None)


@contextmanager
def serving(request: Any) -> Iterator[None]:
    """While this request is served, a change of password is known to be made in it."""
    token = _request.set(request)
    try:
        yield
    finally:
        _request.reset(token)


def update_session_auth_hash(request: Any, user: Any) -> None:
    """Keep this session after a change of the user's password, as Django's function of
    this name does, and end the others. The session gets new tokens.

    Django's own function does the same at the end of the request, where it can be called
    at all: it needs ``SessionMiddleware``. Raises :class:`SessionsUnavailable`.
    """
    request = _inner(request)
    session = request.handstamp.session
    if session is None or request.user != user:
        return
    request._handstamp_kept = True
    end_others = get_sessions().revoke_user
    call(end_others, session.user_id, keep=session.id, reason=PASSWORD_CHANGED)
    if (claim := _new_claim(request, user)) is not None:
        done(request.handstamp, "renew", claim=claim)


async def aupdate_session_auth_hash(request: Any, user: Any) -> None:
    """See :func:`update_session_auth_hash`."""
    request = _inner(request)
    session = request.handstamp.session
    if session is None or await request.auser() != user:
        return
    request._handstamp_kept = True
    end_others = get_sessions().revoke_user
    await acall(end_others, session.user_id, keep=session.id, reason=PASSWORD_CHANGED)
    if (claim := _new_claim(request, user)) is not None:
        await adone(request.handstamp, "renew", claim=claim)


def settle(request: Any) -> None:
    """After the view: keep this session, or end it, if the password changed in it."""
    session = _unsettled(request)
    if session is None:
        return
    user = user_of(session.user_id) if _was_rehashed(request) else None
    if user is not None and _is_to_keep(request, session, user):
        request.user = request._session_user = user
        update_session_auth_hash(request, user)
    elif _was_changed(request):
        request.handstamp._session = None
        call(get_sessions().revoke, session.id, reason=PASSWORD_CHANGED)


async def asettle(request: Any) -> None:
    """See :func:`settle`."""
    session = _unsettled(request)
    if session is None:
        return
    user = await auser_of(session.user_id) if _was_rehashed(request) else None
    if user is not None and _is_to_keep(request, session, user):
        request.user = request._session_user = user
        await aupdate_session_auth_hash(request, user)
    elif _was_changed(request):
        request.handstamp._session = None
        await acall(get_sessions().revoke, session.id, reason=PASSWORD_CHANGED)


def _unsettled(request: Any) -> Session | None:
    """The session of this request where something may be left to do."""
    session: Session | None = request.handstamp._session
    if session is None or hasattr(request, "_handstamp_kept"):
        return None
    if _was_changed(request):
        return session
    # Without a change that was saved, only a session that carries another hash.
    if not _was_rehashed(request):
        return None
    return session if differs(session.claim, request.session[HASH_SESSION_KEY]) else None


def _was_changed(request: Any) -> bool:
    return hasattr(request, "_handstamp_changed")


def _was_rehashed(request: Any) -> bool:
    """Whether ``request.session`` has the trace of Django's update_session_auth_hash: a
    new key, and a hash. A view that knows nothing of it leaves the key alone."""
    kept: Any = getattr(request, "session", None)
    if kept is None or not getattr(kept, "modified", False):
        return False
    if kept.get(HASH_SESSION_KEY) is None:
        return False
    if isinstance(kept, SignedCookies):  # its key is its content, and has no new one
        return True
    return bool(kept.session_key != request.COOKIES.get(settings.SESSION_COOKIE_NAME))


def _is_to_keep(request: Any, session: Session, user: Any) -> bool:
    """Whether the trace is of this user, as the database has them now, and the session
    would not go on by itself."""
    claim = claim_of(user)
    if not user.is_authenticated or claim is None:
        return False
    if differs(claim, request.session[HASH_SESSION_KEY]):
        return False
    return _was_changed(request) or not is_of(session.claim, user)


def _new_claim(request: Any, user: Any) -> str | None:
    """What the new tokens carry; None where there can be none, or no cookies for them."""
    handle = request.handstamp
    if handle._bearer or not handle.sessions.carries_claims:
        return None
    return claim_of(user)


def _inner(request: Any) -> Any:
    # A request of Django REST framework wraps the one that the middleware saw.
    return getattr(request, "_request", request)


def _remember(*, instance: Any, using: str, update_fields: Any = None, **_: Any) -> None:
    """Before a save: what the hash is in the database."""
    if not _concerns(instance, update_fields):
        return
    rows = type(instance)._base_manager.using(using).filter(pk=instance.pk)
    instance.__dict__[_BEFORE] = rows.first()


def _compare(*, instance: Any, using: str, update_fields: Any = None, **_: Any) -> None:
    """After it: end the sessions if it has changed, once that is committed."""
    before = instance.__dict__.pop(_BEFORE, None)
    if before is None:
        return
    if before.get_session_auth_hash() == instance.get_session_auth_hash():
        return
    marked = getattr(instance, "_password", None) is None  # Django's own mark
    alone = update_fields is not None and set(update_fields) == {"password"}
    if marked and alone and is_upgrade(before, instance):
        return
    transaction.on_commit(partial(_end_sessions, instance), using=using)


def _concerns(instance: Any, update_fields: Any) -> bool:
    """Whether this save may change the hash of a user who has sessions here."""
    try:
        if not isinstance(instance, get_user_model()):
            return False
    except ImproperlyConfigured:  # there is no such model
        return False
    if instance._state.adding or not is_checked(instance):
        return False
    if getattr(settings, "HANDSTAMP", None) is None:
        return False
    return (
        update_fields is None or "password" in update_fields or not has_own_hash(instance)
    )


def _end_sessions(user: Any) -> None:
    """End every session of this user, but for the one of this request: :func:`settle`
    decides on that."""
    user_id = str(user.pk)
    if "get_user" in configuration().own and user_of(user_id) != user:
        return  # the application has ids of its own
    request, keep = _request.get(), None
    session = None if request is None else request.handstamp._session
    if request is not None and session is not None and session.user_id == user_id:
        request._handstamp_changed, keep = True, session.id
    _wherever(get_sessions().revoke_user, user_id, keep=keep, reason=PASSWORD_CHANGED)


def _wherever(function: Any, *args: Any, **options: Any) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        call(function, *args, **options)
    else:  # a save on the thread of a loop, which Django allows where told to
        later(get_sessions(), function, *args, **options)


def connect() -> None:
    """Have every save of a user looked at."""
    pre_save.connect(_remember, dispatch_uid="handstamp.django.passwords.before")
    post_save.connect(_compare, dispatch_uid="handstamp.django.passwords.after")
