"""Falcon, ASGI and WSGI: ``req.context.session``, hooks, and ``auth`` on a resource.

    app = falcon.asgi.App()            # or falcon.App()
    app.add_route("/me", Me())
    app = wrap(app, sessions)

The handle with ``login`` and ``logout`` is ``session_auth(req)`` or
``req.context.handstamp``; under WSGI its methods are called without ``await``.
``req.context.session`` and ``req.context.user_id`` read the session only when you read
them. Protect a resource with an attribute ``auth``, see :func:`wrap`, or with
``@falcon.before(requires_session)``.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Generic, TypeVar, cast, overload

import falcon
import falcon.asgi

from handstamp import asgi, wsgi
from handstamp._handle import BaseHandle
from handstamp.core.models import Session
from handstamp.core.requests import is_handshake
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError, HandstampError

T = TypeVar("T")
_RULES = frozenset({"auth_disabled", "exempt_methods", "level", "fresh_within"})


class _HandleAttribute(Generic[T]):
    """Reads an attribute of the handle each time. A value that is set on the instance takes
    precedence."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, context: Any, owner: type) -> T:
        if context is None:
            return self  # type: ignore[return-value]
        value: T = getattr(context.handstamp, self._name)
        return value


class SessionContext(falcon.Context):
    """``req.context``: the session, and what your own middleware sets.

    Derive your own ``context_type`` from this class; otherwise it gets ``handstamp`` only.
    A ``session`` that you set yourself is not changed.
    """

    handstamp: asgi.Handle | wsgi.Handle
    session: _HandleAttribute[Session | None] = _HandleAttribute()
    user_id: _HandleAttribute[str | None] = _HandleAttribute()


@overload
def session_auth(  # type: ignore[overload-overlap]
    req: falcon.asgi.Request,
) -> asgi.Handle:
    """Under ASGI."""


@overload
def session_auth(req: falcon.Request) -> wsgi.Handle:
    """Under WSGI."""


def session_auth(req: falcon.Request) -> asgi.Handle | wsgi.Handle:
    """Return the handle of a request or a WebSocket: ``login``, ``logout``, ``revoke`` …

    Raises :class:`ConfigError` if no middleware wraps the application.
    """
    if isinstance(req, falcon.asgi.Request):
        handle = req.scope.get(asgi.SCOPE_KEY)
    else:
        handle = req.env.get(wsgi.ENVIRON_KEY)
    if not isinstance(handle, (asgi.Handle, wsgi.Handle)):
        raise ConfigError("wrap the application: app = wrap(app, sessions)")
    return handle


class _Awaitable:
    """What a hook returns: an async responder awaits it, a sync one ignores it."""

    def __await__(self) -> Generator[None]:
        return
        yield


def requires_session(
    req: falcon.Request,
    resp: falcon.Response,
    resource: object,
    params: Mapping[str, Any],
    *,
    level: int | None = None,
    fresh_within: timedelta | None = None,
) -> Any:
    """A hook for sync and async responders, and for whole resources.

        @falcon.before(requires_session, fresh_within=timedelta(minutes=10))

    ``level`` and ``fresh_within`` are those of ``require``; raises as ``require`` does.
    """
    handle: BaseHandle = session_auth(req)
    handle.require(level=level, fresh_within=fresh_within)
    return _Awaitable() if isinstance(req, falcon.asgi.Request) else None


class SessionComponent:
    """The Falcon middleware that :func:`wrap` adds to an application."""

    def __init__(self, *, protect: bool = False) -> None:
        self._protect = protect

    def process_request(self, req: falcon.Request, resp: object) -> None:
        """Put the handle into the context."""
        _attach(req)

    def process_resource(
        self, req: falcon.Request, resp: object, resource: object, params: object
    ) -> None:
        """Raise as ``require`` does, if the resource needs a session."""
        self._check(req, resource)

    async def process_request_async(self, req: falcon.asgi.Request, resp: object) -> None:
        """The same under ASGI."""
        _attach(req)

    async def process_resource_async(
        self, req: falcon.asgi.Request, resp: object, resource: object, params: object
    ) -> None:
        """The same under ASGI."""
        self._check(req, resource)

    async def process_request_ws(self, req: falcon.asgi.Request, ws: object) -> None:
        """The same for a WebSocket."""
        _attach(req)

    async def process_resource_ws(
        self, req: falcon.asgi.Request, ws: object, resource: object, params: object
    ) -> None:
        """The same for a WebSocket."""
        self._check(req, resource)

    def _check(self, req: falcon.Request, resource: object) -> None:
        rules = _rules(resource)
        if rules is None and not self._protect:
            return
        rules = rules or {}
        if rules.get("auth_disabled") or req.method == "OPTIONS":
            return
        handle: BaseHandle = session_auth(req)
        exempt = rules.get("exempt_methods")
        if exempt and _method(req, handle) in exempt:
            return
        handle.require(level=rules.get("level"), fresh_within=rules.get("fresh_within"))


