"""The entry of MIDDLEWARE, under WSGI and ASGI, in sync and in async mode.

Rule 1. It is near the top, below ``UpdateCacheMiddleware`` only. What is below may use the
session, and the 500 of a failing view is made below, so it has rotated cookies too.
Rule 2. The user model is not queried before ``request.user`` is used.
Rule 3. An error of handstamp is answered here. A ``process_exception`` further down in
MIDDLEWARE is called first and may answer it in another way.
Rule 4. If a middleware wraps the whole application (:func:`wrap`), its handle is the one of
the request.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from http.cookies import Morsel
from typing import TYPE_CHECKING, Any, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.signals import got_request_exception
from django.http import HttpResponse
from django.utils.cache import patch_vary_headers
from django.utils.functional import SimpleLazyObject

from handstamp._connections import ASGIApp
from handstamp._handle import BaseHandle
from handstamp.asgi import SessionAuthMiddleware as ASGIMiddleware
from handstamp.django.auth import (
    aapply_password_change,
    apply_password_change,
    connect_signals,
    current_request,
)
from handstamp.django.handles import AnyHandle, SessionAuth, Transports
from handstamp.django.settings import configuration
from handstamp.django.users import aget_user, get_user
from handstamp.errors import CrossSiteRequest, HandstampError, SessionsUnavailable

if TYPE_CHECKING:
    _Morsel = Morsel[str]
else:
    _Morsel = Morsel


class CookieLine(_Morsel):
    """A morsel that is output as the line it was made of, byte for byte."""

    line = ""

    @classmethod
    def of(cls, line: str) -> CookieLine:
        """The morsel of a Set-Cookie header's value."""
        pair, *attributes = line.split("; ")
        name, _, value = pair.partition("=")
        morsel = cls()
        morsel.set(name, value, value)
        for attribute in attributes:
            key, is_text, text = attribute.partition("=")
            morsel[key.lower()] = text if is_text else True
        morsel.line = line
        return morsel

    def OutputString(self, attrs: Any = None) -> str:
        """The line."""
        return self.line

    def output(self, attrs: Any = None, header: str = "Set-Cookie:") -> str:
        """The line after ``header``."""
        return f"{header} {self.line}".lstrip()


def error_response(exc: HandstampError) -> Any:
    """The response to an error of handstamp: its status and its public text."""
    plain = "text/plain; charset=utf-8"
    response = HttpResponse(
        f"{exc.public_message}\n".encode(), status=exc.status, content_type=plain
    )
    for name, value in exc.headers.items():
        response[name] = value
    return response


def add_session_headers(handle: BaseHandle, response: Any) -> Any:
    """The response with the cookies and headers of this request's session."""
    before = [(key.lower().encode(), value.encode()) for key, value in response.items()]
    before += [
        (b"set-cookie", morsel.OutputString().encode())
        for morsel in response.cookies.values()
    ]
    after = handle.response_headers(list(before))
    for name in {name for name, _ in before} - {name for name, _ in after}:
        del response[name.decode()]
    for key, morsel in list(response.cookies.items()):
        if (b"set-cookie", morsel.OutputString().encode()) not in after:
            del response.cookies[key]
    for name, value in after:
        if (name, value) in before:
            continue
        if name == b"set-cookie":
            morsel = CookieLine.of(value.decode())
            key = morsel.key
            while key in response.cookies:  # of the same name, for another domain
                key += "'"  # Django outputs the morsels and ignores the keys
            # Assignment by [] would make a plain morsel of it.
            dict.__setitem__(response.cookies, key, morsel)
        else:
            response[name.decode().title()] = value.decode()
    return response


def add_vary(handle: BaseHandle, response: Any) -> Any:
    """The response with its Vary. A middleware around the application adds the rest, but
    Django's cache needs this header before."""
    if handle._has_credentials or handle._was_read:
        bearer = ["Authorization"] if handle._bearer else []
        patch_vary_headers(response, [*bearer, "Cookie"])
    return response


GetResponse = Callable[[Any], Any]


