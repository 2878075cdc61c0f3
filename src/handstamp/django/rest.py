"""Django REST framework: ``authentication_classes = [SessionAuthentication]``.

Rule 1. A view that needs a session answers 401 with ``WWW-Authenticate`` without one. In an
outage it answers 503 with ``Retry-After``. Both are in the format of the renderer.
Rule 2. The middleware has refused writes that another site's page makes. If that is
switched off (``CROSS_SITE = "allow"``), or with ``csrf_token = True``, a write needs the
CSRF token, as with REST framework's own class.
"""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework import authentication
from rest_framework.exceptions import APIException

from handstamp.errors import ConfigError, SessionsUnavailable


class Unavailable(APIException):
    """503: the database did not answer, so the user of the request is unknown."""

    status_code = 503
    default_detail = "temporarily unavailable"
    default_code = "unavailable"

    def __init__(self, retry_after: int) -> None:
        super().__init__()
        self.wait = retry_after  # becomes Retry-After


class SessionAuthentication(authentication.SessionAuthentication):
    """``request.user`` is the user and ``request.auth`` the session."""

    csrf_token: ClassVar[bool] = False
    """Whether every write with our cookie needs a CSRF token."""

    def authenticate(self, request: Any) -> Any:
        """The user and the session of this request, or None.

        Raises :class:`Unavailable`, and ``PermissionDenied`` if the CSRF token is missing.
        """
        inner = request._request
        handle = getattr(inner, "handstamp", None)
        if handle is None:
            raise ConfigError('MIDDLEWARE lacks "handstamp.django.SessionAuthMiddleware"')
        try:
            session = handle.session
        except SessionsUnavailable as exc:
            raise Unavailable(exc.retry_after) from None
        if session is None or not inner.user.is_authenticated:
            return None
        # No browser attaches a bearer token by itself.
        needs_token = self.csrf_token or not handle._options.refuse_cross_site
        if needs_token and not handle._bearer:
            self.enforce_csrf(request)
        return inner.user, session

    def authenticate_header(self, request: Any) -> Any:
        """The value of ``WWW-Authenticate``, which makes the status 401."""
        return "Session"