def _method(req: falcon.Request, handle: BaseHandle) -> str:
    """The method as Falcon's router names it: it has one for WebSockets, which
    ``req.method`` has not."""
    is_socket = isinstance(req, falcon.asgi.Request) and req.is_websocket
    return "WEBSOCKET" if is_socket or is_handshake(handle._headers) else req.method


def _rules(resource: object) -> Mapping[str, Any] | None:
    auth = getattr(resource, "auth", None)
    if isinstance(auth, bool) or (isinstance(auth, Mapping) and not auth.keys() <= _RULES):
        raise ConfigError(f"auth of a resource is a dict of {', '.join(sorted(_RULES))}")
    return auth if isinstance(auth, Mapping) else None  # else it is not for us


def _attach(req: falcon.Request) -> None:
    context: Any = req.context
    if type(context) is falcon.Context:
        req.context = SessionContext()
        req.context.__dict__ = context.__dict__
        context = req.context
    if isinstance(context, dict):
        context["handstamp"] = session_auth(req)
    else:
        context.handstamp = session_auth(req)


def handle_error(
    req: falcon.Request, resp: falcon.Response, exc: HandstampError, params: Any
) -> None:
    """Raise Falcon's own error with the status of handstamp's exception; an exception with
    status 500 as it is, for the server's log."""
    if exc.status == 500:
        raise exc
    raise falcon.HTTPError(exc.status, description=exc.public_message, headers=exc.headers)


async def handle_error_async(
    req: falcon.asgi.Request,
    resp: falcon.asgi.Response | None,
    exc: HandstampError,
    params: Any,
    ws: falcon.asgi.WebSocket | None = None,
) -> None:
    """The same under ASGI; a WebSocket is closed with the close code of the exception."""
    if ws is None or exc.status == 500:
        return handle_error(req, cast(Any, resp), exc, params)
    with suppress(OSError):  # it is closed already
        await ws.close(exc.close_code, exc.close_reason)


@overload
def wrap(  # pyright: ignore[reportOverlappingOverload]
    app: falcon.asgi.App[Any, Any], sessions: Sessions, **options: Any
) -> asgi.SessionAuthMiddleware:
    """Under ASGI."""


@overload
def wrap(
    app: falcon.App[Any, Any], sessions: Sessions, **options: Any
) -> wsgi.SessionAuthMiddleware:
    """Under WSGI."""


def wrap(
    app: Any, sessions: Sessions, *, protect: bool = False, **options: Any
) -> asgi.SessionAuthMiddleware | wsgi.SessionAuthMiddleware:
    """Put the middleware around ``app``.

    ``options`` are those of the transport's ``SessionAuthMiddleware``. Returns the
    application to serve. ``app`` gets a :class:`SessionComponent` after its other
    middleware, and a handler for handstamp's exceptions unless it has one.

    A resource with an attribute ``auth``, a dict, needs a session for all methods except
    those in ``exempt_methods``, where a WebSocket is ``"WEBSOCKET"``. ``level`` and
    ``fresh_within`` are as in ``require``; with ``auth_disabled=True`` it needs no session.
    With ``protect=True`` a resource without ``auth`` needs a session too. OPTIONS never
    needs one. Sinks and static routes are no resources. Raises :class:`ConfigError`.
    """
    app.add_middleware(SessionComponent(protect=protect))
    has_handler = HandstampError in getattr(app, "_error_handlers", ())
    if isinstance(app, falcon.asgi.App):
        if not has_handler:
            app.add_error_handler(HandstampError, handle_error_async)
        return asgi.SessionAuthMiddleware(cast(Any, app), sessions, **options)
    if not has_handler:
        app.add_error_handler(HandstampError, handle_error)
    return wsgi.SessionAuthMiddleware(app, sessions, **options)


__all__ = ("SessionComponent", "SessionContext", "requires_session", "session_auth", "wrap")
