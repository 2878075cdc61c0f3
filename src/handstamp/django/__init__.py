"""Django: sessions as an entry of MIDDLEWARE, under WSGI and under ASGI.

    INSTALLED_APPS = [..., "handstamp.django"]
    MIDDLEWARE = ["handstamp.django.SessionAuthMiddleware", ...]
    HANDSTAMP = {"DATABASE": "default", "SECRETS": [os.environ["HANDSTAMP_SECRET"]]}

``request.user`` and ``await request.auser()`` are the application's own user, loaded when
it is used. ``request.session_auth`` lists and revokes sessions. :func:`login` and
:func:`logout` are called as Django's own. Django's ``request.session`` is not changed.
"""

from __future__ import annotations

from handstamp.django.auth import alogin as alogin
from handstamp.django.auth import alogout as alogout
from handstamp.django.auth import aupdate_session_auth_hash as aupdate_session_auth_hash
from handstamp.django.auth import login as login
from handstamp.django.auth import logout as logout
from handstamp.django.auth import update_session_auth_hash as update_session_auth_hash
from handstamp.django.handles import SessionAuth as SessionAuth
from handstamp.django.handles import acall as acall
from handstamp.django.handles import call as call
from handstamp.django.middleware import SessionAuthMiddleware as SessionAuthMiddleware
from handstamp.django.middleware import wrap as wrap
from handstamp.django.settings import get_sessions as get_sessions
from handstamp.django.users import AnonymousSessionUser as AnonymousSessionUser
from handstamp.django.users import SessionUser as SessionUser

__all__ = (
    "AnonymousSessionUser",
    "SessionAuth",
    "SessionAuthMiddleware",
    "SessionUser",
    "acall",
    "alogin",
    "alogout",
    "aupdate_session_auth_hash",
    "call",
    "get_sessions",
    "login",
    "logout",
    "update_session_auth_hash",
    "wrap",
)
