"""How a view reaches the engine: from sync and async code, under WSGI and ASGI.

Rule 1. Under ASGI the engine is on the event loop of the server, under WSGI on that of
:mod:`handstamp.blocking`. It stays on the loop on which it was opened.
Rule 2. A sync view under ASGI runs in a thread: it submits the call to the engine's loop
and waits. With a sync middleware below ours, Django runs every view so. A test that uses
both clients of Django has the engine on the loop of the other one, and does the same.
Rule 3. The transport decides which handle a request has. ``request.session_auth`` has the
methods of the handle for sync views, and with ``a`` in front for async views.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

from asgiref.sync import async_to_sync, sync_to_async

from handstamp import asgi, blocking, wsgi
from handstamp.core.models import Client, Session
from handstamp.django.settings import get_sessions
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError
from handstamp.options import Settings

logger = logging.getLogger("handstamp")

P = ParamSpec("P")
T = TypeVar("T")
Function = Callable[P, Coroutine[Any, Any, T]]


def call(function: Function[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run an async function of the engine in a sync view, under WSGI and ASGI.

        call(get_sessions().revoke_user, "7", reason="left the company")

    Returns and raises what the function does. Raises :class:`ConfigError` in a thread that
    runs an event loop: await :func:`acall` there.
    """
    loop = _running_loop_of(get_sessions())
    _check_not_async()
    if loop is None:
        return blocking.call(function, *args, **kwargs)
    return asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop).result()


