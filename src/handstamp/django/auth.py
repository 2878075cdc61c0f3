"""``login``, ``logout`` and a change of the password, as in Django and with its signals.

Rule 1. Django's own ``request.session`` is not changed. Django's own ``logout``, which its
admin and other packages call, ends our session too.
Rule 2. A change of the password that is saved through the user model ends the user's
sessions when it is committed: also sessions that carry no claim, and without a request that
loads the user. :mod:`handstamp.django.users` notices every other change.
Rule 3. The session in which ``update_session_auth_hash`` is called goes on. It gets new
tokens, as Django changes its session key: a copy of the old tokens is worthless.
Rule 4. Django's own ``update_session_auth_hash`` is noticed by what it writes into
``request.session``; no function of Django is replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import HASH_SESSION_KEY, get_user_model
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.contrib.sessions.backends.signed_cookies import SessionStore as SignedCookies
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.db.models.signals import post_save, pre_save
from django.middleware.csrf import rotate_token

from handstamp.core.models import Session
from handstamp.django.handles import (
    acall,
    acall_handle,
    call,
    call_handle,
    run_in_background,
)
from handstamp.django.settings import configuration, get_sessions
from handstamp.django.users import (
    PASSWORD_CHANGED,
    aget_user,
    aload_user,
    anonymous_user,
    claim_differs,
    claim_matches,
    get_user,
    has_auth_hash,
    has_default_auth_hash,
    is_rehash,
    load_user,
    make_claim,
)
from handstamp.errors import ConfigError

_BEFORE = "_handstamp_before"
_request: ContextVar[Any] = ContextVar("handstamp_request", default=None)


def login(request: Any, user: Any, *, remember: bool = False) -> Session:
    """Open a session for a user whose identity is proven, and return it.

    ``user`` is a user or the text of an id. Every session that this browser had ends, the
    CSRF token is replaced, and ``user_logged_in`` is sent. The new session ends when the
    user's password changes. With ``remember`` the cookies outlive the browser. Raises
    :class:`LoginRefused`, :class:`CrossSiteRequest` or :class:`SessionsUnavailable`.
    """
    handle, user_id = _handle_of(request), _id_of(user)
    user = load_user(user) if isinstance(user, str) else user
    claim = _new_claim(handle, user)
    session: Session = call_handle(handle, "login", user_id, remember=remember, claim=claim)
    rotate_token(_inner(request))
    _set_user(request, user)
    user_logged_in.send(sender=user.__class__, request=request, user=user)
    return session


async def alogin(request: Any, user: Any, *, remember: bool = False) -> Session:
    """See :func:`login`."""
    handle, user_id = _handle_of(request), _id_of(user)
    user = await aload_user(user) if isinstance(user, str) else user
    claim = _new_claim(handle, user)
    session: Session = await acall_handle(
        handle, "login", user_id, remember=remember, claim=claim
    )
    rotate_token(_inner(request))
    _set_user(request, user)
    send = partial(user_logged_in.send, sender=user.__class__)
    await _in_thread(send, request=request, user=user)
    return session


def logout(request: Any) -> None:
    """End every session of this browser, clear the cookies, and send ``user_logged_out``.

    Raises :class:`CrossSiteRequest` or :class:`SessionsUnavailable`; then no session has
    ended. Without a session only the cookies are cleared.
    """
    user = _if_authenticated(get_user(request))
    ended = call_handle(_handle_of(request), "_log_out")
    if user is None and ended:  # on a path that is not authenticated
        user = _if_authenticated(load_user(ended[0].user_id))
    _set_user(request, anonymous_user())
    user_logged_out.send(sender=user.__class__, request=request, user=user)


async def alogout(request: Any) -> None:
    """See :func:`logout`."""
    user = _if_authenticated(await aget_user(request))
    ended = await acall_handle(_handle_of(request), "_log_out")
    if user is None and ended:
        user = _if_authenticated(await aload_user(ended[0].user_id))
    _set_user(request, anonymous_user())
    send = partial(user_logged_out.send, sender=user.__class__)
    await _in_thread(send, request=request, user=user)


async def _in_thread(function: Any, **options: Any) -> None:
    await sync_to_async(function)(**options)  # a receiver may use the database


def _inner(request: Any) -> Any:
    # A request of Django REST framework wraps the one that passed the middleware.
    return getattr(request, "_request", request)


def _handle_of(request: Any) -> Any:
    handle = getattr(_inner(request), "handstamp", None)
    if handle is None:
        raise ConfigError('MIDDLEWARE lacks "handstamp.django.SessionAuthMiddleware"')
    return handle


def _id_of(user: Any) -> str:
    user_id = user if isinstance(user, str) else getattr(user, "pk", None)
    if user_id is None or user_id == "":
        raise ConfigError("login() needs a user who was saved, or the text of an id")
    return str(user_id)


def _new_claim(handle: Any, user: Any) -> str | None:
    return make_claim(user) if handle.sessions.carries_claims else None


def _if_authenticated(user: Any) -> Any:
    return user if user.is_authenticated else None


def _set_user(request: Any, user: Any) -> None:
    inner = _inner(request)
    inner._session_user = request.user = user
    inner._session_ended = not getattr(user, "is_authenticated", True)


def _on_django_logout(*, request: Any = None, **_: Any) -> None:
    """End our session when Django's own ``logout`` sends its signal, before it does its
    work. What is raised here is raised by that function, so it reports no success."""
    inner = _inner(request)
    if hasattr(inner, "handstamp") and not getattr(inner, "_session_ended", False):
        call_handle(inner.handstamp, "_log_out")
        _set_user(request, anonymous_user())


user_logged_out.connect(_on_django_logout, dispatch_uid="handstamp.django.auth")


@contextmanager
def current_request(request: Any) -> Iterator[None]:
    """Within this context a change of the password belongs to this request."""
    token = _request.set(request)
    try:
        yield
    finally:
        _request.reset(token)


def update_session_auth_hash(request: Any, user: Any) -> None:
    """Keep this session after a change of the user's password, and end the others.

    The session gets new tokens. Django's own function of this name has the same effect at
    the end of the request, but it needs ``SessionMiddleware``. Raises
    :class:`SessionsUnavailable`.
    """
    request = _inner(request)
    session = request.handstamp.session
    if session is None or request.user != user:
        return
    request._handstamp_kept = True
    end_others = get_sessions().revoke_user
    call(end_others, session.user_id, keep=session.id, reason=PASSWORD_CHANGED)
    claim = _new_claim(request.handstamp, user)
    if claim is not None and not request.handstamp._bearer:  # that client takes no cookies
        call_handle(request.handstamp, "renew", claim=claim)


async def aupdate_session_auth_hash(request: Any, user: Any) -> None:
    """See :func:`update_session_auth_hash`."""
    request = _inner(request)
    session = request.handstamp.session
    if session is None or await request.auser() != user:
        return
    request._handstamp_kept = True
    end_others = get_sessions().revoke_user
    await acall(end_others, session.user_id, keep=session.id, reason=PASSWORD_CHANGED)
    claim = _new_claim(request.handstamp, user)
    if claim is not None and not request.handstamp._bearer:
        await acall_handle(request.handstamp, "renew", claim=claim)


def apply_password_change(request: Any) -> None:
    """After the view: keep or end this session if the password changed in the request."""
    session = _affected_session(request)
    if session is None:
        return
    user = load_user(session.user_id) if _kept_by_django(request) else None
    if user is not None and _is_to_keep(request, session, user):
        request.user = request._session_user = user
        update_session_auth_hash(request, user)
    elif _was_changed(request):
        request.handstamp._session = None
        call(get_sessions().revoke, session.id, reason=PASSWORD_CHANGED)


async def aapply_password_change(request: Any) -> None:
    """See :func:`apply_password_change`."""
    session = _affected_session(request)
    if session is None:
        return
    user = await aload_user(session.user_id) if _kept_by_django(request) else None
    if user is not None and _is_to_keep(request, session, user):
        request.user = request._session_user = user
        await aupdate_session_auth_hash(request, user)
    elif _was_changed(request):
        request.handstamp._session = None
        await acall(get_sessions().revoke, session.id, reason=PASSWORD_CHANGED)


def _affected_session(request: Any) -> Session | None:
    """The session of this request if a change of the password may concern it."""
    session: Session | None = request.handstamp._session
    if session is None or hasattr(request, "_handstamp_kept"):
        return None
    if _was_changed(request):
        return session
    # Without a saved change: only a session that carries another hash.
    if not _kept_by_django(request):
        return None
    new_hash = request.session[HASH_SESSION_KEY]
    return session if claim_differs(session.claim, new_hash) else None


def _was_changed(request: Any) -> bool:
    return hasattr(request, "_handstamp_changed")


def _kept_by_django(request: Any) -> bool:
    """Whether Django's update_session_auth_hash was called: it gives ``request.session`` a
    new key and a hash. No other code of a view changes the key."""
    store: Any = getattr(request, "session", None)
    if store is None or not getattr(store, "modified", False):
        return False
    if store.get(HASH_SESSION_KEY) is None:
        return False
    if isinstance(store, SignedCookies):  # its key is its content
        return True
    return bool(store.session_key != request.COOKIES.get(settings.SESSION_COOKIE_NAME))


def _is_to_keep(request: Any, session: Session, user: Any) -> bool:
    """Whether the hash in ``request.session`` is that of this user in the database, and the
    session would not go on by itself."""
    claim = make_claim(user)
    if not user.is_authenticated or claim is None:
        return False
    if claim_differs(claim, request.session[HASH_SESSION_KEY]):
        return False
    return _was_changed(request) or not claim_matches(session.claim, user)


def _before_save(*, instance: Any, using: str, update_fields: Any = None, **_: Any) -> None:
    """Remember the user as the database has it, if this save may change the hash."""
    try:
        if not isinstance(instance, get_user_model()):
            return
    except ImproperlyConfigured:  # there is no user model
        return
    if instance._state.adding or not has_auth_hash(instance):
        return
    if getattr(settings, "HANDSTAMP", None) is None:
        return
    saves_password = update_fields is None or "password" in update_fields
    if saves_password or not has_default_auth_hash(instance):
        rows = type(instance)._base_manager.using(using).filter(pk=instance.pk)
        instance.__dict__[_BEFORE] = rows.first()


def _after_save(*, instance: Any, using: str, update_fields: Any = None, **_: Any) -> None:
    """End the user's sessions at the commit, if the hash has changed."""
    before = instance.__dict__.pop(_BEFORE, None)
    if before is None:
        return
    if before.get_session_auth_hash() == instance.get_session_auth_hash():
        return
    # As Django itself saves a password that it has only hashed again.
    saved_by_hasher = getattr(instance, "_password", None) is None
    alone = update_fields is not None and set(update_fields) == {"password"}
    if saved_by_hasher and alone and is_rehash(before, instance):
        return
    transaction.on_commit(partial(_end_sessions, instance), using=using)


def _end_sessions(user: Any) -> None:
    """End every session of this user, except the one of this request, for which
    :func:`apply_password_change` decides."""
    user_id = str(user.pk)
    if "get_user" in configuration().own and load_user(user_id) != user:
        return  # the user ids of the application are not the primary keys
    request, keep = _request.get(), None
    session = None if request is None else request.handstamp._session
    if request is not None and session is not None and session.user_id == user_id:
        request._handstamp_changed, keep = True, session.id
    sessions = get_sessions()
    end = partial(sessions.revoke_user, user_id, keep=keep, reason=PASSWORD_CHANGED)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        call(end)
    else:  # a save in the thread of an event loop: DJANGO_ALLOW_ASYNC_UNSAFE
        run_in_background(sessions, end)


def connect_signals() -> None:
    """Have every save of a user examined."""
    pre_save.connect(_before_save, dispatch_uid="handstamp.django.passwords.before")
    post_save.connect(_after_save, dispatch_uid="handstamp.django.passwords.after")
