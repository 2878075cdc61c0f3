"""Which handle a request of Django gets, and how its question reaches the engine.

The transport decides the handle, and the mode of the middleware decides how it waits: with
a sync middleware below ours, Django runs both in a thread under ASGI too.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from handstamp import asgi, wsgi
from handstamp.django.loops import across, wait
from handstamp.django.settings import Configuration

AnyHandle: TypeAlias = asgi.Handle | wsgi.Handle


class Transports:
    """One middleware of each transport, for what they know of a request."""

    def __init__(self, configuration: Configuration) -> None:
        sessions, options = configuration.sessions, configuration.options
        self._asgi = asgi.SessionAuthMiddleware(_no_app, sessions, **options)
        self._wsgi = wsgi.SessionAuthMiddleware(_no_app, sessions, **options)
        self.door = self._asgi._door

    def outer(self, request: Any) -> AnyHandle | None:
        """The handle of a middleware around this one, if there is any.

        Raises :class:`ConfigError` if its sessions are others.
        """
        around = getattr(request, "scope", None) or request.META
        handle: AnyHandle | None = around.get(asgi.SCOPE_KEY)
        if handle is not None:
            self._asgi._door.check_same(handle)
        return handle

    def handle(self, request: Any) -> tuple[AnyHandle, bool]:
        """The handle of a request, and whether its session is still to be asked for."""
        scope = getattr(request, "scope", None)
        if scope is None:
            environ = request.META
            found = self._wsgi._at_a_glance(environ)
            return found or wsgi.Handle(self._wsgi._door, environ), found is None
        glanced = self._asgi._at_a_glance(scope)
        if glanced is not None:
            return glanced, False
        headers = asgi._plain_headers(scope)
        return asgi.Handle(self._asgi._door, headers, scope.get("client")), True

    def ask(self, request: Any, handle: AnyHandle) -> None:
        """Authenticate; raises :class:`CrossSiteRequest` or :class:`SessionsUnavailable`
        where a request is refused at the door."""
        if isinstance(handle, wsgi.Handle):
            self._wsgi._at_length(handle, request.META)
        elif not self._is_left_alone(request.scope):
            wait(handle.sessions, self._asgi._ask, handle, request.method, request.scope)

    async def aask(self, request: Any, handle: AnyHandle) -> None:
        """The same, awaited."""
        if isinstance(handle, asgi.Handle) and not self._is_left_alone(request.scope):
            await across(
                handle.sessions, self._asgi._ask, handle, request.method, request.scope
            )

    def _is_left_alone(self, scope: Any) -> bool:
        return scope["method"] == "OPTIONS" or scope["path"] in self._asgi._exclude


def _no_app(*_: Any) -> Any:
    raise NotImplementedError
