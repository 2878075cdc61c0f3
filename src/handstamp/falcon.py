"""Falcon, ASGI and WSGI: ``req.context.session``, hooks, and ``auth`` on a resource.

    app = falcon.asgi.App()            # or falcon.App()
    app.add_route("/me", Me())
    app = wrap(app, sessions)

The handle with ``login`` and ``logout`` is ``session_auth(req)`` or
``req.context.handstamp``; under WSGI its methods are called without ``await``.
``req.context.session`` and ``req.context.user_id`` ask the session only when you ask them.
A resource is protected by its attribute ``auth``, see :func:`wrap`, or by
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


class _Asked(Generic[T]):
    """Asks the handle anew each time; whatever is set on the instance goes first."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, context: Any, owner: type) -> T:
        if context is None:
            return self  # type: ignore[return-value]
        answer: T = getattr(context.handstamp, self._name)
        return answer


class SessionContext(falcon.Context):
    """``req.context``: what your middleware puts there, and the session.

    Derive your own ``context_type`` from this class; otherwise it gets ``handstamp`` only.
    An attribute ``session`` of yours stays yours.
    """

    handstamp: asgi.Handle | wsgi.Handle
    session: _Asked[Session | None] = _Asked()
    user_id: _Asked[str | None] = _Asked()


@overload
def session_auth(  # type: ignore[overload-overlap]
    req: falcon.asgi.Request,
) -> asgi.Handle:
    """Under ASGI."""


@overload
def session_auth(req: falcon.Request) -> wsgi.Handle:
    """Under WSGI."""


def session_auth(req: falcon.Request) -> asgi.Handle | wsgi.Handle:
    """The handle of a request or a WebSocket: ``login``, ``logout``, ``revoke`` …

    Raises :class:`ConfigError` if no middleware wraps the application.
    """
    if isinstance(req, falcon.asgi.Request):
        handle = req.scope.get(asgi.SCOPE_KEY)
    else:
        handle = req.env.get(wsgi.ENVIRON_KEY)
    if not isinstance(handle, (asgi.Handle, wsgi.Handle)):
        raise ConfigError("wrap the application: app = wrap(app, sessions)")
    return handle


class _Done:
    """For hooks: to be awaited by an async responder, and ignored by another."""

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
    """A hook for responders of both kinds, and for whole resources.

        @falcon.before(requires_session, fresh_within=timedelta(minutes=10))

    The conditions are those of ``require``, which says what is raised.
    """
    handle: BaseHandle = session_auth(req)
    handle.require(level=level, fresh_within=fresh_within)
    return _Done() if isinstance(req, falcon.asgi.Request) else None


class SessionComponent:
    """The Falcon middleware that :func:`wrap` adds; see there."""

    def __init__(self, *, protect: bool = False) -> None:
        self._protect = protect

    def process_request(self, req: falcon.Request, resp: object) -> None:
        """Put the handle into the context."""
        _admit(req)

    def process_resource(
        self, req: falcon.Request, resp: object, resource: object, params: object
    ) -> None:
        """Refuse whom the resource refuses."""
        self._check(req, resource)

    async def process_request_async(self, req: falcon.asgi.Request, resp: object) -> None:
        """The same under ASGI."""
        _admit(req)

    async def process_resource_async(
        self, req: falcon.asgi.Request, resp: object, resource: object, params: object
    ) -> None:
        """The same under ASGI."""
        self._check(req, resource)

    async def process_request_ws(self, req: falcon.asgi.Request, ws: object) -> None:
        """The same for a WebSocket."""
        _admit(req)

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
    """The method of a request in the words of Falcon's router, which has one for
    WebSockets; ``req.method`` has not."""
    is_socket = isinstance(req, falcon.asgi.Request) and req.is_websocket
    return "WEBSOCKET" if is_socket or is_handshake(handle._headers) else req.method


def _rules(resource: object) -> Mapping[str, Any] | None:
    auth = getattr(resource, "auth", None)
    if isinstance(auth, bool) or (isinstance(auth, Mapping) and not auth.keys() <= _RULES):
        raise ConfigError(f"auth of a resource is a dict of {', '.join(sorted(_RULES))}")
    return auth if isinstance(auth, Mapping) else None  # else it is something of theirs


def _admit(req: falcon.Request) -> None:
    context: Any = req.context
    if type(context) is falcon.Context:
        req.context = SessionContext()
        req.context.__dict__ = context.__dict__
        context = req.context
    if isinstance(context, dict):
        context["handstamp"] = session_auth(req)
    else:
        context.handstamp = session_auth(req)


def answer(
    req: falcon.Request, resp: falcon.Response, exc: HandstampError, params: Any
) -> None:
    """An error of handstamp as Falcon's own; raises the operator's, for the log."""
    if exc.status == 500:
        raise exc
    raise falcon.HTTPError(exc.status, description=exc.public_message, headers=exc.headers)


async def answer_async(
    req: falcon.asgi.Request,
    resp: falcon.asgi.Response | None,
    exc: HandstampError,
    params: Any,
    ws: falcon.asgi.WebSocket | None = None,
) -> None:
    """The same under ASGI; denies a WebSocket handshake, or closes the socket."""
    if ws is None or exc.status == 500:
        return answer(req, cast(Any, resp), exc, params)
    with suppress(OSError):  # closed already
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
    """``app`` with sessions, and with Falcon's own answers for what they raise.

    ``options`` go to the ``SessionAuthMiddleware`` of the transport. A resource with an
    attribute ``auth``, a dict, needs a session for all of its methods but those in
    ``exempt_methods``, where a WebSocket is ``"WEBSOCKET"``; ``level`` and
    ``fresh_within`` ask for more, and ``auth_disabled=True`` for nothing. With
    ``protect=True`` a resource that says nothing needs one as well. OPTIONS never does,
    and sinks and static routes are no resources.

    Serve the result; ``app`` gets a :class:`SessionComponent` behind its other middleware,
    and an error handler unless it has one. Raises :class:`ConfigError`.
    """
    app.add_middleware(SessionComponent(protect=protect))
    theirs = HandstampError in getattr(app, "_error_handlers", ())
    if isinstance(app, falcon.asgi.App):
        if not theirs:
            app.add_error_handler(HandstampError, answer_async)
        return asgi.SessionAuthMiddleware(cast(Any, app), sessions, **options)
    if not theirs:
        app.add_error_handler(HandstampError, answer)
    return wsgi.SessionAuthMiddleware(app, sessions, **options)


__all__ = ("SessionComponent", "SessionContext", "requires_session", "session_auth", "wrap")
