"""The WSGI middleware: one object around any WSGI application.

Rule 1. A cached session is answered in the thread of the request: no I/O, no other thread.
Everything else crosses once into the event loop of the process (:mod:`handstamp.blocking`).
Rule 2. The application's answer is its own. Its iterable is returned as it is, so streaming
stays streaming and ``close()`` is the server's to call; ``start_response`` is passed on
with the headers edited, ``exc_info`` and ``write()`` included.
Rule 3. Identity is decided by the request alone; the application enforces it. Paths are
excluded one by one and exactly, as they stand in ``PATH_INFO``.
Rule 4. What a handle knows of its request is a copy: a server may reuse its ``environ``.
A handle whose response has begun is nobody's any more: what is found of it in the next
request's ``environ`` is not believed.
Rule 5. An application that is a generator answers its exceptions itself: when it raises,
the server iterates, and nobody here is on the way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

from handstamp._fork import detect_fork
from handstamp._request import PLAIN_METHODS, BaseHandle, MiddlewareOptions, RawHeaders
from handstamp.blocking import check_threads, soon, within
from handstamp.config import Cookies, TrustedProxies
from handstamp.core.models import Session, Unknown
from handstamp.core.requests import is_handshake
from handstamp.engine.sessions import Sessions
from handstamp.errors import CrossSiteRequest, HandstampError, SessionsUnavailable
from handstamp.events import Event

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

ENVIRON_KEY = "handstamp"
PATIENCE = 2.0
"""Seconds beyond the time budget that a request waits for the loop itself."""
LONGEST = 30.0
"""Seconds that a write may take, whatever holds up the loop."""

_OF_THE_CLIENT = ("REMOTE_ADDR", "HTTP_USER_AGENT", "HTTP_X_FORWARDED_FOR")
_VARY, _VARY_BEARER = ("Vary", "Cookie"), ("Vary", "Authorization, Cookie")
_NOTABLE = frozenset({4, 10})
"""The lengths of Vary and Set-Cookie."""


class Handle(BaseHandle):
    """The handle of a request under WSGI: the names of the ASGI one, without await."""

    _starter: StartResponse

    def __init__(self, door: MiddlewareOptions, environ: WSGIEnvironment) -> None:
        self._options = door
        self._environ = environ.copy()  # rule 4; and no cycle, which only gc would free
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
        """See :meth:`BaseHandle.client_key`; in the raw, as far as a client shows."""
        return hash(tuple(map(self._environ.get, _OF_THE_CLIENT)))

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        """The application's ``start_response``: edits the headers, nothing else."""
        edited = self._edited(headers)
        if exc_info is None:
            return self._starter(status, edited)
        try:
            return self._starter(status, edited, exc_info)
        finally:
            del exc_info  # a traceback refers to this frame: PEP 3333

    def _edited(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        if not self._set_cookies:
            for name, _ in headers:
                if len(name) in _NOTABLE and name.lower() in ("vary", "set-cookie"):
                    break
            else:
                self._started = True
                if self._sent or self._looked:
                    return [*headers, _VARY_BEARER if self._bearer else _VARY]
                return headers
        raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers]
        edited = self.response_headers(raw)
        return [(k.decode("latin-1"), v.decode("latin-1")) for k, v in edited]

    def _publish(self, event: Event) -> None:
        soon(self._options.sessions.publish, event)

    def _authenticate(self, method: str | None, passive: Callable[[], bool]) -> None:
        # Whoever speaks WebSocket under WSGI answers the handshake past start_response.
        takes_cookies = "HTTP_UPGRADE" not in self._environ or not is_handshake(
            self._headers
        )
        question = self._question(method, takes_cookies=takes_cookies)
        if not question.credentials:
            return
        sessions = self._options.sessions
        credentials, idle = question.credentials, question.passive or passive()
        if len(credentials.session) == 1:  # rule 1: also for a POST, or a bearer token
            entry = sessions.hit(credentials.session[0], idle, self)
            if entry is not None and credentials.agrees(entry.session.id):
                self._session = entry.session
                return
        if sessions.is_forged(credentials):  # a flood of these must not reach the loop
            return
        limit = sessions.policy.time_budget.total_seconds() + PATIENCE
        ask = sessions.authenticate
        try:
            answer = within(limit, ask, credentials, self.client, passive=idle)
        except SessionsUnavailable as exc:
            answer = Unknown(exc.cause)
        self._resolve(answer)

    def login(
        self, user_id: str, *, remember: bool = False, claim: str | None = None
    ) -> Session:
        """See :meth:`handstamp.asgi.Handle.login`."""
        self._check_login()
        return self._logged_in(within(LONGEST, self._replace, user_id, remember, claim))

    def logout(self) -> None:
        """See :meth:`handstamp.asgi.Handle.logout`."""
        self._log_out()

    def _log_out(self) -> Sequence[Session]:
        held = within(LONGEST, self._end) if self._check_logout() else ()
        self._logged_out()
        return held

    def step_up(self, level: int) -> Session:
        """See :meth:`handstamp.asgi.Handle.step_up`."""
        session, refresh = self._check_step_up()
        step_up, claim = self.sessions.step_up, session.claim
        return self._stepped_up(
            within(LONGEST, step_up, session.id, level, refresh=refresh, claim=claim)
        )

    def renew(self, *, claim: str | None) -> Session:
        """See :meth:`handstamp.asgi.Handle.renew`."""
        session, refresh = self._check_step_up()
        renew = self.sessions.renew
        return self._stepped_up(
            within(LONGEST, renew, session.id, claim=claim, refresh=refresh)
        )

    def list_sessions(self) -> list[Session]:
        """See :meth:`handstamp.asgi.Handle.list_sessions`."""
        session = self.require()
        find, user_id = self.sessions.list_for_user, session.user_id
        return within(LONGEST, find, user_id, current=session.id)

    def revoke(self, session_id: str, *, reason: str = "revoked by its user") -> bool:
        """See :meth:`handstamp.asgi.Handle.revoke`."""
        self._check_write()
        user_id = self.require().user_id
        revoke = self.sessions.revoke
        return within(LONGEST, revoke, session_id, reason=reason, user_id=user_id)

    def revoke_others(self) -> int:
        """See :meth:`handstamp.asgi.Handle.revoke_others`."""
        self._check_write()
        session = self.require()
        return within(
            LONGEST,
            self.sessions.revoke_user,
            session.user_id,
            keep=session.id,
            reason="signed out from another session",
        )


