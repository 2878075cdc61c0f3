"""From wherever Django runs a view to the loop that the engine is on.

Rule 1. Under ASGI the engine is on the server's loop, under WSGI on the one of
:mod:`handstamp.blocking`, and it stays where it was opened.
Rule 2. A sync view under ASGI runs in a thread: it crosses to the loop and waits. A test
that mixes Django's two clients has the engine on the other loop, and crosses as well.

Which handle a request of Django gets, and how its question reaches the engine.

The transport decides the handle, and the mode of the middleware decides how it waits: with
a sync middleware below ours, Django runs both in a thread under ASGI too.

``request.session_auth``: the session of a request, in Django's two colours.
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
    """What an async function returns, in a sync view, under WSGI and ASGI alike.

        call(get_sessions().revoke_user, "7", reason="left the company")

    Raises what the function raises, and :class:`ConfigError` on a thread that runs an
    event loop: await :func:`acall` there.
    """
    loop = _home(get_sessions())
    if loop is None:
        _refuse_to_block_a_loop()
        return blocking.call(function, *args, **kwargs)
    return _wait_on(loop, function, *args, **kwargs)


async def acall(function: Function[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """The same in an async view, on whichever loop it runs."""
    return await across(get_sessions(), function, *args, **kwargs)


def wait(
    sessions: Sessions, function: Function[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """The same for the handle of a request under ASGI: without a loop of its own the
    engine opens on the request's."""
    loop = _home(sessions)
    if loop is None:
        _refuse_to_block_a_loop()
        run: Callable[P, T] = async_to_sync(function)
        return run(*args, **kwargs)
    return _wait_on(loop, function, *args, **kwargs)


