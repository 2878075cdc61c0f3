"""Flask: an extension with ``current_session``, ``@login_required``, signals and commands.

    app = Flask(__name__)
    SessionAuth(app)                # or: auth = SessionAuth(); auth.init_app(app)

    @app.get("/me")
    @login_required
    def me():
        return {"user_id": current_session.user_id}

Rule 1. ``app.wsgi_app`` is wrapped, so the cookies are also on Flask's own error pages.
Rule 2. The session is read only where a view, a template or a decorator reads it.
Rule 3. Flask's own ``session`` is separate and is not changed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import click
from flask import Flask, current_app, request
from flask.cli import AppGroup
from werkzeug.local import LocalProxy

from handstamp import wsgi
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
from handstamp.blocking import call
from handstamp.core.models import Session, mask_address
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError, HandstampError

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

    from flask.typing import ResponseReturnValue

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
T = TypeVar("T")


class Handle(wsgi.Handle):
    """:class:`handstamp.wsgi.Handle`, which also sends the signals."""

    app: Flask
    loaded: tuple[str | None, Any] = (None, None)
    """The id of the user that was loaded, and the user."""

    def login(
        self, user_id: str, *, remember: bool = False, claim: str | None = None
    ) -> Session:
        """See :meth:`handstamp.asgi.Handle.login`."""
        check_names(self.app.config, self.app.secret_key, self._options.cookies)
        session = super().login(user_id, remember=remember, claim=claim)
        user_logged_in.send(self.app, session=session)
        return session

    def logout(self) -> None:
        """See :meth:`handstamp.asgi.Handle.logout`."""
        for session in self._log_out():
            user_logged_out.send(self.app, session=session)

    def revoke(self, session_id: str, *, reason: str = "revoked by its user") -> bool:
        """See :meth:`handstamp.asgi.Handle.revoke`."""
        user_id = self.require().user_id
        ended = super().revoke(session_id, reason=reason)
        if ended:
            self._send_revoked(user_id, session_id, 1)
        return ended

    def revoke_others(self) -> int:
        """See :meth:`handstamp.asgi.Handle.revoke_others`."""
        user_id = self.require().user_id
        count = super().revoke_others()
        if count:
            self._send_revoked(user_id, None, count)
        return count

    def _send_revoked(self, user_id: str, session_id: str | None, count: int) -> None:
        values: dict[str, Any] = {"user_id": user_id, "session_id": session_id}
        session_revoked.send(self.app, count=count, **values)


class SessionAuthMiddleware(wsgi.SessionAuthMiddleware):
    """The middleware that :class:`SessionAuth` puts around ``app.wsgi_app``."""

    handle_class = Handle
    flask: Flask

    def attach(self, environ: WSGIEnvironment, handle: wsgi.Handle) -> None:
        """Store the handle where :data:`session_auth` finds it."""
        cast(Handle, handle).app = self.flask
        environ[wsgi.ENVIRON_KEY] = handle


class SessionAuth:
    """The extension: :meth:`init_app` for an application factory, or give ``app`` here.

    ``sessions`` is the engine. Every other option of :mod:`handstamp.options` may be given
    here by its name (``outage="refuse"``) or in ``app.config`` with ``HANDSTAMP_`` in front
    (``HANDSTAMP_OUTAGE``); what is given here wins. Without ``sessions`` the options must
    name a database and a secret. Raises :class:`ConfigError`.
    """

    def __init__(
        self, app: Flask | None = None, sessions: Sessions | None = None, **options: Any
    ) -> None:
        self._sessions = sessions
        self._options = options
        self._loader: Callable[[str], Any] | None = None
        if app is not None:
            self.init_app(app)

    def init_app(
        self, app: Flask, sessions: Sessions | None = None, **options: Any
    ) -> None:
        """Wrap ``app`` and register a handler for the errors of handstamp. Raises
        :class:`ConfigError`."""
        in_code = {**self._options, **options}
        settings = prepare(app, sessions or self._sessions, in_code)
        sessions = settings.sessions
        middleware = SessionAuthMiddleware(app.wsgi_app, sessions, **settings.middleware)
        middleware.flask = app
        app.wsgi_app = middleware  # type: ignore[method-assign]
        app.extensions[EXTENSION] = Extension(sessions, self.load_user)
        app.error_handler_spec[None][None].setdefault(HandstampError, handle_error)
        app.context_processor(self._template_context)
        app.cli.add_command(commands)

    def user_loader(self, load: F) -> F:
        """Decorate the function that returns the user of an id, or None; sync or async.

        It is called at most once in a request, when ``current_user`` is first used.
        """
        self._loader = load
        return load

    def load_user(self, user_id: str) -> Any:
        """The application's own user. Raises :class:`ConfigError` without a loader."""
        if self._loader is None:
            raise ConfigError(
                "current_user needs a function that loads it: decorate one with "
                "@auth.user_loader"
            )
        return current_app.ensure_sync(self._loader)(user_id)

    def _template_context(self) -> dict[str, Any]:
        user = {} if self._loader is None else {"current_user": current_user}
        return {"current_session": current_session, **user}


