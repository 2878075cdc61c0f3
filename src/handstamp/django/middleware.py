"""Our part of a response of Django: its headers, and the answer to an error of ours.

The entry of MIDDLEWARE, for both transports and both of Django's modes.

Rule 1. Near the top, and below ``UpdateCacheMiddleware``: what is below may ask, and a
failing view still delivers a rotated cookie, for its 500 is made below as well.
Rule 2. Nothing is asked of the user model before somebody asks ``request.user``.
Rule 3. An error of ours is answered here. A ``process_exception`` further down in
MIDDLEWARE sees it first and may answer it in another way.
Rule 4. Where a middleware wraps the whole application, its handle is the request's.

Around Django's ASGI application: the server's lifespan, and WebSockets beside Django.
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
from handstamp.django.handles import AnyHandle, SessionAuth, Transports
from handstamp.django.passwords import asettle, connect, serving, settle
from handstamp.django.settings import configuration
from handstamp.django.users import aget_user, get_user
from handstamp.errors import CrossSiteRequest, HandstampError, SessionsUnavailable

if TYPE_CHECKING:
    _Morsel = Morsel[str]
else:
    _Morsel = Morsel


class CookieLine(_Morsel):
    """A Set-Cookie that leaves as it is, to the byte, and can be looked at as usual."""

    line = ""

    @classmethod
    def of(cls, line: str) -> CookieLine:
        """A morsel of the value of a Set-Cookie header."""
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
        """The line behind a name, and without the blank where that is empty."""
        return f"{header} {self.line}".lstrip()


def answer(exc: HandstampError) -> Any:
    """An error of ours as a response: its status, and its text where that is the
    client's business."""
    plain = "text/plain; charset=utf-8"
    response = HttpResponse(
        f"{exc.public_message}\n".encode(), status=exc.status, content_type=plain
    )
    for name, value in exc.headers.items():
        response[name] = value
    return response


def seal(handle: BaseHandle, response: Any) -> Any:
    """The response with what this request's session adds; its body is not touched."""
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
            _add(response.cookies, CookieLine.of(value.decode()))
        else:
            response[name.decode().title()] = value.decode()
    return response


def _add(cookies: Any, morsel: CookieLine) -> None:
    """Also a second one of a name, for another domain: Django looks at morsels alone."""
    key = morsel.key
    while key in cookies:
        key += "'"
    # Not by [], which would make a plain morsel of it.
    dict.__setitem__(cookies, key, morsel)


def vary(handle: BaseHandle, response: Any) -> Any:
    """The response with its Vary, where a middleware around us adds the rest: Django's
    cache must know before it."""
    if handle._has_credentials or handle._was_read:
        bearer = ["Authorization"] if handle._bearer else []
        patch_vary_headers(response, [*bearer, "Cookie"])
    return response


GetResponse = Callable[[Any], Any]


class SessionAuthMiddleware:
    """Authenticates every request by the sessions that the settings describe.

    Sets ``request.session_auth``, ``request.user``, ``request.auser`` and
    ``request.handstamp``, which is the handle itself. Raises :class:`ConfigError` when
    the server starts.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        connect()
        self._transports = Transports(configuration())
        self._options = self._transports.door
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(cast(Any, self))
        if any(path.endswith("LoginRequiredMiddleware") for path in settings.MIDDLEWARE):
            # Only then: under ASGI it costs every request the way to a thread.
            self.process_view = _answer_an_outage

    def __call__(self, request: Any) -> Any:
        """Serve one request."""
        if self._is_async:
            return self._acall(request)
        handle, is_open, finish = self._begin(request)
        if is_open:
            try:
                self._transports.ask(request, handle)
            except (CrossSiteRequest, SessionsUnavailable) as exc:
                return finish(answer(exc))
        _attach(request, handle)
        with serving(request):
            response = _explained(request, self.get_response(request))
        try:
            settle(request)
        except HandstampError as exc:
            response = answer(exc)
        return finish(response)

    async def _acall(self, request: Any) -> Any:
        handle, is_open, finish = self._begin(request)
        if is_open:
            try:
                await self._transports.aask(request, handle)
            except (CrossSiteRequest, SessionsUnavailable) as exc:
                return finish(answer(exc))
        _attach(request, handle)
        with serving(request):
            response = await cast(Awaitable[Any], self.get_response(request))
        try:
            await asettle(request)
        except HandstampError as exc:
            return finish(answer(exc))
        return finish(_explained(request, response))

    def _begin(self, request: Any) -> tuple[AnyHandle, bool, Callable[[Any], Any]]:
        """The handle, whether to ask, and what finishes the response."""
        outer = getattr(request, "handstamp", None) or self._transports.outer(request)
        if outer is not None:
            return outer, False, partial(vary, outer)
        handle, is_open = self._transports.handle(request)
        return handle, is_open, partial(seal, handle)

    def process_exception(self, request: Any, exception: Exception) -> Any | None:
        """Answer an error of ours that a view let through."""
        if not isinstance(exception, HandstampError) or exception.status == 500:
            return None  # a 500 is the operator's fault, and Django logs it
        return answer(exception)


def _attach(request: Any, handle: AnyHandle) -> None:
    if hasattr(request, "handstamp"):
        return  # listed twice
    request.handstamp = handle
    request.session_auth = SessionAuth(handle)
    request.user = SimpleLazyObject(partial(get_user, request))
    request.auser = partial(aget_user, request)


def _answer_an_outage(request: Any, view: Any, args: object, options: object) -> Any | None:
    """As ``process_view``: answer before LoginRequiredMiddleware asks, which it does for
    every view, for what it raises is a 500 to all others."""
    try:
        request.session_auth.session  # noqa: B018
    except SessionsUnavailable as exc:
        return answer(exc)
    return None


def _note(*, request: Any = None, **_: Any) -> None:
    """Remember an error of ours that a middleware below raised: Django makes a 500 of it
    where nobody can catch it."""
    error = sys.exc_info()[1]
    if request is not None and isinstance(error, HandstampError):
        request._handstamp_error = error


got_request_exception.connect(_note, dispatch_uid="handstamp.django.middleware")


def _explained(request: Any, response: Any) -> Any:
    error = getattr(request, "_handstamp_error", None)
    if error is None or response.status_code != 500 or error.status == 500:
        return response
    return answer(error)


def wrap(application: ASGIApp) -> ASGIMiddleware:
    """``get_asgi_application()``, or Channels' ``ProtocolTypeRouter``, with the sessions
    of the settings around it.

    Django knows neither the lifespan nor WebSockets. With this, the engine opens and
    closes with the server, and a WebSocket has its handle in ``scope["handstamp"]``. Keep
    the entry in MIDDLEWARE: it gives each request its user.
    """
    found = configuration()
    return ASGIMiddleware(application, found.sessions, **found.middleware)