class SessionAuthMiddleware:
    """Authenticates every request by the sessions that the settings describe.

    Sets ``request.session_auth``, ``request.user``, ``request.auser`` and
    ``request.handstamp``, which is the handle. Raises :class:`ConfigError` at the start of
    the server.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        connect_signals()
        self._transports = Transports(configuration())
        self._options = self._transports.options
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(cast(Any, self))
        if any(path.endswith("LoginRequiredMiddleware") for path in settings.MIDDLEWARE):
            # Only then: under ASGI a process_view costs every request a thread.
            self.process_view = _answer_outage

    def __call__(self, request: Any) -> Any:
        """Serve one request."""
        if self._is_async:
            return self._acall(request)
        handle, is_pending, finish = self._begin(request)
        if is_pending:
            try:
                self._transports.authenticate(request, handle)
            except (CrossSiteRequest, SessionsUnavailable) as exc:
                return finish(error_response(exc))
        _attach(request, handle)
        with current_request(request):
            response = self.get_response(request)
        try:
            apply_password_change(request)
        except HandstampError as exc:
            return finish(error_response(exc))
        return finish(_replace_server_error(request, response))

    async def _acall(self, request: Any) -> Any:
        handle, is_pending, finish = self._begin(request)
        if is_pending:
            try:
                await self._transports.aauthenticate(request, handle)
            except (CrossSiteRequest, SessionsUnavailable) as exc:
                return finish(error_response(exc))
        _attach(request, handle)
        with current_request(request):
            response = await cast(Awaitable[Any], self.get_response(request))
        try:
            await aapply_password_change(request)
        except HandstampError as exc:
            return finish(error_response(exc))
        return finish(_replace_server_error(request, response))

    def _begin(self, request: Any) -> tuple[AnyHandle, bool, Callable[[Any], Any]]:
        """The handle, whether to authenticate it, and what completes the response."""
        outer = getattr(request, "handstamp", None) or self._transports.find_outer(request)
        if outer is not None:
            return outer, False, partial(add_vary, outer)
        handle, is_pending = self._transports.make_handle(request)
        return handle, is_pending, partial(add_session_headers, handle)

    def process_exception(self, request: Any, exception: Exception) -> Any | None:
        """Answer an error of handstamp that a view raised."""
        if not isinstance(exception, HandstampError) or exception.status == 500:
            return None  # Django logs it, for the operator
        return error_response(exception)


def _attach(request: Any, handle: AnyHandle) -> None:
    if hasattr(request, "handstamp"):
        return  # the middleware is listed twice
    request.handstamp = handle
    request.session_auth = SessionAuth(handle)
    request.user = SimpleLazyObject(partial(get_user, request))
    request.auser = partial(aget_user, request)


def _answer_outage(request: Any, view: Any, args: object, options: object) -> Any | None:
    """As ``process_view``: answer an outage before LoginRequiredMiddleware reads the user,
    because Django makes a 500 of what that raises."""
    try:
        request.session_auth.session  # noqa: B018
    except SessionsUnavailable as exc:
        return error_response(exc)
    return None


def _record_error(*, request: Any = None, **_: Any) -> None:
    """Keep an error of handstamp that a middleware below raised. Django makes a 500 of it,
    which :func:`_replace_server_error` replaces."""
    error = sys.exc_info()[1]
    if request is not None and isinstance(error, HandstampError):
        request._handstamp_error = error


got_request_exception.connect(_record_error, dispatch_uid="handstamp.django.middleware")


def _replace_server_error(request: Any, response: Any) -> Any:
    error = getattr(request, "_handstamp_error", None)
    if error is None or response.status_code != 500 or error.status == 500:
        return response
    return error_response(error)


def wrap(application: ASGIApp) -> ASGIMiddleware:
    """Wrap ``get_asgi_application()``, or Channels' ``ProtocolTypeRouter``.

    Django has no lifespan and no WebSockets. With this middleware the engine opens and
    closes with the server, and a WebSocket has its handle in ``scope["handstamp"]``. Keep
    the entry in MIDDLEWARE: it sets the user of each request.
    """
    found = configuration()
    return ASGIMiddleware(application, found.sessions, **found.middleware)
