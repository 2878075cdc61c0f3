"""Sign a test client in without a login form, copy its cookies, see that a session ended.

Rule 1. Nothing is faked: the application's own engine makes a real session, and its cookies
go into the client's jar. The client's next request is authenticated, refreshed, listed and
revoked like any other.
Rule 2. The test names the engine: ``sessions=`` is the application's :class:`Sessions`, or
the ``SessionAuthMiddleware`` around the application, which also has the settings of its
cookies. Django's clients need neither: its settings name both.
Rule 3. A stolen refresh token that is presented after its successor was used, and after
grace, proves that two parties hold one session, which is then revoked. So the victim must
send two requests before the replay: one that is refreshed, and one with the new cookies.
Until then the response with the new cookies may simply have been lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TypeAlias

from handstamp import asgi, wsgi
from handstamp.config import Cookies
from handstamp.core.cookies import CookieTransport
from handstamp.core.models import Client, Issued, Record, Session
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError
from handstamp.events import Revoked
from handstamp.testing.cookies import (
    SessionCookies,
    check_client,
    copy_cookies,
    is_async,
    is_django,
    read_session,
    set_tokens,
)
from handstamp.testing.engines import Recorded, acall, arun, call, run

Engine: TypeAlias = Sessions | asgi.SessionAuthMiddleware | wsgi.SessionAuthMiddleware

_WRAPPED = "sessions=app, where app is what wrap(…) returned"
_WHERE: Mapping[str, str] = {
    "starlette": _WRAPPED,
    "litestar": _WRAPPED,
    "falcon": _WRAPPED,
    "flask": "sessions=app.wsgi_app",
    "quart": "sessions=app.asgi_app",
    "webtest": "sessions=sessions, the Sessions that config.set_session_auth(…) of Pyramid "
    "or SessionAuthPlugin(…) of Bottle was given",
}
"""What to write for the test client of each framework, by the package it comes from."""
_ANY = "sessions=app, where app is the SessionAuthMiddleware"
_NO_CLIENT = Client()
THIEF = Client(address="203.0.113.66", user_agent="Thief", user_agent_hash="f" * 64)
"""The client of a replay, as an event shows it. The address is reserved for examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn(Issued):
    """The result of :func:`login_as`: the session, its tokens as text, and its engine."""

    sessions: Sessions = field(repr=False)

    def revoke(self, *, reason: str = "revoked") -> bool:
        """Revoke this session; returns whether it was live. As :meth:`Sessions.revoke`."""
        return call(self.sessions.revoke, self.session.id, reason=reason)

    async def arevoke(self, *, reason: str = "revoked") -> bool:
        """The same for a test with ``await``."""
        return await acall(self.sessions.revoke, self.session.id, reason=reason)


def login_as(
    client: object,
    user_id: str,
    *,
    sessions: Engine | None = None,
    cookies: Cookies | None = None,
    remember: bool = False,
    signed_in_from: Client = _NO_CLIENT,
) -> SignedIn:
    """Sign a test client in, without a request.

    ``client`` is the test client of Starlette, FastAPI, Litestar, Django, Django REST
    framework, Flask or Falcon, a WebTest ``TestApp``, or an ``httpx.Client`` on a WSGI
    application. ``sessions`` is the application's :class:`Sessions` or its
    ``SessionAuthMiddleware``; Django's settings name it, so leave it out there.
    ``cookies`` is needed with a :class:`Sessions` whose middleware has ``cookies=`` too.
    ``signed_in_from`` is the address and the browser that the row keeps. With
    :class:`SupabaseSessions` the jar gets the cookie of ``@supabase/ssr``, and the user
    must have a row in ``auth.users``.

    Returns the session and its tokens. Raises :class:`ConfigError` if ``sessions`` is
    missing or the client would never send the cookies, and what :meth:`Sessions.create`
    raises.
    """
    if is_async(client):
        raise ConfigError(f"{type(client).__name__} is async: await alogin_as(…)")
    engine, transport = _resolve(client, sessions, cookies)
    check_client(client, transport)  # before there is a session that is of no use
    create = partial(engine.create, user_id, client=signed_in_from, remember=remember)
    return _signed_in(client, run(engine, create), engine, transport)


async def alogin_as(
    client: object,
    user_id: str,
    *,
    sessions: Engine | None = None,
    cookies: Cookies | None = None,
    remember: bool = False,
    signed_in_from: Client = _NO_CLIENT,
) -> SignedIn:
    """The same as :func:`login_as` for a client whose requests are awaited.

    ``client`` is an ``httpx.AsyncClient`` on an ``ASGITransport``, Litestar's
    ``AsyncTestClient``, Quart's test client, Django's ``AsyncClient``, or Falcon's
    ``ASGIConductor``.
    """
    if not is_async(client):
        raise ConfigError(f"{type(client).__name__} is not async: call login_as(…)")
    engine, transport = _resolve(client, sessions, cookies)
    check_client(client, transport)  # before there is a session that is of no use
    create = partial(engine.create, user_id, client=signed_in_from, remember=remember)
    if hasattr(client, "portal"):  # Litestar's serves on a loop of its own
        issued = await asyncio.to_thread(run, engine, create)
    else:
        issued = await arun(engine, create)
    return _signed_in(client, issued, engine, transport)


