"""The entry of MIDDLEWARE, for both transports and both of Django's modes.

Rule 1. Near the top, and below ``UpdateCacheMiddleware``: what is below may ask, and a
failing view still delivers a rotated cookie, for its 500 is made below as well.
Rule 2. Nothing is asked of the user model before somebody asks ``request.user``.
Rule 3. An error of ours is answered here. A ``process_exception`` further down in
MIDDLEWARE sees it first and may answer it in another way.
Rule 4. Where a middleware wraps the whole application, its handle is the request's.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.signals import got_request_exception
from django.utils.functional import SimpleLazyObject

from handstamp.django.access import SessionAuth
from handstamp.django.current_user import aget_user, get_user
from handstamp.django.passwords import asettle, connect, serving, settle
from handstamp.django.responses import answer, seal, vary
from handstamp.django.settings import configuration
from handstamp.django.transports import AnyHandle, Transports
from handstamp.errors import CrossSiteRequest, HandstampError, SessionsUnavailable

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
        self._door = self._transports.door
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