async def across(
    sessions: Sessions, function: Function[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """What an async function returns, run on the loop that the engine is on."""
    loop = _home(sessions)
    if loop is None or loop is asyncio.get_running_loop():
        return await function(*args, **kwargs)
    future = asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop)
    return await asyncio.wrap_future(future)


def later(
    sessions: Sessions, function: Function[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> None:
    """Begin an async function on the loop that the engine is on, and wait for nothing: for
    what may be asked for on any thread. What it raises is logged. Nothing is begun where
    the engine is closed and there is no loop."""
    loop = _home(sessions) or _running()
    if loop is None:
        return
    task = asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop)
    task.add_done_callback(_complain)


def _complain(task: Future[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a session was not ended", exc_info=error)


def _home(sessions: Sessions) -> asyncio.AbstractEventLoop | None:
    loop = sessions._loop
    return loop if loop is not None and loop.is_running() else None


def _wait_on(
    loop: asyncio.AbstractEventLoop,
    function: Function[P, T],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    _refuse_to_block_a_loop()
    return asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop).result()


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _refuse_to_block_a_loop() -> None:
    if _running() is None:
        return
    raise ConfigError(
        "this is an async view: await alogin, alogout, arevoke … or acall(function)"
    )


AnyHandle: TypeAlias = asgi.Handle | wsgi.Handle


class Transports:
    """One middleware of each transport, for what they know of a request."""

    def __init__(self, settings: Settings[Sessions]) -> None:
        sessions, options = settings.sessions, settings.middleware
        self._asgi = asgi.SessionAuthMiddleware(_no_app, sessions, **options)
        self._wsgi = wsgi.SessionAuthMiddleware(_no_app, sessions, **options)
        self.door = self._asgi._options

    def outer(self, request: Any) -> AnyHandle | None:
        """The handle of a middleware around this one, if there is any.

        Raises :class:`ConfigError` if its sessions are others.
        """
        around = getattr(request, "scope", None) or request.META
        handle: AnyHandle | None = around.get(asgi.SCOPE_KEY)
        if handle is not None:
            self._asgi._options.check_same(handle)
        return handle

    def handle(self, request: Any) -> tuple[AnyHandle, bool]:
        """The handle of a request, and whether its session is still to be asked for."""
        scope = getattr(request, "scope", None)
        if scope is None:
            environ = request.META
            found = self._wsgi._fast_path(environ)
            return found or wsgi.Handle(self._wsgi._options, environ), found is None
        glanced = self._asgi._fast_path(scope)
        if glanced is not None:
            return glanced, False
        headers = asgi._plain_headers(scope)
        return asgi.Handle(self._asgi._options, headers, scope.get("client")), True

    def ask(self, request: Any, handle: AnyHandle) -> None:
        """Authenticate; raises :class:`CrossSiteRequest` or :class:`SessionsUnavailable`
        where a request is refused at the door."""
        if isinstance(handle, wsgi.Handle):
            self._wsgi._slow_path(handle, request.META)
        elif not self._is_left_alone(request.scope):
            ask = self._asgi._authenticate
            wait(handle.sessions, ask, handle, request.method, request.scope)

    async def aask(self, request: Any, handle: AnyHandle) -> None:
        """The same, awaited."""
        if isinstance(handle, asgi.Handle) and not self._is_left_alone(request.scope):
            ask = self._asgi._authenticate
            await across(handle.sessions, ask, handle, request.method, request.scope)

    def _is_left_alone(self, scope: Any) -> bool:
        return scope["method"] == "OPTIONS" or scope["path"] in self._asgi._exclude


def _no_app(*_: Any) -> Any:
    raise NotImplementedError


def done(handle: AnyHandle, verb: str, *args: Any, **options: Any) -> Any:
    """A verb of the handle, for sync code under either transport."""
    method = getattr(handle, verb)
    if isinstance(handle, wsgi.Handle):
        return method(*args, **options)
    return wait(handle.sessions, method, *args, **options)


async def adone(handle: AnyHandle, verb: str, *args: Any, **options: Any) -> Any:
    """A verb of the handle, for async code under either transport."""
    method = getattr(handle, verb)
    if isinstance(handle, wsgi.Handle):
        crossing = sync_to_async(method, thread_sensitive=False)
        return await cast(Awaitable[Any], crossing(*args, **options))
    return await across(handle.sessions, method, *args, **options)


class SessionAuth:
    """What a view asks and does about the session of its request.

    A name with ``a`` in front is the same for an async view, as Django has it. To log in
    and out, call :func:`handstamp.django.login` and :func:`handstamp.django.logout`.
    """

    def __init__(self, handle: AnyHandle) -> None:
        self._handle = handle

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @property
    def session(self) -> Session | None:
        """The valid session, or None. Raises :class:`SessionsUnavailable` when nobody
        can say, which is answered with 503."""
        return self._handle.session

    @property
    def user_id(self) -> str | None:
        """Whose session it is, or None. Raises as :attr:`session` does."""
        return self._handle.user_id

    @property
    def is_authenticated(self) -> bool:
        """Whether there is a valid session. Raises as :attr:`session` does."""
        return self._handle.is_authenticated

    @property
    def client(self) -> Client:
        """Who makes this request, as far as it shows."""
        return self._handle.client

    def require(
        self, *, level: int | None = None, fresh_within: timedelta | None = None
    ) -> Session:
        """See :meth:`handstamp._handle.BaseHandle.require`: 401, 403 or 503 by itself."""
        return self._handle.require(level=level, fresh_within=fresh_within)

    def step_up(self, level: int) -> Session:
        """See :meth:`handstamp.asgi.Handle.step_up`."""
        return cast(Session, done(self._handle, "step_up", level))

    async def astep_up(self, level: int) -> Session:
        """See :meth:`step_up`."""
        return cast(Session, await adone(self._handle, "step_up", level))

    def list_sessions(self) -> list[Session]:
        """This user's live sessions, ``current`` marked. Raises as :meth:`require`."""
        return cast(list[Session], done(self._handle, "list_sessions"))

    async def alist_sessions(self) -> list[Session]:
        """See :meth:`list_sessions`."""
        return cast(list[Session], await adone(self._handle, "list_sessions"))

    def revoke(self, session_id: str, *, reason: str = "revoked by its user") -> bool:
        """End one of this user's sessions; False if they have none of this id."""
        return cast(bool, done(self._handle, "revoke", session_id, reason=reason))

    async def arevoke(
        self, session_id: str, *, reason: str = "revoked by its user"
    ) -> bool:
        """See :meth:`revoke`."""
        return cast(bool, await adone(self._handle, "revoke", session_id, reason=reason))

    def revoke_others(self) -> int:
        """End every session of this user but this one; how many."""
        return cast(int, done(self._handle, "revoke_others"))

    async def arevoke_others(self) -> int:
        """See :meth:`revoke_others`."""
        return cast(int, await adone(self._handle, "revoke_others"))