def handle_error(error: HandstampError) -> ResponseReturnValue:
    """Answer an error of handstamp as Flask answers ``abort(401)``: by the application's
    handler of the status, if any. A handler of the error itself replaces this one."""
    http = as_http_exception(error)
    # handle_http_exception does the same, but its arguments change in Flask 3.2.
    own = current_app._find_error_handler(http, request.blueprints)
    return http if own is None else current_app.ensure_sync(own)(http)


def _handle() -> Handle:
    handle = request.environ.get(wsgi.ENVIRON_KEY)
    if not isinstance(handle, wsgi.Handle):
        raise ConfigError(NOT_WRAPPED)
    return cast(Handle, handle)


def _session() -> Session | Anonymous:
    if wsgi.ENVIRON_KEY not in request.environ and EXTENSION in current_app.extensions:
        return ANONYMOUS  # in app.test_request_context()
    return _handle().session or ANONYMOUS


def _user() -> Any:
    session = _session()
    if not session:
        return ANONYMOUS
    # Not in flask.g, which all requests inside one app_context() share.
    handle = _handle()
    loaded_id, user = getattr(handle, "loaded", (None, None))
    if loaded_id != session.user_id:
        user = current_app.extensions[EXTENSION].load_user(session.user_id)
        handle.loaded = (session.user_id, user)
    return ANONYMOUS if user is None else user


session_auth: Handle = LocalProxy(_handle)  # type: ignore[assignment]
"""The handle of this request: ``login``, ``logout``, ``revoke``, ``require`` …"""
current_session: Session | Anonymous = LocalProxy(_session)  # type: ignore[assignment]
"""The session of this request. Without one it is false, and reading an attribute of it
raises :class:`AuthenticationRequired`. While the database does not answer, any use of it
raises :class:`SessionsUnavailable`."""
current_user: Any = LocalProxy(_user)
"""The application's own user, as ``user_loader`` returned it; without one as above."""


def login_required(view: F) -> F:
    """Let only requests with a session reach ``view``, a sync or an async function.

    Put it below ``@app.route``. Raises as :meth:`Handle.require` does, for any method.
    """
    return _guarded(view, None)


def fresh_login_required(*, within: timedelta) -> Callable[[F], F]:
    """Let a request reach the view only if its user logged in within this time.

    Raises as :meth:`Handle.require` does.
    """
    return lambda view: _guarded(view, within)


def _guarded(view: F, within: timedelta | None) -> F:
    @wraps(view)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        session_auth.require(fresh_within=within)
        return current_app.ensure_sync(view)(*args, **kwargs)

    return cast(F, guarded)


commands = AppGroup("handstamp", help="List and revoke the sessions of your users.")


def _sessions() -> Sessions:
    return cast(Extension, current_app.extensions[EXTENSION]).sessions


def _run(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return call(function, *args, **kwargs)
    except HandstampError as exc:
        raise click.ClickException(str(exc)) from None


@commands.command("list")
@click.argument("user_id")
def list_sessions(user_id: str) -> None:
    """List the live sessions of a user: id, last activity, network."""
    for session in _run(_sessions().list_for_user, user_id):
        seen = session.last_activity_at or session.created_at
        network = mask_address(session.address)
        click.echo(f"{session.id}  {seen.isoformat(timespec='seconds')}  {network}")


@commands.command("revoke")
@click.argument("session_id")
@click.option("--reason", default="revoked by an operator", show_default=True)
def revoke(session_id: str, reason: str) -> None:
    """End one session."""
    if not _run(_sessions().revoke, session_id, reason=reason):
        raise click.ClickException("there is no live session of this id")
    click.echo("ended")


@commands.command("revoke-user")
@click.argument("user_id")
@click.option("--reason", default="revoked by an operator", show_default=True)
def revoke_user(user_id: str, reason: str) -> None:
    """End every session of a user."""
    click.echo(f"ended {_run(_sessions().revoke_user, user_id, reason=reason)}")


@commands.command("prune")
def prune() -> None:
    """Delete the rows of sessions that ended longer ago than the policy's retention."""
    click.echo(f"deleted {_run(_sessions().prune)}")


__all__ = (
    "Handle",
    "SessionAuth",
    "SessionAuthMiddleware",
    "current_session",
    "current_user",
    "fresh_login_required",
    "handle_error",
    "login_required",
    "session_auth",
    "session_revoked",
    "user_logged_in",
    "user_logged_out",
)