class SessionAuthMiddleware:
    """Authenticates every request of ``app`` by ``sessions``.

    The options are those of :class:`handstamp.asgi.SessionAuthMiddleware`, with
    ``PATH_INFO`` for paths, and the ``environ`` for a function that tells ``passive``
    requests. Nothing is started before the first request that needs the database, so a
    server may fork after import. Raises :class:`ConfigError`.
    """

    handle_class: ClassVar[type[Handle]] = Handle

    def __init__(
        self,
        app: WSGIApplication,
        sessions: Sessions,
        *,
        cookies: Cookies | None = None,
        trusted_proxies: TrustedProxies | None = None,
        exclude: Collection[str] = (),
        passive: Collection[str] | Callable[[WSGIEnvironment], bool] = (),
        cross_site: str = "refuse",
        trusted_origins: Iterable[str] = (),
        outage: str = "ask",
        bearer: bool = False,
    ) -> None:
        check_threads()
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
        self._exclude = frozenset(map(_path_info, exclude))
        self._passive = passive if callable(passive) else _among(passive)
        self._choosy = bool(self._exclude) or self._passive is not None
        self._sole, self._agrees = self._options.reader.sole, self._options.reader.agrees
        self._hit = sessions.hit
        self._forks_untold = "uwsgi" in sys.modules

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._options.sessions!r})"

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Serve one request."""
        if self._forks_untold:
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
                return reply(exc, environ, handle.start_response)
        handle._starter = start_response
        self.admit(environ, handle)
        try:
            return self.app(environ, handle.start_response)
        except HandstampError as exc:
            if handle._started or exc.status == 500:
                raise  # a 500 is the operator's fault, and the server logs it
            return reply(exc, environ, handle.start_response)

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
        if self._choosy and self._is_special(environ):
            return None
        token = self._sole(_as_bytes(cookie))
        if token is None:
            return None
        handle = self.handle_class(self._options, environ)
        entry = self._hit(token, False, handle)
        if entry is None:
            return None
        if self._agrees is not None and not self._agrees(
            _as_bytes(cookie), entry.session.id
        ):
            return None
        handle._session = entry.session
        handle._sent = True
        return handle

    def _is_special(self, environ: WSGIEnvironment) -> bool:
        return environ.get("PATH_INFO", "") in self._exclude or self._is_passive(environ)

    def _is_passive(self, environ: WSGIEnvironment) -> bool:
        return self._passive is not None and self._passive(environ)

    def _slow_path(self, handle: Handle, environ: WSGIEnvironment) -> None:
        method = environ.get("REQUEST_METHOD")
        if method == "OPTIONS" or environ.get("PATH_INFO", "") in self._exclude:
            return
        handle._authenticate(method, lambda: self._is_passive(environ))

    def admit(self, environ: WSGIEnvironment, handle: Handle) -> None:
        """Put the handle where the application looks for it; frameworks add to this."""
        environ[ENVIRON_KEY] = handle


def plain_response(exc: HandstampError) -> tuple[str, list[tuple[str, str]], bytes]:
    """An error of ours as a status line, headers and a body: its text where that is the
    client's business."""
    body = exc.public_message.encode() + b"\n"
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        *exc.headers.items(),
    ]
    return f"{exc.status} {HTTPStatus(exc.status).phrase}", headers, body


def reply(
    exc: HandstampError, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    """Answer an error of ours, where no response has begun.

    So without ``exc_info``, which has test clients raise what they are to be answered.
    """
    status, headers, body = plain_response(exc)
    start_response(status, headers)
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


def _among(paths: Collection[str]) -> Callable[[WSGIEnvironment], bool] | None:
    if not paths:
        return None
    exact = frozenset(map(_path_info, paths))
    return lambda environ: environ.get("PATH_INFO", "") in exact


def _path_info(path: str) -> str:
    """A path as WSGI spells it: its bytes, each as a character (PEP 3333)."""
    return path.encode().decode("latin-1")


def _as_bytes(value: Any) -> bytes:
    return str(value).encode("latin-1", "replace")
