"""Opening and closing the engine with the server, whatever the application makes of it.

An application that knows the lifespan protocol is served as usual, with the engine open
around it. For one that does not, the protocol is spoken here, so that pending activity is
written at a graceful stop in any case.

The ASGI middleware: one object around any ASGI application.

Rule 1. A cached session costs a plain function call before the application runs: no I/O,
no await. Everything unusual about a request goes the long way.
Rule 2. All I/O happens before the application is called. The wrapped ``send`` edits the
headers of the one message that starts the response and passes everything else on as it
is.
Rule 3. Identity is decided by the request alone; the application enforces it. Paths are
excluded from this one by one and exactly, as they stand in ``scope["path"]``.
Rule 4. Wrap the application from outside. A framework turns an unhandled exception into
its 500 outside of the middleware it was given, and a cookie set inside is lost there.
"""

from __future__ import annotations

from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Sequence,
)
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
from handstamp._request import (
    PASSIVE_HEADER,
    PLAIN_METHODS,
    BaseHandle,
    MiddlewareOptions,
    RawHeaders,
)
from handstamp.config import Cookies, TrustedProxies
from handstamp.core.models import Session
from handstamp.engine.sessions import Sessions
from handstamp.errors import CrossSiteRequest, HandstampError, SessionsUnavailable


