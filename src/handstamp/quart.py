"""Quart: an extension with ``current_session``, ``@login_required`` and signals.

    app = Quart(__name__)
    SessionAuth(app)                # or: auth = SessionAuth(); auth.init_app(app)

    @app.get("/me")
    @login_required
    async def me():
        return {"user_id": current_session.user_id}

The language is that of :mod:`handstamp.flask`, with ``await`` before whatever goes to the
database. Everything works in WebSocket routes too, and a session that ends closes their
sockets with code 4401.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from blinker import NamedSignal
from quart import Quart, current_app, has_websocket_context, request, websocket
from werkzeug.local import LocalProxy

from handstamp import asgi
from handstamp._connections import Scope
from handstamp._pallets import (
    ANONYMOUS,
    EXTENSION,
    NOT_WRAPPED,
    Anonymous,
    Extension,
    as_http_exception,
    check_names,
    prepare,
    session_revoked,
    user_logged_in,
    user_logged_out,
)
from handstamp.core.models import Session
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError, HandstampError

if TYPE_CHECKING:
    from quart.typing import ResponseReturnValue

F = TypeVar("F", bound=Callable[..., Any])


class Handle(asgi.Handle):
    """:class:`handstamp.asgi.Handle` that also sends the signals."""

    app: Quart

    async def login(
        self, user_id: str, *, remember: bool = False, claim: str | None = None
    ) -> Session:
        """See :meth:`handstamp.asgi.Handle.login`."""
        check_names(self.app.config, self.app.secret_key, self._options.cookies)
        session = await super().login(user_id, remember=remember, claim=claim)
        await self._send(user_logged_in, session=session)
        return session

    async def logout(self) -> None:
        """See :meth:`handstamp.asgi.Handle.logout`."""
        for session in await self._log_out():
            await self._send(user_logged_out, session=session)

    async def revoke(self, session_id: str, *, reason: str = "revoked by its user") -> bool:
        """See :meth:`handstamp.asgi.Handle.revoke`."""
        user_id = self.require().user_id
        ended = await super().revoke(session_id, reason=reason)
        if ended:
            values = {"user_id": user_id, "session_id": session_id, "count": 1}
            await self._send(session_revoked, **values)
        return ended

    async def revoke_others(self) -> int:
        """See :meth:`handstamp.asgi.Handle.revoke_others`."""
        user_id = self.require().user_id
        count = await super().revoke_others()
        if count:
            values = {"user_id": user_id, "session_id": None, "count": count}
            await self._send(session_revoked, **values)
        return count

    async def _send(self, signal: NamedSignal, **values: Any) -> None:
        wrapper: Any = self.app.ensure_async  # a receiver may be a plain function
        await signal.send_async(self.app, _sync_wrapper=wrapper, **values)


class SessionAuthMiddleware(asgi.SessionAuthMiddleware):
    """The middleware around ``app.asgi_app``; :class:`SessionAuth` puts it there."""

    handle_class = Handle
    quart: Quart

    def attach(self, scope: Scope, handle: asgi.Handle) -> None:
        """Put the handle where :data:`session_auth` looks for it."""
        cast(Handle, handle).app = self.quart
        scope[asgi.SCOPE_KEY] = handle


class SessionAuth:
    """The extension: :meth:`init_app` for an application factory, or give ``app`` here.

    ``sessions`` is the engine. Every other option of :mod:`handstamp.options` may be given
    here by its name (``outage="refuse"``) or in ``app.config`` with ``HANDSTAMP_`` in front
    (``HANDSTAMP_OUTAGE``); what is given here wins. Without ``sessions`` the options must
    name a database and a secret. Raises :class:`ConfigError`.
    """

    def __init__(
        self, app: Quart | None = None, sessions: Sessions | None = None, **options: Any
    ) -> None:
        self._sessions = sessions
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(
        self, app: Quart, sessions: Sessions | None = None, **options: Any
    ) -> None:
        """Wrap ``app`` and register a handler for the errors of handstamp. Raises
        :class:`ConfigError`."""
        in_code = {**self._options, **options}
        settings = prepare(app, sessions or self._sessions, in_code)
        sessions = settings.sessions
        inner = cast(Any, app.asgi_app)
        middleware = SessionAuthMiddleware(inner, sessions, **settings.middleware)
        middleware.quart = app
        app.asgi_app = middleware  # type: ignore[method-assign, assignment]
        app.extensions[EXTENSION] = Extension(sessions)
        handlers: dict[Any, Any] = app.error_handler_spec[None][None]
        handlers.setdefault(HandstampError, handle_error)
        app.context_processor(lambda: {"current_session": current_session})


async def handle_error(error: HandstampError) -> ResponseReturnValue:
    """Return handstamp's exception as Quart returns ``abort(401)``: with your handler for
    the status if there is one. Register a handler for the exception to replace this one.

    A WebSocket that cannot be denied with a response is closed with the exception's code.
    Raises an exception with status 500, such as :class:`ConfigError`, for the server's log.
    """
    too_late = has_websocket_context() and (
        session_auth._started or not asgi.can_deny(_scope())
    )
    if too_late and error.status != 500:
        await websocket.close(error.close_code, error.close_reason)
        return ""
    http = as_http_exception(error)
    # As handle_http_exception does, which takes other arguments from Quart 0.23 on.
    own: Any = current_app._find_error_handler(http, _connection().blueprints)
    response = http if own is None else await current_app.ensure_async(own)(http)
    return cast("ResponseReturnValue", response)


def _connection() -> Any:
    return websocket if has_websocket_context() else request


def _scope() -> Scope:
    return cast(Scope, _connection().scope)


def _handle() -> Handle:
    handle = _scope().get(asgi.SCOPE_KEY)
    if not isinstance(handle, asgi.Handle):
        raise ConfigError(NOT_WRAPPED)
    return cast(Handle, handle)


def _session() -> Session | Anonymous:
    if asgi.SCOPE_KEY not in _scope() and EXTENSION in current_app.extensions:
        return ANONYMOUS  # in app.test_request_context()
    return _handle().session or ANONYMOUS


session_auth: Handle = LocalProxy(_handle)  # type: ignore[assignment]
"""The handle of this request or WebSocket: ``await session_auth.login(user_id)`` …"""
current_session: Session | Anonymous = LocalProxy(_session)  # type: ignore[assignment]
"""The session of this request. Without one it is false, and reading an attribute of it
raises :class:`AuthenticationRequired`. While the database does not answer, any use of it
raises :class:`SessionsUnavailable`."""


def login_required(view: F) -> F:
    """Let only requests and WebSockets with a session reach ``view``, sync or async.

    Put it below ``@app.route`` or ``@app.websocket``. Raises as :meth:`Handle.require`
    does.
    """
    return _guarded(view, None)


def fresh_login_required(*, within: timedelta) -> Callable[[F], F]:
    """Let a request reach the view only if its user logged in within this time.

    Raises as :meth:`Handle.require` does.
    """
    return lambda view: _guarded(view, within)


def _guarded(view: F, within: timedelta | None) -> F:
    @wraps(view)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        session_auth.require(fresh_within=within)
        return await current_app.ensure_async(view)(*args, **kwargs)

    return cast(F, guarded)


__all__ = (
    "Handle",
    "SessionAuth",
    "SessionAuthMiddleware",
    "current_session",
    "fresh_login_required",
    "handle_error",
    "login_required",
    "session_auth",
    "session_revoked",
    "user_logged_in",
    "user_logged_out",
)