def _resolve(
    client: object, given: object, cookies: Cookies | None
) -> tuple[Sessions, CookieTransport]:
    """The engine, and the cookies that carry its sessions (rule 2)."""
    if given is None and is_django(client):
        from handstamp.django.settings import configuration

        configured = configuration()
        given = configured.sessions
        cookies = cookies or configured.middleware.get("cookies")
    if isinstance(given, asgi.SessionAuthMiddleware | wsgi.SessionAuthMiddleware):
        options = given._options
        given, cookies = options.sessions, cookies or options.cookies
    if isinstance(given, Sessions):
        return given, given.cookie_transport(cookies)
    packages = (kind.__module__.partition(".")[0] for kind in type(client).__mro__)
    write = next((_WHERE[name] for name in packages if name in _WHERE), _ANY)
    if given is None:
        problem = f"this {type(client).__name__} does not name its engine"
    else:
        problem = f"sessions= has no engine: it is of type {type(given).__name__}"
    raise ConfigError(
        f"{problem}. Write {write}; or sessions=sessions, with the Sessions itself (and "
        "cookies=, if the middleware has cookies= too)"
    )


def _signed_in(
    client: object, issued: Issued, sessions: Sessions, transport: CookieTransport
) -> SignedIn:
    set_tokens(client, issued, transport)
    values = {f.name: getattr(issued, f.name) for f in fields(issued)}
    return SignedIn(**values, sessions=sessions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stolen:
    """The copy that :func:`steal` made of a session's cookies: it never changes."""

    copied: SessionCookies = field(repr=False)
    sessions: Sessions = field(repr=False)
    transport: CookieTransport = field(repr=False)

    @property
    def session_token(self) -> str:
        """The session token, which also works as a bearer token."""
        return self.copied.session_token

    @property
    def refresh_token(self) -> str | None:
        """The refresh token that :meth:`replay` presents; None if the table has none."""
        return self.copied.refresh_token

    def replay(self) -> Issued | None:
        """Present the refresh token now; returns None if it was refused, as it should be.

        The activity of the victim is written to the table first, so that it counts. Raises
        :class:`SessionsUnavailable`, and :class:`ConfigError` without a refresh token.
        """
        return run(self.sessions, self._replay)

    async def areplay(self) -> Issued | None:
        """The same for a test with ``await``."""
        return await arun(self.sessions, self._replay)

    async def _replay(self) -> Issued | None:
        if self.refresh_token is None:
            raise ConfigError(
                "there is no refresh token to replay in these cookies: use the copy as it "
                "is, with into(client)"
            )
        await self.sessions.flush()
        return await self.sessions.refresh(self.refresh_token, client=THIEF)

    def into(self, client: object) -> None:
        """Put the cookies into the jar of another client: the thief's browser."""
        copy_cookies(client, self.copied, self.transport)


def steal(
    client: object, *, sessions: Engine | None = None, cookies: Cookies | None = None
) -> Stolen:
    """Copy the session's cookies from the jar of a test client, which keeps them.

    ``sessions`` and ``cookies`` as for :func:`login_as`. Raises :class:`ConfigError` if
    the client is not signed in.
    """
    engine, transport = _resolve(client, sessions, cookies)
    copied = read_session(client, transport)
    if copied is None:
        raise ConfigError("this client holds no session to steal: sign it in first")
    return Stolen(copied=copied, sessions=engine, transport=transport)


def assert_revoked(
    session: Session | Issued | str,
    *,
    reason: str | None = None,
    sessions: Engine | None = None,
    events: Recorded | None = None,
) -> None:
    """Fail unless this session was revoked, and for this reason if one is given.

    ``session`` is what :func:`login_as` returned, a :class:`Session`, or an id; the last
    two need ``sessions`` too. The row decides. With ``events`` the published events
    decide, which also works for tables that delete the row or keep no reason. An expired
    session is not a revoked one. Raises :class:`AssertionError`.
    """
    __tracebackhide__ = True
    session_id = _id_of(session)
    if events is not None:
        _judge_events(session_id, reason, events)
    else:
        engine = _engine_of(session, sessions)
        row = run(engine, partial(engine.store.find_by_id, session_id))
        _judge_row(session_id, reason, row)


async def aassert_revoked(
    session: Session | Issued | str,
    *,
    reason: str | None = None,
    sessions: Engine | None = None,
    events: Recorded | None = None,
) -> None:
    """The same as :func:`assert_revoked` for a test with ``await``."""
    __tracebackhide__ = True
    session_id = _id_of(session)
    if events is not None:
        _judge_events(session_id, reason, events)
    else:
        engine = _engine_of(session, sessions)
        row = await arun(engine, partial(engine.store.find_by_id, session_id))
        _judge_row(session_id, reason, row)


def _id_of(session: Session | Issued | str) -> str:
    if isinstance(session, Issued):
        session = session.session
    return session if isinstance(session, str) else session.id


def _engine_of(session: object, given: Engine | None) -> Sessions:
    if given is None and isinstance(session, SignedIn):
        return session.sessions
    if given is None:
        raise ConfigError("give sessions= or events=: this alone does not name its engine")
    return given if isinstance(given, Sessions) else given._options.sessions


def _judge_events(session_id: str, reason: str | None, events: Recorded) -> None:
    __tracebackhide__ = True
    reasons = [e.reason for e in events.of(Revoked) if e.session_id == session_id]
    if not reasons:
        raise AssertionError(f"there is no event that session {session_id} was revoked")
    if reason is not None and reason not in reasons:
        raise AssertionError(_other_reason(session_id, reasons[-1], reason))


def _judge_row(session_id: str, reason: str | None, row: Record | None) -> None:
    __tracebackhide__ = True
    if row is not None and row.is_active and row.revoked_at is None:
        raise AssertionError(f"session {session_id} is not revoked")
    if reason is None:
        return
    if row is None or row.revoked_reason is None:
        raise AssertionError(
            f"the table holds no reason for the end of session {session_id}: "
            "look at the events with events="
        )
    if row.revoked_reason != reason:
        raise AssertionError(_other_reason(session_id, row.revoked_reason, reason))


def _other_reason(session_id: str, found: str, expected: str) -> str:
    return f"session {session_id} was revoked for {found!r}, not for {expected!r}"