class Lifespan:
    """One lifespan connection of ``app``, with ``sessions`` open around it."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app = app
        self._sessions = sessions
        self._asked = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the connection to its end."""

        async def opening() -> Message:
            self._asked = True
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._sessions.open()
            return message

        async def closing(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                await self._sessions.close()
            await send(message)

        try:
            await self._app(scope, opening, closing)
        except Exception:
            if self._asked:
                raise  # it knows the protocol and failed
        except GeneratorExit:
            self._asked = False  # forgotten by its server, with its loop: nothing to await
            raise
        finally:
            if self._asked:
                await self._sessions.close()
        if not self._asked:
            await self._stand_in(receive, send)

    async def _stand_in(self, receive: Receive, send: Send) -> None:
        await receive()
        await self._sessions.open()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._sessions.close()
        await send({"type": "lifespan.shutdown.complete"})


T = TypeVar("T")
SCOPE_KEY = "handstamp"

_WATCHED = frozenset(
    {b"cookie", b"authorization", b"sec-purpose", b"purpose", b"upgrade", PASSIVE_HEADER}
)
_STARTS = frozenset(
    {"http.response.start", "websocket.accept", "websocket.http.response.start"}
)

_OF_THE_CLIENT = frozenset({b"user-agent", b"x-forwarded-for"})


class Handle(BaseHandle):
    """The handle of a request under ASGI: see :class:`BaseHandle` for the sync half."""

    _sender: Send

    def __init__(self, door: MiddlewareOptions, headers: RawHeaders, peer: object) -> None:
        self._options = door
        self._headers = headers
        self._peer = peer

    def client_key(self) -> int:
        """See :meth:`BaseHandle.client_key`; in the raw, as far as a client shows."""
        peer = self._peer
        host = peer[0] if isinstance(peer, (tuple, list)) and peer else None
        shown = [bytes(v) for k, v in self._headers if k in _OF_THE_CLIENT]
        return hash((host, *shown))

    def send(self, message: Message) -> Awaitable[None]:
        """The application's ``send``: edits the start of the response, nothing else."""
        if message["type"] in _STARTS:
            headers = self.response_headers(list(message.get("headers") or ()))
            message = dict(message)
            message["headers"] = headers
        return self._sender(message)

    async def login(
        self, user_id: str, *, remember: bool = False, claim: str | None = None
    ) -> Session:
        """Open a new session for a user who has just proven who they are.

        Every session this browser had ends in the same transaction, also on a path that
        is not authenticated. ``remember`` makes the cookies outlive the browser. ``claim``
        is a text that the tokens carry: see :meth:`Sessions.create`. Raises
        :class:`LoginRefused`, :class:`CrossSiteRequest` or :class:`SessionsUnavailable`.
        """
        self._check_login()
        return self._logged_in(await self._replace(user_id, remember, claim))

    async def logout(self) -> None:
        """End every session this browser has and clear the cookies, also when there is
        none, and on a path that is not authenticated.

        The cookies stay where a bearer token came in their place. Raises
        :class:`CrossSiteRequest` or :class:`SessionsUnavailable`, and then nobody was
        logged out.
        """
        await self._log_out()

    async def _log_out(self) -> Sequence[Session]:
        """Log out; the sessions that were to end."""
        held = await self._end() if self._check_logout() else ()
        self._logged_out()
        return held

    async def step_up(self, level: int) -> Session:
        """Raise this session's trust level: the user has just proven more.

        The tokens are replaced, and this response carries the new cookies: any copy of the
        old ones is worth nothing from now on. A session that has this level, or a higher
        one, keeps level and tokens. Raises as :meth:`require` does,
        :class:`CrossSiteRequest`, and :class:`ConfigError` where the table has no column
        for levels.
        """
        session, refresh = self._check_step_up()
        step_up = self.sessions.step_up
        return self._stepped_up(
            await step_up(session.id, level, refresh=refresh, claim=session.claim)
        )

    async def renew(self, *, claim: str | None) -> Session:
        """Replace the tokens of this session, and what they carry: this response has the
        new cookies, and a copy of the old ones is worth nothing. Raises as
        :meth:`step_up` does."""
        session, refresh = self._check_step_up()
        renew = self.sessions.renew
        return self._stepped_up(await renew(session.id, claim=claim, refresh=refresh))

    async def list_sessions(self) -> list[Session]:
        """This user's live sessions, ``current`` marked. Raises as :meth:`require`."""
        session = self.require()
        return await self.sessions.list_for_user(session.user_id, current=session.id)

    async def revoke(self, session_id: str, *, reason: str = "revoked by its user") -> bool:
        """End one of this user's sessions; False if they have none of this id.

        Raises as :meth:`require` does, or :class:`CrossSiteRequest`.
        """
        self._check_write()
        user_id = self.require().user_id
        return await self.sessions.revoke(session_id, reason=reason, user_id=user_id)

    async def revoke_others(self) -> int:
        """End every session of this user but this one; how many. Raises as
        :meth:`require` does, or :class:`CrossSiteRequest`."""
        self._check_write()
        session = self.require()
        return await self.sessions.revoke_user(
            session.user_id, keep=session.id, reason="signed out from another session"
        )

    def while_valid(self, source: AsyncIterable[T]) -> AsyncIterator[T]:
        """The items of ``source`` until this session is over: for server-sent events and
        other long answers. Raises as :meth:`require` does, at once."""
        return until_ended(self.sessions, self.require(), source)


class SessionAuthMiddleware:
    """Authenticates every request of ``app`` by ``sessions``.

    ``cookies`` and ``trusted_proxies`` as in their classes. ``exclude`` lists exact
    values of ``scope["path"]`` that are not authenticated at all. ``passive`` tells
    requests that are no activity (polling): exact paths, or a function of the scope; the
    header ``X-Passive-Request: 1`` does so unless it is a write. ``cross_site="refuse"``
    answers 403 to writes that another site's page makes with our cookies; ``"allow"``
    switches that off, and ``trusted_origins`` lists origins that are yours.
    ``outage`` says what becomes of a request whose session cannot be checked: ``"ask"``
    raises 503 for whoever asks, ``"refuse"`` answers 503 at the door, ``"anonymous"``
    treats it as signed out, with its cookies left alone.
    ``bearer=True`` also takes a session token from ``Authorization: Bearer``.
    """

    handle_class: ClassVar[type[Handle]] = Handle

    def __init__(
        self,
        app: ASGIApp,
        sessions: Sessions,
        *,
        cookies: Cookies | None = None,
        trusted_proxies: TrustedProxies | None = None,
        exclude: Collection[str] = (),
        passive: Collection[str] | Callable[[Scope], bool] = (),
        cross_site: str = "refuse",
        trusted_origins: Iterable[str] = (),
        outage: str = "ask",
        bearer: bool = False,
    ) -> None:
        self.app = app
        self._options = MiddlewareOptions.of(
            sessions,
            cookies=cookies,
            trusted_proxies=trusted_proxies,
            cross_site=cross_site,
            trusted_origins=trusted_origins,
            outage=outage,
            bearer=bearer,
        )
        self._exclude = frozenset(exclude)
        self._passive = passive if callable(passive) else _among(passive)
        self._choosy = bool(self._exclude) or self._passive is not None
        self._sole, self._agrees = self._options.reader.sole, self._options.reader.agrees
        self._hit = sessions.hit

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._options.sessions!r})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or SCOPE_KEY in scope:
            await self._other(scope, receive, send)
            return
        handle = self._fast_path(scope) or await self._slow_path(scope, send)
        if handle is None:
            return
        # As in _serve: a coroutine of its own would be a twentieth of what a hit costs.
        handle._sender = send
        self.admit(scope, handle)
        try:
            await self.app(scope, receive, handle.send)
        except HandstampError as exc:
            await _excuse(exc, scope, handle)

    def _fast_path(self, scope: Scope) -> Handle | None:
        """The handle of a plain request with a cached session, else None."""
        if scope["method"] not in PLAIN_METHODS:
            return None
        headers = scope["headers"]
        if not isinstance(headers, (list, tuple)):
            return None  # read only once: the long way makes a list of it
        cookie = None
        try:
            for name, value in headers:
                if name in _WATCHED:
                    if cookie is not None or name != b"cookie":
                        return None
                    cookie = value
        except TypeError:
            return None  # no conformant server: the long way copes
        if not isinstance(cookie, bytes) or (self._choosy and self._is_special(scope)):
            return None
        token = self._sole(cookie)
        if token is None:
            return None
        handle = self.handle_class(self._options, headers, scope.get("client"))
        entry = self._hit(token, False, handle)
        if entry is None or (
            self._agrees is not None and not self._agrees(cookie, entry.session.id)
        ):
            return None
        handle._session = entry.session
        handle._sent = True
        return handle

    def _is_special(self, scope: Scope) -> bool:
        if self._exclude and scope["path"] in self._exclude:
            return True
        return self._passive is not None and self._passive(scope)

    async def _slow_path(self, scope: Scope, send: Send) -> Handle | None:
        """The handle of any request; None if it was refused and answered."""
        headers = _plain_headers(scope)
        handle = self.handle_class(self._options, headers, scope.get("client"))
        # Some servers name the method of a handshake too, and it is a write all the same.
        method = scope["method"] if scope["type"] == "http" else None
        if method == "OPTIONS" or scope["path"] in self._exclude:
            return handle
        try:
            await self._ask(handle, method, scope)
        except (CrossSiteRequest, SessionsUnavailable) as exc:
            handle._sender = send
            await _reply(exc, scope, handle.send)
            return None
        return handle

    async def _ask(self, handle: Handle, method: str | None, scope: Scope) -> None:
        question = handle._question(method, takes_cookies=_takes_headers(scope))
        if not question.credentials:
            return
        passive = self._passive is not None and self._passive(scope)
        handle._resolve(
            await self._options.sessions.authenticate(
                question.credentials, handle.client, passive=passive or question.passive
            )
        )

    async def _serve(
        self, handle: Handle, scope: Scope, receive: Receive, send: Send
    ) -> None:
        handle._sender = send
        self.admit(scope, handle)
        try:
            await self.app(scope, receive, handle.send)
        except HandstampError as exc:
            await _excuse(exc, scope, handle)

    def admit(self, scope: Scope, handle: Handle) -> None:
        """Put the handle where the application looks for it; frameworks add to this."""
        scope[SCOPE_KEY] = handle

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if SCOPE_KEY in scope:
            self._options.check_same(scope[SCOPE_KEY])
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await Lifespan(self.app, self._options.sessions)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        sessions = self._options.sessions
        ticket = sessions.ticket()
        handle = await self._slow_path(scope, send)
        if handle is None:
            return
        session = handle._session
        if session is None:
            await self._serve(handle, scope, receive, send)
            return
        guard = SocketGuard(receive, send, handle._first_frame)
        sessions.add_connection(session, guard.end, ticket)
        try:
            await self._serve(handle, scope, guard.receive, guard.send)
        finally:
            sessions.connections.remove(session.id, guard.end)
            await guard.finish()


