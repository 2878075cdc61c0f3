"""The WSGI middleware: it finds the session of every request of any WSGI application.

Rule 1. A cached session is found in the thread of the request: no I/O, no other thread.
Everything else is one call into the event loop of the process (:mod:`handstamp.blocking`).
Rule 2. The application's iterable is returned unchanged: streaming stays streaming, and the
server calls ``close()``. ``start_response`` is passed on with edited headers, ``exc_info``
and ``write()`` included.
Rule 3. The middleware decides whose session it is; the application decides what that user
may do. A path is excluded only if it is equal to ``PATH_INFO``: no prefix, no pattern.
Rule 4. A handle has a copy of its ``environ``, because a server may reuse the dict for the
next request. A handle whose response has started is ignored if it is found in an
``environ``: it belongs to an earlier request.
Rule 5. An exception of handstamp that the application does not catch becomes a response
with its status (:mod:`handstamp.errors`), unless the response has started. If the
application is a generator, its exceptions reach the server directly, when it iterates.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any, ClassVar
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from handstamp._fork import detect_fork
from handstamp._handle import OTHERS_REVOKED, BaseHandle
from handstamp._request import (
    PLAIN_METHODS,
    BaseMiddleware,
    MiddlewareOptions,
    RawHeaders,
)
from handstamp.blocking import call_soon, call_within, check_threads
from handstamp.core.models import Session, Unknown
from handstamp.core.requests import is_handshake
from handstamp.errors import CrossSiteRequest, HandstampError, SessionsUnavailable
from handstamp.events import Event

ENVIRON_KEY = "handstamp"
"""The handle of a request is ``environ[ENVIRON_KEY]``."""
LOOP_MARGIN = 2.0
"""Seconds that a request waits for the event loop, in addition to the time budget."""
WRITE_TIMEOUT = 30.0
"""Seconds that a login, a logout or another write may take."""

_CLIENT_KEYS = ("REMOTE_ADDR", "HTTP_USER_AGENT", "HTTP_X_FORWARDED_FOR")
_VARY, _VARY_BEARER = ("Vary", "Cookie"), ("Vary", "Authorization, Cookie")
_EDITED_LENGTHS = frozenset(map(len, ("Vary", "Set-Cookie")))


class Handle(BaseHandle):
    """The handle of a request under WSGI: the methods of ASGI's without ``await``."""

    _starter: StartResponse

    def __init__(self, options: MiddlewareOptions, environ: WSGIEnvironment) -> None:
        self._options = options
        # Rule 4. And no reference cycle, which only the garbage collector would free.
        self._environ = environ.copy()
        self._peer = (environ.get("REMOTE_ADDR"),)
        self._read_headers: RawHeaders | None = None

    @property
    def _headers(self) -> RawHeaders:  # type: ignore[override]
        if self._read_headers is None:
            self._read_headers = [
                (_as_bytes(name[5:].replace("_", "-").lower()), _as_bytes(value))
                for name, value in self._environ.items()
                if name.startswith("HTTP_")
            ]
        return self._read_headers

    def client_key(self) -> int:
        """See :meth:`BaseHandle.client_key`."""
        return hash(tuple(map(self._environ.get, _CLIENT_KEYS)))

    def report(self, event: Event) -> None:
        """See :meth:`BaseHandle.report`."""
        call_soon(self._options.sessions.publish, event)

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        """The ``start_response`` for the application: edits the headers, nothing else."""
        headers = self._edited(headers)
        if exc_info is None:
            return self._starter(status, headers)
        try:
            return self._starter(status, headers, exc_info)
        finally:
            del exc_info  # a traceback refers to this frame: PEP 3333

    def _edited(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """See :meth:`BaseHandle.response_headers`, which takes bytes. The headers are
        converted only if there is one to edit."""
        if not self._set_cookies:
            for name, _ in headers:
                if len(name) in _EDITED_LENGTHS and name.lower() in ("vary", "set-cookie"):
                    break
            else:
                self._started = True
                if self._has_credentials or self._was_read:
                    return [*headers, _VARY_BEARER if self._bearer else _VARY]
                return headers
        raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers]
        edited = self.response_headers(raw)
        return [(k.decode("latin-1"), v.decode("latin-1")) for k, v in edited]

    def login(
        self, user_id: str, *, remember: bool = False, claim: str | None = None
    ) -> Session:
        """See :meth:`handstamp.asgi.Handle.login`."""
        self._check_login()
        return self._logged_in(
            call_within(WRITE_TIMEOUT, self._replace, user_id, remember, claim)
        )

    def logout(self) -> None:
        """See :meth:`handstamp.asgi.Handle.logout`."""
        self._log_out()

    def _log_out(self) -> Sequence[Session]:
        """Log out, and return the sessions that ended."""
        ended = call_within(WRITE_TIMEOUT, self._end) if self._check_logout() else ()
        self._logged_out()
        return ended

    def step_up(self, level: int) -> Session:
        """See :meth:`handstamp.asgi.Handle.step_up`."""
        session, refresh = self._check_step_up()
        step_up, claim = self.sessions.step_up, session.claim
        return self._stepped_up(
            call_within(
                WRITE_TIMEOUT, step_up, session.id, level, refresh=refresh, claim=claim
            )
        )

    def renew(self, *, claim: str | None) -> Session:
        """See :meth:`handstamp.asgi.Handle.renew`."""
        session, refresh = self._check_step_up()
        renew = self.sessions.renew
        return self._stepped_up(
            call_within(WRITE_TIMEOUT, renew, session.id, claim=claim, refresh=refresh)
        )

    def list_sessions(self) -> list[Session]:
        """See :meth:`handstamp.asgi.Handle.list_sessions`."""
        session = self.require()
        find, user_id = self.sessions.list_for_user, session.user_id
        return call_within(WRITE_TIMEOUT, find, user_id, current=session.id)

    def revoke(self, session_id: str, *, reason: str = "revoked by its user") -> bool:
        """See :meth:`handstamp.asgi.Handle.revoke`."""
        self._check_write()
        user_id = self.require().user_id
        revoke = self.sessions.revoke
        return call_within(
            WRITE_TIMEOUT, revoke, session_id, reason=reason, user_id=user_id
        )

    def revoke_others(self) -> int:
        """See :meth:`handstamp.asgi.Handle.revoke_others`."""
        self._check_write()
        session = self.require()
        revoke, user_id = self.sessions.revoke_user, session.user_id
        return call_within(
            WRITE_TIMEOUT, revoke, user_id, keep=session.id, reason=OTHERS_REVOKED
        )