async def acall(function: Function[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """The same in an async view, on any event loop."""
    return await arun(get_sessions(), function, *args, **kwargs)


def run(
    sessions: Sessions, function: Function[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """The same for the handle of a request under ASGI: an engine that is not open yet is
    opened on the loop of the request."""
    loop = _running_loop_of(sessions)
    _check_not_async()
    if loop is None:
        run_on_loop_of_request: Callable[P, T] = async_to_sync(function)
        return run_on_loop_of_request(*args, **kwargs)
    return asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop).result()


async def arun(
    sessions: Sessions, function: Function[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run an async function on the loop of the engine, and await it on this one."""
    loop = _running_loop_of(sessions)
    if loop is None or loop is asyncio.get_running_loop():
        return await function(*args, **kwargs)
    future = asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop)
    return await asyncio.wrap_future(future)


def run_in_background(
    sessions: Sessions, function: Function[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> None:
    """Start an async function on the loop of the engine, from any thread, and do not wait.

    An error is logged. Nothing is started if the engine is closed and this thread has no
    loop.
    """
    loop = _running_loop_of(sessions) or _current_loop()
    if loop is None:
        return
    task = asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop)
    task.add_done_callback(_log_error)


def _log_error(task: Future[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a session was not ended", exc_info=error)


def _running_loop_of(sessions: Sessions) -> asyncio.AbstractEventLoop | None:
    loop = sessions._loop
    return loop if loop is not None and loop.is_running() else None


def _current_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _check_not_async() -> None:
    if _current_loop() is not None:
        raise ConfigError(
            "this is an async view: await alogin, alogout, arevoke … or acall(function)"
        )


AnyHandle: TypeAlias = asgi.Handle | wsgi.Handle


class Transports:
    """A middleware of each transport. The transport of a request decides which one makes
    its handle and authenticates it."""

    def __init__(self, settings: Settings[Sessions]) -> None:
        sessions, options = settings.sessions, settings.middleware
        self._asgi = asgi.SessionAuthMiddleware(_no_app, sessions, **options)
        self._wsgi = wsgi.SessionAuthMiddleware(_no_app, sessions, **options)
        self.options = self._asgi._options

    def find_outer(self, request: Any) -> AnyHandle | None:
        """The handle of a middleware around the application, or None.

        Raises :class:`ConfigError` if that middleware has another engine.
        """
        outer = getattr(request, "scope", None) or request.META
        handle: AnyHandle | None = outer.get(asgi.SCOPE_KEY)
        if handle is not None:
            self.options.check_same(handle)
        return handle

    def make_handle(self, request: Any) -> tuple[AnyHandle, bool]:
        """The handle of a request, and whether :meth:`authenticate` must be called."""
        scope = getattr(request, "scope", None)
        if scope is None:
            environ = request.META
            found = self._wsgi._fast_path(environ)
            return found or wsgi.Handle(self._wsgi._options, environ), found is None
        cached = self._asgi._fast_path(scope)
        if cached is not None:
            return cached, False
        headers = asgi._plain_headers(scope)
        return asgi.Handle(self.options, headers, scope.get("client")), True

    def authenticate(self, request: Any, handle: AnyHandle) -> None:
        """Find the session of the request. Raises :class:`CrossSiteRequest`, and
        :class:`SessionsUnavailable` where ``outage`` is "refuse"."""
        if isinstance(handle, wsgi.Handle):
            self._wsgi._slow_path(handle, request.META)
        elif not self._is_excluded(request.scope):
            authenticate = self._asgi._authenticate
            run(handle.sessions, authenticate, handle, request.method, request.scope)

    async def aauthenticate(self, request: Any, handle: AnyHandle) -> None:
        """See :meth:`authenticate`."""
        if isinstance(handle, asgi.Handle) and not self._is_excluded(request.scope):
            authenticate = self._asgi._authenticate
            await arun(handle.sessions, authenticate, handle, request.method, request.scope)

    def _is_excluded(self, scope: Any) -> bool:
        return scope["method"] == "OPTIONS" or scope["path"] in self._asgi._exclude


def _no_app(*_: Any) -> Any:
    raise NotImplementedError


def call_handle(handle: AnyHandle, name: str, *args: Any, **options: Any) -> Any:
    """Call a method of the handle in sync code, under either transport."""
    method = getattr(handle, name)
    if isinstance(handle, wsgi.Handle):
        return method(*args, **options)
    return run(handle.sessions, method, *args, **options)


async def acall_handle(handle: AnyHandle, name: str, *args: Any, **options: Any) -> Any:
    """Call a method of the handle in async code, under either transport."""
    method = getattr(handle, name)
    if isinstance(handle, wsgi.Handle):
        in_thread = sync_to_async(method, thread_sensitive=False)
        return await cast(Awaitable[Any], in_thread(*args, **options))
    return await arun(handle.sessions, method, *args, **options)


class SessionAuth:
    """``request.session_auth``: the session of a request, and what its user may do with it.

    A method with ``a`` in front is the same for an async view, as in Django. To log in
    and out, call :func:`handstamp.django.login` and :func:`handstamp.django.logout`.
    """

    def __init__(self, handle: AnyHandle) -> None:
        self._handle = handle

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @property
    def session(self) -> Session | None:
        """The valid session, or None.

        Raises :class:`SessionsUnavailable` when the database gave no answer; the response
        is then a 503.
        """
        return self._handle.session

    @property
    def user_id(self) -> str | None:
        """The id of the user, or None. Raises as :attr:`session` does."""
        return self._handle.user_id

    @property
    def is_authenticated(self) -> bool:
        """Whether there is a valid session. Raises as :attr:`session` does."""
        return self._handle.is_authenticated

    @property
    def client(self) -> Client:
        """The address and the user agent of the client, as far as they are known."""
        return self._handle.client

    def require(
        self, *, level: int | None = None, fresh_within: timedelta | None = None
    ) -> Session:
        """See :meth:`handstamp._handle.BaseHandle.require`: 401, 403 or 503 by itself."""
        return self._handle.require(level=level, fresh_within=fresh_within)

    def step_up(self, level: int) -> Session:
        """See :meth:`handstamp.asgi.Handle.step_up`."""
        return cast(Session, call_handle(self._handle, "step_up", level))

    async def astep_up(self, level: int) -> Session:
        """See :meth:`step_up`."""
        return cast(Session, await acall_handle(self._handle, "step_up", level))

    def list_sessions(self) -> list[Session]:
        """This user's live sessions, ``current`` marked. Raises as :meth:`require`."""
        return cast(list[Session], call_handle(self._handle, "list_sessions"))

    async def alist_sessions(self) -> list[Session]:
        """See :meth:`list_sessions`."""
        return cast(list[Session], await acall_handle(self._handle, "list_sessions"))

    def revoke(self, session_id: str, *, reason: str = "revoked by its user") -> bool:
        """End one of this user's sessions; False if they have none of this id."""
        return cast(bool, call_handle(self._handle, "revoke", session_id, reason=reason))

    async def arevoke(
        self, session_id: str, *, reason: str = "revoked by its user"
    ) -> bool:
        """See :meth:`revoke`."""
        return cast(
            bool, await acall_handle(self._handle, "revoke", session_id, reason=reason)
        )

    def revoke_others(self) -> int:
        """End every session of this user but this one; how many."""
        return cast(int, call_handle(self._handle, "revoke_others"))

    async def arevoke_others(self) -> int:
        """See :meth:`revoke_others`."""
        return cast(int, await acall_handle(self._handle, "revoke_others"))
