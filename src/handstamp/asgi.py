"""The ASGI middleware: it finds the session of every request of any ASGI application.

Rule 1. A cached session costs one plain function call before the application runs: no I/O
and no ``await`` (``_fast_path``). A request with anything unusual takes the slow path.
Rule 2. All I/O is done before the application is called. The wrapped ``send`` edits the
headers of the message that starts the response. It does not change any other message.
Rule 3. The middleware decides whose session it is; the application decides what that user
may do. A path is excluded only if it is equal to ``scope["path"]``: no prefix, no pattern.
Rule 4. Wrap the application from outside. A framework creates its response to an unhandled
exception outside of the middleware in its own list; a cookie set inside is lost there.
Rule 5. An exception of handstamp that the application does not catch becomes a response
with its status, or closes a WebSocket with its close code (:mod:`handstamp.errors`). If an
HTTP response has started already, the exception goes to the server.
Rule 6. The engine opens and closes with the server. If the application does not implement
the lifespan protocol, the middleware does: pending activity is written at a graceful stop.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

from handstamp._connections import (
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    SocketGuard,
    until_ended,
)
from handstamp._handle import OTHERS_REVOKED, BaseHandle
from handstamp._request import (
    PASSIVE_HEADER,
    PLAIN_METHODS,
    BaseMiddleware,
    MiddlewareOptions,
    RawHeaders,
)
from handstamp.core.models import Session
from handstamp.engine.sessions import Sessions
from handstamp.errors import CrossSiteRequest, HandstampError, SessionsUnavailable

T = TypeVar("T")
SCOPE_KEY = "handstamp"
"""The handle of a request is ``scope[SCOPE_KEY]``."""

_SLOW_PATH_HEADERS = frozenset(
    {b"cookie", b"authorization", b"sec-purpose", b"purpose", b"upgrade", PASSIVE_HEADER}
)
_CLIENT_HEADERS = frozenset({b"user-agent", b"x-forwarded-for"})
_START_MESSAGES = frozenset(
    {"http.response.start", "websocket.accept", "websocket.http.response.start"}
)


class Handle(BaseHandle):
    """The handle of a request under ASGI. What needs no ``await`` is in
    :class:`BaseHandle`."""

    _sender: Send

    def __init__(
        self, options: MiddlewareOptions, headers: RawHeaders, peer: object
    ) -> None:
        self._options = options
        self._headers = headers
        self._peer = peer

    def client_key(self) -> int:
        """See :meth:`BaseHandle.client_key`."""
        peer = self._peer
        host = peer[0] if isinstance(peer, (tuple, list)) and peer else None
        values = [bytes(v) for k, v in self._headers if k in _CLIENT_HEADERS]
        return hash((host, *values))

    def send(self, message: Message) -> Awaitable[None]:
        """The ``send`` for the application: edits the message that starts the response."""
        if message["type"] in _START_MESSAGES:
            headers = self.response_headers(list(message.get("headers") or ()))
            message = dict(message)
            message["headers"] = headers
        return self._sender(message)

    async def login(
        self, user_id: str, *, remember: bool = False, claim: str | None = None
    ) -> Session:
        """Open a new session for a user who has just proven who they are.

        Every session that this browser had ends in the same transaction, also on an
        excluded path. With ``remember`` the cookies outlive the browser. ``claim`` is a
        text that the tokens carry: see :meth:`Sessions.create`. Raises
        :class:`LoginRefused`, :class:`CrossSiteRequest` or :class:`SessionsUnavailable`.
        """
        self._check_login()
        return self._logged_in(await self._replace(user_id, remember, claim))

    async def logout(self) -> None:
        """End every session that this browser has, and clear its cookies.

        The cookies are cleared also without a session, and on an excluded path. They are
        kept where the request has a bearer token. Raises :class:`CrossSiteRequest` or
        :class:`SessionsUnavailable`; the session has not ended then.
        """
        await self._log_out()

    async def _log_out(self) -> Sequence[Session]:
        """Log out, and return the sessions that ended."""
        ended = await self._end() if self._check_logout() else ()
        self._logged_out()
        return ended

    async def step_up(self, level: int) -> Session:
        """Raise this session's trust level, because the user has just proven more.

        The tokens are replaced: the response carries new cookies, and a copy of the old
        ones is worthless from now on. A session that has this level or a higher one keeps
        its level and its tokens. Raises as :meth:`require` does; also
        :class:`CrossSiteRequest`, and :class:`ConfigError` where the table has no column
        for levels.
        """
        session, refresh = self._check_step_up()
        step_up = self.sessions.step_up
        return self._stepped_up(
            await step_up(session.id, level, refresh=refresh, claim=session.claim)
        )

    async def renew(self, *, claim: str | None) -> Session:
        """Replace the tokens of this session and the ``claim`` that they carry.

        The response carries new cookies, and a copy of the old ones is worthless. Raises
        as :meth:`step_up` does.
        """
        session, refresh = self._check_step_up()
        renew = self.sessions.renew
        return self._stepped_up(await renew(session.id, claim=claim, refresh=refresh))

    async def list_sessions(self) -> list[Session]:
        """Return this user's live sessions; ``current`` is true for the one of this
        request. Raises as :meth:`require` does."""
        session = self.require()
        return await self.sessions.list_for_user(session.user_id, current=session.id)

    async def revoke(self, session_id: str, *, reason: str = "revoked by its user") -> bool:
        """End one of this user's sessions; return False if they have none with this id.

        Raises as :meth:`require` does, or :class:`CrossSiteRequest`.
        """
        self._check_write()
        user_id = self.require().user_id
        return await self.sessions.revoke(session_id, reason=reason, user_id=user_id)

    async def revoke_others(self) -> int:
        """End every session of this user except this one, and return their number.

        Raises as :meth:`require` does, or :class:`CrossSiteRequest`.
        """
        self._check_write()
        session = self.require()
        return await self.sessions.revoke_user(
            session.user_id, keep=session.id, reason=OTHERS_REVOKED
        )

    def while_valid(self, source: AsyncIterable[T]) -> AsyncIterator[T]:
        """Return the items of ``source`` until this session ends: for server-sent events
        and other long responses. Raises at once, as :meth:`require` does."""
        return until_ended(self.sessions, self.require(), source)


class SessionAuthMiddleware(BaseMiddleware[ASGIApp, Scope]):
    """Finds the session of every request of ``app``.

    The options are those of :class:`handstamp._request.BaseMiddleware`; a path is the value
    of ``scope["path"]``, and a function for ``passive`` receives the scope.
    """

    handle_class: ClassVar[type[Handle]] = Handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or SCOPE_KEY in scope:
            await self._serve_other(scope, receive, send)
            return
        handle = self._fast_path(scope) or await self._slow_path(scope, send)
        if handle is None:
            return
        # The same lines are in _serve_websocket: a coroutine for both would make a hit
        # 5 % slower.
        handle._sender = send
        self.attach(scope, handle)
        try:
            await self.app(scope, receive, handle.send)
        except HandstampError as exc:
            await _send_error(exc, scope, handle)

    def _fast_path(self, scope: Scope) -> Handle | None:
        """The handle of a plain request with a cached session, else None."""
        if scope["method"] not in PLAIN_METHODS:
            return None
        headers = scope["headers"]
        if not isinstance(headers, (list, tuple)):
            return None  # an iterator can be read only once; the slow path makes a list
        cookie = None
        try:
            for name, value in headers:
                if name in _SLOW_PATH_HEADERS:
                    if cookie is not None or name != b"cookie":
                        return None
                    cookie = value
        except TypeError:
            return None  # headers that the specification does not allow
        if not isinstance(cookie, bytes) or (self._has_rules and self._is_special(scope)):
            return None
        token = self._read_fast(cookie)
        if token is None:
            return None
        handle = self.handle_class(self._options, headers, scope.get("client"))
        entry = self._hit(token, False, handle)
        if entry is None or (
            self._refresh_matches is not None
            and not self._refresh_matches(cookie, entry.session.id)
        ):
            return None
        handle._session = entry.session
        handle._has_credentials = True
        return handle

    async def _slow_path(self, scope: Scope, send: Send) -> Handle | None:
        """The handle of any request; None if it was refused and the response is sent."""
        headers = _plain_headers(scope)
        handle = self.handle_class(self._options, headers, scope.get("client"))
        # Some servers give a WebSocket handshake a method too; it is a write all the same.
        method = scope["method"] if scope["type"] == "http" else None
        if method == "OPTIONS" or scope["path"] in self._exclude:
            return handle
        try:
            await self._authenticate(handle, method, scope)
        except (CrossSiteRequest, SessionsUnavailable) as exc:
            handle._sender = send
            await _send_error(exc, scope, handle)
            return None
        return handle

    async def _authenticate(self, handle: Handle, method: str | None, scope: Scope) -> None:
        """Classify the request, and ask the engine for its session."""
        request = handle._classify(method, takes_cookies=_takes_cookies(scope))
        if not request.credentials:
            return
        handle._resolve(
            await self._options.sessions.authenticate(
                request.credentials,
                handle.client,
                passive=self._is_passive(scope) or request.passive,
            )
        )

    def attach(self, scope: Scope, handle: Handle) -> None:
        """Put the handle into the scope. Framework modules extend this."""
        scope[SCOPE_KEY] = handle

    async def _serve_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection that is no HTTP request, or that has a handle already."""
        if SCOPE_KEY in scope:
            self._options.check_same(scope[SCOPE_KEY])
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _serve_lifespan(self.app, self._options.sessions, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        sessions = self._options.sessions
        ticket = sessions.ticket()
        handle = await self._slow_path(scope, send)
        if handle is None:
            return
        session, guard = handle._session, None
        if session is not None:
            guard = SocketGuard(receive, send, handle._first_frame)
            sessions.add_connection(session, guard.end, ticket)
            receive, send = guard.receive, guard.send
        handle._sender = send
        self.attach(scope, handle)
        try:
            await self.app(scope, receive, handle.send)
        except HandstampError as exc:
            await _send_error(exc, scope, handle)
        finally:
            if session is not None and guard is not None:
                sessions.connections.remove(session.id, guard.end)
                await guard.finish()


async def _serve_lifespan(
    app: ASGIApp, sessions: Sessions, scope: Scope, receive: Receive, send: Send
) -> None:
    """Serve a lifespan connection of ``app``, with ``sessions`` open from its startup to
    its shutdown (rule 6)."""
    in_use = False  # the application has asked for a message: it implements the protocol

    async def receive_and_open() -> Message:
        nonlocal in_use
        in_use = True
        message = await receive()
        if message["type"] == "lifespan.startup":
            await sessions.open()
        return message

    async def close_and_send(message: Message) -> None:
        if message["type"].startswith("lifespan.shutdown."):
            await sessions.close()
        await send(message)

    try:
        await app(scope, receive_and_open, close_and_send)
    except Exception:
        if in_use:
            raise
    except GeneratorExit:
        in_use = False  # the server dropped this coroutine and its loop: nothing can wait
        raise
    finally:
        if in_use:
            await sessions.close()
    if in_use:
        return
    await receive()
    await sessions.open()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await sessions.close()
    await send({"type": "lifespan.shutdown.complete"})


def _takes_cookies(scope: Scope) -> bool:
    """Whether the response can carry cookies. That to a WebSocket handshake can since
    version 2.1 of the ASGI specification (Daphne has 2.0)."""
    if scope["type"] != "websocket":
        return True
    version = str((scope.get("asgi") or {}).get("spec_version", "2.0"))
    numbers = [int(part) if part.isdecimal() else 0 for part in version.split(".")]
    return numbers[:2] >= [2, 1]


def _plain_headers(scope: Scope) -> RawHeaders:
    """The headers of a request as pairs of bytes, whatever types the server used. An
    iterator is replaced by a list in the scope: the application needs the headers too."""
    headers = scope["headers"]
    if not isinstance(headers, (list, tuple)):
        headers = scope["headers"] = [tuple(pair) for pair in headers]
    return [(_as_bytes(name), _as_bytes(value)) for name, value in headers]


def _as_bytes(value: Any) -> bytes:
    return value.encode("latin-1", "replace") if isinstance(value, str) else bytes(value)


def can_deny(scope: Scope) -> bool:
    """Whether the server can deny a WebSocket handshake with a response."""
    return "websocket.http.response" in (scope.get("extensions") or ())


async def _send_error(exc: HandstampError, scope: Scope, handle: Handle) -> None:
    """Send the response to an exception, as in rule 5; raise it where that is not possible.

    A handshake is denied with the response that an HTTP request gets where the server can
    send one, and else with the close code.
    """
    is_websocket = scope["type"] == "websocket"
    if exc.status == 500 or (handle._started and not is_websocket):
        raise exc
    if is_websocket and (handle._started or not can_deny(scope)):
        code, reason = exc.close_code, exc.close_reason
        with suppress(OSError, RuntimeError):  # closed already; errors differ by server
            await handle.send({"type": "websocket.close", "code": code, "reason": reason})
        return
    kind = "websocket.http.response" if is_websocket else "http.response"
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    headers += [(k.lower().encode(), v.encode()) for k, v in exc.headers.items()]
    body = exc.public_message.encode() + b"\n"
    await handle.send({"type": f"{kind}.start", "status": exc.status, "headers": headers})
    await handle.send({"type": f"{kind}.body", "body": body, "more_body": False})