def _among(paths: Collection[str]) -> Callable[[Scope], bool] | None:
    if not paths:
        return None
    exact = frozenset(paths)
    return lambda scope: scope["path"] in exact


def _takes_headers(scope: Scope) -> bool:
    """Whether the answer to this request can carry cookies: that to a handshake can
    since version 2.1 of the specification (Daphne has 2.0)."""
    if scope["type"] != "websocket":
        return True
    version = (scope.get("asgi") or {}).get("spec_version", "2.0")
    major, _, minor = str(version).partition(".")
    return (_number(major), _number(minor)) >= (2, 1)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _plain_headers(scope: Scope) -> RawHeaders:
    """The request's headers as pairs of bytes, whatever a server made of them; iterators
    are replaced by what they bear, so that the application still finds its headers."""
    headers = scope["headers"]
    if not isinstance(headers, (list, tuple)):
        headers = scope["headers"] = [tuple(pair) for pair in headers]
    return [(_as_bytes(name), _as_bytes(value)) for name, value in headers]


def _as_bytes(value: Any) -> bytes:
    return value.encode("latin-1", "replace") if isinstance(value, str) else bytes(value)


async def _excuse(exc: HandstampError, scope: Scope, handle: Handle) -> None:
    """Answer an error that the application raised, if that is still possible."""
    if exc.status == 500 or (handle._started and scope["type"] != "websocket"):
        raise exc
    if not handle._started:
        await _reply(exc, scope, handle.send)
        return
    with suppress(OSError, RuntimeError):  # closed already; servers raise different errors
        await handle.send(_close(exc))


async def _reply(exc: HandstampError, scope: Scope, send: Send) -> None:
    """Answer an error before the response or the handshake is accepted. A handshake is
    denied with the same response where the server can, else with a close code."""
    messages = plain_response(exc)
    if scope["type"] == "websocket":
        if "websocket.http.response" in (scope.get("extensions") or ()):
            messages = [{**m, "type": f"websocket.{m['type']}"} for m in messages]
        else:
            messages = [_close(exc)]
    for message in messages:
        await send(message)


def _close(exc: HandstampError) -> Message:
    return {"type": "websocket.close", "code": exc.close_code, "reason": exc.close_reason}


def plain_response(exc: HandstampError) -> list[Message]:
    """An error of ours as an HTTP response: its status, and its text where that is the
    client's business."""
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    headers += [(k.lower().encode(), v.encode()) for k, v in exc.headers.items()]
    body = exc.public_message.encode() + b"\n"
    return [
        {"type": "http.response.start", "status": exc.status, "headers": headers},
        {"type": "http.response.body", "body": body, "more_body": False},
    ]
