"""``login`` and ``logout``, called as Django's own are, with its signals.

Django's ``request.session`` is left alone: what an application keeps there is its own.
Django's own ``logout``, which its admin and other packages call, ends our session too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.middleware.csrf import rotate_token

from handstamp.core.models import Session
from handstamp.django.handles import adone, done
from handstamp.django.users import (
    aget_user,
    anonymous,
    auser_of,
    claim_of,
    get_user,
    user_of,
)
from handstamp.errors import ConfigError


def login(request: Any, user: Any, *, remember: bool = False) -> Session:
    """Open a session for a user who has just proven who they are.

    ``user`` is a user or the text of an id. Every session this browser had ends, the CSRF
    token is replaced, and ``user_logged_in`` is sent. The new session ends when the user's
    password changes. ``remember`` makes the cookies outlive the browser. Raises
    :class:`LoginRefused`, :class:`CrossSiteRequest` or :class:`SessionsUnavailable`.
    """
    handle, user_id = _handle(request), _id_of(user)
    user = user_of(user) if isinstance(user, str) else user
    claim = _claim(handle, user)
    session: Session = done(handle, "login", user_id, remember=remember, claim=claim)
    _enter(request, user)
    user_logged_in.send(sender=user.__class__, request=request, user=user)
    return session


async def alogin(request: Any, user: Any, *, remember: bool = False) -> Session:
    """See :func:`login`."""
    handle, user_id = _handle(request), _id_of(user)
    user = await auser_of(user) if isinstance(user, str) else user
    claim = _claim(handle, user)
    session: Session = await adone(handle, "login", user_id, remember=remember, claim=claim)
    _enter(request, user)
    send = partial(user_logged_in.send, sender=user.__class__)
    await _in_thread(send, request=request, user=user)
    return session


def logout(request: Any) -> None:
    """End every session of this browser and clear the cookies, also when there is none.

    Then ``user_logged_out`` is sent. Raises :class:`CrossSiteRequest` or
    :class:`SessionsUnavailable`, and then nobody was logged out.
    """
    user = _somebody(get_user(request))
    ended = done(_handle(request), "_log_out")
    if user is None and ended:  # on a path that is not authenticated
        user = _somebody(user_of(ended[0].user_id))
    _set(request, anonymous())
    user_logged_out.send(sender=user.__class__, request=request, user=user)


async def alogout(request: Any) -> None:
    """See :func:`logout`."""
    user = _somebody(await aget_user(request))
    ended = await adone(_handle(request), "_log_out")
    if user is None and ended:
        user = _somebody(await auser_of(ended[0].user_id))
    _set(request, anonymous())
    send = partial(user_logged_out.send, sender=user.__class__)
    await _in_thread(send, request=request, user=user)


async def _in_thread(function: Any, **options: Any) -> None:
    await sync_to_async(function)(**options)  # a receiver may use the database


def _handle(request: Any) -> Any:
    # A request of Django REST framework wraps the one that the middleware saw.
    handle = getattr(getattr(request, "_request", request), "handstamp", None)
    if handle is None:
        raise ConfigError('MIDDLEWARE lacks "handstamp.django.SessionAuthMiddleware"')
    return handle


def _id_of(user: Any) -> str:
    user_id = user if isinstance(user, str) else getattr(user, "pk", None)
    if user_id is None or user_id == "":
        raise ConfigError("log in a user who has been saved, or the text of an id")
    return str(user_id)


def _claim(handle: Any, user: Any) -> str | None:
    return claim_of(user) if handle.sessions.carries_claims else None


def _somebody(user: Any) -> Any:
    return user if user.is_authenticated else None


def _enter(request: Any, user: Any) -> None:
    rotate_token(getattr(request, "_request", request))
    _set(request, user)


def _set(request: Any, user: Any) -> None:
    inner = getattr(request, "_request", request)
    inner._session_user = request.user = user
    inner._session_ended = not getattr(user, "is_authenticated", True)


def _end_with_djangos_own(*, request: Any = None, **_: Any) -> None:
    """End our session as Django's own ``logout`` begins, which knows of none but its own.

    What is raised here comes out of that, so it is no success either.
    """
    inner = getattr(request, "_request", request)
    if hasattr(inner, "handstamp") and not getattr(inner, "_session_ended", False):
        done(inner.handstamp, "_log_out")
        _set(request, anonymous())


user_logged_out.connect(_end_with_djangos_own, dispatch_uid="handstamp.django.auth")
