"""Django REST framework: ``authentication_classes = [SessionAuthentication]``.

Rule 1. Without a session a view that needs one answers 401, with ``WWW-Authenticate``;
an outage is a 503 with ``Retry-After``, in the renderer's own format.
Rule 2. Writes that another site's page makes were refused before, by what the browser
itself says of them. Where that is switched off (``CROSS_SITE = "allow"``), or with
``csrf_token = True``, the CSRF token is asked for, as REST framework's own class does.
"""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework import authentication
from rest_framework.exceptions import APIException

from handstamp.errors import ConfigError, SessionsUnavailable


class Unavailable(APIException):
    """503: nobody can say whose request this is."""

    status_code = 503
    default_detail = "temporarily unavailable"
    default_code = "unavailable"

    def __init__(self, retry_after: int) -> None:
        super().__init__()
        self.wait = retry_after  # becomes Retry-After


class SessionAuthentication(authentication.SessionAuthentication):
    """``request.user`` is the user and ``request.auth`` the session."""

    csrf_token: ClassVar[bool] = False
    """Whether a write with our cookie needs a CSRF token in any case."""

    def authenticate(self, request: Any) -> Any:
        """The user and the session of this request; None for nobody.

        Raises :class:`Unavailable`, and ``PermissionDenied`` without a token that is
        needed.
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
        if self._needs_token(handle):
            self.enforce_csrf(request)
        return inner.user, session

    def authenticate_header(self, request: Any) -> Any:
        """What makes it a 401."""
        return "Session"

    def _needs_token(self, handle: Any) -> bool:
        if handle._bearer:
            return False  # no browser attaches this by itself
        return self.csrf_token or not handle._options.refuse_cross_site