class SessionAuthMiddleware(BaseMiddleware[WSGIApplication, WSGIEnvironment]):
    """Finds the session of every request of ``app``.

    The options are those of :class:`handstamp._request.BaseMiddleware`; a path is the value
    of ``PATH_INFO``, and a function for ``passive`` receives the ``environ``. Nothing is
    started before the first request that needs the database, so a server may fork after it
    has imported the application. Raises :class:`ConfigError`.
    """

    handle_class: ClassVar[type[Handle]] = Handle
    _path_key = "PATH_INFO"

    def _check_server(self) -> None:
        check_threads()
        self._must_detect_forks = "uwsgi" in sys.modules

    @staticmethod
    def _path_of_transport(path: str) -> str:
        """Each byte of the path is one character (PEP 3333)."""
        return path.encode().decode("latin-1")

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Serve one request."""
        if self._must_detect_forks:
            detect_fork()
        outer = environ.get(ENVIRON_KEY)
        if outer is not None and not getattr(outer, "_started", False):  # rule 4
            self._options.check_same(outer)
            return self.app(environ, start_response)
        handle = self._fast_path(environ)
        if handle is None:
            handle = self.handle_class(self._options, environ)
            handle._starter = start_response
            try:
                self._slow_path(handle, environ)
            except (CrossSiteRequest, SessionsUnavailable) as exc:
                return _error_response(exc, handle)
        handle._starter = start_response
        self.attach(environ, handle)
        try:
            return self.app(environ, handle.start_response)
        except HandstampError as exc:
            if handle._started or exc.status == 500:
                raise
            return _error_response(exc, handle)

    def _fast_path(self, environ: WSGIEnvironment) -> Handle | None:
        """The handle of a plain request with a cached session, else None."""
        cookie = environ.get("HTTP_COOKIE")
        if cookie is None or environ.get("REQUEST_METHOD") not in PLAIN_METHODS:
            return None
        if (  # one by one: a loop would cost twice as much
            "HTTP_AUTHORIZATION" in environ
            or "HTTP_SEC_PURPOSE" in environ
            or "HTTP_PURPOSE" in environ
            or "HTTP_UPGRADE" in environ
            or "HTTP_X_PASSIVE_REQUEST" in environ
        ):
            return None
        if self._has_rules and self._is_special(environ):
            return None
        token = self._read_fast(_as_bytes(cookie))
        if token is None:
            return None
        handle = self.handle_class(self._options, environ)
        entry = self._hit(token, False, handle)
        if entry is None:
            return None
        if self._refresh_matches is not None and not self._refresh_matches(
            _as_bytes(cookie), entry.session.id
        ):
            return None
        handle._session = entry.session
        handle._has_credentials = True
        return handle

    def _slow_path(self, handle: Handle, environ: WSGIEnvironment) -> None:
        """Find the session of any request. Raises :class:`CrossSiteRequest` or
        :class:`SessionsUnavailable` if the request is refused."""
        method = environ.get("REQUEST_METHOD")
        if method == "OPTIONS" or environ.get("PATH_INFO", "") in self._exclude:
            return
        # A library that speaks WebSocket under WSGI does not call start_response.
        takes_cookies = "HTTP_UPGRADE" not in environ or not is_handshake(handle._headers)
        request = handle._classify(method, takes_cookies=takes_cookies)
        credentials = request.credentials
        if not credentials:
            return
        passive = request.passive or self._is_passive(environ)
        if len(credentials.session) == 1:  # rule 1: also for a POST, or a bearer token
            entry = self._hit(credentials.session[0], passive, handle)
            if entry is not None and credentials.refresh_matches(entry.session.id):
                handle._session = entry.session
                return
        sessions = self._options.sessions
        if sessions.is_forged(credentials):  # a flood of these must not reach the loop
            return
        timeout = sessions.policy.time_budget.total_seconds() + LOOP_MARGIN
        find = sessions.authenticate
        try:
            found = call_within(timeout, find, credentials, handle.client, passive=passive)
        except SessionsUnavailable as exc:
            found = Unknown(exc.cause)
        handle._resolve(found)

    def attach(self, environ: WSGIEnvironment, handle: Handle) -> None:
        """Put the handle into the ``environ``. Framework modules extend this."""
        environ[ENVIRON_KEY] = handle


def _error_response(exc: HandstampError, handle: Handle) -> Iterable[bytes]:
    """Answer an exception before the response has started: its status, its headers and the
    text that a client may read.

    ``exc_info`` is not passed to ``start_response``: test clients would raise it.
    """
    body = exc.public_message.encode() + b"\n"
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        *exc.headers.items(),
    ]
    handle.start_response(f"{exc.status} {HTTPStatus(exc.status).phrase}", headers)
    return [] if handle._environ.get("REQUEST_METHOD") == "HEAD" else [body]


def _as_bytes(value: Any) -> bytes:
    return str(value).encode("latin-1", "replace")
