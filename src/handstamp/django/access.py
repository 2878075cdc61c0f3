"""``request.session_auth``: the session of a request, in Django's two colours."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from typing import Any, cast

from asgiref.sync import sync_to_async

from handstamp import wsgi
from handstamp.core.records import Client, Session
from handstamp.django.loops import across, wait
from handstamp.django.transports import AnyHandle


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
        """See :meth:`handstamp.handles.BaseHandle.require`: 401, 403 or 503 by itself."""
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
